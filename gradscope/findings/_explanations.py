"""Which finding can explain which, and on what conditions (`_causes` tells the story).

What says no more than its cause does (`_FOLLOWS`) becomes a note.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from gradscope.findings._finding import Finding
from gradscope.findings._ladders import CHAIN, role_of
from gradscope.findings._origins import UNDEFINED, of_itself
from gradscope.findings._parameters import WHOLE, module_of
from gradscope.findings.peaked_softmax import NOTHING
from gradscope.findings.update_too_large import LARGE, REWRITES

# Symptom → what can explain it, likeliest first. The cause has to begin no later than the symptom,
# and the rules in `_LOCAL` must also sit in the same repeated structure.
EXPLAINED_BY: dict[str, tuple[str, ...]] = {
    "non-finite": ("exploding-gradient", "update-too-large", "unscaled-input"),
    "exploding-gradient": (
        "starved-pathway",
        "update-too-large",
        "unscaled-input",
        "peaked-softmax",
        "non-finite",
    ),
    "update-too-large": ("no-update", "exploding-gradient", "unscaled-input", "peaked-softmax"),
    "peaked-softmax": ("update-too-large", "unscaled-input"),
    "diffuse-softmax": ("update-too-large", "no-update", "vanishing-gradient"),
    "saturated-activation": ("update-too-large", "unscaled-input", "exploding-gradient"),
    "detached": (
        "underflow",
        "non-finite",
        "dead-units",
        "saturated-activation",
        "peaked-softmax",
        "diffuse-softmax",
        "vanishing-gradient",
        "cancelling-fork",
    ),
    "cancelling-fork": ("unscaled-input", "saturated-activation"),
    "dead-units": ("underflow", "update-too-large", "unscaled-input"),
    "vanishing-gradient": (
        "starved-pathway",
        "not-in-optimizer",
        "underflow",
        "dead-units",
        "saturated-activation",
        "update-too-large",
        "softmax-borne",
        "peaked-softmax",
        "diffuse-softmax",
        "cancelling-fork",
    ),
    "starved-pathway": (
        "underflow",
        "dead-units",
        "saturated-activation",
        "update-too-large",
        "peaked-softmax",
        "diffuse-softmax",
        "exploding-gradient",
    ),
    "no-update": (
        "underflow",
        "starved-pathway",
        "non-finite",
        "dead-units",
        "saturated-activation",
        "update-too-large",
        "detached",
        "vanishing-gradient",
        "peaked-softmax",
        "cancelling-fork",
    ),
}
# Symptoms that always follow from the cause, and need no remedy of their own.
_FOLLOWS = {
    "vanishing-gradient": {
        "starved-pathway",
        "not-in-optimizer",
        "underflow",
        "dead-units",
        "saturated-activation",
        "update-too-large",
        "peaked-softmax",
    },
    # A GRU's gate at its end passes on the old state or the new one, and the terms of the other.
    "cancelling-fork": {"unscaled-input", "saturated-activation"},
    "dead-units": {"unscaled-input", "underflow", "update-too-large"},
    "update-too-large": {"peaked-softmax", "no-update", "unscaled-input"},
    "exploding-gradient": {"starved-pathway", "peaked-softmax", "non-finite"},
    "saturated-activation": {"unscaled-input", "update-too-large"},
    "peaked-softmax": {"unscaled-input"},
    "diffuse-softmax": {"update-too-large", "no-update"},
    "detached": {
        "underflow",
        "non-finite",
        "dead-units",
        "saturated-activation",
        "peaked-softmax",
        "diffuse-softmax",
        "vanishing-gradient",
        "cancelling-fork",
    },
    "starved-pathway": {
        "underflow",
        "dead-units",
        "saturated-activation",
        "update-too-large",
        "peaked-softmax",
        "diffuse-softmax",
        "exploding-gradient",
    },
    "no-update": {
        "underflow",
        "starved-pathway",
        "non-finite",
        "dead-units",
        "saturated-activation",
        "update-too-large",
        "vanishing-gradient",
        "detached",
        "peaked-softmax",
    },
}
HELD_BACK = ("stuck", "cleared", "put back")  # a gradient is there, and not used
UNDONE = 1e-3  # of what independent terms would leave at a fork
RESOLUTION = 1e-6  # of a fork's gradient: what gets less can't move, whatever moves the others
_LOCAL = {
    ("vanishing-gradient", "softmax-borne"),
    ("vanishing-gradient", "peaked-softmax"),
    ("diffuse-softmax", "vanishing-gradient"),
    ("vanishing-gradient", "diffuse-softmax"),
    ("starved-pathway", "peaked-softmax"),
    ("starved-pathway", "diffuse-softmax"),
    ("no-update", "vanishing-gradient"),
    ("no-update", "starved-pathway"),
}


def follows(symptom: Finding, cause: Finding) -> bool:
    """Whether it says no more than its cause. That nothing moves at all is worth an alarm, but
    where no gradient is left of which to move."""
    if symptom.rule == "no-update" and symptom.evidence["share_of_parameters"] >= WHOLE:
        return cause.rule == "underflow"
    if (symptom.rule, cause.rule) == ("exploding-gradient", "update-too-large"):  # a burst again
        return symptom.evidence["along"] == "time" and symptom.evidence["diverged"] is False
    if cause.rule == "update-too-large" and symptom.rule in ("dead-units", "saturated-activation"):
        return symptom.severity != "critical"  # that a layer is dead altogether is an alarm
    return cause.rule in _FOLLOWS.get(symptom.rule, ())


def explains(cause: Finding, symptom: Finding, order: Mapping[str, int]) -> bool:
    """Whether a finding of a rule that can explain another's does, as far as the run tells.

    Args:
        order: place in the forward pass, by module.
    """
    pair = (symptom.rule, cause.rule)
    if pair == ("exploding-gradient", "non-finite"):
        return _nears_the_undefined(symptom, cause)
    if cause.first_step > symptom.first_step:
        return False
    if symptom.rule == "detached" and not symptom.evidence["exactly_zero"]:
        return False
    # Of signals that fade layer by layer nothing is left to tell entries apart by; where nothing
    # repeats, the one way may well lead through the softmax.
    if pair == ("diffuse-softmax", "vanishing-gradient") and _is_chain(cause):
        return False
    if pair == ("vanishing-gradient", "diffuse-softmax"):
        decades, gain = symptom.evidence.get("decades"), cause.evidence.get("gain")
        if not _is_chain(symptom) or (gain and decades and -3 * np.log10(gain) < decades):
            return False  # by more than the softmax takes
    if pair == ("update-too-large", "no-update"):  # large beside a loss that can't fall
        return cause.evidence["state"] == "put back"
    if pair == ("exploding-gradient", "starved-pathway"):
        return _begins_starved(symptom, cause)
    if pair == ("starved-pathway", "exploding-gradient"):  # beside what grows along depth or time
        if cause.evidence["along"] != "depth" or _begins_starved(cause, symptom):
            return False
        here = symptom.site.startswith("(output)")
        return here or bool(_structures(symptom) & _structures(cause))
    if pair == ("vanishing-gradient", "starved-pathway"):  # measured inside the branch
        return cause.evidence["edge"].split(":")[0] == symptom.site
    if pair == ("detached", "cancelling-fork"):
        return cause.evidence["agreement"] <= UNDONE
    if pair == ("exploding-gradient", "peaked-softmax"):  # rows that open for a moment
        return symptom.evidence["along"] == "time" and symptom.evidence["diverged"] is False
    if pair == ("no-update", "detached"):
        return cause.evidence["exactly_zero"] and symptom.evidence["state"] == "zero"
    if pair == ("update-too-large", "exploding-gradient"):
        return not _update_came_first(cause, symptom)
    if pair == ("exploding-gradient", "update-too-large"):
        return _update_came_first(symptom, cause)
    if cause.rule == "update-too-large" and symptom.rule != "non-finite":
        return cause.first_step < symptom.first_step
    if symptom.rule == "non-finite" and of_itself(symptom.evidence):
        return False
    if pair == ("update-too-large", "peaked-softmax"):  # which grow while nothing comes of it
        return symptom.evidence["update_ratio_peak"] < REWRITES
    if pair == ("vanishing-gradient", "not-in-optimizer"):
        return cause.evidence["share_of_parameters"] >= 0.5
    if pair == ("no-update", "peaked-softmax"):  # what computes its logits gets no gradient
        gone = cause.evidence["gain"] is not None and cause.evidence["gain"] < NOTHING
        return gone and symptom.evidence["state"] in ("stopped", "zero")
    if pair == ("no-update", "non-finite"):
        return symptom.evidence["share_of_parameters"] == 1.0
    if pair == ("vanishing-gradient", "cancelling-fork"):
        # What is left at the fork has to be as little as what is lost at the steepest place.
        drop = symptom.evidence["largest_drop_decades"]
        return cause.evidence["agreement"] <= (0.0 if drop is None else 10 ** (-drop / 2))
    if pair == ("no-update", "cancelling-fork"):
        return cause.evidence["agreement"] <= UNDONE and _lies_before(symptom, cause, order)
    if pair == ("diffuse-softmax", "no-update"):  # it stays as it was made, like all the rest
        return symptom.evidence["share_of_steps"] == 1.0 and (
            cause.evidence["state"] in HELD_BACK and cause.evidence["share_of_parameters"] >= WHOLE
        )
    if pair == ("no-update", "starved-pathway") and cause.evidence["share"] < RESOLUTION:
        return True  # the branch's own parts have names of their own
    if pair == ("no-update", "vanishing-gradient") and _lies_before(symptom, cause, order):
        return True
    if pair not in _LOCAL:
        return True
    if cause.site.startswith(("(output)", "(outside)")) and cause.rule.endswith("softmax"):
        return True  # in the model's own forward, which may lead from anywhere to anywhere
    return bool(_structures(symptom) & _structures(cause))


def _lies_before(symptom: Finding, cause: Finding, order: Mapping[str, int]) -> bool:
    """Whether all parameters that stand still lie on the input's side of a ladder's last rung."""
    end = order.get(cause.view.sites[-1], -1)
    return all(order.get(module_of(name), end) < end for name in symptom.view.sites)


def _nears_the_undefined(explosion: Finding, loss: Finding) -> bool:
    """Whether a burst is the steep derivative of log or sqrt on the way to where it has none."""
    burst = explosion.evidence["along"] == "time" and explosion.evidence.get("bursts") == 1
    return burst and loss.evidence.get("operation") in UNDEFINED


def _begins_starved(explosion: Finding, starved: Finding) -> bool:
    """Whether growth along depth is that of a chain that begins in a starved branch."""
    last = explosion.evidence.get("largest_rise_from") or ""
    into = starved.evidence["edge"].split(":")[0]
    same = _parent(into) and _parent(into) == _parent(last)
    return bool(last) and bool(same or f"{into}.".startswith(f"{last}."))


def _is_chain(decay: Finding) -> bool:
    return decay.evidence.get("role") == CHAIN


def _parent(module: str) -> str:
    """The Sequential that a layer is in, "head" of "head.0"; "" for others."""
    path, _, index = module.rpartition(".")
    return path if index.isdigit() else ""


def _update_came_first(explosion: Finding, update: Finding) -> bool:
    """Whether large updates made the gradient explode, or the other way round.

    Where both are first seen at one step, a gradient that explodes along depth made the update;
    so did a burst over time, unless updates had been large before it.
    """
    if update.first_step != explosion.first_step:
        return update.first_step < explosion.first_step
    return explosion.evidence["along"] == "time" and update.evidence["update_ratio_start"] >= LARGE


def _structures(finding: Finding) -> set[str]:
    """The repeated structures a finding lies in, "layers." of "layers.3.softmax", or else the
    model's parts, "attention" of "attention.query:addmm"."""
    view = finding.view
    roles = [role_of(place)[0] for place in (finding.site, *view.sites, *view.edges)]
    return {role.split("*")[0] if "*" in role else re.split("[.:]", role)[0] for role in roles}
