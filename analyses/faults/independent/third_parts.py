"""Faults of wiring: branches that get no gradient or cancel, and parameters left aside."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_third_parts import (
    Causal,
    blobs,
    cancels,
    cross_entropy,
    digits,
    grammar,
    mlp,
    rng,
    starved,
    training,
)
from analyses.faults.symptoms import left_out, some_without_gradient
from analyses.faults.training import Batch, Training

# A branch that gets next to none of the gradient.


class ScaledBlock(nn.Module):
    """A convolutional residual block whose branch is scaled by a buffer."""

    scale: Tensor

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.shortcut = nn.Identity()
        self.register_buffer("scale", torch.full((width, 1, 1), scale))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.scale * self.branch(x))


def layer_scale(scale: float = 0.5) -> Training:
    """A small ResNet; the layer scale that should be learned is a buffer."""
    torch.manual_seed(11)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        *(ScaledBlock(12, scale) for _ in range(3)),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 10),
    )
    return training(model, digits(48), cross_entropy, "momentum", 0.03, steps=120)


class TwoTasks(nn.Module):
    """Digits are told and drawn larger from the same code."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(mlp(64, 96, 64), nn.Tanh())
        self.tell = mlp(64, 32, 10)
        self.draw = mlp(64, 96, 256)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x.flatten(1))
        return self.tell(h), self.draw(h)


def task_weights(summed: bool = False) -> Training:
    """Two tasks; the pixels' errors are summed and the other task is weighted down."""
    torch.manual_seed(12)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        told, drawn = model(x)
        large = F.interpolate(x, scale_factor=2).flatten(1)
        if summed:
            return 0.01 * F.cross_entropy(told, y) + F.mse_loss(drawn, large, reduction="sum")
        return F.cross_entropy(told, y) + F.mse_loss(drawn, large)

    return training(TwoTasks(), digits(96), loss, "adam", 1e-3, steps=150)


class Highway(nn.Module):
    """A highway layer."""

    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        self.carry = nn.Identity()
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        open_ = torch.sigmoid(self.gate(x))
        return open_ * torch.tanh(self.transform(x)) + (1 - open_) * self.carry(x)


def closed_gates(bias: float = -1.0) -> Training:
    """A highway network whose gates start so far closed that they stay so."""
    torch.manual_seed(13)
    model = nn.Sequential(
        nn.Linear(6, 48), *(Highway(48, bias) for _ in range(4)), nn.Linear(48, 1)
    )

    def batch(step: int) -> Batch:
        x = 1.5 * torch.randn(64, 6, generator=rng(step, 13))
        return x, x[:, :1].abs() + x[:, 1:2].abs() + 0.2 * x[:, 2:3] - 2.4

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y)

    return training(model, batch, loss, "momentum", 0.03, steps=300, every=10)


class Router(nn.Module):
    """Four linear experts, mixed by a softmax."""

    def __init__(self, width: int, prior: list[float]) -> None:
        super().__init__()
        self.start = nn.Linear(6, width)
        self.router = nn.Linear(width, len(prior))
        self.experts = nn.ModuleList(nn.Linear(width, 12) for _ in prior)
        self.out = nn.Linear(12, 3)
        with torch.no_grad():
            self.router.bias.copy_(torch.tensor(prior))

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        shares = self.router(h).softmax(-1)
        outputs = torch.stack([expert(h) for expert in self.experts], dim=-1)
        out: Tensor = self.out((outputs * shares[:, None]).sum(-1))
        return out


def one_expert(prior: float = 0.0) -> Training:
    """A mixture of experts whose router starts with nearly everything on the first."""
    torch.manual_seed(14)
    laws = torch.randn(2, 6, 3)

    def batch(step: int) -> Batch:
        x = torch.randn(96, 6, generator=rng(step, 14))
        first = torch.sigmoid(2 * x[:, :1])
        return x, first * (x @ laws[0]) + (1 - first) * (x @ laws[1])

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y)

    model = Router(24, [0.0, prior, prior, prior])
    return training(model, batch, loss, "momentum", 0.02, steps=200)


