"""Attention that is too sharp, too flat, starved, cancelled or too narrow; and sound attention."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_again_attend import (
    Block,
    Heads,
    Pool,
    digits,
    marked,
    patches,
    recall,
    seeded,
)
from analyses.faults.observe import Observed
from analyses.faults.symptoms import peaked
from analyses.faults.training import Batch, Training

SPLITS = ("test",)


def _classify(model: nn.Module, *batch: Tensor) -> Tensor:
    """Cross entropy of what the model says of all but the last tensor of a batch."""
    return F.cross_entropy(model(*batch[:-1]), batch[-1])


# Peaked.


class Lookup(nn.Module):
    """Looks a key up among pairs by attention with several heads."""

    def __init__(self, pairs: int, width: int, spread: float | None) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(pairs, width), nn.Embedding(8, width)
        self.norm = nn.LayerNorm(width)
        self.asked = nn.LayerNorm(width)
        self.read = Heads(width, 2, scale=1.0 if spread else None)
        self.out = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 8))
        if spread:
            nn.init.normal_(self.read.q.weight, std=spread)
            nn.init.normal_(self.read.k.weight, std=spread)

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        memory = self.norm(self.key(keys) + self.value(values))
        question = self.asked(self.key(asked))[:, None]
        return self.out((question + self.read(question, memory))[:, 0])


def lookup(*, spread: float | None = None) -> Training:
    """Recall among 16 pairs; `spread`: std of the projections' weights, and no scaling."""
    torch.manual_seed(3)
    model = Lookup(16, 32, spread)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    return Training(model, partial(recall, pairs=16), _classify, optimizer, 240, 6)


class Rows(nn.Module):
    """A token asks the rows of an image, in PyTorch's encoder layers."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.place = nn.Parameter(0.5 * torch.randn(9, width))
        self.first = nn.TransformerEncoderLayer(width, 4, 64, 0.0, "gelu", batch_first=True)
        self.second = nn.TransformerEncoderLayer(width, 4, 64, 0.0, "gelu", batch_first=True)
        self.out = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images.view(-1, 8, 8))
        x = torch.cat([torch.zeros_like(x[:, :1]), x], 1) + self.place
        return self.out(self.second(self.first(x))[:, 0])


def rows(*, times: float = 1.0) -> Training:
    """Digits by rows; queries and keys so many times as large."""
    torch.manual_seed(4)
    model = Rows()
    with torch.no_grad():
        for layer in (model.first, model.second):
            layer.self_attn.in_proj_weight[:64] *= times
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    return Training(model, digits, _classify, optimizer, 160, 5)


class Cosine(nn.Module):
    """A memory read by the cosine of question and keys."""

    def __init__(self, pairs: int, sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.key, self.value = nn.Embedding(pairs, 24), nn.Embedding(8, 24)
        self.ask, self.hold = nn.Linear(24, 24, bias=False), nn.Linear(24, 24, bias=False)
        self.out = nn.Linear(24, 8)

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        q = F.normalize(self.ask(self.key(asked)), dim=-1)[:, None]
        k = F.normalize(self.hold(self.key(keys)), dim=-1)
        weights = F.softmax(self.sharpness * (q @ k.transpose(1, 2)), dim=-1)
        return self.out((weights @ self.value(values))[:, 0])


def cosine(*, sharpness: float = 10.0, pairs: int = 40) -> Training:
    """Recall among so many pairs."""
    torch.manual_seed(6)
    model = Cosine(pairs, sharpness)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    return Training(model, partial(recall, pairs=pairs, size=64), _classify, optimizer, 300, 6)


PEAKED = Fault(
    "ind2-peaked",
    must=[["peaked-softmax"]],
    symptom=peaked(0.1),
    variants=[
        Variant("unscaled-lookup", lookup, broken=partial(lookup, spread=1.0)),
        Variant("encoder-layers", rows, broken=partial(rows, times=80.0)),
        Variant(
            "cosine-temperature",
            partial(cosine, pairs=24),
            broken=partial(cosine, pairs=24, sharpness=3000.0),
            # The keys' embedding has no way to the loss but through the scores.
            may=["vanishing-gradient", "softmax-borne"],
            healthy_may=["softmax-borne"],  # likewise
        ),
    ],
)


# Diffuse.


def flat(entropy: float) -> Symptom:
    """The last softmax called stays above it to the end; the twin's doesn't, and learns more."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None, "needs a twin"
        found = min(max(c.entropies) for c in run.checkpoints)
        lowest = min(min(c.entropies) for c in run.checkpoints)
        theirs = min(twin.last.entropies)
        worse = run.loss_last - twin.loss_last > 0.1 * twin.loss_first
        return {
            "is": found >= entropy > theirs and worse,
            "entropy": found,
            "lowest": lowest,
            "twin": theirs,
            "loss": run.loss_last,
            "twin_loss": twin.loss_last,
        }

    return symptom


