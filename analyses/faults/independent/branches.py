"""Branches that get next to none of the gradient, and branches whose gradients cancel."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_attention import (
    LETTERS,
    cancels,
    cross_entropy,
    dice,
    digit_batches,
    edge_starves,
    events,
    grids,
    made_up_text,
    mlp,
)
from analyses.faults.training import Batch, Training

# --- starved --------------------------------------------------------------------------------


def class_loss(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    return F.cross_entropy(model(x), classes)


class TwoStreams(nn.Module):
    """A stem read by a shallow and a deep stream, which are summed."""

    def __init__(self, deep_share: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU())
        self.shallow = nn.Linear(96, 48)
        self.deep = mlp(96, 96, 96, 48, activation=nn.ReLU)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(48, 10))
        self.deep_share = deep_share

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head(self.shallow(h) + self.deep_share * self.deep(h))


def two_streams(share: float = 1.0) -> Training:
    """Two streams; broken, the deep one's share in the sum is a millionth."""
    torch.manual_seed(21)
    model = TwoStreams(share)
    return Training(
        model,
        digit_batches(64, salt=21),
        class_loss,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        steps=300,
    )


class GatedConv(nn.Module):
    """Dilated convolution behind a gate: x + g(x) · f(x)."""

    def __init__(self, dim: int, dilation: int, bias: float) -> None:
        super().__init__()
        self.filter = nn.Conv1d(dim, dim, 3, padding=dilation, dilation=dilation)
        self.gate = nn.Conv1d(dim, dim, 1)
        self.skip = nn.Conv1d(dim, dim, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.sigmoid(self.gate(x)) * torch.tanh(self.filter(x))
        return x + y, self.skip(x)


class Wave(nn.Module):
    """Gated dilated convolutions with skips, over time."""

    def __init__(self, features: int, classes: int, dim: int, bias: float) -> None:
        super().__init__()
        self.embed = nn.Conv1d(features, dim, 1)
        self.layers = nn.ModuleList(GatedConv(dim, 2**i, bias) for i in range(4))
        self.head = mlp(dim, dim, classes)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.embed(frames.transpose(1, 2))
        skips = torch.zeros_like(x)
        for layer in self.layers:
            x, skip = layer(x)
            skips = skips + skip
        return self.head(F.gelu(skips + x).amax(2))


def closed_gate(bias: float = -1.0) -> Training:
    """Gates of a convolutional net; broken, they begin at a bias of -16."""
    torch.manual_seed(22)
    model = Wave(7, 6, 32, bias)
    return Training(
        model,
        events(32, 32, 6, salt=22),
        class_loss,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=240,
    )


class ClassAndInk(nn.Module):
    """A convolutional trunk, a class head, and a deep head for the amount of ink by row."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.kind = nn.Linear(512, 10)
        self.ink = mlp(512, 64, 64, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x[:, None])
        ink = self.ink(h)
        return self.kind(h), ink


def two_tasks_loss(model: nn.Module, x: Tensor, classes: Tensor, *, weight: float) -> Tensor:
    kind, ink = model(x)
    return F.cross_entropy(kind, classes) + weight * F.mse_loss(ink, x.mean(2))


def loss_weight(weight: float = 1.0) -> Training:
    """Two tasks; broken, the second one's loss has a weight of 1e-8."""
    torch.manual_seed(23)
    model = ClassAndInk()
    return Training(
        model,
        digit_batches(32, salt=23),
        partial(two_tasks_loss, weight=weight),
        torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, nesterov=True),
        steps=200,
    )


class Experts(nn.Module):
    """A soft mixture of four experts over an image."""

    def __init__(self, dim: int, prior: float) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(64, dim), nn.LayerNorm(dim), nn.GELU())
        self.router = nn.Linear(dim, 4)
        nn.init.normal_(self.router.weight, std=0.02)
        self.register_buffer("log_prior", torch.tensor([0.0, 0.0, 0.0, prior]))
        self.experts = nn.ModuleList(mlp(dim, 2 * dim, dim) for _ in range(4))
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.flatten(1))
        gates = F.softmax(self.router(h) + self.log_prior, dim=-1)
        outs = torch.stack([expert(h) for expert in self.experts], dim=1)
        return self.head(h + torch.einsum("be,bed->bd", gates, outs))


