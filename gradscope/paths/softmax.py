"""Backward of softmax and of attention, right relative to its own size however peaked.

Jᵀg = p ∘ (g − ⟨p, g⟩) for a row p. Near one-hot, g_i − ⟨p, g⟩ at the maximum of p is the
difference of two nearly equal numbers: PyTorch's kernels lose one digit for each decade of
1 − max p there, and in float32 nothing is left when max p = 1 − 1e-7. But Jᵀ takes constants to
zero, so g may be shifted: with g = 0 at the maximum of p, only small terms are left to add.
For the same reason, keys and values count relative to their means: nearly equal tokens, as in
a deep transformer, keep their digits too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gradscope.graph.attention_nodes import FUSED_ATTENTION, SOFTMAX

# Attention probabilities are made anew in blocks of about this many elements.
BLOCK = 1 << 22


def accurate_backward(
    node: Any, arrived: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...] | None:
    """What a softmax or fused attention node returns, or None where its kernel must do."""
    name, gradient = node.name(), arrived[0]
    if gradient is None:
        return None
    if name in SOFTMAX:
        return (softmax_backward(node, gradient),)
    if name in FUSED_ATTENTION and gradient.dtype in (torch.float32, torch.float64):
        return attention_backward(node, gradient)
    return None


def softmax_backward(node: Any, gradient: Tensor) -> Tensor:
    """Jᵀg of a node that saved its result p."""
    p = node._saved_result
    dim = node._saved_dim
    if dim >= 1 << 63:  # torch shows a negative dimension as unsigned
        dim -= 1 << 64
    wide = torch.promote_types(p.dtype, torch.float32)
    return jacobian_product(p.detach().to(wide), gradient.to(wide), dim)


def attention_backward(node: Any, g: Tensor) -> tuple[Tensor | None, ...] | None:
    """Gradients of query, key and value from what a fused attention node saved.

    q (B, H, Q, D), k (B, H', K, D), v (B, H', K, E), g and output (B, H, Q, E), where H = H' · G
    has G query heads for each key head. With p = softmax(scale · q kᵀ + bias), row by row:
    dS = Jᵀ(g vᵀ), dq = scale · dS k, dk = scale · dSᵀ q, dv = pᵀ g.

    Kernels differ in what they save, so p is put to the test: p v must be the saved output.
    None where it isn't, with dropout, and for a bias that is trained.
    """
    others = node.next_functions[3:]
    if getattr(node, "_saved_dropout_p", 0) or any(child is not None for child, _ in others):
        return None
    q, k, v, output = (
        getattr(node, f"_saved_{name}").detach() for name in ("query", "key", "value", "output")
    )
    (B, H, Q, D), (heads, K) = q.shape, k.shape[1:3]
    scale = 1 / math.sqrt(D) if node._saved_scale is None else node._saved_scale
    bias = _bias(node, q, K).expand(B, H, Q, K)
    tolerance = 3 * math.sqrt(torch.finfo(v.dtype).eps) * float(v.abs().amax())
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for b, rows in _blocks(B, Q, H * K):
        queries, gradients, outputs, biases = (
            x[b, :, rows].unflatten(1, (heads, -1)) for x in (q, g, output, bias)
        )  # (b, H', G, q, ...)
        keys, values = k[b, :, None], v[b, :, None]
        p = torch.softmax(queries @ keys.mT * scale + biases, -1)
        p = p.nan_to_num(0.0)  # rows in which everything is masked
        if not torch.allclose(p @ values, outputs, rtol=0, atol=tolerance):
            return None
        # Rows of ds sum to zero, and Jᵀ takes constants there: only differences matter.
        ds = jacobian_product(p, gradients @ _centred(values).mT, -1) * scale
        dq[b, :, rows] = (ds @ _centred(keys)).flatten(1, 2)
        dk[b] += (ds.mT @ queries).sum(2)
        dv[b] += (p.mT @ gradients).sum(2)
    return dq, dk, dv, *(None for _ in others)


def _centred(tokens: Tensor) -> Tensor:
    return tokens - tokens.mean(-2, keepdim=True)


def _blocks(B: int, Q: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Slices of B samples and Q queries of `size` probabilities each, about `BLOCK` at a time."""
    samples = max(1, BLOCK // max(1, Q * size))
    queries = max(1, BLOCK // max(1, samples * size))
    for b in range(0, B, samples):
        for i in range(0, Q, queries):
            yield slice(b, b + samples), slice(i, i + queries)


def _bias(node: Any, q: Tensor, K: int) -> Tensor:
    """What is added to the logits, broadcastable to (B, H, Q, K)."""
    bias = q.new_zeros(())
    for name in ("_saved_attn_mask", "_saved_attn_bias"):
        mask = getattr(node, name, None)
        if mask is not None:
            bias = mask.detach().to(q.dtype)
    if node._saved_is_causal:
        hidden = torch.ones(q.shape[2], K, dtype=torch.bool, device=q.device).triu(1)
        bias = bias.expand(*bias.shape[:-2], *hidden.shape).masked_fill(hidden, -math.inf)
    return bias


def jacobian_product(p: Tensor, g: Tensor, dim: int) -> Tensor:
    """Jᵀg = p ∘ (g − ⟨p, g⟩) along `dim`."""
    g = g - g.gather(dim, p.argmax(dim, keepdim=True))
    return p * (g - (p * g).sum(dim, keepdim=True))
