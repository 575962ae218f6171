"""Data and a short way to write a training, for the fifth set's units, data and precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.observe import Observed
from analyses.faults.training import Batch, Training


@cache
def digits() -> tuple[Tensor, Tensor]:
    """The handwritten digits, pixels from 0 to 1, and their labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)


def seeded(step: int) -> torch.Generator:
    """A step's own source of chance."""
    return torch.Generator().manual_seed(5000 + step)


def of(
    *tensors: Tensor, size: int = 64, like: Callable[[Tensor], Tensor] | None = None
) -> Callable[[int], Batch]:
    """Batches drawn from tensors; `like` changes the first one."""

    def batch(step: int) -> Batch:
        rows = torch.randint(len(tensors[0]), (size,), generator=seeded(step))
        first, *others = (t[rows] for t in tensors)
        return (like(first) if like else first, *others)

    return batch


def centred(x: Tensor) -> Tensor:
    """Pixels with about mean 0 and variance 1."""
    return (x - 0.305) / 0.376


def image(x: Tensor) -> Tensor:
    """Centred pixels as images of one channel."""
    return centred(x).view(-1, 1, 8, 8)


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(model(x), y)


def regress(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(model(x).squeeze(-1), y)


def rebuild(model: nn.Module, x: Tensor, *_: Any) -> Tensor:
    """Mean squared error of what comes back."""
    return F.mse_loss(model(x), x)


def train(
    model: nn.Module,
    batch: Callable[[int], Batch],
    loss: Callable[..., Tensor],
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
    **options: Any,
) -> Training:
    """A training; options of the training by name, the others are the optimizer's."""
    own = {k: options.pop(k) for k in ("steps", "every", "step", "clip") if k in options}
    options.setdefault("lr", 1e-3)
    return Training(model, batch, loss, optimizer(model.parameters(), **options), **own)


def worse(run: Observed, twin: Observed | None) -> dict[str, float]:
    """The two final losses."""
    return {"loss": run.loss_last, "twin_loss": twin.loss_last} if twin else {}


class Attends(nn.Module):
    """Reads a sequence with one transformer block of ReLU and answers from its mean."""

    def __init__(self, given: int, width: int, answers: int, hidden: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Linear(given, width)
        self.place = nn.Parameter(0.1 * torch.randn(length, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.head = nn.Linear(width, answers)

    def forward(self, x: Tensor) -> Tensor:
        """Answers from (batch, length, given)."""
        h = self.embed(x) + self.place
        q, k, v = self.qkv(self.before(h)).chunk(3, -1)
        weights = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1)
        h = h + self.out(weights @ v)
        h = h + self.down(torch.relu(self.up(self.between(h))))
        return self.head(h.mean(1))


def net(training: Training) -> Any:
    """The model, to be reached into."""
    return training.model