def unused_expert(prior: float = 0.0) -> Training:
    """Soft experts; broken, the prior of the last one is e⁻¹⁸."""
    torch.manual_seed(24)
    model = Experts(64, prior)
    return Training(
        model,
        digit_batches(48, salt=24),
        class_loss,
        torch.optim.AdamW(model.parameters(), lr=2e-3),
        steps=240,
    )


class Inception(nn.Module):
    """Three convolutions side by side, concatenated, twice."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.points, self.mixes = nn.ModuleList(), nn.ModuleList()
        self.small, self.large = nn.ModuleList(), nn.ModuleList()
        for _ in range(2):
            self.points.append(nn.Conv2d(16, 12, 1))
            self.small.append(nn.Conv2d(16, 12, 3, padding=1))
            self.large.append(nn.Conv2d(16, 12, 5, padding=2))
            self.mixes.append(nn.Conv2d(36, 16, 1))
        self.head = nn.Linear(16, 10)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.stem(x[:, None]))
        for p, s, w, mix in zip(self.points, self.small, self.large, self.mixes, strict=True):
            together = torch.cat([p(h), s(h), w(h) * self.factor], dim=1)
            h = h + F.leaky_relu(mix(F.leaky_relu(together)))
        return self.head(h.amax((2, 3)))


def inception(factor: float = 1.0) -> Training:
    """Parallel convolutions; broken, the widest one's result is divided by 255² and by 10."""
    torch.manual_seed(25)
    model = Inception(factor)
    return Training(
        model,
        digit_batches(32, salt=25),
        class_loss,
        torch.optim.RMSprop(model.parameters(), lr=1e-3),
        steps=200,
    )


class UNet(nn.Module):
    """Two scales; what comes up from below is added to the skip."""

    def __init__(self, width: int, below: float) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.skip = nn.Conv2d(width, width, 1)
        self.leave = nn.Conv2d(width, 1, 3, padding=1)
        self.below = below

    def forward(self, x: Tensor) -> Tensor:
        h = F.elu(self.enter(x[:, None]))
        deep = self.up(F.elu(self.middle(F.elu(self.down(h)))))
        return self.leave(F.elu(self.skip(h) + self.below * deep))[:, 0]


