"""Units that are off for all data, units at their flat ends, and nets in which all is well."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Healthy, Variant
from analyses.faults.independent.kit_fifth_units import (
    Attends,
    centred,
    classify,
    digits,
    image,
    net,
    of,
    rebuild,
    regress,
    seeded,
    train,
)
from analyses.faults.symptoms import dead_units, saturated
from analyses.faults.training import Training


def _mlp() -> Training:
    torch.manual_seed(51)
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 10)
    )
    return train(model, of(*digits(), like=centred), classify, steps=240)


def _low_biases(training: Training) -> None:
    """Four fifths of the second layer start with a bias far below any sum they can get."""
    with torch.no_grad():
        net(training)[2].bias[:77] = -12.0


def _cnn() -> Training:
    torch.manual_seed(52)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    return train(
        model,
        of(*digits(), like=image),
        classify,
        torch.optim.SGD,
        lr=0.03,
        momentum=0.9,
        steps=150,
    )


def _low_shift(training: Training) -> None:
    """The second normalisation shifts three quarters of its channels far below zero."""
    with torch.no_grad():
        net(training)[4].bias[:26] = -9.0


def _rows() -> Training:
    torch.manual_seed(53)
    model = Attends(8, 48, 10, 96, 8)
    return train(
        model, of(*digits(), size=48, like=lambda x: centred(x).view(-1, 8, 8)), classify, steps=200
    )


def _low_hidden(training: Training) -> None:
    """A wrong constant in the initialisation of the hidden layer's biases."""
    with torch.no_grad():
        net(training).up.bias[:84] = -15.0


def _autoencoder() -> Training:
    torch.manual_seed(54)
    model = nn.Sequential(
        nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 24), nn.Linear(24, 80), nn.ReLU(),
        nn.Linear(80, 64),
    )  # fmt: skip
    return train(model, of(*digits()), rebuild, torch.optim.RMSprop, lr=1e-3, steps=240)


def _one_sided(training: Training) -> None:
    """First weights drawn from [-a, 0] for most units, with pixels that are never negative."""
    with torch.no_grad():
        net(training)[0].weight[:70].abs_().neg_()
        net(training)[0].bias[:70] = -0.2


class Sums(nn.Module):
    """A GRU reads numbers; a hidden layer of ReLU answers."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = nn.GRU(2, 40, batch_first=True)
        self.hidden = nn.Linear(40, 64)
        self.answers = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The answer after the last number."""
        return self.answers(F.relu(self.hidden(self.reads(x)[0][:, -1])))


def _marked(step: int) -> tuple[Tensor, Tensor]:
    """Numbers of which the marked are to be added."""
    g = seeded(step)
    x = torch.randn(64, 8, generator=g)
    marks = (torch.rand(64, 8, generator=g) < 0.4).float()
    return torch.stack([x, marks], -1), (x * marks).sum(1) / 2


def _gru() -> Training:
    torch.manual_seed(55)
    return train(Sums(), _marked, regress, lr=4e-3, steps=250)


def _low_head(training: Training) -> None:
    """Most of the head's hidden units are pushed below zero; what the GRU gives is within ±1."""
    with torch.no_grad():
        net(training).hidden.bias[:52] = -7.0


DEAD = Fault(
    "ind5-dead-units",
    must=[["dead-units"]],
    symptom=dead_units(0.65),
    variants=[
        Variant("mlp-biases", _mlp, _low_biases),
        Variant("cnn-normalised-shift", _cnn, _low_shift),
        Variant("transformer-hidden", _rows, _low_hidden),
        Variant("autoencoder-one-sided", _autoencoder, _one_sided),
        Variant("gru-head", _gru, _low_head),
    ],
)


def _wide_tanh() -> Training:
    torch.manual_seed(61)
    model = nn.Sequential(
        nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 60), nn.Tanh(), nn.Linear(60, 10)
    )
    return train(model, of(*digits(), like=centred), classify, lr=1e-3, steps=200)


