"""Units, steps and number formats: rectifiers that are off, squashing functions at their ends,
steps that are too large or none at all, gradients too small for float16; and healthy steps."""

from __future__ import annotations

import math
from functools import cache, partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from analyses.faults.case import Fault, Healthy, Symptom, Variant
from analyses.faults.observe import Observed
from analyses.faults.symptoms import Evidence, dead_units, overshoots, saturated, unmoved
from analyses.faults.training import Training


@cache
def digits() -> tuple[Tensor, Tensor]:
    """8×8 images, zero mean and unit variance over all pixels, and their classes."""
    raw = load_digits()
    x = torch.tensor(raw.data, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(raw.target)


def draw(step: int, size: int, count: int) -> Tensor:
    """The rows of a step's batch."""
    return torch.randint(0, count, (size,), generator=torch.Generator().manual_seed(step + 1))


def digit_batch(step: int, *, size: int = 64, shape: tuple[int, ...] = (64,)) -> tuple[Tensor, ...]:
    """Images of the wanted shape and their classes."""
    x, y = digits()
    i = draw(step, size, len(y))
    return x[i].view(size, *shape), y[i]


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(model(x), y)


def regress(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(model(x).squeeze(-1), y)


# Units that are off


def focal_prior(*, everywhere: bool) -> Training:
    """A convolutional net with one sigmoid score per class, whose biases start at a rare class's
    log odds: of the head, or by mistake of every layer."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    prior = -math.log((1 - 0.05) / 0.05)
    for module in model.modules() if everywhere else [model[-1]]:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.constant_(module.bias, prior)  # type: ignore[arg-type]

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(x), F.one_hot(y, 10).float())

    return Training(
        model,
        partial(digit_batch, shape=(1, 8, 8)),
        loss,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=200,
    )


class SparseCode(nn.Module):
    """An overcomplete code of which few latents shall be on."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(24, 160)
        self.decoder = nn.Linear(160, 24)
        self.decoder.weight.data = self.encoder.weight.data.T.clone() * 0.5

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        latents = F.relu(self.encoder(x))
        return self.decoder(latents), latents


def dictionary(*, penalty: float) -> Training:
    """A sparse autoencoder of mixtures of 60 directions, with an L1 penalty on its latents."""
    torch.manual_seed(2)
    model = SparseCode()
    directions = F.normalize(torch.randn(60, 24), dim=-1) * 2

    def batch(step: int) -> tuple[Tensor]:
        g = torch.Generator().manual_seed(step)
        on = (torch.rand(128, 60, generator=g) < 0.05) * torch.rand(128, 60, generator=g)
        return (on @ directions,)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        again, latents = model(x)
        return (again - x).square().sum(-1).mean() + penalty * latents.sum(-1).mean()

    return Training(model, batch, loss, torch.optim.Adam(model.parameters(), lr=8e-3), steps=250)


class GraphLayer(nn.Module):
    """Mean over the neighbours, times a matrix of one's own."""

    def __init__(self, width_in: int, width: int, *, one_sided: bool) -> None:
        super().__init__()
        at = torch.rand(width_in, width)
        at = at - 1 if one_sided else 2 * at - 1
        self.weight = nn.Parameter(at * (6 / (width_in + width)) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return F.relu(adjacency @ (x @ self.weight) + self.bias)


class GraphNet(nn.Module):
    """Three graph layers and a readout of every node."""

    def __init__(self, *, one_sided: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GraphLayer(n, 40, one_sided=one_sided) for n in (6, 40, 40))
        self.readout = nn.Linear(40, 1)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, adjacency)
        return self.readout(x).squeeze(-1)


def graphs(*, one_sided: bool) -> Training:
    """Graphs of 14 nodes; each node's target depends on its neighbourhood. The matrices are
    uniform between -1 and 1, or, with a factor forgotten, between -1 and 0."""
    torch.manual_seed(3)
    model = GraphNet(one_sided=one_sided)

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(12, 14, 6, generator=g)
        edges = (torch.rand(12, 14, 14, generator=g) < 0.2).float()
        edges = ((edges + edges.transpose(1, 2)) > 0).float() + 2 * torch.eye(14)
        adjacency = edges / edges.sum(-1, keepdim=True)
        mean = adjacency @ x
        return x, adjacency, 3 * mean[..., 0].abs() + 2 * (adjacency @ mean)[..., 1]

    def loss(model: nn.Module, x: Tensor, adjacency: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x, adjacency), y)

    return Training(model, batch, loss, torch.optim.Adam(model.parameters(), lr=4e-3), steps=200)


DEAD = Fault(
    "ind2-dead-units",
    must=[["dead-units"]],
    may=["vanishing-gradient", "no-update"],
    symptom=dead_units(0.6),
    variants=[
        Variant(
            "focal-prior-everywhere",
            partial(focal_prior, everywhere=False),
            broken=partial(focal_prior, everywhere=True),
        ),
        Variant(
            "sparsity-too-strong",
            partial(dictionary, penalty=0.1),
            broken=partial(dictionary, penalty=6.0),
            may=[],
        ),
        Variant(
            "one-sided-matrices",
            partial(graphs, one_sided=False),
            broken=partial(graphs, one_sided=True),
        ),
    ],
)


# Squashing functions at their ends


def autoencoder(*, std: float | None) -> Training:
    """A tanh autoencoder of digits whose matrices are drawn with a fixed deviation, or as usual."""
    torch.manual_seed(4)
    sizes = (64, 48, 12, 48, 64)
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        linear = nn.Linear(a, b)
        if std is None:
            nn.init.xavier_uniform_(linear.weight)
        elif b != sizes[-1]:
            nn.init.normal_(linear.weight, std=std)
        layers += [linear, nn.Tanh()]
    model = nn.Sequential(*layers[:-1])

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), x)

    return Training(
        model, digit_batch, loss, torch.optim.Adam(model.parameters(), lr=1e-3), steps=300
    )


