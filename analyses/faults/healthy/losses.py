"""Other objectives: adversarial, variational, contrastive, policy gradient, several terms."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults import data, nets, setups
from analyses.faults.case import Healthy
from analyses.faults.training import Training


class Adversaries(nn.Module):
    """A generator of digits and their judge, in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nets.mlp([8, 48, 64])
        self.judge = nets.mlp([64, 48, 1], partial(nn.LeakyReLU, 0.2))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self.judge(x), self.judge(self.generator(noise))


def adversarial() -> Training:
    torch.manual_seed(0)
    model = Adversaries()
    optimizer = torch.optim.Adam(model.judge.parameters(), lr=1e-3, betas=(0.5, 0.9))
    other = torch.optim.Adam(model.generator.parameters(), lr=1e-3, betas=(0.5, 0.9))

    def loss(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        real, made = model(x, torch.randn(len(x), 8))
        return F.softplus(-real).mean() + F.softplus(made).mean()

    training = Training(model, data.digits(), loss, optimizer, others=[other])

    def step(training: Training, number: int) -> dict[str, Any]:
        judged = training.loss_at(number)
        judged.backward()
        model.generator.zero_grad()
        optimizer.step()
        optimizer.zero_grad()
        fooled = F.softplus(-model.judge(model.generator(torch.randn(64, 8)))).mean()
        fooled.backward()
        other.step()
        model.zero_grad()
        return {"loss": judged.detach(), "generator_loss": fooled.detach()}

    training.step = step
    return training


class Variational(nn.Module):
    """Encoder, a Gaussian code, decoder."""

    def __init__(self, code: int = 8) -> None:
        super().__init__()
        self.encoder = nets.mlp([64, 48, 2 * code])
        self.decoder = nets.mlp([code, 48, 64])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, s = self.encoder(x).chunk(2, dim=1)
        code = mean + torch.exp(0.5 * s) * torch.randn_like(s)
        return self.decoder(code), mean, s


def variational() -> Training:
    torch.manual_seed(0)

    def loss(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        copy, mean, s = model(x)
        divergence = 0.5 * (mean**2 + s.exp() - s - 1).sum(1).mean()
        return (copy - x).square().sum(1).mean() + 0.1 * divergence

    return setups.assemble(Variational(), data.digits(), loss, lr=2e-3)


class Towers(nn.Module):
    """Two views of a sample, each encoded to a unit vector."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.left = nets.mlp([64, 64, width])
        self.right = nets.mlp([64, 64, width])
        self.log_temperature = nn.Parameter(torch.tensor(2.5))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        left, right = F.normalize(self.left(a), dim=1), F.normalize(self.right(b), dim=1)
        return self.log_temperature.exp() * left @ right.T


def contrastive() -> Training:
    """Which two views belong together? Logits of cosines times 12 and more."""
    torch.manual_seed(0)

    def loss(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        a, b = x + 0.3 * torch.randn_like(x), x + 0.3 * torch.randn_like(x)
        scores = model(a, b)
        return F.cross_entropy(scores, torch.arange(len(x)))

    return setups.assemble(Towers(), data.digits(32), loss, lr=1e-3)


def policy_gradient() -> Training:
    """REINFORCE with a baseline on a contextual bandit: noisy, small gradients."""
    torch.manual_seed(0)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        policy = torch.distributions.Categorical(logits=model(x))
        action = policy.sample()
        reward = (action == y).float()
        advantage = reward - reward.mean()
        return -(policy.log_prob(action) * advantage).mean()

    training = setups.mlp(depth=2, on="teacher", optimizer="adam", lr=3e-3, steps=300)
    training.loss = loss
    return training


class Coupling(nn.Module):
    """A normalising flow of affine couplings: returns the code and log|det|."""

    def __init__(self, dim: int = 8, layers: int = 4) -> None:
        super().__init__()
        half = dim // 2
        self.nets = nn.ModuleList(nets.mlp([half, 32, 2 * half]) for _ in range(layers))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, dim=1)
        total = x.new_zeros(len(x))
        for net in self.nets:
            s, t = net(a).chunk(2, dim=1)
            s = torch.tanh(s)
            a, b, total = b * s.exp() + t, a, total + s.sum(1)
        return torch.cat([a, b], 1), total


def flow() -> Training:
    torch.manual_seed(0)
    mix = torch.randn(8, 8)

    def batch(step: int) -> tuple[Tensor]:
        z = torch.randn(64, 8, generator=torch.Generator().manual_seed(step))
        return (torch.tanh(z @ mix / 2) + 0.1 * z,)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        z, volume = model(x)
        return (0.5 * z.square().sum(1) - volume).mean()

    return setups.assemble(Coupling(), batch, loss, lr=2e-3)


class Several(nn.Module):
    """A classifier and a decoder on one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 48), nn.ReLU())
        self.classes, self.copy = nn.Linear(48, 10), nn.Linear(48, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.classes(h), self.copy(h)


def several(weight: float) -> Training:
    """Classification, reconstruction and a small penalty."""
    torch.manual_seed(0)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        classes, copy = model(x)
        penalty = sum(p.square().sum() for p in model.parameters())
        return F.cross_entropy(classes, y) + weight * F.mse_loss(copy, x) + 1e-4 * penalty

    return setups.assemble(Several(), data.digits(), loss, lr=2e-3)


def large_targets() -> Training:
    """Targets in the hundreds: large losses and gradients, and Adam."""
    training = setups.mlp(depth=2, on="regression", optimizer="adam", lr=1e-2)
    training.batch = data.regression(scale=300.0)
    return training


def noisy_labels() -> Training:
    training = setups.mlp(depth=3, optimizer="adam", lr=1e-3)
    training.batch = data.digits(noise=0.4)
    return training


RUNS = Healthy(
    "losses",
    {
        "gan": adversarial,
        "vae": variational,
        "contrastive": contrastive,
        "policy-gradient": policy_gradient,
        "normalising-flow": flow,
        "several-terms": partial(several, 1.0),
        "large-targets": large_targets,
        "noisy-labels": noisy_labels,
        "small-auxiliary-term": partial(several, 0.01),
    },
    flat={
        "gan": "two losses in balance",
        "policy-gradient": "its surrogate's value is about 0 throughout",
        "noisy-labels": "two fifths of the labels can't be learned",
    },
)
