"""Runs of networks with many branches that train as they should."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent.fourth_parts import adversaries
from analyses.faults.independent.kit_fourth_parts import (
    classify,
    conv,
    digit_images,
    flat_digits,
    grammar,
    next_symbol,
    patches,
    signs,
    source,
)
from analyses.faults.training import Batch, Training, ordinary


class Dense(nn.Module):
    """Every layer reads what all before it made."""

    def __init__(self, grow: int = 8, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, grow, 3, padding=1)
        self.layers = nn.ModuleList(conv(grow * (i + 1), grow) for i in range(depth))
        self.head = nn.Sequential(
            nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * grow * (depth + 1), 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        out: Tensor = self.head(x)
        return out


def dense() -> Training:
    """Digits by a densely connected net."""
    torch.manual_seed(81)
    model = Dense()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    return Training(model, digit_images, classify, optimizer, steps=120)


class Opening(nn.Module):
    """A block whose branch counts nothing at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.alpha * self.branch(x)
        return out


def opening() -> Training:
    """Whether two signs agree, by gated residuals that start at zero and open."""
    torch.manual_seed(82)
    model = nn.Sequential(nn.Linear(8, 32), *(Opening(32) for _ in range(5)), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, signs, classify, optimizer, steps=300, every=10)


class ZeroLast(nn.Module):
    """A convolutional block whose last normalisation starts with weight zero."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv(into, out, 3, stride), nn.Conv2d(out, out, 3, padding=1)
        self.norm = nn.BatchNorm2d(out)
        nn.init.zeros_(self.norm.weight)
        self.skip = nn.Conv2d(into, out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.skip(x) + self.norm(self.second(self.first(x)))).relu()
        return out


def zero_last() -> Training:
    """Digits by a residual network with a warm-up and a cosine."""
    torch.manual_seed(83)
    model = nn.Sequential(
        conv(1, 12), ZeroLast(12, 12, 1), ZeroLast(12, 20, 2), ZeroLast(20, 20, 1),
        nn.Flatten(), nn.Linear(320, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=140)
    return Training(model, digit_images, classify, optimizer, steps=120, schedule=schedule)


class DeepUnet(nn.Module):
    """Three levels down and up."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        w = width
        self.a, self.b, self.c = conv(1, w), conv(w, 2 * w, 3, 2), conv(2 * w, 4 * w, 3, 2)
        self.up_b, self.up_a = nn.ConvTranspose2d(4 * w, 2 * w, 2, 2), nn.Upsample(scale_factor=2)
        self.join_b, self.join_a = conv(4 * w, 2 * w), conv(3 * w, w)
        self.head = nn.Conv2d(w, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        c = self.c(b)
        b = self.join_b(torch.cat([b, self.up_b(c)], 1))
        out: Tensor = self.head(self.join_a(torch.cat([a, self.up_a(b)], 1)))
        return out


def _overlap(model: nn.Module, x: Tensor, mask: Tensor, _: Tensor) -> Tensor:
    drawn = model(x)
    p = drawn.sigmoid()
    dice = 1 - 2 * (p * mask).sum() / (p.sum() + mask.sum())
    return F.binary_cross_entropy_with_logits(drawn, mask) + dice


def deep_unet() -> Training:
    """Masks of striped squares, by overlap and pixel."""
    torch.manual_seed(84)
    model = DeepUnet()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, patches, _overlap, optimizer, steps=120)


class Vae(nn.Module):
    """Two heads on one trunk: where the code lies, and how surely."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.GELU())
        self.mean, self.spread = nn.Linear(64, 8), nn.Linear(64, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.trunk(x)
        mean, spread = self.mean(x), self.spread(x)
        return self.decoder(mean + noise * (spread / 2).exp()), mean, spread


def _noisy_digits(step: int) -> Batch:
    x, _ = flat_digits(step)
    return x, torch.randn(len(x), 8, generator=source(step, 21))


def _bound(model: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    again, mean, spread = model(x, noise)
    distance = 0.5 * (mean**2 + spread.exp() - 1 - spread).sum(-1).mean()
    return ((again - x) ** 2).sum(-1).mean() + distance


def vae() -> Training:
    """Digits by a variational autoencoder."""
    torch.manual_seed(85)
    model = Vae()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, _noisy_digits, _bound, optimizer, steps=300, every=10)


class Weighed(nn.Module):
    """Three tasks on a trunk, weighed by learned uncertainties."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, width), nn.GELU(), nn.Linear(width, width))
        self.digit, self.odd = nn.Linear(width, 10), nn.Linear(width, 1)
        self.ink = nn.Sequential(nn.GELU(), nn.Linear(width, 1))
        self.doubt = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.trunk(x)
        return self.digit(x), self.odd(x).squeeze(-1), self.ink(x).squeeze(-1)


