"""Units of deep networks that are off for good or sit at their flat ends."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_tenth_b import (
    blobs,
    cross_entropy,
    curve,
    digits,
    he,
    squares,
)
from analyses.faults.symptoms import dead_units, saturated
from analyses.faults.training import Training

SPLITS = ("test",)


def lenet(lr: float = 1e-3) -> Training:
    """A small LeNet; Adam with a learning rate copied from plain SGD kills its rectifiers."""
    torch.manual_seed(12)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.BatchNorm1d(64),
        nn.Linear(64, 48),
        nn.ReLU(),
        nn.Linear(48, 10),
    )
    he(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return Training(model, digits(96, image=True), cross_entropy, optimizer, steps=250)


class DenseLayer(nn.Module):
    def __init__(self, given: int, growth: int, beta: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(given)
        self.conv = nn.Conv2d(given, growth, 3, padding=1, bias=False)
        nn.init.constant_(self.norm.bias, beta)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def densenet(beta: float = 0.0) -> Training:
    """A dense net; the shift of its norms before the rectifiers starts at 0, or far below."""
    torch.manual_seed(13)
    layers = [DenseLayer(12 + 8 * i, 8, beta) for i in range(5)]
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        *layers,
        nn.BatchNorm2d(52),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(52 * 4, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, digits(32, image=True), cross_entropy, optimizer, steps=200)


class Sparse(nn.Module):
    """An overcomplete code of rectified units."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(64, 160)
        self.decode = nn.Linear(160, 64)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        code = F.relu(self.encode(x))
        return {"code": code, "picture": self.decode(code)}


def sparse_autoencoder(weight: float = 1e-3) -> Training:
    """A sparse autoencoder: the penalty on the code is a touch, or outweighs everything."""
    torch.manual_seed(14)
    model = Sparse()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def objective(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        out = model(x)
        error = F.mse_loss(out["picture"], x)
        return error + weight * out["code"].abs().sum(1).mean()

    return Training(model, digits(64), objective, optimizer, steps=300)


class UNet(nn.Module):
    """Two levels and a bottom."""

    def __init__(self, width: int = 14) -> None:
        super().__init__()
        w = width
        self.down1 = nn.Conv2d(1, w, 3, padding=1)
        self.down2 = nn.Conv2d(w, 2 * w, 3, padding=1)
        self.bottom1 = nn.Conv2d(2 * w, 2 * w, 3, padding=1)
        self.bottom2 = nn.Conv2d(2 * w, 2 * w, 3, padding=1)
        self.up2 = nn.Conv2d(4 * w, w, 3, padding=1)
        self.up1 = nn.Conv2d(2 * w, w, 3, padding=1)
        self.out = nn.Conv2d(w, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.silu(self.down1(x))
        b = F.silu(self.down2(F.avg_pool2d(a, 2)))
        c = F.relu(self.bottom1(F.avg_pool2d(b, 2)))
        c = F.relu(self.bottom2(c))
        c = F.interpolate(c, scale_factor=2.0)
        b = F.silu(self.up2(torch.cat([b, c], 1)))
        a = F.silu(self.up1(torch.cat([a, F.interpolate(b, scale_factor=2.0)], 1)))
        return self.out(a)


def mask_loss(model: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(x), mask)


def unet(bias: float = 0.0) -> Training:
    """Segmentation; a constant meant for another layer fills the biases at the bottom."""
    torch.manual_seed(15)
    model = UNet()
    he(model)
    for conv in (model.bottom1, model.bottom2):
        nn.init.constant_(conv.bias, bias)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, blobs(12, noise=2.0), mask_loss, optimizer, steps=150)


class Policy(nn.Module):
    """Three rectified layers on raw pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)])
        self.value = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.trunk:
            x = torch.relu(layer(x))
        return self.value(x)


def digit_value(offset: float = 0.0) -> Training:
    """Regression of the digit's value; all but the first layer biased far below 0."""
    torch.manual_seed(16)
    model = Policy()
    he(model)
    for layer in list(model.trunk)[1:]:
        nn.init.constant_(layer.bias, offset)  # type: ignore[arg-type]
    optimizer = torch.optim.RMSprop(model.parameters(), lr=5e-4)

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.smooth_l1_loss(model(x)[:, 0], y.float())

    return Training(model, digits(64), objective, optimizer, steps=250)


DEAD = Fault(
    "ind10-depth-dead",
    must=[["dead-units"]],
    symptom=dead_units(0.6),
    variants=[
        Variant(
            "adam-rate",
            healthy=lenet,
            broken=partial(lenet, 0.2),
            must=[["dead-units", "update-too-large"]],
        ),
        Variant(
            "dense-norms",
            healthy=densenet,
            broken=partial(densenet, -7.0),
            may=["no-update", "starved-pathway"],
        ),
        Variant("sparse-code", healthy=sparse_autoencoder, broken=partial(sparse_autoencoder, 0.5)),
        Variant(
            "unet-bottom",
            healthy=unet,
            broken=partial(unet, -12.0),
            may=["no-update", "starved-pathway"],
        ),
        Variant(
            "value",
            healthy=digit_value,
            broken=partial(digit_value, -15.0),
            may=["no-update", "vanishing-gradient"],
        ),
    ],
)


class Price(nn.Module):
    def __init__(self, squash: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1)
        )
        self.squash = squash

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        return torch.sigmoid(y) if self.squash else y


