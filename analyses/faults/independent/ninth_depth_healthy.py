"""Deep networks that train well: initialised, normalised or connected as they should be."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_ninth_b import (
    classify,
    community_graph,
    digits,
    minibatches,
    products,
    raw_digits,
    regress,
    shapes,
)
from analyses.faults.training import Training


def self_normalising() -> Training:
    """Sixteen SELU layers with LeCun's initialisation."""
    torch.manual_seed(101)
    model = nn.Sequential(nn.Linear(64, 48), nn.SELU())
    for _ in range(15):
        model.extend([nn.Linear(48, 48), nn.SELU()])
    model.append(nn.Linear(48, 10))
    for m in model:
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=1 / math.sqrt(m.in_features))
            nn.init.zeros_(m.bias)
    x, y = digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    return Training(model, minibatches(x, y), classify, optimizer, steps=250)


class Basic(nn.Module):
    """Basic residual block, the last norm's weight starts at 0."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        nn.init.constant_(self.bn2.weight, 0.2)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def small_resnet() -> Training:
    """ResNet with six blocks, cosine schedule, weight decay, label smoothing."""
    torch.manual_seed(102)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        Basic(12, 12, 1),
        Basic(12, 12, 1),
        Basic(12, 20, 2),
        Basic(20, 20, 1),
        Basic(20, 28, 2),
        Basic(28, 28, 1),
        nn.Flatten(),
        nn.Linear(28 * 4, 10),
    )
    x, y = digits(1, 8, 8)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)

    def smoothed(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y, label_smoothing=0.1)

    return Training(
        model, minibatches(x, y, size=32), smoothed, optimizer, steps=120, schedule=schedule
    )


class PreNorm(nn.Module):
    """Residual perceptron, normalised before each branch."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 32)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(32, 64) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(64, 32) for _ in range(depth))
        self.final = nn.LayerNorm(32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + down(F.gelu(up(norm(x))))
        return self.head(self.final(x))


def warmed_up() -> Training:
    """Twenty blocks, AdamW, linear warm-up from next to nothing, then a decay."""
    torch.manual_seed(103)
    model = PreNorm(20)
    x, y = products()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 40, (200 - step) / 160)
    )
    return Training(
        model, minibatches(x, y), classify, optimizer, steps=200, schedule=schedule, clip=1.0
    )


