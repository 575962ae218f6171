"""tanh and sigmoid units at their ends, where the derivative is next to 0."""

from functools import partial

import torch
from torch import Tensor, nn

from analyses.faults import data, nets, setups
from analyses.faults.case import Change, Fault, Variant
from analyses.faults.symptoms import saturated
from analyses.faults.training import Training


def weights_times(factor: float, like: str = "", *, head: bool = False) -> Change:
    """Multiply weights by a factor, those of the output layer only if asked for."""

    def change(training: Training) -> None:
        matrices = [(n, p) for n, p in training.model.named_parameters() if p.ndim > 1]
        with torch.no_grad():
            for name, weight in matrices if head else matrices[:-1]:
                if like in name:
                    weight.mul_(factor)

    return change


class Gated(nn.Module):
    """h' = g · h + (1 − g) · tanh(U h), g = σ(W h), several times: a highway network."""

    def __init__(self, inputs: int, width: int, layers: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.updates = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.sigmoid, self.tanh = nn.Sigmoid(), nn.Tanh()
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        for gate, update in zip(self.gates, self.updates, strict=True):
            g = self.sigmoid(gate(h))
            h = g * h + (1 - g) * self.tanh(update(h))
        return self.head(h)


def highway(layers: int = 3, width: int = 32) -> Training:
    torch.manual_seed(0)
    model = Gated(64, width, layers, 10)
    return setups.assemble(model, data.digits(), optimizer="sgd", lr=0.1)


def gate_biases(value: float) -> Change:
    def change(training: Training) -> None:
        with torch.no_grad():
            for gate in training.model.gates:  # type: ignore[union-attr]
                gate.weight.mul_(40)
                gate.bias.fill_(value)

    return change


tanh = partial(setups.mlp, activation=nn.Tanh, lr=0.05)

FAULT = Fault(
    "saturated",
    must=[["saturated-activation"]],
    # A derivative of 0 is a gradient that doesn't arrive.
    may=["vanishing-gradient", "no-update"],
    symptom=saturated(0.5),
    variants=[
        Variant("tanh-mlp-3-large-init", partial(tanh, depth=3), weights_times(20)),
        Variant(
            "sigmoid-mlp-2-large-init",
            partial(setups.mlp, depth=2, activation=nn.Sigmoid, lr=0.5),
            weights_times(60),
        ),
        Variant(
            "lstm-cell-large-init",
            partial(setups.cell, "lstm", on="majority", length=15),
            weights_times(30, "cell"),
            # LSTMCell's gates are one fused operation: nothing shows them; deep in time too.
            may=["vanishing-gradient", "no-update", "exploding-gradient"],
        ),
        Variant(
            "attention-latent-large-init",
            partial(setups.arrows, "sla", layers=2),
            weights_times(25, "from_"),
            # tanh at its ends makes latents of ±1 whose scores are large.
            may=["vanishing-gradient", "no-update", "peaked-softmax"],
        ),
        Variant(
            "tanh-conv-4-large-init",
            partial(setups.conv, depth=4, activation=nn.Tanh),
            weights_times(25),
        ),
        Variant(
            "highway-gates", highway, gate_biases(0.0), may=["vanishing-gradient", "no-update"]
        ),
        Variant(
            "sigmoid-output-regression",
            lambda: bounded(1.0),
            broken=lambda: bounded(200.0),
            # Weights 200 times too large enlarge the gradient by as much on its way back.
            may=["vanishing-gradient", "no-update", "exploding-gradient"],
        ),
        Variant(
            "hardtanh-mlp-3-large-init",
            partial(setups.mlp, depth=3, activation=nn.Hardtanh, lr=0.05),
            weights_times(15),
            may=["vanishing-gradient", "no-update", "dead-units"],
        ),
    ],
)


def bounded(scale: float) -> Training:
    """Pixels by σ(output): the sigmoid's input is `scale` times too large."""
    torch.manual_seed(0)
    model = nn.Sequential(*nets.mlp([64, 32, 64]), nn.Sigmoid())

    def loss(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        return (model(x) - (x > 0).float()).square().mean()

    with torch.no_grad():
        model[-2].weight.mul_(scale)  # type: ignore[operator]
    return setups.assemble(model, data.digits(), loss, optimizer="sgd", lr=1.0)
