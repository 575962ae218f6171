"""Operations that give infinity or not a number, and numbers too small for half precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_ninth_c import (
    blobs,
    digits,
    draw,
    grammar,
    marked,
    table,
    waves,
)
from analyses.faults.observe import Observed, observe
from analyses.faults.symptoms import not_finite
from analyses.faults.training import Batch, Training


def separable(size: int) -> Callable[[int], Batch]:
    """Eight columns and a class that a wide margin divides."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3000, 8, generator=g) * 2
    side = x[:, 0] - x[:, 1] + x[:, 2]
    x, side = x[side.abs() > 1], side[side.abs() > 1]

    def batch(step: int) -> Batch:
        index = draw(step, size, len(side))
        return x[index], (side[index] > 0).float()

    return batch


def by_hand(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Binary cross entropy as it stands in the textbook."""
    p = torch.sigmoid(net(x)).squeeze(1)
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


def by_library(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Binary cross entropy from the logit."""
    return F.binary_cross_entropy_with_logits(net(x).squeeze(1), y)


def churn(*, textbook: bool = False) -> Training:
    """Two classes far apart; the classifier grows sure of them."""
    torch.manual_seed(21)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    model.append(nn.Linear(32, 1))
    return Training(
        model,
        separable(64),
        by_hand if textbook else by_library,
        torch.optim.Adam(model.parameters(), lr=0.003),
        steps=250,
    )


class Tower(nn.Module):
    """Digits to points in space, by convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.ELU(), nn.Flatten(), nn.Linear(192, 12)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def hardest(net: nn.Module, x: Tensor, y: Tensor, *, eps: float) -> Tensor:
    """A triplet loss with the nearest other of the batch, by plain Euclidean distances."""
    z = net(x)
    squares = (z.unsqueeze(1) - z.unsqueeze(0)).pow(2).sum(-1)
    distance = torch.sqrt(squares + eps)
    same = y.unsqueeze(1) == y.unsqueeze(0)
    far = (distance * same).sum(1) / same.sum(1)
    near = (distance + 1e3 * same).amin(1)
    return (far - near + 1.0).clamp(min=0).mean()


def triplets(eps: float = 1e-6) -> Training:
    """Metric learning of digits; the diagonal of the distances is 0."""
    torch.manual_seed(22)
    model = Tower()
    return Training(
        model,
        digits(48),
        partial(hardest, eps=eps),
        torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=150,
    )


def reviews(size: int, *, blank: bool) -> Callable[[int], Batch]:
    """Texts padded with 0 and their mask; from step 30 on, some text is blank now and then."""
    words = marked(size, 12)

    def batch(step: int) -> Batch:
        text, y = words(step)
        g = torch.Generator().manual_seed(step)
        length = torch.randint(8, 13, (size, 1), generator=g)
        if blank and step >= 30 and step % 6 == 3:
            length[step % size] = 0
        mask = (torch.arange(12) < length).float()
        return (text + 1) * mask.long(), mask, y

    return batch


class MeanText(nn.Module):
    """The masked mean of a convolution over words."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 24, padding_idx=0)
        self.conv = nn.Conv1d(24, 32, 3, padding=1)
        self.head = nn.Linear(32, 2)

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        h = torch.tanh(self.conv(self.embed(text).transpose(1, 2))) * mask.unsqueeze(1)
        return self.head(h.sum(2) / mask.sum(1, keepdim=True))


def blank_text(*, blank: bool = False) -> Training:
    """Sentiment of texts, of which one can be empty."""
    torch.manual_seed(23)
    model = MeanText()
    return Training(
        model,
        reviews(32, blank=blank),
        lambda net, text, mask, y: F.cross_entropy(net(text, mask), y),
        torch.optim.Adam(model.parameters(), lr=4e-3),
        steps=160,
        every=3,
    )


class HandAttention(nn.Module):
    """Causal self-attention written by hand; the mask is added to the scores."""

    def __init__(self, *, product: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 32)
        self.place = nn.Parameter(torch.randn(16, 32) * 0.1)
        self.q, self.k, self.v = (nn.Linear(32, 32, bias=False) for _ in range(3))
        self.ff = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16))
        self.product = product

    def forward(self, text: Tensor) -> Tensor:
        x = self.embed(text) + self.place
        scores = self.q(x) @ self.k(x).mT / 32**0.5
        future = torch.ones(16, 16).triu(1)
        scores = scores + future * (float("-inf") if self.product else -1e4)
        return self.ff(x + torch.softmax(scores, -1) @ self.v(x))


