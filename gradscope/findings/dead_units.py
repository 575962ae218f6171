"""dead-units: units of a ReLU-like activation that are off for every sample.

Definition. A unit is dead where its activation was flat at 0 for all samples and positions of the
last 8 measurements (metric dead_fraction). A layer counts where the share of its dead units
stays at `DEAD` or more for `HELD` of the run, and still does at its end; or at `HALF`, where the
other units are hardly ever on (`SILENT` of all elements off).

Source: Lu et al., "Dying ReLU and Initialization", 2020; AutoTrainer (Zhang et al., ICSE 2021)
calls it dying ReLU where 70 % of the gradients are 0, which a healthy ReLU comes close to, half
of whose elements are off at any time: what counts is whether *a unit* is ever on.

Severity. Critical where no unit is left to speak of (`ALL`): nothing passes. Warning otherwise;
info where fewer than three measurements were made, unless one batch of many samples shows it.

Silent about leaky activations, and about the first measurements of small batches, in which a
unit may be off by chance.
"""

from __future__ import annotations

import numpy as np

from gradscope.findings._activations import FILLED, judged, spells
from gradscope.findings._finding import Finding, Severity, View
from gradscope.findings._groups import by_role, listed
from gradscope.findings._rule import Rule, Skipped
from gradscope.findings._signals import Signals, quiet_median

DEAD = 0.75  # share of units; a layer wider than its task needs gets to 0.67
HALF, SILENT = 0.5, 0.98  # share of the units, where hardly an element of the others is on either
MOST = 0.5  # share of the measurements
ALL = 0.98
HELD = 0.2  # share of the measurements
SAMPLES = 32  # rows of one batch from which a unit that is off in all of them says something


def find(signals: Signals) -> list[Finding] | Skipped:
    matrix = judged(signals, "dead_fraction", off=True)
    if not matrix.keys:
        return Skipped("no activation that is 0 on one side")
    found = spells(matrix, DEAD, HELD, skip=FILLED)
    silent = spells(judged(signals, "saturated_fraction", off=True), SILENT, MOST, skip=FILLED)
    sparse = spells(matrix, HALF, HELD, skip=FILLED)
    found |= {s: sparse[s] for s in matrix.sites if s in silent and s in sparse and s not in found}
    findings = []
    for sites in by_role(s for s in matrix.sites if s in found).values():
        share = {s: float(quiet_median(matrix.column(s)[found[s].inside])) for s in sites}
        worst = max(sites, key=lambda s: share[s])
        measured = int(found[worst].inside.sum())
        limit = HALF if any(s in sparse and share[s] < DEAD for s in sites) else DEAD
        findings.append(
            Finding(
                rule="dead-units",
                severity=_severity(signals, worst, share[worst], measured),
                site=sites[0],
                first_step=min(found[s].first for s in sites),
                last_step=max(found[s].last for s in sites),
                evidence={
                    "dead_fraction": share[worst],
                    "worst": worst,
                    "layers": len(sites),
                    "measurements": measured,
                    "share_of_steps": found[worst].share,
                },
                message=(
                    f"{'Up to ' * (len(sites) > 1)}{share[worst]:.0%} of the units of "
                    f"{listed(sites)} are off for every sample: neither signal nor gradient passes."
                ),
                remedy=(
                    "Lower the learning rate or warm it up (one large update can push a bias below "
                    "all inputs), start biases at 0, normalise before the activation, or use "
                    "LeakyReLU or GELU."
                ),
                view=View("activation", "dead_fraction", tuple(sites), thresholds={"dead": limit}),
            )
        )
    return findings


def _severity(signals: Signals, site: str, share: float, measured: int) -> Severity:
    shape = signals.site("activation", site).shape
    units = 1 if len(shape) == 4 else -1  # channels of an image come before its positions
    rows = int(np.prod(shape)) // max(shape[units], 1) if shape else 0
    if measured < 3 and rows < SAMPLES:
        return "info"
    return "critical" if share >= ALL else "warning"


RULE = Rule("dead-units", (("activation", "dead_fraction"),), find)
