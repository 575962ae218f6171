"""no-update: trainable parameters that do not move, or that no gradient reaches.

Definition. Three states, over the whole run:
- *stuck*: a gradient is there, of a size with the other parameters', but the optimizer's update
  is under `RESOLUTION` of the weight at nearly all steps at which it was measured (steps with a
  logged learning rate of 0 left out, unless there are no others);
- *zero*: its gradient is exactly 0 at every recorded step;
- *none*: it requires a gradient and never had one: it is not in the loss's graph.
A vector (a bias, a norm's scale) counts only along with all other parameters of its module.

Source: 2⁻²⁴, half the spacing of float32 around 1, below which w + Δ rounds to w; SageMaker
Debugger's limit is 10⁻⁸.

Severity. Critical for what can not learn although it should: stuck, zero, and none where that is
`MANY` of all trainable elements and includes the first of the model or several modules (a
detach() cuts off all that lies before it). Info for other parts without a gradient (modules that
the task does not use are common), and for stuck and zero seen at fewer than three steps (warm-up
from a learning rate of 0, branches that start at 0).

Silent about frozen parameters (they are no sites), gradients that are 0 by symmetry (a bias before
batch norm, a key's bias), and parameters that moved before, as under a decayed learning rate.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from gradscope.findings._finding import Finding, Severity, View
from gradscope.findings._groups import listed
from gradscope.findings._persistence import ENOUGH
from gradscope.findings._rule import Rule, Skipped
from gradscope.findings._signals import Signals, quiet_median

RESOLUTION = 2.0**-24  # update ratios of healthy runs are 1e-5 and above
EVER = 10 * RESOLUTION  # a parameter that once moved more than this is not stuck
HELD = 0.9  # share of the measurements
MATTERS = 1e-2  # gradient RMS over the median parameter's; symmetry leaves 1e-6
MANY = 0.05  # share of the trainable elements; an unused pooler of a large model has 0.01


@dataclass(frozen=True)
class State:
    """A way of not learning: how to say it, what to do, which metric shows it."""

    says: str
    remedy: str
    metric: str


STATES = {
    "stuck": State(
        "a gradient, but the optimizer does not move {it} (median update ratio {ratio:.1e})",
        "Pass these parameters to the optimizer{missing}; check their group's learning rate (0, or "
        "scaled down twice?); keep float32 master weights where the model is in half precision.",
        "update_ratio",
    ),
    "zero": State(
        "a gradient of exactly 0 at every recorded step",
        "Look at what lies between these parameters and the loss: dead ReLUs, a mask or gate that "
        "is 0, a saturated clamp, a factor that was initialised to 0 and does not move.",
        "grad_norm",
    ),
    "none": State(
        "never a gradient: not in the graph of the loss",
        "Look for a detach(), .data, no_grad() or a numpy round trip between these parameters and "
        "the loss; where they are not meant to be used, set requires_grad to False.",
        "weight_norm",
    ),
}


def find(signals: Signals) -> list[Finding] | Skipped:
    trainable = _trainable(signals)
    if not trainable:
        return Skipped("no parameter")
    states = _states(signals, trainable)
    return [
        _finding(signals, state, names, trainable)
        for state in STATES
        if (names := [name for name in trainable if states.get(name) == state])
    ]


def _trainable(signals: Signals) -> list[str]:
    """In the model's order. Whatever is a parameter site requires a gradient."""
    return [site.name for site in signals.run.sites_of("parameter", aliases=True)]


