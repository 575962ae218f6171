"""Sizes of the parts of a gradient by softmaxes crossed, without keeping the parts.

What is recorded over a training run are sizes. One part of every target is in memory at a
time, beside the whole gradient and the running sum of the parts: three gradients of the
model, whatever the number of orders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.paths.backward import Backward, Node
from gradscope.paths.check import check_sum
from gradscope.paths.crossings import Crossing, crossings
from gradscope.quantities.inner import inner
from gradscope.quantities.norm import norm


@dataclass(frozen=True)
class GradedSizes:
    """‖G_k‖ and ⟨G_k, g⟩/‖g‖² of each target. Index legend: T targets, K + 1 orders.

    Attributes:
        norms: (T, K+1).
        projections: (T, K+1), each row sums to 1; NaN for a zero gradient.
        mean: (T,) mean number of crossings Σ_k k ⟨G_k, g⟩/‖g‖², exact whatever the depth.
        open_ended: the last entry holds all paths that crossed K softmaxes or more.
        residual: how far the sum of the parts is from the ordinary gradient, relative; the
            largest over the targets.
    """

    norms: list[list[float]]
    projections: list[list[float]]
    mean: list[float]
    open_ended: bool
    residual: float


def graded_sizes(
    loss: Tensor,
    targets: Sequence[Tensor],
    softmaxes: Sequence[Crossing | Node],
    max_order: int = 8,
) -> GradedSizes:
    """As `graded_gradients`, for the sizes alone.

    Raises:
        PathwayError: as `graded_gradients`.
    """
    backward = Backward(loss, targets)
    cross = crossings(softmaxes)
    # As accurate as the parts: PyTorch's kernels are noise where softmaxes are peaked.
    whole, _ = backward.run(backward.start)
    size = [_norm(g) for g in whole]
    sums: list[Tensor | None] = [None] * len(targets)
    largest = [0.0] * len(targets)
    norms: list[list[float]] = [[] for _ in targets]
    projections: list[list[float]] = [[] for _ in targets]
    arriving = backward.start
    for order in range(max_order + 1):
        parts, arriving = backward.run(arriving, cross, go_on=order == max_order)
        for i, part in enumerate(parts):
            length = _norm(part)
            norms[i].append(length)
            projections[i].append(_projection(part, whole[i], length, size[i]))
            if part is not None:
                already = sums[i]
                sums[i] = part if already is None else already + part
                largest[i] += _largest(part)
        if not arriving:
            break
    if arriving:
        _, crossed = backward.run(backward.start, cross, go_on=True)
        slope, _ = backward.run(crossed)
        mean = [_projection(s, g, _norm(s), n) for s, g, n in zip(slope, whole, size, strict=True)]
    else:
        mean = [sum(k * p for k, p in enumerate(row)) for row in projections]
    residual = _residual(backward, sums, largest)
    return GradedSizes(norms, projections, mean, bool(arriving), residual)


def _residual(
    backward: Backward,
    sums: Sequence[Tensor | None],
    largest: Sequence[float],
) -> float:
    """Largest max|Σ G_k − g| / max(Σ_k max|G_k|, max|g|) over the targets, g as autograd has it.

    Raises:
        PathwayError: if rounding does not explain it.
    """
    whole, _ = backward.run(backward.start, native=True)
    worst = 0.0
    for part, total, scale in zip(sums, whole, largest, strict=True):
        if part is None and total is None:
            continue
        missing = _largest(_minus(part, total))
        scale = max(scale, 0.0 if total is None else _largest(total))
        residual = missing / scale if scale else missing
        worst = residual if math.isnan(residual) else max(worst, residual)
    if not worst <= 3 * math.sqrt(backward.epsilon):
        parts = [
            torch.zeros_like(target)[None] if part is None else part[None]
            for part, target in zip(sums, backward.targets, strict=True)
        ]
        return check_sum(backward, parts, None)  # says why, or finds torch's kernels inexact
    return worst


def _minus(a: Tensor | None, b: Tensor | None) -> Tensor:
    if a is None or b is None:
        rest = b if a is None else a
        assert rest is not None
        return rest
    return a - b


def _norm(g: Tensor | None) -> float:
    return 0.0 if g is None else float(norm(g))


def _largest(g: Tensor) -> float:
    if g.layout is not torch.strided:
        g = g.to_dense()
    if not g.numel():
        return 0.0
    if g.is_complex():
        g = torch.view_as_real(g)
    low, high = torch.aminmax(g)  # several times faster than a maximum norm
    return max(-float(low), float(high))


def _projection(part: Tensor | None, whole: Tensor | None, length: float, size: float) -> float:
    if whole is None or size == 0:
        return math.nan
    if part is None or length == 0:
        return 0.0
    # Two divisions: size squared would underflow first.
    return float(inner(part, whole, length * size)) / size / size
