"""What the optimizer made of the gradient: relative change of every parameter by step."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from gradscope.figures._figure import Mark, figure
from gradscope.figures._heat_map import heat_map
from gradscope.figures._style import Theme
from gradscope.run import Run


@figure(
    title="How much each parameter moves per step",
    caption=(
        "Each row is one parameter, in forward order from top to bottom; colour is the length of "
        "one optimizer step relative to the parameter itself, on a logarithmic scale. Values "
        "about 10⁻³ are usual; 10⁻⁵ is a parameter that hardly learns, 10⁻¹ one that is rewritten "
        "rather than trained. Adaptive optimizers can hide a small gradient here: compare with "
        "the figure before. The ratio is measured at some of the recorded steps, and shown until "
        "the next measurement."
    ),
    requires=(("parameter", "update_ratio"),),
    absent="no update of a parameter was measured (give attach() the optimizer)",
    shows=(("parameter", "update_ratio"), ("parameter", "weight_norm")),
)
def update_map(runs: Sequence[Run], marks: Sequence[Mark], theme: Theme) -> Figure:
    unit = "‖Δw‖ / ‖w‖ of one step"
    return heat_map(
        runs,
        "parameter",
        {"update_ratio": ""},
        unit,
        marks,
        theme,
        hold=True,
        empty="not measured",
        infinite="from 0: all weights were 0",
    )
