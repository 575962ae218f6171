"""update-too-large: one optimizer step rewrites the weights instead of adjusting them.

Definition. update_ratio ‖Δw‖/‖w‖, at each recorded step the median over the model's weight
matrices (vectors and weights that start at 0 left out: theirs is large by nature). It is too large
where it reaches `REWRITES` at any step; and, of three measured steps or more, where it is at least
`LARGE` for `HELD` of them (each weight at its last value, as they take turns), or the loss ends
higher than it began (`RISEN`) where it started at `FAST` or more or was usually `BRISK` or more; or
where one weight alone comes to `REPLACES` and the loss stands `RISEN` times higher than before for
`HELD` of the run.

Source: the rule of thumb of 10⁻³ for update to weight (Hinton, "A practical guide to training
restricted Boltzmann machines", 2010). SageMaker Debugger's limit of 10 comes after the fact.

Severity. Critical if the run ends non-finite, or no better than it began although it rewrote its
weights; warning if the loss got nowhere otherwise, or none was logged; info if it fell all the
same and no step came to `REPLACES`, or none but the first measured ones, behind which the loss
stood no higher: weights that start small are outgrown.

Silent about single large steps under `REWRITES`, such as Adam's first, while the loss falls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gradscope.findings._finding import Finding, Severity, View
from gradscope.findings._origins import broke_of_itself
from gradscope.findings._persistence import ENOUGH
from gradscope.findings._rule import Rule, Skipped
from gradscope.findings._signals import Matrix, Signals, quiet_median
from gradscope.findings._training import Progress, level, progress

REWRITES = 0.5  # half of the norm in one step; healthy runs peak at 0.15
REPLACES = 1.0  # all of it: what had been learned is gone
LARGE = 0.1
HELD = 0.2  # share of the measured steps
FAST = 0.06  # healthy runs start at 0.002 to 0.06, and so do those that fail for another cause
BRISK = 0.01  # the upper end of what is usual
RISEN = 1.5  # factor between the loss's end and its start
USUAL = 0.03  # as late steps may be
EARLY = 0.1  # share of the measured steps that counts as the start


@dataclass(frozen=True)
class Updates:
    """The update ratios of a model's weights over S recorded steps.

    Attributes:
        ratios: of each weight.
        typical: float64 (S,), median over the weights, or the largest where one alone is judged.
        known: the steps at which that is finite, as indices.
        diverged: the run was lost, and not for a cause that says nothing of the steps before.
        stuck: the loss got nowhere, on the same condition.
        went: how the training went, if a loss was logged.
    """

    ratios: Matrix
    typical: np.ndarray
    known: np.ndarray
    diverged: bool
    stuck: bool
    went: Progress | None

    @property
    def early(self) -> np.ndarray:
        return self.known[: max(1, round(EARLY * len(self.known)))]

    @property
    def start(self) -> float:
        return float(quiet_median(self.typical[self.early]))

    @property
    def risen(self) -> bool:
        return self.went is not None and self.went.end >= RISEN * self.went.start > 0

    def at(self, least: float) -> np.ndarray:
        return self.known[self.typical[self.known] >= least]


def find(signals: Signals) -> list[Finding] | Skipped:
    ratios = _weights(signals)
    if not ratios.keys:
        return Skipped("no update ratio of a weight matrix")
    updates = _updates(signals, ratios)
    if not len(updates.known):
        return Skipped("no finite update ratio of a weight matrix")
    at, threshold = _too_large(updates)
    if not len(at) and len(at := _thrown(signals, ratios)):
        threshold = REPLACES
        thrown = np.isin(np.arange(len(updates.typical)), at)
        typical = np.where(thrown, _largest(ratios.values), updates.typical)
        updates = replace(updates, typical=typical)
    return [_finding(signals, updates, at, threshold)] if len(at) else []


def _updates(signals: Signals, ratios: Matrix) -> Updates:
    typical = quiet_median(np.where(np.isfinite(ratios.values), ratios.values, np.nan), axis=1)
    known = np.flatnonzero(np.isfinite(typical))
    went = progress(signals)
    # What breaks at log(0) says nothing of the steps before.
    own = went is not None and went.diverged and broke_of_itself(signals)
    diverged = went is not None and went.diverged and not own
    stuck = went is not None and went.stuck and not own
    rewrites = (typical[known] >= REWRITES).any()
    if diverged and not rewrites and quiet_median(typical[known[-ENOUGH:]]) < USUAL:
        diverged = stuck = False  # steps had become usual again before it did
    return Updates(ratios, typical, known, diverged, stuck, went)


def _too_large(updates: Updates) -> tuple[np.ndarray, float]:
    """Steps, as indices, at which updates are too large, and the limit that says so."""
    known = updates.known
    if len(at := updates.at(REWRITES)):
        return at, REWRITES
    # A run that overflows may end before three steps were measured.
    if len(known) < ENOUGH and not updates.diverged:
        return known[:0], REWRITES
    # A step that rewrites may fall to few weights' turn; one weight alone is none that lasts.
    large = _held(updates.ratios.values)[known] >= LARGE
    if large.mean() >= HELD:
        return known[large], LARGE
    if (updates.diverged or updates.risen) and updates.start >= FAST:
        return updates.at(FAST), FAST
    if updates.risen and quiet_median(updates.typical[known]) >= BRISK:
        return updates.at(BRISK), BRISK
    return known[:0], REWRITES


def _finding(signals: Signals, updates: Updates, at: np.ndarray, threshold: float) -> Finding:
    ratios, typical, known, went = updates.ratios, updates.typical, updates.known, updates.went
    peak = int(known[np.argmax(typical[known])])
    worst = ratios.sites[int(np.nanargmax(ratios.values[peak]))]
    step, largest = ratios.steps[peak], f"{typical[peak]:.2g}"
    over = f"median over {len(ratios.keys)} weights, " if len(ratios.keys) > 1 else ""
    what = (
        f"{worst} by {largest} of its norm (at step {step})"
        if threshold == REPLACES
        else f"the weights by {largest} of their norm ({over}at step {step}; most at {worst})"
    )
    end = "" if went is None else _aftermath(went.start, went.end)
    severity = _severity(signals, updates, threshold)
    return Finding(
        rule="update-too-large",
        severity=severity,
        site=worst,
        first_step=int(ratios.steps[at[0]]),
        last_step=int(ratios.steps[at[-1]]),
        evidence={
            "update_ratio_peak": typical[peak],
            "update_ratio_start": updates.start,
            "update_ratio_median": quiet_median(typical),
            "peak_step": int(step),
            "share_of_steps": len(at) / len(known),
            "steps_measured": len(known),
            "weights": len(ratios.keys),
            "loss_start": None if went is None else went.start,
            "loss_end": None if went is None else went.end,
        },
        message=f"One optimizer step changes {what}{end}.",
        remedy=_remedy(severity, typical[peak]),
        view=View(
            "parameter",
            "update_ratio",
            tuple(ratios.sites),
            thresholds={"too large": threshold, "usual": 1e-3},
        ),
    )


def _remedy(severity: Severity, largest: float) -> str:
    if severity == "info":
        return (
            "Nothing, if the loss fell all the same, as here; for steadier steps lower the "
            "learning rate, or warm it up from 0."
        )
    return (
        f"Lower the learning rate about {_round(largest / 1e-2):g} times, or warm it up from 0; "
        "usual is an update of 1e-3 to 1e-2 of the weight."
    )


def _severity(signals: Signals, updates: Updates, threshold: float) -> Severity:
    if updates.diverged or (updates.stuck and threshold == REWRITES):
        return "critical"
    if updates.went is not None and updates.went.learned:
        replaced = updates.at(REPLACES)
        steps = updates.ratios.steps
        if not len(replaced) or _outgrown(signals, steps, replaced, updates.early):
            return "info"
    return "warning"


def _thrown(signals: Signals, ratios: Matrix) -> np.ndarray:
    """Steps at which one weight was replaced, and behind which the loss stood high for long."""
    if signals.loss is None:
        return np.array([], dtype=int)
    losses, values = signals.loss.steps, signals.loss.values[:, 0]
    found = []
    for at in np.flatnonzero(_largest(ratios.values) >= REPLACES):
        step = ratios.steps[at]
        before = level(signals, 0, int(step))
        with np.errstate(invalid="ignore"):
            high = (losses > step) & (values >= RISEN * before) & (before > 0)
        if high.sum() >= HELD * len(losses):
            found.append(at)
    return np.array(found, dtype=int)


def _largest(values: np.ndarray) -> np.ndarray:
    """(S,): of all weights, 0 where none was measured."""
    return np.where(np.isfinite(values), values, 0.0).max(axis=1, initial=0.0)


def _held(values: np.ndarray) -> np.ndarray:
    """(S,): median over the weights. They take turns, so each stands at its last value."""
    measured = np.isfinite(values)
    last = np.maximum.accumulate(np.where(measured, np.arange(len(values))[:, None], -1), axis=0)
    held = np.where(last >= 0, np.take_along_axis(values, np.maximum(last, 0), axis=0), np.nan)
    return quiet_median(held, axis=1)


def _outgrown(signals: Signals, steps: np.ndarray, replaced: np.ndarray, early: np.ndarray) -> bool:
    """Whether weights were replaced at the start only, and the loss did not rise for it."""
    if signals.loss is None or replaced[-1] > early[-1]:
        return False
    first, after = int(steps[replaced[0]]), int(steps[min(replaced[-1] + 1, len(steps) - 1)])
    return level(signals, first + 1, after) <= level(signals, 0, first)


def _weights(signals: Signals) -> Matrix:
    """Update ratios of the weight matrices that do not start at 0."""
    ratios, norms = (
        signals.matrix("parameter", "update_ratio"),
        signals.matrix("parameter", "weight_norm"),
    )
    keep = []
    for j, name in enumerate(ratios.sites):
        shape = signals.site("parameter", name).shape
        measured = norms.column(name) if name in norms else np.array([1.0])
        measured = measured[np.isfinite(measured)]
        if len(shape) != 1 and len(measured) and measured[0] > 0:
            keep.append(j)
    return Matrix(
        ratios.steps,
        [ratios.keys[j] for j in keep],
        ratios.values[:, keep],
        ratios.present[:, keep],
    )


def _aftermath(start: float, end: float) -> str:
    if not np.isfinite(end):
        return "; the loss ended non-finite"
    return f"; the loss went from {start:.3g} to {end:.3g}"


def _round(factor: float) -> float:
    """To one significant digit."""
    return float(f"{max(factor, 2.0):.0e}")


RULE = Rule("update-too-large", (("parameter", "update_ratio"),), find)
