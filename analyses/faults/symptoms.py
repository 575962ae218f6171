"""Is a fault one? Verdicts on what `observe` measured without gradscope.

Each function returns a `Symptom`: (observed, twin's or None) → evidence, with "is" as the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from analyses.faults.case import Symptom
from analyses.faults.observe import Observed
from analyses.faults.training import Training

Evidence = dict[str, Any]


def decays(decades: float, like: str = "") -> Symptom:
    """The gradient's RMS is that much smaller at the first module's output than at the last's.

    Typically, of the modules called so; and a decade more than the twin's.
    """

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        found = median(run.decades(like))
        evidence = {"decades": found}
        if twin:
            evidence["twin"] = median(twin.decades(like))
        return {"is": found >= max(decades, evidence.get("twin", 0) + 1), **evidence}

    return symptom


def grows(decades: float) -> Symptom:
    """The gradient at the first module's output is that much larger than at the last one's.

    Taken at the start: what comes after depends on what the optimizer made of it.
    """

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        found = -run.decades()[0]
        return {"is": found >= decades, "decades": found, **_twin_decades(twin)}

    return symptom


def dead_units(share: float) -> Symptom:
    """In some module that many units are 0 for every sample, late in the run."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        found = max(run.last.dead.values(), default=0.0)
        theirs = {"twin": max(twin.last.dead.values(), default=0.0)} if twin else {}
        return {"is": found >= share and theirs.get("twin", 0) < share, "dead": found, **theirs}

    return symptom


def saturated(share: float) -> Symptom:
    """In some tanh, sigmoid or the like that many values are at their ends, typically."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        found = median(max(c.saturated.values(), default=0.0) for c in run.checkpoints)
        evidence = {"saturated": found}
        if twin:
            evidence["twin"] = median(
                max(c.saturated.values(), default=0.0) for c in twin.checkpoints
            )
        return {"is": found >= share and evidence.get("twin", 0) < share, **evidence}

    return symptom


def peaked(entropy: float) -> Symptom:
    """Some softmax's mean normalised entropy is typically below, and the loss ends higher for it.

    The loss decides, as attention that has learned to point is peaked, too.
    """

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        assert twin is not None, "needs a twin"
        found, theirs = (
            median(min(c.entropies, default=1.0) for c in r.checkpoints) for r in (run, twin)
        )
        gap = run.loss_last - twin.loss_last
        worse = gap > 0.02 * twin.loss_first
        evidence = {"entropy": found, "twin": theirs, **_worse(run, twin)}
        return {"is": found <= entropy and worse, **evidence}

    return symptom


def diffuse(entropy: float) -> Symptom:
    """All softmaxes stay above it to the end."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        found = min((min(c.entropies, default=0.0) for c in run.checkpoints), default=0.0)
        evidence = {"entropy": found}
        if twin:
            evidence["twin"] = min(twin.last.entropies, default=1.0)
        return {"is": found >= entropy, **evidence, **_worse(run, twin)}

    return symptom


def branch_starved(share: float) -> Symptom:
    """Some matrix's gradient is that small beside the largest (norms), throughout."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        def smallest(observed: Observed) -> float:
            return max(c.smallest_share() for c in observed.checkpoints)

        evidence = {"share": smallest(run)}
        if twin:
            evidence["twin"] = smallest(twin)
        return {"is": evidence["share"] <= share < evidence.get("twin", 1.0), **evidence}

    return symptom


def edges_cancel(agreement: float) -> Symptom:
    """‖Σ g_e‖/√Σ‖g_e‖² of the tensor that modules share as their input is below it throughout."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        def largest(observed: Observed) -> float:
            return max(min(c.agreement, default=9.0) for c in observed.checkpoints)

        evidence = {"agreement": largest(run)}
        if twin:
            evidence["twin"] = largest(twin)
        return {"is": evidence["agreement"] <= agreement < evidence.get("twin", 9.0), **evidence}

    return symptom


def learns_less(margin: float) -> Symptom:
    """The run ends with a loss that much above its twin's (or not finite)."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        assert twin is not None, "needs a twin"
        evidence = {"loss": run.loss_last, "twin": twin.loss_last}
        worse = not math.isfinite(run.loss_last) or run.loss_last - twin.loss_last >= margin * abs(
            twin.loss_first
        )
        return {"is": worse, **evidence}

    return symptom


def no_gradient_before(like: str = "") -> Symptom:
    """Trainable parameters (some called so) have no gradient at all, which the twin's have."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        without = [n for n in run.without_gradient if like in n]
        theirs = set(twin.without_gradient) if twin else set()
        return {"is": bool(set(without) - theirs), "without_gradient": len(without)}

    return symptom


some_without_gradient = no_gradient_before


