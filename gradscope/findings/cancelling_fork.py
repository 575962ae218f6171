"""cancelling-fork: the paths out of a tensor send back gradients that undo each other.

Definition. At a fork with edges e, agreement = ‖Σ g_e‖ / √Σ‖g_e‖². Terms that have nothing to do
with each other give 1, equal ones √E, opposed ones 0, whatever the number of edges: unlike
cancellation = 1 − ‖Σ g_e‖ / Σ‖g_e‖, which is 0.9 for a hundred independent terms. The rule fires
where agreement stays under `AGREEMENT` for nearly the whole run, its start included.

Source: the metric cancellation against its value for independent terms; conflict of gradients as
a fault: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020.

Severity. Warning: what lies before the fork learns from what two larger forces leave over. Info
where fewer than three steps were recorded.

Silent where it begins later in the run (at an optimum the terms must cancel), about parameters,
forks that normalise (see `_forks`), tensors that a gate mixes with another, and single calls among
many of one operation (`OFTEN`).
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from gradscope.findings._finding import Finding, View
from gradscope.findings._forks import Fork, forks
from gradscope.findings._groups import by_role, listed
from gradscope.findings._persistence import Spell, longest_spell
from gradscope.findings._rule import Rule, Skipped
from gradscope.findings._signals import Signals, quiet_median

AGREEMENT = 0.1  # a hundredth of the terms' energy is left; healthy forks are above 0.3
GONE = 1e-4  # where a reduction takes something back, but not all
HELD = 0.8  # share of the recorded steps
OFTEN = 0.1  # share of the calls of one operation: the first of a recurrence has nothing to add to
BEYOND = 1.001  # rounding


def find(signals: Signals) -> list[Finding] | Skipped:
    steps, judged = forks(signals)
    if not judged:
        return Skipped("no fork of an activation but for normalisation")
    cancelling: dict[str, tuple[Fork, Spell]] = {}
    for fork in judged:
        if _interpolates(fork):
            continue
        agreement = fork.total / fork.scale
        known = np.isfinite(agreement)
        least = GONE if fork.normalises else AGREEMENT
        spell = longest_spell(steps, np.where(known, agreement, 1.0) < least, known)
        if spell is not None and spell.share >= HELD and spell.from_start and spell.ongoing:
            cancelling[fork.site] = (fork, spell)
    calls = Counter(_base(fork.site) for fork in judged)
    among = Counter(map(_base, cancelling))
    lasting = [s for s in cancelling if among[_base(s)] >= OFTEN * calls[_base(s)]]
    return [
        _finding(signals, [cancelling[site] for site in sites])
        for sites in by_role(lasting).values()
    ]


def _base(site: str) -> str:
    """A site without the number of its call."""
    return re.sub(r"#\d+", "", site)


def _interpolates(fork: Fork) -> bool:
    """Whether the tensor is y in y + z (x − y), 0 ≤ z ≤ 1, as in a gated recurrent cell: what the
    difference takes back is what the gate gives to x."""
    if len(fork.edges) != 2:
        return False
    read = [edge.rpartition(":") for edge in fork.edges]
    operations = [operation.partition("#")[0] for _, _, operation in read]
    if read[0][0] != read[1][0] or sorted(operations) not in (["add", "sub"], ["add", "rsub"]):
        return False
    kept, taken = fork.norms[:, :: 1 if operations[0] == "add" else -1].T
    known = np.isfinite(kept) & np.isfinite(taken)
    return bool((taken[known] <= BEYOND * kept[known]).all())


def _finding(signals: Signals, group: list[tuple[Fork, Spell]]) -> Finding:
    fork, spell = group[0]
    inside = spell.inside
    projections = signals.matrix("fork", "projection", edges=True)
    steps = signals.matrix("fork", "grad_norm", edges=True).steps[inside]
    shares = quiet_median((fork.norms / fork.scale[:, None])[inside], axis=0)
    strongest = np.argsort(-shares)[:2]
    pair = [fork.edges[e] for e in strongest]
    sites = [f.site for f, _ in group]
    along = quiet_median(
        projections.on(steps).columns([(fork.site, e) for e in fork.edges]), axis=0
    )
    return Finding(
        rule="cancelling-fork",
        severity="warning" if spell.persistent else "info",
        site=fork.site,
        first_step=min(s.first for _, s in group),
        last_step=max(s.last for _, s in group),
        evidence={
            "agreement": float(np.median((fork.total / fork.scale)[inside])),
            "cancellation": float(
                np.median(1 - fork.total[inside] / np.nansum(fork.norms[inside], axis=1))
            ),
            "edges": len(fork.edges),
            "projection": dict(zip(fork.edges, along, strict=True)),
            "share_of_steps": spell.share,
            "recorded_steps": spell.known,
            "forks": len(group),
        },
        message=(
            f"At {listed(sites)} the gradients through {pair[0]} and {pair[1]} undo each other: "
            f"what is left is {float(np.median((fork.total / fork.scale)[inside])):.2g} of what "
            "independent terms would leave."
        ),
        remedy=(
            "Weigh the two paths or losses against each other, project one gradient off the other "
            "(gradient surgery), give each path its own layers before the fork, or detach one."
        ),
        view=View("fork", "grad_norm", (fork.site,), edges=tuple(pair)),
    )


RULE = Rule("cancelling-fork", (("fork", "grad_norm"),), find)
