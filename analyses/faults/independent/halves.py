"""Float16 without a loss scaler: gradients too small to be written down."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Make, Symptom, Variant
from analyses.faults.independent import kit_steps as kit
from analyses.faults.observe import Observed, observe
from analyses.faults.symptoms import underflows
from analyses.faults.training import Training, ordinary


def lost(make: Make, share: float) -> Symptom:
    """Of the elements whose gradient in float32 is not 0, that many are 0; the twin's loss is less.

    Trains once more, as gradients in float32 are needed.
    """

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        evidence = underflows(share)(observe(make, half=True), twin)
        worse = twin is None or run.loss_last - twin.loss_last >= 0.05 * abs(twin.loss_first)
        return {**evidence, "is": evidence["is"] and worse}

    return symptom


def _step(*, scaler: bool) -> Any:
    if not scaler:
        return ordinary
    return partial(kit.scaled, torch.amp.GradScaler("cpu", init_scale=2.0**18))


def _per_corpus(tokens: int, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") / tokens


def corpus(*, scaler: bool) -> Training:
    """A language model whose loss is divided by the tokens of all its data."""
    torch.manual_seed(81)
    model = kit.Letters(64, 2)
    return Training(
        model,
        kit.grammar,
        partial(kit.cast, partial(_per_corpus, 20_000_000), torch.float16),
        torch.optim.Adam(model.parameters(), 2e-3, eps=1e-12),
        steps=100,
        step=_step(scaler=scaler),
    )


@cache
def _teacher() -> nn.Module:
    torch.manual_seed(820)
    model = nn.Sequential(nn.Flatten(), kit.mlp(64, 96, 10, act=nn.Tanh))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(200):
        kit.classify(model, *kit.pixels(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.requires_grad_(False)


def _taught(step: int) -> tuple[Tensor, ...]:
    x, _ = kit.pixels(step, size=128)
    return x, _teacher()(x)


def _distil(heat: float, weight: float, model: nn.Module, x: Tensor, wanted: Tensor) -> Tensor:
    p, q = F.softmax(wanted / heat, -1), F.log_softmax(model(x) / heat, -1)
    return weight * (p * (p.log() - q)).mean()


def distilled(*, scaler: bool) -> Training:
    """Soft answers of a teacher at a high temperature, averaged over samples and classes, weighted.

    What the temperature takes from the gradient isn't given back.
    """
    _teacher()
    torch.manual_seed(82)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    return Training(
        model,
        _taught,
        partial(kit.cast, partial(_distil, 20.0, 0.05), torch.float16),
        torch.optim.RMSprop(model.parameters(), 1e-3),
        steps=150,
        step=_step(scaler=scaler),
    )


class Dense(nn.Module):
    """Residual convolutions at full size, an answer for every pixel."""

    def __init__(self, width: int = 12, depth: int = 3) -> None:
        super().__init__()
        self.inside = nn.Conv2d(1, width, 3, 1, 1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1) for _ in range(depth))
        self.norms = nn.ModuleList(nn.GroupNorm(3, width) for _ in range(depth))
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inside(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = h + layer(F.silu(norm(h)))
        return self.head(h)


def _focal(gamma: float, weight: float, model: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """What is right already counts little; averaged over all pixels, with a weight."""
    each = F.binary_cross_entropy_with_logits(
        model(x).view(mask.shape).float(), mask, reduction="none"
    )
    return weight * ((1 - (-each).exp()).pow(gamma) * each).mean()


def focal(*, scaler: bool) -> Training:
    """A dense detector with the focal loss."""
    torch.manual_seed(83)
    model = Dense()
    return Training(
        model,
        partial(kit.shape_masks, size=16, side=24),
        partial(kit.cast, partial(_focal, 5.0, 0.005), torch.float16),
        torch.optim.Adam(model.parameters(), 3e-3, eps=1e-12),
        steps=120,
        step=_step(scaler=scaler),
    )


def _half_waves(step: int) -> tuple[Tensor, ...]:
    x, y = kit.waves(step, size=48)
    return x.half(), y


def _weighted(windows: int, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Squared error of windows whose weights sum to 1 over all the data."""
    return ((model(x).float() - y).square().mean((1, 2)) / windows).sum()


