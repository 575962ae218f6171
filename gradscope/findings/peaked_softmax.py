"""peaked-softmax: a softmax is so certain that hardly any gradient passes through it.

Definition. A recorded step counts where, over the rows of the softmax, normalised entropy is
under `ENTROPY`, mean max_prob above `MAX_PROB`, and what was measured of gain and jacobian_norm
under `PASSES`; from the first step on, before anything can have been learned, `FIRST_ENTROPY`,
`FIRST_MAX_PROB` and the gain alone are enough, or a gain under `TIED_GAIN` at an entropy under
`TIED_ENTROPY`: several entries may be equal and first. The Jacobian diag(p) − ppᵀ goes to 0 as p
becomes one-hot, so the logits, and what computes them, stop learning. A softmax over one element is
the extreme: constant 1.

Source: the Jacobian of softmax; Zhai et al., "Stabilizing Transformer Training by
Preventing Attention Entropy Collapse", ICML 2023 (collapse goes with instability).

Severity. Attention that has learned where to look is peaked, too, and is no fault. What matters
is when: peaked from the start, before anything can have been learned, is a warning (critical if
the gain is under `NOTHING`); a collapse later on is a warning if the loss has not fallen, or if
most softmaxes (`MANY`) collapsed and it did not fall soon (by `LEARNED` of its whole fall): what
has not been learned can't be certain. Info without a loss to tell, and of fewer than three
recorded steps.

Silent about a softmax that became peaked while the loss fell.
"""

from __future__ import annotations

import numpy as np

from gradscope.findings._finding import Finding, Severity, View
from gradscope.findings._groups import by_role, listed
from gradscope.findings._persistence import Spell, longest_spell
from gradscope.findings._rule import Rule
from gradscope.findings._signals import Matrix, Signals, quiet_median
from gradscope.findings._training import is_worse, level, progress

ENTROPY = 0.05  # healthy attention at init is above 0.6, causal masks included
MAX_PROB = 0.95  # the mean: one certain head among several does not reach it
FIRST_ENTROPY, FIRST_MAX_PROB = 0.2, 0.7  # no usual initialisation comes near
TIED_ENTROPY, TIED_GAIN = 0.35, 0.01  # uniform rows pass as little, but of a hundred entries
PASSES = 0.1  # gain and Jacobian; uniform rows of 16 have 0.06 and 0.24
NOTHING = 1e-4  # gain at which the logits learn 10⁴ times more slowly than what they weigh
HELD = 0.2  # share of the recorded steps
MOST = 0.5  # share of them for one that is over
BEFORE = 5  # recorded steps before a collapse, whose loss is compared with the end's
WORSE = 1.1  # factor between the two that noise does not make
LEARNED = 0.55  # share of the loss's whole fall
SOON = 0.2  # share of the run in which the loss follows attention that was right to be certain
MANY = 0.6  # share of the softmaxes


def find(signals: Signals) -> list[Finding]:
    entropy = signals.matrix("softmax", "entropy")
    peaked, known = _peaked(signals, entropy, ENTROPY, MAX_PROB, ("gain", "jacobian_norm"))
    at_first, _ = _peaked(signals, entropy, FIRST_ENTROPY, FIRST_MAX_PROB, ("gain",))
    at_first |= _tied(signals, entropy)
    spells: dict[str, Spell] = {}
    for j, site in enumerate(entropy.sites):
        spell = longest_spell(entropy.steps, at_first[:, j], known[:, j])
        if spell is None or not spell.at_once:
            spell = longest_spell(entropy.steps, peaked[:, j], known[:, j])
        if spell is not None and spell.share >= (HELD if spell.ongoing else MOST):
            spells[site] = spell
    found = []
    # Collapsed and born peaked are different causes, also within one role.
    for early in (True, False):
        of_kind = [s for s in spells if spells[s].at_once == early]
        for sites in by_role(of_kind).values():
            finding = _finding(signals, entropy, sites, spells)
            found += [] if finding is None else [finding]
    return found


def _tied(signals: Signals, entropy: Matrix) -> np.ndarray:
    """bool (S, C): next to nothing passes, though several entries share the first place."""
    gain = signals.matrix("softmax", "gain").on(entropy.steps).columns(entropy.keys)
    with np.errstate(invalid="ignore"):
        return (entropy.values < TIED_ENTROPY) & (gain < TIED_GAIN)


