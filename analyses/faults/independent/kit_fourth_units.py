"""Data and small helpers that the runs about units, data and precision share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from analyses.faults.case import Symptom
from analyses.faults.observe import Observed
from analyses.faults.training import Training


def drawn(*tensors: Tensor, size: int = 64) -> Callable[[int], tuple[Tensor, ...]]:
    """Step → a random batch of the rows of some tensors; the same for the same step."""

    def batch(step: int) -> tuple[Tensor, ...]:
        rows = torch.randint(len(tensors[0]), (size,), generator=seeded(9000 + step))
        return tuple(t[rows] for t in tensors)

    return batch


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def digits() -> tuple[Tensor, Tensor]:
    """8×8 images from 0 to 1, and their classes."""
    images, classes = load_digits(return_X_y=True)
    return torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(classes)


def table(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """Standard normal columns and a standardised target that depends on them smoothly."""
    g = seeded(seed)
    x = torch.randn(rows, columns, generator=g)
    a = torch.randn(columns, 6, generator=g) / math.sqrt(columns)
    y = torch.sin(2 * x @ a[:, :3]).sum(1) + (x @ a[:, 3]) * (x @ a[:, 4]) + x @ a[:, 5]
    y = y + 0.05 * torch.randn(rows, generator=g)
    return x, (y - y.mean()) / y.std()


def waves(
    rows: int, length: int, classes: int, seed: int, noise: float = 0.3
) -> tuple[Tensor, Tensor]:
    """Noisy oscillations of random phase (rows × 1 × length), to be told by frequency."""
    g = seeded(seed)
    y = torch.randint(classes, (rows,), generator=g)
    phase = 6.283 * torch.rand(rows, 1, generator=g)
    t = torch.arange(length) / length
    x = torch.sin(6.283 * (2 + 2 * y[:, None]) * t + phase)
    x = x + noise * torch.randn(rows, length, generator=g)
    return x[:, None], y


def clouds(rows: int, points: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points on a sphere, a cube, a disc or a line (rows × points × 3)."""
    g = seeded(seed)
    y = torch.randint(4, (rows,), generator=g)
    p = torch.randn(rows, points, 3, generator=g)
    ball = p / p.norm(dim=-1, keepdim=True)
    cube = p.clamp(-1, 1) / p.clamp(-1, 1).abs().amax(-1, keepdim=True)
    disc = ball * torch.tensor([1.2, 1.2, 0.1])
    line = p * torch.tensor([1.0, 0.1, 0.1])
    x = torch.stack([ball, cube, disc, line])[y, torch.arange(rows)]
    return x + 0.03 * torch.randn(rows, points, 3, generator=g), y


def phrases(rows: int, length: int, words: int, seed: int) -> Tensor:
    """Sequences in which each word mostly decides the next one."""
    g = seeded(seed)
    follows = torch.stack([torch.randperm(words, generator=g) for _ in range(2)])
    said = [torch.randint(words, (rows,), generator=g)]
    for _ in range(length - 1):
        which = (torch.rand(rows, generator=g) < 0.2).long()
        said.append(follows[which, said[-1]])
    return torch.stack(said, 1)


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), y)


def squares(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(model(x).squeeze(-1), y)


def scaled_step(
    scaler: torch.amp.GradScaler, loss_of: Callable[..., Tensor]
) -> Callable[[Training, int], dict[str, Any]]:
    """The usual loop of mixed precision: scale the loss, let the scaler step."""

    def step(training: Training, at: int) -> dict[str, Any]:
        loss = loss_of(training.model, *training.batch(at))
        scaler.scale(loss).backward()
        scaler.step(training.optimizer)
        scaler.update()
        training.optimizer.zero_grad()
        return {"loss": loss.detach()}

    return step


def raw_columns(make: Callable[[], Training], ratio: float, at: int = 0) -> Symptom:
    """Some feature's RMS is that far from 1, up or down, or its mean that far beyond its spread.

    And the run ends with a higher loss than its twin.
    """

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None, "needs a twin"
        x = make().batch(0)[at].float()
        flat = x.reshape(-1, x.shape[-1]) if x.ndim < 4 else x.reshape(-1, 1)
        size = flat.double().square().mean(0).sqrt()
        size = size[size > 0]
        found = float(torch.maximum(size.max(), 1 / size.max()))
        worse = not math.isfinite(run.loss_last) or run.loss_last > twin.loss_last * 1.2
        return {
            "is": found >= ratio and worse,
            "ratio": found,
            "loss": run.loss_last,
            "twin_loss": twin.loss_last,
        }

    return symptom