def _states(signals: Signals, trainable: list[str]) -> dict[str, str]:
    norms, sizes = (signals.matrix("parameter", m) for m in ("grad_norm", "grad_rms"))
    ratios = _ratios(signals)
    relative: dict[str, float] = {}
    if sizes.keys:
        with np.errstate(invalid="ignore", divide="ignore"):
            share = sizes.values / quiet_median(sizes.values, axis=1)[:, None]
        relative = dict(zip(sizes.sites, quiet_median(share, axis=0).tolist(), strict=True))
    states: dict[str, str] = {}
    for name in trainable:
        if name not in norms:
            states[name] = "none"
        elif (norms.column(name)[norms.present[:, norms.sites.index(name)]] == 0).all():
            states[name] = "zero"
        elif _is_stuck(ratios.get(name, _NONE)) and not relative.get(name, np.inf) < MATTERS:
            states[name] = "stuck"
    modules: dict[str, list[str]] = defaultdict(list)
    for name in trainable:
        modules[name.rpartition(".")[0]].append(name)
    whole = {m for m, names in modules.items() if all(n in states for n in names)}
    return {
        name: state
        for name, state in states.items()
        if name.rpartition(".")[0] in whole or len(signals.site("parameter", name).shape) != 1
    }


def _ratios(signals: Signals) -> dict[str, np.ndarray]:
    """Parameter → its finite update ratios, at steps with a learning rate above 0."""
    ratios = signals.matrix("parameter", "update_ratio")
    rates = signals.matrix("scalar", "value")
    named = [s for s in rates.sites if re.search(r"(^|[^a-z])(lr|learning_rate)([^a-z]|$)", s)]
    keep = np.ones(len(ratios.steps), dtype=bool)
    if named:
        rate = rates.on(ratios.steps).columns([(s, "") for s in named])
        moving = ~(rate == 0).all(axis=1)
        keep = moving if moving.any() else keep
    values = ratios.values[keep]
    return {s: v[np.isfinite(v)] for s, v in zip(ratios.sites, values.T, strict=True)}


def _is_stuck(ratios: np.ndarray) -> bool:
    if not len(ratios):
        return False
    return bool((ratios < RESOLUTION).mean() >= HELD and ratios.max() < EVER)


def _finding(signals: Signals, state: str, names: list[str], trainable: list[str]) -> Finding:
    share = _elements(signals, names) / _elements(signals, trainable)
    ratios = _ratios(signals)
    moved = [ratios[n] for n in names if n in ratios]
    ratio = float(np.median(np.concatenate(moved))) if moved and sum(map(len, moved)) else np.nan
    seen = _times_seen(signals, state, names[0])
    several = len(names) > 1
    outside = sum("not in the optimizer" in signals.site("parameter", n).note for n in names)
    what = STATES[state].says.format(it="them" if several else "it", ratio=ratio)
    whom = f"All {len(names)} parameters" if names == trainable and several else listed(names)
    return Finding(
        rule="no-update",
        severity=_severity(state, seen, cut=share >= MANY and _is_cut(names, trainable)),
        site=names[0],
        first_step=int(signals.steps[0]),
        last_step=int(signals.steps[-1]),
        evidence={
            "state": state,
            "parameters": len(names),
            "share_of_parameters": share,
            "update_ratio": ratio,
            "steps_measured": seen,
            "not_in_optimizer": outside,
        },
        message=f"{whom} {'have' if several else 'has'} {what}.",
        remedy=STATES[state].remedy.format(
            missing=f" ({outside} are not in it)" if outside else ""
        ),
        view=View(
            "parameter",
            STATES[state].metric,
            tuple(names),
            thresholds={"float32 resolution": RESOLUTION} if state == "stuck" else {},
        ),
    )


def _severity(state: str, seen: int, cut: bool) -> Severity:
    if state == "none":
        return "critical" if cut else "info"
    return "critical" if seen >= ENOUGH else "info"


def _is_cut(names: list[str], trainable: list[str]) -> bool:
    """The first parameter of the model is among them, or those of several modules are."""
    return trainable[0] in names or len({n.rpartition(".")[0] for n in names}) > 1


def _elements(signals: Signals, names: list[str]) -> int:
    return sum(max(1, signals.site("parameter", name).numel) for name in names)


def _times_seen(signals: Signals, state: str, name: str) -> int:
    if state == "stuck":
        return len(_ratios(signals)[name])
    matrix = signals.matrix("parameter", STATES[state].metric)
    return int(matrix.present[:, matrix.sites.index(name)].sum()) if name in matrix else 0


_NONE = np.array([])

RULE = Rule("no-update", (), find)
