"""Tasks and the loop of the attention models in `third_attention` and `third_attention_healthy`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from analyses.faults.case import Symptom
from analyses.faults.observe import Observed
from analyses.faults.training import Batch, Training

Batches = Callable[[int], Batch]


def seeded(step: int, salt: int = 0) -> torch.Generator:
    """The generator of a step's batch."""
    return torch.Generator().manual_seed(100_003 * salt + step)


def pairs(items: int, keys: int, values: int, size: int = 64) -> Batches:
    """A list of (key, value) and a key in question: what is its value?"""

    def batch(step: int) -> Batch:
        g = seeded(step, 1)
        listed = torch.rand(size, keys, generator=g).argsort(1)[:, :items]
        held = torch.randint(values, (size, items), generator=g)
        asked = torch.randint(items, (size,), generator=g)
        rows = torch.arange(size)
        return listed, held, listed[rows, asked], held[rows, asked]

    return batch


def needles(count: int, classes: int, size: int = 64, noise: float = 0.2) -> Batches:
    """Many cells, each of some class; what is the class of the one that is marked?

    Channel 0 is the mark, the next `classes` are the class.
    """

    def batch(step: int) -> Batch:
        g = seeded(step, 2)
        kinds = torch.randint(classes, (size, count), generator=g)
        where = torch.randint(count, (size,), generator=g)
        rows = torch.arange(size)
        mark = torch.zeros(size, count, 1)
        mark[rows, where] = 1.0
        cells = torch.cat([mark * 2, F.one_hot(kinds, classes).float() * 2], -1)
        cells += noise * torch.randn(cells.shape, generator=g)
        return cells, kinds[rows, where]

    return batch


def reversal(length: int, letters: int, size: int = 64) -> Batches:
    """A word and the same word from behind."""

    def batch(step: int) -> Batch:
        source = torch.randint(letters, (size, length), generator=seeded(step, 3))
        return source, source.flip(1)

    return batch


def periodic(length: int, period: int, letters: int, size: int = 32) -> Batches:
    """Text that repeats itself: the letter to come is the one a period ago."""

    def batch(step: int) -> Batch:
        unit = torch.randint(letters, (size, period), generator=seeded(step, 4))
        text = unit.repeat(1, length // period + 2)[:, : length + 1]
        return text[:, :-1], text[:, 1:]

    return batch


def grammar(length: int, letters: int, size: int = 32) -> Batches:
    """Text in which each letter has two that may follow, one much more often."""
    follow = torch.randint(letters, (letters, 2), generator=seeded(0, 5))

    def batch(step: int) -> Batch:
        g = seeded(step, 6)
        text = [torch.randint(letters, (size,), generator=g)]
        for _ in range(length):
            rare = (torch.rand(size, generator=g) < 0.15).long()
            text.append(follow[text[-1], rare])
        whole = torch.stack(text, 1)
        return whole[:, :-1], whole[:, 1:]

    return batch


def adjacency(nodes: int, groups: int, inside: float = 0.25, across: float = 0.01) -> Tensor:
    """A graph of communities, each node its own neighbour too."""
    kind = torch.arange(nodes) % groups
    chance = torch.where(kind[:, None] == kind[None], inside, across)
    drawn = (torch.rand(nodes, nodes, generator=seeded(0, 7)) < chance).triu(1)
    return drawn | drawn.T | torch.eye(nodes, dtype=torch.bool)


def communities(nodes: int, groups: int, wide: int, noise: float = 2.0) -> Batches:
    """Noisy features of the nodes of such a graph, and the communities they are of."""
    kind = torch.arange(nodes) % groups
    centres = torch.randn(groups, wide, generator=seeded(0, 8))

    def batch(step: int) -> Batch:
        noises = torch.randn(nodes, wide, generator=seeded(step, 9))
        return (centres[kind] + noise * noises) / (1 + noise**2) ** 0.5, kind

    return batch


@cache
def _digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)
    return (images - images.mean()) / images.std(), torch.tensor(data.target)


def digits(size: int = 64) -> Batches:
    """Digits of 8 × 8, centred and scaled."""
    images, target = _digits()

    def batch(step: int) -> Batch:
        chosen = torch.randint(len(images), (size,), generator=seeded(step, 10))
        return images[chosen], target[chosen]

    return batch


def patches(side: int, size: int = 64) -> Batches:
    """The same in square patches, row by row."""
    whole = digits(size)

    def batch(step: int) -> Batch:
        images, target = whole(step)
        cut = images.unfold(1, side, side).unfold(2, side, side)
        return cut.flatten(1, 2).flatten(2), target

    return batch


def answered(model: nn.Module, *given: Tensor) -> Tensor:
    """Cross-entropy of what the model says to all but the last, which is the answer."""
    said: Any = model(*given[:-1])
    said = getattr(said, "logits", said)
    return F.cross_entropy(said.flatten(0, -2), given[-1].flatten())


def squared(model: nn.Module, *given: Tensor) -> Tensor:
    """Mean squared error of the same."""
    return F.mse_loss(model(*given[:-1]), given[-1])


def fit(
    model: nn.Module,
    batch: Batches,
    *,
    lr: float = 3e-3,
    steps: int = 200,
    every: int = 5,
    loss: Callable[..., Tensor] = answered,
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    clip: float | None = None,
    **more: Any,
) -> Training:
    """The run that trains a model on a task."""
    optimizer = kind(model.parameters(), lr=lr, **more)
    return Training(model, batch, loss, optimizer, steps=steps, every=every, clip=clip)


def stays_flat(entropy: float, margin: float = 0.1) -> Symptom:
    """At every step looked at some softmax is above it, and the loss ends higher for it.

    Higher than the twin's by that share of the loss at the start.
    """

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None, "needs a twin"
        found = min(max(c.entropies, default=0.0) for c in run.checkpoints)
        worse = run.loss_last - twin.loss_last > margin * twin.loss_first
        evidence = {"entropy": found, "loss": run.loss_last, "twin_loss": twin.loss_last}
        return {"is": found >= entropy and worse, **evidence}

    return symptom


def stays_peaked(entropy: float, margin: float = 0.1) -> Symptom:
    """From the first step on some softmax is below it, and the loss ends higher for it."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None, "needs a twin"
        found = max(min(c.entropies, default=1.0) for c in run.checkpoints)
        worse = run.loss_last - twin.loss_last > margin * twin.loss_first
        evidence = {"entropy": found, "loss": run.loss_last, "twin_loss": twin.loss_last}
        return {"is": found <= entropy and worse, **evidence}

    return symptom


class _Softmaxes(TorchFunctionMode):
    """Keeps what goes into softmaxes and what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "softmax":
            self.kept.append((args[0], out))
        return out


def narrow_between(make: Callable[[], Training], attended: int) -> Symptom:
    """The second attention's logits depend on the first's weights by a Jacobian of low rank.

    Less than an eighth of the numbers that a layer attends to, in one sample.
    """

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        training = make()
        with _Softmaxes() as seen:
            training.model(*(t[:1] for t in training.batch(0)[:-1]))
        (_, first), (second, _) = seen.kept[:2]
        rows = [
            torch.autograd.grad(one, first, retain_graph=True)[0].flatten()
            for one in second.flatten()
        ]
        sizes = torch.linalg.svdvals(torch.stack(rows).double())
        rank = int((sizes > 1e-5 * sizes[0]).sum())
        evidence: dict[str, Any] = {"rank": rank, "of": attended, "loss": run.loss_last}
        if twin is not None:
            evidence["twin_loss"] = twin.loss_last
        return {"is": rank * 8 < attended, **evidence}

    return symptom
