"""Toy tasks for models with attention, and measurements of what their softmaxes do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from statistics import median
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from analyses.faults.observe import Observed
from analyses.faults.training import Batch, Training

Evidence = dict[str, Any]
Make = Callable[[], Training]


def seeded(step: int, salt: int = 0) -> torch.Generator:
    """A generator for a step's batch."""
    return torch.Generator().manual_seed(10007 * salt + step)


def reversal(step: int, batch: int = 32, length: int = 8, words: int = 12) -> Batch:
    """Source, target so far (starting with 0), target: the source backwards, words mapped."""
    g = seeded(step, 1)
    source = torch.randint(1, words, (batch, length), generator=g)
    target = (source.flip(1) * 5) % words
    so_far = torch.cat([torch.zeros(batch, 1, dtype=torch.long), target[:, :-1]], 1)
    return source, so_far, target


def grammar(step: int, batch: int = 16, length: int = 32) -> Batch:
    """Letters of a made-up language: consonant, vowel of the word, consonant, vowel, blank."""
    g = seeded(step, 2)
    words = (length + 1) // 5 + 1
    vowel = torch.randint(1, 6, (batch, words), generator=g)
    first = torch.randint(6, 16, (batch, words), generator=g)
    second = 6 + (first - 6 + vowel) % 10
    blank = torch.zeros_like(vowel)
    text = torch.stack([first, vowel, second, vowel, blank], -1).flatten(1)
    return text[:, :length], text[:, 1 : length + 1]


def repeats(step: int, batch: int = 16, half: int = 10, words: int = 16) -> Batch:
    """Random words said twice: the second time can be known. Inputs and next words."""
    g = seeded(step, 3)
    first = torch.randint(1, words, (batch, half), generator=g)
    text = torch.cat([first, torch.zeros(batch, 1, dtype=torch.long), first], 1)
    return text[:, :-1], text[:, 1:]


def recall(step: int, batch: int = 32, pairs: int = 8, keys: int = 16, values: int = 8) -> Batch:
    """Keys that differ, their values, one of the keys, its value."""
    g = seeded(step, 4)
    key = torch.rand(batch, keys, generator=g).argsort(1)[:, :pairs]
    value = torch.randint(0, values, (batch, pairs), generator=g)
    which = torch.randint(0, pairs, (batch, 1), generator=g)
    return key, value, key.gather(1, which)[:, 0], value.gather(1, which)[:, 0]


def stories(step: int, batch: int = 32, length: int = 6, people: int = 6, places: int = 6) -> Batch:
    """Sentences (person, place), each person once; a question about one; where they are."""
    g = seeded(step, 5)
    who = torch.rand(batch, people, generator=g).argsort(1)[:, :length]
    where = torch.randint(0, places, (batch, length), generator=g)
    asked = torch.randint(0, length, (batch, 1), generator=g)
    sentences = torch.stack([who, where + people], -1)
    return sentences, who.gather(1, asked)[:, 0], where.gather(1, asked)[:, 0]


