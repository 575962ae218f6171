"""Gradient of every module's output by step, as a heat map."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from gradscope.figures._figure import Mark, figure
from gradscope.figures._heat_map import heat_map
from gradscope.figures._style import Theme
from gradscope.run import Run


@figure(
    title="Gradient at every site, over training",
    caption=(
        "Each row is the output of one module, in forward order: the input is at the top, the "
        "loss below the last row, so the gradient travels upwards. Colour is the root mean "
        "square of the loss's gradient with respect to that output, on a logarithmic scale. "
        "Rows that grow dark towards the top are a vanishing gradient, rows that light up are "
        "an exploding one, a colour that changes from left to right is a change during "
        "training. Row labels are thinned where there are many; coloured labels carry findings."
    ),
    caption_several=(
        "One panel a run, with the same rows and the same colour scale. Each row is the output "
        "of one module, in forward order: the input is at the top, the loss below the last row, "
        "so the gradient travels upwards. Colour is the root mean square of the loss's gradient "
        "with respect to that output. Compare the upper rows: where one run is dark and another "
        "bright, the second feeds its early layers and the first does not."
    ),
    requires=(("module", "grad_norm"),),
    absent="no gradient of a module's output was recorded",
    shows=(("module", "*"),),
)
def gradient_map(runs: Sequence[Run], marks: Sequence[Mark], theme: Theme) -> Figure:
    unit = "RMS gradient\n(loss per unit of output)"
    return heat_map(runs, "module", {"grad_rms": ""}, unit, marks, theme)
