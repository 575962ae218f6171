"""Inputs that nobody scaled."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from analyses.faults import setups
from analyses.faults.case import Fault, Variant
from analyses.faults.symptoms import learns_less
from analyses.faults.training import Training


def inputs(function: Callable[[Tensor], Tensor]) -> Callable[[Training], None]:
    def change(training: Training) -> None:
        usual = training.batch
        training.batch = lambda step: (function(usual(step)[0]), *usual(step)[1:])

    return change


def one_feature(factor: float) -> Callable[[Training], None]:
    """A feature in other units: income beside age."""

    def function(x: Tensor) -> Tensor:
        factors = torch.ones(x.shape[-1])
        factors[3] = factor
        return x * factors

    return inputs(function)


FAULT = Fault(
    "unscaled",
    must=[["unscaled-input"]],
    # Large sums: units saturate or die, gradients of the first layer are large, and so are steps.
    may=[
        "saturated-activation",
        "dead-units",
        "exploding-gradient",
        "update-too-large",
        "vanishing-gradient",
        "peaked-softmax",
        "non-finite",
    ],
    symptom=learns_less(0.05),
    variants=[
        Variant("mlp-times-1000", setups.mlp, inputs(lambda x: 1000 * x)),
        Variant("conv-0-to-25500", setups.conv, inputs(lambda x: 4000 * (x + 1))),
        Variant(
            "mlp-one-feature-1e4",
            partial(setups.mlp, on="teacher", lr=0.3),
            one_feature(1e4),
        ),
        Variant("gru-times-1000", partial(setups.cell, "gru", on="majority", length=15),
                inputs(lambda x: 1000 * x + 3000)),
        Variant("residual-mlp-times-1000", setups.residual_mlp, inputs(lambda x: 1000 * x)),
        Variant("regression-offset-1000", partial(setups.mlp, on="regression", lr=0.05),
                inputs(lambda x: x + 1000)),
        Variant("transformer-times-1000",
                partial(setups.transformer, on="marked", norm="none", lr=1e-3),
                inputs(lambda x: 1000 * x)),
        Variant("mlp-adam-offset-300", partial(setups.mlp, depth=2, optimizer="adam", lr=1e-3),
                inputs(lambda x: x + 300)),
    ],
)  # fmt: skip
