"""How much gradient an activation function lets through: its slope, unit by unit.

Index legend: R measured rows (samples and positions), C units (channels of a convolution,
else the last dimension). An element is *saturated* where |f'(x)| is below 2 % of the
function's largest slope; a unit is, where all of its elements are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

FLAT = 0.02  # of the largest slope: |tanh| > 0.99, a sigmoid beyond ±5.3


class Slope(NamedTuple):
    """How to know an activation's slope from what its autograd node saved.

    Attributes:
        saved: "result" or "self", the output or the input.
        of: (saved tensor, node) → slope relative to the function's largest one, or what is
            large where the slope is.
        flat: an element is saturated where that is at most this.
    """

    saved: str
    of: Callable[[Tensor, object], Tensor]
    flat: float = FLAT


def _gelu(x: Tensor, node: object) -> Tensor:
    """Φ(x) + x φ(x), at most 1.129; the tanh approximation differs by less than 0.001."""
    cdf = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return (cdf + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)).abs_() / 1.129


def _silu(x: Tensor, node: object) -> Tensor:
    """σ(x)(1 + x(1 − σ(x))), at most 1.0998."""
    gate = torch.sigmoid(x)
    return (gate * (1 + x * (1 - gate))).abs_() / 1.0998


def _within(x: Tensor, node: object) -> Tensor:
    """Distance to the nearer of the two bounds, from inside."""
    low, high = node._saved_min_val, node._saved_max_val  # type: ignore[attr-defined]
    return torch.minimum(x - low, high - x)


SLOPES: dict[str, Slope] = {
    "ReluBackward0": Slope("result", lambda y, _: y, 0.0),
    "ThresholdBackward0": Slope(
        "self",
        lambda x, node: x - node._saved_threshold,  # type: ignore[attr-defined]
        0.0,
    ),
    "HardtanhBackward0": Slope("self", _within, 0.0),
    "GeluBackward0": Slope("self", _gelu),
    "SiluBackward0": Slope("self", _silu),
    "EluBackward0": Slope("self", lambda x, _: torch.exp(x.clamp(max=0))),
    "TanhBackward0": Slope("result", lambda y, _: 1 - y * y),
    "SigmoidBackward0": Slope("result", lambda y, _: 4 * y * (1 - y)),
}


class Openness(NamedTuple):
    """How much of an activation lets gradient through.

    Attributes:
        saturated: (), share of the elements.
        open_units: bool (C,), units with an element that is not saturated.
        lost: (), whether an element is NaN: a run that has diverged is another matter.
    """

    saturated: Tensor
    open_units: Tensor
    lost: Tensor


def openness(rows: Tensor, slope: Slope, node: object) -> Openness:
    """Measure an activation. rows: (R, C), what its node saved."""
    wide = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    value = slope.of(wide, node)
    peak = value.amax(0)  # many times cheaper than reducing booleans
    # A relu's own result is 0 where it is flat: counted at half the cost.
    opened = torch.count_nonzero(value) if value is wide else (value > slope.flat).sum()
    return Openness(1 - opened.double() / value.numel(), peak > slope.flat, peak.isnan().any())
