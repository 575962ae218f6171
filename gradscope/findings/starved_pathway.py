"""starved-pathway: a path out of a tensor carries a negligible part of its gradient.

Definition. At a fork with edges e, share_e = ‖g_e‖ / √Σ‖g_e‖². An edge is starved where its
share stays under `SHARE` for most of the run and still is at its end. All edges carry gradients of
the same tensor, so shares compare without any regard to size.

Source: what autograd adds up at a fork, by the multivariate chain rule.

Severity. Warning where the share is under `NEGLIGIBLE`, or the run is at least `LONG` optimizer
steps long: what lies behind the edge does not take part in shaping this tensor. Info above that
in a shorter run (queries and keys behind uniform attention start so), and down to `YOUNG` in a run
under diffuse-softmax's `SHORT` for what leads into a softmax that is still uniform; where share and
gradient rise (a branch that starts near 0, such as LayerScale or a zero-initialised residual; not
where, of `LATE` recorded steps or more, none of the last quarter is above `SHARE`), where it came
about while the loss fell (attention that has learned where to look starves its own query and
key), where the consumer is no part of the model (an auxiliary term of the loss, small on purpose),
and where fewer than three steps were recorded.

Silent about parameters and forks that normalise (see `_forks`), and about edges whose gradient is
exactly 0 throughout: what a slice leaves out was not meant to count (parameters behind such an
edge are no-update's).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradscope.findings._finding import Finding, Severity, View
from gradscope.findings._forks import Fork, forks
from gradscope.findings._groups import anonymous, listed
from gradscope.findings._persistence import Spell, longest_spell
from gradscope.findings._rule import Rule, Skipped
from gradscope.findings._signals import Signals, quiet_median
from gradscope.findings._training import progress
from gradscope.findings.diffuse_softmax import ENTROPY as UNIFORM
from gradscope.findings.diffuse_softmax import EVENNESS, SHORT

SHARE = 1e-3  # branches of healthy nets have 4e-3 and more once they learn
NEGLIGIBLE = 3e-4  # queries and keys at weights of std 0.02 have 4e-4 and more for 200 steps
YOUNG = 5e-7  # models 32 wide have 7e-5 and more, behind an embedding that is projected 2e-6
LONG = 1000  # optimizer steps
HELD = 0.8  # share of the recorded steps
LATE = 20  # recorded steps
RISING = 10.0  # factor between the share at the end and at the start of the spell


@dataclass(frozen=True)
class Starved:
    fork: Fork
    edge: str
    spell: Spell
    share: np.ndarray  # (S,)

    @property
    def rising(self) -> bool:
        """In share, and not only because the other edges' gradient falls."""
        norm = self.fork.norms[:, self.fork.edges.index(self.edge)]
        if not all(_grows(course[self.spell.inside]) for course in (self.share, norm)):
            return False
        # One that never got there in a long rise is not on its way.
        late = self.share[-max(1, len(self.share) // 4) :]
        return self.spell.known < LATE or bool(np.nanmax(late, initial=0.0) >= SHARE)


def find(signals: Signals) -> list[Finding] | Skipped:
    steps, every = forks(signals)
    judged = [fork for fork in every if not fork.normalises]
    if not judged:
        return Skipped("no fork of an activation but for normalisation")
    groups: dict[tuple[str, str], list[Starved]] = {}
    for fork in judged:
        shares = fork.norms / fork.scale[:, None]
        for e, edge in enumerate(fork.edges):
            known = np.isfinite(shares[:, e])
            spell = longest_spell(steps, np.where(known, shares[:, e], 1.0) < SHARE, known)
            never = not (shares[known, e] > 0).any()
            if spell is not None and spell.share >= HELD and spell.ongoing and not never:
                found = Starved(fork, edge, spell, shares[:, e])
                groups.setdefault((anonymous(fork.site), anonymous(edge)), []).append(found)
    return [_finding(signals, group) for group in groups.values()]


def _grows(held: np.ndarray) -> bool:
    tenth = max(1, len(held) // 10)
    start, end = np.median(held[:tenth]), np.median(held[-tenth:])
    return bool(len(held) > 1 and end > RISING * start)


def _finding(signals: Signals, group: list[Starved]) -> Finding:
    first = group[0]
    share = float(quiet_median(np.concatenate([s.share[s.spell.inside] for s in group])))
    largest = int(np.argmax(quiet_median(first.fork.norms[first.spell.inside], axis=0)))
    sites = list(dict.fromkeys(s.fork.site for s in group))
    rising = all(s.rising for s in group)
    return Finding(
        rule="starved-pathway",
        severity=_severity(signals, group, rising, share),
        site=first.fork.site,
        first_step=min(s.spell.first for s in group),
        last_step=max(s.spell.last for s in group),
        evidence={
            "share": share,
            "edge": first.edge,
            "largest_edge": first.fork.edges[largest],
            "edges": len(first.fork.edges),
            "forks": len(sites),
            "rising": rising,
            "share_of_steps": first.spell.share,
            "recorded_steps": first.spell.known,
        },
        message=(
            f"Of the gradient that reaches {listed(sites)}, {share:.1e} comes through "
            f"{first.edge}; nearly all of it comes through {first.fork.edges[largest]}."
        ),
        remedy=(
            "If the path is meant to matter, make it pass more: look for a softmax, a saturated "
            "activation or a small gate on it, scale its output up, or normalise it before it "
            "joins the other path; if not, remove it."
        ),
        view=View(
            "fork",
            "grad_norm",
            (first.fork.site,),
            edges=tuple(s.edge for s in group if s.fork is first.fork),
            thresholds={"starved share": SHARE},
            relative_to=first.fork.site,
        ),
    )


def _severity(signals: Signals, group: list[Starved], rising: bool, share: float) -> Severity:
    outside = all(s.edge.startswith("(outside)") for s in group)
    if rising or outside or not any(s.spell.persistent for s in group):
        return "info"
    if share >= YOUNG and all(_waits_for_attention(signals, s) for s in group):
        return "info"
    went = progress(signals)
    if went is not None and went.learned and not any(s.spell.from_start for s in group):
        return "info"
    long = any(s.spell.last - s.spell.first >= LONG for s in group)
    return "warning" if share < NEGLIGIBLE or long else "info"


def _waits_for_attention(signals: Signals, starved: Starved) -> bool:
    """Whether the edge leads into a module whose softmax is still uniform early in the run: its
    logits get next to nothing until they differ, and `diffuse-softmax` tells if they never do."""
    if starved.spell.last - starved.spell.first >= SHORT:
        return False
    evenness = signals.matrix("softmax", EVENNESS)
    for site in evenness.sites:
        module = site.split(":softmax")[0]
        if module and starved.edge.startswith(f"{module}."):
            return not quiet_median(evenness.column(site)) < UNIFORM
    return False


RULE = Rule("starved-pathway", (("fork", "grad_norm"),), find)
