"""Small models and tasks with a known state of health, to train in a second or two."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


def mlp(depth, width=32, inputs=16, classes=4, activation=nn.ReLU, gain=None, norm=False):
    """`depth` hidden layers. `gain`: std of the weights is gain/√fan_in, else torch's default."""
    layers, size = [], inputs
    for _ in range(depth):
        layers += [nn.Linear(size, width), *([nn.BatchNorm1d(width)] if norm else [])]
        layers += [activation()]
        size = width
    net = nn.Sequential(*layers, nn.Linear(size, classes))
    if gain is not None:
        for m in net:
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=gain / math.sqrt(m.in_features))
                nn.init.zeros_(m.bias)
    return net


class ResidualMLP(nn.Module):
    def __init__(self, blocks, width=32, inputs=16, classes=4, norm=True, zero=False):
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(_ResidualBlock(width, norm, zero) for _ in range(blocks))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class _ResidualBlock(nn.Module):
    def __init__(self, width, norm, zero):
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)
        if zero:
            nn.init.zeros_(self.fc2.weight)

    def forward(self, x):
        return x + self.fc2(F.relu(self.fc1(self.norm(x))))


class ConvNet(nn.Module):
    """Plain (VGG-like) or residual stages with batch norm and down-sampling."""

    def __init__(self, stages=3, blocks=2, width=8, classes=4, residual=True):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        for k in range(stages):
            wide = width * 2**k
            stage = [
                _ConvBlock(
                    wide if b or not k else wide // 2, wide, 2 if not b and k else 1, residual
                )
                for b in range(blocks)
            ]
            setattr(self, f"layer{k + 1}", nn.Sequential(*stage))
        self.stages, self.fc = stages, nn.Linear(width * 2 ** (stages - 1), classes)

    def forward(self, x):
        x = self.stem(x)
        for k in range(self.stages):
            x = getattr(self, f"layer{k + 1}")(x)
        return self.fc(x.mean((2, 3)))


class _ConvBlock(nn.Module):
    def __init__(self, inputs, outputs, stride, residual):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.residual = residual
        self.shortcut = nn.Identity()
        if residual and (stride != 1 or inputs != outputs):
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x)) if self.residual else F.relu(y)


class Attention(nn.Module):
    def __init__(self, width, heads, temperature=1.0, causal=False):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out, self.softmax = nn.Linear(width, width), nn.Softmax(-1)
        self.heads, self.temperature, self.causal = heads, temperature, causal

    def forward(self, x):
        B, N, D = x.shape
        q, k, v = (
            f(x).view(B, N, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) / self.temperature
        if self.causal:
            logits = logits.masked_fill(torch.ones(N, N).triu(1).bool(), float("-inf"))
        return self.out((self.softmax(logits) @ v).transpose(1, 2).reshape(B, N, D))


class TransformerLayer(nn.Module):
    def __init__(self, width, heads, pre, **attention):
        super().__init__()
        self.attn = Attention(width, heads, **attention)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.pre = pre

    def forward(self, x):
        if self.pre:
            x = x + self.attn(self.norm1(x))
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.fc2(F.gelu(self.fc1(x))))


class Transformer(nn.Module):
    def __init__(
        self, layers=3, width=32, heads=4, vocabulary=12, length=16, pre=True, std=None, **attention
    ):
        super().__init__()
        self.tok, self.pos = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, heads, pre, **attention) for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)
        if std is not None:
            for m in self.modules():
                if isinstance(m, nn.Linear | nn.Embedding):
                    nn.init.normal_(m.weight, std=std)

    def forward(self, tokens):
        x = self.tok(tokens) + self.pos.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class StackedAttentionLayer(nn.Module):
    """s = tanh(W_v v + W_u u [+ W_s s_prev]), p = softmax(w·s), z = Σ p v."""

    def __init__(self, features, hidden, latent):
        super().__init__()
        self.v, self.u = nn.Linear(features, hidden), nn.Linear(features, hidden, bias=False)
        self.s = nn.Linear(hidden, hidden, bias=False) if latent else None
        self.w, self.softmax = nn.Linear(hidden, 1), nn.Softmax(-1)

    def forward(self, v, u, s):
        state = self.v(v) + self.u(u).unsqueeze(1)
        if self.s is not None:
            state = state + self.s(s)
        s = torch.tanh(state)
        p = self.softmax(self.w(s).squeeze(-1))
        return torch.einsum("bn,bnd->bd", p, v), s


