"""vanishing-gradient: the gradient decays along depth and little of it reaches the early layers.

Definition. Along a ladder (sites of one role in consecutive places of a repeated structure, see
`_ladders`), decades = log₁₀(gradient at the last rung / gradient at the first), by the more
cautious of norm and RMS, of ends and fitted line (see `_decay`). It vanishes where the median
over the structure's roles is at least `DECADES` for a good part of the recorded steps
(`STUCK_DECADES` where the loss does not fall, `SHARED_DECADES` over the calls of one module), or
where, with no such structure, the chain of all modules with parameters loses `CHAIN_DECADES`.
Everything is relative to the same step's gradient near the loss: the gradient of a converged run
is small everywhere, and that is no finding.

Source: Bengio, Simard & Frasconi, "Learning long-term dependencies with gradient descent is
difficult", IEEE Trans. Neural Networks 5(2), 1994 (gradients decay geometrically along depth);
the limit of 10⁻³ between first and last layer is AutoTrainer's (Zhang et al., ICSE 2021).

Severity. Critical where nothing at all arrives, or where the optimizer passes the decay on, so that
the early layers hardly move (update ratio under `STARVED` of the last layers'; with no update
measured, a decay of `HOPELESS` while the loss does not fall). Warning otherwise. Info for what was
over within half of the run; for one module called again and again (time steps of a recurrent cell:
its parameters learn from the late calls) while the loss falls; where it began after the loss had
made most of its fall (`DONE`); and where an optimizer that divides
by the gradient's own size (Adam, RMSprop, LARS) hides it, update ratios being alike, the loss falls
and it did not hold for most of the run. Fewer than three recorded steps: info, or warning for a
decay of `HOPELESS`.

Silent with fewer than three comparable sites, on steps where no gradient arrives anywhere, and
where depth changes only a shape.
"""

from __future__ import annotations

import numpy as np

from gradscope.findings._decay import (
    HOPELESS,
    Decay,
    End,
    chain_decay,
    decays,
    end_of,
    outermost,
    steepest,
    update_ratio_ends,
)
from gradscope.findings._finding import Finding, Severity, View
from gradscope.findings._groups import named
from gradscope.findings._ladders import Ladder
from gradscope.findings._persistence import ENOUGH, Spell, longest_spell
from gradscope.findings._rule import Rule, Skipped
from gradscope.findings._signals import Signals, quiet_median
from gradscope.findings._training import Progress, level, progress

DECADES = 2.5  # healthy nets stay within 2; plain ones at torch's default init lose 0.4 a layer
STUCK_DECADES = 2.0  # where the loss does not fall
SHARED_DECADES = 3.0  # over calls of one module: what an early time step says matters less
CHAIN_DECADES = 3.5  # sites of different roles differ by up to a decade without any depth
HELD = 0.2  # share of the run that makes a spell at its end matter
MOST = 0.5  # share of the run that matters though it is over
BRIEF = 0.1  # share of the run below which a start that passes is not worth a word
STARVED = 1e-2  # early layers that move 100 times less than late ones do not take part
ALIKE = 0.1  # early layers that move at least a tenth as much do
GATED = {"LSTM", "LSTMCell", "GRU", "GRUCell"}
DONE = 0.8  # share of the loss's whole fall: what comes later is of a run that has learned
NOTHING = 30.0  # decades; a gradient of exactly 0 counts as 1e-45, and so little is as good as 0


def find(signals: Signals) -> list[Finding] | Skipped:
    structures = decays(signals)
    if not structures:
        return Skipped("no three comparable modules behind one another")
    found = _vanished(signals, structures)
    chain = [] if found or not structures[0].block else _vanished(signals, chain_decay(signals))
    # Where nothing at all arrives is no matter of depth.
    found += [(decay, spell) for decay, spell in chain if _decades(decay, spell) < NOTHING]
    return [_finding(signals, decay, spell) for decay, spell in outermost(found)]


