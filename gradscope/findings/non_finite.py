"""non-finite: NaN or infinity in the gradient or the loss.

Definition. A recorded step is bad where a module's or parameter's gradient has a NaN or infinite
element (metric nonfinite) or norm. The finding points at the first bad step and there at the
site nearest the loss: backward runs from the loss to the input and carries NaN along, so what is
nearest the loss is where it arose, and the rest is fall-out. Where the loss itself is not finite
at that step, it arose in the forward pass. Where the run has it (`meta["nonfinite"]`), the first
operation whose result, or whose gradient, was not finite is named; it was found in the autograd
graph while that was still there.

Source: definition; the order of search is that of torch.autograd.detect_anomaly, over a run.

Severity. Critical if the last recorded step is bad or the logged loss ends non-finite. If the run
recovered: info for under `RARE` of the recorded steps (a gradient scaler finds its scale by
overflowing, and skips the update), warning for more. Of one recorded step alone: warning, unless
the loss is not finite either. Warning, too, where the loss was lost at single steps and gradients
stay finite (a mean over nothing: its gradient is 0, and the step is wasted).

Silent about such losses where no operation was seen to make them: what was logged may not be what
was trained on.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from gradscope.findings._finding import Finding, Severity, View
from gradscope.findings._groups import named
from gradscope.findings._origins import first_operation
from gradscope.findings._ranks import nonfinite_ranks, on_ranks
from gradscope.findings._rule import Rule, Skipped
from gradscope.findings._signals import Matrix, Signals
from gradscope.run import Site

When = Literal["before", "update", "unseen"]

RARE = 0.1  # a gradient scaler overflows a few times at first, then once in 2,000 steps


def find(signals: Signals) -> list[Finding] | Skipped:
    bad = {kind: _bad(signals, kind) for kind in ("module", "parameter")}
    steps = np.unique(np.concatenate([matrix.steps for matrix in bad.values()]))
    loss_lost = _loss_lost_at(signals)
    if not len(steps) and signals.loss is None:
        return Skipped("no gradient norms and no loss")
    at_step = np.zeros(len(steps), dtype=bool)
    for matrix in bad.values():
        at_step |= matrix.on(steps).present.any(axis=1)
    bad_steps = steps[at_step]
    origin = first_operation(signals)
    lost = _lost_losses(signals) if loss_lost is not None or origin["operation"] else []
    candidates = [*bad_steps[:1].tolist(), *lost[:1]]
    if not candidates:
        return []
    first = min([*candidates, origin["step"]])
    ongoing = loss_lost is not None or bool(at_step[-1])
    in_forward = _loss_is_lost(signals, first) or origin["phase"] in ("forward", "data")
    kind, site = _origin(signals, bad, int(bad_steps[0])) if len(bad_steps) else ("scalar", "loss")
    ranks = nonfinite_ranks(signals.run, first)
    when = _when(signals, first)
    return [
        Finding(
            rule="non-finite",
            severity=_severity(ongoing, in_forward, len(steps), len(bad_steps), bool(lost)),
            site=site,
            first_step=first,
            last_step=max([first, *bad_steps[-1:].tolist(), *lost[-1:]]),
            evidence={
                "bad_steps": len(bad_steps),
                "bad_losses": len(lost),
                "recorded_steps": len(steps),
                "bad_modules": int(bad["module"].present.any(axis=0).sum()),
                "bad_parameters": int(bad["parameter"].present.any(axis=0).sum()),
                "in_forward": in_forward,
                "ongoing": ongoing,
                "ranks": ranks if len(signals.run.ranks) > 1 else None,
                "phase": origin["phase"],
                "operation": origin["operation"],
                "where": origin["where"],
            },
            message=on_ranks(
                _message(
                    site, first, in_forward, ongoing, (len(bad_steps), len(lost)), origin, when
                ),
                ranks,
                signals.run,
            ),
            remedy=_remedy(in_forward, ongoing, origin, when),
            view=View(kind, "value" if kind == "scalar" else "grad_norm", (site,)),
        )
    ]


def _when(signals: Signals, step: int) -> When:
    """When a parameter that is not finite at a step lost it."""
    every_step = signals.run.meta.get("every") == 1
    if step == 0 or (every_step and step == signals.steps[0]):
        return "before"
    return "update" if every_step else "unseen"


def _bad(signals: Signals, kind: str) -> Matrix:
    """`present` says which gradients are not finite, on every step that has a gradient."""
    norms, counts = (signals.matrix(kind, m) for m in ("grad_norm", "nonfinite"))
    steps = np.union1d(norms.steps, counts.steps)
    keys = list(dict.fromkeys([*norms.keys, *counts.keys]))
    place = {key: j for j, key in enumerate(keys)}
    bad = np.zeros((len(steps), len(keys)), dtype=bool)
    for matrix, wrong in (
        (norms, norms.present & ~np.isfinite(norms.values)),
        (counts, counts.present & ~(counts.values == 0)),
    ):
        if matrix.keys:
            at = np.searchsorted(steps, matrix.steps)
            where = np.array([place[k] for k in matrix.keys])
            bad[np.ix_(at, where)] |= wrong
    return Matrix(steps, keys, np.where(bad, np.nan, 0.0), bad)


def _origin(signals: Signals, bad: dict[str, Matrix], step: int) -> tuple[str, str]:
    """Kind and name of the bad site nearest the loss at a step; a module, if there is one."""
    for kind, matrix in bad.items():
        at = np.flatnonzero(matrix.steps == step)
        names = [matrix.sites[j] for j in np.flatnonzero(matrix.present[at].any(axis=0))]
        if names:
            sites = [signals.site(kind, name) for name in names]
            nearest = min(sites, key=_nearness)
            return kind, nearest.name
    raise AssertionError("a bad step has a bad site")


def _nearness(site: Site) -> tuple[float, int, str]:
    return (site.depth if site.depth >= 0 else np.inf, -site.order, site.name)


def _loss_lost_at(signals: Signals) -> int | None:
    """Step from which on the logged loss is never finite again; None if it ends finite."""
    if signals.loss is None:
        return None
    finite = np.flatnonzero(np.isfinite(signals.loss.values[:, 0]))
    after = int(finite[-1]) + 1 if len(finite) else 0
    return int(signals.loss.steps[after]) if after < len(signals.loss.steps) else None


def _lost_losses(signals: Signals) -> list[int]:
    """Steps whose logged loss is not finite."""
    if signals.loss is None:
        return []
    return [int(s) for s in signals.loss.steps[~np.isfinite(signals.loss.values[:, 0])]]


def _loss_is_lost(signals: Signals, step: int) -> bool:
    if signals.loss is None:
        return False
    at = signals.loss.steps == step
    return bool(at.any() and not np.isfinite(signals.loss.values[at, 0]).all())


def _severity(ongoing: bool, in_forward: bool, recorded: int, bad: int, lost: bool) -> Severity:
    if ongoing and (recorded > 1 or in_forward):
        return "critical"
    if lost and not bad:
        return "warning"
    return "info" if not ongoing and bad < RARE * recorded else "warning"


def _message(
    site: str,
    first: int,
    in_forward: bool,
    ongoing: bool,
    bad: tuple[int, int],
    origin: dict[str, Any],
    when: When,
) -> str:
    count, what = (bad[0], "recorded step") if bad[0] else (bad[1], "logged loss")
    several = f"{count} {what}{'es' if what.endswith('s') else 's'} were"
    end = f"recovered ({f'1 {what} was' if count == 1 else several} bad)"
    end = "has not recovered" if ongoing else end
    if origin["operation"] and origin["phase"] not in ("data", "parameter"):
        return (
            f"At step {first} the {origin['phase']} pass of {_place(origin)} made the first NaN or "
            f"infinity; the run {end}."
        )
    if origin["phase"] == "data":
        return f"At step {first} {_place(origin)} read data that is not finite; the run {end}."
    if origin["phase"] == "parameter":
        since = {
            "before": ", so it arose before training began",
            "update": f", so the update of step {first - 1} made it{_reader(origin)}",
            "unseen": f", so it arose at a step before that was not recorded{_reader(origin)}",
        }[when]
        finite = "not" if when == "before" else "no longer"
        return f"At step {first} {origin['where']} was {finite} finite{since}; the run {end}."
    where = "the forward pass" if in_forward else "the backward pass"
    nearest = "" if site == "loss" else f"; nearest the loss it is seen at {named(site)}"
    return f"NaN or infinity arose in {where} at step {first}{nearest}; the run {end}."


def _reader(origin: dict[str, Any]) -> str:
    if not origin["operation"]:
        return ""
    return f", probably in the derivative of {origin['operation']}, which can be infinite"


def _place(origin: dict[str, Any]) -> str:
    where, operation = origin["where"], origin["operation"]
    if not where:
        return f"{operation}"
    module = where.rpartition(":")[0]
    if module == "(outside)":
        return f"{operation}, after the model,"
    return f"{operation} in {'the model' if module == '(output)' else named(module)}"


def _remedy(in_forward: bool, ongoing: bool, origin: dict[str, Any], when: When) -> str:
    if not ongoing:
        return (
            "With a gradient scaler this is how it finds its scale; without one, find the batch "
            "of that step, and clip the gradient's norm."
        )
    if origin["phase"] == "data":
        return "Look for missing values or divisions by 0 where the batch is made."
    operation = origin["operation"]
    if origin["phase"] == "parameter" and when == "before":
        return "Look at how it was initialised, or at the checkpoint that it was loaded from."
    if origin["phase"] == "parameter" and not operation:
        if when == "update":
            return "Look at the optimizer: its learning rate, its ε, the state it was loaded with."
        return "Record every step (every=1) to have the operation named that made it."
    if operation and origin["phase"] in ("backward", "parameter"):
        return (
            f"The derivative of {operation} is infinite where it was evaluated: add an ε inside, "
            "clamp what goes in, and choose the safe input with where() before the operation, not "
            "after it (0 · inf is NaN)."
        )
    if operation in FORWARD_REMEDIES:
        return FORWARD_REMEDIES[operation]
    if in_forward:
        return (
            "Rerun that step with finite inputs asserted: a log or a division of 0, exp overflow, "
            "a fully masked softmax row, or weights that the update before made too large (lower "
            "the learning rate, clip the gradient's norm)."
        )
    return (
        "Run that step under torch.autograd.detect_anomaly(): the derivative of sqrt, norm or a "
        "division at 0 is infinite (add an ε inside), and where() passes on 0 · inf as NaN."
    )


LOGARITHM = "Clamp what goes in (x.clamp_min(ε)), or compute in log space (log_softmax)."
FORWARD_REMEDIES = {
    "log": LOGARITHM,
    "log2": LOGARITHM,
    "log10": LOGARITHM,
    "div": "Add an ε to the divisor, or leave out the elements in which it is 0.",
    "reciprocal": "Add an ε to the divisor, or leave out the elements in which it is 0.",
    "exp": "Subtract the maximum first (logsumexp), clamp what goes in, or predict the logarithm.",
    "pow": "A negative base has no fractional power: clamp what goes in, or take abs() first.",
    "sqrt": "Clamp what goes in at a small positive number.",
    "softmax": "A row was masked as a whole: leave one position of every row unmasked.",
}

RULE = Rule("non-finite", (), find)
