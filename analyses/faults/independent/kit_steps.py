"""Tasks and networks shared by the runs about units, steps and half precision."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.training import Batch, Training


def stream(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step of one task."""
    return torch.Generator().manual_seed(seed * 100_003 + step)


# Tasks: step → the step's tensors.


@cache
def _digits() -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def digits(step: int, size: int = 64) -> Batch:
    """Handwritten digits as 64 numbers, centred and scaled; 10 classes."""
    x, y = _digits()
    at = torch.randint(0, len(x), (size,), generator=stream(1, step))
    return (x[at] - 4.9) / 6.0, y[at]


def pixels(step: int, size: int = 64) -> Batch:
    """The same as images of one channel, 0 to 1."""
    x, y = _digits()
    at = torch.randint(0, len(x), (size,), generator=stream(2, step))
    return x[at].view(-1, 1, 8, 8) / 16, y[at]


def shapes(step: int, size: int = 32, side: int = 16) -> Batch:
    """Noisy images of a disc, a square, a cross or a frame; class and mask."""
    g = stream(3, step)
    kind = torch.randint(0, 4, (size,), generator=g)
    radius = torch.rand(size, 1, 1, generator=g) * side / 8 + side / 6
    centre = (torch.rand(size, 2, generator=g) - 0.5) * side / 4 + side / 2
    line = torch.arange(side).float()
    dy = (line.view(1, -1, 1) - centre[:, 0].view(-1, 1, 1)).abs()
    dx = (line.view(1, 1, -1) - centre[:, 1].view(-1, 1, 1)).abs()
    far = torch.maximum(dx, dy)
    each = torch.stack(
        [
            dx.square() + dy.square() <= radius.square(),
            far <= radius * 0.9,
            (torch.minimum(dx, dy) <= 1) & (far <= radius),
            (far <= radius) & (far >= radius - 1.5),
        ]
    )
    mask = each[kind, torch.arange(size)].float()
    noise = torch.randn(size, side, side, generator=g)
    return (mask + 0.3 * noise).unsqueeze(1), kind, mask


def shape_classes(step: int, size: int = 32, side: int = 16) -> Batch:
    """Images of shapes and their class, centred."""
    image, kind, _ = shapes(step, size, side)
    return (image - 0.2) / 0.45, kind


def shape_masks(step: int, size: int = 32, side: int = 16) -> Batch:
    """Images of shapes and their mask."""
    image, _, mask = shapes(step, size, side)
    return image, mask


WORDS = "tolu kema rin sapo vek duli ora nemis bako fi".split()
LETTERS = sorted(set(" ".join(WORDS)))


@cache
def _text() -> Tensor:
    g = stream(4, 0)
    following = torch.rand(len(WORDS), len(WORDS), generator=g).pow(4)
    word, text = 0, ""
    while len(text) < 30_000:
        text += WORDS[word] + " "
        word = int(torch.multinomial(following[word], 1, generator=g))
    return torch.tensor([LETTERS.index(c) for c in text])


def grammar(step: int, size: int = 16, length: int = 32) -> Batch:
    """Letters of made-up words in a made-up order, and the letters that follow."""
    text = _text()
    starts = torch.randint(0, len(text) - length - 1, (size, 1), generator=stream(5, step))
    at = starts + torch.arange(length + 1)
    return text[at[:, :-1]], text[at[:, 1:]]


def reversal(step: int, size: int = 32, length: int = 10, vocabulary: int = 12) -> Batch:
    """A sequence, and the same from its end to its start."""
    x = torch.randint(0, vocabulary, (size, length), generator=stream(6, step))
    return x, x.flip(1)


def adding(step: int, size: int = 32, length: int = 20) -> Batch:
    """Numbers of which two are marked; their sum."""
    g = stream(7, step)
    numbers = torch.rand(size, length, generator=g)
    order = torch.rand(size, length, generator=g).argsort(1)
    marks = (order < 2).float()
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(1)


def friedman(step: int, size: int = 64) -> Batch:
    """Friedman's first regression function of ten numbers, standardised."""
    g = stream(8, step)
    x = torch.rand(size, 10, generator=g)
    y = (
        10 * torch.sin(math.pi * x[:, 0] * x[:, 1])
        + 20 * (x[:, 2] - 0.5).square()
        + 10 * x[:, 3]
        + 5 * x[:, 4]
    )
    return (x - 0.5) * 3.4, (y - 14.4) / 4.9 + 0.1 * torch.randn(size, generator=g)


def spirals(step: int, size: int = 96) -> Batch:
    """Points on three interleaved spirals."""
    g = stream(9, step)
    y = torch.randint(0, 3, (size,), generator=g)
    r = torch.rand(size, generator=g)
    angle = y * 2.094 + r * 5 + 0.1 * torch.randn(size, generator=g)
    return torch.stack([r * angle.cos(), r * angle.sin()], 1) * 2, y