def _limit(signals: Signals, decay: Decay) -> float:
    if not decay.block:
        return CHAIN_DECADES
    went = progress(signals)
    stuck = went is not None and not went.learned
    if decay.kind == "fork":  # which may be one module's calls, or as many modules
        return DECADES if stuck else SHARED_DECADES
    if decay.shared:
        return SHARED_DECADES
    return STUCK_DECADES if stuck else DECADES


def _vanished(signals: Signals, structures: list[Decay]) -> list[tuple[Decay, Spell]]:
    found = []
    for decay in structures:
        known = np.isfinite(decay.decades)
        holds = np.where(known, decay.decades, 0.0) >= _limit(signals, decay)
        spell = longest_spell(decay.steps, holds, known)
        if spell is not None and spell.share >= BRIEF:
            found.append((decay, spell))
    return found


def _decades(decay: Decay, spell: Spell) -> float:
    return float(np.median(decay.decades[spell.inside]))


def _finding(signals: Signals, decay: Decay, spell: Spell) -> Finding:
    steps = decay.steps[spell.inside]
    decades = _decades(decay, spell)
    ladder = decay.typical(spell.inside)
    end = end_of(signals, decay, ladder, steps)
    if end is None:
        before, behind, drop = steepest(signals, decay, ladder, steps, 1)
    else:
        before, behind, drop = end.before, end.behind, None
    ends = update_ratio_ends(signals, decay, steps)
    went = progress(signals)
    gain = _softmax_gain(signals, decay, steps)
    limit = _limit(signals, decay)
    evidence = {
        "ratio_first_to_last": 0.0 if end else 10**-decades,
        "decades": None if end else decades,
        "decades_per_layer": None if end else decades / (len(ladder.sites) - 1),
        "layers": len(ladder.sites),
        "role": ladder.role,
        "largest_drop_from": before,
        "largest_drop_to": behind,
        "largest_drop_decades": drop,
        "share_of_steps": spell.share,
        "recorded_steps": spell.known,
        "ongoing": spell.ongoing,
        "update_ratio_first": None if ends is None else ends[0],
        "update_ratio_last": None if ends is None else ends[1],
        "hidden_by_optimizer": _hidden(ends),
        "softmax_gain": gain,
        "loss_fall": None if went is None else went.fall,
    }
    return Finding(
        rule="vanishing-gradient",
        severity=_severity(signals, decay, spell, decades, ends, went),
        site=ladder.sites[0],
        first_step=spell.first,
        last_step=spell.last,
        evidence=evidence,
        message=_message(ladder, spell, decades, end, evidence),
        remedy=_remedy(signals, decay, ladder, gain, end),
        view=View(
            decay.kind,
            "grad_rms",
            ladder.sites,
            thresholds={f"{limit:g} decades below the last layer": 10**-limit},
            relative_to=ladder.sites[-1],
        ),
    )