def _large_weights(training: Training) -> None:
    """Weights drawn with a standard deviation of 4, whatever the number of inputs."""
    with torch.no_grad():
        for layer in (0, 2):
            net(training)[layer].weight.normal_(0, 4)


class Gated(nn.Module):
    """A recurrence of three gates written out, read at its end."""

    def __init__(self, given: int, width: int, answers: int) -> None:
        super().__init__()
        self.width = width
        self.given = nn.Linear(given, 3 * width)
        self.kept = nn.Linear(width, 3 * width, bias=False)
        self.answers = nn.Linear(width, answers)

    def forward(self, x: Tensor) -> Tensor:
        """Answers from (batch, time, given)."""
        h = x.new_zeros(len(x), self.width)
        for given in self.given(x).unbind(1):
            i, f, c = (given + self.kept(h)).chunk(3, -1)
            f = torch.sigmoid(f)
            h = f * h + (1 - f) * torch.sigmoid(i) * torch.tanh(c)
        return self.answers(h)


def _gated() -> Training:
    torch.manual_seed(62)
    pixels = of(*digits(), like=lambda x: centred(x).view(-1, 8, 8))
    return train(Gated(8, 48, 10), pixels, classify, lr=4e-3, steps=150)


def _gates_shut(training: Training) -> None:
    """All gates' and candidates' biases start at 9 in place of 0 or 1."""
    with torch.no_grad():
        net(training).given.bias.fill_(9.0)


class Sigmoids(nn.Module):
    """An autoencoder of logistic units; `sharp` multiplies what the hidden ones are given."""

    def __init__(self) -> None:
        super().__init__()
        self.sharp = 1.0
        self.down, self.up = nn.Linear(64, 40), nn.Linear(40, 64)
        nn.init.xavier_uniform_(self.down.weight, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        """The pixels again."""
        return self.up(torch.sigmoid(self.sharp * self.down(x)))


def _sigmoids() -> Training:
    torch.manual_seed(63)
    return train(Sigmoids(), of(*digits(), like=centred), rebuild, lr=3e-3, steps=200)


def _sharp(training: Training) -> None:
    """The sums are multiplied by 60: a temperature applied the wrong way."""
    net(training).sharp = 60.0


def _control() -> Training:
    """A policy copies actions between -0.8 and 0.8."""
    torch.manual_seed(64)
    teacher = torch.randn(12, 3)
    model = nn.Sequential(
        nn.Linear(12, 64), nn.ELU(), nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 3), nn.Tanh()
    )

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(64, 12, generator=seeded(step))
        return x, 0.8 * torch.tanh(0.5 * x @ teacher)

    return train(model, batch, regress, torch.optim.SGD, lr=0.1, momentum=0.9, steps=250)


def _biased_actions(training: Training) -> None:
    """The last layer's bias starts in the units of the actuator: 7, of which tanh makes 1."""
    with torch.no_grad():
        net(training)[4].bias.fill_(7.0)


def _tanh_cnn() -> Training:
    torch.manual_seed(65)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.GroupNorm(3, 12),
        nn.Tanh(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1),
        nn.GroupNorm(4, 16),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    return train(model, of(*digits(), like=image), classify, lr=2e-3, steps=150)


def _loud_norm(training: Training) -> None:
    """The normalisations start with a gain of 40."""
    with torch.no_grad():
        for layer in (1, 4):
            net(training)[layer].weight.fill_(40.0)


SATURATED = Fault(
    "ind5-saturated",
    must=[["saturated-activation"]],
    symptom=saturated(0.7),
    variants=[
        Variant("mlp-large-weights", _wide_tanh, _large_weights),
        # With sigmoid and tanh at 1, next to nothing gets through a gate.
        Variant("gates-biases", _gated, _gates_shut, may=["vanishing-gradient"]),
        Variant("autoencoder-sharp", _sigmoids, _sharp),
        # At 7 the slope of tanh is 3e-6: all before it gets that much of the gradient, under SGD.
        Variant("policy-bias", _control, _biased_actions, may=["vanishing-gradient", "no-update"]),
        Variant("cnn-loud-norm", _tanh_cnn, _loud_norm),
    ],
)


