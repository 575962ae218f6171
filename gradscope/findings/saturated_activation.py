"""saturated-activation: a tanh or sigmoid that is flat nearly everywhere.

Definition. An element is saturated where the slope is below 2 % of the function's largest (|tanh| >
0.99; a sigmoid beyond ±5.3; a clipped linear unit outside its bounds). A site counts where the
share of saturated elements stays at `SATURATED` or more (`ALL` for a function with one flat side,
where a unit is meant to rest) for `HELD` of the run and still does at its end.

Source: Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural
networks", AISTATS 2010, section 3; the limit is derived from the slope, not from the input.

Severity. Critical where it is `ALL` elements, else a warning. Info where it became so, after the
first tenth of the run, while the loss fell, and of fewer than three measurements.

Silent about ReLU-like functions (see dead-units), and about an activation that makes the model's
answer, unless it was saturated before it can have learned anything, or the loss hardly fell: a
classifier that is certain has a saturated sigmoid at its end.
"""

from __future__ import annotations

from gradscope.findings._activations import judged, kind, spells
from gradscope.findings._finding import SEVERITIES, Finding, Severity, View
from gradscope.findings._groups import by_role, listed
from gradscope.findings._persistence import Spell
from gradscope.findings._rule import Rule, Skipped
from gradscope.findings._signals import Signals, quiet_median
from gradscope.findings._training import progress

SATURATED = 0.6  # share of elements; gates of trained recurrent cells reach 0.4
ALL = 0.95
ONE_SIDED = frozenset({"elu"})
HELD = 0.3  # share of the measurements


def find(signals: Signals) -> list[Finding] | Skipped:
    matrix = judged(signals, "saturated_fraction", off=False)
    if not matrix.keys:
        return Skipped("no tanh, sigmoid or the like")
    flat = spells(matrix, SATURATED, HELD)
    half = spells(matrix, ALL, HELD)
    found = {
        site: spell
        for site in matrix.sites
        if (spell := (half if kind(signals, site) in ONE_SIDED else flat).get(site)) is not None
        and not _is_meant(signals, site, spell)
    }
    findings = []
    for sites in by_role(s for s in matrix.sites if s in found).values():
        share = {s: float(quiet_median(matrix.column(s)[found[s].inside])) for s in sites}
        worst = max(sites, key=lambda s: share[s])
        findings.append(
            Finding(
                rule="saturated-activation",
                severity=max(
                    (_severity(signals, found[s], share[s]) for s in sites), key=SEVERITIES.index
                ),
                site=sites[0],
                first_step=min(found[s].first for s in sites),
                last_step=max(found[s].last for s in sites),
                evidence={
                    "saturated_fraction": share[worst],
                    "worst": worst,
                    "layers": len(sites),
                    "from_start": found[worst].at_once,
                    "share_of_steps": found[worst].share,
                },
                message=(
                    f"{'Up to ' * (len(sites) > 1)}{share[worst]:.0%} of what {listed(sites)} "
                    f"{'compute' if len(sites) > 1 else 'computes'} is saturated: its slope, and "
                    "the gradient behind it, is nearly 0."
                ),
                remedy=(
                    "Make what goes in smaller: scale the data to unit variance, initialise with "
                    "Xavier (gain 5/3 for tanh), normalise before the activation, lower the "
                    "learning rate; or use an activation without a flat side."
                ),
                view=View(
                    "activation",
                    "saturated_fraction",
                    tuple(sites),
                    thresholds={"saturated": SATURATED},
                ),
            )
        )
    return findings


def _is_meant(signals: Signals, site: str, spell: Spell) -> bool:
    """The model's answer, and learned: no parameters lie between it and the output."""
    depth = signals.site("activation", site).depth
    behind = [s.depth for s in signals.run.sites_of("module") if s.parameters and s.depth >= 0]
    went = progress(signals)
    certain = went is None or went.learned  # of something
    return not spell.at_once and certain and not any(d < depth for d in behind)


def _severity(signals: Signals, spell: Spell, share: float) -> Severity:
    went = progress(signals)
    if went is not None and went.learned and not spell.from_start:
        return "info"
    if share >= ALL:
        return "critical"
    return "warning" if spell.persistent else "info"


RULE = Rule("saturated-activation", (("activation", "saturated_fraction"),), find)
