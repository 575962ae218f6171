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
        The largest residual over the targets, ‖Σ_k part_k − g‖ / max(‖g‖, ‖part_k‖), in
        the maximum norm: squares of a vanishing gradient would underflow.

    Raises:
        PathwayError: when a gradient is not finite, or the sum is not the gradient.
    """
    tolerance = 3 * math.sqrt(backward.epsilon)
    given = reference is not None
    if reference is None:
        reference, _ = backward.run(backward.start, native=True)
    if len(reference) != len(parts):
        raise PathwayError(f"there are {len(reference)} reference gradients, {len(parts)} targets")
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
    wide = [p if p.dtype.itemsize > 2 else p.float() for p in parts]
    whole = [p.sum(0) for p in wide]
    expected = [_dense(g, w) for g, w in zip(totals, whole, strict=True)]
    missing = _largest([w - g for w, g in zip(whole, expected, strict=True)])
    scale = torch.maximum(_largest(wide), _largest(expected))
    return torch.where(scale == 0, missing, missing / scale).tolist()


def _dense(gradient: Tensor | None, like: Tensor) -> Tensor:
    if gradient is None:
        return torch.zeros_like(like)
    return (gradient if gradient.layout is torch.strided else gradient.to_dense()).to(like.dtype)


def _largest(tensors: list[Tensor]) -> Tensor:
    """max |x| of each, (len(tensors),) on the device of the first, NaN where there is one."""
    device = tensors[0].device
    real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    dtype = max((t.dtype for t in real), key=lambda d: d.itemsize)
    bounds = [b for t in real for b in (t if t.numel() else t.new_zeros(1)).aminmax()]
    return torch.stack([b.to(device, dtype) for b in bounds]).view(-1, 2).abs().amax(1)


def _name(target: int, parts: Sequence[Tensor]) -> str:
    return f"target {target}, of shape {tuple(parts[target].shape[1:])},"
