"""Parts wired so that some of them get none of the gradient, or nobody steps them."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_fourth_parts import (
    Reversal,
    classify,
    conv,
    digit_images,
    flat_digits,
    grammar,
    next_symbol,
    patches,
    signs,
    source,
    words,
)
from analyses.faults.observe import Observed
from analyses.faults.symptoms import learns_less, left_out, no_gradient_before
from analyses.faults.training import Batch, Training, ordinary

# One branch of several gets next to nothing.


def starves(share: float) -> Symptom:
    """One of the modules that read the same tensor hands back that little of its gradient.

    At every step looked at, and never so little in the twin.
    """

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        found = max(min(c.edge_shares, default=1.0) for c in run.checkpoints)
        theirs = max(min(c.edge_shares, default=1.0) for c in twin.checkpoints) if twin else 1.0
        lost = learns_less(0.02)(run, twin) if twin else {}
        return {**lost, "is": found <= share < theirs, "share": found, "twin_share": theirs}

    return symptom


class Inception(nn.Module):
    """Two stages of four branches each; the deepest branch's weights start at `std`."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.first = nn.ModuleList(self._branches())
        self.second = nn.ModuleList(self._branches())
        self.head = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32 * 16, 10))
        for stage in (self.first, self.second):
            for part in stage[2].modules():
                if isinstance(part, nn.Conv2d):
                    if std > 0:
                        nn.init.normal_(part.weight, std=std)
                    else:
                        nn.init.kaiming_normal_(part.weight)
                    nn.init.zeros_(part.bias)  # type: ignore[arg-type]
        self.mix = nn.Conv2d(32, 16, 1)

    def _branches(self) -> list[nn.Module]:
        deep = [nn.Conv2d(16, 8, 1), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1), nn.GELU()]
        return [
            nn.Sequential(nn.Conv2d(16, 8, 1), nn.GELU()),
            nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.GELU()),
            nn.Sequential(*deep, nn.Conv2d(8, 8, 3, padding=1), nn.GELU()),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(16, 8, 1), nn.GELU()),
        ]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).tanh()
        x = torch.cat([branch(x) for branch in self.first], 1)
        x = self.mix(x).tanh()
        x = torch.cat([branch(x) for branch in self.second], 1)
        out: Tensor = self.head(x)
        return out


def inception(std: float) -> Training:
    """Digits by a net of parallel branches, with momentum."""
    torch.manual_seed(41)
    model = Inception(std)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, digit_images, classify, optimizer, steps=160)


class Highway(nn.Module):
    """A layer that lets through as much of x as its gate does not take from the transform."""

    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        self.carry = nn.Identity()
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x).sigmoid()
        out: Tensor = gate * self.transform(x).relu() + (1 - gate) * self.carry(x)
        return out


class Carried(nn.Module):
    """Highway layers between two linear ones."""

    def __init__(self, bias: float, depth: int = 5, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(8, width)
        self.layers = nn.Sequential(*(Highway(width, bias) for _ in range(depth)))
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.layers(self.first(x)))
        return out


def highway(bias: float) -> Training:
    """Whether two signs agree, by a highway network."""
    torch.manual_seed(42)
    model = Carried(bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Training(model, signs, classify, optimizer, steps=400, every=10)


class Mixture(nn.Module):
    """All experts read x, and a router weighs what they say."""

    def __init__(self, favour: float, experts: int = 4, width: int = 48) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, width), nn.LayerNorm(width))
        self.router = nn.Linear(width, experts)
        with torch.no_grad():
            self.router.bias.zero_()
            self.router.bias[0] = favour
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 3), nn.GELU(), nn.Linear(3, width))
            for _ in range(experts)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        weights = self.router(x).softmax(-1)
        said = torch.stack([expert(x) for expert in self.experts], 1)
        out: Tensor = self.head((weights.unsqueeze(-1) * said).sum(1))
        return out


def mixture(favour: float) -> Training:
    """Digits by a mixture whose first expert is favoured at the start."""
    torch.manual_seed(43)
    model = Mixture(favour)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Training(model, flat_digits, classify, optimizer, steps=200)


