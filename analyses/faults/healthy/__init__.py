"""Runs in which nothing is wrong, by theme."""

from typing import Any

from analyses.faults.case import Case
from analyses.faults.healthy import (
    attention,
    huggingface,
    losses,
    optimizers,
    parts,
    precision,
    recurrent,
    schedules,
    vision,
)

THEMES = [
    attention.RUNS,
    vision.RUNS,
    recurrent.RUNS,
    optimizers.RUNS,
    schedules.RUNS,
    parts.RUNS,
    precision.RUNS,
    losses.RUNS,
    huggingface.RUNS,
]


def cases(twins: dict[Any, str]) -> list[Case]:
    """Healthy cases that aren't in `twins` (see `Healthy.cases`)."""
    return [case for theme in THEMES for case in theme.cases(twins, ("tune",))]