class ParallelBlock(nn.Module):
    """Attention and a feed-forward network side by side."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Causal(width)
        self.feed = nn.Sequential(nn.Linear(width, 96), nn.GELU(), nn.Linear(96, width))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        return x + self.feed(n) + self.scale * self.attention(n)


class ParallelModel(nn.Module):
    """A small language model of such blocks."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 48)
        self.place = nn.Parameter(0.1 * torch.randn(24, 48))
        self.blocks = nn.Sequential(*(ParallelBlock(48, scale) for _ in range(2)))
        self.out = nn.Linear(48, 20)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.blocks(self.embed(x) + self.place))
        return out


def fixed_scale(scale: float = 1.0) -> Training:
    """A layer scale's first value stays as a constant on the attention's output."""
    torch.manual_seed(15)
    return training(ParallelModel(scale), grammar(), cross_entropy, "adamw", 3e-3, steps=150)


class SmallUNet(nn.Module):
    """A U-Net of two levels; its deep path is divided by a number."""

    def __init__(self, divisor: float) -> None:
        super().__init__()
        self.start = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.SiLU())
        self.skip = nn.Conv2d(12, 12, 1)
        self.deep = nn.Sequential(
            nn.Conv2d(12, 24, 3, stride=2, padding=1),
            nn.GroupNorm(4, 24),
            nn.SiLU(),
            nn.Conv2d(24, 24, 3, padding=1),
            nn.GroupNorm(4, 24),
            nn.SiLU(),
            nn.ConvTranspose2d(24, 12, 4, stride=2, padding=1),
            nn.GroupNorm(4, 12),
        )
        self.end = nn.Sequential(nn.SiLU(), nn.Conv2d(24, 12, 3, padding=1), nn.SiLU())
        self.out = nn.Conv2d(12, 1, 1)
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        e = self.start(x)
        both = torch.cat([self.skip(e), self.deep(e) / self.divisor], dim=1)
        out: Tensor = self.out(self.end(both))
        return out


