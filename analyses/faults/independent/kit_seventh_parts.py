"""Data, and a look at the gradient of a tensor by who reads it, for models made of parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from analyses.faults.case import Symptom, Variant
from analyses.faults.training import Training


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 8, 8), centred and of unit variance, and their labels."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None]
    return (images - images.mean()) / images.std(), torch.tensor(found.target)


def some(step: int, size: int, among: int = 1797) -> Tensor:
    """Indices of a step's batch."""
    return torch.randint(among, (size,), generator=torch.Generator().manual_seed(step + 17))


def digit_batch(step: int, size: int = 48) -> tuple[Tensor, Tensor]:
    """A step's images and labels."""
    images, labels = digits()
    rows = some(step, size)
    return images[rows], labels[rows]


def generator(step: int) -> torch.Generator:
    """Of a step's data."""
    return torch.Generator().manual_seed(1000 + step)


def edges(training: Training, step: int, place: str) -> list[Tensor]:
    """What each reader of a module's output hands back to it, one gradient per reader."""
    module = training.model.get_submodule(place)
    outputs: list[Tensor] = []

    def keep(m: Any, given: Any, out: Any) -> None:
        outputs.append(out[0] if isinstance(out, tuple) else out)

    handle = module.register_forward_hook(keep)
    state = torch.random.get_rng_state()
    loss = training.loss_at(step)
    handle.remove()
    source = outputs[0].grad_fn
    found: list[Tensor] = []
    seen: set[Any] = set()
    handles = []

    def reads(which: int) -> Callable[[Any, Any], None]:
        def hook(inputs: Any, outputs: Any) -> None:
            if inputs[which] is not None:
                found.append(inputs[which].detach().reshape(-1).clone())

        return hook

    todo = [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for which, (below, _) in enumerate(node.next_functions):
            if below is source:
                handles.append(node.register_hook(reads(which)))
            todo.append(below)
    leaves = [p for p in training.model.parameters() if p.requires_grad]
    torch.autograd.grad(loss, leaves, allow_unused=True)
    torch.random.set_rng_state(state)
    return found


def _over_time(
    make: Callable[[], Training], place: str, measure: Callable[[list[Tensor]], float]
) -> list[float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training = make()
    found = [measure(edges(training, 0, place))]
    for step in range(training.steps // 2):
        training.step(training, step)
        if step in (9, training.steps // 2 - 1):
            found.append(measure(edges(training, step + 1, place)))
    return found


def _share(readers: list[Tensor]) -> float:
    norms = torch.stack([g.norm() for g in readers])
    return float(norms.min() / norms.square().sum().sqrt())


def _agreement(readers: list[Tensor]) -> float:
    norms = torch.stack([g.norm() for g in readers])
    return float(torch.stack(readers).sum(0).norm() / norms.square().sum().sqrt())


def starves(make: Callable[..., Training], place: str, limit: float = 1e-3) -> Symptom:
    """One reader of the output of `place` hands back next to nothing of its gradient."""

    def symptom(run: Any, twin: Any) -> dict[str, Any]:
        found = max(_over_time(partial(make, faulty=True), place, _share))
        theirs = min(_over_time(partial(make, faulty=False), place, _share))
        return {"is": found <= limit < theirs, "share": found, "twin_share": theirs,
                "loss": run.loss_last, "twin": twin.loss_last}  # fmt: skip

    return symptom


def cancels(make: Callable[..., Training], place: str, limit: float = 0.1) -> Symptom:
    """What the readers of the output of `place` hand back nearly sums to nothing."""

    def symptom(run: Any, twin: Any) -> dict[str, Any]:
        found = max(_over_time(partial(make, faulty=True), place, _agreement))
        theirs = min(_over_time(partial(make, faulty=False), place, _agreement))
        return {"is": found <= limit < theirs, "agreement": found, "twin_agreement": theirs,
                "loss": run.loss_last, "twin": twin.loss_last}  # fmt: skip

    return symptom


def pair(name: str, make: Callable[..., Training], **more: Any) -> Variant:
    """A variant from a function that makes the run with and without its fault."""
    return Variant(
        name, healthy=partial(make, faulty=False), broken=partial(make, faulty=True), **more
    )
