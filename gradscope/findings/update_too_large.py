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


def find(signals: Signals) -> list[Finding] | Skipped:
    ratios = _weights(signals)
    if not ratios.keys:
        return Skipped("no update ratio of a weight matrix")
    course = quiet_median(np.where(np.isfinite(ratios.values), ratios.values, np.nan), axis=1)
    known = np.flatnonzero(np.isfinite(course))
    if not len(known):
        return Skipped("no finite update ratio of a weight matrix")
    early = known[: max(1, round(EARLY * len(known)))]
    went = progress(signals)
    # What breaks at log(0) says nothing of the steps before.
    own = broke_of_itself(signals)
    stuck = went is not None and went.stuck and not (went.diverged and own)
    # A step that rewrites may fall to few weights' turn; one weight alone is none that lasts.
    rewrites, large = course[known] >= REWRITES, _held(ratios.values)[known] >= LARGE
    # A run that overflows may end before three steps were measured.
    overflowed = went is not None and went.diverged and not own
    if overflowed and not rewrites.any() and quiet_median(course[known[-ENOUGH:]]) < USUAL:
        overflowed = stuck = False  # steps had become usual again before it did
    enough = len(known) >= ENOUGH or overflowed
    if rewrites.any():
        at, threshold = known[rewrites], REWRITES
    elif large.mean() >= HELD and enough:
        at, threshold = known[large], LARGE
    elif enough and (overflowed or _risen(went)) and quiet_median(course[early]) >= FAST:
        at, threshold = known[course[known] >= FAST], FAST
    elif enough and _risen(went) and quiet_median(course[known]) >= BRISK:
        at, threshold = known[course[known] >= BRISK], BRISK
    elif len(thrown := _thrown(signals, ratios)):
        at, threshold = thrown, REPLACES
        course = np.where(np.isin(np.arange(len(course)), thrown), _largest(ratios.values), course)
    else:
        return []
    severity: Severity = "warning"
    if overflowed or (stuck and threshold == REWRITES):
        severity = "critical"
    elif went is not None and went.learned:
        replaced = known[course[known] >= REPLACES]
        if not len(replaced) or _outgrown(signals, ratios.steps, replaced, early):
            severity = "info"
    peak = int(known[np.argmax(course[known])])
    worst = ratios.sites[int(np.nanargmax(ratios.values[peak]))]
    end = "" if went is None else _aftermath(went.start, went.end)
    return [
        Finding(
            rule="update-too-large",
            severity=severity,
            site=worst,
            first_step=int(ratios.steps[at[0]]),
            last_step=int(ratios.steps[at[-1]]),
            evidence={
                "update_ratio_peak": course[peak],
                "update_ratio_start": quiet_median(course[early]),
                "update_ratio_median": quiet_median(course),
                "peak_step": int(ratios.steps[peak]),
                "share_of_steps": len(at) / len(known),
                "steps_measured": len(known),
                "weights": len(ratios.keys),
                "loss_start": None if went is None else went.start,
                "loss_end": None if went is None else went.end,
            },
            message=(
                f"One optimizer step changes {worst} by {course[peak]:.2g} of its norm (at step "
                f"{ratios.steps[peak]}){end}."
                if threshold == REPLACES
                else f"One optimizer step changes the weights by {course[peak]:.2g} of their norm "
                f"(median over {len(ratios.keys)} weights, at step {ratios.steps[peak]}; most at "
                f"{worst}){end}."
            ),
            remedy=(
                "Lower the learning rate about "
                f"{_round(course[peak] / 1e-2):g} times, or warm it up from 0; usual is an update "
                "of 1e-3 to 1e-2 of the weight."
            ),
            view=View(
                "parameter",
                "update_ratio",
                tuple(ratios.sites),
                thresholds={"too large": threshold, "usual": 1e-3},
            ),
        )
    ]


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


def _risen(went: Progress | None) -> bool:
    return went is not None and went.end >= RISEN * went.start > 0


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
