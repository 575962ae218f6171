"""A part of the model that the loss does not depend on.

Modules that a task does not use are common, so that a report at severity info is right here. By
which name is a matter of view: the part has no path to the loss ("detached") and does not move
("no-update").
"""

from functools import partial

import torch
from torch import Tensor, nn

from analyses.faults import data, nets, setups
from analyses.faults.case import Change, Fault, Variant
from analyses.faults.symptoms import some_without_gradient
from analyses.faults.training import Training


class Heads(nn.Module):
    """A trunk and two classifiers of some depth; `parts` tells which of them are returned."""

    def __init__(self, trunk: nn.Module, width: int, *, both: bool, depth: int = 1) -> None:
        super().__init__()
        self.trunk = trunk
        self.main = nets.mlp([width, *[width] * depth, 10])
        self.auxiliary = nets.mlp([width, *[width] * depth, 10])
        self.both = both

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x)
        main, auxiliary = self.main(h), self.auxiliary(h)
        return main + 0.3 * auxiliary if self.both else main


def heads(both: bool, width: int = 32, conv: bool = False, depth: int = 1) -> Training:
    torch.manual_seed(0)
    trunk: nn.Module = (
        nn.Sequential(nn.Conv2d(1, width // 16, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten())
        if conv
        else nn.Sequential(nn.Linear(64, width), nn.ReLU())
    )
    model = Heads(trunk, width, both=both, depth=depth)
    return setups.assemble(model, data.digits(image=conv), optimizer="sgd", lr=0.1)


def overwritten(at: int) -> Change:
    """A block's output is replaced by its input's (a variable's name mixed up)."""

    def change(training: Training) -> None:
        block = training.model.blocks[at]  # type: ignore[index]
        assert isinstance(block, nn.Module)
        training.model.stem_output = None  # type: ignore[assignment]
        block.register_forward_hook(lambda m, given, out: given[0])

    return change


def first_position_only(training: Training) -> None:
    """The loss looks at the embedding of the first position, not at the model's output."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = model(x)
        embedded = model.head(model.embed(x))  # type: ignore[operator]
        return nn.functional.cross_entropy((embedded + 0 * out.detach()).flatten(0, 1), y.flatten())

    training.loss = loss


FAULT = Fault(
    "unused",
    must=[["detached", "no-update"]],
    at_info=["detached", "no-update"],
    symptom=some_without_gradient(),
    variants=[
        Variant("auxiliary-head", partial(heads, True), broken=partial(heads, False)),
        Variant("conv-block-skipped", setups.conv, overwritten(2)),
        Variant("transformer-bypassed", setups.transformer, first_position_only),
        Variant("conv-auxiliary-head", partial(heads, True, width=96, conv=True),
                broken=partial(heads, False, width=96, conv=True)),
        Variant("deep-auxiliary-head", partial(heads, True, width=24, depth=3),
                broken=partial(heads, False, width=24, depth=3)),
        Variant("transformer-block-skipped", partial(setups.transformer, depth=3, on="marked"),
                overwritten(1)),
    ],
)  # fmt: skip