def segmentation(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Binary cross entropy of every pixel."""
    return F.binary_cross_entropy_with_logits(model(x), y)


def deep_path(divisor: float = 1.0) -> Training:
    """The U-Net's features are taken for bytes on their way up, twice."""
    torch.manual_seed(16)
    return training(
        SmallUNet(divisor), blobs(12, noise=1.5), segmentation, "momentum", 0.1, steps=120
    )


STARVED = Fault(
    "ind3-parts-starved",
    must=[["starved-pathway"]],
    symptom=starved(),
    variants=[
        Variant(
            "layer-scale-buffer",
            healthy=layer_scale,
            broken=partial(layer_scale, scale=1e-5),
            may=["no-update"],  # the branches move by 1e-4 of their size at most
        ),
        Variant("summed-task", healthy=task_weights, broken=partial(task_weights, summed=True)),
        Variant(
            "closed-gates",
            healthy=closed_gates,
            broken=partial(closed_gates, bias=-12.0),
            # Gates at the flat end of the sigmoid say the same of the cause.
            must=[["starved-pathway", "saturated-activation"]],
            may=["no-update"],  # gates and transforms move by 1e-5 of their size
        ),
        Variant(
            "one-expert",
            healthy=one_expert,
            broken=partial(one_expert, prior=-14.0),
            # The router's softmax is on one entry before it has learned anything.
            must=[["starved-pathway", "peaked-softmax"]],
            may=["no-update"],  # three experts move by 1e-5 of their size
        ),
        Variant(
            "attention-scale-fixed",
            healthy=fixed_scale,
            broken=partial(fixed_scale, scale=1e-6),
            may=["diffuse-softmax"],  # what gets no gradient stays uniform
        ),
        Variant(
            "deep-path",
            healthy=deep_path,
            broken=partial(deep_path, divisor=255.0**2),
            may=["no-update"],  # the deep path moves by 1e-5 of its size
        ),
    ],
)


# Branches whose gradients cancel.


class TiedViews(nn.Module):
    """One head reads the code twice, for two columns of labels."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = mlp(12, 64, 64, 32)
        self.head = nn.Linear(32, 1)
        with torch.no_grad():
            self.head.weight.mul_(0.02)
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.head(h), self.head(h)


def opposite_labels(sign: float = 1.0) -> Training:
    """Two raters' labels of the same quantity; one counts with the other sign."""
    torch.manual_seed(21)
    weights = torch.randn(12)

    def batch(step: int) -> Batch:
        x = torch.randn(64, 12, generator=rng(step, 21))
        y = (x @ weights + 2 * (x[:, 0] * x[:, 1]))[:, None] / 4
        return x, y, sign * y

    def loss(model: nn.Module, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        a, b = model(x)
        return F.mse_loss(a, first) + F.mse_loss(b, second)

    return training(TiedViews(), batch, loss, "sgd", 0.05, steps=150)


class Reverse(torch.autograd.Function):
    """Identity with the gradient's sign turned."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, by: float) -> Tensor:
        ctx.by = by  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, given: Tensor) -> tuple[Tensor, None]:
        return -ctx.by * given, None  # type: ignore[attr-defined]


class Adversary(nn.Module):
    """A head behind a reversed gradient."""

    def __init__(self, head: nn.Module, by: float) -> None:
        super().__init__()
        self.head, self.by = head, by

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(Reverse.apply(x, self.by))
        return out


class Adversarial(nn.Module):
    """A convolutional trunk, a head for the class and an adversary."""

    def __init__(self, by: float, *, copied: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 48),
        )
        self.head = mlp(48, 32, 10, between=nn.SiLU)
        self.adversary = Adversary(
            copy.deepcopy(self.head) if copied else mlp(48, 16, 2, between=nn.SiLU), by
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.head(h), self.adversary(h)


def adversary(same: bool = False) -> Training:
    """An adversary should make the code blind to contrast; it is given the classes instead."""
    torch.manual_seed(22)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        low = torch.arange(len(x)) % 2
        told, domain = model(x * (1 - 0.5 * low)[:, None, None, None])
        return F.cross_entropy(told, y) + F.cross_entropy(domain, y if same else low)

    model = Adversarial(0.95 if same else 0.1, copied=same)
    return training(model, digits(48), loss, "momentum", 0.05, steps=150)


class Critic(nn.Module):
    """A recurrent critic: values of this and the next moment."""

    def __init__(self, *, stale: bool) -> None:
        super().__init__()
        self.read = nn.GRU(4, 32, batch_first=True)
        self.value = mlp(32, 32, 1, between=nn.SiLU)
        self.stale = stale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.read(x)[0]
        now = seen[:, -2]
        following = now if self.stale else seen[:, -1]
        return self.value(now), self.value(following)


def same_moment(stale: bool = False) -> Training:
    """The next moment's value is taken of the same moment, and its gradient isn't stopped."""
    torch.manual_seed(23)

    def batch(step: int) -> Batch:
        g = rng(step, 23)
        phase = 6.3 * torch.rand(48, 1, 2, generator=g) + torch.arange(5)[:, None] * 0.7
        x = torch.cat([phase.sin(), phase.cos()], dim=-1)
        return x, x[:, -2, :1] + 0.5 * x[:, -2, 1:2]

    def loss(model: nn.Module, x: Tensor, reward: Tensor) -> Tensor:
        now, following = model(x)
        return F.mse_loss(now, reward + 0.97 * (following if stale else following.detach() * 0.5))

    return training(Critic(stale=stale), batch, loss, "sgd", 0.05, steps=150)


class Detail(nn.Module):
    """A signal's detail: the features seen by one filter less those seen by another."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(1, 16, 5, padding=2), nn.GELU())
        first = nn.Conv1d(16, 24, 3, padding=1)
        self.filters = nn.ModuleList([first, first if tied else nn.Conv1d(16, 24, 3, padding=1)])
        self.out = nn.Sequential(nn.GELU(), nn.Conv1d(24, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x)
        centre, surround = self.filters
        out: Tensor = self.out(centre(h) - 0.95 * surround(h))
        return out


def one_filter(tied: bool = False) -> Training:
    """A list of two filters is made by multiplying a list of one."""
    torch.manual_seed(24)

    def batch(step: int) -> Batch:
        g = rng(step, 24)
        x = torch.randn(24, 1, 40, generator=g)
        return x, F.avg_pool1d(x.abs(), 3, 1, 1) * 2 - x - 1.6

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y)

    return training(Detail(tied=tied), batch, loss, "sgd", 0.05, steps=120)


class Triplets(nn.Module):
    """Distances of anchors to positives and to negatives, in an embedding of images."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(192, 24)
        )
        self.near = nn.PairwiseDistance()
        self.far = nn.PairwiseDistance()

    def forward(self, x: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        z = self.embed(x)
        return self.near(z, z[positive]), self.far(z, z[negative])


def triplets(same: bool = False) -> Training:
    """Negatives are looked up with the positives' index."""
    torch.manual_seed(25)

    def batch(step: int) -> Batch:
        x, y = digits(64, salt=25)(step)
        alike = (y[:, None] == y).float() - 0.99 * torch.eye(64)
        g = rng(step, 26)
        positive = torch.multinomial(alike.clamp(min=0), 1, generator=g)[:, 0]
        negative = torch.multinomial((y[:, None] != y).float(), 1, generator=g)[:, 0]
        return x, positive, positive if same else negative

    def loss(model: nn.Module, *given: Tensor) -> Tensor:
        near, far = model(*given)
        return (near - far + 0.5).clamp(min=0).mean()

    return training(Triplets(), batch, loss, "sgd", 0.05, steps=150)


CANCELLING = Fault(
    "ind3-parts-cancelling",
    must=[["cancelling-fork"]],
    may=["vanishing-gradient"],  # measured: what cancels leaves a hundredth below the fork
    symptom=cancels(),
    variants=[
        Variant(
            "opposite-labels",
            healthy=opposite_labels,
            broken=partial(opposite_labels, sign=-1.0),
            may=["vanishing-gradient", "no-update"],  # the trunk moves by 1e-5 of its size
        ),
        Variant("adversary", healthy=adversary, broken=partial(adversary, same=True)),
        Variant("same-moment", healthy=same_moment, broken=partial(same_moment, stale=True)),
        Variant("one-filter", healthy=one_filter, broken=partial(one_filter, tied=True)),
        Variant(
            "triplets",
            healthy=triplets,
            broken=partial(triplets, same=True),
            # The gradients cancel to exactly 0: none gets below the embedding, nothing moves.
            may=["no-update", "vanishing-gradient"],
        ),
    ],
)


# Trainable parameters that run and get no gradient.


class Frames(nn.Module):
    """Convolutional features of an image, read row by row by a recurrent network."""

    def __init__(self, *, evaluating: bool) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
        )
        self.read = nn.LSTMCell(16 * 8, 32)
        self.head = nn.Linear(32, 10)
        self.evaluating = evaluating

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.evaluating and torch.is_grad_enabled()):
            features = self.backbone(x)
        rows = features.permute(0, 2, 1, 3).flatten(2)
        h = c = x.new_zeros(len(x), 32)
        for row in rows.unbind(1):
            h, c = self.read(row, (h, c))
        out: Tensor = self.head(h)
        return out