def left_out() -> Symptom:
    """Parameters with a gradient in the loss's graph that the optimizer doesn't hold."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        theirs = twin.leaves_not_held if twin else 0
        return {"is": run.leaves_not_held > 0 == theirs, "left_out": run.leaves_not_held}

    return symptom


def unmoved(limit: float, like: str = "") -> Symptom:
    """No matrix called so moves by more than that of its norm over the whole run."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        found = max(m for n, m in run.moved.items() if like in n)
        evidence = {"moved": found}
        if twin:
            evidence["twin"] = max(m for n, m in twin.moved.items() if like in n)
        return {"is": found <= limit < evidence.get("twin", 1.0), **evidence}

    return symptom


def overshoots() -> Symptom:
    """Weights move by more than their own size, and the loss ends above the twin's."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        moved = median(run.moved.values())
        worse = learns_less(0.1)(run, twin)
        finite = math.isfinite(moved)
        return {**worse, "is": worse["is"] and (not finite or moved > 1), "moved": moved}

    return symptom


def underflows(share: float) -> Symptom:
    """Of the elements whose gradient in float32 is not 0, that many are 0."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        found = median(c.lost_in_half for c in run.checkpoints)
        return {"is": found >= share, "lost": found, **_worse(run, twin)}

    return symptom


def not_finite() -> Symptom:
    """Some loss or weight is NaN or infinite; the twin's never are."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        fine = twin is None or twin.finite
        return {"is": not run.finite and fine, "operation": run.first_non_finite}

    return symptom


def zero_gradient() -> Symptom:
    """Most elements of the gradient are exactly 0 or missing at every step looked at."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        found = min(c.zero_share for c in run.checkpoints)
        evidence: Evidence = {"zero": found}
        if twin:
            evidence["twin"] = median(c.zero_share for c in twin.checkpoints)
        return {"is": found >= 0.5, **evidence, **_worse(run, twin)}

    return symptom


def _twin_decades(twin: Observed | None) -> Evidence:
    return {"twin_decades": median(twin.decades())} if twin else {}


def _worse(run: Observed, twin: Observed | None) -> Evidence:
    return {"loss": run.loss_last, "twin_loss": twin.loss_last} if twin else {}


def narrow(
    stack: Callable[..., Training], faulty: tuple[str, int], sound: tuple[str, int]
) -> Symptom:
    """The second layer's latent state depends on the first's by a Jacobian of low rank.

    Less than a quarter of the rank that the stack with a latent pathway has.
    """

    def rank(model: str, layers: int) -> int:
        training = stack(model, layers=layers)
        cells, question, _ = training.batch(0)
        kept: list[Tensor] = []
        several = training.model.stack.layers  # type: ignore[union-attr]
        for layer in list(several)[:2]:  # type: ignore[arg-type]
            layer.register_forward_hook(lambda m, given, out: kept.append(out.latent))
        training.model(cells[:1], question[:1])
        first, second = kept
        rows = [
            torch.autograd.grad(value, first, retain_graph=True)[0].flatten()
            for value in second.flatten()
        ]
        values = torch.linalg.svdvals(torch.stack(rows).double())
        return int((values > 1e-7 * values[0]).sum())

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        found, theirs = rank(*faulty), rank(*sound)
        return {"is": found < theirs / 4, "rank": found, "twin": theirs}

    return symptom


def healthy(*, falls: bool = True) -> Symptom:
    """A run that learns, stays finite, and shows no other fault that can be seen from outside.

    Its loss falls by a tenth at least; less than 0.7 of any layer is dead or saturated; every
    trainable matrix with a gradient moves.
    """

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        dead = max(run.last.dead.values(), default=0.0)
        stuck = [n for n, m in run.moved.items() if m <= 1e-7 and n not in run.without_gradient]
        ends = median(max(c.saturated.values(), default=0.0) for c in run.checkpoints)
        fell = 1 - run.loss_last / run.loss_first
        sound = run.finite and dead < 0.7 and ends < 0.7 and not stuck
        evidence = {"fell": fell, "dead": dead, "saturated": ends, "stuck": len(stuck)}
        return {"is": sound and (fell >= 0.1 or not falls), **evidence}

    return symptom


def also(run: Observed) -> list[str]:
    """Conditions that hold, by the rule that would tell them: what a label's `may` rests on."""
    first, last = run.checkpoints[0], run.last
    typical = median(run.decades())
    found = {
        "dead-units": max(last.dead.values(), default=0.0) >= 0.5,
        "saturated-activation": median(
            max(c.saturated.values(), default=0.0) for c in run.checkpoints
        )
        >= 0.5,
        "vanishing-gradient": typical >= 2,
        "exploding-gradient": typical <= -2 or run.decades()[0] <= -2,
        "non-finite": not run.finite,
        "starved-pathway": max(min(c.edge_shares, default=1.0) for c in run.checkpoints) <= 1e-3,
        "cancelling-fork": max(min(c.agreement, default=9.0) for c in run.checkpoints) <= 0.1,
        "peaked-softmax": min(first.entropies, default=1.0) <= 0.05,
        "no-update": any(m <= 1e-7 for n, m in run.moved.items() if n not in run.without_gradient),
    }
    return [rule for rule, holds in found.items() if holds]