class Elman(nn.Module):
    """A recurrence written out, and the class at its end."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.into = nn.Linear(8, 64)
        self.again = nn.Linear(64, 64, bias=False)
        self.head = nn.Linear(64, 10)
        nn.init.orthogonal_(self.again.weight, gain)
        nn.init.xavier_normal_(self.into.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 64)
        for row in x.unbind(1):
            h = torch.tanh(self.into(row) + self.again(h))
        return self.head(h)


def rows(*, gain: float) -> Training:
    """Digits read row by row by a recurrence whose matrices are multiplied by a gain."""
    torch.manual_seed(5)
    model = Elman(gain)
    return Training(
        model,
        partial(digit_batch, shape=(8, 8)),
        classify,
        torch.optim.RMSprop(model.parameters(), lr=5e-4),
        steps=250,
        clip=1.0,
    )


class Hash(nn.Module):
    """Convolutions, and a code of almost binary numbers: a sigmoid of a given steepness."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self.steepness = steepness
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(12, 24, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(96, 24),
            nn.LayerNorm(24),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.steepness * self.body(x))


def hashing(*, steepness: float) -> Training:
    """Codes of digits that shall agree within a class and differ between classes."""
    torch.manual_seed(6)
    model = Hash(steepness)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        code = model(x)
        apart = (code[:, None] - code[None]).abs().mean(-1)
        alike = y[:, None] == y[None]
        return torch.where(alike, apart, F.relu(0.5 - apart)).square().mean() * 10

    return Training(
        model,
        partial(digit_batch, shape=(1, 8, 8)),
        loss,
        torch.optim.AdamW(model.parameters(), lr=2e-3),
        steps=200,
    )


