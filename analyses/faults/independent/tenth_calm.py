"""Deep and recurrent networks that train as they should."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_tenth_b import (
    cross_entropy,
    curve,
    dice,
    digits,
    he,
    squares,
)
from analyses.faults.training import Training

SPLITS = ("test",)


class Basic(nn.Module):
    """Two convolutions with batch norm, and a shortcut."""

    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.short = (
            nn.Conv2d(given, width, 1, stride, bias=False) if given != width else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.short(x))


def resnet() -> Training:
    """A residual net of 21 layers, momentum and a cosine."""
    torch.manual_seed(61)
    blocks: list[nn.Module] = [nn.Conv2d(1, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU()]
    width = 12
    for w, stride in [(12, 1), (12, 1), (12, 1), (24, 2), (24, 1), (24, 1), (24, 1), (24, 1)]:
        blocks.append(Basic(width, w, stride))
        width = w
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
    return Training(
        model, digits(48, image=True), cross_entropy, optimizer, steps=150, schedule=schedule
    )


def orthogonal_tanh() -> Training:
    """Fifteen tanh layers, orthogonal weights with a gain a little above 1."""
    torch.manual_seed(62)
    layers: list[nn.Module] = []
    for i in range(15):
        layer = nn.Linear(64, 64)
        nn.init.orthogonal_(layer.weight, gain=1.0 if i == 0 else 1.1)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return Training(model, digits(64), cross_entropy, optimizer, steps=250)


def converged() -> Training:
    """Eighty digits learned by heart: gradients become tiny as there is nothing left to learn."""
    torch.manual_seed(63)
    model = nn.Sequential(
        nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 96), nn.GELU(), nn.Linear(96, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    x, y = digits(80)(0)
    return Training(model, lambda step: (x, y), cross_entropy, optimizer, steps=400, every=10)


def narrow_autoencoder() -> Training:
    """Digits through a code of two numbers, to draw them as a map."""
    torch.manual_seed(64)
    encoder: list[nn.Module] = []
    for a, b in [(64, 64), (64, 32)]:
        encoder += [nn.Linear(a, b), nn.SELU()]
    decoder: list[nn.Module] = []
    for a, b in [(2, 32), (32, 64)]:
        decoder += [nn.Linear(a, b), nn.SELU()]
    model = nn.Sequential(*encoder, nn.Linear(32, 2), *decoder, nn.Linear(64, 64))
    he(model, "linear")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def objective(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        return F.mse_loss(model(x), x)

    return Training(model, digits(64), objective, optimizer, steps=300)


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 96), nn.ELU(), nn.Linear(96, 64), nn.ELU())
        self.mean, self.logvar = nn.Linear(64, 10), nn.Linear(64, 10)
        self.decoder = nn.Sequential(nn.Linear(10, 96), nn.ELU(), nn.Linear(96, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.body(x)
        mean, logvar = self.mean(h), self.logvar(h)
        z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        return self.decoder(z), mean, logvar


def vae() -> Training:
    """A variational autoencoder whose second term is faded in."""
    torch.manual_seed(65)
    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    seen = {"step": 0}

    def bound(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        out, mean, logvar = model(x)
        rest = (out - x).square().sum(1).mean() / 2
        beta = min(1.0, (1 + seen["step"]) / 150)
        return rest + beta * 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean()

    draw = digits(64)

    def batch(step: int) -> tuple[Tensor, ...]:
        seen["step"] = step
        return draw(step)

    return Training(model, batch, bound, optimizer, steps=300)


class MixerLayer(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.within = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norm2(x))


class DeepMixer(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 2, stride=2)
        self.layers = nn.Sequential(*[MixerLayer(16, 32) for _ in range(layers)])
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.patch(x).flatten(2).transpose(1, 2))).mean(1))


def warm_mixer() -> Training:
    """A mixer of ten blocks with AdamW and a learning rate that warms up from almost 0."""
    torch.manual_seed(66)
    model = DeepMixer(10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / 50))
    return Training(
        model,
        digits(32, image=True),
        cross_entropy,
        optimizer,
        steps=150,
        schedule=schedule,
        clip=1.0,
    )


class TextModel(nn.Module):
    """Two fused LSTM layers with dropout between."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 24)
        self.lstm = nn.LSTM(24, 48, num_layers=2, dropout=0.1, batch_first=True)
        self.vocab = nn.Linear(48, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.vocab(self.lstm(self.embed(tokens))[0])


def brackets(step: int) -> tuple[Tensor, ...]:
    """Letters in cycles whose stride depends on the letter before."""
    g = dice(step, 71)
    text = torch.randint(8, (24, 25), generator=g)
    for t in range(1, 25):
        slip = torch.rand(24, generator=g) < 0.15
        said = (text[:, t - 1] * 3 + 1 + (text[:, t - 1] % 2)) % 8
        text[:, t] = torch.where(slip, text[:, t], said)
    return text[:, :-1], text[:, 1:]


def letters(model: nn.Module, given: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(model(given).transpose(1, 2), wanted)


def text_lstm() -> Training:
    torch.manual_seed(67)
    model = TextModel()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, brackets, letters, optimizer, steps=150, clip=0.5)


class Tagger(nn.Module):
    """Both directions; what is padded has no tag."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 24, batch_first=True, bidirectional=True)
        self.tag = nn.Linear(48, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        assert out.shape[1] >= int(lengths.max())
        return self.tag(out)


def tagging(step: int) -> tuple[Tensor, ...]:
    """Is the sum of the neighbours' first features low, middling or high?"""
    g = dice(step, 73)
    lengths = torch.randint(8, 17, (24,), generator=g)
    x = torch.randn(24, 16, 5, generator=g)
    around = F.pad(x[..., 0], (1, 1))
    total = around[:, :-2] + around[:, 2:]
    tags = (total > 0.7).long() + (total > -0.7).long()
    return x, lengths, tags.masked_fill(torch.arange(16) >= lengths[:, None], -100)


def tagger() -> Training:
    torch.manual_seed(68)
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def objective(model: nn.Module, x: Tensor, lengths: Tensor, tags: Tensor) -> Tensor:
        return F.cross_entropy(model(x, lengths).flatten(0, 1), tags.flatten(), ignore_index=-100)

    return Training(model, tagging, objective, optimizer, steps=200)


class Sequel(nn.Module):
    """A GRU cell that reads a few numbers and then continues the series on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(1, 32)
        self.out = nn.Linear(32, 1)

    def forward(self, seen: Tensor, ahead: int) -> Tensor:
        h = seen.new_zeros(len(seen), 32)
        for t in range(seen.shape[1]):
            h = self.cell(seen[:, t : t + 1], h)
        x = seen[:, -1:]
        guesses = []
        for _ in range(ahead):
            x = x + self.out(h)
            guesses.append(x)
            h = self.cell(x, h)
        return torch.cat(guesses, 1)


def sequel() -> Training:
    """Waves of several frequencies, continued."""
    torch.manual_seed(69)
    model = Sequel()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = dice(step, 79)
        phase, speed = 6.28 * torch.rand(32, 1, generator=g), 0.4 + torch.rand(32, 1, generator=g)
        wave = torch.sin(phase + speed * torch.arange(18.0))
        return wave[:, :12], wave[:, 12:]

    def objective(model: nn.Module, seen: Tensor, wanted: Tensor) -> Tensor:
        return F.mse_loss(model(seen, wanted.shape[1]), wanted)

    return Training(model, batch, objective, optimizer, steps=250, clip=1.0)


class PairNet(nn.Module):
    """A shared encoder for three pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 16, 3, padding=1, stride=2)
        self.fc = nn.Linear(256, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.conv2(F.elu(self.conv1(x))))
        return F.normalize(self.fc(x.flatten(1)), dim=1)


