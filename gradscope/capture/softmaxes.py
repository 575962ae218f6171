"""Attention softmaxes as autograd shows them: plain softmax nodes and fused attention.

Fused attention never writes its softmax out. Its rows are computed again from the queries
and keys that the node saved, in blocks, so that memory stays small whatever the number of
rows. The log-sum-exp that the kernels save is not used: exp(logits − lse) takes longer than a
softmax of the block (4.5 against 0.6 ns an element on one CPU thread) and loses digits where
logits are large; and the largest probability and the gain need the rows in any case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from gradscope.capture.ledger import Ledger, Read
from gradscope.capture.saved import Saved, UnreadableError, saved_tensor
from gradscope.quantities.norm import Scalar, norm
from gradscope.quantities.softmax import softmax_sums, some_rows
from gradscope.run import Column

SoftmaxRows = Literal["sample", "all"]
SOFTMAX_ROWS: tuple[SoftmaxRows, ...] = get_args(SoftmaxRows)

STATE = ("entropy", "max_prob", "jacobian_norm", "evenness", "uniform_gain")
# Softmaxes of up to this many elements are measured whole, larger ones on a sample of rows
# with about this many elements, unless all rows are asked for. What a sample costs in
# accuracy, as relative root-mean-square error in per cent, was measured on random queries and
# keys of 8 heads (from and to: full or causal, heads alike or with logits of standard
# deviation 0.3 to 8):
#     n     rows           entropy   max_prob  jacobian_norm  gain
#     128   256 of 8,192   0.6–0.8   2–4       1–2            3–5
#     512   64 of 16,384   0.7–1.6   5–11      3–7            5–16
#     2048  64 of 16,384   0.3–1.5   5–11      2–11           4–12
# The rows are the same at every step, so that a trend is not this uncertain. All rows take
# 15 to 20 ns an element on one CPU thread, several times the fused forward pass itself.
EXACT_ELEMENTS = 1 << 16
SAMPLE_ELEMENTS = 1 << 15
MIN_ROWS = 64
# Elements of the rows at hand at a time: what fits a CPU's cache, and what keeps an
# accelerator busy.
CPU_BLOCK, DEVICE_BLOCK = 1 << 18, 1 << 24

Gradients = tuple[Tensor | None, ...]
# A block of rows: p (R, n), and for fused attention the gradients dP and dS on either side.
Block = tuple[Tensor, Tensor | None, Tensor | None]


class Gain:
    """gain = ‖Jᵀg‖ / ‖g‖, from the norms on either side of the softmax."""

    def __init__(self, arriving: int, leaving: int, column: Column) -> None:
        self.arriving, self.leaving, self.column = arriving, leaving, column

    def emit(self, read: Read) -> Any:
        if self.arriving in read and self.leaving in read:
            with np.errstate(divide="ignore", invalid="ignore"):
                yield self.column, read[self.leaving] / read[self.arriving]


SUMS = ("entropy", "max_prob", "jacobian_norm", "H", "log m", "uniform_gain", "rows")


class RowMeans:
    """Means over the measured rows of a step, whose micro-batches may differ in size.

    Args:
        sums: slots of `SUMS`.
    """

    def __init__(self, sums: list[int], site: str) -> None:
        self.sums, self.site = dict(zip(SUMS, sums, strict=True)), site

    def emit(self, read: Read) -> Any:
        total = {name: read[slot] for name, slot in self.sums.items()}
        with np.errstate(divide="ignore", invalid="ignore"):
            for metric in STATE:
                if metric != "evenness":
                    yield self._column(metric), total[metric] / total["rows"]
            # Rows of one entry have no choice, and no say.
            even = np.where(total["log m"] > 0, total["H"] / total["log m"], 0.0)
            yield self._column("evenness"), even

    def _column(self, metric: str) -> Column:
        return Column(self.site, "softmax", "", metric)


class SoftmaxTap:
    """Measures one softmax when the backward pass crosses it.

    What it computed is read from its node: nothing is added to the forward pass.
    """

    part = "softmaxes"

    def __init__(
        self, ledger: Ledger, site: str, fused: bool, rows: SoftmaxRows, unseen: Any
    ) -> None:
        self._ledger = ledger
        self._sums = [ledger.slot("softmax sum", site, name, mode="sum") for name in SUMS]
        ledger.emitter_once(("state", site), RowMeans(self._sums, site), self._sums[-1:])
        self._arriving = ledger.slot("gain in", site)
        self._leaving = ledger.slot("gain out", site)
        gain = Gain(self._arriving, self._leaving, Column(site, "softmax", "", "gain"))
        ledger.emitter_once(("gain", site), gain, [self._arriving])
        self._fused, self._rows = fused, rows
        self._site = site
        self._unseen = unseen

    def saved(self, node: Any) -> list[Any]:
        """What is needed of a node's saved tensors; nothing where they can't be read."""
        if self._fused and _dropout(node):
            self._unseen(
                f"{self._site}: gain", "fused attention does not show which weights it dropped"
            )
        try:
            return [fused_inputs(node) if self._fused else plain_result(node)]
        except UnreadableError as error:
            self._cannot(error)
            return []

    def __call__(self, saved: list[Any], grad_inputs: Gradients, grad_outputs: Gradients) -> None:
        g = grad_outputs[0]
        if not self._fused and g is not None and grad_inputs[0] is not None:
            self._gain([norm(g)], [norm(grad_inputs[0])])
        if not saved:
            return
        try:
            softmax = saved[0].read()
        except UnreadableError as error:
            self._cannot(error)
            return
        sums: list[Tensor] = []
        arriving: list[Scalar] = []
        leaving: list[Scalar] = []
        for p, dp, ds in softmax.blocks(g, self._rows):
            sums.append(softmax_sums(p))
            if dp is not None and ds is not None:
                arriving.append(norm(dp))
                leaving.append(norm(ds))
        self._gain(arriving, leaving)
        if sums:
            state = torch.stack(sums).sum(0)
            values = state.tolist() if state.is_cpu else state.unbind()
            for slot, value in zip(self._sums, values, strict=True):
                self._ledger.add(slot, value)

    def _gain(self, arriving: list[Scalar], leaving: list[Scalar]) -> None:
        if arriving:
            self._ledger.add(self._arriving, _together(arriving))
            self._ledger.add(self._leaving, _together(leaving))

    def _cannot(self, error: UnreadableError) -> None:
        what = "entropy, max_prob, jacobian_norm" + (", gain" if self._fused else "")
        self._unseen(f"{self._site}: {what}", str(error))


def _together(norms: list[Scalar]) -> Scalar:
    """‖·‖₂ of a whole from those of its parts."""
    if len(norms) == 1:
        return norms[0]
    return norm(torch.stack([torch.as_tensor(n, dtype=torch.float64) for n in norms]))


def rows_note(shape: tuple[int, ...], fused: bool, asked: SoftmaxRows) -> str:
    """How many rows of a softmax of this shape (rows last) are measured."""
    if not shape:
        return ""
    rows = math.prod(shape[:-1])
    chosen = chosen_rows(rows, shape[-1], asked)
    if chosen is None:
        return "all rows"
    what = "entropy, max_prob, jacobian_norm" + (", gain" if fused else "")
    return f"{what} from a fixed sample of {len(chosen)} of {rows} rows"


def chosen_rows(rows: int, n: int, asked: SoftmaxRows) -> Tensor | None:
    """Which rows are measured; None for all of them."""
    if asked == "all" or rows * n <= EXACT_ELEMENTS:
        return None
    return some_rows(rows, max(MIN_ROWS, SAMPLE_ELEMENTS // n))


def _block_rows(n: int, x: Tensor) -> int:
    """Number of rows of length n to have at hand at a time."""
    return max(1, (CPU_BLOCK if x.is_cpu else DEVICE_BLOCK) // max(n, 1))


@dataclass
class Later:
    """A softmax whose tensors can be read when its node has run."""

    tensors: list[Saved | None]
    make: Callable[..., PlainResult | FusedInputs]

    def read(self) -> PlainResult | FusedInputs:
        return self.make(*(t if t is None else t.read() for t in self.tensors))


def plain_result(node: Any) -> Later:
    """Result of a plain softmax."""
    dim = node._saved_dim
    if dim >= 1 << 63:  # torch shows a negative dimension as unsigned
        dim -= 1 << 64
    return Later([saved_tensor(node, "result")], partial(PlainResult, dim))


class PlainResult(NamedTuple):
    """Result p of a softmax over dimension `dim`."""

    dim: int
    p: Tensor

    def blocks(self, g: Tensor | None, asked: SoftmaxRows) -> Iterator[Block]:
        """Measured rows (R, n), whichever dimension the softmax was taken over."""
        n = self.p.shape[self.dim]
        rows = self.p.movedim(self.dim, -1).reshape(-1, n)
        chosen = chosen_rows(rows.shape[0], n, asked)
        if chosen is not None:
            rows = rows[chosen.to(rows.device)]
        for block in rows.split(_block_rows(n, rows)):
            yield block, None, None


def fused_inputs(node: Any) -> Later:
    """What a node of fused attention saved."""
    mask = "attn_bias" if hasattr(node, "_raw_saved_attn_bias") else "attn_mask"
    names = ["query", "key", "value", *([mask] if hasattr(node, f"_raw_saved_{mask}") else [])]
    make = partial(_fused, node._saved_is_causal, node._saved_scale, _dropout(node))
    return Later([saved_tensor(node, name) for name in names], make)


def _dropout(node: Any) -> float:
    return float(getattr(node, "_saved_dropout_p", 0.0))


def _fused(
    causal: bool,
    scale: float | None,
    dropout: float,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
) -> FusedInputs:
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return FusedInputs(q, k, v, mask, causal, scale, dropout)


class FusedInputs(NamedTuple):
    """What fused attention saved: q (B, H, Q, D), k (B, H', K, D), v (B, H', K, E), where H'
    divides H (grouped queries); mask broadcastable to (B, H, Q, K)."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    causal: bool
    scale: float
    dropout: float

    def blocks(self, g: Tensor | None, asked: SoftmaxRows) -> Iterator[Block]:
        """Measured rows of the softmax inside, with the gradients on either side of it.

        Args:
            g: (B, H, Q, E) = ∂L/∂output.

        Yields:
            p (R, K), dP (R, K) and dS (R, K); no dP and dS without g, or where weights were
            dropped, since which is not known.
        """
        B, H, Q, _ = self.q.shape
        K = self.k.shape[2]
        chosen = chosen_rows(B * H * Q, K, asked)
        chosen = torch.arange(B * H * Q) if chosen is None else chosen  # on the host: no waiting
        size = _block_rows(K, self.q)
        together = H // self.k.shape[1] * Q  # rows that meet the same keys
        for r in chosen.split(size - size % together or size):
            yield self._rows(r, None if self.dropout else g)

    def _rows(self, r: Tensor, g: Tensor | None) -> Block:
        """Rows r = (b, h, i): p_r = softmax(scale · q_r kᵀ + mask), dP_r = g_r vᵀ,
        dS_r = p_r ∘ (dP_r − ⟨dP_r, p_r⟩)."""
        q, k = self.q, self.k
        B, H, Q, _ = q.shape
        K = k.shape[2]
        b, h, i = r // (H * Q), r // Q % H, r % Q
        meets = _meets(b, h // (H // k.shape[1]))
        b, h, i = b.to(q.device), h.to(q.device), i.to(q.device)
        wide = torch.float64 if q.dtype is torch.float64 else torch.float32
        logits = _by_row(q[b, h, i].to(wide), k, meets).mul_(self.scale)
        if self.mask is not None:
            row = self.mask.expand(B, H, Q, K)[b, h, i]
            if row.dtype is torch.bool:
                logits.masked_fill_(~row, -math.inf)
            else:
                logits += row
        if self.causal:
            logits.masked_fill_(torch.arange(K, device=q.device) > i[:, None], -math.inf)
        p = torch.softmax(logits, -1)
        if self.mask is not None:  # rows in which everything is masked carry nothing
            p = p.nan_to_num_(0.0)
        if g is None:
            return p, None, None
        dp = _by_row(g[b, h, i].to(wide), self.v, meets)
        if self.mask is not None:
            dp = torch.where(p.any(-1, keepdim=True), dp, 0.0)
        ds = (dp - (dp * p).sum(-1, keepdim=True)).mul_(p)
        return p, dp, ds


class Meets(NamedTuple):
    """Which keys and values the rows of a block meet: `sizes[j]` rows those of (b[j], h[j])."""

    b: Tensor
    h: Tensor
    sizes: list[int]


def _meets(b: Tensor, h: Tensor) -> Meets:
    """Of rows (R,) in ascending order."""
    pairs, sizes = torch.unique_consecutive(torch.stack([b, h]), dim=1, return_counts=True)
    return Meets(pairs[0], pairs[1], sizes.tolist())


def _by_row(x: Tensor, y: Tensor, meets: Meets) -> Tensor:
    """x (R, D), y (B, H', K, D) → (R, K): x_r · y[b_r, h_r]ᵀ."""
    b, h, sizes = meets
    if len(set(sizes)) == 1:  # one batched product
        met = y[b.to(y.device), h.to(y.device)].to(x.dtype)
        return (x.view(len(sizes), -1, x.shape[1]) @ met.mT).view(len(x), -1)
    parts = zip(x.split(sizes), b.tolist(), h.tolist(), strict=True)
    return torch.cat([part @ y[at, head].to(x.dtype).T for part, at, head in parts])
