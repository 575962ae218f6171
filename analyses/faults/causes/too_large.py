"""Steps that rewrite the weights."""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults import setups
from analyses.faults.case import Change, Fault, Variant
from analyses.faults.causes.no_update import learning_rate
from analyses.faults.symptoms import overshoots
from analyses.faults.training import Training


def summed(training: Training) -> None:
    """The loss is a sum over the batch, with a learning rate meant for its mean."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y, reduction="sum")

    training.loss = loss


def momentum(value: float) -> Change:
    def change(training: Training) -> None:
        for group in training.optimizer.param_groups:
            group["momentum"] = value

    return change


def never_zeroed(training: Training) -> None:
    """`zero_grad()` was forgotten: gradients of all steps add up."""

    def step(training: Training, number: int) -> dict[str, object]:
        loss = training.loss_at(number)
        loss.backward()
        training.optimizer.step()
        return {"loss": loss.detach()}

    training.step = step


# Weights thrown about: gradients burst, units die or saturate, logits get large, numbers overflow.
THROWN = [
    "exploding-gradient",
    "non-finite",
    "dead-units",
    "saturated-activation",
    "peaked-softmax",
    "no-update",  # of units that died
]

# Nothing passes units that died.
DIED = [*THROWN, "vanishing-gradient"]

FAULT = Fault(
    "too-large",
    must=[["update-too-large"]],
    may=THROWN,
    symptom=overshoots(),
    variants=[
        Variant("mlp-sgd-lr-30", setups.mlp, learning_rate(30.0), may=DIED),
        Variant("conv-momentum-lr-3", setups.conv, learning_rate(3.0)),
        Variant("transformer-adam-lr-1", setups.transformer, learning_rate(1.0)),
        Variant("gru-adam-lr-3", partial(setups.cell, "gru", on="majority"), learning_rate(3.0)),
        Variant("residual-mlp-summed-loss", partial(setups.residual_mlp, lr=0.1), summed),
        Variant("mlp-adam-lr-1", partial(setups.mlp, depth=4, optimizer="adam", lr=1e-3),
                learning_rate(1.0), may=DIED),
        Variant("conv-never-zeroed", partial(setups.conv, optimizer="sgd", lr=0.1, norm=True),
                never_zeroed),
        Variant("sla-adam-lr-1", partial(setups.arrows, "sla", layers=2), learning_rate(1.0),
                may=DIED),
    ],
)  # fmt: skip
