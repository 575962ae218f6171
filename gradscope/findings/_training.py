"""How training itself went, as far as the logged loss tells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradscope.findings._signals import Signals, quiet_median

FIRST = 5  # logged losses whose median is the level at the start
LATEST = 0.1  # share of the logged losses whose median is the level at the end
LEARNED = 0.3  # fall of the loss, relative to its start, that noise and the first steps don't give
STUCK = 0.05  # fall of the loss below which nothing was learned
LONG = 50  # optimizer steps before a loss that has not moved means anything


@dataclass(frozen=True)
class Progress:
    """The course of the training loss.

    Attributes:
        start: level at the start: the first loss or the median of the first few, if smaller
            (a run that explodes at once must not count as one that came a long way down).
        end: level at the end; NaN if it is not finite there.
        steps: optimizer steps between the first and the last logged loss.
        diverged: the loss is NaN or infinite at the end.
    """

    start: float
    end: float
    steps: int
    diverged: bool

    @property
    def fall(self) -> float:
        """Share of the starting level that is gone; negative if the loss rose."""
        return (self.start - self.end) / max(abs(self.start), 1e-12)

    def after(self, share: float) -> float:
        """The level at which that share of the whole fall is made."""
        return self.start - share * (self.start - self.end)

    @property
    def learned(self) -> bool:
        return not self.diverged and self.fall >= LEARNED

    @property
    def stuck(self) -> bool:
        """Long enough, and nowhere."""
        return self.diverged or (self.steps >= LONG and not self.fall >= STUCK)


def progress(signals: Signals) -> Progress | None:
    """None without a logged loss, or with too few values to compare the ends."""
    if signals.loss is None:
        return None
    steps, loss = signals.loss.steps, signals.loss.values[:, 0]
    finite = np.isfinite(loss)
    if len(loss) < 4 or not finite.any():
        return Progress(np.nan, np.nan, 0, True) if len(loss) and not finite.any() else None
    late = loss[-max(1, round(LATEST * len(loss))) :]
    diverged = not np.isfinite(late[-1])
    return Progress(
        start=float(min(loss[finite][0], quiet_median(loss[finite][:FIRST]))),
        end=float("nan") if diverged else float(quiet_median(late[np.isfinite(late)])),
        steps=int(steps[-1] - steps[0]),
        diverged=diverged,
    )


def is_worse(after: float, before: float, factor: float) -> bool:
    """Whether a loss stands `factor` times higher; below 0, by as much of its size."""
    return after > before + (factor - 1) * abs(before)


def level(signals: Signals, first: int, last: int) -> float:
    """Median of the finite losses at steps first … last; NaN without any."""
    if signals.loss is None:
        return float("nan")
    steps, loss = signals.loss.steps, signals.loss.values[:, 0]
    window = loss[(steps >= first) & (steps <= last) & np.isfinite(loss)]
    return float(np.median(window)) if len(window) else float("nan")
