"""The graph is cut by accident: what lies before the cut never learns."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from analyses.faults import data, setups
from analyses.faults.case import Fault, Variant
from analyses.faults.symptoms import no_gradient_before
from analyses.faults.training import Training


def cut(where: str, how: Callable[[Tensor], Tensor]) -> Callable[[Training], None]:
    """Replace a module's output by what `how` makes of it."""

    def change(training: Training) -> None:
        module = training.model.get_submodule(where)
        module.register_forward_hook(lambda m, given, out: how(out))

    return change


def without_grad(where: str) -> Callable[[Training], None]:
    """A module runs under torch.no_grad(), left over from an evaluation."""

    def change(training: Training) -> None:
        module = training.model.get_submodule(where)
        usual: Callable[..., Any] = module.forward

        def forward(*given: Tensor) -> Any:
            with torch.no_grad():
                return usual(*given)

        module.forward = forward

    return change


def rewrapped(out: Tensor) -> Tensor:
    """`torch.tensor(x.tolist())`: a new tensor, with no history."""
    return torch.tensor(out.tolist(), dtype=out.dtype)


class TwoTowers(nn.Module):
    """Image and text encoders whose product is a score; which of 8 images fits?"""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width))
        self.right = nn.Sequential(nn.Embedding(10, width), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.left(x) @ self.right(torch.arange(10)).T
        return scores


def towers() -> Training:
    torch.manual_seed(0)
    return setups.assemble(TwoTowers(), data.digits(), lr=3e-3)


FAULT = Fault(
    "detached",
    must=[["detached"]],
    # The same parameters, seen from the optimizer: they have no gradient and don't move.
    may=["no-update"],
    symptom=no_gradient_before(),
    variants=[
        Variant("mlp-detach", partial(setups.mlp, depth=3), cut("3", Tensor.detach)),
        Variant(
            "conv-data",
            setups.conv,
            cut("blocks.2", lambda out: out.data),
            # What follows reads features that never adapt to it.
            may=["no-update", "dead-units"],
        ),
        Variant(
            "gru-cell-numpy",
            partial(setups.cell, "gru", on="majority"),
            # The cell never gets a gradient: the head alone learns.
            cut("cell", lambda out: torch.from_numpy(out.detach().numpy().copy())),
        ),
        Variant("transformer-no-grad-block", setups.transformer, without_grad("blocks.1")),
        Variant("residual-mlp-tensor-again", setups.residual_mlp, cut("blocks.3", rewrapped),
                # A residual's identity still carries the gradient: only the branch is cut off.
                symptom=no_gradient_before("blocks.3")),
        Variant("two-towers-detached", towers, cut("right", Tensor.detach)),
        Variant("mlp-8-no-grad-layer", partial(setups.mlp, depth=8, gain=1.4), without_grad("8")),
        Variant("pool-query-detached", setups.pool, cut("key", Tensor.detach),
                symptom=no_gradient_before("key")),
        Variant("sla-layer-detached", partial(setups.arrows, "sla", layers=3),
                cut("cells", Tensor.detach), symptom=no_gradient_before("cells")),
        Variant("lstm-cell-no-grad", partial(setups.cell, "lstm", on="majority"),
                without_grad("cell")),
    ],
)  # fmt: skip
