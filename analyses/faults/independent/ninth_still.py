"""Weights that do not move, whatever the gradient is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_ninth_c import blobs, digits, grammar, marked, table, waves
from analyses.faults.observe import Observed
from analyses.faults.symptoms import unmoved
from analyses.faults.training import Training


def stops_early(make: Callable[[], Training], share: float) -> Symptom:
    """From that share of the steps on nothing moves any more, while the twin's loss is lower."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        torch.manual_seed(0)
        training = make()
        moved = 0.0
        before: list[Tensor] = []
        for step in range(training.steps):
            if step == round(share * training.steps):
                before = [p.detach().clone() for p in training.model.parameters()]
            training.step(training, step)
        for p, old in zip(training.model.parameters(), before, strict=True):
            moved = max(moved, float((p.detach() - old).norm() / old.norm().clamp(min=1e-9)))
        theirs = twin.loss_last if twin else 0.0
        worse = run.loss_last > theirs + 0.2 * run.loss_first
        return {
            "is": moved <= 1e-6 and worse,
            "moved": moved,
            "loss": run.loss_last,
            "twin": theirs,
        }

    return symptom


class PatchMLP(nn.Module):
    """Digits as sixteen patches: a shared linear layer, then gated mixing of all patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(4, 24)
        self.mix = nn.Linear(16, 16)
        self.gate = nn.Linear(24, 24)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 2, stride=2).transpose(1, 2)
        h = F.gelu(self.patch(patches))
        u = self.mix(h.transpose(1, 2)).transpose(1, 2)
        h = self.norm(h + u * torch.sigmoid(self.gate(h)))
        return self.head(h.mean(1))


def warm_patches(*, whole: bool = False) -> Training:
    """Warm-up of the learning rate; with `whole`, by a division of whole numbers."""
    torch.manual_seed(11)
    model = PatchMLP()
    warm = 400 if whole else 40

    def factor(step: int) -> float:
        return min(1, step // warm) if whole else min(1.0, (step + 1) / warm)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return Training(
        model,
        digits(48),
        lambda net, x, y: F.cross_entropy(net(x), y),
        optimizer,
        steps=240,
        schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, factor),
    )


class CellReader(nn.Module):
    """A GRU cell in a loop over words; the last state decides."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 16)
        self.cell = nn.GRUCell(16, 32)
        self.out = nn.Linear(32, 2)

    def forward(self, text: Tensor) -> Tensor:
        h = torch.zeros(text.shape[0], 32)
        for word in self.embed(text).unbind(1):
            h = self.cell(word, h)
        return self.out(h)


def word_cells(*, total: int = 250) -> Training:
    """Words counted by a cell; the learning rate decays to 0 over `total` calls."""
    torch.manual_seed(12)
    model = CellReader()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(
        model,
        marked(48, 10),
        lambda net, x, y: F.cross_entropy(net(x), y),
        optimizer,
        steps=240,
        schedule=torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=total, power=1.0),
    )


class Pair(nn.Module):
    """One tower for both images; their distance tells whether they show the same digit."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.scale = nn.Linear(1, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        gap = (self.tower(a) - self.tower(b)).square().sum(1, keepdim=True)
        return self.scale(gap).squeeze(1)


def same_digit(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of same or other, of neighbours in the batch sorted by digit."""
    order = y.argsort()
    x, y = x[order], y[order]
    a, b = torch.cat([x[:-1], x]), torch.cat([x[1:], x.flip(0)])
    same = torch.cat([y[:-1] == y[1:], y == y.flip(0)]).float()
    return F.binary_cross_entropy_with_logits(net(a, b), same)


def cleared(training: Training, step: int) -> dict[str, Any]:
    """zero_grad stands between backward and step."""
    loss = training.loss_at(step)
    loss.backward()
    training.optimizer.zero_grad()
    training.optimizer.step()
    return {"loss": loss.detach()}


def siamese(*, clear: bool = False) -> Training:
    """Pairs of digits, SGD with momentum."""
    torch.manual_seed(13)
    model = Pair()
    training = Training(
        model,
        digits(64, flat=True),
        same_digit,
        torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9),
        steps=240,
    )
    if clear:
        training.step = cleared
    return training


class Averaged(nn.Module):
    """An autoencoder of digits by convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(1, 12, 3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(192, 12)
        )
        self.decode = nn.Sequential(
            nn.Linear(12, 192),
            nn.SiLU(),
            nn.Unflatten(1, (12, 4, 4)),
            nn.ConvTranspose2d(12, 1, 4, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def averaging(training: Training, step: int, *, shadow: dict[str, Tensor], back: bool) -> Any:
    """Keep an average of the weights; with `back`, it is loaded and never swapped out again."""
    loss = training.loss_at(step)
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    with torch.no_grad():
        for name, p in training.model.named_parameters():
            shadow[name].lerp_(p, 1e-5)
            if back:
                p.copy_(shadow[name])
    return {"loss": loss.detach()}


def averaged_autoencoder(*, back: bool = False) -> Training:
    """Reconstruction of digits with an average of the weights beside it."""
    torch.manual_seed(14)
    model = Averaged()
    shadow = {name: p.detach().clone() for name, p in model.named_parameters()}
    return Training(
        model,
        digits(48),
        lambda net, x, y: F.mse_loss(net(x), x),
        torch.optim.Adam(model.parameters(), lr=3e-3),
        steps=240,
        step=partial(averaging, shadow=shadow, back=back),
    )


class Pooling(nn.Module):
    """Words are weighted by a learned query, then classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 24)
        self.key = nn.Linear(24, 24)
        self.query = nn.Parameter(torch.randn(24) / 24**0.5)
        self.head = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, text: Tensor) -> Tensor:
        x = self.embed(text)
        weight = torch.softmax(torch.tanh(self.key(x)) @ self.query, dim=1)
        return self.head((weight.unsqueeze(-1) * x).sum(1) * text.shape[1])


