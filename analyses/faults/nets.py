"""Small networks of the usual kinds. They know nothing of gradscope.

Index legend: B samples, D features, T time steps or positions, H hidden size, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Callable[[], nn.Module]


def rescale(model: nn.Module, gain: float) -> None:
    """Draw every matrix anew, N(0, gain²/fan_in), and set every bias beside it to 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=gain / math.sqrt(fan_in))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def mlp(
    sizes: list[int],
    activation: Activation = nn.ReLU,
    *,
    norm: Callable[[int], nn.Module] | None = None,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Linear, (norm,) activation, (dropout,) … Linear: (B, sizes[0]) → (B, sizes[-1])."""
    layers: list[nn.Module] = []
    for width_in, width in pairwise(sizes[:-1]):
        layers.append(nn.Linear(width_in, width))
        if norm is not None:
            layers.append(norm(width))
        layers.append(activation())
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


class ResidualMLP(nn.Module):
    """x + scale · f(x), several times; f is Linear, activation, Linear."""

    def __init__(
        self,
        inputs: int,
        width: int,
        blocks: int,
        classes: int,
        *,
        norm: bool = False,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.norms = nn.ModuleList(
            nn.LayerNorm(width) if norm else nn.Identity() for _ in range(blocks)
        )
        self.blocks = nn.ModuleList(mlp([width, width, width], activation) for _ in range(blocks))
        self.head = nn.Linear(width, classes)
        self.scale: float | nn.ParameterList = 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for k, (norm, block) in enumerate(zip(self.norms, self.blocks, strict=True)):
            scale = self.scale if isinstance(self.scale, float) else self.scale[k]
            x = x + scale * block(norm(x))
        return self.head(x)


class ConvBlock(nn.Module):
    """Convolution, (batch norm,) activation; added to its input if `skip`."""

    def __init__(self, channels: int, *, norm: bool, skip: bool, activation: Activation) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.act = activation()
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.conv(x)))
        return x + y if self.skip else y


class ConvNet(nn.Module):
    """Stem, `depth` blocks, mean over places, linear head: (B, 1, 8, 8) → (B, 10)."""

    def __init__(
        self,
        depth: int = 4,
        channels: int = 12,
        *,
        norm: bool = False,
        skip: bool = False,
        activation: Activation = nn.ReLU,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, stride=2)
        self.blocks = nn.ModuleList(
            ConvBlock(channels, norm=norm, skip=skip, activation=activation) for _ in range(depth)
        )
        self.head = nn.Linear(channels * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.flatten(1))


class CellNet(nn.Module):
    """A recurrent cell, called at every time step; the last state is classified."""

    def __init__(self, cell: nn.Module, hidden: int, classes: int) -> None:
        super().__init__()
        self.cell = cell
        self.hidden = hidden
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), self.hidden)
        memory = torch.zeros_like(state)
        for t in range(x.shape[1]):
            if isinstance(self.cell, nn.LSTMCell):
                state, memory = self.cell(x[:, t], (state, memory))
            else:
                state = self.cell(x[:, t], state)
        return self.head(state)


class ReluCell(nn.Module):
    """h' = relu(W x + U h), with U = radius · I at first (Le, Jaitly & Hinton, 2015)."""

    def __init__(self, inputs: int, hidden: int, radius: float = 1.0) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, hidden)
        self.recurrent = nn.Linear(hidden, hidden, bias=False)
        nn.init.eye_(self.recurrent.weight)
        with torch.no_grad():
            self.recurrent.weight.mul_(radius)
            self.input.weight.mul_(0.3)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return F.relu(self.input(x) + self.recurrent(state))


class SequenceNet(nn.Module):
    """nn.RNN, nn.GRU or nn.LSTM (one fused module); its last output is classified."""

    def __init__(self, recurrent: nn.RNNBase, classes: int) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear(recurrent.hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.recurrent(x)
        return self.head(states[:, -1])


class SelfAttention(nn.Module):
    """Multi-head self-attention with its own softmax. (B, T, D) → (B, T, D).

    Attributes:
        scale: logits are `scale` · q·k; 1/√(D/heads) unless set.
        causal: whether positions see only earlier ones.
    """

    def __init__(self, dim: int, heads: int = 2, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.scale = (dim // heads) ** -0.5
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` (B, T): True where a position must not be attended to."""
        B, T, D = x.shape
        q, k, v = (
            f(x).view(B, T, self.heads, D // self.heads).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        logits = self.scale * q @ k.transpose(-2, -1)  # (B, heads, T, T)
        if self.causal:
            later = torch.ones(T, T, dtype=torch.bool).triu(1)
            logits = logits.masked_fill(later, -torch.inf)
        if mask is not None:
            logits = logits.masked_fill(mask[:, None, None, :], -torch.inf)
        content = torch.softmax(logits, dim=-1) @ v
        return self.out(content.transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    """A transformer block: "pre" norm, "post" norm, or "none"; `skip=False`: no residuals."""

    def __init__(
        self, dim: int, heads: int, *, norm: str = "pre", skip: bool = True, causal: bool = False
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, heads, causal=causal)
        self.ff = mlp([dim, 2 * dim, dim], nn.GELU)
        make = nn.LayerNorm if norm != "none" else nn.Identity
        self.norm1, self.norm2 = make(dim), make(dim)
        self.pre, self.skip = norm == "pre", skip

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.pre:
            y = self.attention(self.norm1(x), mask)
            x = x + y if self.skip else y
            y = self.ff(self.norm2(x))
            return x + y if self.skip else y
        y = self.attention(x, mask)
        x = self.norm1(x + y if self.skip else y)
        y = self.ff(x)
        return self.norm2(x + y if self.skip else y)


class Transformer(nn.Module):
    """Embeds (B, T, F) numbers or (B, T) symbols; blocks; one output a position or a sample.

    Args:
        inputs: F, or the number of symbols if `symbols`.
        pool: "mean" over positions, the "first" of them, or "none": an output for each.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        dim: int = 32,
        depth: int = 2,
        heads: int = 2,
        positions: int = 64,
        symbols: bool = False,
        pool: str = "mean",
        norm: str = "pre",
        skip: bool = True,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.embed: nn.Module = nn.Embedding(inputs, dim) if symbols else nn.Linear(inputs, dim)
        self.position = nn.Parameter(0.1 * torch.randn(positions, dim))
        self.blocks = nn.ModuleList(
            Block(dim, heads, norm=norm, skip=skip, causal=causal) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim) if norm == "pre" else nn.Identity()
        self.head = nn.Linear(dim, outputs)
        self.pool = pool

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(x) + self.position[: x.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        if self.pool != "none":
            x = x.mean(1) if self.pool == "mean" else x[:, 0]
        return self.head(x)


class AttentionPool(nn.Module):
    """A learned query attends over positions, once: (B, T, F) → (B, C).

    softmax(temperature · (K x)·q) over the positions, of values V x.
    """

    def __init__(
        self, inputs: int, outputs: int, dim: int = 32, temperature: float | None = None
    ) -> None:
        super().__init__()
        self.key = nn.Linear(inputs, dim)
        self.value = nn.Linear(inputs, dim)
        self.query = nn.Parameter(torch.randn(dim))
        self.temperature = temperature if temperature is not None else dim**-0.5
        self.head = nn.Linear(dim, outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.temperature * self.key(x) @ self.query  # (B, T)
        weights = torch.softmax(logits, dim=-1)
        return self.head((weights.unsqueeze(-1) * self.value(x)).sum(1))
