"""Gradient against depth at several steps: the profile from the loss back to the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradscope.figures import _axes
from gradscope.figures._figure import Mark, about, figure
from gradscope.figures._grid import Grid, grid
from gradscope.figures._sites import common_ladders, ladder, rows_of
from gradscope.figures._style import WIDTH, Theme
from gradscope.figures._text import distinct, number, plain, pretty, shorten
from gradscope.run import Run


class Ends(NamedTuple):
    """The two ends of a run's depth profile, by the end of training.

    Attributes:
        first_site, last_site: nearest the input, nearest the loss.
        first, last: RMS gradient there, median over the last tenth of the recorded steps.
    """

    first_site: str
    last_site: str
    first: float
    last: float

    @property
    def ratio(self) -> float:
        """How much of the gradient at the last site arrives at the first."""
        return self.first / self.last if self.last > 0 else float("nan")


def depth_ends(runs: Sequence[Run], marks: Sequence[Mark] = ()) -> list[Ends | None]:
    """First and last site of each run's depth profile; None where there is no such profile.

    Args:
        marks: those that the figure is drawn with; they decide which sites the profile joins.
    """
    grids = [grid(r, "module", "grad_rms") for r in runs]
    found: list[Ends | None] = []
    ladders = common_ladders([g.sites for g in grids], about(marks, "module"))
    for g, rungs in zip(grids, ladders, strict=True):
        if len(rungs) < 2:
            found.append(None)
            continue
        late = g.values[-max(1, len(g.steps) // 10) :, [rungs[0], rungs[-1]]]
        first, last = (float(v) for v in np.median(late, axis=0))
        found.append(Ends(g.names[rungs[0]], g.names[rungs[-1]], first, last))
    return found


@figure(
    title="Gradient against depth",
    caption=(
        "The same gradients as a profile: modules from top (input) to bottom (output) in forward "
        "order, the root mean square of their gradient to the right, one line for each of five "
        "recorded steps. Read it from the bottom up, as the gradient flows: a line that runs to "
        "the left loses a constant factor per layer, a vertical one keeps its gradient. A line "
        "joins one kind of module in layer after layer (that of the finding, where there is "
        "one), and every other module is a dot, at the last step. The legend gives the "
        "ratio of the topmost to the bottommost point of each line."
    ),
    caption_several=(
        "The gradient's profile at the first, the middle and the last recorded step, one colour "
        "a run: modules from top (input) to bottom (output) in forward order, the root mean "
        "square of their gradient to the right. Read it from the bottom up, as the gradient "
        "flows: a line that runs to the left loses a constant factor per layer, a vertical one "
        "keeps its gradient. A line joins one kind of module in layer after layer (that of the "
        "finding, where there is one). The legend gives the ratio of the topmost to the "
        "bottommost point at the last step."
    ),
    requires=(("module", "grad_norm"),),
    absent="no gradient of a module's output was recorded",
    shows=(("module", "grad_rms"),),
)
def gradient_depth(runs: Sequence[Run], marks: Sequence[Mark], theme: Theme) -> Figure:
    grids = [grid(r, "module", "grad_rms") for r in runs]
    marks = about(marks, "module")
    if len(runs) == 1:
        return _one(grids[0], marks, theme)
    return _several(runs, grids, marks, theme)


def _one(g: Grid, marks: Sequence[Mark], theme: Theme) -> Figure:
    height = _axes.height_of_rows(len(g.sites))
    fig = Figure(figsize=(WIDTH, height + 0.8), layout="constrained")
    axes = fig.subplots()
    chosen = moments(g, 5)
    # The lightest third of the ramp would vanish on white paper, the darkest on black.
    span = np.linspace(*((0.0, 0.8) if theme.name == "light" else (0.35, 1.0)), len(chosen))
    joined = ladder(g.sites, marks)
    rows = list(range(len(g.sites)))
    handles = []
    for at, shade in zip(chosen, span, strict=True):
        colour = mpl.colormaps[theme.ramp](shade)
        ratio = _profile(axes, g.positive[at], rows, joined, colour, dots=at == chosen[-1])
        label = f"step {number(int(g.steps[at]))}"
        label += "   no finite gradient" if ratio is None else f"   {_ratio(ratio)}"
        handles.append(Line2D([], [], color=colour, lw=2.5, label=label))
    limits = [g.positive[chosen]]
    for value, label in thresholds(g, marks, chosen[-1]):
        axes.axvline(value, color=theme.muted, lw=1, ls=":", zorder=1)
        handles.append(Line2D([], [], color=theme.muted, lw=1, ls=":", label=label))
        limits.append(np.array([value]))
    _limits(axes, limits)
    _axes.label_rows(axes, g.sites, height, theme, marks=marks)
    axes.set_ylim(len(g.sites) - 0.5, -0.5)
    axes.set_xlabel("RMS gradient (loss per unit of output)")
    fig.legend(handles=handles, loc="outside lower left", ncols=3)
    return fig


def _several(
    runs: Sequence[Run], grids: Sequence[Grid], marks: Sequence[Mark], theme: Theme
) -> Figure:
    rows = rows_of(grids)
    joined = common_ladders([g.sites for g in grids], marks)
    height = _axes.height_of_rows(len(rows.sites[0])) if rows.common else 4.0
    fig = Figure(figsize=(WIDTH, height + 1.0), layout="constrained")
    panels = fig.subplots(1, 3, sharey=True)
    ratios: list[float | None] = [None] * len(runs)
    for panel, (axes, when) in enumerate(zip(panels, ("first", "middle", "last"), strict=True)):
        shown = []
        for i, g in enumerate(grids):
            if not len(g):
                continue
            at = moments(g, 3)[panel if len(g.steps) > 2 else (0, 0, -1)[panel]]
            y = rows.at[i] if rows.common else list(np.linspace(0, 1, len(g.sites)))
            colour = theme.cycle[i % len(theme.cycle)]
            line = g.positive[at]
            ratios[i] = _profile(axes, line, y, joined[i], colour, dots=len(runs) <= 3)
            shown.append(int(g.steps[at]))
        steps = " / ".join(number(s) for s in dict.fromkeys(shown))
        axes.set_title(f"{when} (step {steps})" if len(steps) < 24 else when)
        _limits(axes, [g.positive[moments(g, 3)] for g in grids if len(g)], ticks=4)
        axes.set_xlabel("RMS gradient")
    if rows.common:
        _axes.label_rows(panels[0], rows.sites[0], height, theme, marks=marks)
        panels[0].set_ylim(len(rows.sites[0]) - 0.5, -0.5)
    else:
        panels[0].set_yticks([0, 0.5, 1], ["input", "half-way", "output"])
        panels[0].set_ylim(1.03, -0.03)
        panels[0].set_ylabel("place in the forward pass")
    _legend(fig, runs, ratios, theme)
    return fig


def thresholds(g: Grid, marks: Sequence[Mark], at: int) -> list[tuple[float, str]]:
    """Values and labels of the findings' thresholds, at one row of the grid."""
    where = {name: j for j, name in enumerate(g.names)}
    found = {}
    for m in marks:
        if m.metric == "grad_rms" and m.relative_to in where:
            for label, factor in m.thresholds.items():
                value = factor * g.positive[at, where[m.relative_to]]
                if np.isfinite(value):
                    found[float(value)] = f"{m.label}: {pretty(label)}"
    return sorted(found.items())