@cache
def digits() -> tuple[Tensor, Tensor]:
    """All digits, between 0 and 1, and their classes."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32) / 16
    return images, torch.tensor(data.target, dtype=torch.long)


def digit_images(step: int, batch: int = 32) -> Batch:
    """Images (batch, 8, 8), about 0, and classes."""
    images, classes = digits()
    rows = torch.randint(0, len(classes), (batch,), generator=seeded(step, 6))
    return (images[rows] - 0.3) / 0.37, classes[rows]


def digit_patches(step: int, batch: int = 32) -> Batch:
    """Sixteen patches of 2 by 2 for each image, and classes."""
    images, classes = digit_images(step, batch)
    patches = images.unfold(1, 2, 2).unfold(2, 2, 2).reshape(len(images), 16, 4)
    return patches, classes


def digit_bags(step: int, batch: int = 16, size: int = 10) -> Batch:
    """Bags of digits, of which one is a 0 or a 1 and the rest is above; which of the two it is."""
    images, classes = digits()
    g = seeded(step, 7)
    low = torch.nonzero(classes < 2)[:, 0]
    high = torch.nonzero(classes >= 2)[:, 0]
    bag = high[torch.randint(0, len(high), (batch, size), generator=g)]
    one = low[torch.randint(0, len(low), (batch,), generator=g)]
    bag[torch.arange(batch), torch.randint(0, size, (batch,), generator=g)] = one
    return (images[bag].flatten(2) - 0.3) / 0.37, classes[one]


def wave(step: int, batch: int = 16, length: int = 48, ahead: int = 4) -> Batch:
    """Sums of two sines with noise, and what follows."""
    g = seeded(step, 8)
    t = torch.arange(length + ahead) / 8
    phase, speed = torch.rand(2, batch, 2, 1, generator=g)
    signal = torch.sin(2 * math.pi * (phase + t * (0.5 + speed))).sum(1)
    signal = signal + 0.05 * torch.randn(signal.shape, generator=g)
    return signal[:, :length, None], signal[:, length:]


def marked(step: int, batch: int = 32, length: int = 20) -> Batch:
    """Numbers, one of which is marked in the second column; that number is asked for."""
    g = seeded(step, 9)
    numbers = torch.randn(batch, length, generator=g)
    which = torch.randint(0, length, (batch,), generator=g)
    mark = F.one_hot(which, length).float()
    return torch.stack([numbers, mark], -1), numbers.gather(1, which[:, None])


def largest(step: int, batch: int = 32, length: int = 10) -> Batch:
    """Numbers, and the place of the largest."""
    numbers = torch.rand(batch, length, generator=seeded(step, 11))
    return numbers[..., None], numbers.argmax(1)


def next_word(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy over all positions."""
    return F.cross_entropy(logits.flatten(0, -2), target.flatten())


# ---- what softmaxes do ---------------------------------------------------------------------------


@contextmanager
def _unfused(seen: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Compute attention in the open, and keep each softmax's logits and weights."""
    plain = torch.softmax

    def softmax(x: Tensor, dim: int = -1, *args: Any, **kwargs: Any) -> Tensor:
        if not x.requires_grad:
            return plain(x, dim)
        given = x.view_as(x)
        weights = plain(given, dim)
        seen.append((given.movedim(dim, -1), weights.movedim(dim, -1)))
        keep.append((given, weights, dim))
        return weights

    keep: list[Any] = []

    def attention(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *args: Any, **kw: Any
    ) -> Tensor:
        scale = kw.get("scale") or q.shape[-1] ** -0.5
        logits = q @ k.transpose(-2, -1) * scale
        if kw.get("is_causal"):
            future = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
            logits = logits.masked_fill(future, -math.inf)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                logits = logits.masked_fill(~attn_mask, -math.inf)
            else:
                logits = logits + attn_mask
        return softmax(logits, -1) @ v

    with (
        mock.patch.object(F, "scaled_dot_product_attention", attention),
        mock.patch.object(F, "softmax", softmax),
        mock.patch.object(torch, "softmax", softmax),
        mock.patch.object(Tensor, "softmax", softmax),
    ):
        yield


def looks(make: Make, shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)) -> list[Any]:
    """At some steps of the run: normalised entropy, and largest weight, of each softmax, in order.

    Rows with a single allowed entry are left out.
    """
    torch.manual_seed(0)
    training = make()
    at = {min(round(s * training.steps), training.steps - 1) for s in shares}
    found = []
    for step in range(training.steps):
        if step in at:
            seen: list[tuple[Tensor, Tensor]] = []
            state = torch.random.get_rng_state()
            with _unfused(seen):
                training.loss_at(step)
            torch.random.set_rng_state(state)
            row = []
            for logits, p in seen:
                allowed = (logits > -1e4).sum(-1) if bool((logits < -1e8).any()) else None
                n = allowed if allowed is not None else torch.full(p.shape[:-1], p.shape[-1])
                keep = n > 1
                entropy = torch.special.entr(p.detach()).sum(-1)[keep] / n[keep].log()
                row.append((float(entropy.mean()), float(p.detach().amax(-1)[keep].mean())))
            found.append(row)
        training.step(training, step)
    return found


