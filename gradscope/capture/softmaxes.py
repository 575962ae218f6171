"""Attention softmaxes as autograd shows them: plain softmax nodes and fused attention."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradscope.capture.ledger import Ledger, Read
from gradscope.quantities.norm import norm
from gradscope.quantities.softmax import softmax_state, some_rows
from gradscope.run import Column

STATE = ("entropy", "max_prob", "jacobian_norm")
# Softmaxes of up to this many elements are measured whole, larger ones on a sample of rows
# with about this many elements: log costs about a nanosecond an element.
EXACT_ELEMENTS = 1 << 16
SAMPLE_ELEMENTS = 1 << 15
MIN_ROWS = 64

Gradients = tuple[Tensor | None, ...]


class Gain:
    """gain = ‖Jᵀg‖ / ‖g‖, from the norms on either side of the softmax."""

    def __init__(self, arriving: int, leaving: int, column: Column) -> None:
        self.arriving, self.leaving, self.column = arriving, leaving, column

    def emit(self, read: Read) -> Any:
        if self.arriving in read and self.leaving in read:
            from numpy import errstate

            with errstate(divide="ignore", invalid="ignore"):
                yield self.column, read[self.leaving] / read[self.arriving]


class SoftmaxTap:
    """Measures one softmax when the backward pass crosses it.

    Its result is read from the node (no forward hook), unless hooks on saved tensors
    guard it: under non-reentrant checkpointing a second reading would make torch raise
    inside the user's backward pass.
    """

    def __init__(self, ledger: Ledger, site: str, fused: bool, unseen: Any) -> None:
        self._ledger = ledger
        self._state = [
            ledger.plain(Column(site, "softmax", "", metric), mode="mean") for metric in STATE
        ]
        self._arriving = ledger.slot("gain in", site)
        self._leaving = ledger.slot("gain out", site)
        gain = Gain(self._arriving, self._leaving, Column(site, "softmax", "", "gain"))
        ledger.emitter_once(("gain", site), gain, [self._arriving])
        self._fused = fused
        self._site = site
        self._unseen = unseen

    def saved(self, node: Any) -> list[Any]:
        """What is needed of a node's saved tensors; nothing where hooks guard them."""
        guarded = node._raw_saved_query if self._fused else node._raw_saved_result
        if guarded.unpack_hook is None:
            return [FusedInputs.of(node) if self._fused else PlainResult.of(node)]
        what = "entropy, max_prob, jacobian_norm" + (", gain" if self._fused else "")
        self._unseen(
            f"{self._site}: {what}",
            "what it saved is held by saved-tensor hooks (activation checkpointing or "
            "offloading), where reading it would stop the backward pass",
        )
        return []

    def __call__(self, saved: list[Any], grad_inputs: Gradients, grad_outputs: Gradients) -> None:
        if not self._fused:
            self._gain(grad_outputs[0], grad_inputs[0])
        if not saved:
            return
        if self._fused:
            p, arriving, leaving = saved[0].rows(grad_outputs[0])
            self._gain(arriving, leaving)
        else:
            p = saved[0].rows()
        self._add_state(p)

    def _gain(self, arriving: Tensor | None, leaving: Tensor | None) -> None:
        if arriving is not None and leaving is not None:
            self._ledger.add(self._arriving, norm(arriving))
            self._ledger.add(self._leaving, norm(leaving))

    def _add_state(self, rows: Tensor) -> None:
        state = softmax_state(rows)
        values = state.tolist() if state.is_cpu else state.unbind()
        for slot, value in zip(self._state, values, strict=True):
            self._ledger.add(slot, value)