def masked_lm(*, product: bool = False) -> Training:
    """A language model whose mask is a product with infinity, or with a large number."""
    torch.manual_seed(24)
    model = HandAttention(product=product)
    return Training(
        model,
        grammar(24, 16),
        lambda net, text: F.cross_entropy(net(text[:, :-1]).mT, text[:, 1:]),
        torch.optim.AdamW(model.parameters(), lr=4e-3),
        steps=150,
    )


class RateModel(nn.Module):
    """Log rates of counts from a table, by a network with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 32)
        self.out = nn.Linear(32, 1)
        self.skip = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.out(torch.tanh(self.hidden(x))) + self.skip(x)).squeeze(1)


def counts(size: int, *, outlier: bool) -> Callable[[int], Batch]:
    """Poisson counts; six rows of the table were entered in another unit."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(1200, 6, generator=g)
    y = torch.poisson((0.6 * x[:, 0] - 0.5 * x[:, 1] + 0.8).exp(), generator=g)
    if outlier:
        x[31::200, 0] *= 2400.0

    def batch(step: int) -> Batch:
        index = draw(step, size, 1200)
        return x[index], y[index]

    return batch


def poisson(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Negative log-likelihood of counts, with exp written out."""
    log_rate = net(x)
    return (torch.exp(log_rate) - y * log_rate).mean()


def count_model(*, outlier: bool = False) -> Training:
    """Poisson regression."""
    torch.manual_seed(25)
    model = RateModel()
    return Training(
        model,
        counts(32, outlier=outlier),
        poisson,
        torch.optim.Adam(model.parameters(), lr=5e-3),
        steps=200,
    )


class CosineWords(nn.Module):
    """A bag of words against prototypes, by cosine, with a GRU before."""

    def __init__(self, *, safe: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 20, padding_idx=0)
        self.rnn = nn.RNN(20, 20, batch_first=True, nonlinearity="relu", bias=False)
        self.prototypes = nn.Parameter(torch.randn(2, 20))
        self.safe = safe

    def forward(self, text: Tensor) -> Tensor:
        h = self.rnn(self.embed(text))[0].mean(1)
        size = h.norm(dim=1, keepdim=True)
        h = h / (size.clamp(min=1e-6) if self.safe else size)
        return 8 * h @ F.normalize(self.prototypes, dim=1).T


def cosine_words(*, safe: bool = True) -> Training:
    """Texts, some of padding only, by cosine."""
    torch.manual_seed(26)
    model = CosineWords(safe=safe)

    def loss(net: nn.Module, text: Tensor, _: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(text), y)

    return Training(
        model,
        reviews(32, blank=True),
        loss,
        torch.optim.Adam(model.parameters(), lr=4e-3),
        steps=200,
        every=3,
    )


def survey(size: int, *, hole: bool) -> Callable[[int], Batch]:
    """A table of which one cell is empty, or filled in with the mean."""
    whole = table(size, 10, seed=4)

    def batch(step: int) -> Batch:
        x, y = whole(step)
        if step == 42:
            x = x.clone()
            x[5, 3] = float("nan") if hole else 0.0
        return x, y

    return batch


def tabular(*, hole: bool = False) -> Training:
    """Regression of a survey's last column, with batch norm."""
    torch.manual_seed(27)
    model = nn.Sequential(
        nn.Linear(10, 48), nn.BatchNorm1d(48), nn.SiLU(), nn.Linear(48, 24), nn.SiLU()
    )
    model.append(nn.Linear(24, 1))
    return Training(
        model,
        survey(48, hole=hole),
        lambda net, x, y: F.mse_loss(net(x).squeeze(1), y),
        torch.optim.AdamW(model.parameters(), lr=4e-3),
        steps=180,
        every=3,
    )


class TinyDecoder(nn.Module):
    """An LSTM that answers a question: only the answer's symbols are scored."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 24)
        self.lstm = nn.LSTM(24, 40, batch_first=True)
        self.out = nn.Linear(40, 16)

    def forward(self, text: Tensor) -> Tensor:
        return self.out(self.lstm(self.embed(text))[0])


def answers(size: int, *, cut: bool) -> Callable[[int], Batch]:
    """Questions of which labels are ignored; with `cut`, long ones lose their answer."""
    text_of = grammar(size, 16)

    def batch(step: int) -> Batch:
        (text,) = text_of(step)
        labels = text.clone()
        labels[:, : 17 if cut and step % 50 == 35 else 2] = -100
        return text, labels

    return batch


def answering(*, cut: bool = False) -> Training:
    """Fine-tuning on answers, cut at the longest length."""
    torch.manual_seed(28)
    model = TinyDecoder()

    def loss(net: nn.Module, text: Tensor, labels: Tensor) -> Tensor:
        logits = net(text)[:, :-1].reshape(-1, 16)
        return F.cross_entropy(logits, labels[:, 1:].reshape(-1), ignore_index=-100)

    return Training(
        model,
        answers(4, cut=cut),
        loss,
        torch.optim.Adam(model.parameters(), lr=5e-3),
        steps=160,
    )


def angle(net: nn.Module, x: Tensor, y: Tensor, *, margin: float) -> Tensor:
    """Angles between unit vectors, straight from their cosines, or kept off the ends."""
    z = F.normalize(net(x), dim=1)
    cosine = z @ z.T
    if margin:
        cosine = cosine.clamp(-1 + margin, 1 - margin)
    turn = torch.acos(cosine)
    same = (y.unsqueeze(1) == y.unsqueeze(0)).float()
    return (same * turn).mean() + ((1 - same) * (1.5 - turn).clamp(min=0)).mean()


class Facer(nn.Module):
    """An embedding of digits by two linear layers with layer norm between."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(64, 48)
        self.norm = nn.LayerNorm(48)
        self.b = nn.Linear(48, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.gelu(self.norm(self.a(x))))


def angles(margin: float = 1e-4) -> Training:
    """Contrastive learning with angles of all pairs, a sample with itself among them."""
    torch.manual_seed(29)
    model = Facer()
    return Training(
        model,
        digits(40, flat=True),
        partial(angle, margin=margin),
        torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9),
        steps=150,
    )


