"""Rectified units that give 0 for every sample: no gradient reaches what feeds them."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from analyses.faults import setups
from analyses.faults.case import Change, Fault, Variant
from analyses.faults.symptoms import dead_units
from analyses.faults.training import Training


def biases(value: float, *, share: float = 1.0, like: str = "") -> Callable[[Training], None]:
    """Set the hidden layers' biases (a share of them) to a value."""

    def change(training: Training) -> None:
        layers = [
            (name, m)
            for name, m in training.model.named_modules()
            if isinstance(m, nn.Linear | nn.Conv2d) and name.endswith(like)
        ]
        with torch.no_grad():
            for name, layer in layers:
                if name.endswith("head") or (layer is layers[-1][1] and not like):
                    continue
                assert layer.bias is not None
                layer.bias[: round(share * len(layer.bias))] = value

    return change


def jolt(factor: float, at: int = 20) -> Callable[[Training], None]:
    """One step with a learning rate that is far too large, as a bad batch would make it."""

    def change(training: Training) -> None:
        ordinary = training.step

        def step(training: Training, number: int) -> dict[str, object]:
            group = training.optimizer.param_groups[0]
            usual = group["lr"]
            group["lr"] = usual * (factor if number == at else 1)
            logged = ordinary(training, number)
            group["lr"] = usual
            return logged

        training.step = step

    return change


def negative_weights(share: float) -> Change:
    """Most channels of every block are drawn below 0, and what they read is never below 0."""

    def change(training: Training) -> None:
        with torch.no_grad():
            for name, weight in training.model.named_parameters():
                if name.startswith("blocks") and weight.ndim == 4:
                    some = weight[: round(share * len(weight))]
                    some.copy_(-some.abs())

    return change


def shifted_inputs(training: Training) -> None:
    """All inputs positive and all first weights negative: sums far below 0."""
    batch = training.batch
    training.batch = lambda step: (batch(step)[0] + 4, *batch(step)[1:])
    with torch.no_grad():
        next(training.model.parameters()).abs_().neg_()


FAULT = Fault(
    "dead-units",
    must=[["dead-units"]],
    # What feeds only dead units has a gradient of exactly 0, and does not move.
    may=["no-update", "vanishing-gradient"],
    symptom=dead_units(0.5),
    variants=[
        Variant("mlp-3-negative-bias", partial(setups.mlp, depth=3), biases(-3.0, share=0.9)),
        Variant("conv-4-negative-bias", partial(setups.conv), biases(-20.0, share=0.8)),
        Variant(
            "transformer-ff-negative-bias",
            lambda: _relu_transformer(),
            biases(-6.0, share=0.9, like="ff.0"),
        ),
        Variant(
            # The jolt itself is an update that is too large.
            "mlp-4-one-huge-step",
            partial(setups.mlp, depth=4),
            jolt(5000),
            may=["no-update", "vanishing-gradient", "update-too-large", "exploding-gradient"],
        ),
        Variant(
            # Nothing of the model's output depends on its input any more.
            "mlp-2-shifted-inputs",
            partial(setups.mlp, depth=2, lr=0.05),
            shifted_inputs,
        ),
        Variant(
            "conv-6-negative-weights",
            partial(setups.conv, depth=6, gain=1.4),
            negative_weights(0.8),
        ),
        Variant(
            "regression-large-lr",
            partial(setups.mlp, depth=2, width=64, on="regression", lr=0.02),
            broken=partial(setups.mlp, depth=2, width=64, on="regression", lr=1.0),
            may=["no-update", "vanishing-gradient", "update-too-large", "exploding-gradient"],
        ),
        Variant(
            "residual-mlp-negative-bias",
            partial(setups.residual_mlp, blocks=3),
            biases(-20.0, like=".0"),
            # All branches dead: their edges carry nothing.
            may=["no-update", "vanishing-gradient", "starved-pathway"],
        ),
    ],
)


def _relu_transformer() -> Training:
    training = setups.transformer(depth=2)
    for block in training.model.blocks:  # type: ignore[union-attr]
        block.ff[1] = nn.ReLU()
    return training