def waves(step: int, size: int = 32, length: int = 24) -> Batch:
    """Damped oscillations, and each one's next value."""
    g = stream(10, step)
    f, phase, damping = torch.rand(3, size, 1, generator=g)
    t = torch.arange(length + 1).float()
    x = torch.sin((0.3 + 0.5 * f) * t + 6.28 * phase) * torch.exp(-0.04 * damping * t)
    return x[:, :-1].unsqueeze(-1), x[:, 1:].unsqueeze(-1)


@cache
def _graph() -> tuple[Tensor, Tensor]:
    g = stream(11, 0)
    y = torch.arange(120) % 4
    near = torch.where(y[:, None] == y[None, :], 0.15, 0.02)
    links = (torch.rand(120, 120, generator=g) < near).float().triu(1)
    links = links + links.T + torch.eye(120)
    scale = links.sum(1).rsqrt()
    return scale[:, None] * links * scale[None, :], y


def community(step: int) -> Batch:
    """Nodes of a graph of four communities: noisy features, links, community."""
    links, y = _graph()
    x = torch.randn(120, 12, generator=stream(12, step))
    x[:, :4] += 0.8 * F.one_hot(y, 4)
    return x, links, y


def clouds(step: int, size: int = 48, members: int = 10) -> Batch:
    """Sets of points in space, and the logarithm of each set's extent over the possible."""
    g = stream(13, step)
    scale = torch.rand(size, 1, 1, generator=g) * 0.8 + 0.1
    x = torch.randn(size, members, 3, generator=g).clamp(-2, 2) * scale
    extent = (x.amax(1) - x.amin(1)).norm(dim=-1)
    return x * 2, (extent / 7.0).log()


def views(step: int, size: int = 48) -> Batch:
    """Two noisy, dimmed views of each of several digits."""
    x, _ = digits(step, size)
    g = stream(14, step)

    def view() -> Tensor:
        gain = 0.7 + 0.6 * torch.rand(size, 1, generator=g)
        return x * gain + 0.3 * torch.randn(x.shape, generator=g)

    return view(), view()


# Losses.


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def regress(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x).view(y.shape), y)


def letters(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def segment(model: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(x).view(mask.shape), mask)


def rebuild(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), x)


def nodes(model: nn.Module, x: Tensor, links: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x, links), y)


