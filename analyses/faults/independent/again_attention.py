"""Attention that is too sharp, too flat, starved, cancelled or too narrow; and sound attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Healthy, Symptom, Variant
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


# Bottleneck.


def thin(faulty: Callable[[], Training], sound: Callable[[], Training]) -> Symptom:
    """The second layer's tokens depend on the first's by a Jacobian of low rank.

    At most a fifth of the twin's, and of the numbers that the first layer puts out.
    """

    def rank(make: Callable[[], Training]) -> tuple[int, int]:
        training = make()
        model = training.model.double()
        batch = [t[:2].double() if t.is_floating_point() else t[:2] for t in training.batch(0)]
        kept: list[Tensor] = []
        for name in ("first", "second"):
            getattr(model, name).register_forward_hook(lambda m, given, out: kept.append(out))
        model(batch[0])
        before, after = kept
        rows = [
            torch.autograd.grad(value, before, retain_graph=True)[0][0].flatten()
            for value in after[0].flatten()
        ]
        values = torch.linalg.svdvals(torch.stack(rows))
        return int((values > 1e-9 * values[0]).sum()), before[0].numel()

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None, "needs a twin"
        (found, wide), (theirs, _) = rank(faulty), rank(sound)
        return {
            "is": found <= min(wide, theirs) / 5,
            "rank": found,
            "twin": theirs,
            "wide": wide,
            "loss": run.loss_last,
            "twin_loss": twin.loss_last,
            "highest_entropy": min(max(c.entropies) for c in run.checkpoints),
        }

    return symptom


class Reader(nn.Module):
    """Latent tokens read cells, and are changed by a feed-forward net."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.cells = nn.LayerNorm(width)
        self.attention = Heads(width, 2)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, latent: Tensor, cells: Tensor) -> Tensor:
        x = latent + self.attention(self.norm1(latent), self.cells(cells))
        return x + self.mlp(self.norm2(x))


class Slots(nn.Module):
    """Three layers of latent tokens; the first reads cells, the others what is handed on."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.embed = nn.Linear(4, 16)
        self.place = nn.Parameter(torch.randn(16, 16))
        self.slots = nn.ParameterList(torch.randn(16, 16) for _ in range(3))
        self.first, self.second, self.third = Reader(16), Reader(16), Reader(16)
        self.out = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        cells = self.embed(patches(images)) + self.place
        x: Tensor | None = None
        for layer, slots in zip((self.first, self.second, self.third), self.slots, strict=True):
            if x is None:
                x = slots + cells
            else:
                x = slots + (x.mean(1, keepdim=True) if self.pooled else x)
            x = layer(x, cells if layer is self.first else x)
        assert x is not None
        return self.out(x)


def _restore(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    noise = 0.2 * torch.randn(images.shape, generator=seeded(int(labels.sum())))
    return F.mse_loss(model(images + noise), patches(images))


def slots(*, pooled: bool = False) -> Training:
    """Denoises digits; `pooled`: layers hand on their mean token."""
    torch.manual_seed(15)
    model = Slots(pooled)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    return Training(model, digits, _restore, optimizer, 160, 5)


class Steps(nn.Module):
    """Two encoder layers of PyTorch's on patches; the second gets tokens or copies of the mean."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.embed = nn.Linear(4, 12)
        self.place, self.again = (nn.Parameter(torch.randn(16, 12)) for _ in range(2))
        options: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        self.first = nn.TransformerEncoderLayer(12, 2, 24, **options)
        self.second = nn.TransformerEncoderLayer(12, 2, 24, **options)
        self.out = nn.Linear(16 * 12, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(self.embed(patches(images)) + self.place)
        if self.pooled:
            x = x.mean(1, keepdim=True).expand(-1, 16, -1)
        return self.out(self.second(x + self.again).flatten(1))


def steps(*, pooled: bool = False) -> Training:
    """Digits; `pooled`: the first layer's tokens are averaged before the second."""
    torch.manual_seed(16)
    model = Steps(pooled)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    return Training(model, digits, _classify, optimizer, 160, 5)


class Copier(nn.Module):
    """An encoder block reads symbols, a decoder block writes them backwards."""

    def __init__(self, length: int, pooled: bool) -> None:
        super().__init__()
        self.length, self.pooled = length, pooled
        self.embed = nn.Embedding(8, 16)
        self.place, self.again = (nn.Parameter(torch.randn(length, 16)) for _ in range(2))
        self.first, self.second = Block(16, 2), Block(16, 2)
        self.asks = nn.Linear(16, 1)
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 8)

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.first(self.embed(symbols) + self.place)
        if self.pooled:
            weights = torch.softmax(self.asks(x), dim=1)
            x = (weights * x).sum(1, keepdim=True).expand(-1, self.length, -1)
        else:
            x = x * torch.sigmoid(self.asks(x))
        return self.out(self.norm(self.second(x + self.again)))


