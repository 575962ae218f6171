"""The gradient is there, and the weights stay where they are."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from analyses.faults import setups
from analyses.faults.case import Fault, Variant
from analyses.faults.symptoms import unmoved
from analyses.faults.training import Training


def learning_rate(lr: float) -> Callable[[Training], None]:
    def change(training: Training) -> None:
        for group in training.optimizer.param_groups:
            group["lr"] = lr

    return change


def group_rate(lr: float, like: str) -> Callable[[Training], None]:
    """A parameter group of its own, with a learning rate that lacks its zeros."""

    def change(training: Training) -> None:
        old = training.optimizer
        named = list(training.model.named_parameters())
        defaults = dict(old.defaults)
        groups: list[dict[str, Any]] = [
            {"params": [p for n, p in named if like in n], "lr": lr},
            {"params": [p for n, p in named if like not in n]},
        ]
        training.optimizer = type(old)(groups, **defaults)

    return change


def zero_before_step(training: Training) -> None:
    """`zero_grad(set_to_none=False)` between backward() and step()."""

    def step(training: Training, number: int) -> dict[str, Any]:
        loss = training.loss_at(number)
        loss.backward()
        training.optimizer.zero_grad(set_to_none=False)
        training.optimizer.step()
        return {"loss": loss.detach()}

    training.step = step


def integer_schedule(training: Training) -> None:
    """A schedule whose factor is a whole-number division: 0 from the first step on."""
    training.schedule = torch.optim.lr_scheduler.LambdaLR(training.optimizer, lambda n: n // 1000)


FAULT = Fault(
    "no-update",
    must=[["no-update"]],
    symptom=unmoved(1e-6),
    variants=[
        Variant("mlp-lr-0", setups.mlp, learning_rate(0.0)),
        Variant("conv-lr-1e-12", setups.conv, learning_rate(1e-12)),
        Variant("transformer-adam-lr-1e-11", setups.transformer, learning_rate(1e-11)),
        Variant("gru-clip-1e-12",
                partial(setups.cell, "gru", optimizer="momentum", lr=0.2, on="majority"),
                lambda t: setattr(t, "clip", 1e-12),
                # A cell that never learns forgets as it did at first.
                may=["vanishing-gradient"]),
        Variant("mlp-zeroed-before-step", partial(setups.mlp, depth=2), zero_before_step,
                # Parameters whose gradient is always 0, seen otherwise.
                may=["vanishing-gradient"]),
        Variant("residual-mlp-integer-schedule",
                partial(setups.residual_mlp, optimizer="adam", lr=1e-3), integer_schedule),
        Variant("conv-group-without-rate",
                partial(setups.conv, depth=3, optimizer="adam", lr=1e-3),
                group_rate(1e-13, "blocks"),
                symptom=unmoved(1e-6, "blocks")),
        Variant("pool-sgd-lr-1e-11", partial(setups.pool, optimizer="sgd", lr=0.5),
                learning_rate(1e-11),
            # Uniform attention passes on 1/n, and stays as it is.
            may=["vanishing-gradient", "diffuse-softmax"]),
    ],
)  # fmt: skip
