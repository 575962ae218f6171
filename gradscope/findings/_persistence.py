"""How long something held: rules judge spells, not steps.

Gradients are noisy from batch to batch, and the first steps of a healthy run look like many
faults. What counts is what holds for a good part of the run, or still holds at its end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WINDOW = 5  # recorded steps; a majority of them outvotes an isolated step
ENOUGH = 3  # recorded steps below which nothing can be called persistent
RECENT = 0.1  # share of the recorded steps, at the end, that says whether it still holds


@dataclass(frozen=True)
class Spell:
    """The longest stretch over which something held, isolated steps outvoted.

    Attributes:
        first: optimizer step.
        last: optimizer step.
        inside: bool (S,), the recorded steps of the stretch at which it held.
        share: of the recorded steps at which it is known whether it held.
        known: how many those are.
        ongoing: it held at most of the last recorded steps.
        from_start: it held within the first tenth of the recorded steps.
        at_once: it held at the very first recorded step.
    """

    first: int
    last: int
    inside: np.ndarray
    share: float
    known: int
    ongoing: bool
    from_start: bool
    at_once: bool

    @property
    def persistent(self) -> bool:
        """Enough recorded steps to say so."""
        return int(self.inside.sum()) >= ENOUGH


def longest_spell(steps: np.ndarray, holds: np.ndarray, known: np.ndarray) -> Spell | None:
    """The longest stretch of `holds` (S,) among the `known` (S,) steps; None if there is none."""
    at = np.flatnonzero(known)
    if not len(at) or not holds[at].any():
        return None
    smooth = _majority(holds[at])
    edges = np.flatnonzero(np.diff(np.concatenate(([0], smooth.astype(np.int8), [0]))))
    starts, ends = edges[::2], edges[1::2]
    total = np.concatenate(([0], np.cumsum(holds[at])))
    steps_held = total[ends] - total[starts]
    if not steps_held.any():  # scattered steps: a majority of them may lie between two
        return None
    longest = int(np.argmax(steps_held))
    held = at[starts[longest] : ends[longest]]
    inside = np.zeros(len(steps), dtype=bool)
    inside[held] = holds[held]
    where = np.flatnonzero(inside)
    recent = max(1, round(RECENT * len(at)))
    return Spell(
        first=int(steps[where[0]]),
        last=int(steps[where[-1]]),
        inside=inside,
        share=len(held) / len(at),
        known=len(at),
        ongoing=bool(ends[longest] == len(at) and holds[at[-recent:]].mean() >= 0.5),
        from_start=bool(starts[longest] <= len(at) // 10),
        at_once=bool(starts[longest] == 0),
    )


def _majority(holds: np.ndarray) -> np.ndarray:
    """Each step as most of the `WINDOW` around it; windows shrink at the ends."""
    if len(holds) < ENOUGH:
        return holds.astype(bool)
    half = min(WINDOW, len(holds)) // 2
    total = np.concatenate(([0], np.cumsum(holds)))
    i = np.arange(len(holds))
    reach = np.minimum(half, np.minimum(i, len(holds) - 1 - i))
    return (total[i + reach + 1] - total[i - reach]) * 2 > 2 * reach + 1