class Listener(nn.Module):
    """A GRU reads, additive attention picks."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.twice = twice
        self.gru = nn.GRU(7, 32, batch_first=True)
        self.hidden, self.score = nn.Linear(32, 32), nn.Linear(32, 1)
        self.out = nn.Linear(32, 6)

    def forward(self, bag: Tensor) -> Tensor:
        states, _ = self.gru(bag)
        weights = torch.softmax(self.score(torch.tanh(self.hidden(states)))[..., 0], dim=-1)
        if self.twice:
            weights = torch.softmax(weights, dim=-1)
        return self.out((weights[:, None] @ states)[:, 0])


def listener(*, twice: bool = False) -> Training:
    """The marked one of 40 steps is to be told; `twice`: the weights go through softmax again."""
    torch.manual_seed(7)
    model = Listener(twice)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    return Training(model, partial(marked, length=40), _classify, optimizer, 200, 5)


class Searcher(nn.Module):
    """Two blocks read pairs of key and value and a question."""

    def __init__(self, pairs: int, scale: float | None) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(pairs, 48), nn.Embedding(8, 48)
        self.role = nn.Parameter(torch.randn(48))
        self.one, self.two = Block(48, 2, scale), Block(48, 2, scale)
        self.norm, self.out = nn.LayerNorm(48), nn.Linear(48, 8)

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        question = self.key(asked)[:, None] + self.role
        x = torch.cat([question, self.key(keys) + self.value(values)], 1)
        return self.out(self.norm(self.two(self.one(x))[:, 0]))


def searcher(*, scale: float | None = None) -> Training:
    """Recall among 24 pairs; `scale`: of the scores."""
    torch.manual_seed(8)
    model = Searcher(24, scale)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    return Training(model, partial(recall, pairs=24, size=32), _classify, optimizer, 240, 6)


DIFFUSE = Fault(
    "ind2-diffuse",
    must=[["diffuse-softmax"]],
    symptom=flat(0.98),
    variants=[
        Variant(
            "cosine",
            cosine,
            broken=partial(cosine, sharpness=1.0),
            may=["softmax-borne"],  # the keys' embedding has no other way to the loss
            healthy_may=["softmax-borne"],  # likewise
        ),
        Variant(
            "softmax-twice",
            listener,
            broken=partial(listener, twice=True),
            # The first softmax is driven to point, late, to make up for the second.
            may=["vanishing-gradient", "peaked-softmax"],
        ),
        Variant(
            "scale-cubed",
            searcher,
            broken=partial(searcher, scale=24.0**-3),
            may=["starved-pathway"],  # queries and keys beside values
        ),
    ],
)


# Starved.


def edge_starved(share: float) -> Symptom:
    """Of some tensor that modules share, one's part of the gradient is below, to the end."""

    def smallest(observed: Observed) -> float:
        return max(min(c.edge_shares, default=1.0) for c in observed.checkpoints)

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None, "needs a twin"
        found, theirs = smallest(run), smallest(twin)
        return {"is": found <= share and theirs >= 30 * share, "share": found, "twin": theirs}

    return symptom