class TwoHeads(nn.Module):
    """A mask and a class from the same maps."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(conv(1, 12), conv(12, 16), nn.Conv2d(16, 16, 3, padding=1))
        self.mask = nn.Sequential(nn.ReLU(), nn.Conv2d(16, 1, 1))
        self.kind = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(16, 2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        return self.mask(x), self.kind(x)


def _both(reduction: str, model: nn.Module, x: Tensor, mask: Tensor, kind: Tensor) -> Tensor:
    drawn, named = model(x)
    wrong = torch.rand(mask.shape, generator=source(int(kind.sum()), 11)) < 0.15
    mask = torch.where(wrong, 1 - mask, mask)  # nobody draws masks without mistakes
    first = F.binary_cross_entropy_with_logits(drawn, mask, reduction=reduction)
    return first + F.cross_entropy(named, kind)


def two_heads(reduction: str) -> Training:
    """Mask and class of a striped square; the mask's loss is a mean, or a sum over all pixels."""
    torch.manual_seed(44)
    model = TwoHeads()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batch = partial(patches, size=32, side=24)
    return Training(model, batch, partial(_both, reduction), optimizer, steps=120)


class MeanOf(nn.Module):
    """Mean over a set's points, that may be divided by the number of all the batch's, too."""

    def __init__(self, again: int) -> None:
        super().__init__()
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1) / (x.shape[0] * x.shape[1]) ** self.again


class MaxOf(nn.Module):
    """Largest over a set's points."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(1)


class PointSet(nn.Module):
    """Two poolings of the same features of a set's points."""

    def __init__(self, again: int) -> None:
        super().__init__()
        self.points = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 32))
        self.mean, self.max = MeanOf(again), MaxOf()
        self.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.points(x)
        out: Tensor = self.head(torch.cat([self.mean(x), self.max(x)], -1)).squeeze(-1)
        return out


def _clouds(step: int, size: int = 128, count: int = 32) -> Batch:
    g = source(step, 5)
    centre = torch.rand(size, 1, 3, generator=g) - 0.5
    x = (centre + 0.7 * torch.randn(size, count, 3, generator=g)).clamp(-2, 2)
    return x, 4 * (x[..., 0] + x[..., 1].abs() - 0.5).mean(1)


def _regress(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


def point_set(again: int) -> Training:
    """Regression on sets: of what is wanted, only the mean knows."""
    torch.manual_seed(45)
    model = PointSet(again)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, _clouds, _regress, optimizer, steps=250)


