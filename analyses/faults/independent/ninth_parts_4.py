"""One tower, one stage or one group of parameters that spoils the rest."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_ninth_d import chance, digit_batches, digits, picture_batches
from analyses.faults.observe import Observed
from analyses.faults.symptoms import decays, learns_less
from analyses.faults.training import Batch, Training

# --- a narrow place between two attention layers ---


class Reverser(nn.Module):
    """A transformer reads tokens, a second one writes them backwards from what is handed over."""

    def __init__(self, pooled: bool, width: int = 32, places: int = 24) -> None:
        super().__init__()
        self.pooled = pooled
        self.embed = nn.Embedding(6, width)
        self.place = nn.Parameter(0.5 * torch.randn(places, width))
        self.slot = nn.Parameter(0.5 * torch.randn(places, width))
        self.reader = nn.TransformerEncoderLayer(width, 4, 64, 0.0, batch_first=True)
        self.code = nn.Linear(width, 8 if pooled else width)
        self.expand = nn.Linear(8 if pooled else width, width)
        self.writer = nn.TransformerEncoderLayer(width, 4, 64, 0.0, batch_first=True)
        self.out = nn.Linear(width, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.reader(self.embed(tokens) + self.place)
        if self.pooled:
            h = h.mean(1, keepdim=True)
        return self.out(self.writer(self.expand(self.code(h)) + self.slot))


def reverser(pooled: bool = False) -> Training:
    torch.manual_seed(81)
    model = Reverser(pooled)

    def batch(step: int) -> Batch:
        return (torch.randint(6, (32, 24), generator=chance(step, 51)),)

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens).flatten(0, 1), tokens.flip(1).flatten())

    adam = torch.optim.Adam(model.parameters(), 3e-3)
    return Training(model, batch, loss, adam, steps=250)


class Heads(nn.Module):
    """Self-attention by hand, to places near by, with a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], 3, self.heads, -1)
        q, k, v = self.qkv(self.norm(x)).view(shape).permute(2, 0, 3, 1, 4)
        place = torch.arange(x.shape[1])
        far = (place[:, None] - place).abs() > 2
        logits = torch.matmul(q, k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        p = torch.softmax(logits.masked_fill(far, -1e9), -1)
        return x + self.out(torch.matmul(p, v).transpose(1, 2).flatten(2))


class Squeezed(nn.Module):
    """Two attention layers; the adapter between them has a single number per place."""

    def __init__(self, around: bool) -> None:
        super().__init__()
        self.around = around
        self.inward = nn.Linear(12 + 14, 48)
        self.first, self.second = Heads(48, 3), Heads(48, 3)
        self.down, self.up = nn.Linear(48, 1), nn.Linear(1, 48)
        self.outward = nn.Linear(48, 12)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.eye(14).expand(len(x), -1, -1)
        h = self.first(self.inward(torch.cat([x, places], -1)))
        adapted = self.up(F.gelu(self.down(h)))
        h = h + adapted if self.around else adapted
        return self.outward(self.second(h))


def squeezed(around: bool = True) -> Training:
    """Every place wants the vector four places on, two windows away; the adapter is bridged."""
    torch.manual_seed(82)
    model = Squeezed(around)

    def batch(step: int) -> Batch:
        x = torch.randn(32, 14, 12, generator=chance(step, 52))
        return x, x[:, 4:]

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x)[:, :10], y)

    adam = torch.optim.Adam(model.parameters(), 3e-3)
    return Training(model, batch, loss, adam, steps=350)


FAULTS = []
NARROW = Fault(
    "ind9-parts-narrow",
    must=[["information-bottleneck"]],
    symptom=learns_less(0.2),
    variants=[
        Variant(
            "pooled-handover",
            reverser,
            broken=partial(reverser, pooled=True),
            may=["diffuse-softmax"],  # the writer's places hold all the same: nothing to choose
        ),
        Variant("adapter-of-one", squeezed, broken=partial(squeezed, around=False)),
    ],
)
FAULTS.append(NARROW)


# --- one tower in which the gradient fades ---


class Towers(nn.Module):
    """Questions by a deep tower, answers by a shallow one."""

    def __init__(self, sigmoid: bool) -> None:
        super().__init__()
        width = 40
        layers: list[nn.Module] = []
        for i in range(9):
            layers += [nn.Linear(24 if i == 0 else width, width)]
            layers += [nn.Sigmoid() if sigmoid else nn.ELU()]
        self.question = nn.Sequential(*layers, nn.Linear(width, 16))
        self.answer = nn.Sequential(nn.Linear(18, 48), nn.ELU(), nn.Linear(48, 16))

    def forward(self, q: Tensor, a: Tensor) -> Tensor:
        return self.question(q) @ self.answer(a).T / 4


