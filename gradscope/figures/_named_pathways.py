"""Named pathways over training: which share of a gradient each carries, and how much that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradscope.figures import _axes
from gradscope.figures._figure import Mark, about, figure
from gradscope.figures._grid import grid
from gradscope.figures._style import WIDTH, Theme
from gradscope.figures._text import distinct, plain, shorten, shorten_all
from gradscope.run import Run

SOURCES = 5
"""Sources with a row of panels, at most, over all runs where there are up to five of these."""
REST = "(rest) "


class Series(NamedTuple):
    """One named pathway into one source.

    Attributes:
        source: the tensor whose gradient is split.
        name: of the pathway.
        steps: int64 (S,).
        share: float64 (S,), ⟨part, g⟩/‖g‖²; that of the rest is 1 minus this.
        norm, rest: float64 (S,), lengths of the part and of the rest.
    """

    source: str
    name: str
    steps: np.ndarray
    share: np.ndarray
    norm: np.ndarray
    rest: np.ndarray


@figure(
    title="Named pathways",
    caption=(
        "A row for each source. Left: the share of its gradient that passes through each named "
        "pathway (the projection of that part on the whole); 1 is all of it, below 0 it works "
        "against the rest. Pathways may overlap, so their shares need not add up. Right: the "
        "length of that part, and dashed, in the same colour, of the rest that passes elsewhere; "
        "the scale is logarithmic. A part that is exactly 0 is not drawn there."
    ),
    caption_several=(
        "A row for each run and source, on common axes. Left: the share of the source's gradient "
        "that passes through each named pathway (the projection of that part on the whole); 1 is "
        "all of it, below 0 it works against the rest. Pathways may overlap, so their shares need "
        "not add up. Right: the length of that part, and dashed, in the same colour, of the rest "
        "that passes elsewhere; the scale is logarithmic. A part that is exactly 0 is not drawn "
        "there."
    ),
    requires=(("pathway", "projection"), ("pathway", "grad_norm")),
    absent="no pathway was named (name one with scope.pathway())",
    shows=(("pathway", "*"),),
)
def named_pathways(runs: Sequence[Run], marks: Sequence[Mark], theme: Theme) -> Figure:
    marks = about(marks, "pathway")
    found = [series(r) for r in runs]
    count = max(1, SOURCES // len(runs))
    rows: list[tuple[int, str]] = []
    for i, own in enumerate(found):
        marked = {m.site for m in marks if m.run == i}
        sources = sorted(dict.fromkeys(s.source for s in own), key=lambda n: n not in marked)
        rows += [(i, source) for source in sources[:count]] or [(i, "")]
    names = list(dict.fromkeys(s.name for own in found for s in own))
    colours = {name: theme.cycle[k % len(theme.cycle)] for k, name in enumerate(names)}
    height = 2.3 if len(rows) < 3 else 1.7
    fig = Figure(figsize=(WIDTH, height * len(rows) + 0.9), layout="constrained")
    panels = fig.subplots(len(rows), 2, squeeze=False, sharex=True, sharey="col")
    steps = _axes.recorded_steps(runs)
    labels = distinct([r.name for r in runs])
    for (i, source), (left, right) in zip(rows, panels, strict=True):
        label = left is panels[-1, 0]
        for axes in (left, right):
            _axes.step_axis(axes, steps, label=label, ticks=6)
        if not source:
            for axes in (left, right):
                _axes.say(axes, "no pathway was named", theme)
        pointing = [m for m in marks if m.run == i and m.site == source and source]
        _title(left, labels[i] if len(runs) > 1 else "", source, pointing, theme)
        left.set_ylabel("share of gradient")
        right.set_ylabel("length of the part")
        for s in (s for s in found[i] if s.source == source):
            dots = "o" if len(s.steps) <= 3 else ""
            colour = colours[s.name]
            left.plot(s.steps, _finite(s.share), color=colour, marker=dots, ms=4)
            right.plot(s.steps, _positive(s.norm), color=colour, marker=dots, ms=4)
            right.plot(s.steps, _positive(s.rest), color=colour, ls="--", lw=1.2, marker=dots, ms=4)
    drawn = [v for own in found for s in own for v in (s.norm, s.rest)]
    _axes.log_axis(panels[0, 1], "y", _axes.log_limits(drawn), ticks=5)
    _share_axis(list(panels[:, 0]), [s.share for own in found for s in own], theme)
    handles = [Line2D([], [], color=c, lw=2.5) for c in colours.values()]
    handles.append(Line2D([], [], color=theme.muted, ls="--", lw=1.2))
    texts = [plain(t) for t in shorten_all(names, 40)]
    fig.legend(
        handles,
        [*texts, "the rest, past that pathway"],
        loc="outside lower left",
        ncols=min(4, len(handles)),
    )
    return fig


def series(run: Run) -> list[Series]:
    """Every named pathway of every source, sources in forward order."""
    shares = grid(run, "pathway", "projection", edges=True)
    norms = grid(run, "pathway", "grad_norm", edges=True)
    steps = np.union1d(shares.steps, norms.steps)
    columns: dict[tuple[str, str, str], np.ndarray] = {}
    for metric, g in (("share", shares), ("norm", norms)):
        rows = np.searchsorted(steps, g.steps)
        for j, (site, edge) in enumerate(zip(g.names, g.edges, strict=True)):
            column = np.full(len(steps), np.nan)
            column[rows] = g.values[:, j]
            columns[metric, site, edge] = column
    keys = dict.fromkeys((site, edge) for _, site, edge in columns if not edge.startswith(REST))
    nothing = np.full(len(steps), np.nan)
    return [
        Series(
            site,
            edge,
            steps,
            columns.get(("share", site, edge), nothing),
            columns.get(("norm", site, edge), nothing),
            columns.get(("norm", site, REST + edge), nothing),
        )
        for site, edge in keys
    ]


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _share_axis(panels: Sequence[Axes], shares: Sequence[np.ndarray], theme: Theme) -> None:
    """From 0 to 1 and as far beyond as shares go, single outliers apart."""
    known = np.concatenate([s[np.isfinite(s)] for s in shares] or [[]])
    low, high = np.quantile(known, [0.02, 0.98]) if len(known) else (0.0, 1.0)
    panels[0].set_ylim(max(-3.0, min(0.0, low)) - 0.04, min(4.0, max(1.0, high)) + 0.04)
    for axes in panels:
        for y in (0.0, 1.0):
            axes.axhline(y, color=theme.ink, lw=0.7, alpha=0.6)


def _title(axes: Axes, run: str, source: str, own: Sequence[Mark], theme: Theme) -> None:
    parts = [" ".join(dict.fromkeys(m.label for m in own[:3]))]
    if run:
        parts.append(shorten(run, 24) + (":" if source else ""))
    parts.append(shorten(source, 36))
    colour = theme.severity[_axes.worst(own)] if own else theme.ink
    axes.set_title(plain("  ".join(p for p in parts if p)), color=colour)
