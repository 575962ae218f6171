"""Toy tasks for models with attention, and measurements of their softmaxes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from analyses.faults.case import Symptom
from analyses.faults.observe import Observed
from analyses.faults.symptoms import learns_less
from analyses.faults.training import Training

SPLITS = ("test",)


def rng(step: int, salt: int = 0) -> torch.Generator:
    """A generator of its own for every step."""
    return torch.Generator().manual_seed(7919 * salt + step + 1)


def pairs(step: int, batch: int, n: int, keys: int, values: int) -> tuple[Tensor, ...]:
    """Keys, their values, a key asked for, and its value."""
    g = rng(step, 1)
    k = torch.rand(batch, keys, generator=g).argsort(1)[:, :n]
    v = torch.randint(values, (batch, n), generator=g)
    at = torch.randint(n, (batch, 1), generator=g)
    return k, v, k.gather(1, at).squeeze(1), v.gather(1, at).squeeze(1)


def marked(step: int, batch: int, n: int, vocab: int) -> tuple[Tensor, ...]:
    """Tokens, one of them marked (0/1), and the marked token."""
    g = rng(step, 2)
    x = torch.randint(vocab, (batch, n), generator=g)
    at = torch.randint(n, (batch, 1), generator=g)
    flag = torch.zeros(batch, n, dtype=torch.long).scatter_(1, at, 1)
    return x, flag, x.gather(1, at).squeeze(1)


def sequences(
    step: int, batch: int, n: int, vocab: int, how: str = "reverse"
) -> tuple[Tensor, ...]:
    """Tokens from 2 on, and the same reversed or sorted; 0 pads and 1 begins."""
    x = torch.randint(2, vocab, (batch, n), generator=rng(step, 3))
    return x, (x.flip(1) if how == "flip" else x.sort(1).values)


@lru_cache(maxsize=1)
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).view(-1, 8, 8) / 16, torch.tensor(labels)


def digits(step: int, batch: int) -> tuple[Tensor, Tensor]:
    """8×8 images in [0, 1] and their digits."""
    images, labels = _digits()
    at = torch.randint(len(images), (batch,), generator=rng(step, 4))
    return images[at], labels[at]


WORDS = "the a old red small cat dog bird tree river sees likes finds and but near under".split()
LETTERS = " ." + "".join(sorted(set("".join(WORDS))))


def letters(step: int, batch: int, n: int) -> tuple[Tensor, Tensor]:
    """Text of a small grammar: characters and the next ones."""
    g = rng(step, 5)
    rows = []
    for _ in range(batch):
        text = ""
        while len(text) < n + 1:
            pick = torch.randint(1000, (7,), generator=g).tolist()
            one = f"{WORDS[pick[0] % 2]} {WORDS[2 + pick[1] % 3]} {WORDS[5 + pick[2] % 5]} "
            two = f"{WORDS[10 + pick[3] % 3]} {WORDS[pick[4] % 2]} {WORDS[5 + pick[5] % 5]}. "
            text += one + two
        rows.append([LETTERS.index(c) for c in text[: n + 1]])
    t = torch.tensor(rows)
    return t[:, :-1], t[:, 1:]


def bags(step: int, batch: int, n: int, width: int) -> tuple[Tensor, Tensor]:
    """Bags of vectors; one in a positive bag is shifted along a fixed direction."""
    g = rng(step, 6)
    x = torch.randn(batch, n, width, generator=g)
    y = torch.randint(2, (batch,), generator=g).float()
    direction = torch.randn(width, generator=rng(0, 7))
    at = torch.randint(n, (batch,), generator=g)
    x[torch.arange(batch), at] += y[:, None] * 4 * direction / direction.norm() * math.sqrt(2)
    return x, y


def waves(step: int, batch: int, n: int, ahead: int = 4) -> tuple[Tensor, Tensor]:
    """Sums of two sines with noise, and how they go on."""
    g = rng(step, 8)
    t = torch.arange(n + ahead).float()
    f = 0.15 + 0.5 * torch.rand(batch, 2, 1, generator=g)
    p = 6.28 * torch.rand(batch, 2, 1, generator=g)
    x = torch.sin(f * t + p).sum(1) + 0.05 * torch.randn(batch, n + ahead, generator=g)
    return x[:, :n], x[:, n:]


def _entropy(q: Tensor, k: Tensor, mask: Any, causal: bool, scale: float | None) -> float:
    with torch.no_grad():
        if k.shape[1] != q.shape[1]:
            k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        s = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if causal:
            s = s.masked_fill(torch.ones(s.shape[-2:]).triu(1).bool(), -1e9)
        if mask is not None:
            s = s.masked_fill(~mask, -1e9) if mask.dtype == torch.bool else s + mask
        p = s.float().softmax(-1)
        n = (p > 0).sum(-1)
        rows = torch.special.entr(p).sum(-1)[n > 1] / n[n > 1].log()
        return float(rows.mean()) if rows.numel() else 0.0


def fused(make: Callable[[], Training]) -> list[list[float]]:
    """Entropies of every fused attention: at the first step, halfway and at the last."""
    torch.manual_seed(0)
    training = make()
    found: list[list[float]] = []
    original = F.scaled_dot_product_attention

    def call(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **more: Any,
    ) -> Tensor:
        found[-1].append(_entropy(query, key, attn_mask, is_causal, scale))
        return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)

    for step in range(training.steps):
        if step in (0, training.steps // 2, training.steps - 1):
            found.append([])
            with (
                mock.patch.object(F, "scaled_dot_product_attention", call),
                torch.random.fork_rng(),
            ):
                training.loss_at(step)
        training.step(training, step)
    return found


def fused_uniform(make: Callable[[], Training], entropy: float, margin: float) -> Symptom:
    """Fused attention never leaves the uniform, and the loss ends that much above the twin's."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        worse = learns_less(margin)(run, twin)
        lowest = min(min(e) for e in fused(make))
        return {**worse, "is": worse["is"] and lowest >= entropy, "entropy": lowest}

    return symptom


def fused_peaked(make: Callable[[], Training], entropy: float, margin: float) -> Symptom:
    """Some fused attention is on one entry from the start; the loss ends above the twin's."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        worse = learns_less(margin)(run, twin)
        lowest = max(min(e) for e in fused(make))
        return {**worse, "is": worse["is"] and lowest <= entropy, "entropy": lowest}

    return symptom


def uniform(entropy: float, margin: float) -> Symptom:
    """All softmaxes stay near the uniform, and the loss ends that much above the twin's."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        worse = learns_less(margin)(run, twin)
        lowest = min(min(c.entropies) for c in run.checkpoints)
        return {**worse, "is": worse["is"] and lowest >= entropy, "entropy": lowest}

    return symptom
