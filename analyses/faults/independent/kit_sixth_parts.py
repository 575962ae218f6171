"""Data, small loops and independent measurements for runs about parts and branches."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from analyses.faults.case import Make, Symptom
from analyses.faults.observe import Observed
from analyses.faults.training import Training

LOOKED_AT = (0, 20, 60)  # steps at which the gradient of a branch is looked at


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits as 64 standardised numbers, and their classes."""
    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(data.target)


def drawn(step: int, size: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A batch of digits, the same for the same step."""
    x, y = digits()
    g = torch.Generator().manual_seed(1000 * seed + step)
    i = torch.randint(len(x), (size,), generator=g)
    return x[i], y[i]


def pictures(step: int, size: int = 64) -> tuple[Tensor, Tensor]:
    """The same as images of one channel."""
    x, y = drawn(step, size)
    return x.view(-1, 1, 8, 8), y


def scenes(step: int, size: int = 24, side: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images of one disc, square or cross: image, its mask, and which shape."""
    g = torch.Generator().manual_seed(7_000 + step)
    kind = torch.randint(3, (size,), generator=g)
    centre = torch.rand(size, 2, 1, 1, generator=g) * (side - 8) + 4
    radius = 2 + torch.rand(size, 1, 1, generator=g) * 2
    rows = torch.arange(side).view(1, side, 1) - centre[:, 0]
    columns = torch.arange(side).view(1, 1, side) - centre[:, 1]
    disc = rows**2 + columns**2 <= radius**2
    square = (rows.abs() <= radius) & (columns.abs() <= radius)
    cross = ((rows.abs() < 1) | (columns.abs() < 1)) & square
    options = torch.stack([disc.expand_as(square), square, cross], 1).float()
    mask = options[torch.arange(size), kind]
    image = 1.5 * mask + 0.5 * torch.randn(mask.shape, generator=g) - 0.2
    return image.unsqueeze(1), mask, kind


def sentences(step: int, size: int = 32, length: int = 16, words: int = 20) -> Tensor:
    """Sequences in which every token is the sum of the two before, with slips, modulo `words`."""
    g = torch.Generator().manual_seed(9_000 + step)
    tokens = torch.randint(words, (size, length), generator=g)
    slips = torch.rand(size, length, generator=g) < 0.1
    for t in range(2, length):
        follows = (tokens[:, t - 1] // 2 + tokens[:, t - 2]) % words
        tokens[:, t] = torch.where(slips[:, t], tokens[:, t], follows)
    return tokens


def shares(make: Make, names: tuple[str, ...]) -> dict[str, float]:
    """Module → the largest share, at some steps, of the gradient at the tensor it reads.

    ‖what comes back through this module‖ / ‖all that comes back to the tensor‖.
    """
    torch.manual_seed(0)
    training = make()
    found: dict[str, float] = dict.fromkeys(names, 0.0)
    for step in range(max(LOOKED_AT) + 1):
        if step in LOOKED_AT:
            for name, share in _shares_now(training, step, names).items():
                found[name] = max(found[name], share)
        training.step(training, step)
    return found


def _shares_now(training: Training, step: int, names: tuple[str, ...]) -> dict[str, float]:
    state = torch.random.get_rng_state()
    reads: list[tuple[str, Tensor, Tensor]] = []

    def hook(name: str) -> Callable[..., Any]:
        def alias(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            own = given[0].view_as(given[0])
            reads.append((name, given[0], own))
            return (own, *given[1:])

        return alias

    modules = dict(training.model.named_modules())
    handles = [modules[n].register_forward_pre_hook(hook(n)) for n in names]
    loss = training.loss_at(step)
    for handle in handles:
        handle.remove()
    whole = torch.autograd.grad(
        loss, [t for _, t, _ in reads], retain_graph=True, allow_unused=True
    )
    part = torch.autograd.grad(loss, [a for _, _, a in reads], allow_unused=True)
    torch.random.set_rng_state(state)
    found: dict[str, float] = {}
    for (name, _, _), all_of_it, own in zip(reads, whole, part, strict=True):
        if all_of_it is None or not bool((all_of_it != 0).any()):
            continue
        share = 0.0 if own is None else float(own.norm() / all_of_it.norm())
        found[name] = max(found.get(name, 0.0), share)
    return found


def starves(broken: Make, names: tuple[str, ...], sound: Make, limit: float = 1e-3) -> Symptom:
    """These modules never get more than that of the gradient at what they read; the twin's do."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        mine = max(shares(broken, names).values())
        theirs = min(shares(sound, names).values())
        losses = {"loss": run.loss_last, "twin_loss": twin.loss_last if twin else math.nan}
        is_one = mine <= limit and theirs > 10 * limit
        return {"is": is_one, "share": mine, "twin": theirs, **losses}

    return symptom


def forks(loss: Tensor, wanted: list[Tensor]) -> list[tuple[str, float]]:
    """Of every tensor of the graph with several readers: ‖Σ g_e‖/√Σ‖g_e‖²."""
    arrived: dict[tuple[Any, int], list[Tensor]] = defaultdict(list)

    def hook(node: Any) -> Callable[..., None]:
        def look(given: Any, _: Any) -> None:
            for (reader, which), g in zip(node.next_functions, given, strict=False):
                if reader is not None and g is not None and not hasattr(reader, "variable"):
                    arrived[reader, which].append(g.detach().to_dense().flatten())

        return look

    seen: set[Any] = set()
    todo: list[Any] = [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        node.register_hook(hook(node))
        todo += [n for n, _ in node.next_functions]
    torch.autograd.grad(loss, wanted, allow_unused=True)
    found = []
    for (node, _), parts in arrived.items():
        several = [p for p in parts if bool((p != 0).any())]
        if len(several) > 1 and len({p.numel() for p in several}) == 1:
            size = math.hypot(*(float(p.norm()) for p in several))
            found.append((node.name(), float(torch.stack(several).sum(0).norm()) / size))
    return found


def worst_fork(make: Make) -> tuple[str, float]:
    """Where branches' gradients cancel most, and how much is left: typical of some steps."""
    torch.manual_seed(0)
    training = make()
    found = []
    for step in range(max(LOOKED_AT) + 1):
        if step in LOOKED_AT:
            state = torch.random.get_rng_state()
            trained: list[Tensor] = [p for p in training.model.parameters() if p.requires_grad]
            at = forks(training.loss_at(step), trained)
            found.append(min(at, key=lambda f: f[1], default=("none", 9.0)))
            torch.random.set_rng_state(state)
        training.step(training, step)
    return sorted(found, key=lambda f: f[1])[len(found) // 2]


def cancels(broken: Make, sound: Make | None, limit: float = 1e-2) -> Symptom:
    """At some tensor hardly anything is left of its readers' gradients; the twin has no such."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        where, left = worst_fork(broken)
        evidence: dict[str, Any] = {"at": where, "left": left, "loss": run.loss_last}
        is_one = left <= limit
        if sound is not None and twin is not None:
            evidence["twin"] = worst_fork(sound)[1]
            evidence["twin_loss"] = twin.loss_last
            is_one &= evidence["twin"] > 5 * limit
        return {"is": is_one, **evidence}

    return symptom


def disconnected(like: str) -> Symptom:
    """Parameters called so have no gradient at any step looked at, which the twin's have."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        without = [n for n in run.without_gradient if n.startswith(like)]
        theirs = [n for n in twin.without_gradient if n.startswith(like)] if twin else []
        others = set(run.without_gradient) - set(without)
        losses = {"loss": run.loss_last, "twin_loss": twin.loss_last if twin else math.nan}
        return {"is": bool(without) and not theirs, "without": len(without),
                "others": len(others), **losses}  # fmt: skip

    return symptom


def forgotten(count: int = 1) -> Symptom:
    """That many parameters of the loss's graph, or more, are in no optimizer; none of the twin's.

    A parameter that is made during the run counts from then on.
    """

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        losses = {"loss": run.loss_last, "twin_loss": twin.loss_last if twin else math.nan}
        fine = twin is None or twin.leaves_not_held == 0
        is_one = run.leaves_not_held >= count and fine
        return {"is": is_one, "left_out": run.leaves_not_held, **losses}

    return symptom


def without_any(broken: Make, like: str) -> Symptom:
    """The gradient of parameters called so is missing or exactly 0, at every step looked at."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        mine, others = _sizes(broken, like)
        losses = {"loss": run.loss_last, "twin_loss": twin.loss_last if twin else math.nan}
        return {"is": mine == 0.0 < others, "norm": mine, "others": others, **losses}

    return symptom


def _sizes(make: Make, like: str) -> tuple[float, float]:
    torch.manual_seed(0)
    training = make()
    mine = others = 0.0
    for step in range(max(LOOKED_AT) + 1):
        if step in LOOKED_AT:
            state = torch.random.get_rng_state()
            named = [(n, p) for n, p in training.model.named_parameters() if p.requires_grad]
            given = torch.autograd.grad(
                training.loss_at(step), [p for _, p in named], allow_unused=True
            )
            for (name, _), g in zip(named, given, strict=True):
                size = 0.0 if g is None else float(g.norm())
                if name.startswith(like):
                    mine = max(mine, size)
                else:
                    others = max(others, size)
            torch.random.set_rng_state(state)
        training.step(training, step)
    return mine, others
