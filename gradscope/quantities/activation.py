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

FLAT = 0.02  # of the largest slope: |tanh| > 0.99, a sigmoid beyond ±5.3, a relu that is off


class Slope(NamedTuple):
    """How to know an activation's slope from what its autograd node saved.

    Attributes:
        saved: "result" or "self", the output or the input.
        of: (saved tensor, node) → slope, relative to the function's largest one.
        off: whether its flat side is at 0: a unit that is always there is dead rather than
            saturated.
    """

    saved: str
    of: Callable[[Tensor, object], Tensor]
    off: bool


def _gelu(x: Tensor, node: object) -> Tensor:
    """Φ(x) + x φ(x), at most 1.129; the tanh approximation differs by less than 0.001."""
    cdf = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return (cdf + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)) / 1.129


def _silu(x: Tensor, node: object) -> Tensor:
    """σ(x)(1 + x(1 − σ(x))), at most 1.0998."""
    gate = torch.sigmoid(x)
    return gate * (1 + x * (1 - gate)) / 1.0998


def _within(x: Tensor, node: object) -> Tensor:
    low, high = node._saved_min_val, node._saved_max_val  # type: ignore[attr-defined]
    return (~((x <= low) | (x >= high))).to(x.dtype)


SLOPES: dict[str, Slope] = {
    "ReluBackward0": Slope("result", lambda y, _: (~(y <= 0)).to(y.dtype), True),
    "ThresholdBackward0": Slope(
        "self",
        lambda x, node: (~(x <= node._saved_threshold)).to(x.dtype),  # type: ignore[attr-defined]
        True,
    ),
    "GeluBackward0": Slope("self", _gelu, True),
    "SiluBackward0": Slope("self", _silu, True),
    "EluBackward0": Slope("self", lambda x, _: torch.exp(x.clamp(max=0)), False),
    "HardtanhBackward0": Slope("self", _within, False),
    "TanhBackward0": Slope("result", lambda y, _: 1 - y * y, False),
    "SigmoidBackward0": Slope("result", lambda y, _: 4 * y * (1 - y), False),
}


def flat_elements(rows: Tensor, slope: Slope, node: object) -> Tensor:
    """Which elements are saturated. rows: (R, C), what the node saved → bool (R, C).

    NaN is not: a run that has diverged is another matter.
    """
    wide = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    return slope.of(wide, node).abs() < FLAT
