"""Tasks in which attention has something to do, and plain measurements of attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from analyses.faults.case import Symptom
from analyses.faults.observe import Observed
from analyses.faults.training import Training


def dice(step: int, salt: int = 0) -> torch.Generator:
    """Random numbers that are the same for the same step."""
    return torch.Generator().manual_seed(1_000_003 * (salt + 1) + step)


def recall(
    step: int, *, rows: int = 32, pairs: int = 16, keys: int = 64, values: int = 10
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Key tokens, their value tokens, the key asked for, its value."""
    g = dice(step)
    k = torch.rand(rows, keys, generator=g).argsort(1)[:, :pairs]
    v = torch.randint(values, (rows, pairs), generator=g)
    at = torch.randint(pairs, (rows, 1), generator=g)
    return k, v, k.gather(1, at).squeeze(1), v.gather(1, at).squeeze(1)


def marked(
    step: int, *, rows: int = 32, length: int = 24, width: int = 16, classes: int = 4
) -> tuple[Tensor, Tensor]:
    """Sequences of class prototypes; the label is the class of the one whose flag is up."""
    g = dice(step, 1)
    prototypes = torch.randn(classes, width, generator=torch.Generator().manual_seed(5))
    kinds = torch.randint(classes, (rows, length), generator=g)
    x = prototypes[kinds] + 0.3 * torch.randn(rows, length, width, generator=g)
    at = torch.randint(length, (rows,), generator=g)
    flag = F.one_hot(at, length).float().unsqueeze(-1) * 2
    return torch.cat([x, flag], -1), kinds[torch.arange(rows), at]


def repeated(step: int, *, rows: int = 24, half: int = 8, vocab: int = 12) -> tuple[Tensor]:
    """Tokens whose second half repeats the first."""
    first = torch.randint(vocab, (rows, half), generator=dice(step, 2))
    return (torch.cat([first, first], 1),)


def reversed_pairs(
    step: int, *, rows: int = 24, length: int = 8, vocab: int = 10
) -> tuple[Tensor, Tensor]:
    """A sequence and the same from its end; token 0 is left for the start."""
    x = torch.randint(1, vocab, (rows, length), generator=dice(step, 3))
    return x, x.flip(1)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(9))
    images = torch.tensor(bunch.images, dtype=torch.float32) / 8 - 1
    return images[order], torch.tensor(bunch.target)[order]


def digits(step: int, *, rows: int = 48) -> tuple[Tensor, Tensor]:
    """Images of digits in [-1, 1], 8×8, and their labels."""
    images, labels = _digits()
    at = torch.randint(len(labels), (rows,), generator=dice(step, 4))
    return images[at], labels[at]


def patches(images: Tensor, side: int = 2) -> Tensor:
    """(B, 8, 8) → (B, tokens, side²)."""
    return F.unfold(images.unsqueeze(1), side, stride=side).transpose(1, 2)