def _symbols(step: int) -> Batch:
    return (torch.randint(8, (48, 20), generator=seeded(step)),)


def _backwards(model: nn.Module, symbols: Tensor) -> Tensor:
    return F.cross_entropy(model(symbols).flatten(0, 1), symbols.flip(1).flatten())


def copier(*, pooled: bool = False) -> Training:
    """20 symbols backwards; `pooled`: all that the decoder gets is one summary."""
    torch.manual_seed(17)
    model = Copier(20, pooled)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    return Training(model, _symbols, _backwards, optimizer, 240, 6)


BOTTLENECK = Fault(
    "ind2-bottleneck",
    must=[["information-bottleneck"]],
    variants=[
        Variant(
            "slots",
            slots,
            broken=partial(slots, pooled=True),
            # The second layer's tokens have nothing to choose by: entropy 0.986 to the end.
            may=["diffuse-softmax"],
            symptom=thin(partial(slots, pooled=True), slots),
        ),
        Variant(
            "averaged-patches",
            steps,
            broken=partial(steps, pooled=True),
            symptom=thin(partial(steps, pooled=True), steps),
        ),
        Variant(
            "one-summary",
            copier,
            broken=partial(copier, pooled=True),
            symptom=thin(partial(copier, pooled=True), copier),
        ),
    ],
)


# Sound attention.


class Vit(nn.Module):
    """Post-norm encoder layers of PyTorch's on patches, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 40)
        self.place = nn.Parameter(0.5 * torch.randn(16, 40))
        layer = nn.TransformerEncoderLayer(40, 4, 80, 0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3)
        self.out = nn.Linear(40, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.encoder(self.embed(patches(images)) + self.place).mean(1))


def vit() -> Training:
    """Digits."""
    torch.manual_seed(21)
    model = Vit()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 160)
    return Training(model, digits, _classify, optimizer, 160, 5, schedule=schedule)


class Speaker(nn.Module):
    """A causal language model with tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 32)
        nn.init.normal_(self.embed.weight, std=0.3)
        self.place = nn.Parameter(0.3 * torch.randn(32, 32))
        self.blocks = nn.Sequential(*(Block(32, 4, causal=True) for _ in range(3)))
        self.norm = nn.LayerNorm(32)

    def forward(self, text: Tensor) -> Tensor:
        x = self.blocks(self.embed(text) + self.place[: text.shape[1]])
        return self.norm(x) @ self.embed.weight.T


def _sentences(step: int) -> Batch:
    """Walks on a ring of twelve letters; each has a stride of its own, and some noise."""
    g = seeded(step)
    stride = torch.randint(1, 6, (32, 1), generator=g)
    start = torch.randint(12, (32, 1), generator=g)
    text = (start + stride * torch.arange(25)) % 12
    noise = torch.rand(text.shape, generator=g) < 0.05
    return (torch.where(noise, torch.randint(12, text.shape, generator=g), text),)


def _next(model: nn.Module, text: Tensor) -> Tensor:
    return F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def speaker() -> Training:
    """The next letter of each walk."""
    torch.manual_seed(22)
    model = Speaker()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    return Training(model, _sentences, _next, optimizer, 160, 5, clip=1.0)


class Translator(nn.Module):
    """An LSTM writes what another one read, with attention by dot products."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(10, 24), nn.Embedding(11, 24)
        self.encoder = nn.LSTM(24, 32, batch_first=True)
        self.decoder = nn.LSTM(24, 32, batch_first=True)
        self.ask = nn.Linear(32, 32, bias=False)
        self.mix, self.out = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, read: Tensor, written: Tensor) -> Tensor:
        states, last = self.encoder(self.source(read))
        own, _ = self.decoder(self.target(written), last)
        weights = torch.softmax(self.ask(own) @ states.transpose(1, 2) * 32**-0.5, dim=-1)
        return self.out(torch.tanh(self.mix(torch.cat([own, weights @ states], -1))))


def _pairs(step: int) -> Batch:
    read = torch.randint(10, (48, 9), generator=seeded(step))
    meant = (read.flip(1) + 3) % 10
    begin = torch.full((48, 1), 10)
    return read, torch.cat([begin, meant[:, :-1]], 1), meant


def _translated(model: nn.Module, read: Tensor, written: Tensor, meant: Tensor) -> Tensor:
    return F.cross_entropy(model(read, written).flatten(0, 1), meant.flatten())


def translator() -> Training:
    """Symbols backwards, each replaced by another."""
    torch.manual_seed(23)
    model = Translator()
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    return Training(model, _pairs, _translated, optimizer, 200, 5)


class Inducing(nn.Module):
    """A set's points exchange by a few inducing points, and are read by a seed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(2, 32), nn.GELU(), nn.Linear(32, 32))
        self.points, self.seed = (nn.Parameter(torch.randn(1, n, 32)) for n in (8, 1))
        self.gather, self.spread = Heads(32, 4), Heads(32, 4)
        self.read = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.out = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 1))

    def forward(self, cloud: Tensor) -> Tensor:
        x = self.embed(cloud)
        points = self.points + self.gather(self.points.expand(len(x), -1, -1), x)
        x = self.norm1(x + self.spread(x, points))
        both = torch.cat([self.seed.expand(len(x), -1, -1), x], 1)
        read = self.norm2(both + self.read(both, both, both)[0])
        return self.out(read[:, 0])[:, 0]


