"""The invariant of every split: its parts add up to the gradient that autograd computes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.errors import PathwayError
from gradscope.paths.backward import Backward, stack_parts


def check_sum(
    backward: Backward, parts: Sequence[Tensor], reference: Sequence[Tensor | None] | None
) -> float:
    """Compare the sum of the parts with the ordinary gradient.

    Rounding explains a residual of 3 √ε, ε that of the coarsest dtype on the way. Where
    softmaxes are so peaked that PyTorch's kernels lose most digits, autograd's gradient itself
    is further off. There the sum must agree with one undivided pass that is as accurate as the
    parts, and PyTorch's kernels must reproduce the reference.

    Args:
        backward: the passes that the parts came from.
        parts: for each target, (n, *target.shape).
        reference: each target's ordinary gradient; by default it is computed.

    Returns:
        The largest residual over the targets, ‖Σ_k part_k − g‖ / max(‖g‖, Σ_k ‖part_k‖), in
        the maximum norm: squares of a vanishing gradient would underflow.

    Raises:
        PathwayError: when a gradient is not finite, or the sum is not the gradient.
    """
    tolerance = 3 * math.sqrt(backward.epsilon)
    given = reference is not None
    if reference is None:
        reference, _ = backward.run(backward.start, native=True)
    residuals = _residuals(parts, reference)
    for i, residual in enumerate(residuals):
        if math.isnan(residual):
            raise PathwayError(f"the gradient of {_name(i, parts)} is not finite")
    if max(residuals) > tolerance:
        _explain(backward, parts, reference if given else None, tolerance)
    return max(residuals)


def _explain(
    backward: Backward,
    parts: Sequence[Tensor],
    given: Sequence[Tensor | None] | None,
    tolerance: float,
) -> None:
    """Raise, unless it is PyTorch's kernels that are inaccurate."""
    undivided, _ = backward.run(backward.start)
    for i, residual in enumerate(_residuals(parts, undivided)):
        if not residual <= tolerance:
            raise PathwayError(
                f"the parts of the gradient of {_name(i, parts)} miss the whole by {residual:.1e} "
                f"of it, where rounding explains {tolerance:.1e}: the backward of some operation "
                "is not linear in the gradient, or not repeatable. Measure at a tensor behind it"
            )
    if given is None:
        return
    native, _ = backward.run(backward.start, native=True)
    whole = stack_parts(backward.targets, [native])
    for i, residual in enumerate(_residuals(whole, given)):
        if not residual <= tolerance:
            raise PathwayError(
                f"the reference for {_name(i, parts)} is {residual:.1e} off the gradient of this "
                f"graph, where rounding explains {tolerance:.1e}: it is of another pass, or a hook "
                "on a tensor in between changed it"
            )


def _residuals(parts: Sequence[Tensor], totals: Sequence[Tensor | None]) -> list[float]:
    """One residual a target, NaN where a gradient is not finite. One copy from the device."""
    residuals = [_residual(p, g) for p, g in zip(parts, totals, strict=True)]
    return torch.stack([r.to(residuals[0].device) for r in residuals]).tolist()


def _residual(parts: Tensor, total: Tensor | None) -> Tensor:
    wide = torch.promote_types(parts.dtype, torch.float32)
    whole = parts.sum(0, dtype=wide)
    if not whole.numel():
        return torch.zeros((), device=parts.device)
    if total is None:
        total = torch.zeros_like(whole)
    elif total.layout is not torch.strided:
        total = total.to_dense()
    scale = torch.maximum(_largest(parts.flatten(1), 1).sum(), _largest(total))
    missing = _largest(whole - total)
    return torch.where(scale == 0, missing, missing / scale)


def _largest(x: Tensor, dim: int | None = None) -> Tensor:
    return torch.linalg.vector_norm(x, math.inf, dim)


def _name(target: int, parts: Sequence[Tensor]) -> str:
    return f"target {target}, of shape {tuple(parts[target].shape[1:])},"
