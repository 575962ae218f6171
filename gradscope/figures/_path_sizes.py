"""How much gradient each path carries at a fork, however little: on a logarithmic scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from gradscope.figures import _axes
from gradscope.figures._figure import Mark, about, figure
from gradscope.figures._forks import Fork, draw_forks, forks, role
from gradscope.figures._style import Theme
from gradscope.run import Run


@figure(
    title="How much gradient each path carries",
    caption=(
        "The same forks on a logarithmic scale, one line for each consumer: the length of the "
        "gradient that comes back through it, relative to all of them (‖g_e‖ / √Σ‖g_e‖²). Here "
        "a path can be seen whose share is too small for any band: each step of 10 down is a "
        "path ten times weaker. Lines of one colour are the same path out of different layers, "
        "full colour for the first layer, paler towards the last. Shown are the forks with "
        "findings, then the first and the last layer's of each kind, the widest spread first."
    ),
    caption_several=(
        "A column a run (a panel a run where there are more than three), a row a fork, on common "
        "logarithmic axes: one line for each consumer, the length of the gradient that comes "
        "back through it, relative to all of them (‖g_e‖ / √Σ‖g_e‖²). Lines of one colour are "
        "the same path out of different layers, full colour for the first layer, paler towards "
        "the last. Shown are the forks with findings, then those that most runs have."
    ),
    requires=(("fork", "grad_norm"),),
    absent="no tensor with several consumers was recorded",
    shows=(("fork", "grad_norm"),),
)
def path_sizes(runs: Sequence[Run], marks: Sequence[Mark], theme: Theme) -> Figure:
    found = [[relative(f) for f in forks(r, "grad_norm")] for r in runs]
    marks = about(marks, "fork")
    fig = draw_forks(runs, found, marks, spread, _panel, "‖g_e‖ / √Σ‖g_e‖²", theme)
    limits = {v for m in marks if m.metric == "grad_norm" for v in m.thresholds.values()}
    drawn = [np.asarray(line.get_ydata(), dtype=float) for a in fig.axes for line in a.lines]
    low, high = _axes.log_limits([*drawn, np.array([*limits, 1.0])])
    for axes in fig.axes:
        _axes.log_axis(axes, "y", (low, high), ticks=5)
        for y in limits:
            axes.axhline(y, color=theme.muted, lw=1, ls=":")
    return fig


def relative(fork: Fork) -> Fork:
    """Norms relative to the root of their squares' sum; float64 (S, E), at most 1.

    Scaled before squaring, for norms of 1e-200 are rare but no reason to divide by 0.
    """
    largest = np.max(fork.values, axis=1, keepdims=True, initial=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = fork.values / largest
        return replace(fork, values=scaled / np.sqrt((scaled**2).sum(axis=1, keepdims=True)))


def spread(fork: Fork) -> float:
    """Decades between the strongest and the weakest edge, median over steps."""
    with np.errstate(divide="ignore"):
        logs = np.log10(fork.values)
    finite = logs[np.isfinite(logs).all(axis=1)]
    return float(np.median(np.ptp(finite, axis=1))) if len(finite) else 0.0


def _panel(axes: Axes, fork: Fork, colours: dict[str, str], theme: Theme) -> None:
    roles = [role(e) for e in fork.edges]
    for j, name in enumerate(roles):
        same = roles.count(name)
        at = roles[:j].count(name) / max(1, same - 1)
        y = np.where(
            np.isfinite(fork.values[:, j]) & (fork.values[:, j] > 0), fork.values[:, j], np.nan
        )
        marker = "o" if len(fork.steps) <= 3 else ""
        axes.plot(fork.steps, y, color=_paler(colours[name], theme.paper, 0.6 * at), marker=marker)


def _paler(colour: str, paper: str, share: float) -> str:
    mixed = (1 - share) * np.array(to_rgb(colour)) + share * np.array(to_rgb(paper))
    return to_hex(tuple(mixed))
