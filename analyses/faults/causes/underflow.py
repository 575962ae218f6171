"""float16 without a gradient scaler: gradients below 6e-8 become 0 on the way."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults import nets, setups
from analyses.faults.case import Fault, Variant
from analyses.faults.symptoms import underflows
from analyses.faults.training import Batch, Training


def autocast(
    training: Training, dtype: torch.dtype = torch.float16, scale: float = 1.0
) -> Training:
    """Run the forward pass under autocast; `scale`: of the loss."""
    usual = training.loss

    def loss(model: nn.Module, *batch: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return usual(model, *batch).float() * scale

    training.loss = loss
    return training


def half(training: Training) -> Training:
    """The whole model and its inputs in float16."""
    training.model.half()
    batch, usual = training.batch, training.loss

    def draw(step: int) -> Batch:
        return tuple(t.half() if t.is_floating_point() else t for t in batch(step))

    def loss(model: nn.Module, *batch: Tensor) -> Tensor:
        return usual(_Float(model), *batch)

    training.batch, training.loss = draw, loss
    return training


class _Float:
    """A model whose output is float32, so that the loss itself is exact."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x).float()
        return out


def scaled_step(initial: float) -> Callable[[Training, int], dict[str, Any]]:
    """The loop with a GradScaler."""
    scaler = torch.amp.GradScaler("cpu", init_scale=initial, growth_interval=50)

    def step(training: Training, number: int) -> dict[str, Any]:
        loss = training.loss_at(number)
        scaler.scale(loss).backward()
        scaler.step(training.optimizer)
        scaler.update()
        training.optimizer.zero_grad()
        return {"loss": loss.detach()}

    return step


def pixelwise(
    scale: float = 1.0, *, half_precision: bool, scaler: bool, width: int = 32
) -> Training:
    """Squared error of 64 small pixels, each a mean over many: gradients of 1e-7 and less."""
    torch.manual_seed(0)
    model = nets.mlp([64, width, width, 64])
    nets.rescale(model, 1.4)
    from analyses.faults import data

    batch = data.digits(256)

    def loss(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        return F.mse_loss(model(0.05 * x).float(), 0.05 * x) * scale

    training = setups.assemble(model, batch, loss, lr=1e-3, steps=120)
    if half_precision:
        autocast(training)
    if scaler:
        training.step = scaled_step(2.0**24)
    return training


def weighted(make: Callable[[], Training], weight: float, scaled: bool) -> Training:
    """A loss with a small weight (one term of many, say) under autocast, with or without scaler."""
    training = autocast(make(), scale=weight)
    if scaled:
        training.step = scaled_step(2.0**20)
    return training


small_mlp = partial(setups.mlp, depth=3, optimizer="adam", lr=1e-3, batch=128, steps=120)
small_conv = partial(setups.conv, depth=3, optimizer="adam", lr=1e-3, steps=100)
small_transformer = partial(setups.transformer, lr=1e-3, steps=100)
small_residual = partial(setups.residual_mlp, optimizer="adam", lr=1e-3, steps=120)

FAULT = Fault(
    "underflow",
    must=[["underflow"]],
    # What underflows to 0 is gone: parameters get no gradient, the more the earlier they are.
    may=["vanishing-gradient", "no-update"],
    symptom=underflows(0.3),
    variants=[
        Variant(
            "mlp-small-weight",
            partial(weighted, small_mlp, 1e-5, True),
            broken=partial(weighted, small_mlp, 1e-5, False),
        ),
        Variant(
            "conv-small-weight",
            partial(weighted, small_conv, 1e-6, True),
            broken=partial(weighted, small_conv, 1e-6, False),
        ),
        Variant(
            "pixelwise-mean",
            partial(pixelwise, 1e-3, half_precision=True, scaler=True),
            broken=partial(pixelwise, 1e-3, half_precision=True, scaler=False),
        ),
        Variant(
            "transformer-small-weight",
            partial(weighted, small_transformer, 1e-5, True),
            broken=partial(weighted, small_transformer, 1e-5, False),
        ),
        Variant(
            "half-model-sgd",
            partial(setups.mlp, depth=3, gain=1.4, lr=0.1, steps=120),
            broken=lambda: half(_small_loss(setups.mlp(depth=3, gain=1.4, lr=0.1, steps=120))),
            # In float16, steps of the few gradients that are left kill units.
            may=["vanishing-gradient", "no-update", "dead-units"],
        ),
        Variant(
            "residual-mlp-small-weight",
            partial(weighted, small_residual, 3e-6, True),
            broken=partial(weighted, small_residual, 3e-6, False),
        ),
    ],
)


def _small_loss(training: Training) -> Training:
    usual = training.loss
    training.loss = lambda model, *batch: 3e-6 * usual(model, *batch)
    for group in training.optimizer.param_groups:
        group["lr"] /= 3e-6
    return training
