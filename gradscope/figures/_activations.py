"""Which activations are flat, and whose units never speak, over training."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from gradscope.figures._figure import Mark, figure
from gradscope.figures._heat_map import heat_map
from gradscope.figures._style import Theme
from gradscope.run import Run

PANELS = {"dead_fraction": "dead units", "saturated_fraction": "saturated elements"}


@figure(
    title="Activations: dead units and saturated elements",
    caption=(
        "Each row is one activation function, in forward order from top to bottom; colour is a "
        "share between 0 and 1. Left: units (channels, or the last dimension) that were flat for "
        "every sample of the last 8 measurements; no gradient gets through them. Right: elements "
        "at which the slope is below 2 % of its largest. For a ReLU, a half of these is usual, "
        "and only dead units are a loss; for a tanh or a sigmoid, nearly all of them flat means "
        "that hardly any gradient passes. Activations are measured in turns, and shown until the "
        "next measurement."
    ),
    caption_several=(
        "A row of panels for each run; each line in them is one activation function, in forward "
        "order from top to bottom, and colour is a share between 0 and 1. Left: units that were "
        "flat for every sample of the last 8 measurements; no gradient gets through them. Right: "
        "elements at which the slope is below 2 % of its largest. For a ReLU, a half of these is "
        "usual, and only dead units are a loss; for a tanh or a sigmoid, nearly all of them flat "
        "means that hardly any gradient passes."
    ),
    requires=tuple(("activation", metric) for metric in PANELS),
    absent="no activation function with a flat side was seen",
    shows=(("activation", "*"),),
)
def activations(runs: Sequence[Run], marks: Sequence[Mark], theme: Theme) -> Figure:
    return heat_map(
        runs,
        "activation",
        PANELS,
        "share",
        marks,
        theme,
        hold=True,
        empty="not measured",
        fractions=True,
    )
