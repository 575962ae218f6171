"""no-update: trainable parameters that do not move although the optimizer has them.

Definition. States, over the whole run:
- *stuck*: a gradient is there, of a size with the other parameters', but the optimizer's update
  is under `RESOLUTION` of the weight at nearly all steps at which it was measured (those before the
  first with a logged learning rate above 0 left out, unless there are no others); or, while the
  loss doesn't fall, so small for all parameters that those of the whole run together come to less
  than `NOWHERE` of the weight;
- *stopped*: the same from some step on, for `MOST` of the run and at its end, though there still is
  a gradient, and the loss has not fallen;
- *put back*: the optimizer moves it, and yet its norm before every one of `REPEATED` measured
  updates or more is the very same number (to `CREEPS` of what such updates add to it, where the
  loss has not fallen);
- *zero*: its gradient is exactly 0 at every recorded step;
- *cleared*: gradients reach the modules, and no parameter has one when the optimizer steps;
- *never stepped*: `PASSES` backward passes, and no optimizer has made a step.
A vector (a bias, a norm's scale) counts only along with all other parameters of its module.

Source: 2⁻²⁴, half the spacing of float32 around 1, below which w + Δ rounds to w; SageMaker
Debugger's limit is 10⁻⁸.

Severity. Warning for *stopped*. Critical otherwise, for these can not learn although they should;
info where it was seen at fewer than three steps (warm-up from a learning rate of 0, branches that
start at 0).

Silent about frozen parameters (they are no sites), those that never had a gradient (detached) or
that no optimizer has (not-in-optimizer), gradients that are 0 by symmetry (a bias before batch
norm, a key's bias), and parameters that moved before, as under a decayed learning rate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from gradscope.findings._finding import Finding, Severity, View
from gradscope.findings._groups import listed
from gradscope.findings._parameters import (
    always_zero,
    cleared,
    is_held,
    share,
    trainable,
    without_lone_vectors,
)
from gradscope.findings._persistence import ENOUGH
from gradscope.findings._rule import Rule, Skipped
from gradscope.findings._signals import Signals, quiet_median
from gradscope.findings._training import STUCK, progress
from gradscope.graph.naming import OUTPUT

RESOLUTION = 2.0**-24  # update ratios of healthy runs are 1e-5 and above
EVER = 10 * RESOLUTION  # a parameter that once moved more than this is not stuck
HELD = 0.9  # share of the measurements
MOST = 0.5  # share of the run
NOWHERE = 2e-3  # of the weight, over a run of `RUN` steps; healthy ones go that far in a few
RUN = 100  # optimizer steps
CREEPS = 1e-3  # an average of weights hardly moves; weight decay leaves a tenth or more
REPEATED = 5  # norms of weights that move never repeat to the last bit so often, …
VISIBLE = 1e-4  # … if updates are no smaller: one at right angles adds half of its square
PASSES = 50  # before a first step; who accumulates as many has no step to lose
MATTERS = 1e-2  # gradient RMS over the median parameter's; symmetry leaves 1e-6


@dataclass(frozen=True)
class State:
    """A way of not learning: how to say it, what to do, which metric shows it."""

    says: str
    remedy: str
    metric: str


STATES = {
    "stuck": State(
        "a gradient, but the optimizer does not move {it} (median update ratio {ratio})",
        "Check the learning rate of these parameters' group (0, or scaled down twice?); keep "
        "float32 master weights where the model is in half precision.",
        "update_ratio",
    ),
    "stopped": State(
        "stopped moving though the loss has {loss} (median update ratio {ratio})",
        "Look at the learning rate's course (a schedule that decays too soon, or is stepped once a "
        "batch instead of once an epoch); if it stays up, at what takes the gradient away: an "
        "output that saturates, or a softmax before a loss that applies its own.",
        "update_ratio",
    ),
    "put back": State(
        "an update at every step (median {ratio} of the weight), and before the next the old "
        "values again",
        "Look for what writes weights after optimizer.step(): load_state_dict(), copy_() from an "
        "average or a snapshot, a swap of weights for evaluation that is never undone.",
        "update_ratio",
    ),
    "cleared": State(
        "no gradient when the optimizer steps, though gradients reach the modules",
        "Look for zero_grad() between backward() and step(), or for an optimizer that holds copies "
        "of the parameters.",
        "grad_norm",
    ),
    "zero": State(
        "a gradient of exactly 0 at every recorded step",
        "Look at what lies between these parameters and the loss: dead ReLUs, a mask or gate that "
        "is 0, a saturated clamp, a factor that was initialised to 0 and does not move.",
        "grad_norm",
    ),
}


def find(signals: Signals) -> list[Finding] | Skipped:
    if not len(signals.steps):
        passes = int(signals.run.meta.get("unfinished", 0))
        if signals.run.meta.get("steps") != 0 or passes < PASSES:
            return Skipped("no recorded steps")
        return [_never_stepped(passes)]
    every = trainable(signals)
    if not every:
        return Skipped("no parameter")
    states = dict.fromkeys(every, "cleared") if cleared(signals) else _states(signals, every)
    return [
        _finding(signals, state, names, every)
        for state in STATES
        if (names := [name for name in every if states.get(name) == state])
    ]


def _states(signals: Signals, every: list[str]) -> dict[str, str]:
    norms, sizes = (signals.matrix("parameter", m) for m in ("grad_norm", "grad_rms"))
    ratios = _ratios(signals)
    went = progress(signals)
    learned = went is None or went.learned
    if went is not None and went.stuck and _goes_nowhere(signals, ratios):
        return {name: "stuck" for name in every if len(ratios.get(name, _NONE))}
    relative: dict[str, float] = {}
    if sizes.keys:
        with np.errstate(invalid="ignore", divide="ignore"):
            share = sizes.values / quiet_median(sizes.values, axis=1)[:, None]
        relative = dict(zip(sizes.sites, quiet_median(share, axis=0).tolist(), strict=True))
    states: dict[str, str] = {}
    for name in every:
        if name not in norms or not is_held(signals, name):
            continue
        if always_zero(signals, name):
            states[name] = "zero"
        elif _is_put_back(signals, name, ratios.get(name, _NONE), learned):
            states[name] = "put back"
        elif _is_stuck(ratios.get(name, _NONE)) and not relative.get(name, np.inf) < MATTERS:
            states[name] = "stuck"
        elif not learned and _has_stopped(ratios.get(name, _NONE), norms.column(name)):
            states[name] = "stopped"
    return without_lone_vectors(signals, states)


def _ratios(signals: Signals) -> dict[str, np.ndarray]:
    """Parameter → its finite update ratios, at steps with a learning rate above 0."""
    ratios = signals.matrix("parameter", "update_ratio")
    rates = signals.matrix("scalar", "value")
    named = [s for s in rates.sites if re.search(r"(^|[^a-z])(lr|learning_rate)([^a-z]|$)", s)]
    keep = np.ones(len(ratios.steps), dtype=bool)
    if named:
        rate = rates.on(ratios.steps).columns([(s, "") for s in named])
        moving = ~(rate == 0).all(axis=1)
        keep = np.cumsum(moving) > 0 if moving.any() else keep
    values = ratios.values[keep]
    return {s: v[np.isfinite(v)] for s, v in zip(ratios.sites, values.T, strict=True)}


def _is_stuck(ratios: np.ndarray) -> bool:
    if not len(ratios):
        return False
    return bool((ratios < RESOLUTION).mean() >= HELD and ratios.max() < EVER)


def _goes_nowhere(signals: Signals, ratios: dict[str, np.ndarray]) -> bool:
    """Whether no parameter can have come far, had all its usual steps led in one direction."""
    steps = int(signals.steps[-1] - signals.steps[0])
    moved = [float(np.mean(r)) * steps for r in ratios.values() if len(r)]
    return steps >= RUN and bool(moved) and max(moved) < NOWHERE


def _is_put_back(signals: Signals, name: str, ratios: np.ndarray, learned: bool) -> bool:
    norms = signals.matrix("parameter", "weight_norm")
    if name not in norms or not len(ratios) or np.median(ratios) < VISIBLE:
        return False
    known = np.isfinite(norms.column(name))
    before = norms.column(name)[known]
    if len(before) < REPEATED or not before[0] > 0:
        return False
    if (before == before[0]).all():
        return True
    # Steps at right angles to each other add half of their square to the norm.
    steps = np.ptp(norms.steps[known])
    added = before[0] * np.median(ratios) ** 2 / 2 * steps
    return bool(not learned and np.ptp(before) <= CREEPS * added)


def _has_stopped(ratios: np.ndarray, gradient: np.ndarray) -> bool:
    """At its end and for most of the run, and not for want of a gradient."""
    late = gradient[len(gradient) // 2 :]
    if not (late[np.isfinite(late)] > 0).any():
        return False
    moving = np.flatnonzero(ratios >= RESOLUTION)
    still = len(ratios) - (moving[-1] + 1 if len(moving) else 0)
    return bool(still >= ENOUGH and still >= MOST * len(ratios))


def _still_since(signals: Signals, names: list[str]) -> int:
    """The first step at which one of them was measured not to move, as ever since."""
    ratios = signals.matrix("parameter", "update_ratio")
    since = []
    for name in names:
        known = np.flatnonzero(np.isfinite(ratios.column(name)))
        moving = np.flatnonzero(ratios.column(name)[known] >= RESOLUTION)
        since.append(ratios.steps[known[moving[-1] + 1 if len(moving) else 0]])
    return int(min(since))


def _finding(signals: Signals, state: str, names: list[str], every: list[str]) -> Finding:
    ratios = _ratios(signals)
    moved = [ratios[n] for n in names if n in ratios]
    ratio = float(np.median(np.concatenate(moved))) if moved and sum(map(len, moved)) else np.nan
    seen_in_updates = STATES[state].metric == "update_ratio"
    seen = _times_seen(signals, state, names[0])
    several = len(names) > 1
    median = f"{ratio:.1e}" if ratio else "0"
    went = progress(signals)
    fall = 0.0 if went is None else went.fall
    loss = "not fallen" if not fall >= STUCK else f"fallen by no more than {fall:.0%}"
    what = STATES[state].says.format(it="them" if several else "it", ratio=median, loss=loss)
    whom = f"All {len(names)} parameters" if names == every and several else listed(names)
    return Finding(
        rule="no-update",
        severity=_severity(state, seen),
        site=names[0],
        first_step=_still_since(signals, names) if state == "stopped" else int(signals.steps[0]),
        last_step=int(signals.steps[-1]),
        evidence={
            "state": state,
            "parameters": len(names),
            "share_of_parameters": share(signals, names),
            "update_ratio": ratio,
            "steps_measured": seen,
        },
        message=f"{whom} {'have' if several else 'has'} {what}.",
        remedy=STATES[state].remedy,
        view=View(
            "parameter",
            STATES[state].metric,
            tuple(names),
            thresholds=_thresholds(signals, ratio) if seen_in_updates else {},
        ),
    )


def _thresholds(signals: Signals, ratio: float) -> dict[str, float]:
    found = {"float32 resolution": RESOLUTION}
    steps = int(signals.steps[-1] - signals.steps[0])
    if RESOLUTION < ratio < NOWHERE / max(steps, 1):
        found[f"{NOWHERE:g} of the weight in all"] = NOWHERE / steps
    return found


def _never_stepped(passes: int) -> Finding:
    return Finding(
        rule="no-update",
        severity="critical",
        site=OUTPUT,
        first_step=0,
        last_step=0,
        evidence={"state": "never stepped", "passes": passes, "share_of_parameters": 1.0},
        message=f"{passes} backward passes, and none of the optimizers given to attach() stepped.",
        remedy=(
            "Look for a condition around optimizer.step() that is never met, for steps of another "
            "optimizer than the one given, and for an accumulation that never ends."
        ),
        view=View("module", "grad_norm", ()),
    )


def _severity(state: str, seen: int) -> Severity:
    if seen < ENOUGH:
        return "info"
    return "warning" if state == "stopped" else "critical"


def _times_seen(signals: Signals, state: str, name: str) -> int:
    if state == "cleared":
        return len(signals.steps)
    if state in ("stuck", "stopped", "put back"):
        return len(_ratios(signals)[name])
    matrix = signals.matrix("parameter", STATES[state].metric)
    return int(matrix.present[:, matrix.sites.index(name)].sum()) if name in matrix else 0


_NONE = np.array([])

RULE = Rule("no-update", (), find, without_steps=True)