def _three(model: Any, x: Tensor, y: Tensor) -> Tensor:
    digit, odd, ink = model(x)
    costs = torch.stack(
        [
            F.cross_entropy(digit, y),
            F.binary_cross_entropy_with_logits(odd, (y % 2).float()),
            F.mse_loss(ink, 3 * x.mean(-1)),
        ]
    )
    return ((-model.doubt).exp() * costs + 0.5 * model.doubt).sum() + 3


def weighed() -> Training:
    """A digit, whether it is odd, and its ink; the loss is lifted to stay above zero."""
    torch.manual_seed(86)
    model = Weighed()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, flat_digits, _three, optimizer, steps=200)


class Teacher(nn.Module):
    """A student and the moving average of it, which asks for no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(conv(1, 10), conv(10, 16, 3, 2), nn.Flatten())
        self.student.append(nn.Linear(256, 10))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.student(x)
        return out


def _half_labelled(step: int) -> Batch:
    x, y = digit_images(step, 32)
    more, _ = digit_images(step + 5000, 32)
    return x, y, more, more + 0.3 * torch.randn(more.shape, generator=source(step, 22))


def _consistent(model: Any, x: Tensor, y: Tensor, plain: Tensor, noisy: Tensor) -> Tensor:
    with torch.no_grad():
        wanted = model.teacher(plain).softmax(-1)
    supervised = F.cross_entropy(model(x), y)
    return supervised + 0.5 * (model(noisy).softmax(-1) - wanted).square().sum(-1).mean()


def _average(training: Training, step: int) -> dict[str, Any]:
    logged = ordinary(training, step)
    model: Any = training.model
    with torch.no_grad():
        pairs = zip(model.teacher.parameters(), model.student.parameters(), strict=True)
        for old, new in pairs:
            old.lerp_(new, 0.05)
    return logged


def teacher() -> Training:
    """Digits, half of them without labels, with a mean teacher."""
    torch.manual_seed(87)
    model = Teacher()
    optimizer = torch.optim.Adam(model.student.parameters(), lr=2e-3)
    return Training(model, _half_labelled, _consistent, optimizer, steps=120, step=_average)


class Tied(nn.Module):
    """A GRU whose symbols are the head's weights, too."""

    def __init__(self, kinds: int = 16, width: int = 48) -> None:
        super().__init__()
        self.symbols = nn.Embedding(kinds, width)
        nn.init.normal_(self.symbols.weight, std=0.2)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, width)
        self.head = nn.Linear(width, kinds, bias=False)
        self.head.weight = self.symbols.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.out(self.recurrent(self.symbols(x))[0]))
        return out


def tied() -> Training:
    """A made-up grammar with tied symbols."""
    torch.manual_seed(88)
    model = Tied()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, grammar, next_symbol, optimizer, steps=200)


class Ratings(nn.Module):
    """Two sparse tables and a small net on their rows."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.people = nn.Embedding(60, width, sparse=True)
        self.films = nn.Embedding(50, width, sparse=True)
        self.net = nn.Sequential(nn.Linear(2 * width, 32), nn.GELU(), nn.Linear(32, 1))

    def forward(self, person: Tensor, film: Tensor) -> Tensor:
        p, f = self.people(person), self.films(film)
        own: Tensor = self.net(torch.cat([p, f], -1)).squeeze(-1)
        return own + (p * f).sum(-1) / 3


def _rated(step: int) -> Batch:
    fixed = torch.Generator().manual_seed(7)
    taste, kind = torch.randn(60, 2, generator=fixed), torch.randn(50, 2, generator=fixed)
    g = source(step, 23)
    person = torch.randint(60, (128,), generator=g)
    film = torch.randint(50, (128,), generator=g)
    score = (taste[person] * kind[film]).sum(-1) + kind[film, 0]
    return person, film, score + 0.1 * torch.randn(128, generator=g)


def _score(model: nn.Module, person: Tensor, film: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(person, film), y)


def _both_optimizers(training: Training, step: int) -> dict[str, Any]:
    loss = training.loss_at(step)
    loss.backward()
    for optimizer in (training.optimizer, *training.others):
        optimizer.step()
        optimizer.zero_grad()
    return {"loss": loss.detach()}


def ratings() -> Training:
    """Scores of films by people, tables stepped sparsely."""
    torch.manual_seed(89)
    model = Ratings()
    rows = [model.people.weight, model.films.weight]
    return Training(
        model,
        _rated,
        _score,
        torch.optim.Adam(model.net.parameters(), lr=3e-3),
        steps=300,
        every=10,
        step=_both_optimizers,
        others=[torch.optim.SparseAdam(rows, lr=2e-2)],
    )


class Simsiam(nn.Module):
    """Two views through one encoder; the predictor chases what the other side says."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32),
            nn.BatchNorm1d(32, affine=False),
        )  # fmt: skip
        self.predictor = nn.Sequential(
            nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 32)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        return self.predictor(z), z.detach()


