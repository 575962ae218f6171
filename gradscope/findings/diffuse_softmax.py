"""diffuse-softmax: a softmax stays uniform, so it selects nothing and passes on 1/n.

Definition. Normalised entropy of at least `ENTROPY`, mean over rows, at nearly all recorded steps
of a run long enough to have left initialisation, and still so at its end. For uniform p the
Jacobian is (I − 11ᵀ/n)/n: what passes is at most 1/n of the gradient, whatever the logits.

Source: the Jacobian of softmax.

Severity. Attention is uniform at initialisation, so a start is no finding, nor is a run of fewer
than `STEPS` optimizer steps or `RECORDED` recorded ones. Warning where most softmaxes of the run
stay uniform, or the loss has not fallen; info for a few among others that have learned to select
(a layer may well average).

Silent about rows of two elements and under causal masks, whose early rows are short.
"""

from __future__ import annotations

import numpy as np

from gradscope.findings._finding import Finding, View
from gradscope.findings._groups import by_role, listed
from gradscope.findings._persistence import longest_spell
from gradscope.findings._rule import Rule, Skipped
from gradscope.findings._signals import Signals, quiet_median
from gradscope.findings._training import progress

ENTROPY = 0.995  # attention in healthy runs is under 0.985 by the end, even where it averages
MIN_N = 3
GAIN = 2.0  # times 1/n: above that the rows are not uniform where the gradient is
HELD = 0.8  # share of the recorded steps
MOST = 0.6  # share of the softmaxes that makes it the model's condition, not a layer's choice
STEPS = 100  # optimizer steps
RECORDED = 10


def find(signals: Signals) -> list[Finding] | Skipped:
    entropy = signals.matrix("softmax", "entropy")
    if len(entropy.steps) < RECORDED or entropy.steps[-1] - entropy.steps[0] < STEPS:
        return Skipped(f"softmax recorded for under {STEPS} steps, or at under {RECORDED}")
    sizes = {s: (0, *signals.site("softmax", s).shape)[-1] for s in entropy.sites}
    gain = signals.matrix("softmax", "gain").on(entropy.steps)
    spells = {}
    for j, site in enumerate(entropy.sites):
        values, n = entropy.values[:, j], sizes[site]
        if n and n < MIN_N:
            continue
        with np.errstate(invalid="ignore"):
            uniform = values >= ENTROPY
            if n and site in gain:
                uniform &= ~(gain.column(site) > GAIN / n)
        spell = longest_spell(entropy.steps, uniform, np.isfinite(values))
        if spell is not None and spell.ongoing and spell.share >= HELD:
            spells[site] = spell
    went = progress(signals)
    alone = len(spells) < MOST * len(entropy.sites) and went is not None and went.learned
    found = []
    for sites in by_role(spells).values():
        last = spells[sites[0]]
        steps, keys = entropy.steps[last.inside], [(s, "") for s in sites]
        level = float(quiet_median(entropy.on(steps).columns(keys)))
        passed = float(quiet_median(gain.on(steps).columns(keys)))
        n = sizes[sites[0]]
        share = f"{passed:.2g}" if np.isfinite(passed) else "at most 1/n"
        found.append(
            Finding(
                rule="diffuse-softmax",
                severity="info" if alone else "warning",
                site=sites[0],
                first_step=min(spells[s].first for s in sites),
                last_step=max(spells[s].last for s in sites),
                evidence={
                    "entropy": level,
                    "gain": passed,
                    "n": n or None,
                    "gain_times_n": passed * n if n else None,
                    "sites": len(sites),
                    "softmaxes": len(entropy.sites),
                    "share_of_steps": last.share,
                    "recorded_steps": last.known,
                    "loss_fall": None if went is None else went.fall,
                },
                message=(
                    f"The softmax at {listed(sites)} is still uniform at step {last.last} (entropy "
                    f"{level:.4f} of 1): it selects nothing and passes on {share} of the gradient."
                ),
                remedy=(
                    "Let the logits grow: check their scale (1/√d once, not twice), the "
                    "temperature and the initialisation of query and key weights, give them a "
                    "higher learning rate, or add a path around the softmax."
                ),
                view=View("softmax", "entropy", tuple(sites), thresholds={"uniform": ENTROPY}),
            )
        )
    return found


RULE = Rule("diffuse-softmax", (("softmax", "entropy"),), find)
