"""One training run of the corpus: model, batches, loss, optimizer and the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gradscope

Batch = tuple[Tensor, ...]


@dataclass
class Training:
    """Everything that makes a run. Changing an attribute is how a fault gets in.

    Attributes:
        model: what is trained.
        batch: step → the step's tensors; the same for the same step.
        loss: (model, *batch) → the loss.
        optimizer: what steps.
        steps: optimizer steps.
        every: record every n-th step.
        step: (training, step) → scalars to log; makes one optimizer step.
        schedule: stepped after the optimizer.
        watch: asks the open scope for more than it records by default.
        clip: largest norm of the gradient; None for no clipping.
    """

    model: nn.Module
    batch: Callable[[int], Batch]
    loss: Callable[..., Tensor]
    optimizer: torch.optim.Optimizer
    steps: int = 200
    every: int = 5
    step: Callable[[Training, int], dict[str, Any]] = field(default_factory=lambda: ordinary)
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    watch: Callable[[gradscope.Scope, Training], None] | None = None
    clip: float | None = None
    others: list[torch.optim.Optimizer] = field(default_factory=list)  # step after the first

    def loss_at(self, step: int) -> Tensor:
        """The loss of a step's batch."""
        return self.loss(self.model, *self.batch(step))


def ordinary(training: Training, step: int) -> dict[str, Any]:
    """One step of the loop that everybody writes."""
    loss = training.loss_at(step)
    loss.backward()
    if training.clip is not None:
        nn.utils.clip_grad_norm_(training.model.parameters(), training.clip)
    training.optimizer.step()
    training.optimizer.zero_grad()
    if training.schedule is not None:
        lr = training.schedule.get_last_lr()[0]
        training.schedule.step()
        return {"loss": loss.detach(), "lr": lr}
    return {"loss": loss.detach()}


def record(make: Callable[[], Training], out: Path, name: str) -> None:
    """Train, recorded into a file."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training = make()
    optimizers = [training.optimizer, *training.others]
    with gradscope.attach(
        training.model, optimizer=optimizers, out=out, every=training.every, name=name
    ) as scope:
        if training.watch is not None:
            training.watch(scope, training)
        for step in range(training.steps):
            scope.log(**training.step(training, step))