class Side(nn.Module):
    """A block whose attention and feed-forward net read the same normed tokens."""

    def __init__(self, width: int, gain: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Heads(width, 4)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.register_buffer("gain", torch.full((width,), gain))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return x + self.gain * self.attention(normed) + self.mlp(normed)


class SideBySide(nn.Module):
    """Digits by patches, three parallel blocks."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 32)
        self.place = nn.Parameter(torch.randn(16, 32))
        self.blocks = nn.Sequential(*(Side(32, gain) for _ in range(3)))
        self.norm, self.out = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.embed(patches(images)) + self.place)
        return self.out(self.norm(x).mean(1))


def side_by_side(*, gain: float = 1.0) -> Training:
    """`gain`: a layer scale of attention's output, in a buffer, that is never learned."""
    torch.manual_seed(9)
    model = SideBySide(gain)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    return Training(model, digits, _classify, optimizer, 160, 5)


class Towers(nn.Module):
    """A GRU's states read by two attention pools, mixed by a gate."""

    def __init__(self, gate: float) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 32, batch_first=True)
        self.near, self.far = Pool(32, 24), Pool(32, 24)
        self.gate = nn.Parameter(torch.full((24,), gate))
        self.out = nn.Linear(24, 10)

    def forward(self, images: Tensor) -> Tensor:
        states, _ = self.gru(images.view(-1, 8, 8))
        share = torch.sigmoid(self.gate)
        mixed = share * self.far(states) + (1 - share) * self.near(states)
        return self.out(F.gelu(mixed))


def towers(*, gate: float = 0.0) -> Training:
    """Digits by rows; `gate`: where the mixing of the two pools starts."""
    torch.manual_seed(10)
    model = Towers(gate)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    return Training(model, digits, _classify, optimizer, 160, 5)


class Tasks(nn.Module):
    """A convolution's cells read by two pools, one for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 32, 3, 2, 1), nn.GELU()
        )
        self.kind, self.ink = Pool(32, 10), Pool(32, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        cells = self.stem(images.view(-1, 1, 8, 8)).flatten(2).transpose(1, 2)
        found = self.ink(cells)
        return self.kind(cells), found


def _both(model: nn.Module, images: Tensor, labels: Tensor, *, weight: float) -> Tensor:
    kind, found = model(images)
    ink = images.view(-1, 8, 8)
    above = (ink[:, :4].sum((1, 2)) > ink[:, 4:].sum((1, 2))).long()
    return F.cross_entropy(kind, labels) + weight * F.cross_entropy(found, above)


def tasks(*, weight: float = 1.0) -> Training:
    """Which digit, and which half has more ink; `weight`: the second loss's."""
    torch.manual_seed(11)
    model = Tasks()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    return Training(model, digits, partial(_both, weight=weight), optimizer, 160, 5)


STARVED = Fault(
    "ind2-starved",
    must=[["starved-pathway"]],
    symptom=edge_starved(1e-4),
    variants=[
        Variant("layer-scale", side_by_side, broken=partial(side_by_side, gain=1e-6)),
        Variant(
            "closed-gate", towers, broken=partial(towers, gate=-14.0), may=["saturated-activation"]
        ),
        Variant("task-weight", tasks, broken=partial(tasks, weight=1e-6)),
    ],
)


# Cancelling.


def opposed(agreement: float) -> Symptom:
    """The parts of some shared tensor's gradient cancel at every step looked at."""

    def largest(observed: Observed) -> float:
        return max(min(c.agreement, default=9.0) for c in observed.checkpoints)

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None, "needs a twin"
        found, theirs = largest(run), largest(twin)
        smallest = min(min(c.agreement, default=9.0) for c in twin.checkpoints)
        return {
            "is": found <= agreement and smallest >= 3 * agreement,
            "agreement": found,
            "twin": theirs,
            "twins_smallest": smallest,
            "loss": run.loss_last,
            "twin_loss": twin.loss_last,
        }

    return symptom