def denoise_loss(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    noise = torch.randn(x.shape, generator=dice(int(classes.sum()), 26))
    return F.mse_loss(model(x + noise), x)


def unet(below: float = 1.0) -> Training:
    """Denoising; broken, the path through the lower scale is multiplied by 1e-6."""
    torch.manual_seed(26)
    model = UNet(16, below)
    return Training(
        model,
        digit_batches(32, salt=26),
        denoise_loss,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        steps=220,
    )


class ParallelBlock(nn.Module):
    """Attention and feed-forward network side by side, of the same normalised input."""

    def __init__(self, dim: int, heads: int, attended: float) -> None:
        super().__init__()
        self.heads, self.attended = heads, attended
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed = mlp(dim, 4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(y).chunk(3, dim=-1)
        )
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return x + self.attended * self.out(a) + self.feed(y)


class ParallelLM(nn.Module):
    """A language model of such blocks."""

    def __init__(self, tokens: int, length: int, dim: int, layers: int, attended: float) -> None:
        super().__init__()
        self.tokens, self.position = nn.Embedding(tokens, dim), nn.Embedding(length, dim)
        self.blocks = nn.Sequential(*(ParallelBlock(dim, 4, attended) for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, tokens)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tokens(x) + self.position(torch.arange(x.shape[1]))
        return self.head(self.norm(self.blocks(y)))


def text_loss(model: nn.Module, x: Tensor) -> Tensor:
    return cross_entropy(model(x[:, :-1]), x[:, 1:])


def parallel(attended: float = 1.0) -> Training:
    """Blocks in parallel form; broken, attention enters the sum times 1e-6."""
    torch.manual_seed(27)
    model = ParallelLM(LETTERS, 24, 48, 2, attended)
    return Training(
        model,
        made_up_text(24, 24, salt=27),
        text_loss,
        torch.optim.AdamW(model.parameters(), lr=2e-3),
        steps=220,
    )


class MixtureDensity(nn.Module):
    """Three networks that each give a component's mean; unit variances, equal weights."""

    def __init__(self, dim: int, offsets: Tensor) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(2, dim), nn.Tanh())
        self.components = nn.ModuleList(mlp(dim, dim, 1, activation=nn.Tanh) for _ in range(3))
        self.register_buffer("offsets", offsets)

    def forward(self, x: Tensor) -> Tensor:
        h = self.shared(x)
        return torch.cat([c(h) for c in self.components], dim=1) + self.offsets  # type: ignore[operator]


def mixture_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return -torch.logsumexp(-(((model(x) - y[:, None]) / 0.5) ** 2) / 2, dim=1).mean()


def two_valued(step: int) -> Batch:
    """y is one of three functions of x."""
    g = dice(step, 28)
    x = torch.randn(64, 2, generator=g)
    which = torch.randint(-1, 2, (64,), generator=g)
    return x, 1.5 * which + torch.sin(2 * x[:, 0]) + 0.1 * torch.randn(64, generator=g)


def mixture(offset: float = 0.5) -> Training:
    """A mixture of regressions; broken, the first component begins 7 away from all data."""
    torch.manual_seed(28)
    model = MixtureDensity(32, torch.tensor([-offset, 0.0, 0.5]))
    return Training(
        model,
        two_valued,
        mixture_loss,
        torch.optim.Adagrad(model.parameters(), lr=0.03),
        steps=400,
        every=10,
    )


# --- cancelling -----------------------------------------------------------------------------


class Squared(nn.Module):
    """A criterion."""

    def forward(self, found: Tensor, target: Tensor) -> Tensor:
        return (found - target).square().mean()


class Steering(nn.Module):
    """A recurrence over frames that tells an angle, compared with two annotations."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.read = nn.GRU(5, dim, batch_first=True)
        self.angle = nn.Linear(dim, 1)
        self.first, self.second = Squared(), Squared()

    def forward(self, frames: Tensor, first: Tensor, second: Tensor) -> Tensor:
        angle = self.angle(self.read(frames)[0][:, -1])[:, 0]
        return self.first(angle, first) + self.second(angle, second)


def _angles(sign: float, step: int) -> Batch:
    frames, kind = events(32, 10, 4, salt=31)(step)
    angle = kind.float() - 1.5
    return frames, angle, sign * angle + 0.1 * torch.randn(32, generator=dice(step, 32))


def model_loss(model: nn.Module, *given: Tensor) -> Tensor:
    """Of a model that gives its loss itself."""
    return model(*given)


def sign_convention(sign: float = 1.0) -> Training:
    """Angles annotated twice; broken, the second time with the opposite sign."""
    torch.manual_seed(31)
    model = Steering(48)
    return Training(
        model,
        partial(_angles, sign),
        model_loss,
        torch.optim.Adam(model.parameters(), lr=3e-3),
        steps=240,
    )


class Reverse(torch.autograd.Function):
    """The identity, whose gradient is turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * g, None


class Reversed(nn.Module):
    """A head behind a gradient reversal."""

    def __init__(self, head: nn.Module, strength: float) -> None:
        super().__init__()
        self.head, self.strength = head, strength

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Reverse.apply(x, self.strength))


class Adversarial(nn.Module):
    """A convolutional trunk with a class head and a domain head behind a reversal."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.kind = nn.Linear(384, 10)
        self.domain = Reversed(copy.deepcopy(self.kind), strength)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x[:, None])
        return self.kind(h), self.domain(h)


def _domains(wrong: bool, step: int) -> Batch:
    images, classes = digit_batches(48, salt=33)(step)
    domain = torch.randint(0, 2, (48,), generator=dice(step, 34))
    images = images * (1 - 0.5 * domain.float())[:, None, None]
    return images, classes, classes if wrong else domain


def adversarial_loss(model: nn.Module, x: Tensor, classes: Tensor, domain: Tensor) -> Tensor:
    kind, where = model(x)
    return F.cross_entropy(kind, classes) + F.cross_entropy(where, domain)


def reversal(strength: float = 0.1, wrong: bool = False) -> Training:
    """Domain-adversarial training; broken, with the classes as domains and nearly full strength."""
    torch.manual_seed(33)
    model = Adversarial(strength)
    return Training(
        model,
        partial(_domains, wrong),
        adversarial_loss,
        torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
        steps=200,
    )


class Difference(nn.Module):
    """Two networks read an embedding; what they differ by is the answer."""

    def __init__(self, dim: int, copied: bool, gain: float) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(6, dim), nn.Tanh())
        self.plus = mlp(dim, dim, dim, 1, activation=nn.Tanh)
        self.minus = mlp(dim, dim, dim, 1, activation=nn.Tanh)
        if copied:
            self.minus.load_state_dict(self.plus.state_dict())
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.gain * (self.plus(h) - self.minus(h))[:, 0]


def _curves(step: int) -> Batch:
    x = torch.randn(64, 6, generator=dice(step, 35))
    return x, x[:, 0] + torch.sin(2 * x[:, 1]) - x[:, 2] * x[:, 3].tanh()


def regression_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


def difference(copied: bool = False, gain: float = 1.0, lr: float = 0.02) -> Training:
    """A difference of two networks; broken, they begin as copies and a gain spares them to part."""
    torch.manual_seed(35)
    model = Difference(48, copied, gain)
    return Training(
        model,
        _curves,
        regression_loss,
        torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        steps=300,
    )


class Verdict(nn.Module):
    """A critic's loss on logits."""

    def __init__(self, real: float) -> None:
        super().__init__()
        self.real = real

    def forward(self, logits: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, self.real))