def evaluated_backbone(evaluating: bool = False) -> Training:
    """The backbone is still called as for evaluation."""
    torch.manual_seed(31)
    return training(
        Frames(evaluating=evaluating), digits(48), cross_entropy, "adam", 2e-3, steps=120
    )


class Switch(nn.Module):
    """Every token goes to the expert that the router likes best."""

    def __init__(self, width: int, experts: int, *, weighted: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(mlp(width, 48, width) for _ in range(experts))
        self.weighted = weighted

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        shares = self.router(n).softmax(-1)
        best, chosen = shares.max(-1)
        mixed = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            there = chosen == i
            if bool(there.any()):
                mixed[there] = expert(n[there])
        return x + (best[..., None] * mixed if self.weighted else mixed)


class SwitchModel(nn.Module):
    """A language model whose feed-forward layer is such a one."""

    def __init__(self, *, weighted: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 32)
        self.before = nn.GRU(32, 32, batch_first=True)
        self.switch = Switch(32, 4, weighted=weighted)
        self.out = nn.Linear(32, 20)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.switch(self.before(self.embed(x))[0]))
        return out


def hard_router(weighted: bool = True) -> Training:
    """The chosen expert's output isn't weighted by its probability."""
    torch.manual_seed(32)
    return training(
        SwitchModel(weighted=weighted), grammar(), cross_entropy, "adam", 3e-3, steps=150
    )


