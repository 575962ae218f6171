"""Tasks, losses and measurements that the attention cases share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Symptom
from analyses.faults.training import Batch, Training

Batches = Callable[[int], Batch]


def dice(step: int, salt: int = 0) -> torch.Generator:
    """A generator of its own for every step."""
    return torch.Generator().manual_seed(100_003 * salt + step)


def recall(pairs: int = 16, keys: int = 40, values: int = 10, size: int = 64) -> Batches:
    """Pairs of a key and a value, a key asked for → its value."""

    def batch(step: int) -> Batch:
        g = dice(step, 1)
        k = torch.rand(size, keys, generator=g).argsort(1)[:, :pairs]
        v = torch.randint(values, (size, pairs), generator=g)
        at = torch.randint(pairs, (size, 1), generator=g)
        return k, v, k.gather(1, at).squeeze(1), v.gather(1, at).squeeze(1)

    return batch


def pointers(n: int = 12, symbols: int = 8, size: int = 32) -> Batches:
    """Every place points at another one, whose symbol is its answer."""

    def batch(step: int) -> Batch:
        g = dice(step, 2)
        to = torch.randint(n, (size, n), generator=g)
        symbol = torch.randint(symbols, (size, n), generator=g)
        return to, symbol, symbol.gather(1, to)

    return batch


def reversal(n: int = 12, symbols: int = 8, size: int = 32) -> Batches:
    """A sequence → the same one, backwards."""

    def batch(step: int) -> Batch:
        x = torch.randint(symbols, (size, n), generator=dice(step, 3))
        return x, x.flip(1)

    return batch


def delayed(n: int = 24, symbols: int = 8, back: int = 6, size: int = 32) -> Batches:
    """A sequence → at every place, the symbol some places ago."""

    def batch(step: int) -> Batch:
        x = torch.randint(symbols, (size, n), generator=dice(step, 4))
        return x, x.roll(back, 1)

    return batch


@cache
def _digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    return (
        torch.tensor(found.images, dtype=torch.float32) / 16,
        torch.tensor(found.target, dtype=torch.int64),
    )


def digits(size: int = 64) -> Batches:
    """Images of 8×8 in 0…1, and their digits."""

    def batch(step: int) -> Batch:
        images, labels = _digits()
        chosen = torch.randint(len(images), (size,), generator=dice(step, 5))
        return images[chosen], labels[chosen]

    return batch


def ce(model: nn.Module, *batch: Tensor) -> Tensor:
    """Cross-entropy of what the model makes of all but the last tensor."""
    logits = model(*batch[:-1])
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch[-1].reshape(-1))


def split(x: Tensor, heads: int) -> Tensor:
    """(batch, n, width) → (batch, heads, n, width of a head)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join(x: Tensor) -> Tensor:
    """The reverse of `split`."""
    return x.transpose(1, 2).flatten(2)


def patches(images: Tensor, side: int = 2) -> Tensor:
    """Images of 8×8 → their square patches as rows."""
    return images.unfold(1, side, side).unfold(2, side, side).flatten(3).flatten(1, 2)


def both(*symptoms: Symptom) -> Symptom:
    """All of them hold."""

    def symptom(run: Any, twin: Any) -> dict[str, Any]:
        found = [s(run, twin) for s in symptoms]
        evidence = {k: v for f in found for k, v in f.items()}
        return {**evidence, "is": all(f["is"] for f in found)}

    return symptom


def flat_attention(entropy: float) -> Symptom:
    """At each step looked at, the flattest softmax is above it, and not so at the twin's end."""

    def symptom(run: Any, twin: Any) -> dict[str, Any]:
        found = min(max(c.entropies) for c in run.checkpoints)
        evidence = {"entropy": found, "twin": max(twin.last.entropies)}
        return {**evidence, "is": found >= entropy > evidence["twin"]}

    return symptom


def funnel(make: Callable[[], Training], first: str, second: str, share: float) -> Symptom:
    """The second attention's output depends on the first's by few directions only.

    The rank of the Jacobian, over the number of values that the first attention hands on.
    """

    def symptom(run: Any, twin: Any) -> dict[str, Any]:
        training = make()
        kept: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, given: Any, out: Any) -> None:
                out = out[0] if isinstance(out, tuple) else out
                kept.setdefault(name, out)

            return hook

        for name in (first, second):
            training.model.get_submodule(name).register_forward_hook(keep(name))
        training.loss_at(0)
        a, b = kept[first], kept[second]
        rows = [
            torch.autograd.grad(value, a, retain_graph=True)[0][0].flatten()
            for value in b[0].flatten()
        ]
        values = torch.linalg.svdvals(torch.stack(rows).double())
        rank = int((values > 1e-6 * values[0]).sum())
        evidence = {"rank": rank, "of": a[0].numel()}
        if twin is not None:
            evidence |= {"loss": run.loss_last, "twin_loss": twin.loss_last}
        return {**evidence, "is": rank <= share * a[0].numel()}

    return symptom