class AdversarialAutoencoder(nn.Module):
    """An autoencoder whose pictures a critic judges."""

    def __init__(self, dim: int, detached: bool) -> None:
        super().__init__()
        self.encode, self.decode = mlp(64, dim, 8), mlp(8, dim, 64)
        self.critic = mlp(64, dim, 1)
        self.fool, self.unmask, self.accept = Verdict(1.0), Verdict(0.0), Verdict(1.0)
        self.detached = detached

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        found = self.decode(self.encode(x))
        loss = 4 * F.mse_loss(found, x) + 0.3 * self.accept(self.critic(x))
        if self.detached:
            frozen = {n: p.detach() for n, p in self.critic.named_parameters()}
            fooled = torch.func.functional_call(self.critic, frozen, (found,))
            return loss + self.fool(fooled) + self.unmask(self.critic(found.detach()))
        logits = self.critic(found)
        return loss + self.fool(logits) + self.unmask(logits)


def one_pass_loss(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    return model(x)


def one_pass(detached: bool = True) -> Training:
    """Generator's and critic's losses in one sum; broken, both are of the same logits."""
    torch.manual_seed(36)
    model = AdversarialAutoencoder(64, detached)
    return Training(
        model,
        digit_batches(48, salt=36),
        one_pass_loss,
        torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.5, 0.99)),
        steps=260,
    )


class Similarity(nn.Module):
    """Of unit vectors."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(-1)


class Siamese(nn.Module):
    """An encoder of pictures, compared with one that is alike and one that isn't."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 12, 3), nn.SiLU(), nn.Conv2d(12, 24, 3), nn.SiLU(),
            nn.Flatten(), nn.Linear(384, dim),
        )  # fmt: skip
        self.near, self.far = Similarity(), Similarity()

    def forward(self, anchor: Tensor, alike: Tensor, other: Tensor) -> Tensor:
        a, p, n = (F.normalize(self.encoder(x[:, None]), dim=-1) for x in (anchor, alike, other))
        return F.softplus(5 * (self.far(a, n) - self.near(a, p))).mean()


def _triples(wrong: bool, step: int) -> Batch:
    images, classes = digit_batches(60, salt=37)(step)
    order = classes.argsort(stable=True)
    images, classes = images[order], classes[order]
    g = dice(step, 38)
    alike = images + 0.1 * torch.randn(images.shape, generator=g)
    other = images if wrong else images.roll(30, 0)
    return images.roll(1, 0), alike, other + 0.1 * torch.randn(images.shape, generator=g)


def negatives(wrong: bool = False) -> Training:
    """Triples of pictures; broken, what should be unlike is another copy of what is alike."""
    torch.manual_seed(37)
    model = Siamese(32)
    return Training(
        model,
        partial(_triples, wrong),
        model_loss,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=200,
    )


class Mix(nn.Module):
    """Values summed with weights."""

    def forward(self, values: Tensor, weights: Tensor) -> Tensor:
        return weights @ values


class Differential(nn.Module):
    """The difference of two attentions to the same values."""

    def __init__(self, dim: int, share: float, std: float) -> None:
        super().__init__()
        self.q1, self.k1, self.q2, self.k2 = (nn.Linear(dim, dim) for _ in range(4))
        for projection in (self.q1, self.k1, self.q2, self.k2):
            nn.init.normal_(projection.weight, std=std)
        self.v, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.first, self.second = Mix(), Mix()
        self.norm = nn.LayerNorm(dim)
        self.share, self.scale = share, dim**-0.5

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        first = torch.softmax(self.q1(y) @ self.k1(y).transpose(1, 2) * self.scale, dim=-1)
        second = torch.softmax(self.q2(y) @ self.k2(y).transpose(1, 2) * self.scale, dim=-1)
        v = self.v(y)
        return x + self.out(self.first(v, first) - self.share * self.second(v, second))