class Scaler(nn.Module):
    """Waves scaled by their batch's spread, then classified by a GRU."""

    def __init__(self, *, guard: bool) -> None:
        super().__init__()
        self.lift = nn.Linear(1, 16)
        self.rnn = nn.GRU(16, 24, batch_first=True)
        self.head = nn.Linear(24, 3)
        self.guard = guard

    def forward(self, x: Tensor) -> Tensor:
        h = self.rnn(self.lift(x))[1][0]
        spread = h.std(0, unbiased=not self.guard)
        return self.head((h - h.mean(0)) / (spread + 1e-2))


def ragged(size: int) -> Callable[[int], Batch]:
    """Waves; the last batch of every epoch of forty holds a single one."""
    whole, single = waves(size, 20), waves(1, 20)

    def batch(step: int) -> Batch:
        return single(step) if step % 40 == 39 else whole(step)

    return batch


def ragged_waves(*, guard: bool = True) -> Training:
    """Normalised by hand over the batch, which can be of one sample."""
    torch.manual_seed(30)
    model = Scaler(guard=guard)
    return Training(
        model,
        ragged(32),
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.Adam(model.parameters(), lr=5e-3),
        steps=150,
        every=3,
    )


class Developer(nn.Module):
    """Brightens images: a power of their brightness, told by convolutions."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 1, 3, padding=1)
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        light = x * (1 + torch.tanh(self.out(torch.tanh(self.conv(x)))))
        return (light + self.floor) ** 0.4


def gamma_corrected(floor: float = 1e-3) -> Training:
    """Images brought to a gamma; black pixels are 0."""
    torch.manual_seed(31)
    model = Developer(floor)
    return Training(
        model,
        digits(24),
        lambda net, x, y: F.mse_loss(net(x), x.sqrt().roll(1, -1) + 0.2 * x),
        torch.optim.Adam(model.parameters(), lr=5e-3),
        steps=150,
    )


NON_FINITE = Fault(
    "ind9-numbers-nonfinite",
    must=[["non-finite"]],
    symptom=not_finite(),
    variants=[
        Variant(
            "log-of-zero",
            healthy=churn,
            broken=partial(churn, textbook=True),
            operation=["log"],
        ),
        Variant(
            "root-of-zero",
            healthy=triplets,
            broken=partial(triplets, eps=0.0),
            operation=["sqrt"],
        ),
        Variant(
            "mean-of-none",
            healthy=blank_text,
            broken=partial(blank_text, blank=True),
            operation=["div"],
        ),
        Variant(
            "zero-times-infinity",
            healthy=masked_lm,
            broken=partial(masked_lm, product=True),
            operation=["mul"],
        ),
        Variant(
            "exp-of-outlier",
            healthy=count_model,
            broken=partial(count_model, outlier=True),
            # some cells of a table two thousand times as large as the others
            may=["unscaled-input"],
            operation=["exp"],
        ),
        Variant(
            "unit-vector-of-zero",
            healthy=cosine_words,
            broken=partial(cosine_words, safe=False),
            operation=["div"],
        ),
        Variant(
            "hole-in-table",
            healthy=tabular,
            broken=partial(tabular, hole=True),
            operation=["input", "addmm", "linear"],
        ),
        Variant(
            "all-labels-ignored",
            healthy=answering,
            broken=partial(answering, cut=True),
            operation=["nll_loss", "nll_loss_forward", "cross_entropy"],
        ),
        Variant(
            "angle-with-itself",
            healthy=angles,
            broken=partial(angles, margin=0.0),
            operation=["acos"],
        ),
        Variant(
            "spread-of-one",
            healthy=ragged_waves,
            broken=partial(ragged_waves, guard=False),
            operation=["std"],
        ),
        Variant(
            "power-of-black",
            healthy=gamma_corrected,
            broken=partial(gamma_corrected, floor=0.0),
            operation=["pow"],
        ),
    ],
)


def flushed(make: Callable[[], Training], share: float) -> Symptom:
    """Of the elements whose gradient in float32 is not 0, that many are 0; the twin does better."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        found = median(c.lost_in_half for c in observe(make, half=True).checkpoints)
        assert twin is not None
        worse = run.loss_last > 2 * twin.loss_last
        return {"is": found >= share and worse, "lost": found, "loss": run.loss_last}

    return symptom