class Household(nn.Module):
    """A recurrent trunk whose last state two heads read."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.into = nn.Linear(4, width)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.trunk = nn.Linear(width, width)
        self.amount = nn.Sequential(nn.GELU(), nn.Linear(width, 1))
        self.leaves = nn.Sequential(nn.GELU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(self.recurrent(self.into(x).tanh())[0][:, -1])
        return self.amount(x).squeeze(-1), self.leaves(x).squeeze(-1)


def _histories(unit: float, step: int) -> Batch:
    x = torch.randn(32, 10, 4, generator=source(step, 6))
    amount = unit * (1 + x[..., 0].mean(1) + 0.5 * x[:, -1, 1])
    leaves = (x[:, 5:, 2].sum(1) > x[:, :5, 2].sum(1)).float()
    return x, amount, leaves


def _amount_and_leaves(model: nn.Module, x: Tensor, amount: Tensor, leaves: Tensor) -> Tensor:
    first, second = model(x)
    return F.mse_loss(first, amount) + F.binary_cross_entropy_with_logits(second, leaves)


def household(unit: float) -> Training:
    """An amount in some unit, and whether somebody leaves."""
    torch.manual_seed(46)
    model = Household()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batch = partial(_histories, unit)
    return Training(model, batch, _amount_and_leaves, optimizer, steps=300, every=10)


class Mixer(nn.Module):
    """Mixes along one axis, with a scale per channel that is a parameter or was made a buffer."""

    def __init__(self, tokens: int, width: int, scale: float, learned: bool) -> None:
        super().__init__()
        self.skip, self.skip_again = nn.Identity(), nn.Identity()
        self.norm, self.norm_again = nn.LayerNorm(width), nn.LayerNorm(width)
        self.along = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.across = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        for name in ("scale", "scale_again"):
            values = torch.full((width,), scale)
            if learned:
                setattr(self, name, nn.Parameter(values))
            else:
                self.register_buffer(name, values)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.along(self.norm(x).transpose(1, 2)).transpose(1, 2)
        x = self.skip(x) + self.scale * mixed
        out: Tensor = self.skip_again(x) + self.scale_again * self.across(self.norm_again(x))
        return out


class MixerNet(nn.Module):
    """Patches of 2×2, mixers, and a mean."""

    def __init__(self, scale: float, learned: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 32, 2, 2)
        self.layers = nn.Sequential(*(Mixer(16, 32, scale, learned) for _ in range(3)))
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.embed(x).flatten(2).transpose(1, 2))
        out: Tensor = self.head(self.norm(x).mean(1))
        return out


def mixer(scale: float, learned: bool) -> Training:
    """Digits by an MLP-mixer with layer scale."""
    torch.manual_seed(47)
    model = MixerNet(scale, learned)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    return Training(model, digit_images, classify, optimizer, steps=200)


STARVED = Fault(
    "ind4-wiring-starved",
    must=[["starved-pathway"]],
    symptom=starves(1e-3),
    variants=[
        # the gradient falls by the weights' size in every convolution of the branch
        Variant(
            "inception-tiny-branch",
            healthy=partial(inception, 0.0),
            broken=partial(inception, 1e-4),
            must=[["starved-pathway", "vanishing-gradient"]],
        ),
        Variant(
            "highway-shut",
            healthy=partial(highway, -1.0),
            broken=partial(highway, -14.0),
            must=[["starved-pathway", "saturated-activation"]],
            may=["no-update"],
        ),
        Variant(
            "mixture-first-takes-all",
            healthy=partial(mixture, 0.0),
            broken=partial(mixture, 16.0),
            must=[["starved-pathway", "peaked-softmax"]],
            may=["no-update"],
        ),
        Variant(
            "sum-beside-mean",
            healthy=partial(two_heads, "mean"),
            broken=partial(two_heads, "sum"),
        ),
        Variant("set-divided-twice", healthy=partial(point_set, 0), broken=partial(point_set, 1)),
        # the amounts are targets that nobody scaled
        Variant(
            "amount-in-cents",
            healthy=partial(household, 1.0),
            broken=partial(household, 3e4),
            may=["unscaled-input"],
        ),
        Variant(
            "mixer-scale-is-buffer",
            healthy=partial(mixer, 0.1, True),
            broken=partial(mixer, 1e-6, False),
        ),
    ],
)


# Gradients that cancel where the branches part.


def cancels(agreement: float) -> Symptom:
    """‖Σ g‖/√Σ‖g‖² of the tensor that modules share is typically below, later always."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        def each(observed: Observed) -> list[float]:
            return [min(c.agreement, default=9.0) for c in observed.checkpoints]

        found = median(each(run))
        late = max(each(run)[1:])
        theirs = median(each(twin)) if twin else 9.0
        return {
            "is": max(found, late) <= agreement < theirs,
            "agreement": found,
            "late": late,
            "twin": theirs,
        }

    return symptom


class Later(nn.Module):
    """All but the first time."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., 1:]


class Earlier(nn.Module):
    """All but the last time."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :-1]


class Changes(nn.Module):
    """What happens from one time to the next, added up: with its sign, or without."""

    def __init__(self, signed: bool) -> None:
        super().__init__()
        self.signed = signed
        self.features = nn.Sequential(
            nn.Conv1d(1, 12, 7, padding=3), nn.ReLU(), nn.Conv1d(12, 12, 5, padding=2), nn.Tanh()
        )
        self.later, self.earlier = Later(), Earlier()
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        change = self.later(x) - self.earlier(x)
        if not self.signed:
            change = change.abs()
        out: Tensor = self.head(change.sum(-1) / change.shape[-1] ** 0.5)
        return out


def _waves(step: int, size: int = 24, length: int = 320) -> Batch:
    g = source(step, 7)
    y = torch.randint(2, (size,), generator=g)
    speed = (0.3 + 0.25 * y + 0.1 * torch.rand(size, generator=g)).unsqueeze(1)
    phase = 6.28 * torch.rand(size, 1, generator=g)
    x = (speed * torch.arange(length) + phase).sin()
    return (x + 0.2 * torch.randn(size, length, generator=g)).unsqueeze(1), y


def changes(signed: bool) -> Training:
    """Slow and fast waves told apart."""
    torch.manual_seed(51)
    model = Changes(signed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, _waves, classify, optimizer, steps=200)


class Flip(nn.Module):
    """The other sign."""

    def forward(self, x: Tensor) -> Tensor:
        return -x


