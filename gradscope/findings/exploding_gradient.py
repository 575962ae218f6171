"""exploding-gradient: the gradient grows along depth toward the input, or bursts at some step.

Definition. Along depth: `decades` as for vanishing-gradient, with the opposite sign, at most
-`DECADES`, or -`STEEP_DECADES` where every layer multiplies it by 10^`STEEP` (`LOUD_DECADES` from
the start of a run whose loss began `FAR_OFF` its later level). Over time: the norm
of the whole gradient at a recorded step against the larger of its first value and its median over
the `BEFORE` recorded steps before it; a burst is a factor of `BURST`, or of `LEAD_IN` where
the gradient is no longer finite within the next `BEFORE` recorded steps. Both are relative: a
loss that is summed over the batch makes every gradient large, and that is no finding.

Source: Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks",
ICML 2013 (growth along depth, bursts in time, clipping as the remedy).

Severity. Critical if the gradient or the loss ends non-finite, or the run ends no better than it
began after a burst. Info for a burst the loss recovered from, for growth along depth that was
over within half of the run (unless the loss began `FAR_OFF` its later level: the signal had grown
as well) or seen at fewer than three recorded steps. Warning otherwise.

Silent about an infinite gradient that the run survived (non-finite tells of it), while the gradient
rises as a plateau ends, and where growth stays within what residual and
normalised nets show.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from gradscope.findings._decay import Decay, decays, outermost, steepest, update_ratio_ends
from gradscope.findings._finding import Finding, Severity, View
from gradscope.findings._groups import named
from gradscope.findings._persistence import Spell, longest_spell
from gradscope.findings._rule import Rule, Skipped
from gradscope.findings._signals import Matrix, Signals, quiet_median
from gradscope.findings._training import Progress, is_worse, level, progress

DECADES = 3.0  # residual nets without normalisation double the variance per block: 2.4 in 16
STEEP_DECADES, STEEP = 2.0, 0.22  # a factor 1.66 at every layer; healthy nets stay under 1.6
SHARED_DECADES = 2.0  # and log₁₀ T for T calls: an early time step sums what all later ones send
LOUD_DECADES, LOUD_SHARED = 1.3, 2.0  # healthy nets have 1.2 at most when they start, calls 1.2
HELD = 0.2  # share of the run that makes a spell at its end matter
MOST = 0.5  # share of the run that matters though it is over
BRIEF = 0.1  # share of the run below which a start that passes is not worth a word
FAR_OFF = 20.0  # factor between the first loss and the last: what grows backward grew forward
BURST = 100.0  # healthy batches and the end of a plateau give up to 35
LEAD_IN = 10.0  # what follows says that it was no ordinary batch
BEFORE = 10  # recorded steps
WORSE = 1.5  # factor between the loss before a burst and after it


def find(signals: Signals) -> list[Finding] | Skipped:
    if not (signals.has("module", "grad_norm") or signals.has("parameter", "grad_norm")):
        return Skipped("no gradient norms")
    return _along_depth(signals) + _over_time(signals)


# -- along depth ---------------------------------------------------------------------------


def _along_depth(signals: Signals) -> list[Finding]:
    found = []
    loud = _started_far_off(progress(signals))
    for decay in decays(signals):
        spell = _grown(decay, _limit(decay))
        if spell is None and loud:
            spell = _grown(decay, _limit(decay, loud=True))
            spell = spell if spell is not None and spell.at_once else None
        if spell is not None:
            found.append((decay, spell))
    return [_growth(signals, decay, spell) for decay, spell in outermost(found)]


def _limit(decay: Decay, loud: bool = False) -> float:
    if decay.shared:
        return LOUD_SHARED if loud else SHARED_DECADES + float(np.log10(decay.rungs))
    if decay.block and decay.rungs >= 4:
        least = LOUD_DECADES if loud else STEEP_DECADES
        return max(least, min(DECADES, STEEP * (decay.rungs - 1)))
    return DECADES


def _grown(decay: Decay, limit: float) -> Spell | None:
    known = np.isfinite(decay.decades)
    spell = longest_spell(decay.steps, np.where(known, decay.decades, 0.0) <= -limit, known)
    return spell if spell is not None and spell.share >= BRIEF else None


def _started_far_off(went: Progress | None) -> bool:
    return went is not None and went.start >= FAR_OFF * went.end > 0


def _growth(signals: Signals, decay: Decay, spell: Spell) -> Finding:
    steps = decay.steps[spell.inside]
    decades = -float(np.median(decay.decades[spell.inside]))
    ladder = decay.typical(spell.inside)
    before, behind, rise = steepest(signals, decay, ladder, steps, -1)
    ends = update_ratio_ends(signals, decay, steps)
    broken = _broken(signals)
    limit = _limit(decay) if decades >= _limit(decay) else _limit(decay, loud=True)
    return Finding(
        rule="exploding-gradient",
        severity=_growth_severity(decay, spell, broken, progress(signals)),
        site=ladder.sites[0],
        first_step=spell.first,
        last_step=spell.last,
        evidence={
            "along": "depth",
            "ratio_first_to_last": 10**decades,
            "decades": decades,
            "decades_per_layer": decades / (len(ladder.sites) - 1),
            "layers": len(ladder.sites),
            "role": ladder.role,
            "largest_rise_from": before,
            "largest_rise_to": behind,
            "largest_rise_decades": -rise,
            "share_of_steps": spell.share,
            "recorded_steps": spell.known,
            "ongoing": spell.ongoing,
            "update_ratio_first": None if ends is None else ends[0],
            "update_ratio_last": None if ends is None else ends[1],
            "diverged": broken,
        },
        message=(
            f"The gradient at {named(ladder.sites[0])} is {10**decades:.1e} times the gradient at "
            f"{named(ladder.sites[-1])}: every layer multiplies it by "
            f"{10 ** (decades / (len(ladder.sites) - 1)):.2g} on its way to the input"
            + ("." if spell.ongoing else f"; this was over after step {spell.last}.")
        ),
        remedy=(
            "Initialise the weights for the activation (He: std √(2 / fan_in) for ReLU, Xavier for "
            "tanh), or add normalisation between the layers; until then clip the gradient's norm."
            if not ladder.shared
            else "Clip the gradient's norm, or start the recurrent weight as an orthogonal matrix."
        ),
        view=View(
            decay.kind,
            "grad_rms",
            ladder.sites,
            thresholds={f"{limit:.2g} decades above the last layer": 10**limit},
            relative_to=ladder.sites[-1],
        ),
    )


def _growth_severity(decay: Decay, spell: Spell, broken: bool, went: Progress | None) -> Severity:
    if broken:
        return "critical"
    if spell.at_once and spell.persistent and _started_far_off(went):
        return "warning"
    if not spell.persistent or spell.share < (HELD if spell.ongoing else MOST):
        return "info"
    return "warning"


# -- over time -----------------------------------------------------------------------------


def _over_time(signals: Signals) -> list[Finding]:
    kind = "parameter" if signals.has("parameter", "grad_norm") else "module"
    norms = signals.matrix(kind, "grad_norm")
    total = _total(norms)
    if len(total) < 2 or not np.isfinite(total).any():
        return []
    usual = _usual(total)
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = np.where(usual > 0, total / usual, np.nan)
    lost = ~np.isfinite(total)
    if not lost[-1]:  # a step that was lost, and the run is not: non-finite tells of it
        factor[lost] = np.nan
    # Whether the gradient is lost within the next BEFORE recorded steps.
    ahead = pd.Series(lost[::-1]).rolling(BEFORE, min_periods=1).max().to_numpy()[::-1] > 0
    bursts = np.flatnonzero((factor >= BURST) | ((factor >= LEAD_IN) & ahead & lost[-1]))
    if not len(bursts):
        return []
    first, worst = int(bursts[0]), int(bursts[np.argmax(factor[bursts])])
    before = level(signals, int(norms.steps[max(0, first - BEFORE)]), int(norms.steps[first]) - 1)
    went = progress(signals)
    after = went.end if went is not None else float("nan")
    broken = _broken(signals)
    severity: Severity = "warning"
    if broken:
        severity = "critical"
    elif went is not None:
        if np.isfinite(before) and np.isfinite(after) and not is_worse(after, before, WORSE):
            if not went.stuck:
                severity = "info"
        elif went.stuck:
            severity = "critical"
    own = quiet_median(norms.values[:first], axis=0)  # what is usual for each site
    with np.errstate(invalid="ignore", divide="ignore"):
        rises = norms.values[worst] / own
    at = int(np.nanargmax(rises)) if np.isfinite(rises).any() else 0
    site = norms.sites[at]
    return [
        Finding(
            rule="exploding-gradient",
            severity=severity,
            site=site,
            first_step=int(norms.steps[first]),
            last_step=int(norms.steps[bursts[-1]]),
            evidence={
                "along": "time",
                "factor": factor[worst],
                "grad_norm": total[worst],
                "grad_norm_usual": usual[worst],
                "worst_step": int(norms.steps[worst]),
                "bursts": len(bursts),
                "recorded_steps": len(total),
                "loss_before": before,
                "loss_at_end": after,
                "diverged": broken,
            },
            message=(
                "The gradient's norm "
                + (
                    f"burst to {factor[worst]:.3g} times its usual size"
                    if np.isfinite(factor[worst])
                    else "overflowed"
                )
                + f" at step {norms.steps[worst]}"
                + (f", most of all at {named(site)}" if site else "")
                + ("; the run did not survive it." if broken else _aftermath(before, after))
            ),
            remedy=(
                "Clip the gradient's norm (torch.nn.utils.clip_grad_norm_) a little above its "
                f"usual {usual[worst]:.2g}, lower the learning rate or lengthen its warm-up, and "
                "look at the batch of that step."
            ),
            view=View(kind, "grad_norm", (site,), thresholds={"usual": float(own[at])}),
        )
    ]


def _total(norms: Matrix) -> np.ndarray:
    """Norm of the whole gradient (S,); not finite where any part is not."""
    squares = np.where(norms.present, norms.values, 0.0) ** 2
    return np.sqrt(squares.sum(axis=1))


def _usual(total: np.ndarray) -> np.ndarray:
    """What the norm was: the first, or the median of the last `BEFORE` before, if larger (S,)."""
    finite = np.where(np.isfinite(total), total, np.nan)
    past = pd.Series(finite).rolling(BEFORE, min_periods=1).median().shift(1).to_numpy()
    first = finite[np.isfinite(finite)][0]
    usual = np.fmax(past, first)
    usual[0] = np.nan
    return usual


def _broken(signals: Signals) -> bool:
    """The loss or the gradient is not finite at the end."""
    went = progress(signals)
    if went is not None and went.diverged:
        return True
    for kind in ("parameter", "module"):
        norms = signals.matrix(kind, "grad_norm")
        if len(norms.steps):
            return bool((norms.present[-1] & ~np.isfinite(norms.values[-1])).any())
    return False


def _aftermath(before: float, after: float) -> str:
    if np.isfinite(before) and np.isfinite(after):
        return f"; the loss went from {before:.3g} before it to {after:.3g} at the end."
    return "."


RULE = Rule("exploding-gradient", (), find)