def moments(g: Grid, count: int) -> list[int]:
    """Rows of the grid at the first step, the last, and evenly between; no row twice."""
    return sorted({round(x) for x in np.linspace(0, len(g.steps) - 1, count)})


def _profile(
    axes: Axes,
    values: np.ndarray,
    rows: Sequence[float],
    joined: Sequence[int],
    colour: object,
    dots: bool,
) -> float | None:
    """Draw one line; return the ratio of its first to its last point."""
    places = np.asarray(rows, dtype=float)
    if dots and len(joined) < len(values):
        rest = np.setdiff1d(np.arange(len(values)), joined)
        axes.plot(values[rest], places[rest], "o", color=colour, ms=4, alpha=0.5, mew=0)
    seen = [j for j in joined if np.isfinite(values[j])]
    axes.plot(values[seen], places[seen], color=colour, marker="o", ms=3.5 if len(seen) < 60 else 0)
    return float(values[seen[0]] / values[seen[-1]]) if len(seen) >= 2 else None


def _ratio(value: float) -> str:
    return f"first / last = {number(value, 2)}"


def _limits(axes: Axes, values: Sequence[np.ndarray], ticks: int = 7) -> None:
    _axes.log_axis(axes, "x", _axes.log_limits(values), ticks)


def _legend(fig: Figure, runs: Sequence[Run], ratios: Sequence[float | None], theme: Theme) -> None:
    handles, labels = [], []
    names = distinct([r.name for r in runs])
    for i, (name, ratio) in enumerate(zip(names, ratios, strict=True)):
        handles.append(Line2D([], [], color=theme.cycle[i % len(theme.cycle)], lw=3))
        text = shorten(name, 28)
        labels.append(plain(text if ratio is None else f"{text}   {_ratio(ratio)}"))
    fig.legend(handles, labels, loc="outside lower left", ncols=min(3, len(runs)))