def _peaked(
    signals: Signals, entropy: Matrix, low: float, high: float, small: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """bool (S, C): peaked, and whether that is known."""
    steps, keys = entropy.steps, entropy.keys
    one = np.array([signals.site("softmax", s).shape[-1:] == (1,) for s in entropy.sites], bool)
    certain = signals.matrix("softmax", "max_prob").on(steps).columns(keys)
    with np.errstate(invalid="ignore"):
        peaked = (entropy.values < low) | one
        peaked &= ~(certain < high)
        for metric in small:
            peaked &= ~(signals.matrix("softmax", metric).on(steps).columns(keys) > PASSES)
    return peaked, np.isfinite(entropy.values) | (one & np.isfinite(certain))


def _finding(
    signals: Signals, entropy: Matrix, sites: list[str], spells: dict[str, Spell]
) -> Finding | None:
    inside = np.any([spells[s].inside for s in sites], axis=0)
    steps, keys = entropy.steps[inside], [(s, "") for s in sites]
    middle = {
        m: float(quiet_median(signals.matrix("softmax", m).on(steps).columns(keys)))
        for m in ("entropy", "max_prob", "jacobian_norm", "gain")
    }
    n = signals.site("softmax", sites[0]).shape[-1:]
    early = spells[sites[0]].at_once
    first = min(spells[s].first for s in sites)
    many = len(spells) >= MANY * len(entropy.sites)
    severity = _severity(signals, [spells[s] for s in sites], middle["gain"], many)
    if severity is None:
        return None
    over_one = n == (1,)
    if over_one:
        what = f"The softmax at {listed(sites)} runs over one element: it is constant 1"
    else:
        since = "from the start" if early else f"since step {first}"
        alike = middle["max_prob"] < FIRST_MAX_PROB
        looks = "rests on a few entries, equal among themselves," if alike else "is nearly one-hot"
        what = (
            f"The softmax at {listed(sites)} {looks} {since} (entropy {middle['entropy']:.2g} of 1)"
        )
    passed = f"{middle['gain']:.2g} of" if np.isfinite(middle["gain"]) else "little of"
    return Finding(
        rule="peaked-softmax",
        severity=severity,
        site=sites[0],
        first_step=first,
        last_step=max(spells[s].last for s in sites),
        evidence={
            **middle,
            "n": n[0] if n else None,
            "sites": len(sites),
            "from_start": early,
            "share_of_steps": float(np.median([spells[s].share for s in sites])),
            "recorded_steps": spells[sites[0]].known,
        },
        message=f"{what} and passes on {passed} the gradient, so its logits hardly learn.",
        remedy=_remedy(over_one, early),
        view=View("softmax", "entropy", tuple(sites), thresholds={"peaked": _limit(middle, early)}),
    )


def _limit(middle: dict[str, float], early: bool) -> float:
    """The limit on entropy that was met."""
    if not early or middle["entropy"] < ENTROPY:
        return ENTROPY
    return TIED_ENTROPY if middle["max_prob"] < FIRST_MAX_PROB else FIRST_ENTROPY


def _severity(signals: Signals, spells: list[Spell], gain: float, many: bool) -> Severity | None:
    """None: it learned where to look."""
    if not any(s.persistent for s in spells):
        return "info"
    if spells[0].at_once:
        return "critical" if gain < NOTHING else "warning"
    went = progress(signals)
    if went is None:
        return "info"
    first = min(s.first for s in spells)
    steps = signals.steps
    before = level(signals, int(steps[max(0, int(np.searchsorted(steps, first)) - BEFORE)]), first)
    at = int(np.searchsorted(steps, first))  # entropy and loss may fall in the same interval
    soon = min(len(steps) - 1, at + max(1, round(SOON * len(steps))))
    there = level(signals, int(steps[max(0, soon - 2)]), int(steps[soon]))
    too_early = many and there > went.after(LEARNED)
    worse = is_worse(went.end, before, WORSE)
    return None if went.learned and not worse and not too_early else "warning"


def _remedy(over_one: bool, early: bool) -> str:
    if over_one:
        return "Check the softmax's dim argument against the shape of the logits."
    if early:
        return (
            "Scale the logits down: divide by √d, initialise query and key weights smaller, raise "
            "the temperature, or normalise queries and keys."
        )
    return (
        "Lower the learning rate or lengthen its warm-up, normalise queries and keys (QK-norm), "
        "or penalise low entropy."
    )


RULE = Rule("peaked-softmax", (("softmax", "entropy"),), find)
