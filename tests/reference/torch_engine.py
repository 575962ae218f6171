"""Pathway oracles that run on PyTorch's own engine, with hooks on the softmax nodes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

VALUE = 2


def gated(loss: Tensor, targets: Sequence[Tensor], t: float) -> list[Tensor]:
    """The gradients with every softmax's backward multiplied by t: Σ_k t^k G_k."""
    return _hooked(loss, targets, lambda gradient: t * gradient)


def graded_by_vmap(loss: Tensor, targets: Sequence[Tensor], orders: int) -> list[Tensor]:
    """G_0 … G_orders (the last one and all above it), by one pass that carries them all.

    Every gradient has a batch dimension of orders + 1, and a softmax moves entry j to j + 1.
    """
    seed = torch.zeros(orders + 1, dtype=loss.dtype)
    seed[0] = 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        return list(torch.func.vmap(lambda c: _hooked(loss, targets, _MoveUp.apply, c))(seed))


class _MoveUp(torch.autograd.Function):
    """Seen from inside vmap: the identity on one entry. On the batch: entry j → j + 1."""

    @staticmethod
    def forward(gradient: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def vmap(info, in_dims, gradient: Tensor) -> tuple[Tensor, int]:
        gradient = gradient.movedim(in_dims[0], 0)
        moved = torch.zeros_like(gradient)
        moved[1:] = gradient[:-1]
        moved[-1] += gradient[-1]
        return moved, 0


def _hooked(
    loss: Tensor,
    targets: Sequence[Tensor],
    change: Callable[[Tensor], Tensor],
    seed: Tensor | None = None,
) -> list[Tensor]:
    handles = []
    for node in _nodes(loss.grad_fn):
        name = node.name()
        if name.startswith("ScaledDotProduct") or name in (
            "SoftmaxBackward0",
            "SafeSoftmaxBackward0",
        ):

            def hook(grad_inputs, _):
                return tuple(
                    g if g is None or i == VALUE else change(g) for i, g in enumerate(grad_inputs)
                )

            handles.append(node.register_hook(hook))
    try:
        return list(
            torch.autograd.grad(
                loss, targets, seed, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        )
    finally:
        for handle in handles:
            handle.remove()


def _nodes(root) -> list:
    nodes = [root]
    seen = {root}
    for node in nodes:
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                nodes.append(child)
    return nodes