def _views(step: int) -> Batch:
    x, _ = flat_digits(step)
    g = source(step, 24)
    first, second = (x + 0.4 * torch.randn(x.shape, generator=g) for _ in range(2))
    return first, second


def _alike(model: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    (p, z), (q, w) = model(first), model(second)
    return 2 - F.cosine_similarity(p, w).mean() - F.cosine_similarity(q, z).mean()


def simsiam() -> Training:
    """Views of digits made alike, with a stopped gradient on the other side."""
    torch.manual_seed(90)
    model = Simsiam()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Training(model, _views, _alike, optimizer, steps=200)


def _triplets(step: int) -> Batch:
    x, y = digit_images(step, 400)
    anchors = torch.arange(32)
    same = (y[anchors].unsqueeze(1) == y[32:]).float()
    g = source(step, 25)
    near = torch.multinomial(same, 1, generator=g).squeeze(1) + 32
    far = torch.multinomial(1 - same, 1, generator=g).squeeze(1) + 32
    return x[anchors], x[near], x[far]


def _margin(model: nn.Module, anchor: Tensor, near: Tensor, far: Tensor) -> Tensor:
    a, n, f = model(anchor), model(near), model(far)
    return F.softplus((a - n).square().sum(-1) - (a - f).square().sum(-1) + 1).mean()


def triplets() -> Training:
    """Digits of a kind brought together, by one encoder for three images."""
    torch.manual_seed(91)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ELU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ELU(),
        nn.Flatten(), nn.Linear(256, 16),
    )  # fmt: skip
    optimizer = torch.optim.RMSprop(model.parameters(), lr=5e-4)
    return Training(model, _triplets, _margin, optimizer, steps=150)


class Pyramid(nn.Module):
    """Maps at three scales, each with a head, their answers averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 12)
        self.second, self.third = conv(12, 16, 3, 2), conv(16, 24, 3, 2)
        self.fine = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(192, 10))
        self.middle = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
        self.coarse = nn.Sequential(nn.Flatten(), nn.Linear(96, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        half = self.second(x)
        out: Tensor = self.fine(x) + self.middle(half) + self.coarse(self.third(half))
        return out / 3


def pyramid() -> Training:
    """Digits at three scales."""
    torch.manual_seed(92)
    model = Pyramid()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.02)
    return Training(model, digit_images, classify, optimizer, steps=120)


class Film(nn.Module):
    """A condition scales and shifts what layers make of x."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.condition = nn.Sequential(nn.Linear(3, width), nn.GELU())
        self.first, self.second = nn.Linear(6, width), nn.Linear(width, width)
        self.scales = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(2))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        given = self.condition(given)
        for layer, scale in zip((self.first, self.second), self.scales, strict=True):
            gain, shift = scale(given).chunk(2, -1)
            x = F.gelu((1 + gain) * layer(x) + shift)
        out: Tensor = self.head(x).squeeze(-1)
        return out


def _conditioned(step: int) -> Batch:
    g = source(step, 26)
    x, given = torch.randn(64, 6, generator=g), torch.randn(64, 3, generator=g)
    return x, given, (x[:, :3] * given).sum(-1) + x[:, 4]


def _fit(model: nn.Module, x: Tensor, given: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x, given), y)


def film() -> Training:
    """Regression whose coefficients are a condition."""
    torch.manual_seed(93)
    model = Film()
    optimizer = torch.optim.NAdam(model.parameters(), lr=3e-3)
    return Training(model, _conditioned, _fit, optimizer, steps=250)


BRANCHES = Healthy(
    "ind4-wiring-sound",
    runs={
        "dense": dense,
        "gates-from-zero": opening,
        "zero-last-norm": zero_last,
        "deep-unet": deep_unet,
        "vae": vae,
        "three-tasks": weighed,
        "mean-teacher": teacher,
        "tied-symbols": tied,
        "sparse-tables": ratings,
        "simsiam": simsiam,
        "triplets": triplets,
        "pyramid": pyramid,
        "film": film,
        "adversaries": partial(adversaries, True),
    },
    flat={"adversaries": "either side's loss rises as the other learns"},
)

THEMES = [BRANCHES]