def converged() -> Training:
    """Two separable clouds, trained until the loss is next to 0 and its gradient tiny."""
    torch.manual_seed(104)
    g = torch.Generator().manual_seed(31)
    y = torch.arange(400) % 2
    x = torch.randn(400, 6, generator=g) + 5 * (y[:, None] - 0.5)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU())
    model.append(nn.Linear(24, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, minibatches(x, y), classify, optimizer, steps=600, every=10)


class TwoNumbers(nn.Module):
    """Autoencoder with a code of two numbers, for a map of the digits."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 32), nn.ELU(), nn.Linear(32, 2)
        )
        self.decoder = nn.Sequential(
            nn.Linear(2, 32), nn.ELU(), nn.Linear(32, 64), nn.ELU(), nn.Linear(64, 64)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        return self.decoder(z), z


def two_numbers() -> Training:
    """Narrow on purpose."""
    torch.manual_seed(105)
    model = TwoNumbers()
    x, _ = digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(model: TwoNumbers, x: Tensor) -> Tensor:
        return F.mse_loss(model(x)[0], x)

    return Training(model, minibatches(x, size=128), loss, optimizer, steps=300)


class Variational(nn.Module):
    """Plain VAE."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(64, 64)
        self.mean, self.spread = nn.Linear(64, 8), nn.Linear(64, 8)
        self.hidden, self.pixels = nn.Linear(8, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor, noise: Tensor) -> dict[str, Tensor]:
        h = F.relu(self.trunk(x))
        mean, log_var = self.mean(h), self.spread(h)
        z = mean + (0.5 * log_var).exp() * noise
        return {"logits": self.pixels(F.relu(self.hidden(z))), "mean": mean, "log_var": log_var}


def elbo(model: Variational, x: Tensor, noise: Tensor) -> Tensor:
    """Bernoulli likelihood of the pixels and the divergence from the prior."""
    out = model(x, noise)
    pixels = F.binary_cross_entropy_with_logits(out["logits"], x, reduction="none").sum(1)
    apart = out["mean"].square() + out["log_var"].exp() - out["log_var"] - 1
    return (pixels + 0.5 * apart.sum(1)).mean()


def vae() -> Training:
    """Digits from 0 to 1, eight latent numbers."""
    torch.manual_seed(106)
    x, _ = raw_digits()
    model = Variational()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    rows = minibatches(x / 16, size=128)

    def batch(step: int) -> tuple[Tensor, ...]:
        noise = torch.randn(128, 8, generator=torch.Generator().manual_seed(step))
        return (*rows(step), noise)

    return Training(model, batch, elbo, optimizer, steps=300)


class Growing(nn.Module):
    """DenseNet-like convolutions: all maps so far go into the next layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(8 + 6 * i), nn.ReLU(), nn.Conv2d(8 + 6 * i, 6, 3, padding=1)
            )
            for i in range(6)
        )
        self.reduce = nn.Conv2d(8 + 36, 16, 1)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stem(x)
        for layer in self.layers:
            maps = torch.cat([maps, layer(maps)], 1)
        return self.head(F.max_pool2d(self.reduce(maps), 2).flatten(1))


def growing() -> Training:
    """Digits."""
    torch.manual_seed(107)
    model = Growing()
    x, y = digits(1, 8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, minibatches(x, y, size=32), classify, optimizer, steps=120)


class Segmenter(nn.Module):
    """U-Net of two levels with batch normalisation."""

    def __init__(self) -> None:
        super().__init__()

        def pair(n_in: int, n_out: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()
            )

        self.enc1, self.enc2, self.mid = pair(1, 8), pair(8, 16), pair(16, 24)
        self.dec2, self.dec1 = pair(40, 16), pair(24, 8)
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.enc1(x)
        b = self.enc2(F.max_pool2d(a, 2))
        c = self.mid(F.max_pool2d(b, 2))
        b = self.dec2(torch.cat([b, F.interpolate(c, scale_factor=2)], 1))
        return self.out(self.dec1(torch.cat([a, F.interpolate(b, scale_factor=2)], 1)))


def segmenter() -> Training:
    """Masks of noisy shapes."""
    torch.manual_seed(108)
    images, _, masks = shapes(seed=4)
    model = Segmenter()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(x), y)

    return Training(model, minibatches(images, masks, size=16), loss, optimizer, steps=150)


class Nodes(nn.Module):
    """Two graph convolutions, as everybody has them."""

    def __init__(self, spread: Tensor) -> None:
        super().__init__()
        self.register_buffer("spread", spread)
        self.conv1, self.conv2 = nn.Linear(16, 32), nn.Linear(32, 4)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.spread @ self.conv1(x))
        return self.spread @ self.conv2(self.drop(x))


def nodes() -> Training:
    """Semi-supervised: a third of the nodes has labels."""
    torch.manual_seed(109)
    adjacency, x, y = community_graph(seed=5)
    d = adjacency.sum(1).rsqrt()
    model = Nodes(d[:, None] * adjacency * d)
    known = torch.arange(len(y)) % 3 == 0
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=5e-4)

    def loss(model: Nodes, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x)[known], y[known])

    return Training(model, lambda step: (x, y), loss, optimizer, steps=250)


class Linears(nn.Module):
    """A deep linear network with orthogonal weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(20, 20, bias=False) for _ in range(12))
        for layer in self.layers:
            nn.init.orthogonal_(layer.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def linears() -> Training:
    """Regression onto a random rotation and scaling."""
    torch.manual_seed(110)
    g = torch.Generator().manual_seed(32)
    x = torch.randn(1000, 20, generator=g)
    y = x @ torch.randn(20, 20, generator=g) / math.sqrt(20)
    model = Linears()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    return Training(model, minibatches(x, y), regress, optimizer, steps=250)


class Adversaries(nn.Module):
    """Generator and critic for points on a ring."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 32), nn.LeakyReLU(0.2), nn.Linear(32, 2))
        self.critic = nn.Sequential(
            nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2)
        )
        self.critic.append(nn.Linear(32, 1))


def both(model: Adversaries, real: Tensor, noise: Tensor) -> Tensor:
    """Least-squares losses of both; each player's gradient comes from its own part."""
    fake = model.generator(noise)
    judged = model.critic(torch.cat([real, fake.detach()]))
    critic = (judged[: len(real)] - 1).square().mean() + judged[len(real) :].square().mean()
    for p in model.critic.parameters():
        p.requires_grad_(False)
    generator = (model.critic(fake) - 1).square().mean()
    for p in model.critic.parameters():
        p.requires_grad_(True)
    return critic + generator


def adversaries() -> Training:
    """Least-squares GAN with two optimizers."""
    torch.manual_seed(111)
    model = Adversaries()
    first = torch.optim.Adam(model.critic.parameters(), lr=2e-3, betas=(0.5, 0.99))
    second = torch.optim.Adam(model.generator.parameters(), lr=1e-3, betas=(0.5, 0.99))

    def batch(step: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(step)
        angle = 6.283 * torch.rand(128, generator=g)
        ring = torch.stack([angle.cos(), angle.sin()], 1)
        return ring + 0.05 * torch.randn(128, 2, generator=g), torch.randn(128, 4, generator=g)

    def step(training: Training, at: int) -> dict[str, Any]:
        loss = training.loss_at(at)
        first.zero_grad()
        second.zero_grad()
        loss.backward()
        first.step()
        second.step()
        return {"loss": loss.detach()}

    return Training(model, batch, both, first, steps=300, step=step, others=[second])


class Siamese(nn.Module):
    """Convolutional tower with a normalised embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.GroupNorm(3, 12),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3, stride=2, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 24),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.tower(x), dim=1)


def contrastive(model: Siamese, a: Tensor, b: Tensor) -> Tensor:
    """Each image beside its own shifted copy, among all others of the batch."""
    similar = model(a) @ model(b).T / 0.2
    return F.cross_entropy(similar, torch.arange(len(a)))


def siamese() -> Training:
    """Self-supervised digits."""
    torch.manual_seed(112)
    x, _ = digits(1, 8, 8)
    model = Siamese()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    rows = minibatches(x, size=48)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        (a,) = rows(step)
        g = torch.Generator().manual_seed(step)
        return a, a.roll(step % 2, 3) + 0.3 * torch.randn(a.shape, generator=g)

    return Training(model, batch, contrastive, optimizer, steps=150)


DEEP = Healthy(
    "ind9-depth-healthy",
    {
        "self-normalising": self_normalising,
        "small-resnet": small_resnet,
        "warmed-up": warmed_up,
        "converged": converged,
        "two-numbers": two_numbers,
        "variational": vae,
        "growing": growing,
        "segmenter": segmenter,
        "nodes": nodes,
        "orthogonal-linears": linears,
        "adversaries": adversaries,
        "siamese": siamese,
    },
    flat={"adversaries": "two players' losses go up and down against each other"},
)

THEMES = [DEEP]
