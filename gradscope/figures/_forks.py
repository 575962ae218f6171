"""Forks as small multiples: which of them are worth a panel, and in which colours.

Index legend: S steps, E edges of a fork.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from gradscope.figures import _axes, _sites
from gradscope.figures._figure import Mark, about
from gradscope.figures._grid import grid
from gradscope.figures._style import WIDTH, Theme
from gradscope.figures._text import distinct, plain, shorten, shorten_all
from gradscope.run import Run, Site

PANELS = 6
"""Forks shown at most, over all runs where there are up to six of these."""
OTHERS = "all other edges"
"""Name of what is left over where a fork has more edges than can be told apart."""


@dataclass(frozen=True)
class Fork:
    """One metric of a fork's edges.

    Attributes:
        site: the tensor that is used several times.
        steps: int64 (S,).
        edges: names of its E consumers, layer 2 before layer 10.
        values: float64 (S, E); NaN where not recorded.
    """

    site: Site
    steps: np.ndarray
    edges: list[str]
    values: np.ndarray


Telling = Callable[[Fork], float]
"""How much there is to see at a fork; the more, the sooner it gets a panel."""

DrawPanel = Callable[[Axes, Fork, dict[str, str], Theme], None]
"""Draw a fork into its panel, with the colour of each edge's role."""


def forks(run: Run, metric: str) -> list[Fork]:
    """All forks with at least two edges, in forward order."""
    every = grid(run, "fork", metric, edges=True)
    found = []
    for name in dict.fromkeys(every.names):
        own = every.of_site(name)
        rows = own.present.any(axis=1)
        if len(own.edges) >= 2:
            order = sorted(range(len(own.edges)), key=lambda j: _natural(own.edges[j]))
            edges = [own.edges[j] for j in order]
            found.append(Fork(own.sites[0], own.steps[rows], edges, own.values[rows][:, order]))
    return found


def choose(found: Sequence[Fork], marked: set[str], count: int, telling: Telling) -> list[Fork]:
    """The forks worth showing, in forward order.

    Those with findings, then the first of each role (`layers.*.norm1`), the last of each, and
    what lies between as far as there is room; the most telling roles before others.
    """
    roles: dict[str, list[Fork]] = {}
    for f in found:
        roles.setdefault(_sites.role(f.site.name), []).append(f)
    ranked = sorted(roles.values(), key=lambda same: -max(map(telling, same)))
    order = [f for f in found if f.site.name in marked]
    order += [same[0] for same in ranked] + [same[-1] for same in ranked]
    order += [f for same in ranked for f in same]
    kept = list({f.site.name: f for f in order}.values())[:count]
    return sorted(kept, key=lambda f: f.site.order)


def role(edge: str) -> str:
    """An edge's name with layer numbers left out, so that layers share their colours."""
    module, _, op = edge.rpartition(":")
    return f"{_sites.role(module)}:{op}" if module else edge


def draw_forks(
    runs: Sequence[Run],
    found: Sequence[Sequence[Fork]],
    marks: Sequence[Mark],
    telling: Telling,
    panel: DrawPanel,
    unit: str,
    theme: Theme,
) -> Figure:
    """Small multiples on common axes: a column a run for up to three runs, one panel each for
    more, and up to six forks of a single one."""
    marks = about(marks, "fork")
    cells, across = _layout(found, {m.site for m in marks}, telling)
    down = -(-len(cells) // across)
    roles = {role(e) for _, fork in cells if fork for e in fork.edges}
    shared = len(roles - {OTHERS}) <= len(theme.cycle)
    fig = Figure(figsize=(WIDTH, (2.0 if shared else 2.8) * down + 0.9), layout="constrained")
    panels = fig.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    steps = _axes.recorded_steps(runs)
    labels = distinct([r.name for r in runs])
    for k, axes in enumerate(panels.flat):
        if k >= len(cells):
            axes.set_axis_off()
            continue
        run, fork = cells[k]
        bottom = k + across >= len(cells)
        _axes.step_axis(axes, steps, label=bottom, ticks=8 // across + 1)
        axes.xaxis.set_tick_params(labelbottom=bottom)
        name = labels[run] if len(runs) > 1 else ""
        if fork is None:
            axes.set_title(plain(shorten(name, 44 // across)))
            _axes.say(axes, "no such fork" if found[run] else "no fork was recorded", theme)
            continue
        own = [m for m in marks if m.run == run and m.site == fork.site.name]
        _title(axes, name, fork.site.name, own, across, theme)
        colours = _colours(roles if shared else {role(e) for e in fork.edges}, theme)
        panel(axes, fork, colours, theme)
        if k % across == 0:
            axes.set_ylabel(unit)
        if not shared:
            _legend(axes, colours, 60 // across, loc="upper left", bbox_to_anchor=(0, -0.12))
    if shared:
        columns = 3 if max(map(len, roles), default=0) < 36 else 2
        _legend(fig, _colours(roles, theme), 44, loc="outside lower left", ncols=columns)
    return fig


def _layout(
    found: Sequence[Sequence[Fork]], marked: set[str], telling: Telling
) -> tuple[list[tuple[int, Fork | None]], int]:
    """Panels as (run, fork or None), row by row, and the number of columns."""
    if len(found) == 1:
        chosen = choose(found[0], marked, PANELS, telling)
        return [(0, f) for f in chosen], min(3 if len(chosen) == 3 else 2, len(chosen))
    # A row is one fork, so that like is compared with like: what most runs have goes first.
    by_name = [{f.site.name: f for f in own} for own in found]
    known: dict[str, Fork] = {}
    for own in found:
        for f in own:
            known[f.site.name] = max(f, known.get(f.site.name, f), key=telling)

    def common(f: Fork) -> float:
        return 1e6 * sum(f.site.name in own for own in by_name) + telling(f)

    rows = max(1, PANELS // len(found)) if len(found) <= 3 else 1
    names = [f.site.name for f in choose(list(known.values()), marked, rows, common)]
    across = len(found) if len(found) <= 3 else 4 if len(found) > 4 else 2
    return [(i, own.get(name)) for name in names for i, own in enumerate(by_name)], across


def _colours(roles: set[str], theme: Theme) -> dict[str, str]:
    """By name, so that figures of the same forks agree."""
    named = sorted(roles - {OTHERS}, key=_natural)
    colours = {name: theme.cycle[i % len(theme.cycle)] for i, name in enumerate(named)}
    return colours | ({OTHERS: theme.muted} if OTHERS in roles else {})


def _title(axes: Axes, run: str, site: str, own: Sequence[Mark], across: int, theme: Theme) -> None:
    parts = [" ".join(dict.fromkeys(m.label for m in own[:3]))]
    parts += [f"{shorten(run, 44 // across)}:"] if run else []
    parts.append(shorten(site, (44 if run else 56) // across))
    colour = theme.severity[_axes.worst(own)] if own else theme.ink
    axes.set_title(plain("  ".join(p for p in parts if p)), color=colour)


def _legend(where: Axes | Figure, colours: dict[str, str], width: int, **more: Any) -> None:
    handles = [Patch(color=c) for c in colours.values()]
    where.legend(handles, [plain(t) for t in shorten_all(colours, width)], **more)


def _natural(edge: str) -> list[tuple[int, str]]:
    """Sort key under which layer 2 comes before layer 10."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", edge)]