SATURATED = Fault(
    "ind2-saturated",
    must=[["saturated-activation"]],
    symptom=saturated(0.6),
    variants=[
        Variant(
            "fixed-deviation",
            partial(autoencoder, std=None),
            broken=partial(autoencoder, std=1.0),
        ),
        Variant("recurrent-gain", partial(rows, gain=1.0), broken=partial(rows, gain=6.0)),
        Variant(
            "steep-code",
            partial(hashing, steepness=3.0),
            broken=partial(hashing, steepness=500.0),
        ),
    ],
)


# Steps that are too large


class Mixer(nn.Module):
    """An MLP-mixer of an image's 16 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 32)
        self.tokens = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
            for _ in range(2)
        )
        self.channels = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
            for _ in range(2)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.unfold(x, 2, stride=2).transpose(1, 2)
        x = self.embed(x)
        for tokens, channels in zip(self.tokens, self.channels, strict=True):
            x = x + tokens(x.transpose(1, 2)).transpose(1, 2)
            x = x + channels(x)
        return self.head(x.mean(1))


def mixer(*, lr: float) -> Training:
    """A mixer on digits with AdamW."""
    torch.manual_seed(7)
    model = Mixer()
    return Training(
        model,
        partial(digit_batch, shape=(1, 8, 8)),
        classify,
        torch.optim.AdamW(model.parameters(), lr=lr),
        steps=150,
    )


class Adding(nn.Module):
    """A gated recurrence and a number at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 40, batch_first=True)
        self.head = nn.Linear(40, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])


def adding(*, lr: float) -> Training:
    """The sum of the marked numbers of a short sequence, by SGD with a clipped gradient."""
    torch.manual_seed(8)
    model = Adding()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(64, 10, generator=g)
        marked = (torch.rand(64, 10, generator=g) < 0.3).float()
        return torch.stack([x, marked], -1), (x * marked).sum(-1)

    return Training(
        model,
        batch,
        regress,
        torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        steps=250,
        clip=1.0,
    )


def plain_cnn(*, lr: float) -> Training:
    """Convolutions with group normalisation on digits, with RMSprop."""
    torch.manual_seed(9)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.GroupNorm(4, 24),
        nn.SiLU(),
        nn.Conv2d(24, 24, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(96, 10),
    )
    return Training(
        model,
        partial(digit_batch, shape=(1, 8, 8)),
        classify,
        torch.optim.RMSprop(model.parameters(), lr=lr),
        steps=150,
    )


TOO_LARGE = Fault(
    "ind2-too-large",
    must=[["update-too-large"]],
    symptom=overshoots(),
    variants=[
        Variant("mixer-adamw", partial(mixer, lr=2e-3), broken=partial(mixer, lr=0.3)),
        Variant(
            "gru-sgd",
            partial(adding, lr=0.02),
            broken=partial(adding, lr=20.0),
            may=["vanishing-gradient", "saturated-activation"],
        ),
        Variant(
            "cnn-rmsprop",
            partial(plain_cnn, lr=1e-3),
            broken=partial(plain_cnn, lr=0.2),
            may=["vanishing-gradient"],
        ),
    ],
)


# No steps


def residual(*, lr: float) -> Training:
    """Two residual blocks with batch normalisation on digits, by SGD with momentum."""
    torch.manual_seed(10)
    model = ResNet()
    return Training(
        model,
        partial(digit_batch, shape=(1, 8, 8)),
        classify,
        torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        steps=120,
    )


class ResNet(nn.Module):
    """Stem, two residual blocks, mean, classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.Conv2d(16, 16, 3, padding=1, bias=False),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.Conv2d(16, 16, 3, padding=1, bias=False),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


class Tagger(nn.Module):
    """A two-way recurrence that tags every symbol."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 16)
        self.lstm = nn.LSTM(16, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(x))[0])


def warm_up(step: int, *, whole: bool) -> float:
    """Grows to 1 over 40 steps; in whole numbers it stays at 0 for 4000."""
    return min(1, step // 4000) if whole else min(1.0, (step + 1) / 40)


def tagging(*, whole: bool) -> Training:
    """Is a symbol larger than, equal to or smaller than the one before it? With warm-up."""
    torch.manual_seed(11)
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 12, (48, 12), generator=torch.Generator().manual_seed(step))
        return x, (x - x.roll(1, 1)).sign() + 1

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warm_up, whole=whole))
    return Training(model, batch, loss, optimizer, steps=160, schedule=schedule)