# Healthy runs.


def _deep_relu() -> Training:
    """Five layers of ReLU with He's initialisation and dropout."""
    torch.manual_seed(111)
    layers: list[nn.Module] = []
    for given in (64, 72, 72, 72):
        layer = nn.Linear(given, 72)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU(), nn.Dropout(0.05)]
    model = nn.Sequential(*layers, nn.Linear(72, 10))
    return train(model, of(*digits(), like=centred), classify, torch.optim.AdamW, steps=200)


class Squeezed(nn.Module):
    """A convolution with channels weighted by logistic gates, after pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 20, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.gate = nn.Sequential(nn.Linear(20, 8), nn.SiLU(), nn.Linear(8, 20), nn.Sigmoid())
        self.second = nn.Sequential(nn.Conv2d(20, 20, 3, padding=1), nn.ReLU())
        self.answers = nn.Linear(20 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = self.first(x)
        h = h * self.gate(h.mean((2, 3)))[..., None, None]
        return self.answers(self.second(h).flatten(1))


def _squeezed() -> Training:
    torch.manual_seed(112)
    return train(Squeezed(), of(*digits(), size=48, like=image), classify, lr=3e-3, steps=140)


def _tanh_waves() -> Training:
    """A curve of two variables by three layers of tanh with Xavier's initialisation."""
    torch.manual_seed(113)
    model = nn.Sequential(
        nn.Linear(2, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(),
        nn.Linear(48, 1),
    )  # fmt: skip
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = 2 * torch.rand(128, 2, generator=seeded(step)) - 1
        return x, torch.sin(3 * x[:, 0]) * torch.cos(2 * x[:, 1])

    return train(model, batch, regress, torch.optim.RMSprop, lr=1e-3, steps=240)


class Varied(nn.Module):
    """A variational autoencoder of binary pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 16))
        self.draws = nn.Sequential(nn.Linear(8, 64), nn.ELU(), nn.Linear(64, 64))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the pixels, and the latent's mean and logarithm of the variance."""
        mean, logvar = self.reads(centred(x)).chunk(2, -1)
        return self.draws(mean + noise * torch.exp(0.5 * logvar)), mean, logvar


def _varied() -> Training:
    torch.manual_seed(114)
    draw = of(digits()[0])

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = draw(step)[0]
        return x, torch.randn(len(x), 8, generator=seeded(step))

    def loss(model: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
        logits, mean, logvar = model(x, noise)
        told = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
        kept = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(-1)
        return (told + 0.3 * kept).mean()

    return train(Varied(), batch, loss, lr=2e-3, steps=240)


class Remembers(nn.Module):
    """An LSTM of two layers answers at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(12, 24)
        self.reads = nn.LSTM(24, 48, num_layers=2, batch_first=True)
        self.answers = nn.Linear(48, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits by step."""
        return self.answers(self.reads(self.tokens(tokens))[0])


def _remembers() -> Training:
    """The token before the last one is to be said."""
    torch.manual_seed(115)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(12, (48, 10), generator=seeded(step))
        return tokens, tokens.roll(1, 1)

    def loss(model: nn.Module, tokens: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens)[:, 1:].flatten(0, 1), wanted[:, 1:].flatten())

    return train(Remembers(), batch, loss, lr=8e-3, steps=180)


HEALTHY = Healthy(
    "ind5-healthy-units",
    runs={
        "deep-relu": _deep_relu,
        "squeezed": _squeezed,
        "tanh-waves": _tanh_waves,
        "variational": _varied,
        "remembers": _remembers,
    },
)

FAULTS = [DEAD, SATURATED]
THEMES = [HEALTHY]
