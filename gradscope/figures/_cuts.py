"""The narrowest places of a model, drawn as what they are: necks between its parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from gradscope.figures import _axes
from gradscope.figures._figure import Mark, about, figure
from gradscope.figures._grid import grid
from gradscope.figures._style import WIDTH, Theme
from gradscope.figures._text import distinct, number, plain, shorten
from gradscope.run import Run

CUTS = 8
"""Cuts drawn at most for a run: the narrowest relative to their source."""
LANE = 1.0
"""Half the width of a lane, in which the largest place of all runs just fits."""


class Neck(NamedTuple):
    """A minimum cut, in numbers per sample.

    Attributes:
        source, sink: the places it separates.
        width, source_width, sink_width: numbers per sample.
        through: names of the tensors that together are the narrowest place.
    """

    source: str
    sink: str
    width: float
    source_width: float
    sink_width: float
    through: tuple[str, ...]

    @property
    def site(self) -> str:
        return f"{self.source} → {self.sink}"


class Place(NamedTuple):
    """Where a source or a sink is drawn: its lane's middle, its row, and its size."""

    x: float
    y: float
    width: float


@figure(
    title="How narrow the model is",
    caption=(
        "From top to bottom, the places between which information was followed: input to "
        "output, and each attention layer's latent state to that of the next. Each bar is a "
        "place, as wide as the numbers per sample in it; the neck between two bars is the "
        "narrowest place that everything on its way must pass (the minimum cut of the layer "
        "graph), with its size and the tensors that form it. Widths are on a logarithmic scale. "
        "A neck much narrower than the bars on both sides is a bottleneck: whatever the layer "
        "worked out, no more than that gets on. A cut as small as its sink is no bottleneck."
    ),
    caption_several=(
        "A column a run, all on one logarithmic scale. From top to bottom, the places between "
        "which information was followed: input to output, and each attention layer's latent "
        "state to that of the next. Each bar is a place, as wide as the numbers per sample in "
        "it; the neck between two bars is the narrowest place that everything on its way must "
        "pass (the minimum cut of the layer graph), with its size and the tensors that form it. "
        "A neck much narrower than the bars on both sides is a bottleneck. A cut as small as its "
        "sink is none."
    ),
    requires=(("cut", "width"),),
    absent="no attention softmax follows another (scope.bottlenecks() looks from input to output)",
    shows=(("cut", "*"),),
)
def cuts(runs: Sequence[Run], marks: Sequence[Mark], theme: Theme) -> Figure:
    marks = about(marks, "cut")
    every = [necks(r) for r in runs]
    found = [narrowest(own) for own in every]
    labels = distinct([r.name for r in runs])
    places = [layout(own) for own in found]
    largest = max((p.width for own in places for p in own.values()), default=1.0)
    across = min(len(runs), 4)
    down = -(-len(runs) // across)
    rows = max((int(max((p.y for p in own.values()), default=0)) for own in places), default=0)
    height = min(max(0.95 * (rows + 1), 1.6), 17.0 / down)
    fig = Figure(figsize=(WIDTH, height * down + 0.5), layout="constrained")
    panels = fig.subplots(down, across, squeeze=False)
    for i, axes in enumerate(panels.flat):
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        if i >= len(runs):
            continue
        lanes = max((abs(p.x) for p in places[i].values()), default=0.0)
        air = 1.15 if len(runs) > 1 or lanes else 1.8  # a single column looks best when slim
        axes.set_xlim(-lanes - air * LANE, lanes + air * LANE)
        axes.set_ylim(rows + 0.4, -0.4)
        if len(runs) > 1:
            axes.set_title(plain(shorten(labels[i], 72 // across)))
        if not found[i]:
            _axes.say(axes, "no cuts computed", theme)
            continue
        hidden = len(every[i]) - len(found[i])
        more = f"; {hidden} more {'cut' if hidden == 1 else 'cuts'}, no narrower" if hidden else ""
        axes.set_xlabel(f"numbers per sample (log scale){more}")
        room = int(96 / across / (1 + lanes / LANE))
        own = [m for m in marks if m.run == i]
        _draw(axes, found[i], places[i], largest, room, own, theme)
    return fig


def necks(run: Run) -> list[Neck]:
    """The cuts of a run, in the order recorded."""
    tensors = {
        f"{c['source']} → {c['sink']}": tuple(map(str, c.get("tensors") or ()))
        for c in run.meta.get("cuts") or ()
    }
    sizes: dict[str, dict[str, float]] = {}
    for metric in ("width", "source_width", "sink_width"):
        g = grid(run, "cut", metric)
        for j, name in enumerate(g.names):
            values = g.column(j)[1]
            if len(values) and math.isfinite(values[-1]):
                sizes.setdefault(name, {})[metric] = float(values[-1])
    found = []
    for name, size in sizes.items():
        source, _, sink = name.partition(" → ")
        if "width" in size:
            width = size["width"]
            before, behind = size.get("source_width", width), size.get("sink_width", width)
            found.append(Neck(source, sink, width, before, behind, tensors.get(name, ())))
    return found


def narrowest(found: Sequence[Neck]) -> list[Neck]:
    """At most `CUTS` of the cuts, in the order given."""
    kept = sorted(found, key=lambda n: n.width / max(n.source_width, 1e-9))[:CUTS]
    return [n for n in found if n in kept]


def layout(found: Sequence[Neck]) -> dict[str, Place]:
    """Source and sink → where it is drawn: a row for each generation of the graph of cuts,
    one part of it that hangs together below the other."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    sizes: dict[str, float] = {}
    for n in found:
        for name, width in ((n.source, n.source_width), (n.sink, n.sink_width)):
            sizes[name] = max(width, sizes.get(name, 0.0))
        # Backward edges of a loop would have no generation.
        if n.source != n.sink and not (
            graph.has_node(n.sink)
            and graph.has_node(n.source)
            and nx.has_path(graph, n.sink, n.source)
        ):
            graph.add_edge(n.source, n.sink)
        graph.add_nodes_from((n.source, n.sink))
    order = {name: i for i, name in enumerate(sizes)}
    groups = sorted(nx.weakly_connected_components(graph), key=lambda g: min(order[n] for n in g))
    places: dict[str, Place] = {}
    row = 0
    for group in groups:
        for level in nx.topological_generations(graph.subgraph(group)):
            names = sorted(level, key=order.__getitem__)
            middle = (len(names) - 1) / 2
            for k, name in enumerate(names):
                places[name] = Place(2 * LANE * (k - middle), row, sizes[name])
            row += 1
    return places


def _draw(
    axes: Axes,
    found: Sequence[Neck],
    places: dict[str, Place],
    largest: float,
    room: int,
    marks: Sequence[Mark],
    theme: Theme,
) -> None:
    def half(width: float) -> float:
        return max(0.012, 0.95 * LANE * math.log10(1 + width) / math.log10(1 + max(largest, 1)))

    for n in found:
        start, end = places[n.source], places[n.sink]
        own = [m for m in marks if n.site in (m.site, *m.sites)]
        colour = theme.severity[_axes.worst(own)] if own else theme.cycle[0]
        shape = _ribbon(start, end, half(start.width), half(n.width), half(end.width))
        axes.add_patch(Polygon(shape, closed=True, color=colour, alpha=0.35, lw=0))
        x, y = (start.x + end.x) / 2, (start.y + end.y) / 2
        axes.plot([x - half(n.width), x + half(n.width)], [y, y], color=colour, lw=2)
        labels = " ".join(dict.fromkeys(m.label for m in own[:2]))
        amount = number(n.width) if n.width % 1 else number(int(n.width))
        look: dict[str, Any] = {"ha": "center", "zorder": 5, "color": theme.ink}
        text = plain(f"{labels}  {amount}" if labels else amount)
        axes.text(x, y - 0.04, text, va="bottom", fontweight="bold", fontsize=9.5, **look)
        through = " + ".join(shorten(t, max(14, room - 8)) for t in n.through[:1])
        if len(n.through) > 1:
            through += f" + {len(n.through) - 1} more"
        if n.width == 0:
            through = "no path"
        axes.text(x, y + 0.05, plain(through), va="top", fontsize=8, **look)
    for name, place in places.items():
        reach = half(place.width)
        axes.plot(
            [place.x - reach, place.x + reach],
            [place.y, place.y],
            color=theme.cycle[0],
            lw=15,
            solid_capstyle="butt",
            zorder=3,
        )
        width = number(place.width) if place.width % 1 else number(int(place.width))
        text = plain(f"{shorten(name, max(12, room - 10))} · {width}")
        box = {"facecolor": theme.paper, "alpha": 0.85, "lw": 0, "boxstyle": "round,pad=0.15"}
        axes.text(
            place.x,
            place.y,
            text,
            ha="center",
            va="center",
            fontsize=8.5,
            color=theme.ink,
            zorder=4,
            bbox=box,
        )


def _ribbon(start: Place, end: Place, first: float, neck: float, last: float) -> np.ndarray:
    """(2T, 2): outline that narrows smoothly from one place to the neck and widens again."""
    t = np.linspace(0, 1, 41)
    ease = (1 - np.cos(np.pi * np.clip(2 * t, 0, 1))) / 2, (1 - np.cos(2 * np.pi * t)) / 2
    reach = np.where(t <= 0.5, first + (neck - first) * ease[0], last + (neck - last) * ease[1])
    x = start.x + (end.x - start.x) * (1 - np.cos(np.pi * t)) / 2
    y = start.y + (end.y - start.y) * t
    return np.concatenate([np.column_stack([x - reach, y]), np.column_stack([x + reach, y])[::-1]])