def _severity(
    signals: Signals,
    decay: Decay,
    spell: Spell,
    decades: float,
    ends: tuple[float, float] | None,
    went: Progress | None,
) -> Severity:
    learned = went is not None and went.learned
    if went is not None and learned and not spell.from_start:
        window = max(1, went.steps // 20)
        if level(signals, spell.first - window, spell.first) <= went.after(DONE):
            return "info"
    if not spell.persistent:
        return "warning" if decades >= HOPELESS and spell.ongoing else "info"
    if spell.share < (HELD if spell.ongoing else MOST):
        return "info"
    if decay.shared:
        return "info" if learned or went is None else "warning"
    if spell.ongoing and decades >= NOTHING:
        return "critical"
    if ends is not None:
        if spell.ongoing and ends[0] < STARVED * ends[1]:
            return "critical"
        lasting = spell.share >= MOST
        return "info" if _hidden(ends) and learned and not lasting else "warning"
    return "critical" if decades >= HOPELESS and spell.ongoing and not learned else "warning"


def _hidden(ends: tuple[float, float] | None) -> bool | None:
    return None if ends is None else bool(ends[0] >= ALIKE * ends[1] and ends[0] > 0)


def _softmax_gain(signals: Signals, decay: Decay, steps: np.ndarray) -> float | None:
    """Median gain of the softmaxes inside the structure."""
    if not signals.has("softmax", "gain") or not decay.block:
        return None
    gains = signals.matrix("softmax", "gain").on(steps)
    prefix = decay.block.split("*")[0]
    inside = [j for j, site in enumerate(gains.sites) if site.startswith(prefix)]
    value = float(quiet_median(gains.values[:, inside])) if inside else np.nan
    return value if np.isfinite(value) else None


def _message(ladder: Ladder, spell: Spell, decades: float, end: End | None, evidence: dict) -> str:
    first, last = named(ladder.sites[0]), named(ladder.sites[-1])
    gap = f"between {named(evidence['largest_drop_from'])} and {named(evidence['largest_drop_to'])}"
    if end is not None:
        text = f"No gradient at all reaches {first}: it ends {gap}"
        if end.decades >= HOPELESS:
            text += f", having lost {end.decades:.0f} decades on its way there"
    else:
        text = (
            f"The gradient at {first} is {10**-decades:.1e} of the gradient at {last}: it loses "
            f"{decades / (len(ladder.sites) - 1):.2f} decades a layer, most {gap}"
        )
    if evidence["softmax_gain"] is not None:
        text += f"; each softmax on the way passes on {evidence['softmax_gain']:.2g} of it"
    if evidence["hidden_by_optimizer"]:
        text += "; the optimizer hides it, for the early layers' update ratio is normal"
    if spell.known < ENOUGH:
        steps = "step" if spell.known == 1 else "steps"
        text += f" (only {spell.known} recorded {steps}: record more to see whether it lasts)"
    elif not spell.ongoing:
        text += f"; this was over after step {spell.last}"
    return text + "."


def _remedy(
    signals: Signals, decay: Decay, ladder: Ladder, gain: float | None, end: End | None
) -> str:
    between = _types_between(signals, ladder)
    if end is not None and end.decades < HOPELESS:
        return (
            "Look at what lies between those two sites: dead ReLUs (lower the learning rate, use "
            "LeakyReLU or GELU), a saturated activation, a detach(), a multiplication by 0, or "
            "round(), sign() or argmax(), whose derivative is 0 (use a straight-through estimate)."
        )
    attends = decay.kind == "fork" and len(signals.run.sites_of("softmax")) >= len(ladder.sites) - 1
    if gain is not None or attends or "Softmax" in between:
        return (
            "Open a path around the softmax: add the query to the content (u + z), or concatenate "
            "each layer's latent state into the next; supervise early layers with their own loss."
        )
    if ladder.shared and decay.kind == "module":
        if between & GATED:
            return (
                "Give the loss a term at intermediate time steps, start the forget gate's bias "
                "at 1 or above, or shorten the sequences."
            )
        return (
            "Use a gated cell (LSTM, GRU), give the loss a term at intermediate time steps, or "
            "start the recurrent weight as an orthogonal matrix."
        )
    if between & {"Sigmoid", "Tanh", "Hardsigmoid", "Softsign"}:
        return (
            "Replace the saturating activations by ReLU or GELU with He initialisation, or add "
            "normalisation or residual connections between the layers."
        )
    return (
        "Initialise the weights for the activation (He: std √(2 / fan_in) for ReLU), or add "
        "normalisation or residual connections between the layers."
    )


def _types_between(signals: Signals, ladder: Ladder) -> set[str]:
    """Types of the modules that ran between a ladder's first rung and its last, and within them."""
    sites = signals.run.sites_of("module")
    rungs = {site.split("[")[0].split("#")[0] for site in ladder.sites}
    orders = [site.order for site in sites if site.name in ladder.sites]
    if not orders:  # rungs that are forks
        return {site.type for site in sites}
    first, last = min(orders), max(orders)
    return {
        site.type
        for site in sites
        if first <= site.order <= last or any(site.name.startswith(f"{r}.") for r in rungs)
    }


RULE = Rule("vanishing-gradient", (("module", "grad_norm"),), find)