def supervised_contrast() -> Training:
    """Digits of a kind together on the sphere: every pair of the batch is compared."""
    torch.manual_seed(70)
    model = PairNet()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.02)

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        z = model(x)
        apart = torch.cdist(z, z)
        same = (y[:, None] == y).float() - torch.eye(len(y))
        other = (y[:, None] != y).float()
        near = (same * apart.square()).sum() / same.sum()
        far = (other * (1.2 - apart).clamp(min=0).square()).sum() / other.sum()
        return near + far

    return Training(model, digits(48, image=True), objective, optimizer, steps=200)


class Dense(nn.Module):
    """Every layer reads all that came before; SiLU and batch norm."""

    def __init__(self, layers: int = 6, growth: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(8 + growth * i, growth), nn.BatchNorm1d(growth), nn.SiLU())
            for i in range(layers)
        )
        self.out = nn.Linear(8 + growth * layers, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.out(torch.cat(features, 1))


def dense_regression() -> Training:
    torch.manual_seed(71)
    model = Dense()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    return Training(model, curve(64), squares, optimizer, steps=300)


class Faker(nn.Module):
    """Both players, kept in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 48), nn.LeakyReLU(0.2), nn.Linear(48, 2))
        self.critic = nn.Sequential(
            nn.Linear(2, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2),
            nn.Linear(48, 1),
        )  # fmt: skip


def duel(training: Training, step: int) -> dict[str, Any]:
    """The critic's step, then the generator's; the loss of both is logged."""
    model = training.model
    critic = training.others[0]
    loss = training.loss_at(step)
    loss.backward()
    critic.step()
    critic.zero_grad()
    training.optimizer.zero_grad()
    noise = torch.randn(64, 4, generator=dice(step, 89))
    fooled = F.softplus(-model.critic(model.generator(noise))).mean()  # type: ignore[operator]
    fooled.backward()
    training.optimizer.step()
    training.optimizer.zero_grad()
    critic.zero_grad()
    return {"loss": loss.detach(), "generator": fooled.detach()}


def adversaries() -> Training:
    """A ring of points imitated by a generator; critic and generator in balance."""
    torch.manual_seed(72)
    model = Faker()
    optimizer = torch.optim.Adam(model.generator.parameters(), lr=1e-3, betas=(0.5, 0.99))
    critic = torch.optim.Adam(model.critic.parameters(), lr=1e-3, betas=(0.5, 0.99))

    def batch(step: int) -> tuple[Tensor, ...]:
        g = dice(step, 83)
        angle = 6.28 * torch.rand(64, 1, generator=g)
        ring = torch.cat([angle.cos(), angle.sin()], 1)
        return ring + 0.1 * torch.randn(64, 2, generator=g), torch.randn(64, 4, generator=g)

    def objective(model: nn.Module, real: Tensor, noise: Tensor) -> Tensor:
        fake = model.generator(noise)  # type: ignore[operator]
        there, made = model.critic(real), model.critic(fake)  # type: ignore[operator]
        return F.softplus(-there).mean() + F.softplus(made).mean()

    return Training(model, batch, objective, optimizer, steps=250, step=duel, others=[critic])


DEPTH = Healthy(
    "ind10-depth-calm",
    runs={
        "resnet": resnet,
        "orthogonal-tanh": orthogonal_tanh,
        "converged": converged,
        "narrow-autoencoder": narrow_autoencoder,
        "vae": vae,
        "warm-mixer": warm_mixer,
        "contrast": supervised_contrast,
        "dense-regression": dense_regression,
        "adversaries": adversaries,
    },
    flat={"adversaries": "two players in balance: the critic's loss has no way to go"},
)

TIME = Healthy(
    "ind10-time-calm",
    runs={
        "text-lstm": text_lstm,
        "tagger": tagger,
        "sequel": sequel,
    },
)

THEMES = [DEPTH, TIME]
