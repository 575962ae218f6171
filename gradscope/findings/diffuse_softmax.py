"""diffuse-softmax: a softmax stays uniform, so it selects nothing and passes on 1/n.

Definition. Entropy relative to that of a uniform softmax over the entries that no mask hides
(metric evenness) of at least `ENTROPY` at nearly all recorded steps of a run of at least `STEPS`
optimizer steps, and still so at its end. For uniform p over m entries the Jacobian is
(I − 11ᵀ/m)/m: what passes is at most 1/m of the gradient, whatever the logits.

Source: the Jacobian of softmax.

Severity. Attention is uniform at initialisation: with small weights it stays so for some hundred
steps of a run that goes on to learn, so time is the evidence. Warning after `LONG` steps; after
`SHORT` already (`STUCK` where the loss has not fallen), if entropy of most is at least `EXACTLY`
and does not leave its place, is nearer 1 than it began (`SETTLED`), or (at `UNLEARNED` already)
stands still in half of the softmaxes (`STILL`) while the loss doesn't fall. At once, if
1 − entropy of most is under `NO_LOGITS`, which no usual initialisation comes near, throughout or in
the first `LEAD` of the run. Info before that, and for a few softmaxes among others that select
while the loss falls (a layer may well average).

A softmax whose logits have met a limit counts like one at `EXACTLY`: they are what a softmax
returned, so that no two differ by more than 1; they grew and then stand still to a part in a
hundred (`RIGID`; a clamp); or they grew, turned back and stand still while the loss falls `PARTLY`
at most (cosines without a temperature). So does one over `MANY` entries while the loss doesn't
fall, unless it is about to leave: of the gradient, 1/n is little there whatever the logits. And so
does what is at `HARDLY` while the loss doesn't fall, if most softmaxes are, on the same condition.

Silent about rows of two elements, and where next to nothing (`REACHED`) of the gradient gets to
the softmax's module in the first place: it is starved, and would not learn if it weren't uniform.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gradscope.findings._finding import Finding, Severity, View
from gradscope.findings._groups import by_role, listed
from gradscope.findings._persistence import Spell, longest_spell
from gradscope.findings._rule import Rule, Skipped
from gradscope.findings._signals import Signals, quiet_median
from gradscope.findings._training import progress

ENTROPY = 0.995  # attention in healthy runs is under 0.985 by the end, even where it averages
UNLEARNED = 0.988  # where the loss has not fallen
EXACTLY = 0.9999  # logits that differ by 0.02; at weights of std 0.02 only the first 200 steps
NO_LOGITS = 1e-5  # logits that differ by less than 0.01; at weights of std 0.02, 3e-5 and more
SETTLED = 0.1  # of 1 − entropy at the start: training made it uniform
HARDLY = 0.993  # after `STUCK` steps without a fall; under it are healthy runs that learn late
STILL = 1.5  # largest over smallest; what learns, or is about to, doubles
LEAD = 0.2  # share of the run, from its start; healthy runs have 0.02
LEAVING = 2.0  # growth of 1 − entropy over the last tenth of the run; breaking out gives 10
CAPPED = 0.98  # logits between −1 and 1 over 40 entries, some of which matter
PARTLY = 0.5  # fall of the loss by which what turns back has found what it needs
TRIED, TURNED = 2.0, 0.9  # growth of 1 − entropy, and what is left of it in the end
RIGID = (
    0.01  # deviation of 1 − entropy over the second half, of its mean; attention that works: 0.1
)
TOUCHED = 2e-4  # 1 − entropy; below that it has not met a limit, but never left its start
MANY, CROWD = 100, 0.97  # entries; logits of ±0.4 leave nine tenths of a hundred attended
REACHED = 1e-5  # of the largest gradient (RMS) at any module's output
MIN_N = 3
EVENNESS = "evenness"
GAIN = 2.0  # times that of uniform rows: above that the rows are not uniform where the gradient is
FEW = 4.0  # times 1/n: a causal mask leaves 1/m at about log(n)/n
STEADY = 0.02  # change of 1/m from step to step that a fixed mask does not make
HELD = 0.8  # share of the recorded steps
HALF = 0.5  # share of the softmaxes that stand still
MOST = 0.6  # share of the softmaxes that makes it the model's condition, not a layer's choice
STEPS, STUCK, SHORT, LONG = 100, 120, 250, 1000  # optimizer steps
RECORDED = 10


@dataclass(frozen=True)
class Uniform:
    """One softmax that stays uniform: its spell; 1 − entropy in it (0 for one that was born
    without logits), at the end of the run, just before, and at its start; whether that has stopped
    to change; whether it met a limit before, or turned back."""

    spell: Spell
    middle: float
    end: float
    before: float
    start: float
    still: bool
    capped: bool = False
    turned: bool = False
    crowd: bool = False

    @property
    def settled(self) -> bool:
        """It was less uniform when training began."""
        return self.end <= SETTLED * self.start

    @property
    def stays(self) -> bool:
        return self.end <= LEAVING * max(self.before, 1e-6) or not self.middle

    @property
    def sure(self) -> bool:
        exact = self.end <= 1 - EXACTLY or self.crowd
        return (exact and self.stays) or self.settled or self.capped or self.turned


def find(signals: Signals) -> list[Finding] | Skipped:
    entropy = signals.matrix("softmax", EVENNESS)
    steps = int(entropy.steps[-1] - entropy.steps[0])
    if len(entropy.steps) < RECORDED or steps < STEPS:
        return Skipped(f"softmax recorded over under {STEPS} steps, or at under {RECORDED}")
    gain = signals.matrix("softmax", "gain").on(entropy.steps)
    uniform_gain = signals.matrix("softmax", "uniform_gain").on(entropy.steps)
    went = progress(signals)
    learned = went is None or went.learned
    uniform: dict[str, Uniform] = {}
    for j, site in enumerate(entropy.sites):
        values, n = entropy.values[:, j], signals.entries(site)
        if (n and n < MIN_N) or not _is_reached(signals, site):
            continue
        known = np.isfinite(values)
        deficit = 1 - values[known]
        capped = _is_rigid(deficit) or _is_of_softmax(signals, site)
        turned = not (went and went.fall >= PARTLY) and _has_turned(deficit)
        crowd = not learned and n >= MANY
        with np.errstate(invalid="ignore"):
            flat = values >= _least(learned, capped or turned, crowd)
            if site in uniform_gain:
                alike = uniform_gain.column(site)
                flat &= ~(_hidden_by_logits(alike, n))
                if site in gain:
                    flat &= ~(gain.column(site) > GAIN * alike)
        spell = longest_spell(entropy.steps, flat, known)
        born = longest_spell(entropy.steps, flat & (1 - values <= NO_LOGITS), known)
        if spell is not None and spell.ongoing and spell.share >= HELD:
            middle = float(np.median(1 - values[spell.inside]))
            if born is not None and born.at_once and born.share >= LEAD:
                middle = 0.0
            uniform[site] = Uniform(spell, middle, *_ends(deficit), capped, turned, crowd)
            continue
        if born is not None and born.at_once and born.share >= LEAD:
            uniform[site] = Uniform(born, 0.0, 0.0, 0.0, 0.0, False)  # it left, late
    severity = _severity(signals, uniform.values(), len(entropy.sites), steps)
    return [
        _finding(signals, {site: uniform[site].spell for site in sites}, severity)
        for sites in by_role(uniform).values()
    ]


def _is_reached(signals: Signals, site: str) -> bool:
    """Whether there is gradient to speak of at the output of the softmax's module."""
    sizes = signals.matrix("module", "grad_rms")
    module = site.split(":softmax")[0]
    module = module if module in sizes else f"{module}[0]"  # of a tuple that it returns
    if module not in sizes:
        return True
    with np.errstate(invalid="ignore", divide="ignore"):
        share = sizes.column(module) / np.nanmax(sizes.values, axis=1, initial=0.0)
    return not quiet_median(share) < REACHED