def chosen_rows(rows: int, n: int) -> Tensor | None:
    """Which rows are measured; None for all of them."""
    if rows * n <= EXACT_ELEMENTS:
        return None
    return some_rows(rows, max(MIN_ROWS, SAMPLE_ELEMENTS // n))


class PlainResult(NamedTuple):
    """Result p of a softmax over dimension `dim`."""

    p: Tensor
    dim: int

    @classmethod
    def of(cls, node: Any) -> PlainResult:
        dim = node._saved_dim
        if dim >= 1 << 63:  # torch shows a negative dimension as unsigned
            dim -= 1 << 64
        return cls(node._saved_result.detach(), dim)

    def rows(self) -> Tensor:
        """Measured rows (R, n), whichever dimension the softmax was taken over."""
        n = self.p.shape[self.dim]
        rows = self.p.movedim(self.dim, -1).reshape(-1, n)
        chosen = chosen_rows(rows.shape[0], n)
        return rows if chosen is None else rows[chosen.to(rows.device)]


class FusedInputs(NamedTuple):
    """What fused attention saved: q (B, H, Q, D), k (B, H', K, D), v (B, H', K, E), where H'
    divides H (grouped queries); mask broadcastable to (B, H, Q, K)."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    causal: bool
    scale: float

    @classmethod
    def of(cls, node: Any) -> FusedInputs:
        q, k, v = (t.detach() for t in (node._saved_query, node._saved_key, node._saved_value))
        scale = node._saved_scale
        if scale is None:
            scale = 1 / math.sqrt(q.shape[-1])
        mask = _mask(node)
        if mask is not None:
            mask = mask.detach()
        return cls(q, k, v, mask, node._saved_is_causal, scale)

    def rows(self, g: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Measured rows of the softmax inside, with the gradients on either side of it.

        For the chosen rows r = (b, h, i), with g (B, H, Q, E) = ∂L/∂output:
        p_r = softmax(scale · q_r kᵀ + mask), dP_r = g_r vᵀ, dS_r = p_r ∘ (dP_r − ⟨dP_r, p_r⟩).

        Returns:
            p (R, K), dP (R, K) and dS (R, K); dP and dS are None without g.
        """
        q, k = self.q, self.k
        B, H, Q, _ = q.shape
        K = k.shape[2]
        chosen = chosen_rows(B * H * Q, K)
        r = torch.arange(B * H * Q) if chosen is None else chosen  # on the host: no waiting
        b, h, i = r // (H * Q), r // Q % H, r % Q
        kv = h // (H // k.shape[1])
        pairs = _pairs(b * k.shape[1] + kv, k.shape[1], q.device)
        b, h, i = b.to(q.device), h.to(q.device), i.to(q.device)
        wide = torch.float64 if q.dtype is torch.float64 else torch.float32
        logits = _by_row(q[b, h, i].to(wide), k, pairs) * self.scale
        if self.mask is not None:
            row = self.mask.expand(B, H, Q, K)[b, h, i]
            if row.dtype is torch.bool:
                logits = logits.masked_fill(~row, -math.inf)
            else:
                logits = logits + row.to(wide)
        if self.causal:
            hidden = torch.arange(K, device=q.device)[None, :] > i[:, None]
            logits = logits.masked_fill(hidden, -math.inf)
        # rows in which everything is masked carry nothing
        p = torch.softmax(logits, -1).nan_to_num(0.0)
        if g is None:
            return p, None, None
        dp = _by_row(g[b, h, i].to(wide), self.v, pairs)
        dp = torch.where(p.any(-1, keepdim=True), dp, 0.0)
        ds = p * (dp - (dp * p).sum(-1, keepdim=True))
        return p, dp, ds


Pairs = list[tuple[int, int, Tensor]]


def _pairs(pair: Tensor, heads: int, device: torch.device) -> Pairs:
    """Rows grouped by the (b, h) whose keys and values they meet."""
    order = torch.argsort(pair, stable=True)
    groups, sizes = torch.unique_consecutive(pair[order], return_counts=True)
    rows = order.to(device).split(sizes.tolist())
    return [(g // heads, g % heads, r) for g, r in zip(groups.tolist(), rows, strict=True)]


def _by_row(x: Tensor, y: Tensor, pairs: Pairs) -> Tensor:
    """x (R, D), y (B, H', K, D) → (R, K): x_r · y[b_r, h_r]ᵀ, one product a (b, h) pair."""
    out = x.new_empty(x.shape[0], y.shape[2])
    for b, h, rows in pairs:
        out[rows] = x[rows] @ y[b, h].to(x.dtype).T
    return out


def _mask(node: Any) -> Tensor | None:
    for name in ("_saved_attn_mask", "_saved_attn_bias"):
        mask = getattr(node, name, None)
        if mask is not None:
            return mask
    return None
