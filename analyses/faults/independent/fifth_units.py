"""Units that are off for all data, units at their flat ends, and nets in which all is well."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Healthy, Variant
from analyses.faults.independent.kit_fifth_units import (
    Attends,
    centred,
    classify,
    digits,
    image,
    of,
    rebuild,
    regress,
    seeded,
    train,
)
from analyses.faults.symptoms import dead_units
from analyses.faults.training import Training

SPLITS = ("test",)


def _mlp() -> Training:
    torch.manual_seed(51)
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 10)
    )
    return train(model, of(*digits(), like=centred), classify, steps=240)


def _low_biases(training: Training) -> None:
    """Four fifths of the second layer start with a bias far below any sum they can get."""
    with torch.no_grad():
        training.model[2].bias[:77] = -12.0  # type: ignore[index,union-attr]


def _cnn() -> Training:
    torch.manual_seed(52)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    return train(
        model,
        of(*digits(), like=image),
        classify,
        torch.optim.SGD,
        lr=0.03,
        momentum=0.9,
        steps=150,
    )


def _low_shift(training: Training) -> None:
    """The second normalisation shifts three quarters of its channels far below zero."""
    with torch.no_grad():
        training.model[4].bias[:26] = -9.0  # type: ignore[index,union-attr]


def _rows() -> Training:
    torch.manual_seed(53)
    model = Attends(8, 48, 10, 96, 8)
    return train(
        model, of(*digits(), size=48, like=lambda x: centred(x).view(-1, 8, 8)), classify, steps=200
    )


def _low_hidden(training: Training) -> None:
    """A wrong constant in the initialisation of the hidden layer's biases."""
    with torch.no_grad():
        training.model.up.bias[:84] = -15.0  # type: ignore[index,union-attr]


def _autoencoder() -> Training:
    torch.manual_seed(54)
    model = nn.Sequential(
        nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 24), nn.Linear(24, 80), nn.ReLU(),
        nn.Linear(80, 64),
    )  # fmt: skip
    return train(model, of(*digits()), rebuild, torch.optim.RMSprop, lr=1e-3, steps=240)


def _one_sided(training: Training) -> None:
    """First weights drawn from [-a, 0] for most units, with pixels that are never negative."""
    with torch.no_grad():
        training.model[0].weight[:70].abs_().neg_()  # type: ignore[index,union-attr]
        training.model[0].bias[:70] = -0.2  # type: ignore[index,union-attr]


class Sums(nn.Module):
    """A GRU reads numbers; a hidden layer of ReLU answers."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = nn.GRU(2, 40, batch_first=True)
        self.hidden = nn.Linear(40, 64)
        self.answers = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The answer after the last number."""
        return self.answers(F.relu(self.hidden(self.reads(x)[0][:, -1])))


def _marked(step: int) -> tuple[Tensor, Tensor]:
    """Numbers of which the marked are to be added."""
    g = seeded(step)
    x = torch.randn(64, 8, generator=g)
    marks = (torch.rand(64, 8, generator=g) < 0.4).float()
    return torch.stack([x, marks], -1), (x * marks).sum(1) / 2


def _gru() -> Training:
    torch.manual_seed(55)
    return train(Sums(), _marked, regress, lr=4e-3, steps=250)


def _low_head(training: Training) -> None:
    """Most of the head's hidden units are pushed below zero; what the GRU gives is within ±1."""
    with torch.no_grad():
        training.model.hidden.bias[:52] = -7.0  # type: ignore[index,union-attr]


DEAD = Fault(
    "ind5-dead-units",
    must=[["dead-units"]],
    symptom=dead_units(0.65),
    variants=[
        Variant("mlp-biases", _mlp, _low_biases),
        Variant("cnn-normalised-shift", _cnn, _low_shift),
        Variant("transformer-hidden", _rows, _low_hidden),
        Variant("autoencoder-one-sided", _autoencoder, _one_sided),
        Variant("gru-head", _gru, _low_head),
    ],
)

FAULTS = [DEAD]
THEMES: list[Healthy] = []
