"""Deep and recurrent networks that train as they should."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_seventh_depth import (
    dice,
    digit_batch,
    digits,
    recall_batch,
    regression_batch,
    shapes_batch,
    wave_batch,
)
from analyses.faults.training import Training


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def fit(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


class PreNorm(nn.Module):
    """Many residual blocks, each normalised first and small at the start."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(64, width)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            block = nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.GELU(),
                nn.Linear(2 * width, width),
            )
            nn.init.normal_(block[3].weight, std=0.5 / math.sqrt(2 * width * depth))  # type: ignore[arg-type]
            self.blocks.append(block)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))


def very_deep() -> Training:
    """Forty residual blocks with warm-up."""
    torch.manual_seed(71)
    model = PreNorm(40, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / 20))
    return Training(model, digit_batch(), classify, optimizer, steps=100, schedule=schedule)


class Bottleneck(nn.Module):
    """A residual block of a ResNet."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.short = (
            nn.Conv2d(inside, outside, 1, stride, bias=False) if stride > 1 else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.short(x))


def resnet() -> Training:
    """A ResNet on shapes, momentum and a cosine down to nothing."""
    torch.manual_seed(72)
    blocks = [Bottleneck(12, 12, 1) for _ in range(3)]
    blocks += [Bottleneck(12, 20, 2), *(Bottleneck(20, 20, 1) for _ in range(3))]
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(20, 4),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 80)
    return Training(model, shapes_batch(), classify, optimizer, steps=80, schedule=schedule)


class Characters(nn.Module):
    """A language model of characters with a fused LSTM of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(14, 16)
        self.lstm = nn.LSTM(16, 48, num_layers=2, batch_first=True, dropout=0.1)
        self.out = nn.Linear(48, 14)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        h, state = self.lstm(self.embed(x))
        return self.out(h), state


WORDS = [[1, 2, 3, 0], [4, 5, 4, 0], [6, 7, 8, 9, 0], [10, 11, 0], [12, 13, 1, 0]]


def text(step: int) -> tuple[Tensor]:
    """Made-up words in random order."""
    g = dice(step, 61)
    rows = []
    for _ in range(24):
        row: list[int] = []
        while len(row) < 25:
            row += WORDS[int(torch.randint(len(WORDS), (), generator=g))]
        rows.append(row[:25])
    return (torch.tensor(rows),)


def next_character(model: nn.Module, tokens: Tensor) -> Tensor:
    logits, _ = model(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def characters() -> Training:
    """Next characters, with the usual clipping."""
    torch.manual_seed(73)
    model = Characters()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, text, next_character, optimizer, steps=120, clip=1.0)


class Tagger(nn.Module):
    """A bidirectional GRU over padded sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12, padding_idx=0)
        self.gru = nn.GRU(12, 20, batch_first=True, bidirectional=True)
        self.tag = nn.Linear(40, 3)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        states, _ = self.gru(self.embed(tokens))
        states = states * (torch.arange(tokens.shape[1]) < lengths[:, None])[..., None]
        return self.tag(states)


def tagged(step: int) -> tuple[Tensor, ...]:
    """A tag is whether the token is above, at or below the one before it."""
    g = dice(step, 63)
    tokens = torch.randint(1, 20, (24, 14), generator=g)
    lengths = torch.randint(5, 15, (24,), generator=g)
    before = torch.cat([tokens[:, :1], tokens[:, :-1]], 1)
    y = torch.sign(tokens - before) + 1
    off = torch.arange(14) >= lengths[:, None]
    return tokens.masked_fill(off, 0), lengths, y.masked_fill(off, -100)


def tag_loss(model: nn.Module, tokens: Tensor, lengths: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens, lengths).transpose(1, 2), y, ignore_index=-100)


def tagger() -> Training:
    """Tags of padded sequences."""
    torch.manual_seed(74)
    model = Tagger()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=4e-3)
    return Training(model, tagged, tag_loss, optimizer, steps=140)


def all_digits(step: int) -> tuple[Tensor, ...]:
    x, y = digits()
    return x[:400], y[:400]


def converged() -> Training:
    """The same four hundred digits until nothing is left to learn."""
    torch.manual_seed(75)
    widths = [64, 64, 64, 64]
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.LayerNorm(b), nn.SiLU()]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=260)
    return Training(model, all_digits, classify, optimizer, steps=250, every=10, schedule=schedule)


def selu_coder() -> Training:
    """A deep autoencoder that normalises itself."""
    torch.manual_seed(76)
    sizes = [64, 56, 48, 40, 32, 24, 32, 40, 48, 56, 64]
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        linear = nn.Linear(a, b)
        nn.init.normal_(linear.weight, std=a**-0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.SELU()]
    model = nn.Sequential(*layers[:-1])

    def rebuild(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        return (model(x) - x).square().mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, digit_batch(), rebuild, optimizer, steps=160)


class Dilated(nn.Module):
    """Causal convolutions with growing dilation and skips."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(1, 20, 1)
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv1d(20, 20, 3, dilation=2**k)) for k in range(4)
        )
        self.out = nn.Conv1d(20, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.transpose(1, 2))
        for k, conv in enumerate(self.convs):
            x = x + F.elu(conv(F.pad(x, (2 * 2**k, 0))))
        return self.out(x).transpose(1, 2)


