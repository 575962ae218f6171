"""Shares of a whole over training, as bands: above 0 what works with it, below what against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from gradscope.figures._style import Theme


def bands(
    axes: Axes, steps: np.ndarray, shares: np.ndarray, colours: Sequence[str], theme: Theme
) -> None:
    """Draw the bands.

    Args:
        steps: int64 (S,).
        shares: float64 (S, E); a row sums to 1. Rows that are not finite are gaps.
        colours: E of them.
    """
    steps = steps.astype(float)
    if len(steps) == 1:
        steps, shares = np.array([steps[0] - 0.3, steps[0] + 0.3]), np.repeat(shares, 2, axis=0)
    finite = np.isfinite(shares).all(axis=1)
    up, down = np.zeros(len(steps)), np.zeros(len(steps))
    for j, colour in enumerate(colours):
        share = np.where(finite, shares[:, j], 0.0)
        above, below = np.maximum(share, 0), np.minimum(share, 0)
        look = {"color": colour, "lw": 0, "alpha": 0.9, "where": finite}
        axes.fill_between(steps, up, up + above, **look)
        axes.fill_between(steps, down, down + below, **look)
        up, down = up + above, down + below
        axes.plot(steps, np.where(finite, up, np.nan), color=theme.paper, lw=0.7)
    for y in (0.0, 1.0):
        axes.axhline(y, color=theme.ink, lw=0.7, alpha=0.6)