class Symmetric(nn.Module):
    """What a body says of h and of −h, added, so that the sign cannot matter."""

    def __init__(self, odd: bool) -> None:
        super().__init__()
        self.first = nn.Linear(8, 32, bias=False)
        self.straight, self.flipped = nn.Identity(), Flip()
        act: type[nn.Module] = nn.Tanh if odd else nn.GELU
        self.body = nn.Sequential(
            nn.Linear(32, 48, bias=False), act(), nn.Linear(48, 32, bias=False), act()
        )
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        both = self.body(self.straight(x)) + self.body(self.flipped(x))
        out: Tensor = self.head(both)
        return out


def symmetric(odd: bool) -> Training:
    """Whether two signs agree: the same for x and −x."""
    torch.manual_seed(52)
    model = Symmetric(odd)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, signs, classify, optimizer, steps=300, every=10)


class Adversarial(nn.Module):
    """A class, and a domain whose gradient reaches the trunk reversed."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            conv(1, 12), conv(12, 16, stride=2), nn.Flatten(), nn.Linear(256, 40)
        )
        self.kind = nn.Linear(40, 10)
        self.reversal = Reversal(strength)
        self.domain = nn.Linear(40, 10)
        for head in (self.kind, self.domain):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        return self.kind(x), self.domain(self.reversal(x))


def _domains(mixed_up: bool, step: int) -> Batch:
    x, y = digit_images(step)
    g = source(step, 8)
    domain = torch.randint(2, y.shape, generator=g)
    x = x + domain.view(-1, 1, 1, 1) * (0.5 + 0.3 * torch.randn(x.shape, generator=g))
    return x, y, y if mixed_up else domain


def _kind_and_domain(model: nn.Module, x: Tensor, y: Tensor, domain: Tensor) -> Tensor:
    kind, found = model(x)
    return F.cross_entropy(kind, y) + F.cross_entropy(found, domain)


def adversarial(mixed_up: bool, strength: float) -> Training:
    """Digits from two domains; the domain's column may be the class's by mistake."""
    torch.manual_seed(53)
    model = Adversarial(strength)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    batch = partial(_domains, mixed_up)
    return Training(model, batch, _kind_and_domain, optimizer, steps=250)


class Pair(nn.Module):
    """A generator and its critic."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 2))
        self.critic = nn.Sequential(
            nn.Linear(2, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2),
            nn.Linear(48, 1),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.generator(z)
        return out


def rings(step: int, size: int = 64) -> Batch:
    g = source(step, 9)
    angle = 6.28 * torch.rand(size, generator=g)
    ring = 3 * torch.stack([angle.cos(), angle.sin()], 1)
    return ring + 0.1 * torch.randn(size, 2, generator=g), torch.randn(size, 8, generator=g)


def _in_one(model: Any, x: Tensor, z: Tensor) -> Tensor:
    drawn = model(z)
    real, fake, wanted = model.critic(x), model.critic(drawn), model.critic(drawn)
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    cost = F.binary_cross_entropy_with_logits
    return cost(real, ones) + cost(fake, zeros) + cost(wanted, ones)


def one_backward() -> Training:
    """Both sides' losses in one sum, and what is drawn is not detached for the critic's."""
    torch.manual_seed(54)
    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, rings, _in_one, optimizer, steps=300, every=10)


class Reader(nn.Module):
    """One source's estimate: weights shared by all sources, a scale of its own."""

    def __init__(self, shared: nn.Linear) -> None:
        super().__init__()
        self.shared = shared
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shared(x).squeeze(-1) + self.offset
        return out


class Positions(nn.Module):
    """A position from a sequence, as two sources would note it."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(3, width, batch_first=True)
        self.trunk = nn.Linear(width, width)
        shared = nn.Linear(width, 1)
        nn.init.normal_(shared.weight, std=0.02)
        self.readers = nn.ModuleList([Reader(shared), Reader(shared)])

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.trunk(self.recurrent(x)[0][:, -1]).tanh()
        return [reader(x) for reader in self.readers]


def _notes(sign: float, step: int) -> Batch:
    g = source(step, 10)
    x = torch.randn(32, 8, 3, generator=g)
    y = x[..., 0].sum(1) / 2 + x[:, -1, 1]
    return x, y, sign * y + 0.05 * torch.randn(32, generator=g)


def _two_notes(model: nn.Module, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    first, second = model(x)
    return F.mse_loss(first, a) + F.mse_loss(second, b)


def positions(sign: float) -> Training:
    """Two sources' notes of the same position; the second may count the other way."""
    torch.manual_seed(55)
    model = Positions()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batch = partial(_notes, sign)
    return Training(model, batch, _two_notes, optimizer, steps=250)


