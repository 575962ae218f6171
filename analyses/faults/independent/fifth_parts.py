"""Networks of several parts that are wired wrongly, and ones that are wired well."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_fifth_parts import digits, fit, pictures, table
from analyses.faults.symptoms import (
    left_out,
    no_gradient_before,
    unmoved,
)
from analyses.faults.training import Training

SPLITS = ("test",)


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of a classifier."""
    return F.cross_entropy(model(x), y)


# ---------------------------------------------------------------- detached


class Towers(nn.Module):
    """Two towers, one for the upper half of a digit and one for the lower, matched in a batch."""

    def __init__(self, cached: bool) -> None:
        super().__init__()
        self.cached = cached
        self.upper = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.lower = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        a = self.upper(x[:, :32])
        if self.cached:  # the "index" is computed as if for serving
            with torch.no_grad():
                b = self.lower(x[:, 32:])
        else:
            b = self.lower(x[:, 32:])
        return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / 0.1


def match(model: nn.Module, x: Tensor) -> Tensor:
    """The right half among those of the batch."""
    return F.cross_entropy(model(x), torch.arange(len(x)))


def towers(fault: bool = False) -> Training:
    """Matching halves of digits."""
    torch.manual_seed(1)
    model = Towers(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(model, digits()[:1], match, optimizer, steps=200)


class Codebook(nn.Module):
    """An autoencoder of digits that writes four code words."""

    def __init__(self, straight: bool) -> None:
        super().__init__()
        self.straight = straight
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.SiLU(), nn.Linear(96, 4 * 12))
        self.words = nn.Linear(12, 10, bias=False)
        self.decoder = nn.Sequential(nn.Linear(40, 96), nn.SiLU(), nn.Linear(96, 64))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.encoder(x).view(-1, 4, 12)
        hard = F.one_hot(logits.argmax(-1), 12).float()
        if self.straight:
            soft = logits.softmax(-1)
            hard = hard + soft - soft.detach()
        out: Tensor = self.decoder(self.words(hard).flatten(1))
        return out


def restore(model: nn.Module, x: Tensor) -> Tensor:
    """Mean squared error to the input."""
    return F.mse_loss(model(x), x)


def codebook(fault: bool = False) -> Training:
    """Digits through discrete code words."""
    torch.manual_seed(2)
    model = Codebook(not fault)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return fit(model, digits()[:1], restore, optimizer, steps=200)


class Reader(nn.Module):
    """A convolution reads each row of a digit; a GRU reads the rows."""

    def __init__(self, stored: bool) -> None:
        super().__init__()
        self.stored = stored
        self.rows = nn.Sequential(
            nn.Conv1d(1, 8, 3, padding=1), nn.ELU(), nn.Conv1d(8, 8, 3, padding=1), nn.ELU()
        )
        self.gru = nn.GRU(64, 48, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = self.rows(x.view(-1, 1, 8)).flatten(1)
        if self.stored:  # through a numpy buffer, as a feature store does it
            features = torch.from_numpy(features.detach().numpy().copy())
        out, _ = self.gru(features.view(-1, 8, 64))
        scores: Tensor = self.head(out[:, -1])
        return scores


def reader(fault: bool = False) -> Training:
    """Digits, row by row."""
    torch.manual_seed(3)
    model = Reader(fault)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return fit(model, digits(), classify, optimizer, steps=150)


DETACHED = Fault(
    "ind5-detached",
    must=[["detached"]],
    may=["no-update"],  # what has no gradient doesn't move
    symptom=no_gradient_before(),
    variants=[
        Variant("towers-cached", partial(towers), broken=partial(towers, fault=True)),
        Variant("codes-argmax", partial(codebook), broken=partial(codebook, fault=True)),
        Variant(
            "rows-through-numpy",
            partial(reader),
            broken=partial(reader, fault=True),
            symptom=unmoved(0.0, "rows"),
        ),
    ],
)


# ---------------------------------------------------------------- not in the optimizer


class Tasks(nn.Module):
    """A trunk and a head for each target, added by name."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.heads = nn.ModuleDict({"first": nn.Linear(64, 1)})

    def add(self) -> None:
        """The second task's head."""
        self.heads["second"] = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 1))


def both(model: Tasks, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Sum of the two tasks' errors."""
    h = model.trunk(x)
    a = F.mse_loss(model.heads["first"](h), first)
    return a + F.mse_loss(model.heads["second"](h), second)


def late_head(fault: bool = False) -> Training:
    """Two tasks on a table; the second head comes before or after the optimizer."""
    torch.manual_seed(4)
    model = Tasks()
    if not fault:
        model.add()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    if fault:
        model.add()
    return fit(model, table(), both, optimizer, steps=200)


class Fill(nn.Module):
    """A convolutional encoder and decoder that fill in a digit's missing quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(16, 32, 3, padding=1)
        )
        self.decoder = nn.Sequential(
            nn.SiLU(),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        given = x.clone()
        given[:, :, 4:, 4:] = 0
        out: Tensor = self.decoder(self.encoder(given))
        return out


def filling(fault: bool = False) -> Training:
    """Filling in digits; the optimizer gets all, or the decoder only."""
    torch.manual_seed(5)
    model = Fill()
    held = model.decoder.parameters() if fault else model.parameters()
    optimizer = torch.optim.Adam(held, lr=2e-3)
    return fit(model, pictures()[:1], restore, optimizer, steps=150, size=32)


class Mixer(nn.Module):
    """Two mixer blocks over a digit's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 32)
        self.across = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.along = nn.ModuleList([nn.Linear(32, 32) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(32) for _ in range(2)])
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x.view(-1, 8, 8))
        for across, along, norm in zip(self.across, self.along, self.norms, strict=True):
            h = h + F.gelu(across(norm(h).transpose(1, 2))).transpose(1, 2)
            h = h + F.gelu(along(h))
        out: Tensor = self.head(h.mean(1))
        return out


def mixer(fault: bool = False) -> Training:
    """Digits by a mixer, whose new head is put in before or after the optimizer is made."""
    torch.manual_seed(6)
    model = Mixer()
    if not fault:
        model.head = nn.Linear(32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if fault:
        model.head = nn.Linear(32, 10)
    return fit(model, digits(), classify, optimizer, steps=200)


NOT_HELD = Fault(
    "ind5-not-in-optimizer",
    must=[["not-in-optimizer"]],
    may=["no-update"],  # what isn't held doesn't move
    symptom=left_out(),
    variants=[
        Variant("late-head", partial(late_head), broken=partial(late_head, fault=True)),
        Variant("decoder-only", partial(filling), broken=partial(filling, fault=True)),
        Variant("mixer-head-swapped", partial(mixer), broken=partial(mixer, fault=True)),
    ],
)


FAULTS = [DETACHED, NOT_HELD]