def scaled(training: Training, step: int, *, scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """A step with a loss scaler."""
    loss = training.loss_at(step)
    scaler.scale(loss).backward()
    scaler.step(training.optimizer)
    scaler.update()
    training.optimizer.zero_grad()
    return {"loss": loss.detach()}


class HalfSegmenter(nn.Module):
    """Convolutions with a shortcut, run under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.a(x))
        return self.c(h + F.silu(self.b(h)))


def half_blobs(*, scale: bool = True) -> Training:
    """Segmentation under float16; the loss is one small term of a sum, by its weight."""
    torch.manual_seed(32)
    model = HalfSegmenter()

    def loss(net: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            logits = net(x)
        return 1e-3 * F.binary_cross_entropy_with_logits(logits.float(), mask)

    training = Training(
        model, blobs(32), loss, torch.optim.AdamW(model.parameters(), lr=4e-3), steps=100
    )
    if scale:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        training.step = partial(scaled, scaler=scaler)
    return training


def half_pictures(*, scale: bool = True) -> Training:
    """An autoencoder under float16; the loss is divided as in a recipe for many machines."""
    torch.manual_seed(33)
    model = nn.Sequential(
        nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 24), nn.Tanh(), nn.Linear(24, 96), nn.Tanh()
    )
    model.append(nn.Linear(96, 64))

    def loss(net: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            again = net(x)
        return F.mse_loss(again.float(), x) / 2048

    training = Training(
        model,
        digits(192, flat=True),
        loss,
        torch.optim.RMSprop(model.parameters(), lr=1e-3, eps=1e-12),
        steps=150,
    )
    if scale:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        training.step = partial(scaled, scaler=scaler)
    return training


class Student(nn.Module):
    """A small encoder with attention that imitates a fixed teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 32)
        self.attend = nn.MultiheadAttention(32, 2, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.ff = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 20))

    def forward(self, text: Tensor) -> Tensor:
        x = self.embed(text)
        return self.ff(self.norm(x + self.attend(x, x, x, need_weights=False)[0]).mean(1))


def distilled(*, scale: bool = True) -> Training:
    """Soft labels of a hot teacher, averaged over all entries, under float16."""
    torch.manual_seed(34)
    teacher = nn.Sequential(nn.EmbeddingBag(12, 20), nn.Linear(20, 20))
    for p in teacher.parameters():
        p.requires_grad_(False).mul_(3.0)
    model = Student()
    hot = 40.0

    def loss(net: nn.Module, text: Tensor, _: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            logits = net(text)
        soft = F.softmax(teacher(text) / hot, -1)
        student = F.log_softmax(logits.float() / hot, -1)
        return (soft * (soft.log() - student)).mean()

    training = Training(
        model,
        marked(64, 12),
        loss,
        torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-12),
        steps=120,
    )
    if scale:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        training.step = partial(scaled, scaler=scaler)
    return training


UNDERFLOW = Fault(
    "ind9-numbers-underflow",
    must=[["underflow"]],
    variants=[
        Variant(
            "small-weight",
            healthy=half_blobs,
            broken=partial(half_blobs, scale=False),
            # what is flushed never reaches the layers below
            may=["vanishing-gradient"],
            symptom=flushed(partial(half_blobs, scale=False), 0.3),
        ),
        Variant(
            "divided-loss",
            healthy=half_pictures,
            broken=partial(half_pictures, scale=False),
            # what is flushed never reaches the layers below
            may=["vanishing-gradient"],
            symptom=flushed(partial(half_pictures, scale=False), 0.3),
        ),
        Variant(
            "hot-teacher",
            healthy=distilled,
            broken=partial(distilled, scale=False),
            # what is flushed never reaches the attention beside the shortcut, which stays as it is
            may=["no-update", "vanishing-gradient", "starved-pathway"],
            symptom=flushed(partial(distilled, scale=False), 0.3),
        ),
    ],
)

FAULTS = [NON_FINITE, UNDERFLOW]