class StackedAttention(nn.Module):
    """`query`: "plain" u = z, "residual" u = u + z, "anchored" u = h + z; `latent`: SLA."""

    def __init__(self, layers=4, features=16, hidden=32, classes=4, query="plain", latent=False):
        super().__init__()
        self.layers = nn.ModuleList(
            StackedAttentionLayer(features, hidden, latent and k > 0) for k in range(layers)
        )
        self.query, self.latent = query, latent
        self.head = nn.Linear(features + (hidden if latent else 0), classes)

    def forward(self, v, h):
        u, s = h, None
        for layer in self.layers:
            z, s = layer(v, u, s)
            u = {"plain": z, "residual": u + z, "anchored": h + z}[self.query]
        return self.head(torch.cat([u, s.mean(1)], -1) if self.latent else u)


class CellLoop(nn.Module):
    """A recurrent cell called once a time step; the loss sees the last state only, or all."""

    def __init__(self, cell=nn.RNNCell, inputs=4, width=16, classes=4, every_step=False):
        super().__init__()
        self.cell, self.head = cell(inputs, width), nn.Linear(width, classes)
        self.every_step = every_step

    def forward(self, x):
        state, states = None, []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            states.append(state[0] if isinstance(state, tuple) else state)
        return self.head(torch.stack(states, 1) if self.every_step else states[-1])


# -- tasks: each returns loss_of(model, step) -----------------------------------------------


def clusters(inputs=16, classes=4, batch=64, noise=1.0, shape=None):
    """Noisy class centres, new samples every step."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, inputs, generator=generator)

    def loss_of(model, step):
        g = torch.Generator().manual_seed(step + 1)
        y = torch.randint(classes, (batch,), generator=g)
        x = centres[y] + noise * torch.randn(batch, inputs, generator=g)
        return F.cross_entropy(model(x if shape is None else x.view(batch, *shape)), y)

    return loss_of


def fixed(inputs=16, classes=4, batch=64):
    """One batch with random labels: can be learned by heart, so the gradient goes to zero."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(batch, inputs, generator=g), torch.randint(classes, (batch,), generator=g)
    return lambda model, step: F.cross_entropy(model(x), y)


def reverse(vocabulary=12, length=16, batch=32):
    """Sequences to be read backwards: needs attention to positions."""

    def loss_of(model, step):
        g = torch.Generator().manual_seed(step)
        x = torch.randint(vocabulary, (batch, length), generator=g)
        return F.cross_entropy(model(x).flatten(0, 1), x.flip(1).flatten())

    return loss_of


def lookup(features=16, positions=9, classes=4, batch=64):
    """The question names a key; the answer is the value stored at the position with that key."""
    g = torch.Generator().manual_seed(0)
    half = features // 2
    keys, values = (
        torch.randn(positions, half, generator=g),
        torch.randn(classes, half, generator=g),
    )

    def loss_of(model, step):
        g = torch.Generator().manual_seed(step + 1)
        order = torch.argsort(torch.rand(batch, positions, generator=g), -1)
        value = torch.randint(classes, (batch, positions), generator=g)
        v = torch.cat([keys[order], values[value]], -1)
        at = torch.randint(positions, (batch,), generator=g)
        rows = torch.arange(batch)
        h = torch.cat([keys[order[rows, at]], torch.zeros(batch, half)], -1)
        return F.cross_entropy(model(v, h), value[rows, at])

    return loss_of


def recall(inputs=4, classes=4, length=12, batch=32, every_step=False):
    """Tell the class shown at the first time step (or, at every step, the last shown)."""

    def loss_of(model, step):
        g = torch.Generator().manual_seed(step + 1)
        y = torch.randint(classes, (batch,), generator=g)
        x = 0.1 * torch.randn(batch, length, inputs, generator=g)
        x[torch.arange(batch), 0, y % inputs] += 1
        out = model(x)
        if every_step:
            return F.cross_entropy(out.flatten(0, 1), y.repeat_interleave(length))
        return F.cross_entropy(out, y)

    return loss_of