def pooled_words(lr: float = 1.0) -> Training:
    """Attention pooling trained by Adadelta, whose natural learning rate is 1."""
    torch.manual_seed(15)
    model = Pooling()
    return Training(
        model,
        marked(64, 10),
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.Adadelta(model.parameters(), lr=lr),
        steps=400,
        every=10,
    )


class Forecaster(nn.Module):
    """An LSTM that tells the next value of a wave."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 32, batch_first=True)
        self.out = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0])


def forecast(clip: float = 1.0) -> Training:
    """Waves told ahead by one step; SGD with a clipped gradient."""
    torch.manual_seed(16)
    model = Forecaster()

    def loss(net: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        return (net(x[:, :-1]) - x[:, 1:]).square().mean()

    return Training(
        model,
        waves(32, 24),
        loss,
        torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9),
        steps=200,
        clip=clip,
    )


def blob_convs(*, twice: bool = False) -> Training:
    """Rectangles segmented by dilated convolutions; the mean is divided by all pixels again."""
    torch.manual_seed(17)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv2d(12, 1, 3, padding=1),
    )

    def loss(net: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        mean = F.binary_cross_entropy_with_logits(net(x), mask)
        return mean / mask.numel() if twice else mean

    return Training(
        model,
        blobs(64),
        loss,
        torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
        steps=160,
    )


class Guesser(nn.Module):
    """A causal transformer layer of library parts for the made-up language."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 32)
        self.place = nn.Embedding(16, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, 16)

    def forward(self, text: Tensor) -> Tensor:
        n = text.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(n)
        h = self.embed(text) + self.place(torch.arange(n))
        return self.head(self.layer(h, src_mask=mask, is_causal=True))


def best_back(training: Training, step: int, *, best: dict[str, Any], wrong: bool) -> Any:
    """Keep the best weights; with `wrong`, every loss above an unreachable one restores them."""
    loss = training.loss_at(step)
    loss.backward()
    training.optimizer.step()
    training.optimizer.zero_grad()
    if not wrong and loss.item() < best["loss"]:
        best["loss"] = loss.item()
        best["weights"] = {k: v.clone() for k, v in training.model.state_dict().items()}
    if wrong and loss.item() > best["loss"]:
        training.model.load_state_dict(best["weights"])
    return {"loss": loss.detach()}


def guesser(*, wrong: bool = False) -> Training:
    """A language model whose best weights are kept; or put back after every step."""
    torch.manual_seed(18)
    model = Guesser()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    best = {"loss": 0.0 if wrong else 99.0, "weights": weights}
    return Training(
        model,
        grammar(24, 16),
        lambda net, text: F.cross_entropy(net(text[:, :-1]).mT, text[:, 1:]),
        torch.optim.AdamW(model.parameters(), lr=3e-3),
        steps=200,
        step=partial(best_back, best=best, wrong=wrong),
    )


def forgotten(training: Training, step: int) -> dict[str, Any]:
    """Nobody calls the optimizer's step."""
    training.optimizer.zero_grad()
    loss = training.loss_at(step)
    loss.backward()
    if training.schedule is not None:
        training.schedule.step()
    return {"loss": loss.detach()}


class Columns(nn.Module):
    """A table's columns as tokens of their own, gated and added up."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(10, 16) * 0.5)
        self.shift = nn.Parameter(torch.randn(10, 16) * 0.5)
        self.hidden = nn.Linear(160, 48)
        self.out = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.sin(x.unsqueeze(-1) * self.value + self.shift)
        return self.out(F.relu(self.hidden(tokens.flatten(1))))


def columns(*, forget: bool = False) -> Training:
    """Four classes from ten columns; NAdam."""
    torch.manual_seed(19)
    model = Columns()
    training = Training(
        model,
        table(64, 10, seed=2, classes=4),
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.NAdam(model.parameters(), lr=4e-3),
        steps=200,
    )
    if forget:
        training.step = forgotten
    return training


STILL = Fault(
    "ind9-steps-still",
    must=[["no-update"]],
    symptom=unmoved(1e-6),
    variants=[
        Variant("whole-division", healthy=warm_patches, broken=partial(warm_patches, whole=True)),
        Variant(
            "epochs-for-steps",
            healthy=word_cells,
            broken=partial(word_cells, total=12),
            symptom=stops_early(partial(word_cells, total=12), 0.1),
        ),
        Variant("cleared-before-step", healthy=siamese, broken=partial(siamese, clear=True)),
        Variant(
            "average-put-back",
            healthy=averaged_autoencoder,
            broken=partial(averaged_autoencoder, back=True),
            symptom=unmoved(1e-3),
        ),
        Variant(
            "adadelta-like-adam",
            healthy=pooled_words,
            broken=partial(pooled_words, lr=1e-4),
            symptom=unmoved(2e-3),
        ),
        Variant(
            "clipped-to-nothing",
            healthy=forecast,
            broken=partial(forecast, clip=1e-7),
            symptom=unmoved(1e-4),
        ),
        Variant(
            "divided-twice",
            healthy=blob_convs,
            broken=partial(blob_convs, twice=True),
            symptom=unmoved(1e-3),
        ),
        Variant("best-put-back", healthy=guesser, broken=partial(guesser, wrong=True)),
        Variant("step-forgotten", healthy=columns, broken=partial(columns, forget=True)),
    ],
)

FAULTS = [STILL]