CANCELLING = Fault(
    "ind4-wiring-cancelling",
    must=[["cancelling-fork"]],
    symptom=cancels(0.1),
    variants=[
        # what is left of a trunk's gradient after the sum is small beside the head's
        Variant(
            "changes-telescope",
            healthy=partial(changes, False),
            broken=partial(changes, True),
            may=["vanishing-gradient"],
        ),
        # what an odd body says of both adds up to 0: nothing but the head's bias can learn
        Variant(
            "odd-body",
            healthy=partial(symmetric, False),
            broken=partial(symmetric, True),
            may=["no-update", "vanishing-gradient"],
        ),
        Variant(
            "domain-is-class",
            healthy=partial(adversarial, False, 0.3),
            broken=partial(adversarial, True, 0.96),
            may=["vanishing-gradient"],
        ),
        Variant("one-backward-for-both", broken=one_backward, may=["vanishing-gradient"]),
        Variant(
            "opposite-conventions",
            healthy=partial(positions, 1.0),
            broken=partial(positions, -1.0),
            may=["vanishing-gradient"],
        ),
    ],
)


# Parts that run and get no gradient.


class Staged(nn.Module):
    """Three stages of convolutions, the first recomputed in the backward pass to save memory."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.early = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.ReLU(),
            nn.Conv2d(12, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.ReLU(),
        )  # fmt: skip
        self.middle = nn.Sequential(nn.Conv2d(12, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))

    def forward(self, x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = checkpoint(self.early, x, use_reentrant=self.reentrant)
        out: Tensor = self.head(self.middle(x))
        return out


def staged(reentrant: bool) -> Training:
    """Digits with a checkpointed first stage, whose input asks for no gradient."""
    torch.manual_seed(61)
    model = Staged(reentrant)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, digit_images, classify, optimizer, steps=120)


class GraphNet(nn.Module):
    """Two rounds of messages over a graph, then a readout; features may be taken as given."""

    def __init__(self, fixed: bool, width: int = 24) -> None:
        super().__init__()
        self.fixed = fixed
        self.into, self.again = nn.Linear(4, width), nn.Linear(width, width)
        self.own, self.own_again = nn.Linear(4, width), nn.Linear(width, width)
        self.readout = nn.Sequential(nn.Linear(width, 16), nn.ELU(), nn.Linear(16, 1))

    def features(self, x: Tensor, edges: Tensor) -> Tensor:
        """Of a graph: sum over its nodes."""
        x = F.elu(self.into(edges @ x) + self.own(x))
        x = F.elu(self.again(edges @ x) + self.own_again(x))
        return x.sum(1) / 4

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        if self.fixed:
            with torch.no_grad():
                x = self.features(x, edges)
        else:
            x = self.features(x, edges)
        out: Tensor = self.readout(x).squeeze(-1)
        return out


def _graphs(step: int, size: int = 32, nodes: int = 10) -> Batch:
    g = source(step, 12)
    there = (torch.rand(size, nodes, nodes, generator=g) < 0.3).float().triu(1)
    there = there + there.transpose(1, 2)
    edges = there / there.sum(-1, keepdim=True).clamp(min=1)
    x = torch.randn(size, nodes, 4, generator=g)
    along = (edges @ x[..., :1] - x[..., 1:2]).abs().squeeze(-1)
    return x, edges, 2 * (along.mean(1) - 0.85) + x[..., 3].mean(1)


def _on_graph(model: nn.Module, x: Tensor, edges: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x, edges), y)


def graph_net(fixed: bool) -> Training:
    """Regression on graphs."""
    torch.manual_seed(62)
    model = GraphNet(fixed)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, _graphs, _on_graph, optimizer, steps=300, every=10)


class Switch(nn.Module):
    """One expert per sample; what the router says of its share of the samples may not count."""

    def __init__(self, weighed: bool, experts: int = 4, width: int = 40) -> None:
        super().__init__()
        self.weighed = weighed
        self.trunk = nn.Linear(64, width)
        self.router = nn.Linear(64, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width))
            for _ in range(experts)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shares = self.router(x).softmax(-1)
        confidence, chosen = shares.max(-1)
        load = chosen.bincount(minlength=len(self.experts)) / len(x)
        x = self.trunk(x)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            mine = (chosen == i).nonzero().squeeze(-1)
            said = expert(x[mine])
            if self.weighed:
                said = said * confidence[mine].unsqueeze(-1)
            out = out.index_add(0, mine, said)
        return self.head(out), len(load) * (load * shares.mean(0)).sum()


def _routed(balance: float, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits, unevenness = model(x)
    loss = F.cross_entropy(logits, y)
    return loss + balance * unevenness if balance else loss


def switch(weighed: bool) -> Training:
    """Digits by hard-routed experts."""
    torch.manual_seed(88)
    model = Switch(weighed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loss = partial(_routed, 0.1 if weighed else 0.0)
    return Training(model, flat_digits, loss, optimizer, steps=200)


class Codes(nn.Module):
    """An autoencoder by the nearest of learned codes, in eight slots."""

    def __init__(self, straight: bool) -> None:
        super().__init__()
        self.straight = straight
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32))
        self.codebook = nn.Embedding(24, 4)
        nn.init.normal_(self.codebook.weight, std=0.3)
        self.decoder = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x).view(len(x), 8, 4)
        nearest = torch.cdist(z.detach(), self.codebook.weight.detach()).argmin(-1)
        code = self.codebook(nearest)
        cost = F.mse_loss(code, z.detach())
        if self.straight:
            cost = cost + 0.25 * F.mse_loss(z, code.detach())
            code = z + (code - z).detach()
        return self.decoder(code.flatten(1)), cost


def _rebuilt(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    again, cost = model(x)
    return F.mse_loss(again, x) + cost


def codes(straight: bool) -> Training:
    """Digits through a codebook."""
    torch.manual_seed(64)
    model = Codes(straight)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, flat_digits, _rebuilt, optimizer, steps=300, every=10)


class Unet(nn.Module):
    """Down and up with a skip, and a coarse mask beside the fine one."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = conv(1, 10), conv(10, 20, stride=2)
        self.coarse = nn.Conv2d(20, 1, 1)
        self.up = nn.ConvTranspose2d(20, 10, 2, 2)
        self.join = conv(20, 10)
        self.fine = nn.Conv2d(10, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.down(x)
        deep = self.deep(first)
        x = self.join(torch.cat([first, self.up(deep)], 1))
        return self.fine(x), self.coarse(deep)


def _masks(weight: float, model: nn.Module, x: Tensor, mask: Tensor, _: Tensor) -> Tensor:
    fine, coarse = model(x)
    loss = F.binary_cross_entropy_with_logits(fine, mask)
    small = F.binary_cross_entropy_with_logits(coarse, F.avg_pool2d(mask, 2))
    return loss + weight * small if weight else loss


def unet(weight: float) -> Training:
    """Masks of striped squares, with or without the coarse mask in the loss."""
    torch.manual_seed(65)
    model = Unet()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, patches, partial(_masks, weight), optimizer, steps=120)


