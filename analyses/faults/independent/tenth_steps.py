"""Steps that are far too large, and steps that do not take place."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_tenth_c import (
    cross_entropy,
    sampled,
    scaled_digits,
    sentences,
    squared_error,
)
from analyses.faults.observe import Observed
from analyses.faults.symptoms import Evidence, learns_less, overshoots
from analyses.faults.training import Training

SPLITS = ("test",)


# Steps that are too large


class SmallCnn(nn.Module):
    """Two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x.view(-1, 1, 8, 8)))
        x = F.relu(self.second(x))
        return self.head(x.flatten(1))


def cnn(lr: float = 1e-3) -> Training:
    """Digits by a CNN with Adam."""
    torch.manual_seed(1)
    model = SmallCnn()
    return Training(
        model,
        sampled(*scaled_digits(), size=32),
        cross_entropy,
        torch.optim.Adam(model.parameters(), lr=lr),
        steps=200,
    )


class Attention(nn.Module):
    """Causal attention with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (
            t.view(b, n, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1)
        )
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(d // self.heads)
        future = torch.ones(n, n, dtype=torch.bool).triu(1)
        p = torch.softmax(scores.masked_fill(future, -1e9), dim=-1)
        return self.out(torch.matmul(p, v).transpose(1, 2).reshape(b, n, d))


class CharModel(nn.Module):
    """A pre-norm decoder for symbols."""

    def __init__(self, symbols: int, length: int, width: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(symbols, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            block = nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "attention": Attention(width, 4),
                    "norm2": nn.LayerNorm(width),
                    "up": nn.Linear(width, 4 * width),
                    "down": nn.Linear(4 * width, width),
                }
            )
            self.blocks.append(block)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            x = x + block["attention"](block["norm1"](x))
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x))))
        return self.head(self.norm(x))


def char_model(lr: float = 2e-3) -> Training:
    """A language model of a made-up grammar with AdamW."""
    torch.manual_seed(2)
    text = sentences(400, 25, 24)
    model = CharModel(24, 24)
    return Training(
        model,
        sampled(text[:, :-1], text[:, 1:], size=16),
        cross_entropy,
        torch.optim.AdamW(model.parameters(), lr=lr),
        steps=150,
    )


def summed_error(model: nn.Module, x: Tensor) -> Tensor:
    """Absolute error summed over pixels and samples."""
    return F.smooth_l1_loss(model(x), x, reduction="sum")


def mean_error(model: nn.Module, x: Tensor) -> Tensor:
    """Absolute error averaged over pixels and samples."""
    return F.smooth_l1_loss(model(x), x)


def autoencoder(summed: bool = False) -> Training:
    """Digits through 12 numbers and back, SGD with momentum."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(64, 48),
        nn.Tanh(),
        nn.Linear(48, 12),
        nn.Tanh(),
        nn.Linear(12, 48),
        nn.Tanh(),
        nn.Linear(48, 64),
    )
    x, _ = scaled_digits()
    return Training(
        model,
        sampled(x, size=64),
        summed_error if summed else mean_error,
        torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9),
        steps=300,
    )


class Reader(nn.Module):
    """A GRU over numbers; its last state says which of the marked ones was larger."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 32, batch_first=True)
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(x)
        return self.head(out[:, -1])


def marked_numbers(count: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sequences of numbers, a few of them marked; is the marked ones' sum positive?"""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, length, generator=generator)
    marks = (torch.rand(count, length, generator=generator) < 0.4).float()
    y = ((values * marks).sum(1) > 0).long()
    return torch.stack([values, marks], -1), y


def never_cleared(training: Training, step: int) -> dict[str, Any]:
    """A loop without `zero_grad`."""
    loss = training.loss_at(step)
    loss.backward()
    training.optimizer.step()
    return {"loss": loss.detach()}


def reader() -> Training:
    """A GRU with SGD."""
    torch.manual_seed(4)
    model = Reader()
    return Training(
        model,
        sampled(*marked_numbers(1024, 14, 4), size=32),
        cross_entropy,
        torch.optim.SGD(model.parameters(), lr=0.5),
        steps=300,
    )


def forget_to_clear(training: Training) -> None:
    """No `zero_grad` in the loop."""
    training.step = never_cleared


class ResidualMlp(nn.Module):
    """Blocks that add to a stream, each behind a layer norm."""

    def __init__(self, features: int, width: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Linear(features, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, width),
            )
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x).squeeze(-1)


