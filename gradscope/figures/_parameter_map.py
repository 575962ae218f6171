"""Gradient of every parameter by step, as a heat map."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from gradscope.figures._figure import Mark, figure
from gradscope.figures._heat_map import heat_map
from gradscope.figures._style import Theme
from gradscope.run import Run


@figure(
    title="Gradient of every parameter, over training",
    caption=(
        "Each row is one parameter, in forward order from top to bottom; colour is the root mean "
        "square of the gradient that the optimizer was about to use, after accumulation, "
        "unscaling and clipping, on a logarithmic scale. A grey row never had any gradient: the "
        "parameter took no part in the loss."
    ),
    requires=(("parameter", "grad_norm"),),
    absent="no gradient of a parameter was recorded",
    shows=(("parameter", "grad_norm"), ("parameter", "grad_rms"), ("parameter", "*")),
)
def parameter_map(runs: Sequence[Run], marks: Sequence[Mark], theme: Theme) -> Figure:
    unit = "RMS gradient\n(loss per unit of weight)"
    return heat_map(runs, "parameter", {"grad_rms": ""}, unit, marks, theme, empty="no gradient")
