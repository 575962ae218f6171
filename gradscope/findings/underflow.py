"""underflow: a float16 gradient that has become too small for its format.

Definition. Of the elements of a module output's gradient in float16, those that are not 0 but below
6.1e-5 have lost digits (subnormal_fraction), those below 3e-8 are 0 (zero_fraction). A site is bad
where `SUBNORMAL` of its nonzero elements are subnormal, or `ZERO` of all are 0. The run is, where
that many of the sites measured are bad for `HELD` of the recorded steps: `LOST` of them 0, or
`DAMAGED` of them one or the other.

Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.

Severity. Critical where the gradient is 0 at most bad sites, warning otherwise; info of a spell
that is over, and where few of the elements (`FEW`) are 0 and the loss is scaled or fell: digits are
lost then, not the gradient.

Silent about other formats: bfloat16 has float32's range.
"""

from __future__ import annotations

import numpy as np

from gradscope.findings._finding import Finding, Severity, View
from gradscope.findings._groups import listed
from gradscope.findings._persistence import Spell, longest_spell
from gradscope.findings._rule import Rule, Skipped
from gradscope.findings._signals import Signals, quiet_median
from gradscope.findings._training import progress

SUBNORMAL = 0.5  # a gradient of a healthy loss scale has under 0.1
ZERO = 0.98  # what a ReLU shuts is 0 too, but not this much
LOST = 0.25  # share of the sites measured in float16
DAMAGED = 0.5  # a scale that starts small and grows leaves the first layers subnormal for a while
FEW = 0.1  # zeros behind a loss scale that leave enough to learn from
HELD = 0.2


def find(signals: Signals) -> list[Finding] | Skipped:
    zero = signals.matrix("module", "zero_fraction")
    tiny = signals.matrix("module", "subnormal_fraction").on(zero.steps)
    if not zero.keys:
        return Skipped("no gradient in float16")
    with np.errstate(invalid="ignore"):
        none = zero.values >= ZERO
        bad = none | (tiny.columns(zero.keys) >= SUBNORMAL)
    known = zero.present.any(axis=1)
    counted = np.maximum(zero.present.sum(axis=1), 1)
    holds: np.ndarray = (none.sum(axis=1) >= LOST * counted) | (
        bad.sum(axis=1) >= DAMAGED * counted
    )
    spell = longest_spell(zero.steps, holds, np.asarray(known))
    if spell is None or spell.share < HELD:
        return []
    often = bad[spell.inside].mean(axis=0) >= 0.5
    sites = [site for site, yes in zip(zero.sites, often, strict=True) if yes]
    if not sites:
        return []
    gone = float(none[spell.inside][:, often].mean())
    scaled = "loss_scale" in signals.matrix("scalar", "value")
    went = progress(signals)
    learned = went is not None and went.learned
    zeros = float(quiet_median(zero.values[spell.inside][:, often]))
    return [
        Finding(
            rule="underflow",
            severity=_severity(spell, gone, zeros < FEW and (scaled or learned)),
            site=sites[0],
            first_step=spell.first,
            last_step=spell.last,
            evidence={
                "sites": len(sites),
                "sites_in_float16": len(zero.sites),
                "zero_fraction": zeros,
                "subnormal_fraction": float(
                    quiet_median(tiny.columns(zero.keys)[spell.inside][:, often])
                ),
                "share_of_steps": spell.share,
                "loss_scaled": scaled,
            },
            message=(
                f"The float16 gradient of {listed(sites)} underflows: "
                + (
                    "all of it is 0."
                    if gone >= 0.5
                    else "most of what is left of it is below 6.1e-5, where digits are lost."
                )
            ),
            remedy=(
                "Let the scale grow (GradScaler's growth_interval, init_scale), or use bfloat16."
                if scaled
                else "Multiply the loss by a scale (torch.amp.GradScaler), or use bfloat16."
            ),
            view=(
                View("module", "zero_fraction", tuple(sites), thresholds={"gone": ZERO})
                if gone >= 0.5
                else View(
                    "module", "subnormal_fraction", tuple(sites), thresholds={"most": SUBNORMAL}
                )
            ),
        )
    ]


def _severity(spell: Spell, gone: float, harmless: bool) -> Severity:
    if not spell.ongoing or harmless:
        return "info"
    return "critical" if gone >= 0.5 else "warning"


RULE = Rule("underflow", (("module", "zero_fraction"),), find)