class Echo(nn.Module):
    """Encoder and decoder of a sequence; the state between them may be handed over bare."""

    def __init__(self, bare: bool, kinds: int = 12, width: int = 48) -> None:
        super().__init__()
        self.bare = bare
        self.symbols, self.said = nn.Embedding(kinds, 16), nn.Embedding(kinds + 1, 16)
        self.encoder = nn.GRU(16, width, batch_first=True)
        self.decoder = nn.GRUCell(16, width)
        self.head = nn.Linear(width, kinds)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.encoder(self.symbols(x))
        h = state[0].data.clone() if self.bare else state[0]
        before = torch.cat([torch.full_like(x[:, :1], 12), x.flip(1)[:, :-1]], 1)
        rows = []
        for said in self.said(before).unbind(1):
            h = self.decoder(said, h)
            rows.append(self.head(h))
        return torch.stack(rows, 1)


def _sentences(step: int) -> Batch:
    x = words(step, length=5)
    return x, x.flip(1)


def echo(bare: bool) -> Training:
    """A sequence said backwards."""
    torch.manual_seed(66)
    model = Echo(bare)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, _sentences, next_symbol, optimizer, steps=300, every=10)


# What gets no gradient does not move either.
DETACHED = Fault(
    "ind4-wiring-detached",
    must=[["detached"]],
    may=["no-update"],
    variants=[
        Variant(
            "reentrant-checkpoint",
            healthy=partial(staged, False),
            broken=partial(staged, True),
            symptom=no_gradient_before("early."),
        ),
        Variant(
            "graph-without-gradient",
            healthy=partial(graph_net, False),
            broken=partial(graph_net, True),
            symptom=no_gradient_before("into."),
        ),
        Variant(
            "router-by-argmax",
            healthy=partial(switch, True),
            broken=partial(switch, False),
            symptom=no_gradient_before("router."),
        ),
        Variant(
            "codes-not-straight-through",
            healthy=partial(codes, True),
            broken=partial(codes, False),
            symptom=no_gradient_before("encoder."),
        ),
        Variant(
            "coarse-mask-forgotten",
            healthy=partial(unet, 0.4),
            broken=partial(unet, 0.0),
            symptom=no_gradient_before("coarse."),
        ),
        Variant(
            "state-as-data",
            healthy=partial(echo, False),
            broken=partial(echo, True),
            symptom=no_gradient_before("encoder."),
        ),
    ],
)


