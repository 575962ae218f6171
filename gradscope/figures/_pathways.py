"""How the gradient divides at forks: the share of each pathway over training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from gradscope.figures import _axes, _sites
from gradscope.figures._figure import Mark, about, figure
from gradscope.figures._grid import grid
from gradscope.figures._style import WIDTH, Theme
from gradscope.figures._text import plain, shorten, shorten_all
from gradscope.run import Run, Site

PANELS = 6
"""Forks shown at most, over all runs where there are up to six of these."""
EDGES = 6
"""Edges told apart at one fork; the weakest beyond are added up."""


@dataclass(frozen=True)
class Fork:
    """The shares of a fork's edges. S steps, E edges.

    Attributes:
        site: the tensor that is used several times.
        steps: int64 (S,).
        edges: names of its E consumers.
        shares: float64 (S, E), ⟨g_e, g⟩ / ‖g‖²; a row sums to 1; NaN where not recorded.
    """

    site: Site
    steps: np.ndarray
    edges: list[str]
    shares: np.ndarray

    @property
    def inequality(self) -> float:
        """Mean over steps of the largest share minus the smallest."""
        finite = self.shares[np.isfinite(self.shares).all(axis=1)]
        return float(np.ptp(finite, axis=1).mean()) if len(finite) else 0.0


@figure(
    title="Which path the gradient takes",
    caption=(
        "Each panel is a fork: a tensor with several consumers, through each of which a part of "
        "its gradient comes back. The bands are the parts' shares of the total (the projection "
        "of each part on the sum), and add up to 1 at every step; a band below 0 is a path that "
        "works against the others. A path whose band is thin teaches the layers before the fork "
        "next to nothing, whatever it computes in the forward pass. A star stands for the number "
        "of the layer. Shown are the forks with findings, then the first and the last layer's "
        "of each kind, the most unequal kinds first."
    ),
    caption_several=(
        "Each panel is a fork of one run: a tensor with several consumers, through each of which "
        "a part of its gradient comes back. The bands are the parts' shares of the total (the "
        "projection of each part on the sum), and add up to 1 at every step; a band below 0 is a "
        "path that works against the others. A path whose band is thin teaches the layers before "
        "the fork next to nothing. A star stands for the number of the layer. Shown for each run "
        "are the forks with findings, then the first and the last layer's of each kind, the most "
        "unequal kinds first."
    ),
    requires=(("fork", "projection"),),
    absent="no tensor with several consumers was recorded",
    shows=(("fork", "*"),),
)
def pathways(runs: Sequence[Run], marks: Sequence[Mark], theme: Theme) -> Figure:
    found = [forks(r) for r in runs]
    marks = about(marks, "fork")
    cells, across = _layout(found, marks)
    down = -(-len(cells) // across)
    roles = list(dict.fromkeys(role(e) for cell in cells for e in cell.edges))
    shared = len(roles) <= len(theme.cycle)
    fig = Figure(figsize=(WIDTH, (2.0 if shared else 2.7) * down + 0.9), layout="constrained")
    panels = fig.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    extremes = [(0.0, 1.0)]
    steps = _axes.recorded_steps(runs)
    for k, axes in enumerate(panels.flat):
        bottom = k + across >= len(cells)
        if k >= len(cells):
            axes.set_axis_off()
            continue
        run, fork, edges = cells[k]
        _title(axes, runs, run, fork, across, marks, theme)
        _axes.step_axis(axes, steps, label=bottom, ticks=8 // across + 1)
        axes.xaxis.set_tick_params(labelbottom=bottom)
        if fork is None:
            _axes.say(axes, "no fork was recorded", theme)
            continue
        names = roles if shared else [role(e) for e in edges]
        colours = dict(zip(names, theme.cycle, strict=False))
        extremes.append(_panel(axes, fork, colours, theme))
        if k % across == 0:
            axes.set_ylabel("share of gradient")
        if not shared:
            _legend(axes, colours, 60 // across, loc="upper left", bbox_to_anchor=(0, -0.12))
    panels[0, 0].set_ylim(min(e[0] for e in extremes) - 0.02, max(e[1] for e in extremes) + 0.02)
    if shared:
        colours = dict(zip(roles, theme.cycle, strict=False))
        columns = 3 if max(map(len, roles)) < 36 else 2
        _legend(fig, colours, 44, loc="outside lower left", ncols=columns)
    return fig


class Cell(NamedTuple):
    """A panel: which run's fork it shows; None where the run has none."""

    run: int
    fork: Fork | None
    edges: list[str]


