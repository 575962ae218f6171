"""Tasks, small parts and measurements that the cases about attention and branches share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from analyses.faults.case import Symptom
from analyses.faults.observe import Observed
from analyses.faults.training import Batch, Training

Batches = Callable[[int], Batch]


def dice(step: int, salt: int = 0) -> torch.Generator:
    """The random numbers of a step."""
    return torch.Generator().manual_seed(1_000_003 * salt + step)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 8, 8) with zero mean and unit variance, and classes."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)
    return (images - images.mean()) / images.std(), torch.tensor(data.target)


def digit_batches(size: int, salt: int = 0) -> Batches:
    """Images (B, 8, 8) and classes."""

    def batch(step: int) -> Batch:
        images, classes = digits()
        chosen = torch.randint(0, len(images), (size,), generator=dice(step, salt))
        return images[chosen], classes[chosen]

    return batch


def lookups(
    size: int, items: int, keys: int, values: int, salt: int = 0, questions: int = 1
) -> Batches:
    """Keys (B, N), all different, their values (B, N), keys asked for (B, Q), answers (B, Q)."""

    def batch(step: int) -> Batch:
        g = dice(step, salt)
        key = torch.rand(size, keys, generator=g).argsort(1)[:, :items]
        value = torch.randint(0, values, (size, items), generator=g)
        at = torch.randint(0, items, (size, questions), generator=g)
        return key, value, key.gather(1, at), value.gather(1, at)

    return batch


def grids(size: int, side: int, salt: int = 0) -> Batches:
    """Digits on a grid (B, side², 64), the cell asked for, and the class of what is there."""

    def batch(step: int) -> Batch:
        images, classes = digits()
        g = dice(step, salt)
        chosen = torch.randint(0, len(images), (size, side * side), generator=g)
        cell = torch.randint(0, side * side, (size,), generator=g)
        answer = classes[chosen].gather(1, cell[:, None])[:, 0]
        return images[chosen].flatten(2), cell, answer

    return batch


def strings(size: int, length: int, tokens: int, salt: int = 0) -> Batches:
    """Random strings (B, T)."""

    def batch(step: int) -> Batch:
        return (torch.randint(0, tokens, (size, length), generator=dice(step, salt)),)

    return batch


def events(size: int, length: int, classes: int, salt: int = 0, noise: float = 1.0) -> Batches:
    """Noise (B, T, classes + 1) with one flagged frame, whose largest entry is the class."""

    def batch(step: int) -> Batch:
        g = dice(step, salt)
        frames = noise * torch.randn(size, length, classes + 1, generator=g)
        frames[..., -1] = 0.0
        at = torch.randint(0, length, (size,), generator=g)
        kind = torch.randint(0, classes, (size,), generator=g)
        rows = torch.arange(size)
        frames[rows, at, kind] += 3.0
        frames[rows, at, -1] = 3.0
        return frames, kind

    return batch


@cache
def _grammar(words: int, seed: int) -> tuple[list[str], Tensor]:
    g = torch.Generator().manual_seed(seed)
    lexicon = []
    for _ in range(words):
        length = int(torch.randint(2, 6, (1,), generator=g))
        letters = torch.randint(0, 12, (length,), generator=g)
        lexicon.append("".join(chr(97 + int(i)) for i in letters))
    follows = torch.softmax(2.5 * torch.randn(words, words, generator=g), dim=1)
    return lexicon, follows


@cache
def _text(words: int, seed: int) -> Tensor:
    lexicon, follows = _grammar(words, seed)
    g = torch.Generator().manual_seed(seed + 1)
    word, text = 0, ""
    while len(text) < 20_000:
        text += lexicon[word] + " "
        word = int(torch.multinomial(follows[word], 1, generator=g))
    return torch.tensor([0 if c == " " else ord(c) - 96 for c in text])


LETTERS = 13


def made_up_text(size: int, length: int, salt: int = 0) -> Batches:
    """Text (B, T + 1) of a made-up language: 12 letters and the space."""

    def batch(step: int) -> Batch:
        text = _text(24, 5)
        start = torch.randint(0, len(text) - length - 1, (size,), generator=dice(step, salt))
        return (text[start[:, None] + torch.arange(length + 1)],)

    return batch


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Of classes in the last dimension, whatever there is before."""
    return F.cross_entropy(logits.flatten(0, -2), classes.flatten())


