"""The gradient decays with depth or time, so that the early layers learn next to nothing."""

from functools import partial

import torch
from torch import nn

from analyses.faults import data, nets, setups
from analyses.faults.case import Change, Fault, Variant
from analyses.faults.symptoms import decays
from analyses.faults.training import Training


def small_weights(gain: float) -> Change:
    """Every matrix drawn anew, N(0, gain²/fan_in)."""
    return lambda training: nets.rescale(training.model, gain)


def forgetful(radius: float) -> Change:
    """The recurrent matrix shrunk: what came before fades."""

    def change(training: Training) -> None:
        with torch.no_grad():
            for name, weight in training.model.named_parameters():
                if "recurrent.weight" in name or "weight_hh" in name:
                    weight.mul_(radius)

    return change


def plain_transformer(depth: int, skip: bool) -> Training:
    """Post-norm left out with the residuals: attention and feed-forward, one into the other."""
    return setups.transformer(depth=depth, norm="none", skip=skip, lr=1e-3)


def autoencoder(activation: nets.Activation, gain: float | None) -> Training:
    torch.manual_seed(0)
    model = nets.mlp([64, 48, 40, 32, 24, 24, 32, 40, 48, 64], activation)
    if gain is not None:
        nets.rescale(model, gain)
    return setups.assemble(model, data.digits(), setups.reconstruction, optimizer="sgd", lr=0.1)


deep = partial(setups.mlp, optimizer="sgd", lr=0.05)

# Attention that gets no gradient stays uniform (diffuse-softmax), passes on 1/n to what lies behind
# it (starved-pathway), and is the only way back (softmax-borne).
UNIFORM = ["no-update", "diffuse-softmax", "softmax-borne", "starved-pathway"]

FAULT = Fault(
    "vanishing",
    must=[["vanishing-gradient"]],
    # Early weights that get 10⁻⁶ of a gradient don't move in float32.
    may=["no-update"],
    symptom=decays(2),
    variants=[
        Variant(
            "sigmoid-mlp-8",
            healthy=partial(deep, depth=8, gain=1.4),
            broken=partial(deep, depth=8, activation=nn.Sigmoid),
        ),
        Variant(
            "plain-conv-10",
            healthy=partial(setups.conv, depth=10),
            change=small_weights(0.5),
            # Without biases to learn, deep channels have one sign for all samples.
            may=["no-update", "dead-units"],
        ),
        Variant(
            "tanh-mlp-12-small-init",
            healthy=partial(deep, depth=12, activation=nn.Tanh, gain=1.2),
            change=small_weights(0.45),
        ),
        Variant(
            "rnn-cell-40-tanh",
            healthy=partial(setups.cell, "gru"),
            broken=partial(setups.cell, "tanh", length=40, radius=0.5),
        ),
        Variant(
            # A vector is all that layers hand on (information-bottleneck).
            "attention-chain-6",
            healthy=partial(setups.arrows, "sla", layers=6),
            # Where it has learned to point, half of the latent states are at tanh's ends.
            healthy_may=["saturated-activation"],
            broken=partial(setups.arrows, "san-chain", layers=6),
            may=[*UNIFORM, "information-bottleneck"],
            symptom=decays(2, "from_query"),
        ),
        Variant(
            "transformer-8-no-skip",
            healthy=partial(plain_transformer, 8, True),
            broken=partial(plain_transformer, 8, False),
            may=UNIFORM,
        ),
        Variant(
            "sigmoid-autoencoder",
            healthy=partial(autoencoder, nn.ReLU, 1.4),
            broken=partial(autoencoder, nn.Sigmoid, None),
            healthy_at_info=[],
        ),
        Variant(
            "gelu-mlp-16-small-init",
            healthy=partial(deep, depth=16, activation=nn.GELU, gain=1.5),
            change=small_weights(0.7),
        ),
        Variant(
            "relu-rnn-30-forgetful",
            healthy=partial(setups.cell, "relu"),
            broken=partial(setups.cell, "relu", length=30, radius=0.6),
            # A state that fades to the bias's sign is 0 where that is negative.
            may=["no-update", "dead-units"],
        ),
        Variant(
            # One fused module: its time steps are not visible from outside.
            "fused-rnn-50-tanh",
            healthy=partial(setups.sequence, nn.GRU),
            change=None,
            broken=partial(setups.sequence, nn.RNN, length=50),
        ),
        Variant(
            "attention-chain-8-anchored",
            broken=partial(setups.arrows, "san-chain", layers=8, hidden=24),
            may=[*UNIFORM, "information-bottleneck"],
            symptom=decays(2, "from_query"),
        ),
        Variant(
            "sigmoid-conv-6",
            healthy=partial(setups.conv, depth=6, skip=True, norm=True),
            broken=partial(setups.conv, depth=6, activation=nn.Sigmoid, gain=None),
        ),
    ],
)
