"""The gradient grows with depth or time."""

from functools import partial

import torch
from torch import nn

from analyses.faults import nets, setups
from analyses.faults.case import Change, Fault, Variant
from analyses.faults.symptoms import grows
from analyses.faults.training import Training


def large_weights(gain: float) -> Change:
    return lambda training: nets.rescale(training.model, gain)


def growing(radius: float) -> Change:
    """The recurrent matrix is scaled to this spectral radius."""

    def change(training: Training) -> None:
        with torch.no_grad():
            for name, weight in training.model.named_parameters():
                if "recurrent.weight" in name or "weight_hh" in name:
                    weight.mul_(radius / torch.linalg.eigvals(weight).abs().max())

    return change


FAULT = Fault(
    "exploding",
    must=[["exploding-gradient"]],
    # A gradient that large throws weights about (update-too-large) and kills units (dead-units),
    # or ends beyond float32 (non-finite).
    may=["update-too-large", "dead-units", "non-finite"],
    symptom=grows(2),
    variants=[
        Variant(
            "relu-mlp-12-big-init",
            healthy=partial(setups.mlp, depth=12, gain=1.4, optimizer="sgd", lr=0.02),
            broken=partial(setups.mlp, depth=12, gain=3.0, optimizer="sgd", lr=1e-7),
        ),
        Variant(
            "relu-rnn-30-radius-1.4",
            healthy=partial(setups.cell, "relu", length=20, lr=1e-3),
            broken=partial(setups.cell, "relu", length=30, radius=1.4, lr=1e-3),
        ),
        Variant(
            "conv-10-big-init",
            healthy=partial(setups.conv, depth=10, gain=1.4, optimizer="adam", lr=1e-3),
            change=large_weights(3.0),
        ),
        Variant(
            "residual-mlp-12-big-init",
            healthy=partial(setups.residual_mlp, blocks=12, optimizer="adam", lr=1e-3),
            change=large_weights(2.0),
        ),
        Variant(
            # Saturation goes with it: tanh's inputs are large.
            "tanh-rnn-30-radius-3",
            healthy=partial(setups.cell, "tanh", length=20, on="majority", lr=2e-3),
            broken=partial(setups.cell, "tanh", length=30, on="majority", radius=3.0, lr=2e-3),
            may=["update-too-large", "non-finite", "saturated-activation"],
        ),
        Variant(
            "gelu-mlp-10-big-init-adam",
            healthy=partial(
                setups.mlp, depth=10, gain=1.5, activation=nn.GELU, optimizer="adam", lr=1e-3
            ),
            change=large_weights(4.0),
        ),
        Variant(
            "linear-net-16",
            healthy=partial(setups.mlp, depth=16, gain=1.0, activation=nn.Identity, lr=0.01),
            broken=partial(setups.mlp, depth=16, gain=2.0, activation=nn.Identity, lr=1e-9),
        ),
        Variant(
            "transformer-6-no-norm-big-init",
            healthy=partial(setups.transformer, depth=6, lr=1e-3),
            broken=lambda: _unnormalised(),
            # Logits that large make attention one-hot, and queries and keys behind it starve.
            may=[
                "update-too-large",
                "non-finite",
                "peaked-softmax",
                "starved-pathway",
                "no-update",
            ],
        ),
    ],
)


def _unnormalised() -> Training:
    training = setups.transformer(depth=6, norm="none", lr=1e-3)
    nets.rescale(training.model, 2.0)
    return training