def _layout(found: Sequence[Sequence[Fork]], marks: Sequence[Mark]) -> tuple[list[Cell], int]:
    """Panels and their number of columns: a column a run for up to three runs."""
    count = max(1, PANELS // len(found))
    chosen = [choose(f, {m.site for m in marks if m.run == i}, count) for i, f in enumerate(found)]

    def cell(i: int, k: int) -> Cell:
        fork = chosen[i][k] if k < len(chosen[i]) else None
        return Cell(i, fork, fork.edges if fork else [])

    if len(found) == 1:
        across = min(3 if len(chosen[0]) == 3 else 2, len(chosen[0]))
        return [cell(0, k) for k in range(len(chosen[0]))], across
    rows = max(map(len, chosen)) if len(found) <= 3 else 1
    across = len(found) if len(found) <= 3 else 4 if len(found) > 4 else 2
    return [cell(i, k) for k in range(rows) for i in range(len(found))], across


def forks(run: Run) -> list[Fork]:
    """All forks with at least two edges, in forward order."""
    shares = grid(run, "fork", "projection", edges=True)
    found = []
    for name in dict.fromkeys(shares.names):
        own = shares.of_site(name)
        rows = own.present.any(axis=1)
        if len(own.edges) >= 2:
            found.append(_folded(Fork(own.sites[0], own.steps[rows], own.edges, own.values[rows])))
    return found


def choose(found: Sequence[Fork], marked: set[str], count: int) -> list[Fork]:
    """The forks worth showing, in forward order.

    Those with findings, then the first of each role (`layers.*.norm1`), the last of each, and
    what lies between as far as there is room; roles with the most unequal shares before others.
    """
    roles: dict[str, list[Fork]] = {}
    for f in found:
        roles.setdefault(_sites.role(f.site.name), []).append(f)
    ranked = sorted(roles.values(), key=lambda same: -max(f.inequality for f in same))
    order = [f for f in found if f.site.name in marked]
    order += [same[0] for same in ranked] + [same[-1] for same in ranked]
    order += [f for same in ranked for f in same]
    kept = list({f.site.name: f for f in order}.values())[:count]
    return sorted(kept, key=lambda f: f.site.order)


def role(edge: str) -> str:
    """An edge's name with layer numbers left out, so that layers share their colours."""
    module, _, op = edge.rpartition(":")
    return f"{_sites.role(module)}:{op}" if module else edge


def _folded(fork: Fork) -> Fork:
    if len(fork.edges) <= EDGES:
        return fork
    weight = np.nan_to_num(np.abs(fork.shares)).mean(axis=0)
    kept = sorted(np.argsort(-weight, kind="stable")[: EDGES - 1])
    rest = np.setdiff1d(np.arange(len(fork.edges)), kept)
    shares = np.column_stack([fork.shares[:, kept], fork.shares[:, rest].sum(axis=1)])
    return Fork(fork.site, fork.steps, [*(fork.edges[i] for i in kept), "all other edges"], shares)


def _title(
    axes: Axes,
    runs: Sequence[Run],
    run: int,
    fork: Fork | None,
    across: int,
    marks: Sequence[Mark],
    theme: Theme,
) -> None:
    site = fork.site.name if fork else ""
    own = [m for m in marks if m.run == run and m.site == site and site]
    parts = [" ".join(dict.fromkeys(m.label for m in own[:3]))]
    if len(runs) > 1:
        parts.append(shorten(runs[run].name, 44 // across) + ":")
    parts.append(shorten(site, (56 if len(runs) == 1 else 44) // across))
    colour = theme.severity[_axes.worst(own)] if own else theme.ink
    axes.set_title(plain("  ".join(p for p in parts if p)), color=colour)


def _legend(where: Axes | Figure, colours: dict[str, str], width: int, **more: Any) -> None:
    handles = [Patch(color=c) for c in colours.values()]
    where.legend(handles, [plain(t) for t in shorten_all(colours, width)], **more)


def _panel(axes: Axes, fork: Fork, colours: dict[str, str], theme: Theme) -> tuple[float, float]:
    """Draw the bands; return the range they take, without single outliers."""
    steps, shares = fork.steps.astype(float), fork.shares
    if len(steps) == 1:
        steps, shares = np.array([steps[0] - 0.3, steps[0] + 0.3]), np.repeat(shares, 2, axis=0)
    finite = np.isfinite(shares).all(axis=1)
    up, down = np.zeros(len(steps)), np.zeros(len(steps))
    for j, edge in enumerate(fork.edges):
        share = np.where(finite, shares[:, j], 0.0)
        above, below = np.maximum(share, 0), np.minimum(share, 0)
        look = {"color": colours[role(edge)], "lw": 0, "alpha": 0.9, "where": finite}
        axes.fill_between(steps, up, up + above, **look)
        axes.fill_between(steps, down, down + below, **look)
        up, down = up + above, down + below
        axes.plot(steps, np.where(finite, up, np.nan), color=theme.paper, lw=0.7)
    for y in (0.0, 1.0):
        axes.axhline(y, color=theme.ink, lw=0.7, alpha=0.6)
    if not finite.any():
        return 0.0, 1.0
    return float(np.quantile(down[finite], 0.02)), float(np.quantile(up[finite], 0.98))