def _clouds(step: int) -> Batch:
    g = seeded(step)
    size = 0.3 + torch.rand(48, 1, 1, generator=g)
    cloud = size * torch.randn(48, 20, 2, generator=g) + torch.randn(48, 1, 2, generator=g)
    return cloud, cloud.std(1).log().sum(-1)


def _regress(model: nn.Module, cloud: Tensor, target: Tensor) -> Tensor:
    return F.smooth_l1_loss(model(cloud), target)


def inducing() -> Training:
    """How wide a cloud of points is."""
    torch.manual_seed(24)
    model = Inducing()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    return Training(model, _clouds, _regress, optimizer, 200, 5)


class Grouped(nn.Module):
    """Grouped queries with normed queries and keys, by scaled_dot_product_attention."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, width)
        self.norm_q, self.norm_k = nn.LayerNorm(8), nn.LayerNorm(8)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.gate, self.up = nn.Linear(width, 48), nn.Linear(width, 48)
        self.down = nn.Linear(48, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q = self.norm_q(self.q(h).unflatten(-1, (4, 8))).transpose(1, 2)
        k, v = self.kv(h).unflatten(-1, (2, 2, 8)).unbind(2)
        k = self.norm_k(k).transpose(1, 2).repeat_interleave(2, 1)
        v = v.transpose(1, 2).repeat_interleave(2, 1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Finder(nn.Module):
    """Two such blocks, and a token of its own that is read."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(7, 32)
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.blocks = nn.Sequential(Grouped(), Grouped())
        self.norm, self.out = nn.LayerNorm(32), nn.Linear(32, 6)

    def forward(self, bag: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(bag), -1, -1), self.embed(bag)], 1)
        return self.out(self.norm(self.blocks(x)[:, 0]))


def finder() -> Training:
    """The marked one of 16 is to be told."""
    torch.manual_seed(25)
    model = Finder()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    return Training(model, partial(marked, length=16), _classify, optimizer, 200, 5)


class Neighbours(nn.Module):
    """Graph attention with additive scores, residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.sends, self.receives = nn.Linear(width, 1), nn.Linear(width, 1)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.project(x)
        scores = F.leaky_relu(self.receives(h) + self.sends(h).transpose(1, 2), 0.2)
        weights = torch.softmax(scores.masked_fill(~edges, -torch.inf), dim=-1)
        return self.norm(x + F.elu(weights @ h))


class Graph(nn.Module):
    """Two layers; every node is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 32)
        self.one, self.two = Neighbours(32), Neighbours(32)
        self.out = nn.Linear(32, 3)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        x = F.elu(self.embed(nodes))
        return self.out(self.two(self.one(x, edges), edges))


def _graphs(step: int) -> Batch:
    """Communities: nodes of one kind are mostly linked; features tell the kind badly."""
    g = seeded(step)
    kinds = torch.randint(3, (8, 18), generator=g)
    alike = kinds[:, :, None] == kinds[:, None]
    draw = torch.rand(alike.shape, generator=g)
    edges = torch.where(alike, draw < 0.6, draw < 0.08)
    edges = edges | edges.transpose(1, 2) | torch.eye(18).bool()
    nodes = F.one_hot(kinds, 6).float() + 0.8 * torch.randn(8, 18, 6, generator=g)
    return nodes, edges, kinds


def _nodes(model: nn.Module, nodes: Tensor, edges: Tensor, kinds: Tensor) -> Tensor:
    return F.cross_entropy(model(nodes, edges).flatten(0, 1), kinds.flatten())


def graph() -> Training:
    """The community of every node."""
    torch.manual_seed(26)
    model = Graph()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, weight_decay=5e-4)
    return Training(model, _graphs, _nodes, optimizer, 200, 5)


ATTENTION = Healthy(
    "ind2-attention",
    runs={
        "post-norm-vit": vit,
        "causal-lm": speaker,
        "lstm-translator": translator,
        "inducing-points": inducing,
        "grouped-queries": finder,
        "graph-attention": graph,
    },
)


FAULTS = [PEAKED, DIFFUSE, STARVED, CANCELLING, BOTTLENECK]
THEMES = [ATTENTION]
