"""softmax-borne: the early layers are reached only through one softmax after another.

Definition. G_k is the part of a gradient that crossed k attention softmaxes. Along a ladder of
sites (see `_ladders`) the gradient is softmax-borne where at the first rung less than `DIRECT` of
it crossed fewer than `MANY` softmaxes, where the mean number of crossings grows by at least
`A_RUNG` from rung to rung on its way there, as far as they were counted, and where it lost at
least `DECADES` between the last rung and the first (root mean square of the largest part). One
finding a repeated structure, by its role with the most rungs, of these the one in the middle.

Source: Fan & Zhou, "Stacked Latent Attention for Multimodal Reasoning", CVPR 2018: the main
pathway of stacked attention crosses one softmax a layer, so the gradient vanishes. The parts are
exact (`gradscope.crossings`).

Severity. Warning: the loss may fall all the same, for later layers learn. Critical where the loss
has not fallen and `HOPELESS` decades are lost to the end. Info where it is over, or fewer than
three steps were recorded.

Silent with fewer than three comparable sites; where every layer is reached past the softmaxes
(residual queries, latent concatenation, residual streams: each site crosses its own softmax at
most); where crossings cost little; and where no order from `MANY` on was kept.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gradscope.findings._crossings import Crossings, crossings
from gradscope.findings._decay import HOPELESS
from gradscope.findings._finding import Finding, Severity, View
from gradscope.findings._groups import named
from gradscope.findings._ladders import Ladder, ladders
from gradscope.findings._persistence import ENOUGH, Spell, longest_spell
from gradscope.findings._rule import Rule, Skipped
from gradscope.findings._signals import Signals, quiet_median
from gradscope.findings._training import progress

MANY = 2  # softmaxes: what a layer's logits are made from always crosses that layer's own one
DIRECT = 0.1  # share of the gradient; past the softmaxes comes all of it or next to nothing
A_RUNG = 0.5  # softmaxes: stacked attention has 1, residual queries 0
DECADES = 2.0  # in all; a healthy stack stays within 1, as residual and latent stacks do


@dataclass(frozen=True)
class Borne:
    """A ladder whose gradient is softmax-borne."""

    ladder: Ladder
    rungs: list[Crossings]
    spell: Spell
    decades: float

    @property
    def crossed(self) -> tuple[float, float]:
        """Median of the mean number of softmaxes crossed at the first and at the last rung."""
        first, last = (quiet_median(r.mean[self.spell.inside]) for r in self.ends)
        return float(first), float(last)

    @property
    def ends(self) -> tuple[Crossings, Crossings]:
        return self.rungs[0], self.rungs[-1]


def find(signals: Signals) -> list[Finding] | Skipped:
    steps, parts = crossings(signals)
    known = [s for s in signals.run.sites_of("crossing") if s.name in parts]
    found: dict[str, list[Borne]] = defaultdict(list)
    judged = [ladder for ladder in ladders(known) if ladder.block]
    if not judged:
        return Skipped("no three comparable modules behind one another")
    if not any(c.orders[-1] >= MANY for c in parts.values()):
        return Skipped(f"fewer than {MANY} softmaxes to cross, or orders kept")
    for ladder in judged:
        rungs = [parts[s] for s in ladder.sites]
        decades = _decades(signals, rungs)
        known_at = np.isfinite(decades) & np.isfinite(rungs[0].projections).all(axis=1)
        with np.errstate(invalid="ignore"):
            holds = known_at & (rungs[0].below(MANY) <= DIRECT) & (decades >= DECADES)
            # Where the count ends, two rungs can't be told apart.
            holds &= np.all(
                [(a.mean - b.mean >= A_RUNG) | b.uncounted for a, b in pairwise(rungs)], axis=0
            )
            holds &= ~rungs[-1].uncounted
        spell = longest_spell(steps, holds, known_at)
        if spell is not None:
            lost = float(np.median(decades[spell.inside]))
            found[ladder.block].append(Borne(ladder, rungs, spell, lost))
    return [_finding(signals, _typical(roles)) for roles in found.values()]


def _typical(roles: list[Borne]) -> Borne:
    longest = max(len(b.rungs) for b in roles)
    ranked = sorted((b for b in roles if len(b.rungs) == longest), key=lambda b: b.decades)
    return ranked[(len(ranked) - 1) // 2]


def _decades(signals: Signals, rungs: list[Crossings]) -> np.ndarray:
    """float64 (S,): log₁₀ of what is left at the first rung of what there is at the last."""
    first, last = (r.size / _root(signals, r.site) for r in (rungs[0], rungs[-1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log10(last / first)


def _root(signals: Signals, site: str) -> float:
    return float(np.sqrt(max(1, signals.site("crossing", site).numel)))


def _finding(signals: Signals, borne: Borne) -> Finding:
    first, last = borne.ends
    spell, (crossed, at_last) = borne.spell, borne.crossed
    a_softmax, at_least = _of_a_softmax(signals, borne), first.uncounted[spell.inside].any()
    share = quiet_median(np.abs(first.projections[spell.inside]), axis=0)
    main = int(first.orders[int(np.argmax(share))])
    direct = float(quiet_median(first.below(MANY)[spell.inside]))
    went = progress(signals)
    text = (
        f"The gradient at {named(first.site)} has crossed {main}{' or more' if at_least else ''} "
        f"softmaxes ({_amount(share.max())} it), at {named(last.site)} {at_last:.2g}: each takes "
        f"{a_softmax:.2g} decades, so that {10**-borne.decades:.1e} of it is left"
    )
    if spell.known < ENOUGH:
        text += f" (only {spell.known} recorded {'step' if spell.known == 1 else 'steps'})"
    elif not spell.ongoing:
        text += f"; this was over after step {spell.last}"
    return Finding(
        rule="softmax-borne",
        severity=_severity(borne, went is not None and went.learned),
        site=first.site,
        first_step=spell.first,
        last_step=spell.last,
        evidence={
            "crossed_first": crossed,
            "crossed_last": at_last,
            "layers": len(borne.rungs),
            "decades_per_softmax": a_softmax,
            "decades": borne.decades,
            f"share_below_{MANY}_softmaxes": direct,
            "role": borne.ladder.role,
            "share_of_steps": spell.share,
            "recorded_steps": spell.known,
            "ongoing": spell.ongoing,
            "loss_fall": None if went is None else went.fall,
        },
        message=text + ".",
        remedy=(
            "Open a pathway around the softmaxes: concatenate each layer's latent state into the "
            "next layer's, or add the query to the content (u + z); or give early layers a loss of "
            "their own."
        ),
        view=View("crossing", "grad_norm", borne.ladder.sites),
    )


def _of_a_softmax(signals: Signals, borne: Borne) -> float:
    """Decades, over the rungs whose crossings were all counted."""
    inside = borne.spell.inside
    counted = [r for r in borne.rungs if not r.uncounted[inside].any()]
    if len(counted) < 2:
        counted = borne.rungs
    decades = float(np.median(_decades(signals, counted)[inside]))
    first, last = (float(quiet_median(r.mean[inside])) for r in (counted[0], counted[-1]))
    return decades / (first - last)


def _amount(share: float) -> str:
    return "all of" if share > 0.995 else f"{share:.0%} of"


def _severity(borne: Borne, learned: bool) -> Severity:
    if not (borne.spell.persistent and borne.spell.ongoing):
        return "info"
    return "critical" if borne.decades >= HOPELESS and not learned else "warning"


RULE = Rule("softmax-borne", (("crossing", "grad_norm"), ("crossing", "projection")), find)
