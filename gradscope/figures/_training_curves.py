"""Everything logged over training: loss, accuracy, learning rate, and when findings held."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradscope.figures import _axes
from gradscope.figures._figure import Mark, figure
from gradscope.figures._grid import Grid, grid
from gradscope.figures._style import WIDTH, Theme
from gradscope.figures._text import distinct, plain, shorten
from gradscope.run import Run

PANELS = 5
"""Panels at most; loss and accuracy come first."""
BARS = 10
"""Findings on the time line at most, worst first."""
SMOOTH_FROM = 60
"""Points from which on a noisy curve is drawn as a running median in a band."""

NAMED = 6
"""Curves of one panel that the legend names, at most."""
SKIPPED = "skipped_steps"


class Own(NamedTuple):
    """What is known of a scalar that gradscope logs itself: what it is, and its unit."""

    says: str
    unit: str


OWN = {
    "lr": Own("learning rate", "step size"),
    "clip_norm": Own("norm of the gradient before it was clipped", "‖g‖₂"),
    "clip_scale": Own("share of the gradient that clipping left", "fraction"),
    "loss_scale": Own("factor that the gradient scaler puts on the loss", "factor"),
}

_SPLIT = re.compile(r"(train|training|val|valid|validation|dev|test|eval)[_/.\- ]+(.+)")
_HELD_OUT = {"val", "valid", "validation", "dev", "test", "eval"}


class Series(NamedTuple):
    """One logged scalar: the panel it belongs to, and on which data it was measured."""

    panel: str
    name: str
    held_out: bool


@figure(
    title="Training curves",
    caption=(
        "What was logged, by optimizer step; validation values are dashed, with a dot for each. "
        "Long noisy curves are drawn as a running median, in a band that holds the middle 80 % "
        "of the values around it; a cross at the upper edge is a value that was NaN or infinite. "
        "Scalars that never changed are left out, and so are the seconds of a step. Triangles at "
        "the lower edge are steps before which a gradient scaler threw some away. Bars below the "
        "curves show at which steps each finding held: one that begins where a curve bends is "
        "worth a look."
    ),
    caption_several=(
        "What was logged, by optimizer step, one colour a run; validation values are dashed, "
        "with a dot for each. Long noisy curves are drawn as a running median, in a band that "
        "holds the middle 80 % of the values around it; a cross at the upper edge is a value "
        "that was NaN or infinite. Scalars that never changed are left out. Triangles at the lower "
        "edge are steps before which a gradient scaler threw some away. Bars below the curves show "
        "at which steps each finding held."
    ),
    requires=(("scalar", "value"),),
    absent="no scalar was logged: pass loss and accuracy to scope.log()",
    shows=(("scalar", "*"),),
)
def training_curves(runs: Sequence[Run], marks: Sequence[Mark], theme: Theme) -> Figure:
    logged = [grid(r, "scalar", "value") for r in runs]
    panels = panels_of(name for g in logged for name in _worth_drawing(g))
    panels = (panels or panels_of(name for g in logged for name in g.names))[:PANELS]
    bars = sorted(marks, key=lambda m: _axes.WORST_FIRST.index(m.severity))[:BARS]
    heights = [2.1 if i < 2 else 1.3 for i in range(len(panels))]
    if bars:
        heights.append(0.18 * len(bars) + 0.15)
    fig = Figure(figsize=(WIDTH, sum(heights) + 0.35 * len(heights) + 0.3), layout="constrained")
    rows = list(
        fig.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights).flat
    )
    for axes, panel in zip(rows, panels, strict=False):
        _panel(axes, panel, logged, theme)
    if panels:
        at = panels.index("loss_scale") if "loss_scale" in panels else 0
        _skipped(rows[at], logged, theme)
    if bars:
        _timeline(rows[-1], bars, runs, theme)
        for axes in rows[:-1]:
            _beginnings(axes, bars, runs, theme)
    # Scalars may have been logged at more steps than gradients were recorded.
    steps = np.unique(np.concatenate([r.steps for r in runs] + [g.steps for g in logged]))
    for axes in rows:
        _axes.step_axis(axes, steps, label=axes is rows[-1])
    fig.align_ylabels(rows)
    if len(runs) > 1:
        _legend(fig, runs, theme)
    return fig


def panels_of(scalars: Iterable[str]) -> list[str]:
    """Names of the panels: loss, accuracy, then the rest; timings come last."""
    names = {series_of(s).panel for s in scalars}

    def rank(name: str) -> tuple[int, str]:
        if name in ("lr", "learning_rate"):
            return (4, name)
        if name in OWN:
            return (5, name)
        if "loss" in name:
            return (0 if name == "loss" else 1, name)
        if "acc" in name:
            return (2, name)
        return (6 if "seconds" in name or "time" in name else 3, name)

    return sorted(names, key=rank)


def _worth_drawing(g: Grid) -> list[str]:
    """Names of the scalars, without settings and timings, which are no learning curves."""
    columns = ((name, *g.column(j)) for j, name in enumerate(g.names))
    return [
        name
        for name, _, values in columns
        if name not in ("step_seconds", SKIPPED)
        and (len(values) == 1 or len(np.unique(values)) > 1 or _is_headline(name))
    ]


def _is_headline(name: str) -> bool:
    return name not in OWN and ("loss" in name or "acc" in name)


def series_of(name: str) -> Series:
    """`val_accuracy` belongs beside `accuracy`, and was measured on held-out data; `lr[0]` is the
    learning rate of one of several groups of parameters."""
    if re.fullmatch(r"lr\[\d+\]", name):
        return Series("lr", name, False)
    match = _SPLIT.fullmatch(name)
    if not match:
        return Series(name, name, False)
    return Series(match[2], name, match[1] in _HELD_OUT)


def _panel(axes: Axes, panel: str, logged: Sequence[Grid], theme: Theme) -> None:
    drawn: list[np.ndarray] = []
    lines: dict[str, Line2D] = {}
    for i, g in enumerate(logged):
        for j, name in enumerate(g.names):
            series = series_of(name)
            if series.panel != panel:
                continue
            colour = theme.cycle[i % len(theme.cycle)]
            if len(logged) == 1:
                colour = _of_one(theme, series.held_out, len(lines))
            drawn.append(_curve(axes, *g.column(j), series.held_out, colour))
            lines[name] = Line2D([], [], color=colour, ls=_dashes(series.held_out))
    _scale(axes, drawn, panel)
    title = shorten(panel, 60)
    axes.set_title(plain(f"{title}: {OWN[panel].says}" if panel in OWN else title))
    if len(logged) == 1 and len(lines) > 1:
        names = [*lines][:NAMED]
        axes.legend([lines[n] for n in names], [plain(shorten(n, 40)) for n in names])


def _of_one(theme: Theme, held_out: bool, place: int) -> str:
    """Colour of a curve where there is one run: the second is kept for held-out data."""
    others = [theme.cycle[0], *theme.cycle[2:]]
    return theme.cycle[1] if held_out else others[place % len(others)]


def _skipped(axes: Axes, logged: Sequence[Grid], theme: Theme) -> None:
    """Mark the steps before which a gradient scaler skipped some."""
    at_bottom = axes.get_xaxis_transform()
    for i, g in enumerate(logged):
        if SKIPPED in g.names:
            steps, count = g.column(g.names.index(SKIPPED))
            steps = steps[count > 0]
            colour = theme.muted if len(logged) == 1 else theme.cycle[i % len(theme.cycle)]
            y = np.full(len(steps), 0.03)
            axes.plot(steps, y, "^", color=colour, ms=5, transform=at_bottom, clip_on=False)


def _dashes(held_out: bool) -> str:
    return "--" if held_out else "-"


def _curve(axes: Axes, steps: np.ndarray, y: np.ndarray, held_out: bool, colour: str) -> np.ndarray:
    """Draw one scalar; return the values its axis must hold."""
    finite = np.isfinite(y)
    if not finite.all():
        lost, at_top = steps[~finite], axes.get_xaxis_transform()
        axes.plot(lost, np.full(len(lost), 0.97), "x", color=colour, ms=4, transform=at_top)
    y = np.where(finite, y, np.nan)
    shown = [y]
    if len(y) > SMOOTH_FROM and not held_out and _noisy(y):
        low, y, high = (running_quantile(y, q, max(9, len(y) // 20)) for q in (0.1, 0.5, 0.9))
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, lw=0)
        shown = [low, high]
    few = len(y) <= 3 or (held_out and len(y) <= 200)
    axes.plot(steps, y, color=colour, ls=_dashes(held_out), marker="o" if few else "", ms=3)
    return np.concatenate(shown)


def running_quantile(values: np.ndarray, q: float, window: int) -> np.ndarray:
    """Of a centred window; NaN only where the whole window is."""
    windows = pd.Series(values).rolling(window, center=True, min_periods=1)
    return windows.quantile(q).to_numpy(float)


def _noisy(values: np.ndarray) -> bool:
    """Whether neighbours differ in both directions often, as they don't on a schedule."""
    change = np.diff(values[np.isfinite(values)])
    turns = np.sum(change[1:] * change[:-1] < 0)
    return bool(len(change) > 2 and turns > 0.2 * len(change))


