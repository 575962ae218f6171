"""The faults, a file each."""

from typing import Any

from analyses.faults.case import Case
from analyses.faults.causes import (
    bottleneck,
    cancelling,
    dead_units,
    detached,
    exploding,
    flat,
    missing,
    no_update,
    non_finite,
    saturated,
    softmaxes,
    starved,
    too_large,
    underflow,
    unscaled,
    unused,
    vanishing,
)

FAULTS = [
    vanishing.FAULT,
    exploding.FAULT,
    non_finite.FAULT,
    dead_units.FAULT,
    saturated.FAULT,
    softmaxes.PEAKED,
    softmaxes.DIFFUSE,
    starved.FAULT,
    cancelling.FAULT,
    bottleneck.FAULT,
    detached.FAULT,
    unused.FAULT,
    missing.FAULT,
    no_update.FAULT,
    flat.FAULT,
    too_large.FAULT,
    underflow.FAULT,
    unscaled.FAULT,
]


def cases(twins: dict[Any, str]) -> list[Case]:
    """Faulty cases and their twins; `twins` is filled with those (see `Fault.cases`)."""
    return [case for fault in FAULTS for case in fault.cases(twins, ("tune",))]
