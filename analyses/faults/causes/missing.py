"""Trainable parameters that no optimizer holds."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from analyses.faults import data, setups
from analyses.faults.case import Fault, Variant
from analyses.faults.symptoms import left_out
from analyses.faults.training import Training


def only(keep: Callable[[str], bool]) -> Callable[[Training], None]:
    """Give the optimizer some of the parameters."""

    def change(training: Training) -> None:
        old = training.optimizer
        kept = [p for n, p in training.model.named_parameters() if keep(n)]
        training.optimizer = type(old)(kept, **old.defaults)

    return change


def new_head(training: Training) -> None:
    """The head is replaced for a new task, after the optimizer was made."""
    head = training.model.head
    assert isinstance(head, nn.Linear)
    training.model.head = nn.Linear(head.in_features, head.out_features)


def initialised_again(name: str) -> Callable[[Training], None]:
    """A parameter is replaced by a new one, after the optimizer was made."""

    def change(training: Training) -> None:
        module = training.model.get_submodule(name)
        weight = module.weight
        assert isinstance(weight, Tensor)
        module.weight = nn.Parameter(weight.detach().clone())

    return change


class Listed(nn.Module):
    """Hidden layers in a Python list: `parameters()` doesn't know them."""

    def __init__(self, depth: int, width: int = 32, *, registered: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        layers = [nn.Linear(width, width) for _ in range(depth)]
        self.layers = nn.ModuleList(layers) if registered else layers
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


def listed(depth: int, registered: bool) -> Training:
    torch.manual_seed(0)
    model = Listed(depth, registered=registered)
    return setups.assemble(model, data.digits(), optimizer="sgd", lr=0.1)


FAULT = Fault(
    "missing",
    must=[["not-in-optimizer"]],
    # They don't move, of course.
    may=["no-update"],
    symptom=left_out(),
    variants=[
        Variant("mlp-last-layer-only", setups.mlp, only(lambda n: n.startswith("6"))),
        Variant("conv-new-head", setups.conv, new_head),
        Variant("transformer-blocks-forgotten", setups.transformer,
                only(lambda n: not n.startswith("blocks"))),
        Variant("residual-mlp-no-biases-no-stem", setups.residual_mlp,
                only(lambda n: "bias" not in n and "stem" not in n)),
        Variant("gru-cell-forgotten", partial(setups.cell, "gru"),
                only(lambda n: n.startswith("head")),
            # A cell that never learns forgets as it did at first.
            may=["no-update", "vanishing-gradient"],
        ),
        Variant("mlp-weight-made-anew", partial(setups.mlp, depth=4, optimizer="adam", lr=1e-3),
                initialised_again("2")),
        Variant("list-of-layers", partial(listed, 2, True), broken=partial(listed, 2, False)),
        Variant("pool-query-forgotten", setups.pool, only(lambda n: n != "query")),
    ],
)  # fmt: skip