def mlp(*sizes: int, activation: type[nn.Module] = nn.GELU) -> nn.Sequential:
    """Linear layers with activations between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


class _Attention(TorchFunctionMode):
    """Mean normalised entropy of every attention: softmax called, or fused."""

    def __init__(self) -> None:
        super().__init__()
        self.entropies: list[float] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "softmax":
            self._look(out.detach())
        elif name == "multi_head_attention_forward":
            seen = func(*args, **{**(kwargs or {}), "need_weights": True,
                                  "average_attn_weights": False})  # fmt: skip
            self._look(seen[1].detach())
        elif name == "scaled_dot_product_attention":
            q, k = args[0].detach(), args[1].detach()
            scale = (kwargs or {}).get("scale") or q.shape[-1] ** -0.5
            k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3) if q.ndim == 4 else k
            logits = q @ k.transpose(-2, -1) * scale
            if (kwargs or {}).get("is_causal"):
                above = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
                logits = logits.masked_fill(above, -torch.inf)[..., 1:, :]
                self._look(logits.softmax(-1), torch.arange(2, logits.shape[-1] + 1))
            else:
                self._look(logits.softmax(-1))
        return out

    def _look(self, p: Tensor, among: Tensor | None = None) -> None:
        choices = torch.tensor(p.shape[-1]) if among is None else among
        rows = torch.special.entr(p).sum(-1) / choices.log()
        self.entropies.append(float(rows[..., rows.shape[-1] // 2 :].mean()))


def entropies(make: Callable[[], Training], at: tuple[float, ...]) -> list[list[float]]:
    """Of every attention of a run, at shares of its steps."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training = make()
    steps = {round(share * (training.steps - 1)) for share in at}
    found = []
    for step in range(max(steps) + 1):
        if step in steps:
            state = torch.random.get_rng_state()
            with _Attention() as watch, torch.no_grad():
                training.loss_at(step)
            torch.random.set_rng_state(state)
            found.append(watch.entropies)
        training.step(training, step)
    return found


def points_blindly(broken: Callable[[], Training], entropy: float) -> Symptom:
    """Some attention, fused ones too, is typically that peaked, and the loss is higher for it."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None
        found = median(min(e) for e in entropies(broken, (0.02, 0.25, 0.5, 0.75, 1.0)))
        worse = run.loss_last - twin.loss_last > 0.1 * twin.loss_first
        evidence = {"entropy": found, "loss": run.loss_last, "twin_loss": twin.loss_last}
        return {"is": found <= entropy and worse, **evidence}

    return symptom


def looks_nowhere(broken: Callable[[], Training], entropy: float) -> Symptom:
    """Every attention, fused ones too, stays that even, and the loss is higher for it."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None
        found = min(min(e) for e in entropies(broken, (0.0, 0.25, 0.5, 0.75, 1.0)))
        worse = run.loss_last - twin.loss_last > 0.1 * twin.loss_first
        evidence = {"entropy": found, "loss": run.loss_last, "twin_loss": twin.loss_last}
        return {"is": found >= entropy and worse, **evidence}

    return symptom


def edge_starves(share: float) -> Symptom:
    """Of a tensor that modules share, one's gradient is that small in the whole, throughout."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        def smallest(observed: Observed) -> float:
            return max(min(c.edge_shares, default=1.0) for c in observed.checkpoints)

        evidence = {"share": smallest(run)}
        if twin:
            evidence["twin"] = smallest(twin)
        return {"is": evidence["share"] <= share < evidence.get("twin", 1.0), **evidence}

    return symptom


def cancels(agreement: float) -> Symptom:
    """‖Σ g_e‖/√Σ‖g_e‖² of a tensor that modules share is typically below it; the twin's isn't."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        def typical(observed: Observed) -> float:
            return median(min(c.agreement, default=9.0) for c in observed.checkpoints)

        evidence = {"agreement": typical(run)}
        if twin:
            evidence["twin"] = typical(twin)
        return {"is": evidence["agreement"] <= agreement < evidence.get("twin", 9.0), **evidence}

    return symptom