def table(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A made-up table of eight columns and a target of mean 0."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator)
    y = x[:, 0] * x[:, 1] + torch.sin(2 * x[:, 2]) + 0.5 * x[:, 3].abs()
    y = y + 0.1 * torch.randn(count, generator=generator)
    return x, (y - y.mean()) / y.std()


def residual(growth: float = 0.995) -> Training:
    """Regression on a table; the rate is multiplied at every step."""
    torch.manual_seed(5)
    model = ResidualMlp(8, 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(
        model,
        sampled(*table(1000, 5), size=64),
        squared_error,
        optimizer,
        steps=200,
        schedule=torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=growth),
        clip=1.0,
    )


class Recommender(nn.Module):
    """People and things as vectors; an MLP says how they go together."""

    def __init__(self) -> None:
        super().__init__()
        self.people = nn.Embedding(120, 16)
        self.things = nn.Embedding(80, 16)
        self.mix = nn.Linear(32, 32)
        self.score = nn.Linear(32, 1)

    def forward(self, pair: Tensor) -> Tensor:
        both = torch.cat([self.people(pair[:, 0]), self.things(pair[:, 1])], -1)
        return self.score(F.leaky_relu(self.mix(both), 0.2)).squeeze(-1)


def liking(model: nn.Module, pair: Tensor, liked: Tensor) -> Tensor:
    """Binary cross-entropy of liking."""
    return F.binary_cross_entropy_with_logits(model(pair), liked)


def ratings() -> tuple[Tensor, Tensor]:
    """Pairs, and whether the person likes the thing."""
    generator = torch.Generator().manual_seed(6)
    people = torch.randn(120, 3, generator=generator)
    things = torch.randn(80, 3, generator=generator)
    pair = torch.stack(
        [
            torch.randint(120, (6000,), generator=generator),
            torch.randint(80, (6000,), generator=generator),
        ],
        1,
    )
    return pair, ((people[pair[:, 0]] * things[pair[:, 1]]).sum(-1) > 0).float()


def recommender(lr: float = 0.1) -> Training:
    """Adagrad on embeddings and a small MLP."""
    torch.manual_seed(6)
    model = Recommender()
    return Training(
        model,
        sampled(*ratings(), size=128),
        liking,
        torch.optim.Adagrad(model.parameters(), lr=lr),
        steps=300,
    )


LARGE = Fault(
    "ind10-steps-large",
    must=[["update-too-large"]],
    symptom=overshoots(),
    variants=[
        Variant(
            "cnn-adam",
            may=["dead-units", "vanishing-gradient", "no-update"],
            healthy=cnn,
            broken=partial(cnn, lr=0.3),
        ),
        Variant(
            "char-model-adamw",
            may=["peaked-softmax", "exploding-gradient"],
            healthy=char_model,
            broken=partial(char_model, lr=0.15),
        ),
        Variant(
            "summed-loss",
            may=["saturated-activation", "vanishing-gradient", "no-update"],
            healthy=autoencoder,
            broken=partial(autoencoder, summed=True),
        ),
        Variant(
            "never-cleared",
            may=["saturated-activation", "vanishing-gradient", "exploding-gradient"],
            healthy=reader,
            change=forget_to_clear,
        ),
        Variant(
            "growing-rate",
            may=["exploding-gradient"],
            healthy=residual,
            broken=partial(residual, growth=1.025),
        ),
        Variant("adagrad", healthy=recommender, broken=partial(recommender, lr=5.0)),
    ],
)


# Steps that do not take place


class PatchNet(nn.Module):
    """A small vision transformer of library layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(4, 32)
        self.place = nn.Parameter(torch.randn(1, 17, 32) * 0.02)
        self.cls = nn.Parameter(torch.zeros(1, 1, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        x = torch.cat([self.cls.expand(len(x), -1, -1), self.patch(x)], 1) + self.place
        return self.head(self.encoder(x)[:, 0])


def patches() -> Training:
    """Digits by patches, Adam."""
    torch.manual_seed(11)
    model = PatchNet()
    return Training(
        model,
        sampled(*scaled_digits(), size=32),
        cross_entropy,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=200,
    )


def cleared_too_early(training: Training, step: int) -> dict[str, Any]:
    """`zero_grad` stands between `backward` and `step`."""
    loss = training.loss_at(step)
    loss.backward()
    training.optimizer.zero_grad()
    training.optimizer.step()
    return {"loss": loss.detach()}


def clear_too_early(training: Training) -> None:
    """Clears the gradients before the step."""
    training.step = cleared_too_early


def warm_up(whole: bool, steps: int, step: int) -> float:
    """The share of the rate: of whole numbers it is 0 until the warm-up's end."""
    return float(step // steps) if whole else min(1.0, (step + 1) / steps)


def regression(whole: bool = False) -> Training:
    """An MLP on a table with a warm-up."""
    torch.manual_seed(12)
    model = nn.Sequential(
        nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1), nn.Flatten(0)
    )
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    factor = partial(warm_up, whole, 500 if whole else 50)
    return Training(
        model,
        sampled(*table(800, 12), size=64),
        squared_error,
        optimizer,
        steps=300,
        schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, factor),
    )


