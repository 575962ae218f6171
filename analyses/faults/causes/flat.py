"""The loss does not fall, and the gradient shows why: on the way it is 0."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults import setups
from analyses.faults.case import Fault, Variant
from analyses.faults.causes.detached import cut
from analyses.faults.symptoms import zero_gradient
from analyses.faults.training import Training


def all_zero(training: Training) -> None:
    """Every weight starts at 0: all gradients but the last bias's are 0 for ever."""
    with torch.no_grad():
        for p in training.model.parameters():
            p.zero_()


def clamped(training: Training) -> None:
    """Outputs clamped to [0, 1] before a squared error, out of range: no slope."""
    usual = training.batch
    training.batch = lambda step: (usual(step)[0], usual(step)[1] + 5)
    with torch.no_grad():
        training.model[-1].bias.add_(3.0)  # type: ignore[index]

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x).clamp(0, 1), y)

    training.loss = loss


def hinge_met(training: Training) -> None:
    """A margin of the wrong sign: the loss is 0 from the first step on."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        scores = model(x)
        right = scores.gather(1, y.unsqueeze(1))
        return (scores - right - 1000).clamp(min=0).mean()

    training.loss = loss


FAULT = Fault(
    "flat",
    # A gradient of exactly 0 can be told by what does not move or by where it stops (a step
    # function is as good as a detach).
    must=[["no-update", "detached"]],
    # Nothing arrives at the early layers.
    may=["vanishing-gradient"],
    symptom=zero_gradient(),
    variants=[
        Variant("mlp-all-zero", partial(setups.mlp, depth=3), all_zero,
                may=["vanishing-gradient", "dead-units"]),  # every unit gives 0
        Variant("conv-rounded", setups.conv, cut("blocks.3", lambda h: h.round())),
        Variant("regression-clamped", partial(setups.mlp, on="regression", lr=0.02), clamped),
        Variant("residual-mlp-rounded", setups.residual_mlp, cut("head", lambda h: h.round())),
        Variant("transformer-all-zero", setups.transformer, all_zero,
                # Logits of 0 are uniform attention; branches of 0 carry nothing.
                may=["vanishing-gradient", "diffuse-softmax", "starved-pathway"]),
        Variant("mlp-hinge-met", partial(setups.mlp, depth=2, lr=0.02), hinge_met),
    ],
)  # fmt: skip