def forecast(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    return F.l1_loss(model(x)[:, 8:-3], x[:, 11:])


def dilated() -> Training:
    """Waves, three steps ahead."""
    torch.manual_seed(77)
    model = Dilated()
    optimizer = torch.optim.NAdam(model.parameters(), lr=3e-3)
    return Training(model, wave_batch(48, 24), forecast, optimizer, steps=120)


class Dense(nn.Module):
    """Every layer reads all that came before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.grow = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(4, 8 + 8 * k), nn.ReLU(), nn.Conv2d(8 + 8 * k, 8, 3, 1, 1))
            for k in range(5)
        )
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        seen = [self.stem(x)]
        for layer in self.grow:
            seen.append(layer(torch.cat(seen, 1)))
        return self.head(F.relu(torch.cat(seen, 1)).mean((2, 3)))


def dense() -> Training:
    """Digits with a small dense network of convolutions."""
    torch.manual_seed(78)
    model = Dense()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    return Training(model, digit_batch(32, image=True), classify, optimizer, steps=100)


class Tied(nn.Module):
    """One gated layer applied again and again, with the input added each time."""

    def __init__(self) -> None:
        super().__init__()
        self.given = nn.Linear(16, 24)
        self.again = spectral_norm(nn.Linear(24, 24))
        self.out = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        u = self.given(x)
        z = torch.zeros_like(u)
        for _ in range(10):
            z = 0.3 * z + 0.7 * F.softplus(self.again(z) + u)
        return self.out(z)


def tied() -> Training:
    """Regression with an unrolled layer that cannot blow up."""
    torch.manual_seed(79)
    model = Tied()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, regression_batch(), fit, optimizer, steps=200)


class Translate(nn.Module):
    """Encoder and decoder of GRU cells; the decoder is fed the right answers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 20)
        self.read = nn.GRUCell(20, 40)
        self.write = nn.GRUCell(20, 40)
        self.out = nn.Linear(40, 9)

    def forward(self, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        h = torch.zeros(len(source), 40)
        for t in range(source.shape[1]):
            h = self.read(self.embed(source[:, t]), h)
        token, logits = torch.zeros_like(target[:, 0]), []
        for t in range(target.shape[1]):
            h = self.write(self.embed(token), h)
            logits.append(self.out(h))
            token = target[:, t]
        return {"logits": torch.stack(logits, 1), "state": h}


def reversal(step: int) -> tuple[Tensor, Tensor]:
    source = torch.randint(1, 9, (48, 4), generator=dice(step, 67))
    return source, source.flip(1)


def translated(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    logits = model(source, target)["logits"]
    return F.cross_entropy(logits.reshape(-1, 9), target.reshape(-1))


def translate() -> Training:
    """Saying four tokens backwards."""
    torch.manual_seed(80)
    model = Translate()
    optimizer = torch.optim.Adam(model.parameters(), lr=8e-3)
    return Training(model, reversal, translated, optimizer, steps=200, clip=5.0)


class Sines(nn.Module):
    """A network of sines, initialised as it has to be."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, width)])
        self.layers.extend(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, 1)
        with torch.no_grad():
            for k, layer in enumerate(self.layers):
                bound = 1.5 if k == 0 else math.sqrt(6 / width)
                layer.weight.uniform_(-bound, bound)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(layer(x))
        return self.out(x)


def picture(step: int) -> tuple[Tensor, Tensor]:
    at = torch.rand(256, 2, generator=dice(step, 69)) * 2 - 1
    return at, torch.cos(4 * at[:, :1]) * torch.sin(3 * at[:, 1:]) + at[:, :1]


def sines() -> Training:
    """A picture as a function of its coordinates."""
    torch.manual_seed(81)
    model = Sines(5, 40)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, picture, fit, optimizer, steps=160)


def gpt() -> Training:
    """A small GPT-2 of the transformers library, six layers deep."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(82)
    config = GPT2Config(
        vocab_size=14,
        n_positions=32,
        n_embd=32,
        n_layer=6,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        return model(input_ids=tokens, labels=tokens).loss

    return Training(model, text, loss, optimizer, steps=80)


class Unet(nn.Module):
    """Down and up again with skips across."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (self.block(i, o) for i, o in ((1, 8), (8, 12), (12, 16)))
        self.d, self.e = self.block(28, 12), self.block(20, 8)
        self.mask = nn.Conv2d(8, 1, 1)

    @staticmethod
    def block(inside: int, outside: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.LeakyReLU(0.1)
        )

    def forward(self, x: Tensor) -> Tensor:
        fine = self.a(x)
        middle = self.b(F.max_pool2d(fine, 2))
        coarse = self.c(F.max_pool2d(middle, 2))
        up = self.d(torch.cat([F.interpolate(coarse, scale_factor=2), middle], 1))
        return self.mask(self.e(torch.cat([F.interpolate(up, scale_factor=2), fine], 1)))


def denoise(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    """Which pixels belong to the shape?"""
    target = (F.avg_pool2d(x, 3, 1, 1) > 0.45).float()
    return F.binary_cross_entropy_with_logits(model(x), target)


def unet() -> Training:
    """Segmentation of shapes."""
    torch.manual_seed(83)
    model = Unet()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, shapes_batch(16, 16), denoise, optimizer, steps=90)


def tanh_stack(act: Callable[[], nn.Module] = nn.Tanh, gain: float = 5 / 3) -> Training:
    """Eleven layers of tanh that were initialised for it."""
    torch.manual_seed(84)
    layers: list[nn.Module] = [nn.Linear(64, 52), act()]
    for _ in range(10):
        layers += [nn.Linear(52, 52), act()]
    model = nn.Sequential(*layers, nn.Linear(52, 10))
    for m in model:
        if isinstance(m, nn.Linear):
            nn.init.orthogonal_(m.weight, gain=gain)
            nn.init.zeros_(m.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, digit_batch(), classify, optimizer, steps=150)


class Antisymmetric(nn.Module):
    """A recurrence whose matrix is antisymmetric, so that it forgets nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.free = nn.Parameter(0.3 * torch.randn(30, 30) / 30**0.5)
        self.enter = nn.Linear(6, 30)
        self.out = nn.Linear(30, 4)

    def forward(self, x: Tensor) -> Tensor:
        w = self.free - self.free.T
        h = torch.zeros(len(x), 30)
        for u in self.enter(x).unbind(1):
            h = h + 0.3 * torch.tanh(h @ w + u)
        return self.out(h)


def antisymmetric() -> Training:
    """Remembering the first token over forty steps."""
    torch.manual_seed(85)
    model = Antisymmetric()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, recall_batch(40), classify, optimizer, steps=120)


DEEP = Healthy(
    "ind7-healthy-deep",
    runs={
        "forty-blocks": very_deep,
        "resnet": resnet,
        "selu-coder": selu_coder,
        "dense-convolutions": dense,
        "converged": converged,
        "sines": sines,
        "gpt": gpt,
        "unet": unet,
        "tanh-stack": tanh_stack,
        "softsign-stack": partial(tanh_stack, act=nn.Softsign, gain=2.0),
    },
)

RECURRENT = Healthy(
    "ind7-healthy-recurrent",
    runs={
        "characters": characters,
        "tagger": tagger,
        "dilated": dilated,
        "tied": tied,
        "translate": translate,
        "antisymmetric": antisymmetric,
    },
)

THEMES = [DEEP, RECURRENT]
