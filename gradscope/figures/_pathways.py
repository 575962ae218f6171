"""How the gradient divides at forks: the share of each pathway over training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradscope.figures._bands import bands
from gradscope.figures._figure import Mark, figure
from gradscope.figures._forks import OTHERS, Fork, draw_forks, forks, role
from gradscope.figures._style import Theme
from gradscope.run import Run

EDGES = 6
"""Edges told apart at one fork; the weakest beyond are added up."""


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
        "A column a run (a panel a run where there are more than three), a row a fork: a tensor "
        "with several consumers, through each of which a part of its gradient comes back. The "
        "bands are the parts' shares of the total (the projection of each part on the sum), and "
        "add up to 1 at every step; a band below 0 is a path that works against the others. A "
        "path whose band is thin teaches the layers before the fork next to nothing. A star "
        "stands for the number of the layer. Shown are the forks with findings, then those that "
        "most runs have."
    ),
    requires=(("fork", "projection"),),
    absent="no tensor with several consumers was recorded",
    shows=(("fork", "*"),),
)
def pathways(runs: Sequence[Run], marks: Sequence[Mark], theme: Theme) -> Figure:
    found = [[folded(f) for f in forks(r, "projection")] for r in runs]
    fig = draw_forks(runs, found, marks, inequality, _panel, "share of gradient", theme)
    low, high = fig.axes[0].dataLim.intervaly
    fig.axes[0].set_ylim(max(min(0.0, low), -3) - 0.02, min(max(1.0, high), 4) + 0.02)
    return fig


def inequality(fork: Fork) -> float:
    """Mean over steps of the largest share minus the smallest."""
    finite = fork.values[np.isfinite(fork.values).all(axis=1)]
    return float(np.ptp(finite, axis=1).mean()) if len(finite) else 0.0


def folded(fork: Fork) -> Fork:
    """The weakest of many edges added up."""
    if len(fork.edges) <= EDGES:
        return fork
    weight = np.nan_to_num(np.abs(fork.values)).mean(axis=0)
    kept = sorted(np.argsort(-weight, kind="stable")[: EDGES - 1])
    rest = np.setdiff1d(np.arange(len(fork.edges)), kept)
    values = np.column_stack([fork.values[:, kept], fork.values[:, rest].sum(axis=1)])
    return replace(fork, edges=[*(fork.edges[i] for i in kept), OTHERS], values=values)


def _panel(axes: Axes, fork: Fork, colours: dict[str, str], theme: Theme) -> None:
    bands(axes, fork.steps, fork.values, [colours[role(e)] for e in fork.edges], theme)
