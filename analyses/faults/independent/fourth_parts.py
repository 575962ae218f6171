"""Parts wired so that some of them get none of the gradient, or nobody steps them."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_fourth_parts import (
    Reversal,
    classify,
    conv,
    digit_images,
    flat_digits,
    patches,
    signs,
    source,
)
from analyses.faults.observe import Observed
from analyses.faults.symptoms import learns_less
from analyses.faults.training import Batch, Training

SPLITS = ("test",)


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


def _rings(step: int, size: int = 64) -> Batch:
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
    return Training(model, _rings, _in_one, optimizer, steps=300, every=10)


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

FAULTS = [STARVED, CANCELLING]