class Codebook(nn.Module):
    """An autoencoder whose code is the nearest entry of a codebook."""

    def __init__(self, *, straight: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(16, 8, 1)
        )
        self.codes = nn.Embedding(32, 8)
        self.decoder = nn.Sequential(
            nn.Conv2d(8, 16, 3, padding=1), nn.GELU(), nn.ConvTranspose2d(16, 1, 4, 2, 1)
        )
        self.straight = straight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x).permute(0, 2, 3, 1)
        nearest = torch.cdist(z.detach().flatten(0, 2), self.codes.weight.detach()).argmin(-1)
        q = self.codes(nearest).view_as(z)
        if not self.straight:
            return self.decoder(q.permute(0, 3, 1, 2)), x.new_zeros(())
        extra = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return self.decoder((z + (q - z).detach()).permute(0, 3, 1, 2)), extra


def quantised(straight: bool = True) -> Training:
    """A quantised autoencoder without the straight-through copy of the gradient."""
    torch.manual_seed(33)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        drawn, extra = model(x)
        return F.mse_loss(drawn, x) + extra

    return training(Codebook(straight=straight), digits(48), loss, "adam", 2e-3, steps=150)


class Towers(nn.Module):
    """Two towers whose outputs of the same index should be alike."""

    def __init__(self, *, cached: bool) -> None:
        super().__init__()
        self.queries = mlp(32, 64, 24)
        self.items = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 24))
        self.cached = cached

    def forward(self, upper: Tensor, lower: Tensor) -> Tensor:
        q = F.normalize(self.queries(upper), dim=-1)
        k = F.normalize(self.items(lower), dim=-1)
        if self.cached:
            k = torch.from_numpy(k.detach().numpy().copy())  # as the index gives them back
        return q @ k.T / 0.1


def cached_items(cached: bool = False) -> Training:
    """Items are looked up in the index instead of being embedded for training."""
    torch.manual_seed(34)

    def batch(step: int) -> Batch:
        x = digits(48, flat=True, salt=34)(step)[0]
        return x[:, :32], x[:, 32:]

    def loss(model: nn.Module, upper: Tensor, lower: Tensor) -> Tensor:
        logits = model(upper, lower)
        return F.cross_entropy(logits, torch.arange(len(logits)))

    return training(Towers(cached=cached), batch, loss, "adamw", 2e-3, steps=150)