class Jitter(nn.Module):
    """Mixes a little of the neighbour into every token: a second view."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.97 * x + 0.03 * x.roll(1, 1)


class TwoViews(nn.Module):
    """Logits of two views of the tokens, by the same reader, put together."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign
        self.embed = nn.Linear(4, 32)
        self.place = nn.Parameter(torch.randn(16, 32))
        self.block = Block(32, 4)
        self.jitter, self.reader = Jitter(), Pool(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.block(self.embed(patches(images)) + self.place)
        return self.reader(x) + self.sign * self.reader(self.jitter(x))


def two_views(*, sign: float = 1.0) -> Training:
    """Digits; `sign`: of the second view's logits."""
    torch.manual_seed(12)
    model = TwoViews(sign)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    return Training(model, digits, _classify, optimizer, 200, 5)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -0.97 * grad


class Reversed(nn.Module):
    """A linear head that the gradient leaves with the opposite sign."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(_Reverse.apply(x))


class Adversarial(nn.Module):
    """An encoder of rows whose summary one head reads, and another one adversarially."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.place = nn.Parameter(torch.randn(8, 32))
        self.encoder = nn.Sequential(Block(32, 2), Block(32, 2), nn.LayerNorm(32))
        self.kind, self.origin = nn.Linear(32, 10), Reversed(32)
        self.origin.head.load_state_dict(self.kind.state_dict())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encoder(self.embed(images.view(-1, 8, 8)) + self.place).mean(1)
        return self.kind(x), self.origin(x)


def _origins(step: int) -> Batch:
    """Digits from ten scanners, each with its own background."""
    images, labels = digits(step)
    origin = torch.randint(10, labels.shape, generator=seeded(step + 7))
    return images + 0.05 * origin[:, None], labels, origin


def _adverse(
    model: nn.Module, images: Tensor, labels: Tensor, origin: Tensor, *, wrong: bool
) -> Tensor:
    kind, found = model(images)
    return F.cross_entropy(kind, labels) + F.cross_entropy(found, labels if wrong else origin)


def adversarial(*, wrong: bool = False) -> Training:
    """Digits, whatever the scanner; `wrong`: the adversary is given the digits' labels."""
    torch.manual_seed(13)
    model = Adversarial()
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    loss = partial(_adverse, wrong=wrong)
    return Training(model, _origins, loss, optimizer, 200, 5, clip=1.0)


class Match(nn.Module):
    """How alike two summaries are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.form = nn.Linear(width, width)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.form(a) * b).sum(-1)


class Triplet(nn.Module):
    """Summaries of three images by nn.MultiheadAttention; one is compared with the others."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 32)
        self.place = nn.Parameter(torch.randn(16, 32))
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16))
        self.norm = nn.BatchNorm1d(16, affine=False)
        self.match = Match(16)

    def encode(self, images: Tensor) -> Tensor:
        x = self.embed(patches(images)) + self.place
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.norm(self.mlp(x.mean(1)))

    def forward(self, anchor: Tensor, same: Tensor, other: Tensor) -> Tensor:
        a, s, o = self.encode(anchor), self.encode(same), self.encode(other)
        return self.match(a, s) - self.match(a, o)


def _triplets(step: int, *, wrong: bool) -> Batch:
    images, labels = digits(step, 160)
    anchor, its = images[:40], labels[:40]
    pool, kinds = images[40:], labels[40:]
    g = seeded(step + 5)
    alike = (its[:, None] == kinds[None]).float() + 1e-6
    unlike = (its[:, None] != kinds[None]).float()
    same = torch.multinomial(alike, 1, generator=g)[:, 0]
    other = same if wrong else torch.multinomial(unlike, 1, generator=g)[:, 0]

    def noisy(x: Tensor) -> Tensor:
        return x + 0.01 * torch.randn(x.shape, generator=g)

    return anchor, noisy(pool[same]), noisy(pool[other])


def _margin(model: nn.Module, *batch: Tensor) -> Tensor:
    return F.softplus(-model(*batch)).mean()


def triplet(*, wrong: bool = False) -> Training:
    """`wrong`: the image that should be another digit's is the same one, with other noise."""
    torch.manual_seed(14)
    model = Triplet()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    return Training(model, partial(_triplets, wrong=wrong), _margin, optimizer, 200, 5)


CANCELLING = Fault(
    "ind2-cancelling",
    must=[["cancelling-fork"]],
    symptom=opposed(0.1),
    variants=[
        Variant(
            "views-subtracted",
            two_views,
            broken=partial(two_views, sign=-1.0),
            may=["vanishing-gradient"],  # what is left of it goes to the encoder
        ),
        Variant(
            "adversary-same-labels",
            adversarial,
            broken=partial(adversarial, wrong=True),
            may=["vanishing-gradient"],  # likewise
        ),
        Variant("triplet-index", triplet, broken=partial(triplet, wrong=True)),
    ],
)


FAULTS = [PEAKED, DIFFUSE, STARVED, CANCELLING]
