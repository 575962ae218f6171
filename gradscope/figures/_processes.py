"""Processes of a parallel run side by side: each one's loss, and its gradient against the mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradscope.figures import _axes
from gradscope.figures._figure import Mark, figure
from gradscope.figures._grid import grid
from gradscope.figures._style import WIDTH, Theme
from gradscope.figures._text import distinct, plain, shorten
from gradscope.figures._training_curves import panels_of, series_of
from gradscope.run import Run

NAMED = 8
"""Processes up to which each has a colour and a name; beyond, lines are thin and alike."""


class Series(NamedTuple):
    """One process.

    Attributes:
        steps: int64 (S,); values: float64 (S,), NaN where it is not finite.
        lost: int64, steps at which it was NaN or infinite.
    """

    rank: int
    steps: np.ndarray
    values: np.ndarray
    lost: np.ndarray


@figure(
    title="Processes: loss and gradient of each",
    caption=(
        "One line for each process (rank) of a parallel run. Left: the loss that each logged. "
        "Right: the gradient of its own loss relative to the mean over the processes, as the "
        "median over all module outputs; 1 is as much as the others, and the scale is "
        "logarithmic. A cross at the upper edge is a step at which a value was NaN or infinite; a "
        "line that ends early is a process that fell silent."
    ),
    caption_several=(
        "A row for each run of several processes, a line for each process (rank). Left: the loss "
        "that each logged. Right: the gradient of its own loss relative to the mean over the "
        "processes, as the median over all module outputs; 1 is as much as the others, and the "
        "scale is logarithmic. A cross at the upper edge is a step at which a value was NaN or "
        "infinite; a line that ends early is a process that fell silent."
    ),
    requires=(("module", "grad_norm"), ("scalar", "value")),
    absent="the run has one process",
    shows=(("scalar", "*"),),
    parallel=True,
)
def processes(runs: Sequence[Run], marks: Sequence[Mark], theme: Theme) -> Figure:
    count = len(runs)
    fig = Figure(figsize=(WIDTH, 2.4 * count + 0.6), layout="constrained")
    panels = fig.subplots(count, 2, squeeze=False, sharex=True)
    steps = _axes.recorded_steps(runs)
    labels = distinct([r.name for r in runs])
    most = max((len(r.ranks) for r in runs), default=0)
    for i, (run, (left, right)) in enumerate(zip(runs, panels, strict=True)):
        bottom = i == count - 1
        whose = "" if count == 1 else f"{shorten(labels[i], 24)}: "
        name, logged = losses(run)
        _panel(left, logged, theme, "no loss was logged", steps)
        _panel(right, gradients(run), theme, "the run has one process", steps, log=True)
        left.set_title(plain(f"{whose}{shorten(name, 30) or 'loss'}"))
        right.set_title(plain(f"{whose}gradient / mean of the processes"))
        left.set_ylabel("as logged")
        right.set_ylabel("ratio")
        for axes in (left, right):
            _axes.step_axis(axes, steps, label=bottom, ticks=6)
    if most <= NAMED:
        ranks = sorted({rank for run in runs for rank in run.ranks})
        lines = [Line2D([], [], color=_colour(rank, theme), lw=2.5) for rank in ranks]
        texts = [f"rank {rank}" for rank in ranks]
        fig.legend(lines, texts, loc="outside lower left", ncols=min(8, len(ranks)))
    return fig


def losses(run: Run) -> tuple[str, list[Series]]:
    """Name of the loss, and each process's."""
    scalars = {c.site for c in run.columns if c.kind == "scalar"}
    first = panels_of(scalars)[:1]
    names = sorted(
        s for s in scalars if first and series_of(s).panel == first[0] and not series_of(s).held_out
    )
    if not names or "loss" not in names[0]:
        return "", []
    found = []
    for rank in run.ranks:
        logged = grid(run.of_rank(rank), "scalar", "value")
        if names[0] in logged.names:
            found.append(_series(rank, *logged.column(logged.names.index(names[0]))))
    return names[0], found


def gradients(run: Run) -> list[Series]:
    """Of each process: median over the modules of its gradient over that of all processes."""
    if len(run.ranks) < 2:
        return []
    own = {rank: grid(run.of_rank(rank), "module", "grad_norm") for rank in run.ranks}
    steps = np.unique(np.concatenate([g.steps for g in own.values()]))
    names = list(dict.fromkeys(n for g in own.values() for n in g.names))
    values = np.full((len(own), len(steps), len(names)), np.nan)
    for k, g in enumerate(own.values()):
        if len(g):
            rows = np.searchsorted(steps, g.steps)
            columns = np.array([names.index(n) for n in g.names])
            values[k][np.ix_(rows, columns)] = g.values
    finite = np.where(np.isfinite(values), values, np.nan)
    found = []
    for k, (rank, g) in enumerate(own.items()):
        told = np.isin(steps, g.steps[g.present.any(axis=1)])
        ratio = np.array([_ratio(finite[k, s], finite[:, s]) for s in range(len(steps))])
        bad = np.isin(steps, g.steps[g.nonfinite.any(axis=1)])
        ratio[bad] = np.nan
        series = _series(rank, steps[told], ratio[told])
        found.append(series._replace(lost=steps[bad]))
    return found


def _ratio(own: np.ndarray, everyone: np.ndarray) -> float:
    """Median over modules (M,) of own / mean of everyone (ranks, M); NaN where nothing is."""
    known = np.isfinite(own)
    if not known.any():
        return float("nan")
    total = np.nansum(everyone[:, known], axis=0)
    mean = total / np.isfinite(everyone[:, known]).sum(axis=0)
    some = mean > 0
    return float(np.median(own[known][some] / mean[some])) if some.any() else float("nan")


def _series(rank: int, steps: np.ndarray, values: np.ndarray) -> Series:
    finite = np.isfinite(values)
    return Series(rank, steps, np.where(finite, values, np.nan), steps[~finite])


def _colour(rank: int, theme: Theme) -> str:
    return theme.cycle[rank % len(theme.cycle)]


def _panel(
    axes: Axes,
    series: Sequence[Series],
    theme: Theme,
    nothing: str,
    steps: np.ndarray,
    log: bool = False,
) -> None:
    if not any(len(s.steps) for s in series):
        _axes.say(axes, nothing, theme)
        return
    few = len(steps) <= 3
    thin = len(series) > NAMED
    for s in series:
        colour = theme.muted if thin else _colour(s.rank, theme)
        axes.plot(
            s.steps,
            s.values,
            color=colour,
            lw=0.7 if thin else 1.4,
            marker="o" if few else "",
            ms=4,
        )
        if len(s.lost):
            at_top = axes.get_xaxis_transform()
            y = np.full(len(s.lost), 0.97)
            axes.plot(s.lost, y, "x", color=colour, ms=4, transform=at_top)
    values = np.concatenate([s.values[np.isfinite(s.values)] for s in series])
    if not len(values):
        return
    if log:
        low, high = _axes.log_limits([values])
        _axes.log_axis(axes, "y", (min(low, 0.5), max(high, 2.0)), ticks=5)
        axes.axhline(1.0, color=theme.ink, lw=0.7, alpha=0.6)
    else:
        _axes.plain_ticks(axes)