def stays_uniform(
    make: Make, entropy: float, margin: float = 0.1, skip: int = 0
) -> Callable[..., Evidence]:
    """Every softmax, but the first `skip`, keeps that entropy; the loss ends above the twin's."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        assert twin is not None, "needs a twin"
        found = min(e for row in looks(make) for e, _ in row[skip:])
        worse = run.loss_last - twin.loss_last >= margin * twin.loss_first
        evidence = {"entropy": found, "loss": run.loss_last, "twin_loss": twin.loss_last}
        return {"is": found >= entropy and worse, **evidence}

    return symptom


def one_hot(make: Make, entropy: float = 0.1, margin: float = 0.1) -> Callable[..., Evidence]:
    """Some softmax is that peaked at every look, the first included; the loss ends higher."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        assert twin is not None, "needs a twin"
        rows = looks(make)
        found = min(max(e for e, _ in column) for column in zip(*rows, strict=True))
        worse = run.loss_last - twin.loss_last >= margin * twin.loss_first
        evidence = {"entropy": found, "loss": run.loss_last, "twin_loss": twin.loss_last}
        return {"is": found <= entropy and worse, **evidence}

    return symptom


def branch_share(make: Make, names: tuple[str, ...], limit: float = 1e-4) -> Callable[..., Any]:
    """Of the gradient at the input of the modules so named, what comes out of them, typically."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        found = shares(make, names)
        evidence = {"share": max(found.values())}
        worse = {"loss": run.loss_last, "twin_loss": twin.loss_last if twin else math.nan}
        return {"is": evidence["share"] <= limit, **evidence, **worse}

    return symptom


def _alias(kept: dict[str, tuple[Tensor, Tensor]], name: str) -> Callable[..., Any]:
    """Give a module its own alias of its input, also where it gets it several times."""

    def hook(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        mine = given[0].view_as(given[0])
        kept[name] = (given[0], mine)
        return tuple(mine if t is given[0] else t for t in given)

    return hook


def shares(make: Make, names: tuple[str, ...], every: int = 10) -> dict[str, float]:
    """Median over the run of ‖gradient out of a module‖ / ‖gradient at its input tensor‖."""
    torch.manual_seed(0)
    training = make()
    found: dict[str, list[float]] = {n: [] for n in names}
    for step in range(training.steps):
        if step % every == 0:
            state = torch.random.get_rng_state()
            kept: dict[str, tuple[Tensor, Tensor]] = {}

            handles = [
                training.model.get_submodule(n).register_forward_pre_hook(_alias(kept, n))
                for n in names
            ]
            loss = training.loss_at(step)
            for handle in handles:
                handle.remove()
            for name, (whole, mine) in kept.items():
                a, b = torch.autograd.grad(
                    loss, [whole, mine], retain_graph=True, allow_unused=True
                )
                if a is not None:
                    mine_norm = float(b.norm()) if b is not None else 0.0
                    found[name].append(mine_norm / max(float(a.norm()), 1e-30))
            torch.random.set_rng_state(state)
        training.step(training, step)
    return {n: median(values) for n, values in found.items() if values}


def rank_between(make: Make, first: str, second: str, rows: int = 220) -> int:
    """Rank of the Jacobian of one module's output by another's, for one sample, at the start."""
    torch.manual_seed(0)
    training = make()
    outs: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def look(module: Any, given: Any, out: Any) -> None:
            outs[name] = out[0] if isinstance(out, tuple) else out

        return look

    handles = [
        training.model.get_submodule(n).register_forward_hook(hook(n)) for n in (first, second)
    ]
    training.model.double()
    batch = [t[:1].double() if t.is_floating_point() else t[:1] for t in training.batch(0)]
    training.loss(training.model, *batch)
    for handle in handles:
        handle.remove()
    values = outs[second].flatten()
    chosen = torch.randperm(len(values), generator=seeded(0))[:rows]
    jacobian = [
        torch.autograd.grad(values[i], outs[first], retain_graph=True)[0].flatten() for i in chosen
    ]
    s = torch.linalg.svdvals(torch.stack(jacobian))
    return int((s > 1e-9 * s[0]).sum())


def few_pass(
    broken: Make, twin: Make, first: str, second: str, least: int = 4
) -> Callable[..., Evidence]:
    """Between two attention layers the rank is that many times smaller than in the twin."""

    def symptom(run: Observed, other: Observed | None) -> Evidence:
        mine, theirs = (rank_between(m, first, second) for m in (broken, twin))
        losses = {"loss": run.loss_last, "twin_loss": other.loss_last if other else math.nan}
        return {"is": mine * least <= theirs, "rank": mine, "twin": theirs, **losses}

    return symptom