# Parts that nobody steps.


class Block(nn.Module):
    """A residual block of two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(self.up(self.norm(x)).relu())
        return out


class Listed(nn.Module):
    """Blocks in a list that the module knows of, or in a plain one."""

    def __init__(self, plain: bool, width: int = 24) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, width), nn.Linear(width, 2)
        blocks = [Block(width) for _ in range(3)]
        self.blocks: Any = blocks if plain else nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.last(x)
        return out


def listed(plain: bool) -> Training:
    """Whether two signs agree, by residual blocks."""
    torch.manual_seed(71)
    model = Listed(plain)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, signs, classify, optimizer, steps=250)


class Folded(nn.Module):
    """A convolutional autoencoder with a narrow code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 12, 3, 2, 1), nn.ELU(), nn.Flatten(), nn.Linear(192, 6)
        )
        self.decoder = nn.Sequential(
            nn.Linear(6, 192), nn.ELU(), nn.Unflatten(1, (12, 4, 4)),
            nn.ConvTranspose2d(12, 1, 2, 2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.encoder(x))
        return out


def _itself(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    return F.mse_loss(model(x), x)


def folded(everything: bool) -> Training:
    """Digits rebuilt; the optimizer has all, or the decoder."""
    torch.manual_seed(72)
    model = Folded()
    held = model if everything else model.decoder
    optimizer = torch.optim.RMSprop(held.parameters(), lr=2e-3)
    return Training(model, digit_images, _itself, optimizer, steps=200)


class Speller(nn.Module):
    """Symbol after symbol by an LSTM."""

    def __init__(self, kinds: int = 16, width: int = 48) -> None:
        super().__init__()
        self.symbols = nn.Embedding(kinds, 24)
        self.recurrent = nn.LSTM(24, width, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, kinds)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.recurrent(self.symbols(x))[0]))
        return out


def speller(only_known: bool) -> Training:
    """A made-up grammar; weights decay in groups by kind of module, of which some are forgotten."""
    torch.manual_seed(73)
    model = Speller()
    decayed, rest = list(model.head.parameters()), list(model.norm.parameters())
    if not only_known:
        decayed += list(model.recurrent.parameters())
        rest += list(model.symbols.parameters())
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    return Training(model, grammar, next_symbol, optimizer, steps=250)


