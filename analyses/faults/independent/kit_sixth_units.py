"""Small data sets that the cases about units, data and steps train on."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from analyses.faults.training import Batch

Batches = Callable[[int], Batch]


def dice(salt: int, step: int) -> torch.Generator:
    """A generator that depends on the step and on nothing else."""
    return torch.Generator().manual_seed(7919 * salt + step)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)
    return images.unsqueeze(1), torch.tensor(data.target)


def digits(size: int, *, scale: float = 1.0, centre: bool = True, flat: bool = False) -> Batches:
    """Handwritten digits, (size, 1, 8, 8) or (size, 64), and their classes."""
    images, labels = _digits()
    if centre:
        images = (images - images.mean()) / images.std()
    images = images * scale
    if flat:
        images = images.flatten(1)

    def batch(step: int) -> Batch:
        at = torch.randint(len(labels), (size,), generator=dice(1, step))
        return images[at], labels[at]

    return batch


def discs(size: int, side: int, *, scale: float = 1.0, noise: float = 0.3) -> Batches:
    """Noisy pictures of a bright disc and a bright bar, and the mask of the disc."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")

    def batch(step: int) -> Batch:
        g = dice(2, step)
        centre = torch.rand(size, 2, generator=g) * side * 0.6 + side * 0.2
        radius = torch.rand(size, generator=g) * side * 0.12 + side * 0.1
        far = (rows - centre[:, 0, None, None]) ** 2 + (columns - centre[:, 1, None, None]) ** 2
        mask = (far < radius[:, None, None] ** 2).float().unsqueeze(1)
        line = torch.randint(side, (size, 1, 1), generator=g)
        bar = (rows == line).float().unsqueeze(1)
        picture = torch.maximum(mask, bar) + noise * torch.randn(mask.shape, generator=g)
        return (picture - 0.15) * 2.0 * scale, mask

    return batch


@cache
def _grammar(words: int) -> Tensor:
    g = torch.Generator().manual_seed(5)
    return torch.stack([torch.randperm(words, generator=g)[:3] for _ in range(words)])


def sentences(size: int, length: int, words: int = 24) -> Batches:
    """Text of a made-up language: each word is followed by one of three, mostly by the first."""
    follow = _grammar(words)
    share = torch.tensor([0.8, 0.15, 0.05])

    def batch(step: int) -> Batch:
        g = dice(3, step)
        now = torch.randint(words, (size,), generator=g)
        text = [now]
        for _ in range(length):
            which = torch.multinomial(share, size, replacement=True, generator=g)
            now = follow[now, which]
            text.append(now)
        tokens = torch.stack(text, 1)
        return tokens[:, :-1], tokens[:, 1:]

    return batch


def waves(size: int, length: int, *, offset: float = 0.0, scale: float = 1.0) -> Batches:
    """Pieces of noisy waves (size, length, 1) and the value that comes next (size, 1)."""
    time = torch.arange(length + 1)

    def batch(step: int) -> Batch:
        g = dice(4, step)
        phase = torch.rand(size, 1, generator=g) * 2 * math.pi
        speed = 0.25 + 0.5 * torch.rand(size, 1, generator=g)
        wave = torch.sin(speed * time + phase) * 1.3
        wave = wave + 0.05 * torch.randn(wave.shape, generator=g)
        return (wave[:, :-1, None] + offset) * scale, wave[:, -1:]

    return batch


def spirals(size: int) -> Batches:
    """Points of two spirals wound into each other, and which of both."""

    def batch(step: int) -> Batch:
        g = dice(5, step)
        which = torch.randint(2, (size,), generator=g)
        along = torch.rand(size, generator=g) * 1.25 + 0.15
        angle = along * 2 * math.pi + which * math.pi
        points = torch.stack([along * angle.cos(), along * angle.sin()], 1)
        return (points + 0.02 * torch.randn(points.shape, generator=g)) * 1.2, which

    return batch


@cache
def _teacher(width: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(6)
    return torch.randn(width, 12, generator=g), torch.randn(12, 1, generator=g)


def table(size: int, width: int = 8) -> Batches:
    """Standardised columns and a smooth function of them, of about unit variance."""
    first, second = _teacher(width)

    def batch(step: int) -> Batch:
        x = torch.randn(size, width, generator=dice(6, step))
        return x, torch.sin(x @ first / width**0.5 * 1.5) @ second / 2.4

    return batch


def clouds(size: int, points: int) -> Batches:
    """Sets of points (size, points, 2), and the kind of shape they were drawn from, of three."""

    def batch(step: int) -> Batch:
        g = dice(7, step)
        kind = torch.randint(3, (size,), generator=g)
        angle = torch.rand(size, points, generator=g) * 2 * math.pi
        ring = torch.stack([angle.cos(), angle.sin()], -1)
        square = torch.rand(size, points, 2, generator=g) * 2.4 - 1.2
        blob = torch.randn(size, points, 2, generator=g) * 0.35
        several = torch.stack([ring, square, blob])
        chosen = several[kind, torch.arange(size)]
        return chosen + 0.1 * torch.randn(chosen.shape, generator=g), kind

    return batch


def gratings(size: int, side: int, *, top: float = 1.0) -> Batches:
    """Smooth stripes; values between a tenth and nine tenths of `top`."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")

    def batch(step: int) -> Batch:
        g = dice(8, step)
        turn = torch.rand(size, 1, 1, generator=g) * math.pi
        phase = torch.rand(size, 1, 1, generator=g) * 2 * math.pi
        stripe = torch.sin(0.7 * (rows * turn.cos() + columns * turn.sin()) + phase)
        picture = (0.5 + 0.4 * stripe).unsqueeze(1)
        return (picture - 0.5) * 3, picture * top

    return batch


@cache
def graph(nodes: int, kinds: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Averaging matrix, counts of words (not negative) and kinds of the nodes of one graph."""
    g = torch.Generator().manual_seed(9)
    kind = torch.randint(kinds, (nodes,), generator=g)
    alike = kind[:, None] == kind[None, :]
    chance = torch.where(alike, torch.tensor(0.09), torch.tensor(0.015))
    edges = (torch.rand(nodes, nodes, generator=g) < chance).float().triu(1)
    edges = edges + edges.T + torch.eye(nodes)
    usual = torch.rand(kinds, 30, generator=g) * 1.2
    counts = torch.poisson(usual[kind] + 0.5, generator=g)
    return edges / edges.sum(1, keepdim=True), counts, kind


def lookups(size: int, pairs: int, words: int = 16) -> Batches:
    """Lists of (key, value), a key asked for, and its value."""

    def batch(step: int) -> Batch:
        g = dice(10, step)
        keys = torch.stack([torch.randperm(words, generator=g)[:pairs] for _ in range(size)])
        values = torch.randint(words, (size, pairs), generator=g)
        asked = torch.randint(pairs, (size,), generator=g)
        rows = torch.arange(size)
        return keys, values, keys[rows, asked], values[rows, asked]

    return batch