def _is_of_softmax(signals: Signals, site: str) -> bool:
    """Whether its logits are what another softmax returned: the operation before it, one deeper."""
    this = signals.site("softmax", site)
    return this.depth >= 0 and any(
        (other.order, other.depth, other.shape) == (this.order - 1, this.depth + 1, this.shape)
        for other in signals.run.sites_of("softmax")
    )


def _least(learned: bool, capped: bool, crowd: bool) -> float:
    """The entropy from which on a softmax counts as uniform."""
    if learned and not capped:
        return ENTROPY
    return min(CROWD if crowd else UNLEARNED, CAPPED if capped else UNLEARNED)


def _is_rigid(deficit: np.ndarray) -> bool:
    """Whether the logits grew, and then stand still to a part in a hundred: at a limit."""
    half = deficit[len(deficit) // 2 :]
    if len(half) < RECORDED // 2 or not half.mean() >= max(TOUCHED, TRIED * deficit[0]):
        return False
    return bool(half.std() <= RIGID * half.mean())


def _has_turned(deficit: np.ndarray) -> bool:
    """Whether the logits grew, and have turned back to stand still."""
    if not len(deficit):
        return False
    end, _, start, still = _ends(deficit)
    peak = float(deficit.max())
    return still and peak >= TRIED * start and end <= TURNED * peak


def _hidden_by_logits(alike: np.ndarray, n: int) -> np.ndarray:
    """Steps at which few entries are left, and not always as few: no mask hides the others, but
    logits that are much smaller than the largest. alike: (S,), 1/m."""
    usual = quiet_median(alike)
    return (alike > FEW / max(n, 1)) & (np.abs(alike - usual) > STEADY * usual)


def _ends(deficit: np.ndarray) -> tuple[float, float, float, bool]:
    """Median of 1 − entropy over the last tenth of the run, over the tenth before; the first;
    whether it stands still over the second half."""
    tenth = max(1, len(deficit) // 10)
    late = float(np.median(deficit[-tenth:])), float(np.median(deficit[-2 * tenth : -tenth]))
    half = deficit[len(deficit) // 2 :]
    return *late, float(deficit[0]), bool(half.max() <= STILL * half.min())


def _severity(signals: Signals, uniform: Iterable[Uniform], softmaxes: int, steps: int) -> Severity:
    found = list(uniform)
    went = progress(signals)
    if len(found) < MOST * softmaxes and went is not None and went.learned:
        return "warning" if any(u.capped for u in found) else "info"
    stuck = went is not None and not went.learned
    none = [u for u in found if u.middle <= NO_LOGITS and (u.stays or stuck)]
    if len(none) >= MOST * max(1, len(found)):
        return "warning"
    short = STUCK if stuck else SHORT
    half, most = (len(found) >= share * softmaxes for share in (HALF, MOST))
    sure = [
        u
        for u in found
        if u.sure
        or (stuck and half and u.still)
        or (stuck and most and u.stays and u.end <= 1 - HARDLY)
    ]
    if steps >= LONG or (steps >= short and len(sure) >= MOST * len(found)):
        return "warning"
    return "info"


def _finding(signals: Signals, spells: dict[str, Spell], severity: Severity) -> Finding:
    sites = list(spells)
    spell = spells[sites[0]]
    entropy, gain = signals.matrix("softmax", EVENNESS), signals.matrix("softmax", "gain")
    steps, keys = entropy.steps[spell.inside], [(s, "") for s in sites]
    level = float(quiet_median(entropy.on(steps).columns(keys)))
    passed = float(quiet_median(gain.on(steps).columns(keys)))
    n = signals.entries(sites[0])
    share = f"{passed:.2g}" if np.isfinite(passed) else "at most 1/n"
    went = progress(signals)
    # The strictest limit that was met: which of them applied differs from site to site.
    least = next((x for x in (ENTROPY, UNLEARNED, CAPPED) if level >= x), CROWD)
    return Finding(
        rule="diffuse-softmax",
        severity=severity,
        site=sites[0],
        first_step=min(s.first for s in spells.values()),
        last_step=max(s.last for s in spells.values()),
        evidence={
            "entropy": level,
            "gain": passed,
            "n": n or None,
            "gain_times_n": passed * n if n else None,
            "sites": len(sites),
            "softmaxes": len(entropy.sites),
            "share_of_steps": spell.share,
            "recorded_steps": spell.known,
            "loss_fall": None if went is None else went.fall,
        },
        message=(
            f"The softmax at {listed(sites)} is {'still ' * spell.ongoing}uniform at step "
            f"{spell.last} (entropy {level:.4f} of 1): it selects nothing and passes on {share} of "
            "the gradient."
        ),
        remedy=(
            "Let the logits grow: check their scale (1/√d once, not twice), the temperature and "
            "the initialisation of query and key weights, give them a higher learning rate, or "
            "add a path around the softmax."
        ),
        view=View("softmax", EVENNESS, tuple(sites), thresholds={"uniform": least}),
    )


RULE = Rule("diffuse-softmax", (("softmax", EVENNESS),), find)
