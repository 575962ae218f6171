"""Tasks and small building blocks for the runs about depth, numbers and inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.training import Batch


def generator(seed: int) -> torch.Generator:
    """A source of random numbers of its own."""
    return torch.Generator().manual_seed(seed)


def drawn(tensors: Batch, size: int, seed: int = 0) -> Callable[[int], Batch]:
    """Random batches of a data set, the same for the same step."""
    n = len(tensors[0])

    def batch(step: int) -> Batch:
        rows = torch.randint(n, (size,), generator=generator(seed * 100_003 + step))
        return tuple(t[rows] for t in tensors)

    return batch


def always(tensors: Batch) -> Callable[[int], Batch]:
    """The whole data set at every step."""

    def batch(step: int) -> Batch:
        return tensors

    return batch


@cache
def _digits() -> tuple[Tensor, Tensor]:
    loaded = load_digits()
    return torch.tensor(loaded.data, dtype=torch.float32), torch.tensor(loaded.target)


def digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits, (1797, 64) standardised as a whole, and their classes."""
    x, y = _digits()
    return (x - x.mean()) / x.std(), y


def digit_pixels() -> tuple[Tensor, Tensor]:
    """Handwritten digits as images of 0 to 255, (1797, 1, 8, 8)."""
    x, y = _digits()
    return (x * (255 / 16)).view(-1, 1, 8, 8), y


@cache
def shapes(n: int = 600, size: int = 16, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Noisy images of a disc, a ring, a cross or a bar somewhere, of mean 0; four classes."""
    g = generator(seed)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    y = torch.randint(4, (n,), generator=g)
    centre = size / 2 + (torch.rand(n, 2, generator=g) - 0.5) * size / 3
    dr, dc = rows - centre[:, :1, None], columns - centre[:, 1:, None]
    away, reach = (dr**2 + dc**2).sqrt(), size / 4
    kinds = torch.stack(
        [
            away < reach,
            (away - reach).abs() < 1.2,
            ((dr.abs() < 1.2) | (dc.abs() < 1.2)) & (away < 1.3 * reach),
            (dr.abs() < 1.5) & (dc.abs() < 1.6 * reach),
        ],
        1,
    )
    x = kinds[torch.arange(n), y].float() + 0.3 * torch.randn(n, size, size, generator=g)
    return (x - x.mean())[:, None] / x.std(), y


def recall(step: int, size: int, length: int, symbols: int, noise: float = 0.3) -> Batch:
    """One-hot symbol, then noise: name the symbol at the end."""
    g = generator(step)
    y = torch.randint(symbols, (size,), generator=g)
    x = noise * torch.randn(size, length, symbols, generator=g)
    x[:, 0] = F.one_hot(y, symbols).float()
    return x, y


def early_burst(step: int, size: int, length: int, burst: int = 8) -> Batch:
    """A noisy signal with an offset of one sign in its first steps: which sign?"""
    g = generator(step)
    y = torch.randint(2, (size,), generator=g)
    x = 0.5 * torch.randn(size, length, 1, generator=g)
    x[:, :burst, 0] += (2 * y[:, None] - 1).float()
    return x, y


def adding(step: int, size: int, length: int) -> Batch:
    """Numbers and two marks, one in each half: the sum of the marked numbers."""
    g = generator(step)
    numbers = torch.rand(size, length, generator=g)
    marks = torch.zeros(size, length)
    for low in (0, length // 2):
        at = low + torch.randint(length // 2, (size, 1), generator=g)
        marks.scatter_(1, at, 1.0)
    return torch.stack([numbers - 0.5, marks], 2), (numbers * marks).sum(1, keepdim=True)


def majority(step: int, size: int, length: int, symbols: int) -> Batch:
    """Sequences in which one symbol is the most frequent: which?"""
    g = generator(step)
    y = torch.randint(symbols, (size,), generator=g)
    x = torch.randint(symbols, (size, length), generator=g)
    turned = torch.rand(size, length, generator=g) < 0.35
    return torch.where(turned, y[:, None], x), y


@cache
def _text(length: int = 20_000) -> Tensor:
    subjects = ["anna", "bert", "cleo", "dora", "emil"]
    verbs = ["sees", "likes", "helps", "hears"]
    objects = ["the dog", "a tree", "my car", "that house", "one bird"]
    ends = [".", "!", " now."]
    g = generator(11)

    def pick(words: list[str]) -> str:
        return words[int(torch.randint(len(words), (), generator=g))]

    text = ""
    while len(text) < length:
        text += f"{pick(subjects)} {pick(verbs)} {pick(objects)}{pick(ends)} "
    letters = {letter: i for i, letter in enumerate(sorted(set(text)))}
    return torch.tensor([letters[letter] for letter in text])


def letters() -> int:
    """Number of different characters in the text."""
    return int(_text().max()) + 1


def sentences(step: int, size: int, length: int) -> Batch:
    """Pieces of a text of simple sentences, and the same one character on."""
    text = _text()
    at = torch.randint(len(text) - length - 1, (size, 1), generator=generator(step))
    rows = at + torch.arange(length + 1)
    return text[rows[:, :-1]], text[rows[:, 1:]]


@cache
def communities(nodes: int = 240, kinds: int = 4, width: int = 16) -> tuple[Tensor, ...]:
    """A graph of communities: adjacency with self-loops, noisy features, the community."""
    g = generator(3)
    y = torch.arange(nodes) % kinds
    chance = torch.where(y[:, None] == y[None], 0.12, 0.01)
    upper = torch.triu(torch.rand(nodes, nodes, generator=g) < chance, 1).float()
    adjacency = upper + upper.T + torch.eye(nodes)
    x = torch.randn(kinds, width, generator=g)[y] + 1.5 * torch.randn(nodes, width, generator=g)
    return adjacency, x, y


def teacher(n: int, width: int, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Standard normal features and a smooth function of them, of mean 0 and variance 1."""
    g = generator(seed)
    x = torch.randn(n, width, generator=g)
    a = torch.randn(width, 12, generator=g) / width**0.5
    y = torch.tanh(1.5 * x @ a) @ torch.randn(12, 1, generator=g)
    return x, (y - y.mean()) / y.std()


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the model's logits."""
    return F.cross_entropy(model(x), y)


def next_symbol(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of a language model."""
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def regress(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(model(x), y)


def kaiming(model: nn.Module) -> None:
    """He's initialisation of every matrix and kernel; biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def normal(model: nn.Module, std: float) -> None:
    """Every matrix and kernel normal with one deviation; biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]


class Heads(nn.Module):
    """Self-attention, by torch's fused function."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(b, n, d))
