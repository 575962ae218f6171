"""Data and small networks that several of the tenth set's modules train."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from analyses.faults.observe import Observed
from analyses.faults.symptoms import Evidence, Symptom, learns_less
from analyses.faults.training import Batch


def sampled(*tensors: Tensor, size: int, seed: int = 0) -> Callable[[int], Batch]:
    """Random rows of the tensors, the same for the same step."""

    def batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(seed * 100_003 + step)
        rows = torch.randint(len(tensors[0]), (size,), generator=generator)
        return tuple(t[rows] for t in tensors)

    return batch


def digits() -> tuple[Tensor, Tensor]:
    """Pixels 0..16 as they come, and the classes."""
    data = load_digits()
    pixels = torch.tensor(data.data, dtype=torch.float32)
    return pixels, torch.tensor(data.target, dtype=torch.int64)


def scaled_digits() -> tuple[Tensor, Tensor]:
    """Pixels of mean 0 and deviation 1, and the classes."""
    pixels, classes = digits()
    return (pixels - pixels.mean()) / pixels.std(), classes


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of a classifier's logits, or of a language model's at every position."""
    logits = model(x)
    return nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten())


def squared_error(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return nn.functional.mse_loss(model(x), y)


def sentences(count: int, length: int, symbols: int, seed: int = 0) -> Tensor:
    """Chains of a made-up grammar: each symbol has three successors, one of them likely."""
    generator = torch.Generator().manual_seed(seed)
    after = torch.stack([torch.randperm(symbols, generator=generator)[:3] for _ in range(symbols)])
    now = torch.randint(symbols, (count,), generator=generator)
    out = [now]
    for _ in range(length - 1):
        pick = torch.multinomial(torch.tensor([0.8, 0.15, 0.05]), count, True, generator=generator)
        now = after[now, pick]
        out.append(now)
    return torch.stack(out, 1)


def worse_and(margin: float, holds: Callable[[Observed], tuple[str, float, bool]]) -> Symptom:
    """The loss ends that much above the twin's, and something else holds, too."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        evidence = learns_less(margin)(run, twin)
        name, value, is_so = holds(run)
        return {**evidence, "is": evidence["is"] and is_so, name: value}

    return symptom