def _fixed_scale(scale: float, training: Training, step: int) -> dict[str, Any]:
    loss = training.loss_at(step)
    (loss * scale).backward()
    training.optimizer.step()
    training.optimizer.zero_grad()
    return {"loss": loss.detach()}


def recurrent(*, scale: float) -> Training:
    """A GRU whose weights are float16, too, with steps by sign; the loss scaled or not."""
    torch.manual_seed(84)
    model = kit.Recurrent(nn.GRU, 1, 48, 1).half()
    return Training(
        model,
        _half_waves,
        partial(_weighted, 20_000_000),
        kit.Signs(model.parameters(), 2e-3),
        steps=200,
        step=partial(_fixed_scale, scale),
    )


def _divided(by: int, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return kit.bound(model, x, y) / by


def variational(*, scaler: bool) -> Training:
    """A variational bound that is a mean already, divided by the size of the data once more."""
    torch.manual_seed(85)
    model = kit.Variational(8, 96)
    return Training(
        model,
        partial(kit.digits, size=256),
        partial(kit.cast, partial(_divided, 1797), torch.float16),
        torch.optim.Adam(model.parameters(), 2e-3, eps=1e-12),
        steps=250,
        step=_step(scaler=scaler),
    )


def _cost(unit: float, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Expected cost of a choice: the further from the right one, the dearer."""
    cost = unit * (torch.arange(10).view(1, -1) - y.view(-1, 1)).abs()
    return (model(x).float().softmax(-1) * cost).sum(-1).mean()


def dear(*, scaler: bool) -> Training:
    """Choices by a mixture of experts; what they cost is counted in millions."""
    torch.manual_seed(86)
    model = kit.Experts(64, 10, experts=4, width=64)
    return Training(
        model,
        kit.digits,
        partial(kit.cast, partial(_cost, 5e-6), torch.float16),
        torch.optim.Adam(model.parameters(), 5e-4, eps=1e-12),
        steps=250,
        step=_step(scaler=scaler),
    )


UNDERFLOW = Fault(
    "ind-underflow",
    must=[["underflow"]],
    variants=[
        Variant(
            "loss-per-corpus",
            healthy=partial(corpus, scaler=True),
            broken=partial(corpus, scaler=False),
            symptom=lost(partial(corpus, scaler=False), 0.3),
            # Behind the last layer everything is exactly 0.
            may=["vanishing-gradient", "no-update"],
        ),
        Variant(
            "distilled-when-hot",
            healthy=partial(distilled, scaler=True),
            broken=partial(distilled, scaler=False),
            symptom=lost(partial(distilled, scaler=False), 0.3),
            # 0 at the first layers for most of the run; the very first stays as drawn.
            may=["vanishing-gradient", "no-update"],
        ),
        Variant(
            "focal-over-all-pixels",
            healthy=partial(focal, scaler=True),
            broken=partial(focal, scaler=False),
            symptom=lost(partial(focal, scaler=False), 0.3),
        ),
        Variant(
            "windows-weighted",
            healthy=partial(recurrent, scale=2.0**20),
            broken=partial(recurrent, scale=1.0),
            symptom=lost(partial(recurrent, scale=1.0), 0.3),
            # The first gradient in float16 is 0 already, and so are all behind it.
            may=["vanishing-gradient", "no-update"],
        ),
        Variant(
            "bound-divided-twice",
            healthy=partial(variational, scaler=True),
            broken=partial(variational, scaler=False),
            symptom=lost(partial(variational, scaler=False), 0.3),
        ),
        Variant(
            "cost-in-millions",
            healthy=partial(dear, scaler=True),
            broken=partial(dear, scaler=False),
            symptom=lost(partial(dear, scaler=False), 0.3),
            # What reaches the first layer of every expert is exactly 0: they stay as drawn.
            may=["vanishing-gradient", "no-update"],
        ),
    ],
)

FAULTS = [UNDERFLOW]