class RowReader(nn.Module):
    """A transformer that reads an image by its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.places = nn.Parameter(torch.randn(8, 32) * 0.5)
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x) + self.places).mean(1))


def row_reader(*, eps: float, lr: float = 2e-3) -> Training:
    """A small transformer on digits with Adam, whose epsilon may have lost its minus sign."""
    torch.manual_seed(12)
    model = RowReader()
    return Training(
        model,
        partial(digit_batch, shape=(8, 8)),
        classify,
        torch.optim.Adam(model.parameters(), lr=lr, eps=eps),
        steps=120,
    )


NO_UPDATE = Fault(
    "ind2-no-update",
    must=[["no-update"]],
    symptom=unmoved(1e-6),
    variants=[
        Variant("sgd-tiny-rate", partial(residual, lr=0.02), broken=partial(residual, lr=2e-10)),
        Variant(
            "warm-up-in-whole-numbers",
            partial(tagging, whole=False),
            broken=partial(tagging, whole=True),
        ),
        Variant("huge-epsilon", partial(row_reader, eps=1e-8), broken=partial(row_reader, eps=1e8)),
    ],
)


# Gradients too small for float16


def flushed(share: float) -> Symptom:
    """At every step looked at that many elements' gradients are exactly 0, of the twin's few are,
    and the run ends worse."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        assert twin is not None
        zero = min(c.zero_share for c in run.checkpoints)
        theirs = max(c.zero_share for c in twin.checkpoints)
        ends = run.loss_last / run.loss_first, twin.loss_last / twin.loss_first
        worse = ends[0] > 1.5 * ends[1]
        return {"is": zero >= share and theirs < 0.1 and worse, "zero": zero, "twin": theirs,
                "left": ends[0], "twin_left": ends[1]}  # fmt: skip

    return symptom


def unscaled(scale: float, training: Training, step: int) -> dict[str, Tensor]:
    """A step whose loss has been multiplied by a scale, of which the gradient is freed again."""
    loss = training.loss_at(step)
    loss.backward()
    for p in training.model.parameters():
        if p.grad is not None:
            p.grad.div_(scale)
    training.optimizer.step()
    training.optimizer.zero_grad()
    return {"loss": loss.detach() / scale}


def half_wave(*, mixed: bool) -> Training:
    """A tanh net fits a field of displacements in units of 3 mm, and the loss is in metres; in
    float16 by autocast, or in float32."""
    torch.manual_seed(13)
    model = nn.Sequential(
        nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(),
        nn.Linear(64, 1),
    )  # fmt: skip
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(256, 2, generator=torch.Generator().manual_seed(step)) * 2 - 1
        return x, 3e-3 * ((3 * x[:, 0]).sin() + x[:, 1] ** 2)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16, enabled=mixed):
            out = model(x)
        return F.mse_loss(3e-3 * out.float().squeeze(-1), y)

    return Training(
        model, batch, loss, torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-16), steps=150
    )


def denoising(*, scale: float) -> Training:
    """A convolutional denoiser in autocast's float16; the loss is one of several terms of a
    weighted sum, and its weight is small. With or without a scale."""
    torch.manual_seed(14)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(16, 1, 3, padding=1),
    )

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(y.sum())))
        with torch.autocast("cpu", torch.float16):
            out = model(x + 0.5 * noise)
        return scale * 1e-4 * F.mse_loss(out.float(), x)

    return Training(
        model,
        partial(digit_batch, size=32, shape=(1, 8, 8)),
        loss,
        torch.optim.Adam(model.parameters(), lr=2e-3, eps=1e-12),
        steps=100,
        step=partial(unscaled, scale),
    )


