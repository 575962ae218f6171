"""What the rules about activation functions share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gradscope.findings._persistence import Spell, longest_spell
from gradscope.findings._signals import Matrix, Signals

OFF = frozenset({"relu", "threshold", "gelu", "silu"})  # whose flat side is at 0
FILLED = 4  # measurements before units that are off look dead for a reason


def judged(signals: Signals, metric: str, *, off: bool) -> Matrix:
    """A metric of the activations that are off on their flat side, or of the others."""
    matrix = signals.matrix("activation", metric)
    keep = [j for j, s in enumerate(matrix.sites) if (kind(signals, s) in OFF) == off]
    return Matrix(
        matrix.steps,
        [matrix.keys[j] for j in keep],
        matrix.values[:, keep],
        matrix.present[:, keep],
    )


def spells(matrix: Matrix, limit: float, held: float, skip: int = 0) -> dict[str, Spell]:
    """Sites at which a metric stays at or above `limit`, for the share `held` of the run, and
    still does at its end. The first `skip` measurements are left out."""
    found = {}
    for j, site in enumerate(matrix.sites):
        known = np.isfinite(matrix.values[:, j])
        measured = np.cumsum(known)
        known &= measured > (skip if measured[-1] > skip else 0)
        holds = np.where(known, matrix.values[:, j], 0.0) >= limit
        spell = longest_spell(matrix.steps, holds, known)
        if spell is not None and spell.ongoing and spell.share >= held:
            begins = int(matrix.steps[np.argmax(measured > 0)])  # what was left out, too
            found[site] = replace(spell, first=begins) if spell.at_once else spell
    return found


def kind(signals: Signals, site: str) -> str:
    """Its operation, "tanh"."""
    return signals.site("activation", site).type