class Checkpointed(nn.Module):
    """A mixer of patches whose first part is computed again in the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.patches = nn.Sequential(nn.Conv2d(1, 32, 2, stride=2), nn.Flatten(2))
        self.across = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU())
        self.back = nn.Linear(32, 16)
        self.within = mlp(32, 64, 32)
        self.head = nn.Linear(32, 10)
        self.reentrant = reentrant

    def stem(self, x: Tensor) -> Tensor:
        """The part that is computed again."""
        patches = self.patches(x)
        out: Tensor = patches + self.back(self.across(patches))
        return out

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.stem, x, use_reentrant=self.reentrant).transpose(1, 2)
        out: Tensor = self.head((h + self.within(h)).mean(1))
        return out


def recomputed(reentrant: bool = False) -> Training:
    """Checkpointing of the old kind, whose inputs don't require a gradient."""
    torch.manual_seed(35)
    return training(
        Checkpointed(reentrant=reentrant), digits(48), cross_entropy, "adam", 3e-3, steps=150
    )


class Helper(nn.Module):
    """A regression network with a second head that tells the sign."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(mlp(10, 64, 64), nn.SiLU())
        self.value = nn.Linear(64, 1)
        self.sign = nn.Sequential(nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.value(h), self.sign(h)


def logged_loss(as_number: bool = False) -> Training:
    """The second task's loss is added as the number that is logged."""
    torch.manual_seed(36)

    def batch(step: int) -> Batch:
        x = torch.randn(64, 10, generator=rng(step, 36))
        return x, (x[:, :1] * x[:, 1:2] + x[:, 2:3].sin() + 0.3 * x[:, 3:4])

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        value, sign = model(x)
        helps = F.binary_cross_entropy_with_logits(sign, (y > 0).float())
        return F.mse_loss(value, y) + 0.5 * (helps.item() if as_number else helps)

    return training(Helper(), batch, loss, "adagrad", 0.03, steps=200)


class TwoStages(nn.Module):
    """A first stage writes a string of tokens, which a second one reads."""

    def __init__(self, *, hard: bool) -> None:
        super().__init__()
        self.write = nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 16))
        self.words = nn.Embedding(16, 24)
        self.mix = Causal(24, causal=False)
        self.head = nn.Linear(24, 10)
        self.hard = hard

    def forward(self, x: Tensor) -> Tensor:
        logits = self.write(x[:, 0])  # row by row
        if self.hard:
            read = self.words(logits.argmax(-1))
        else:
            read = logits.softmax(-1) @ self.words.weight
        place = torch.eye(8, 24)
        h = read + place
        out: Tensor = self.head((h + self.mix(h)).mean(1))
        return out


def picked_tokens(hard: bool = False) -> Training:
    """Only the likeliest token goes on to the second stage."""
    torch.manual_seed(37)
    return training(TwoStages(hard=hard), digits(48), cross_entropy, "adam", 5e-3, steps=200)


DETACHED = Fault(
    "ind3-parts-detached",
    must=[["detached"]],
    may=["no-update"],  # they don't move
    symptom=some_without_gradient(),
    variants=[
        Variant(
            "evaluated-backbone",
            healthy=evaluated_backbone,
            broken=partial(evaluated_backbone, evaluating=True),
        ),
        Variant(
            "hard-router",
            healthy=hard_router,
            broken=partial(hard_router, weighted=False),
            may=["no-update", "starved-pathway"],  # router and experts read the same tensor
        ),
        Variant("quantised", healthy=quantised, broken=partial(quantised, straight=False)),
        Variant("cached-items", healthy=cached_items, broken=partial(cached_items, cached=True)),
        Variant("recomputed", healthy=recomputed, broken=partial(recomputed, reentrant=True)),
        Variant(
            "logged-loss",
            healthy=logged_loss,
            broken=partial(logged_loss, as_number=True),
            may=["no-update", "starved-pathway"],  # both heads read the same tensor
        ),
        Variant("picked-tokens", healthy=picked_tokens, broken=partial(picked_tokens, hard=True)),
    ],
)


# Trainable parameters that no optimizer holds.