class Residual(nn.Module):
    """A block of two convolutions beside a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(width, width), nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.body(x)).relu()


class ResNet(nn.Module):
    """A small residual network."""

    def __init__(self, classes: int, width: int = 12) -> None:
        super().__init__()
        self.stem = conv(1, width)
        self.blocks = nn.Sequential(Residual(width), nn.MaxPool2d(2), Residual(width))
        self.head = nn.Linear(16 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(x)).flatten(1))
        return out


def new_head(late: bool) -> Training:
    """A network for a hundred classes gets a head for ten: before or after the optimizer."""
    torch.manual_seed(74)
    model = ResNet(100)
    head = nn.Linear(192, 10)
    if not late:
        model.head = head
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    model.head = head
    return Training(model, digit_images, classify, optimizer, steps=120)


class Dilated(nn.Module):
    """Dilated convolutions over time."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 10, 5, padding=2), nn.GELU(), nn.Conv1d(10, 10, 5, padding=4, dilation=2),
            nn.GELU(), nn.Conv1d(10, 10, 5, padding=8, dilation=4), nn.GELU(),
            nn.AvgPool1d(8),
        )  # fmt: skip
        for part in self.body:
            if isinstance(part, nn.Conv1d):
                nn.init.kaiming_normal_(part.weight)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(80, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def _thaw(training: Training, step: int) -> dict[str, Any]:
    if step == 30:
        training.model.get_submodule("body").requires_grad_(True)
    return ordinary(training, step)


def _bumps(step: int, size: int = 48, length: int = 64) -> Batch:
    g = source(step, 13)
    y = torch.randint(3, (size,), generator=g)
    place = torch.randint(8, length - 8, (size, 1), generator=g)
    at = (torch.arange(length) - place).float()
    shape = torch.stack([(-(at**2) / 18).exp(), -at.sign() * (at.abs() < 6), (at * 1.6).sin()
                         * (at.abs() < 6)])  # fmt: skip
    x = 1.5 * shape[y, torch.arange(size)] + 0.3 * torch.randn(size, length, generator=g)
    return x.unsqueeze(1), y


def thawed(all_held: bool) -> Training:
    """The body is frozen for 30 steps; the optimizer holds all, or what trained at first."""
    torch.manual_seed(75)
    model = Dilated()
    model.body.requires_grad_(False)
    held = [p for p in model.parameters() if all_held or p.requires_grad]
    optimizer = torch.optim.Adam(held, lr=4e-3)
    return Training(model, _bumps, classify, optimizer, steps=250, step=_thaw)


class Views(nn.Module):
    """Encoder and projector of a contrastive loss."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU())
        self.projector = nn.Sequential(nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 24))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.projector(self.encoder(x)), dim=-1)


def _two_views(step: int) -> Batch:
    x, _ = flat_digits(step)
    g = source(step, 14)
    first, second = (
        x * (torch.rand(x.shape, generator=g) < 0.6) + 0.3 * torch.randn(x.shape, generator=g)
        for _ in range(2)
    )
    return first, second


def _contrast(model: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    alike = model(first) @ model(second).T / 0.2
    return F.cross_entropy(alike, torch.arange(len(first)))


def views(copied: bool) -> Training:
    """Contrastive learning; the encoder may be a copy of the one the optimizer was given."""
    torch.manual_seed(76)
    model = Views()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    if copied:
        model.encoder = copy.deepcopy(model.encoder)
    return Training(model, _two_views, _contrast, optimizer, steps=200)


def _apart(model: Any, x: Tensor, z: Tensor) -> Tensor:
    cost = F.binary_cross_entropy_with_logits
    drawn = model(z)
    real, fake, wanted = model.critic(x), model.critic(drawn.detach()), model.critic(drawn)
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    return cost(real, ones) + cost(fake, zeros) + cost(wanted, ones)


def in_turns(training: Training, step: int) -> dict[str, Any]:
    """A step of the critic, then one of the generator."""
    model: Any = training.model
    x, z = training.batch(step)
    cost = F.binary_cross_entropy_with_logits
    ones, zeros = torch.ones(len(x), 1), torch.zeros(len(x), 1)
    critic, generator = training.optimizer, training.others[0]
    first = cost(model.critic(x), ones) + cost(model.critic(model(z).detach()), zeros)
    first.backward()
    critic.step()
    model.zero_grad()
    second = cost(model.critic(model(z)), ones)
    second.backward()
    generator.step()
    model.zero_grad()
    return {"loss": (first + second).detach()}


def adversaries(right: bool) -> Training:
    """A generator of rings and its critic, each with an optimizer, or twice the critic's."""
    torch.manual_seed(77)
    model = Pair()
    critic = torch.optim.Adam(model.critic.parameters(), lr=1e-3, betas=(0.5, 0.9))
    held = model.generator if right else model.critic
    generator = torch.optim.Adam(held.parameters(), lr=1e-3, betas=(0.5, 0.9))
    return Training(
        model, rings, _apart, critic, steps=300, every=10, step=in_turns, others=[generator]
    )


# What nobody steps does not move.
LEFT_OUT = Fault(
    "ind4-wiring-left-out",
    must=[["not-in-optimizer"]],
    may=["no-update"],
    symptom=left_out(),
    variants=[
        Variant("plain-list", healthy=partial(listed, False), broken=partial(listed, True)),
        Variant("decoder-only", healthy=partial(folded, True), broken=partial(folded, False)),
        Variant("groups-by-kind", healthy=partial(speller, False), broken=partial(speller, True)),
        Variant("head-after", healthy=partial(new_head, False), broken=partial(new_head, True)),
        Variant("thawed-later", healthy=partial(thawed, True), broken=partial(thawed, False)),
        Variant(
            "copied-after",
            healthy=partial(views, False),
            broken=partial(views, True),
        ),
        # no twin: the loss of adversaries need not fall
        Variant("critic-twice", broken=partial(adversaries, False)),
    ],
)

FAULTS = [STARVED, CANCELLING, DETACHED, LEFT_OUT]