def community(step: int, *, nodes: int = 60, kinds: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """A graph with communities: noisy features, adjacency with loops, the nodes' community."""
    g = dice(step, 5)
    kind = torch.randint(kinds, (nodes,), generator=g)
    same = (kind[:, None] == kind[None]).float()
    up = (torch.rand(nodes, nodes, generator=g) < 0.02 + 0.28 * same).triu(1)
    adjacency = up | up.T | torch.eye(nodes, dtype=torch.bool)
    centres = torch.randn(kinds, 8, generator=torch.Generator().manual_seed(6))
    return centres[kind] + 1.5 * torch.randn(nodes, 8, generator=g), adjacency, kind


# What attention does, measured by itself.


@dataclass
class Look:
    """One softmax at one step.

    Attributes:
        even: mean entropy over that of a uniform choice, of the rows with a choice.
        top: mean probability of the largest entry.
        handed: median over rows of ‖gradient at the logits‖/‖gradient at the probabilities‖, the
            latter without its mean, to which a softmax is indifferent; None without a gradient.
    """

    even: float
    top: float
    handed: float | None


@contextmanager
def _softmaxes(kept: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Keep logits and probabilities of every softmax, of fused attention as if done by hand."""
    plain = torch.softmax

    def softmax(x: Tensor, dim: int = -1, *args: Any, dtype: Any = None, **more: Any) -> Tensor:
        last = x.movedim(dim, -1)
        p = plain(last, -1, dtype=dtype)
        kept.append((last, p))
        return p.movedim(-1, dim)

    def fused(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
            v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
        logits = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            seen = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
            logits = logits.masked_fill(~seen, -torch.inf)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                logits = logits.masked_fill(~attn_mask, -torch.inf)
            else:
                logits = logits + attn_mask
        return softmax(logits) @ v

    with ExitStack() as stack:
        for owner, name, mine in (
            (torch, "softmax", softmax),
            (F, "softmax", softmax),
            (torch.Tensor, "softmax", softmax),
            (F, "scaled_dot_product_attention", fused),
        ):
            stack.enter_context(mock.patch.object(owner, name, mine))
        yield


def _look(logits: Tensor, p: Tensor, at_logits: Tensor | None, at_p: Tensor | None) -> Look:
    p = p.detach().reshape(-1, p.shape[-1]).double()
    n = (logits.detach().reshape(-1, p.shape[-1]) > -1e8).sum(-1)  # what is below is a mask
    rows = torch.special.entr(p).sum(-1)[n > 1] / n[n > 1].double().log()
    even = float(rows.mean()) if len(rows) else 0.0
    handed = None
    if at_logits is not None and at_p is not None:
        above = at_p.reshape(-1, p.shape[-1]).double()
        above = (above - above.mean(-1, keepdim=True)).norm(dim=-1)
        below = at_logits.reshape(-1, p.shape[-1]).double().norm(dim=-1)
        ratio = (below / above)[above > 0]
        handed = float(ratio.median()) if len(ratio) else None
    return Look(even, float(p.amax(-1).mean()), handed)


def looks(
    make: Callable[[], Training], shares: tuple[float, ...] = (0.0, 0.5, 1.0)
) -> list[list[Look]]:
    """Every softmax of the model, at some shares of a run."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training = make()
    at = {round(share * (training.steps - 1)) for share in shares}
    found: list[list[Look]] = []
    for step in range(training.steps):
        if step in at:
            state = torch.random.get_rng_state()
            kept: list[tuple[Tensor, Tensor]] = []
            with _softmaxes(kept):
                loss = training.loss_at(step)
            wanted = [t for pair in kept for t in pair if t.requires_grad]
            given = iter(torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ())
            pairs = [[next(given) if t.requires_grad else None for t in pair] for pair in kept]
            torch.random.set_rng_state(state)
            found.append([_look(*a, *b) for a, b in zip(kept, pairs, strict=True)])
        training.step(training, step)
    return found


def choosing(
    make: Callable[[], Training],
    *,
    above: float = 0.0,
    below: float = 1.0,
    handed: float = 1.0,
    layer: int | None = None,
    margin: float = 0.05,
) -> Symptom:
    """Attention (all of it, or one softmax by its place) stays above or below that evenness.

    Measured in the broken run at its start and middle, with fused attention computed again by hand;
    of the gradient at the probabilities its logits get no more than `handed`; and the run ends with
    a loss above its twin's by `margin` of the first loss.
    """

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None, "needs a twin"
        seen = [
            look
            for at in looks(make, (0.0, 0.5))
            for look in (at if layer is None else at[layer : layer + 1])
        ]
        low, high = min(x.even for x in seen), max(x.even for x in seen)
        most = max(x.handed or 0.0 for x in seen)
        gap = (run.loss_last - twin.loss_last) / abs(twin.loss_first)
        return {
            "is": low >= above and high <= below + 1e-6 and gap >= margin and most <= handed,
            "lowest": low,
            "highest": high,
            "handed": most,
            "loss": run.loss_last,
            "twin_loss": twin.loss_last,
        }

    return symptom


def passes(make: Callable[[], Training], first: str, second: str, *, share: float) -> Symptom:
    """What the second attention reads depends on the first's output by a Jacobian of low rank.

    Of one sample; the rank over the smaller of both sides' sizes (128 at most) is below `share`,
    and the run ends above its twin's loss.
    """

    def rank() -> tuple[int, int, int]:
        torch.manual_seed(0)
        training = make()
        kept: dict[str, Tensor] = {}

        def out(module: Any, given: Any, result: Any) -> None:
            kept.setdefault("out", result[0] if isinstance(result, tuple) else result)

        def into(module: Any, given: Any, named: Any) -> None:
            tensors = [t for t in (*given, *named.values()) if isinstance(t, Tensor)]
            kept.setdefault("in", torch.cat([t.flatten(1) for t in tensors if t.ndim > 1], 1))

        one = training.model.get_submodule(first).register_forward_hook(out)
        two = training.model.get_submodule(second).register_forward_pre_hook(into, with_kwargs=True)
        training.loss_at(0)
        one.remove()
        two.remove()
        entry, exit_ = kept["in"], kept["out"]
        sizes = exit_[0].numel(), entry[0].numel()
        g = dice(0, 77)
        rows = []
        for _ in range(min(128, *sizes)):
            direction = torch.randn(entry.shape[1], generator=g)
            slope = torch.autograd.grad((entry[0] * direction).sum(), exit_, retain_graph=True)[0]
            rows.append(slope[0].flatten())
        values = torch.linalg.svdvals(torch.stack(rows).double())
        return int((values > 1e-6 * values[0]).sum()), sizes[0], sizes[1]

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        found, before, after = rank()
        worse = twin is None or run.loss_last > twin.loss_last + 0.05 * min(
            run.loss_first, twin.loss_first
        )
        evidence: dict[str, Any] = {"rank": found, "before": before, "after": after}
        if twin is not None:
            evidence |= {"loss": run.loss_last, "twin_loss": twin.loss_last}
        return {"is": worse and found / min(128, before, after) < share, **evidence}

    return symptom


def edge_starved(share: float = 1e-3) -> Symptom:
    """Of the modules that read a tensor, one gets less than that of its gradient, throughout."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        def smallest(observed: Observed) -> float:
            return max(min(c.edge_shares, default=1.0) for c in observed.checkpoints)

        evidence: dict[str, Any] = {"share": smallest(run), "loss": run.loss_last}
        if twin is not None:
            evidence |= {"twin": smallest(twin), "twin_loss": twin.loss_last}
        return {"is": evidence["share"] <= share < evidence.get("twin", 1.0), **evidence}

    return symptom


def causal(length: int) -> Tensor:
    """True where a position may look."""
    return torch.ones(length, length, dtype=torch.bool).tril()


def waves(length: int, width: int) -> Tensor:
    """Sines and cosines by position."""
    at = torch.arange(length).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(1000.0) / width))
    return torch.stack([torch.sin(at * rate), torch.cos(at * rate)], -1).flatten(1)
