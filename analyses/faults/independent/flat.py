"""Runs whose loss stays where it was, for different reasons."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_parts import (
    Residual,
    classify,
    conv,
    digits,
    fit,
    keywords,
    mlp,
    next_token,
    regress,
    seeded,
    shapes,
)
from analyses.faults.observe import Observed
from analyses.faults.symptoms import (
    dead_units,
    learns_less,
    no_gradient_before,
    overshoots,
    unmoved,
)
from analyses.faults.training import Batch, Training


class Reader(nn.Module):
    """A transformer of library layers that reads from a mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 48)
        layer = nn.TransformerEncoderLayer(48, 4, 96, 0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.read = nn.Linear(48, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.read(self.layers(self.embed(tokens)).amax(1))


def _rising(step: int) -> float:
    return min(1.0, (step + 1) / 30)


def _whole(step: int) -> float:
    return min(1.0, (step + 1) // 1000)


def warm_up(whole: bool = False) -> Training:
    """A rate that rises linearly over its first steps; divided as integers, it is 0 in them."""
    torch.manual_seed(51)
    training = fit(Reader(), keywords, classify, lr=1e-3, how=torch.optim.AdamW)
    training.schedule = torch.optim.lr_scheduler.LambdaLR(
        training.optimizer, _whole if whole else _rising
    )
    return training


def _cleared(training: Training, step: int) -> dict[str, Any]:
    loss = training.loss_at(step)
    loss.backward()
    training.optimizer.zero_grad()
    training.optimizer.step()
    return {"loss": loss.detach()}


def order(cleared: bool = False) -> Training:
    """A CNN; the gradients may be cleared between the backward pass and the step."""
    torch.manual_seed(52)
    model = nn.Sequential(
        conv(1, 16), conv(16, 32, 2), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(128, 3)
    )
    momentum = partial(torch.optim.SGD, momentum=0.9)
    training = fit(model, shapes, classify, lr=0.02, steps=100, how=momentum)
    if cleared:
        training.step = _cleared
    return training


class Predictor(nn.Module):
    """A language model of one LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 32)
        self.recur = nn.LSTM(32, 64, batch_first=True)
        self.read = nn.Linear(64, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.read(self.recur(self.embed(tokens))[0])


def _forced(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        guess = model(x)
    # "element 0 of tensors does not require grad" was answered so:
    return F.cross_entropy(guess.flatten(0, 1), y.flatten()).requires_grad_()


def forced(wrong: bool = False) -> Training:
    """A language model; the loss, computed without a graph, is made to require a gradient."""
    torch.manual_seed(53)
    return fit(Predictor(), next_token, _forced if wrong else classify, lr=3e-3, steps=120)


def _below(step: int) -> Batch:
    g = seeded(step, 51)
    x = torch.randn(64, 12, generator=g)
    y = -1.5 + 0.8 * torch.tanh(x[:, :2].sum(-1)) * torch.cos(x[:, 2])
    return x, y.unsqueeze(1)


def positive(last: bool = False) -> Training:
    """Regression to log-probabilities; a ReLU may come after the output, too."""
    torch.manual_seed(54)
    layers = [*mlp(12, 64, 64, 1, act=nn.ReLU)] + ([nn.ReLU()] if last else [])
    return fit(nn.Sequential(*layers), _below, regress, lr=2e-3, steps=200)


def _houses(raw: bool, step: int) -> Batch:
    g = seeded(step, 52)
    z = torch.randn(64, 5, generator=g)
    price = (0.8 * z[:, 0] + 0.5 * torch.tanh(2 * z[:, 1]) + 0.4 * z[:, 2] * z[:, 3]).unsqueeze(1)
    scale = torch.tensor([600.0, 25.0, 90.0, 30.0, 8000.0])
    middle = torch.tensor([1800.0, 1970.0, 400.0, 60.0, 45000.0])
    return (z * scale + middle if raw else z), price


def houses(raw: bool = False) -> Training:
    """Prices from area, year, distances and income, standardised or in their units."""
    torch.manual_seed(55)
    model = mlp(5, 48, 48, 1, act=nn.Tanh)
    return fit(model, partial(_houses, raw), regress, lr=2e-3, steps=300)


def large_rate(lr: float = 1e-3) -> Training:
    """A residual network for digits under Adam."""
    torch.manual_seed(56)
    model = nn.Sequential(
        nn.Conv2d(1, 24, 3, 2, 1),
        Residual(24),
        Residual(24),
        nn.Flatten(),
        nn.Linear(24 * 16, 96),
        nn.ReLU(),
        nn.Linear(96, 10),
    )
    return fit(model, digits, classify, lr=lr, steps=120)


def _raw_input(run: Observed, twin: Observed | None) -> dict[str, Any]:
    """The first layer's values are at their ends for the twin's reason only: the data's units."""
    at_ends = [max(c.saturated.values()) for c in run.checkpoints]
    worse = learns_less(0.1)(run, twin)
    return {**worse, "is": worse["is"] and min(at_ends) > 0.9, "saturated": min(at_ends)}


FLAT = Fault(
    "ind-flat",
    [],
    [
        Variant(
            "warm-up-in-integers",
            warm_up,
            broken=partial(warm_up, whole=True),
            must=[["no-update"]],
            symptom=unmoved(0.0),
        ),
        Variant(
            "cleared-before-step",
            order,
            broken=partial(order, cleared=True),
            must=[["no-update"]],
            symptom=unmoved(0.0),
        ),
        # Nothing has a gradient, so nothing moves.
        Variant(
            "loss-made-to-require",
            forced,
            broken=partial(forced, wrong=True),
            must=[["detached"]],
            may=["no-update"],
            symptom=no_gradient_before("read"),
        ),
        # Once the output is 0 for all data, no layer has a gradient, and none moves.
        Variant(
            "relu-on-output",
            positive,
            broken=partial(positive, last=True),
            must=[["dead-units"]],
            may=["no-update", "vanishing-gradient"],
            symptom=dead_units(0.9),
        ),
        # Most units of the first layer are at their ends, where the gradient ends, too.
        Variant(
            "raw-units",
            houses,
            broken=partial(houses, raw=True),
            must=[["unscaled-input", "saturated-activation"]],
            may=["vanishing-gradient"],
            symptom=_raw_input,
        ),
        # The large steps switch off more than half of a layer's units.
        Variant(
            "large-rate",
            large_rate,
            broken=partial(large_rate, lr=0.3),
            must=[["update-too-large"]],
            may=["dead-units"],
            symptom=overshoots(),
        ),
    ],
)

FAULTS: list[Fault] = [FLAT]