def towers(sigmoid: bool = False) -> Training:
    torch.manual_seed(83)
    model = Towers(sigmoid)
    asks, says = (torch.randn(6, n, generator=chance(n, 53)) for n in (24, 18))

    def batch(step: int) -> Batch:
        z = torch.randn(64, 6, generator=chance(step, 54))
        return z @ asks / 2, torch.tanh(z @ says / 2)

    def loss(model: nn.Module, q: Tensor, a: Tensor) -> Tensor:
        return F.cross_entropy(model(q, a), torch.arange(len(q)))

    adam = torch.optim.Adam(model.parameters(), 1e-3)
    return Training(model, batch, loss, adam, steps=200)


class Ward(nn.Module):
    """A patient's record: a series read by an RNN, and a table."""

    def __init__(self, bert_like: bool) -> None:
        super().__init__()
        self.rnn = nn.RNN(5, 32, batch_first=True)
        self.table = nn.Sequential(nn.Linear(7, 16), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4))
        if bert_like:
            for p in self.rnn.parameters():
                nn.init.normal_(p, std=0.02)
        else:
            nn.init.orthogonal_(dict(self.rnn.named_parameters())["weight_hh_l0"])

    def forward(self, series: Tensor, table: Tensor) -> Tensor:
        _, h = self.rnn(series)
        return self.head(torch.cat([h[-1], self.table(table)], -1))


def ward(bert_like: bool = False) -> Training:
    """The series begins with what matters; the RNN's weights are drawn small, or orthogonal."""
    torch.manual_seed(84)
    model = Ward(bert_like)

    def batch(step: int) -> Batch:
        g = chance(step, 55)
        series, table = torch.randn(64, 18, 5, generator=g), torch.randn(64, 7, generator=g)
        series[:, 1:] *= 0.2
        first = (series[:, 0, 0] > 0).long()
        return series, table, first + 2 * (table[:, 0] > 0).long()

    def loss(model: nn.Module, series: Tensor, table: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(series, table), y)

    adam = torch.optim.Adam(model.parameters(), 2e-3)
    return Training(model, batch, loss, adam, steps=200)


class Pupil(nn.Module):
    """A frozen teacher, and a pupil of twelve narrow layers."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.teacher = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))
        layers: list[nn.Module] = [nn.Linear(64, 32), nn.Tanh()]
        for _ in range(10):
            layers += [nn.Linear(32, 32), nn.Tanh()]
        self.student = nn.Sequential(*layers, nn.Linear(32, 10))
        for layer in self.student:
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
                if std:
                    nn.init.normal_(layer.weight, std=std)
                else:
                    nn.init.xavier_normal_(layer.weight, 1.2)


def pupil(std: float = 0.0) -> Training:
    """Distillation into a deep student, whose weights are drawn small, or for its width."""
    torch.manual_seed(85)
    model = Pupil(std)
    x, y = digits()
    taught = torch.optim.Adam(model.teacher.parameters(), 5e-3)
    for _ in range(60):
        taught.zero_grad()
        F.cross_entropy(model.teacher(x), y).backward()
        taught.step()
    model.teacher.requires_grad_(False)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        assert isinstance(model, Pupil)
        with torch.no_grad():
            told = (model.teacher(x) / 2).softmax(-1)
        said = model.student(x)
        soft = F.kl_div((said / 2).log_softmax(-1), told, reduction="batchmean")
        return 4 * soft + 0.3 * F.cross_entropy(said, y)

    sgd = torch.optim.SGD(model.student.parameters(), 0.02, momentum=0.9)
    return Training(model, digit_batches(64, 56), loss, sgd, steps=200)


FADING = Fault(
    "ind9-parts-fading-tower",
    must=[["vanishing-gradient"]],
    variants=[
        Variant(
            "question-sigmoids",
            towers,
            broken=partial(towers, sigmoid=True),
            symptom=decays(3, "question"),
        ),
        Variant(
            "series-small-weights",
            ward,
            broken=partial(ward, bert_like=True),
            symptom=decays(4, "rnn"),
        ),
        Variant(
            "deep-student",
            pupil,
            broken=partial(pupil, std=0.03),
            may=["no-update"],  # plain SGD: what gets no gradient does not move
            symptom=decays(3, "student"),
        ),
    ],
)
FAULTS.append(FADING)


# --- one group of parameters with far too large steps ---


def thrown(like: str, by: float) -> Symptom:
    """Matrices called so move by that many times their own norm, and the loss tells."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None
        mine, theirs = (max(m for n, m in r.moved.items() if like in n) for r in (run, twin))
        worse = learns_less(0.1)(run, twin)
        far = mine >= by and theirs < by / 3
        return {**worse, "is": worse["is"] and far, "moved": mine, "to": theirs}

    return symptom


