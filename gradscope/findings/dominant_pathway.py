"""dominant-pathway: of a named pathway and the rest, one carries the gradient all but alone.

Definition. A named pathway splits the gradient g at its source exactly into what passes through
its places and the rest. share = ‖part‖ / √(‖part‖² + ‖rest‖²), as starved-pathway has it for the
edges of a fork. One dominates where the other's share stays under that rule's `SHARE` for `HELD`
of the recorded steps, the last ones among them. A share of exactly 0 counts: the pathway was
named, so somebody expected something of it.

Source: what autograd adds up, by the multivariate chain rule; the split is exact
(`gradscope.through`).

Severity. Warning where the named pathway is the one that hardly counts: what lies on it does not
take part in shaping its source. Info where it is the one that counts, where the other's share is
rising, and where fewer than three steps were recorded.

Silent where both parts count, and at steps where no gradient arrives at all.
"""

from __future__ import annotations

import numpy as np

from gradscope.findings._finding import Finding, Severity, View
from gradscope.findings._forks import Fork
from gradscope.findings._persistence import longest_spell
from gradscope.findings._rule import Rule
from gradscope.findings._signals import Signals, quiet_median
from gradscope.findings.starved_pathway import HELD, SHARE, Starved

REST = "(rest) "  # begins the edge that holds what does not pass through a named pathway


def find(signals: Signals) -> list[Finding]:
    norms = signals.matrix("pathway", "grad_norm", edges=True)
    found = []
    for site, name in norms.keys:
        rest = REST + name
        if (site, rest) not in norms.keys:
            continue
        parts = norms.columns([(site, name), (site, rest)])
        fork = Fork(site, (name, rest), parts, np.full(len(parts), np.nan))
        shares = parts / fork.scale[:, None]
        known = np.isfinite(shares).all(axis=1)
        for e, edge in enumerate(fork.edges):
            holds = known & (np.where(known, shares[:, e], 1.0) < SHARE)
            spell = longest_spell(norms.steps, holds, known)
            if spell is not None and spell.share >= HELD and spell.ongoing:
                found.append(_finding(signals, name, Starved(fork, edge, spell, shares[:, e])))
    return found


def _finding(signals: Signals, name: str, starved: Starved) -> Finding:
    fork, spell = starved.fork, starved.spell
    share = float(quiet_median(starved.share[spell.inside]))
    size = float(quiet_median(fork.norms[spell.inside].max(axis=1)))
    hardly = starved.edge == name
    little = f"{share:.1e} of it" if share else "nothing at all"
    severity: Severity = "warning"
    if not hardly or starved.rising or not spell.persistent:
        severity = "info"
    return Finding(
        rule="dominant-pathway",
        severity=severity,
        site=fork.site,
        first_step=spell.first,
        last_step=spell.last,
        evidence={
            "pathway": name,
            "share": share if hardly else float(np.sqrt(1 - share**2)),
            "share_of_rest": float(np.sqrt(1 - share**2)) if hardly else share,
            "grad_norm": size,
            "rising": starved.rising,
            "share_of_steps": spell.share,
            "recorded_steps": spell.known,
        },
        message=(
            f"Of the gradient that reaches {fork.site}, {little} comes through the pathway "
            f"{name}: the others carry it alone."
            if hardly
            else f"The gradient reaches {fork.site} through the pathway {name} alone: {little} "
            "comes any other way."
        ),
        remedy=(
            "If the pathway is meant to matter, make it pass more: look for a softmax, a saturated "
            "activation or a small gate on it, scale it up, or normalise it where it joins the "
            "others; if not, remove it."
            if hardly
            else "Nothing, if that pathway is sound. If it crosses softmaxes or saturated "
            "activations, open another beside it: a residual or a concatenation around them."
        ),
        view=View(
            "pathway",
            "grad_norm",
            (fork.site,),
            edges=fork.edges,
            thresholds={"negligible share": SHARE},
            relative_to=fork.site,
        ),
    )


RULE = Rule("dominant-pathway", (("pathway", "grad_norm"),), find)