class Listed(nn.Module):
    """A residual network; its blocks may be in a list of Python's."""

    def __init__(self, *, plain: bool) -> None:
        super().__init__()
        self.start = nn.Linear(64, 40)
        blocks = [nn.Sequential(nn.LayerNorm(40), mlp(40, 60, 40)) for _ in range(3)]
        self.blocks = blocks if plain else nn.ModuleList(blocks)
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(x)
        return out


def plain_list(plain: bool = False) -> Training:
    """Blocks are kept in a list that the module doesn't know of."""
    torch.manual_seed(41)
    return training(
        Listed(plain=plain), digits(64, flat=True), cross_entropy, "adam", 1e-3, steps=150
    )


def new_head(late: bool = False) -> Training:
    """A head for other classes is put in after the optimizer was made."""
    torch.manual_seed(42)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 4),
    )
    if not late:
        model[7] = nn.Linear(256, 10)
    run = training(model, digits(48), cross_entropy, "momentum", 0.02, steps=120)
    if late:
        model[7] = nn.Linear(256, 10)
    return run


class Encoder(nn.Module):
    """A small language model of library layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 32)
        self.place = nn.Parameter(0.02 * torch.randn(24, 32))
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(32, 20)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        out: Tensor = self.out(self.layers(self.embed(x) + self.place, mask=mask))
        return out


def decay_groups(by_name: bool = False) -> Training:
    """Parameters are sorted by name into those with decay and those without; some are neither."""
    torch.manual_seed(43)
    model = Encoder()
    run = training(model, grammar(), cross_entropy, "adamw", 2e-3, steps=130)
    if by_name:
        named = list(model.named_parameters())
        decayed = [p for n, p in named if "linear" in n and n.endswith("weight")]
        others = [p for n, p in named if "norm" in n or n.endswith("bias") or n == "embed.weight"]
        groups: list[dict[str, Any]] = [
            {"params": decayed},
            {"params": others, "weight_decay": 0.0},
        ]
        run.optimizer = torch.optim.AdamW(groups, lr=2e-3)
    return run


class Growing(nn.Module):
    """An autoencoder to which a finer stage is added while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 12, 3, 2, 1), nn.SiLU(), nn.Conv2d(12, 6, 3, 2, 1)
        )
        self.decoder = nn.Sequential(nn.ConvTranspose2d(6, 12, 4, 2, 1), nn.SiLU())
        self.coarse = nn.Conv2d(12, 1, 1)
        self.fine = nn.Sequential(nn.ConvTranspose2d(12, 12, 4, 2, 1), nn.SiLU())
        self.finish = nn.Conv2d(12, 1, 1)
        self.grown = False

    def forward(self, x: Tensor) -> Tensor:
        h = self.decoder(self.encoder(x))
        out = F.interpolate(self.coarse(h), scale_factor=2)
        return out + self.finish(self.fine(h)) if self.grown else out


def growing(added: bool = True) -> Training:
    """The finer stage's parameters aren't given to the optimizer when it comes in."""
    torch.manual_seed(44)
    model = Growing()
    first = [*model.encoder.parameters(), *model.decoder.parameters(), *model.coarse.parameters()]

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), x)

    def step(run: Training, at: int) -> dict[str, Tensor]:
        if at == 40:
            model.grown = True
            if added:
                finer = [*model.fine.parameters(), *model.finish.parameters()]
                run.optimizer.add_param_group({"params": finer})
        found = run.loss_at(at)
        found.backward()
        run.optimizer.step()
        run.model.zero_grad()
        return {"loss": found.detach()}

    run = training(model, digits(48), loss, "adam", 2e-3, held=first, steps=150)
    run.step = step
    return run