def fine_tuned(head: float = 0.02) -> Training:
    """A trained convolutional body goes on at a low rate; its new head has a rate of its own."""
    torch.manual_seed(86)
    body = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.LeakyReLU(0.1), nn.Flatten(),
    )  # fmt: skip
    model = nn.Sequential()
    model.add_module("body", body)
    model.add_module("head", nn.Linear(24 * 16, 10))
    sgd = torch.optim.SGD(
        [{"params": body.parameters(), "lr": 0.002}, {"params": model.head.parameters()}],  # type: ignore[union-attr]
        head,
        momentum=0.9,
    )

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    return Training(model, picture_batches(48, 57), loss, sgd, steps=140)


class Speller(nn.Module):
    """A language model of three letters' context, whose embeddings are its output layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(30, 24)
        self.mix = nn.Sequential(nn.Linear(72, 96), nn.SiLU(), nn.Linear(96, 24))
        nn.init.normal_(self.letters.weight, std=0.2)

    def forward(self, context: Tensor) -> Tensor:
        return F.linear(self.mix(self.letters(context).flatten(1)), self.letters.weight)


def speller(letters: float = 5e-3) -> Training:
    """The embeddings have a learning rate of their own, by a slip some hundredfold."""
    torch.manual_seed(87)
    model = Speller()
    groups: list[dict[str, Any]] = [
        {"params": [*model.letters.parameters()], "lr": letters},
        {"params": [*model.mix.parameters()]},
    ]
    adam = torch.optim.Adam(groups, 3e-3)
    follows = torch.stack([torch.randperm(30, generator=chance(i, 58)) for i in range(3)])

    def batch(step: int) -> Batch:
        context = torch.randint(30, (96, 3), generator=chance(step, 59))
        return context, follows[context[:, 1] % 3, context[:, 2]]

    def loss(model: nn.Module, context: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(context), y)

    return Training(model, batch, loss, adam, steps=250)


class Splitter(nn.Module):
    """A variational autoencoder of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 12))
        self.decoder = nn.Sequential(nn.Linear(6, 64), nn.SiLU(), nn.Linear(64, 64))


def splitter(writing: float = 2e-3) -> Training:
    """Two optimizers, one for each half."""
    torch.manual_seed(88)
    model = Splitter()
    first = torch.optim.Adam(model.encoder.parameters(), 2e-3)
    second = torch.optim.Adam(model.decoder.parameters(), writing)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        assert isinstance(model, Splitter)
        mean, log_var = model.encoder(x).chunk(2, -1)
        z = mean + (0.5 * log_var).exp() * torch.randn(mean.shape, generator=chance(0, 60))
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(-1).mean()
        return F.mse_loss(model.decoder(z), x) + 0.002 * kl

    def step(training: Training, step: int) -> dict[str, Any]:
        loss = training.loss_at(step)
        first.zero_grad()
        second.zero_grad()
        loss.backward()
        first.step()
        second.step()
        return {"loss": loss.item()}

    return Training(
        model, digit_batches(64, 61), loss, first, steps=220, step=step, others=[second]
    )


THROWN = Fault(
    "ind9-parts-thrown",
    must=[["update-too-large"]],
    may=["exploding-gradient"],  # within a few steps the gradient is a hundred times its first
    variants=[
        Variant(
            "head-rate",
            fine_tuned,
            broken=partial(fine_tuned, head=20.0),
            symptom=thrown("head", 20),
        ),
        Variant(
            "embedding-rate",
            speller,
            broken=partial(speller, letters=1.5),
            symptom=thrown("letters", 10),
        ),
        Variant(
            "decoder-rate",
            splitter,
            broken=partial(splitter, writing=1.0),
            symptom=thrown("decoder", 10),
        ),
    ],
)
FAULTS.append(THROWN)