class Tagger(nn.Module):
    """Embedding, LSTM and a head for every position."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, 24)
        self.lstm = nn.LSTM(24, 48, batch_first=True)
        self.head = nn.Linear(48, symbols)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(ids))[0])


def tagger(every: int = 100, lr: float = 5e-3) -> Training:
    """Next symbols by an LSTM; the rate is lowered to a tenth every so often."""
    torch.manual_seed(13)
    text = sentences(300, 17, 20, seed=13)
    model = Tagger(20)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return Training(
        model,
        sampled(text[:, :-1], text[:, 1:], size=16),
        cross_entropy,
        optimizer,
        steps=200,
        schedule=torch.optim.lr_scheduler.StepLR(optimizer, every, gamma=0.1),
    )


class Denoiser(nn.Module):
    """A U-Net of two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(1, 12, 3, padding=1)
        self.down2 = nn.Conv2d(12, 24, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(24, 24, 3, padding=1)
        self.up = nn.ConvTranspose2d(24, 12, 2, stride=2)
        self.out = nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.middle(F.relu(self.down2(a))))
        return self.out(torch.cat([a, self.up(b)], 1))


def denoiser(clip: float = 1.0) -> Training:
    """Takes the noise out of digits, SGD with the gradient clipped."""
    torch.manual_seed(14)
    x, _ = scaled_digits()
    x = x.view(-1, 1, 8, 8)
    noisy = x + torch.randn(x.shape)
    model = Denoiser()
    return Training(
        model,
        sampled(noisy, x, size=32),
        squared_error,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        steps=200,
        clip=clip,
    )


class Mixer(nn.Module):
    """Mixes over places, then over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(8, 48)
        self.over_places = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.over_channels = nn.ModuleList(nn.Linear(48, 48) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(48) for _ in range(6))
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x.view(-1, 8, 8))
        for i, (places, channels) in enumerate(
            zip(self.over_places, self.over_channels, strict=True)
        ):
            x = x + F.gelu(places(self.norms[2 * i](x).transpose(1, 2))).transpose(1, 2)
            x = x + F.gelu(channels(self.norms[2 * i + 1](x)))
        return self.head(x.mean(1))


def mixer(brain: bool = False) -> Training:
    """Digits by a mixer with Adam at a small rate; `brain`: all of it in bfloat16."""
    torch.manual_seed(15)
    model = Mixer()
    x, y = scaled_digits()
    if brain:
        model, x = model.bfloat16(), x.bfloat16()
    return Training(
        model,
        sampled(x, y, size=64),
        cross_entropy,
        torch.optim.Adam(model.parameters(), lr=2e-5),
        steps=700,
        every=20,
    )


def bert(lr: float = 1e-3) -> Training:
    """A tiny BERT that tells which of two symbols comes first, AdamW."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(16)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=12,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=2,
        )
    )
    ids = torch.randint(2, 12, (1500, 10))
    y = (ids[:, :5] < 7).sum(1).gt(2).long()
    return Training(
        model,
        sampled(ids, y, size=32),
        library_loss,
        torch.optim.AdamW(model.parameters(), lr=lr),
        steps=150,
    )


def library_loss(model: nn.Module, ids: Tensor, y: Tensor) -> Tensor:
    """The loss that the library's model returns."""
    return model(input_ids=ids, labels=y).loss


def hardly_moves(limit: float) -> Any:
    """No matrix moves by more than that share of its norm, and the loss stays up."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        moved = max(run.moved.values())
        worse = learns_less(0.1)(run, twin)
        return {**worse, "is": worse["is"] and moved <= limit, "moved": moved}

    return symptom


STILL = Fault(
    "ind10-steps-still",
    must=[["no-update"]],
    symptom=hardly_moves(1e-3),
    variants=[
        Variant(
            "cleared-too-early", may=["diffuse-softmax"], healthy=patches, change=clear_too_early
        ),
        Variant("whole-number-warm-up", healthy=regression, broken=partial(regression, whole=True)),
        Variant(
            "schedule-by-batch",
            healthy=tagger,
            broken=partial(tagger, every=1, lr=1e-3),
            symptom=hardly_moves(2e-2),
        ),
        Variant("clipped-to-nothing", healthy=denoiser, broken=partial(denoiser, clip=1e-6)),
        Variant(
            "rounded-away",
            healthy=mixer,
            broken=partial(mixer, brain=True),
            symptom=hardly_moves(3e-2),
        ),
        Variant(
            "rate-of-nothing", may=["diffuse-softmax"], healthy=bert, broken=partial(bert, lr=1e-9)
        ),
    ],
)

FAULTS = [LARGE, STILL]