def _scale(axes: Axes, drawn: Sequence[np.ndarray], panel: str) -> None:
    values = np.concatenate([*drawn, [np.nan]])
    values = values[np.isfinite(values)]
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    unit = OWN[panel].unit if panel in OWN else "as logged"
    if ("acc" in panel or unit == "fraction") and low >= 0 and high <= 1:
        axes.set_ylim(-0.02, 1.02)
        axes.set_ylabel("fraction")
    elif low > 0 and high / low > 50:
        _axes.log_axis(axes, "y", _axes.log_limits([values]))
        axes.set_ylabel(f"{unit} (log scale)")
    else:
        air = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - air, high + air)
        axes.set_ylabel(unit)
        _axes.plain_ticks(axes)


def _timeline(axes: Axes, bars: Sequence[Mark], runs: Sequence[Run], theme: Theme) -> None:
    axes.set_title("findings")
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    short = distinct([r.name for r in runs])
    names = ["" if len(runs) == 1 else f"{shorten(short[m.run], 14)}  " for m in bars]
    axes.set_yticks(
        range(len(bars)), [plain(n + m.label) for n, m in zip(names, bars, strict=True)]
    )
    axes.tick_params(axis="y", length=0)
    for i, m in enumerate(bars):
        colour = _colour(m, runs, theme)
        axes.plot([m.first_step, m.last_step], [i, i], color=colour, lw=5, solid_capstyle="butt")
        axes.plot([m.first_step], [i], marker="o", color=colour, ms=5.5)
        axes.get_yticklabels()[i].set_color(colour)
        axes.get_yticklabels()[i].set_fontweight("bold")


def _beginnings(axes: Axes, bars: Sequence[Mark], runs: Sequence[Run], theme: Theme) -> None:
    """A hairline where a finding began; one that held from the start needs none."""
    for m in bars:
        if m.first_step > min(runs[m.run].steps, default=m.first_step):
            axes.axvline(m.first_step, color=_colour(m, runs, theme), lw=0.8, ls=":", zorder=1)


def _colour(m: Mark, runs: Sequence[Run], theme: Theme) -> str:
    """Of severity; of the run where there are several, as everywhere in the figure."""
    return theme.severity[m.severity] if len(runs) == 1 else theme.cycle[m.run % len(theme.cycle)]


def _legend(fig: Figure, runs: Sequence[Run], theme: Theme) -> None:
    handles = [
        Line2D([], [], color=theme.cycle[i % len(theme.cycle)], lw=3) for i in range(len(runs))
    ]
    labels = [plain(shorten(n, 28)) for n in distinct([r.name for r in runs])]
    fig.legend(handles, labels, loc="outside upper left", ncols=min(4, len(runs)))
