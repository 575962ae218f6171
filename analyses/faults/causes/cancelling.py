"""Two paths out of a tensor ask for opposite changes."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults import data, nets, setups
from analyses.faults.case import Fault, Variant
from analyses.faults.symptoms import edges_cancel
from analyses.faults.training import Training


class Twins(nn.Module):
    """f(h) − g(h)."""

    def __init__(self, width: int, *, conv: bool = False) -> None:
        super().__init__()
        self.trunk: nn.Module = (
            nn.Sequential(
                nn.Conv2d(1, width // 16, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten()
            )
            if conv
            else nn.Sequential(nn.Linear(64, width), nn.ReLU())
        )
        self.plus = nets.mlp([width, width, 10])
        self.minus = nets.mlp([width, width, 10])

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x)
        return self.plus(h) - self.minus(h)


def twins(alike: bool, width: int = 32, conv: bool = False) -> Training:
    """With `alike`, g is made 0.97 · f after every step, as a target network is kept up to date."""
    torch.manual_seed(0)
    model = Twins(width, conv=conv)
    training = setups.assemble(model, data.digits(image=conv), optimizer="sgd", lr=0.1, steps=150)
    if not alike:
        return training
    ordinary = training.step

    def follow() -> None:
        with torch.no_grad():
            for mine, theirs in zip(model.minus.parameters(), model.plus.parameters(), strict=True):
                mine.copy_(0.985 * theirs)  # of two layers: 0.97 of the function

    def step(training: Training, number: int) -> dict[str, Any]:
        logged = ordinary(training, number)
        follow()
        return logged

    follow()
    training.step = step
    return training


class TwoHeads(nn.Module):
    """A shared trunk and two heads."""

    def __init__(self, trunk: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.one, self.two = nn.Linear(width, outputs), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.one(h), self.two(h)


def opposed(sign: float, width: int = 32, depth: int = 2, lr: float = 0.5) -> Training:
    """Two regressions from one trunk with the same, fixed read-out; targets y and sign · y."""
    torch.manual_seed(0)
    trunk: nn.Module = nn.Sequential(nets.mlp([8, *[width] * depth]), nn.Tanh())
    model = TwoHeads(trunk, width, 4)
    with torch.no_grad():
        model.two.weight.copy_(model.one.weight)
        for head in (model.one, model.two):
            head.bias.zero_()
        for p in list(trunk.parameters())[-2:]:
            p.mul_(0.05)  # outputs are small beside the targets
    for head in (model.one, model.two):
        head.requires_grad_(False)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        one, two = model(x)
        return F.mse_loss(one, y) + F.mse_loss(two, sign * y)

    batch = data.regression(outputs=4)
    return setups.assemble(model, batch, loss, optimizer="sgd", lr=lr, steps=400, every=10)


def reversal(sign: float, width: int = 32) -> Training:
    """Two classifiers on one trunk, the second with a sign error in its loss."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    model = TwoHeads(trunk, width, 10)
    with torch.no_grad():
        model.two.weight.copy_(model.one.weight)
        model.two.bias.copy_(model.one.bias)
    for head in (model.one, model.two):
        head.requires_grad_(False)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        one, two = model(x)
        return F.cross_entropy(one, y) + sign * 0.98 * F.cross_entropy(two, y)

    return setups.assemble(model, data.digits(), loss, optimizer="sgd", lr=0.1)


class Undone(nn.Module):
    """Every block adds f(x) and takes off `back` · f(x) again: one function, called twice."""

    def __init__(self, width: int, blocks: int, back: float) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.adds = nn.ModuleList(nets.mlp([width, width, width]) for _ in range(blocks))
        self.head = nn.Linear(width, 10)
        self.back = back

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for add in self.adds:
            x = add(x) - self.back * add(x)
        return self.head(x)


def undone(back: float, blocks: int = 1, width: int = 32) -> Training:
    torch.manual_seed(0)
    return setups.assemble(Undone(width, blocks, back), data.digits(), optimizer="sgd", lr=0.05)


FAULT = Fault(
    "cancelling",
    must=[["cancelling-fork"]],
    # What is left over is a small part of either path's gradient: the trunk gets little.
    may=["vanishing-gradient", "no-update"],
    symptom=edges_cancel(0.1),
    variants=[
        Variant("twins-mlp", partial(twins, False), broken=partial(twins, True)),
        Variant("opposed-regressions", partial(opposed, 1.0), broken=partial(opposed, -1.0)),
        Variant("reversed-loss", partial(reversal, 1.0), broken=partial(reversal, -1.0)),
        Variant("undone-1", partial(undone, -0.95), broken=partial(undone, 0.95)),
        Variant(
            "twins-conv",
            partial(twins, False, width=96, conv=True),
            broken=partial(twins, True, width=96, conv=True),
        ),
        Variant(
            "opposed-regressions-wide",
            partial(opposed, 1.0, width=96, depth=1, lr=2.0),
            broken=partial(opposed, -1.0, width=96, depth=1, lr=2.0),
        ),
    ],
)