def pairs(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Each view has to find its partner among all."""
    likeness = F.normalize(model(a), dim=-1) @ F.normalize(model(b), dim=-1).T / 0.2
    return F.cross_entropy(likeness, torch.arange(len(a)))


# Networks.


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU, norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(a, b))
        if i < len(sizes) - 2:
            layers += [nn.LayerNorm(b), act()] if norm else [act()]
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """Two convolutions with batch normalisation, added to their input."""

    def __init__(self, inside: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        same = inside == out and stride == 1
        self.short = nn.Identity() if same else nn.Conv2d(inside, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.short(x))


def resnet(width: int = 12, classes: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 1, 1),
        nn.ReLU(),
        Residual(width, width),
        Residual(width, 2 * width, 2),
        Residual(2 * width, 2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )


class UNet(nn.Module):
    """Down once, up once, with a skip."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inside = nn.Conv2d(1, width, 3, 1, 1)
        self.down = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, 1, 1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.join = nn.Conv2d(2 * width, width, 3, 1, 1)
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = F.relu(self.inside(x))
        low = F.relu(self.middle(F.relu(self.down(high))))
        return self.out(F.relu(self.join(torch.cat([high, self.up(low)], 1))))


class Attention(nn.Module):
    """Self-attention of several heads; plain or by PyTorch's fused function."""

    def __init__(self, width: int, heads: int, *, causal: bool, fused: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.heads, self.causal, self.fused = heads, causal, fused

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (
            h.view(n, t, self.heads, -1).transpose(1, 2) for h in self.qkv(x).chunk(3, dim=-1)
        )
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.heads)
            if self.causal:
                later = torch.ones(t, t, dtype=torch.bool).triu(1)
                scores = scores.masked_fill(later, -torch.inf)
            y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, t, d))


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, heads: int, *, causal: bool = False, fused: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal, fused=fused)
        self.feed = mlp(width, 3 * width, width, act=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed(self.norm2(x))


class Letters(nn.Module):
    """A small causal transformer over tokens."""

    def __init__(self, width: int = 48, depth: int = 2, *, fused: bool = True) -> None:
        super().__init__()
        self.token = nn.Embedding(len(LETTERS), width)
        self.place = nn.Parameter(0.1 * torch.randn(64, width))
        self.blocks = nn.ModuleList(Block(width, 4, causal=True, fused=fused) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(LETTERS))

    def forward(self, x: Tensor) -> Tensor:
        h = self.token(x) + self.place[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


class Encoder(nn.Module):
    """PyTorch's own transformer layers over tokens, an answer at every place."""

    def __init__(self, vocabulary: int = 12, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(0.5 * torch.randn(32, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True)
            for _ in range(depth)
        )
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        h = self.token(x) + self.place[: x.shape[1]]
        for layer in self.layers:
            h = layer(h)
        return self.head(h)


class Patches(nn.Module):
    """A small vision transformer: patches, a class token, blocks."""

    def __init__(self, width: int = 32, depth: int = 3, side: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.cut = nn.Conv2d(1, width, 4, 4)
        self.first = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.place = nn.Parameter(torch.randn(1, (side // 4) ** 2 + 1, width) * 0.1)
        self.blocks = nn.Sequential(*(Block(width, 4, fused=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.cut(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.first.expand(len(h), -1, -1), h], 1) + self.place
        return self.head(self.norm(self.blocks(h))[:, 0])


class Mix(nn.Module):
    """One layer of an MLP-mixer."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = mlp(places, 2 * places, places, act=nn.GELU)
        self.along = mlp(width, 2 * width, width, act=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.along(self.norm2(x))


class Mixer(nn.Module):
    """An MLP-mixer over patches."""

    def __init__(self, width: int = 32, depth: int = 3, side: int = 16) -> None:
        super().__init__()
        self.cut = nn.Conv2d(1, width, 4, 4)
        self.layers = nn.Sequential(*(Mix((side // 4) ** 2, width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layers(self.cut(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(h).mean(1))


class Recurrent(nn.Module):
    """A recurrent layer of PyTorch's and a linear head, at every step or at the last."""

    def __init__(
        self,
        kind: type[nn.RNNBase],
        inside: int,
        width: int,
        out: int,
        *,
        layers: int = 1,
        tokens: int = 0,
        last: bool = False,
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(tokens, inside) if tokens else nn.Identity()
        self.core = kind(inside, width, layers, batch_first=True)  # type: ignore[arg-type]
        self.head = nn.Linear(width, out)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        h = self.core(self.token(x))[0]
        return self.head(h[:, -1] if self.last else h)


class Graph(nn.Module):
    """Graph convolutions: average the neighbours, then a linear map."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Tensor, links: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(links @ x)
            x = F.relu(x) if i < len(self.layers) - 1 else x
        return x


class Variational(nn.Module):
    """A variational autoencoder of digits; its loss is its forward pass's second value."""

    def __init__(self, latent: int = 6, width: int = 64) -> None:
        super().__init__()
        self.encode = mlp(64, width, 2 * latent)
        self.decode = mlp(latent, width, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log = self.encode(x).chunk(2, dim=-1)
        z = mean + torch.randn_like(mean) * (0.5 * log).exp()
        divergence = -0.5 * (1 + log - mean.square() - log.exp()).sum(-1).mean()
        return self.decode(z), divergence


def bound(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Squared error and divergence per pixel."""
    again, divergence = model(x)
    return F.mse_loss(again, x) + divergence / x.shape[1] * 0.3


class Autoencoder(nn.Module):
    """Convolutions down to a code and up again."""

    def __init__(self, width: int = 8, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), act(), nn.Conv2d(width, 2 * width, 3, 2, 1), act()
        )
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(2 * width, width, 2, 2),
            act(),
            nn.ConvTranspose2d(width, 1, 2, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class Members(nn.Module):
    """A network on every member of a set, their mean and maximum, a network on those."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.each = mlp(3, width, width)
        self.all = mlp(2 * width, width, 1, act=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.each(x))
        return self.all(torch.cat([h.mean(1), h.amax(1)], -1)).squeeze(-1)


class Experts(nn.Module):
    """A gate mixes several networks."""

    def __init__(self, inside: int, out: int, experts: int = 4, width: int = 32) -> None:
        super().__init__()
        self.gate = nn.Linear(inside, experts)
        self.experts = nn.ModuleList(mlp(inside, width, out) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        share = self.gate(x).softmax(-1).unsqueeze(1)
        return (torch.stack([e(x) for e in self.experts], -1) * share).sum(-1)


# Steps.


def cast(
    loss: Callable[..., Tensor], kind: torch.dtype, model: nn.Module, *batch: Tensor
) -> Tensor:
    """A loss under autocast."""
    with torch.autocast("cpu", dtype=kind):
        return loss(model, *batch)


def scaled(scaler: torch.amp.GradScaler, training: Training, step: int) -> dict[str, Any]:
    """One step with a loss scaler."""
    loss = training.loss_at(step)
    scaler.scale(loss).backward()
    if training.clip is not None:
        scaler.unscale_(training.optimizer)
        nn.utils.clip_grad_norm_(training.model.parameters(), training.clip)
    scaler.step(training.optimizer)
    scaler.update()
    training.optimizer.zero_grad()
    return {"loss": loss.detach()}


class Signs(torch.optim.Optimizer):
    """Steps of one size: the sign of momentum and gradient, with weight decay."""

    def __init__(self, parameters: Any, lr: float, decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["decay"])
                p.sub_(group["lr"] * (0.9 * m + 0.1 * p.grad).sign())
                m.mul_(0.99).add_(p.grad, alpha=0.01)
