"""Data and small helpers of the runs about parts left out, cut off or rightly still."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.observe import Observed
from analyses.faults.training import Batch, Training


def seeded(step: int, salt: int = 0) -> torch.Generator:
    """The randomness of one step's batch."""
    return torch.Generator().manual_seed(100_003 * salt + step + 1)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    return (images - images.mean()) / images.std(), torch.tensor(found.target)


def digits(step: int, n: int = 64) -> Batch:
    """Images (n, 1, 8, 8) of handwritten digits, standardised, and their classes."""
    images, labels = _digits()
    chosen = torch.randint(len(labels), (n,), generator=seeded(step, 1))
    return images[chosen], labels[chosen]


def flat_digits(step: int, n: int = 64) -> Batch:
    """The same as vectors (n, 64)."""
    images, labels = digits(step, n)
    return images.flatten(1), labels


def shapes(step: int, n: int = 24, size: int = 16) -> Batch:
    """Noisy images with one square, disc or cross: image, class, mask."""
    g = seeded(step, 2)
    kind = torch.randint(3, (n,), generator=g)
    centre = torch.randint(5, size - 5, (n, 2), generator=g).float()
    radius = torch.randint(2, 5, (n,), generator=g).float()[:, None, None]
    at = torch.arange(size).float()
    dy = (at[None, :, None] - centre[:, :1, None]).abs()
    dx = (at[None, None, :] - centre[:, 1:, None]).abs()
    square = torch.maximum(dx, dy) <= radius
    disc = dx.square() + dy.square() <= radius.square()
    cross = (torch.minimum(dx, dy) <= 0.5) & (torch.maximum(dx, dy) <= radius)
    several = torch.stack([square.expand(n, size, size), disc, cross], 1)
    mask = several[torch.arange(n), kind].float()
    image = mask + 0.3 * torch.randn(n, size, size, generator=g) - 0.2
    return image.unsqueeze(1), kind, mask.unsqueeze(1)


@cache
def _transitions(vocabulary: int) -> Tensor:
    g = torch.Generator().manual_seed(11)
    return (2.5 * torch.randn(vocabulary, vocabulary, generator=g)).softmax(-1)


def text(step: int, n: int = 24, length: int = 20, vocabulary: int = 20) -> Tensor:
    """Tokens (n, length) of a made-up language: a Markov chain with few likely successors."""
    g = seeded(step, 3)
    table = _transitions(vocabulary)
    tokens = [torch.randint(vocabulary, (n,), generator=g)]
    for _ in range(length - 1):
        tokens.append(torch.multinomial(table[tokens[-1]], 1, generator=g)[:, 0])
    return torch.stack(tokens, 1)


def next_token(step: int, n: int = 24, length: int = 20, vocabulary: int = 20) -> Batch:
    """Text and the same one further on."""
    tokens = text(step, n, length + 1, vocabulary)
    return tokens[:, :-1], tokens[:, 1:]


def keywords(step: int, n: int = 48, length: int = 12, vocabulary: int = 30) -> Batch:
    """Token sequences with one of four keywords somewhere, and which one it is."""
    g = seeded(step, 4)
    tokens = torch.randint(4, vocabulary, (n, length), generator=g)
    label = torch.randint(4, (n,), generator=g)
    tokens[torch.arange(n), torch.randint(length, (n,), generator=g)] = label
    return tokens, label


def waves(step: int, n: int = 32, length: int = 48) -> Batch:
    """Noisy series (n, 1, length) of a slow and a fast wave, and (frequency, amplitude)."""
    g = seeded(step, 5)
    frequency = 0.05 + 0.2 * torch.rand(n, 1, generator=g)
    amplitude = 0.5 + torch.rand(n, 1, generator=g)
    phase = 6.28 * torch.rand(n, 1, generator=g)
    series = amplitude * torch.sin(6.28 * frequency * torch.arange(length) + phase)
    series = series + 0.1 * torch.randn(n, length, generator=g)
    target = torch.cat([(frequency - 0.15) / 0.058, (amplitude - 1) / 0.29], 1)
    return series.unsqueeze(1), target


def bumps(step: int, n: int = 64, features: int = 8, noise: float = 0.1) -> Batch:
    """Regression: standard normal features, a smooth non-linear target of unit size."""
    g = seeded(step, 6)
    x = torch.randn(n, features, generator=g)
    y = torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.5 * x[:, 3].square() - 0.5
    return x, (y + noise * torch.randn(n, generator=g)).unsqueeze(1)


def graphs(step: int, n: int = 16, nodes: int = 14) -> Batch:
    """Graphs of two communities: features, adjacency normalised by degree, node classes."""
    g = seeded(step, 7)
    side = torch.randint(2, (n, nodes), generator=g)
    same = side[:, :, None] == side[:, None, :]
    edge = torch.rand(n, nodes, nodes, generator=g) < torch.where(same, 0.7, 0.12)
    edge = (edge | edge.transpose(1, 2) | torch.eye(nodes, dtype=torch.bool)).float()
    hint = (2.0 * side - 1).unsqueeze(-1) * torch.tensor([0.6, 0.4, 0.0, 0.0])
    features = hint + torch.randn(n, nodes, 4, generator=g)
    return features, edge / edge.sum(-1, keepdim=True), side


def classify(model: nn.Module, x: Tensor, y: Tensor, *_: Tensor) -> Tensor:
    """Cross-entropy of classes, of a whole example or of each token."""
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def regress(model: nn.Module, x: Tensor, y: Tensor, *_: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(model(x), y)


def rebuild(model: nn.Module, x: Tensor, *_: Tensor) -> Tensor:
    """Squared error of a reconstruction."""
    return F.mse_loss(model(x), x)


def fit(
    model: nn.Module,
    batch: Callable[[int], Batch],
    loss: Callable[..., Tensor],
    *,
    lr: float = 1e-3,
    steps: int = 150,
    every: int = 5,
    how: Any = torch.optim.Adam,
    held: Any = None,
    **more: Any,
) -> Training:
    """A run of all parameters, or of those given in `held`."""
    optimizer = how(model.parameters() if held is None else held, lr=lr)
    return Training(model, batch, loss, optimizer, steps=steps, every=every, **more)


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with an activation between."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


def conv(a: int, b: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    """Two convolutions around which the input is carried."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = conv(width, width)
        self.two = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.two(self.one(x)))


def idle(*like: str) -> Callable[[Observed, Observed | None], dict[str, Any]]:
    """Matrices called so have a gradient of 0 or none throughout; the twin's do have one."""

    def largest(run: Observed, part: str) -> float:
        return max((v for c in run.checkpoints for n, v in c.norms.items() if part in n), default=0)

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        found = max(largest(run, part) for part in like)
        theirs = min(largest(twin, part) for part in like) if twin else 1.0
        worse = {"loss": run.loss_last, "twin_loss": twin.loss_last} if twin else {}
        return {"is": found == 0 < theirs, "gradient": found, "twin": theirs, **worse}

    return symptom
