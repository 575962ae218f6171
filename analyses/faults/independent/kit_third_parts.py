"""Data and loops that the cases of wiring share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from analyses.faults.observe import Observed
from analyses.faults.training import Batch, Training

Batches = Callable[[int], Batch]


@cache
def digits_data() -> tuple[Tensor, Tensor]:
    """All digits as (n, 1, 8, 8) of mean 0 and variance 1, and their labels."""
    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)[:, None]
    return (x - x.mean()) / x.std(), torch.tensor(found.target, dtype=torch.int64)


def rng(step: int, salt: int = 0) -> torch.Generator:
    """A generator of its own for every step."""
    return torch.Generator().manual_seed(100_003 * (salt + 1) + step)


def digits(size: int = 64, *, flat: bool = False, salt: int = 0) -> Batches:
    """Batches of digits with their labels."""

    def batch(step: int) -> Batch:
        x, y = digits_data()
        at = torch.randint(len(x), (size,), generator=rng(step, salt))
        return (x[at].flatten(1) if flat else x[at]), y[at]

    return batch


def blobs(size: int = 16, side: int = 16, *, noise: float = 0.5, salt: int = 0) -> Batches:
    """Noisy images of one bright disc each, and the mask of the disc."""

    def batch(step: int) -> Batch:
        g = rng(step, salt)
        centre = side * (0.2 + 0.6 * torch.rand(size, 2, 1, 1, generator=g))
        radius = side * (0.12 + 0.2 * torch.rand(size, 1, 1, generator=g))
        at = torch.arange(side).float()
        squares = (at[:, None] - centre[:, 0]) ** 2 + (at[None] - centre[:, 1]) ** 2
        mask = (squares < radius**2).float()[:, None]
        return mask - 0.2 + noise * torch.randn(mask.shape, generator=g), mask

    return batch


def grammar(size: int = 16, length: int = 24, words: int = 20, *, salt: int = 0) -> Batches:
    """Token sequences in which the next one mostly follows from the last two."""

    def batch(step: int) -> Batch:
        g = rng(step, salt)
        x = torch.randint(words, (size, length + 1), generator=g)
        for t in range(2, length + 1):
            follows = (3 * x[:, t - 1] + x[:, t - 2] // 4 + 1) % words
            keeps = torch.rand(size, generator=g) < 0.9
            x[:, t] = torch.where(keeps, follows, x[:, t])
        return x[:, :-1], x[:, 1:]

    return batch


def training(
    model: nn.Module,
    batch: Batches,
    loss: Callable[..., Tensor],
    optimizer: str = "adam",
    lr: float = 2e-3,
    *,
    held: Iterable[nn.Parameter] | None = None,
    steps: int = 150,
    every: int = 5,
) -> Training:
    """A run whose optimizer is given by name; it holds the model's parameters or `held`."""
    parameters = list(model.parameters() if held is None else held)
    return Training(
        model, batch, loss, optimizer_of(parameters, optimizer, lr), steps=steps, every=every
    )


def optimizer_of(parameters: list[nn.Parameter], name: str, lr: float) -> torch.optim.Optimizer:
    """An optimizer by its name."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr)
    if name == "momentum":
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=lr)
    if name == "adagrad":
        return torch.optim.Adagrad(parameters, lr=lr)
    return torch.optim.Adam(parameters, lr=lr)


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of logits (n, classes) or (n, length, classes)."""
    return nn.functional.cross_entropy(model(x).flatten(0, -2), y.flatten())


def starved(share: float = 1e-3) -> Callable[[Observed, Observed | None], dict[str, object]]:
    """One module of several called with a tensor always gets that share of its gradient or less.

    The twin's modules never get as little at every step looked at, by a factor of ten.
    """

    def largest(run: Observed) -> float:
        return max(min(c.edge_shares, default=math.inf) for c in run.checkpoints)

    def symptom(run: Observed, twin: Observed | None) -> dict[str, object]:
        found, theirs = largest(run), largest(twin) if twin else math.inf
        return {"is": found <= share and theirs > 10 * share, "share": found, "twin": theirs}

    return symptom


def cancels(agreement: float = 0.1) -> Callable[[Observed, Observed | None], dict[str, object]]:
    """Gradients of the modules called with one tensor always cancel, and the run learns less."""

    def largest(run: Observed) -> float:
        return max(min(c.agreement, default=9.0) for c in run.checkpoints)

    def kept(run: Observed) -> float:
        return run.loss_last / run.loss_first

    def symptom(run: Observed, twin: Observed | None) -> dict[str, object]:
        assert twin is not None, "needs a twin"
        found, theirs = largest(run), largest(twin)
        return {
            "is": found <= agreement < theirs / 2 and kept(run) > kept(twin) + 0.1,
            "agreement": found,
            "twin": theirs,
            "kept": kept(run),
            "twin_kept": kept(twin),
        }

    return symptom


class Causal(nn.Module):
    """Self-attention by hand; causal if asked for."""

    def __init__(self, width: int, heads: int = 2, *, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        split = (n, length, self.heads, width // self.heads)
        q, k, v = (t.view(split).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        logits = q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5
        if self.causal:
            later = torch.ones(length, length, dtype=torch.bool).triu(1)
            logits = logits.masked_fill(later, -math.inf)
        mixed: Tensor = logits.softmax(-1) @ v
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return out


def mlp(*widths: int, between: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with an activation in between."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        layers += [between()] * (i > 0) + [nn.Linear(a, b)]
    return nn.Sequential(*layers)