def price(squash: bool = False) -> Training:
    """Prices of about 2 to 14; the output's sigmoid can give 1 at most."""
    torch.manual_seed(17)
    model = Price(squash)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    draw = curve(64)

    def batch(step: int) -> tuple[Tensor, ...]:
        x, y = draw(step)
        return x, 8 + 2 * y

    return Training(model, batch, squares, optimizer, steps=300)


def raw_tanh(raw: bool = False) -> Training:
    """A tanh perceptron on pixels of 0 to 255, or on standardised ones."""
    torch.manual_seed(18)
    model = nn.Sequential()
    for i, (a, b) in enumerate([(64, 64), (64, 32)]):
        model.add_module(f"fc{i}", nn.Linear(a, b))
        model.add_module(f"act{i}", nn.Tanh())
    model.add_module("logits", nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return Training(model, digits(64, raw=raw), cross_entropy, optimizer, steps=200)


class ConvCoder(nn.Module):
    """A convolutional autoencoder with tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Conv2d(12, 16, 3, stride=2, padding=1),
            nn.Tanh(),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(16, 12, 4, stride=2, padding=1),
            nn.Tanh(),
            nn.ConvTranspose2d(12, 1, 4, stride=2, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def conv_coder(std: float | None = None) -> Training:
    """Weights of the tanh layers as PyTorch draws them, or normal with a large deviation."""
    torch.manual_seed(19)
    model = ConvCoder()
    if std is not None:
        for m in [*model.encoder, model.decoder[0]]:
            if isinstance(m, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(m.weight, std=std)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def objective(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        return F.mse_loss(model(x), x)

    return Training(model, digits(32, image=True), objective, optimizer, steps=200)


SATURATED = Fault(
    "ind10-depth-saturated",
    must=[["saturated-activation"]],
    symptom=saturated(0.7),
    variants=[
        Variant(
            "sigmoid-output", healthy=price, broken=partial(price, True), may=["vanishing-gradient"]
        ),
        Variant(
            "raw-pixels",
            healthy=raw_tanh,
            broken=partial(raw_tanh, True),
            must=[["saturated-activation", "unscaled-input"]],
            may=["vanishing-gradient"],  # two decades between the logits and the first layer
        ),
        Variant("conv-coder", healthy=conv_coder, broken=partial(conv_coder, 2.0)),
    ],
)

FAULTS = [DEAD, SATURATED]