class DifferentialViT(nn.Module):
    """Names the digit in a cell, and may look around."""

    def __init__(self, dim: int, share: float, std: float) -> None:
        super().__init__()
        self.patch = nn.Linear(64, dim)
        self.position = nn.Parameter(0.5 * torch.randn(4, dim))
        self.question = nn.Embedding(4, dim)
        self.blocks = nn.ModuleList(Differential(dim, share, std) for _ in range(2))
        self.feeds = nn.ModuleList(mlp(dim, 2 * dim, dim) for _ in range(2))
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 10))

    def forward(self, patches: Tensor, cell: Tensor) -> Tensor:
        x = self.patch(patches) + self.position + self.question(cell)[:, None]
        for block, feed in zip(self.blocks, self.feeds, strict=True):
            x = block(x)
            x = x + feed(x)
        return self.head(x.mean(1))


def grid_loss(model: nn.Module, patches: Tensor, cell: Tensor, answer: Tensor) -> Tensor:
    return F.cross_entropy(model(patches, cell), answer)


def differential(share: float = 0.2, std: float = 0.1, lr: float = 1e-3) -> Training:
    """Differential attention; broken, both are taken in full and begin with tiny logits."""
    torch.manual_seed(39)
    model = DifferentialViT(48, share, std)
    return Training(
        model,
        grids(48, 2, salt=39),
        grid_loss,
        torch.optim.SGD(model.parameters(), lr=20 * lr, momentum=0.9),
        steps=300,
    )


STARVED = Fault(
    "ind-starved",
    must=[["starved-pathway"]],
    symptom=edge_starves(1e-3),
    variants=[
        # With SGD, what gets a ten-millionth of the gradient stays where it is.
        Variant(
            "two-streams",
            two_streams,
            broken=partial(two_streams, share=1e-6),
            may=["dominant-pathway", "no-update"],
        ),
        # The closed gates are sigmoids at their lower end.
        Variant(
            "closed-gate",
            closed_gate,
            broken=partial(closed_gate, bias=-16.0),
            must=[["starved-pathway", "saturated-activation"]],
            may=["dominant-pathway"],
        ),
        Variant(
            "loss-weight",
            loss_weight,
            broken=partial(loss_weight, weight=1e-8),
            may=["dominant-pathway", "no-update"],
        ),
        Variant("unused-expert", unused_expert, broken=partial(unused_expert, prior=-18.0)),
        Variant("inception", inception, broken=partial(inception, factor=1 / 650250)),
        Variant(
            "unet",
            unet,
            broken=partial(unet, below=1e-6),
            may=["dominant-pathway", "no-update"],
        ),
        # Attention that gets no gradient stays as even as it begins.
        Variant(
            "parallel",
            parallel,
            broken=partial(parallel, attended=1e-6),
            may=["dominant-pathway", "diffuse-softmax"],
        ),
        Variant("mixture", mixture, broken=partial(mixture, offset=7.0)),
    ],
)

# Before the fork, the gradient is smaller than after it by what cancels: it may vanish.
CANCELLING = Fault(
    "ind-cancelling",
    must=[["cancelling-fork"]],
    symptom=cancels(0.15),
    variants=[
        Variant(
            "sign-convention",
            sign_convention,
            broken=partial(sign_convention, sign=-1.0),
            may=["vanishing-gradient"],
        ),
        Variant(
            "reversal",
            reversal,
            broken=partial(reversal, strength=0.97, wrong=True),
            may=["vanishing-gradient"],
        ),
        Variant(
            "difference",
            difference,
            broken=partial(difference, copied=True, gain=100.0, lr=2e-6),
            may=["vanishing-gradient"],
        ),
        Variant("one-pass", one_pass, broken=partial(one_pass, detached=False)),
        Variant(
            "negatives",
            negatives,
            broken=partial(negatives, wrong=True),
            may=["vanishing-gradient"],
        ),
        # Both attentions stay even; queries and keys hear of the loss by softmaxes only.
        Variant(
            "differential",
            differential,
            broken=partial(differential, share=1.0, std=1e-3),
            may=["diffuse-softmax", "softmax-borne"],
        ),
    ],
)

FAULTS = [STARVED, CANCELLING]