class Margin(nn.Module):
    """The logits of a metric loss, which has a vector of its own for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Parameter(torch.randn(10, 12))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        cosines = F.normalize(z, dim=-1) @ F.normalize(self.classes, dim=-1).T
        return 12 * (cosines - 0.2 * F.one_hot(y, 10))


class Metric(nn.Module):
    """An embedding and the loss that it is trained with."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Unflatten(1, (1, 64)),
            nn.Conv1d(1, 8, 8, 4),
            nn.ELU(),
            nn.Flatten(),
            nn.Linear(120, 12),
        )
        self.criterion = Margin()


def margin(forgotten: bool = False) -> Training:
    """Of a metric loss's own parameters nobody has told the optimizer."""
    torch.manual_seed(45)
    model = Metric()

    def loss(model: Metric, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model.criterion(model.embed(x), y), y)

    held = model.embed.parameters() if forgotten else model.parameters()
    return training(model, digits(64, flat=True), loss, "rmsprop", 1e-3, held=list(held), steps=150)


def unfrozen(told: bool = True) -> Training:
    """The lower layers are unfrozen after a while; the optimizer was made before."""
    torch.manual_seed(46)
    lower = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh())
    upper = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
    model = nn.Sequential(lower, upper)
    lower.requires_grad_(False)

    def step(run: Training, at: int) -> dict[str, Tensor]:
        if at == 30:
            lower.requires_grad_(True)
            if told:
                run.optimizer.add_param_group({"params": list(lower.parameters())})
        found = run.loss_at(at)
        found.backward()
        run.optimizer.step()
        run.model.zero_grad()
        return {"loss": found.detach()}

    held = [p for p in model.parameters() if p.requires_grad]
    run = training(
        model, digits(64, flat=True), cross_entropy, "momentum", 0.03, held=held, steps=150
    )
    run.step = step
    return run


class Sets(nn.Module):
    """A network of sets: what is seen of each point, and what is told of them all."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Linear(3, 48), nn.SiLU(), nn.Linear(48, 48))
        self.told = nn.Sequential(nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.told(self.point(x).mean(1))
        return out


def two_optimizers(wrong: bool = False) -> Training:
    """Two parts have an optimizer each; the second is made for the first part again."""
    torch.manual_seed(47)
    model = Sets()
    first, second = list(model.point.parameters()), list(model.told.parameters())

    def batch(step: int) -> Batch:
        g = rng(step, 47)
        spread = 0.3 + 1.5 * torch.rand(32, 1, 3, generator=g)
        x = spread * torch.randn(32, 6, 3, generator=g)
        return x, x.square().mean(1)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y)

    def step(run: Training, at: int) -> dict[str, Tensor]:
        found = run.loss_at(at)
        found.backward()
        run.optimizer.step()
        run.others[0].step()
        run.model.zero_grad()
        return {"loss": found.detach()}

    run = training(model, batch, loss, "adam", 4e-3, held=first, steps=200)
    run.others = [torch.optim.Adam(first if wrong else second, lr=4e-3)]
    run.step = step
    return run


LEFT_OUT = Fault(
    "ind3-parts-left-out",
    must=[["not-in-optimizer"]],
    may=["no-update"],  # they have a gradient and don't move
    symptom=left_out(),
    variants=[
        Variant("plain-list", healthy=plain_list, broken=partial(plain_list, plain=True)),
        Variant("new-head", healthy=new_head, broken=partial(new_head, late=True)),
        Variant(
            "decay-groups",
            healthy=decay_groups,
            broken=partial(decay_groups, by_name=True),
            # Queries and keys among them: attention stays uniform to the end.
            may=["no-update", "diffuse-softmax"],
        ),
        Variant("growing", healthy=growing, broken=partial(growing, added=False)),
        Variant("margin", healthy=margin, broken=partial(margin, forgotten=True)),
        Variant("unfrozen", healthy=unfrozen, broken=partial(unfrozen, told=False)),
        Variant(
            "two-optimizers", healthy=two_optimizers, broken=partial(two_optimizers, wrong=True)
        ),
    ],
)

FAULTS = [STARVED, CANCELLING, DETACHED, LEFT_OUT]