class Pooling(nn.Module):
    """A deep set: every point by itself, the mean, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Linear(3, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU())
        self.head = nn.Sequential(nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.point(x).mean(1))


def point_sets(*, kind: str) -> Training:
    """Is a cloud of points stretched, and along which axis? All weights and numbers are of one
    type; the loss is divided by the number of accumulated batches, and once more by a size."""
    torch.manual_seed(15)
    dtype = {"half": torch.float16, "brain": torch.bfloat16}[kind]
    model = Pooling()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    model.to(dtype)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(step)
        y = torch.randint(0, 4, (48,), generator=g)
        stretch = 1 + 3 * F.one_hot(y, 4)[:, None, :3]
        return (torch.randn(48, 12, 3, generator=g) * stretch).to(dtype), y

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x).float(), y) / 32 / 4096

    return Training(
        model,
        batch,
        loss,
        torch.optim.SGD(model.parameters(), lr=0.2 * 32 * 4096),
        steps=200,
    )


UNDERFLOW = Fault(
    "ind2-underflow",
    must=[["underflow"]],
    may=["vanishing-gradient", "no-update"],
    symptom=flushed(0.4),
    variants=[
        Variant(
            "small-units", partial(half_wave, mixed=False), broken=partial(half_wave, mixed=True)
        ),
        Variant(
            "small-loss-weight",
            partial(denoising, scale=65536.0),
            broken=partial(denoising, scale=1.0),
        ),
        Variant(
            "divided-twice",
            partial(point_sets, kind="brain"),
            broken=partial(point_sets, kind="half"),
        ),
    ],
)


# Steps as they should be


def sgd_cosine() -> Training:
    """The residual net with a large rate of SGD that falls along a cosine to a hundredth."""
    training = residual(lr=0.1)
    training.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        training.optimizer, 120, eta_min=1e-3
    )
    return training


def clipped_mixer() -> Training:
    """The mixer with a clipped gradient and a rate that drops twice."""
    training = mixer(lr=3e-3)
    training.clip = 0.5
    training.schedule = torch.optim.lr_scheduler.MultiStepLR(training.optimizer, [80, 120], 0.3)
    return training


def brain_reader() -> Training:
    """The transformer under autocast to bfloat16, which needs no scale."""
    training = row_reader(eps=1e-8, lr=1e-3)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        return F.cross_entropy(out.float(), y)

    training.loss = loss
    return training


def nesterov_cnn() -> Training:
    """The convolutional net with Nesterov's momentum and weight decay."""
    training = plain_cnn(lr=1e-3)
    training.optimizer = torch.optim.SGD(
        training.model.parameters(), lr=0.03, momentum=0.9, nesterov=True, weight_decay=1e-3
    )
    return training


def adagrad_sets() -> Training:
    """The deep set in float32 with Adagrad."""
    training = point_sets(kind="brain")
    training.model.float()
    make = training.batch

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = make(step)
        return x.float(), y

    training.batch, training.loss = batch, classify
    training.optimizer = torch.optim.Adagrad(training.model.parameters(), lr=0.03)
    return training


def adam_gru() -> Training:
    """The gated recurrence with NAdam and one cycle of the rate."""
    training = adding(lr=0.02)
    training.optimizer = torch.optim.NAdam(training.model.parameters(), lr=5e-3)
    training.schedule = torch.optim.lr_scheduler.OneCycleLR(
        training.optimizer, 8e-3, total_steps=251, cycle_momentum=False
    )
    return training


STEPS = Healthy(
    "ind2-steps",
    {
        "sgd-cosine": sgd_cosine,
        "clipped-mixer": clipped_mixer,
        "bfloat16-reader": brain_reader,
        "nesterov-cnn": nesterov_cnn,
        "adagrad-sets": adagrad_sets,
        "one-cycle-gru": adam_gru,
    },
)


FAULTS = [DEAD, SATURATED, TOO_LARGE, NO_UPDATE, UNDERFLOW]
THEMES = [STEPS]
