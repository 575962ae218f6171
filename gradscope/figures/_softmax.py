"""How saturated each softmax is, and what it lets through, over training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradscope.figures import _axes
from gradscope.figures._figure import Mark, figure
from gradscope.figures._grid import Grid, grid
from gradscope.figures._style import WIDTH, Theme, depth_ramp
from gradscope.figures._text import distinct, plain, shorten, shorten_all
from gradscope.run import Run

NAMED = 8
"""Softmaxes up to which each is named in the legend; beyond, colour gives their order."""


class Panel(NamedTuple):
    """One metric's panel: title, and what its lowest and its highest values mean."""

    metric: str
    title: str
    axis: str
    bounds: tuple[float, float] | None


PANELS = (
    Panel("entropy", "entropy: 1 even, 0 all on one", "H / log n", (0.0, 1.0)),
    Panel("max_prob", "largest probability", "max p", (0.0, 1.0)),
    Panel("jacobian_norm", "slope of the softmax", "‖diag p − ppᵀ‖", None),
    Panel("gain", "gain: gradient out / gradient in", "‖Jᵀg‖ / ‖g‖", None),
)


@figure(
    title="Softmax: how sharp it is, and what it lets through",
    caption=(
        "One line for each attention softmax, the first layer darkest. A softmax weakens the "
        "gradient in two ways. Where entropy falls to 0 and the largest probability rises to 1 it "
        "is peaked: its slope, and with it the gain, goes to 0. Where entropy stays at 1 it is "
        "diffuse: the gain is about 1/n for n positions (dotted, where all softmaxes share one "
        "n; the dotted slope is that of an even distribution). Gains of softmaxes in a chain "
        "multiply. All values are means over the measured rows."
    ),
    caption_several=(
        "A row for each run, a line for each attention softmax, the first layer darkest; columns "
        "share their axes. Where entropy falls to 0 and the largest probability rises to 1 a "
        "softmax is peaked: its slope, and with it the gain, goes to 0. Where entropy stays at 1 "
        "it is diffuse: the gain is about 1/n for n positions (dotted, where all softmaxes share "
        "one n; the dotted slope is that of an even distribution). Gains of softmaxes in a chain "
        "multiply."
    ),
    requires=tuple(("softmax", p.metric) for p in PANELS),
    absent="no attention softmax was seen",
    shows=(("softmax", "*"),),
)
def softmax(runs: Sequence[Run], marks: Sequence[Mark], theme: Theme) -> Figure:
    grids = [{p.metric: grid(r, "softmax", p.metric) for p in PANELS} for r in runs]
    shown = [p for p in PANELS if any(len(g[p.metric]) for g in grids)]
    one = len(runs) == 1
    across = len(shown) if not one or len(shown) == 3 else min(2, len(shown))
    down = -(-len(shown) // across) if one else len(runs)
    height = 2.1 if one else max(1.25, 2.0 - 0.12 * down)
    fig = Figure(figsize=(WIDTH, height * down + 0.9), layout="constrained")
    panels = fig.subplots(down, across, squeeze=False, sharex=True, sharey=False)
    steps = _axes.recorded_steps(runs)
    names = distinct([r.name for r in runs])
    for i in range(len(runs)):
        for k, panel in enumerate(shown):
            axes = panels[divmod(k, across)] if one else panels[i, k]
            bottom = k + across >= len(shown) if one else i == len(runs) - 1
            _panel(axes, grids[i][panel.metric], theme)
            _scale(axes, panel, [g[panel.metric] for g in grids])
            _reference(axes, panel, [g[panel.metric] for g in grids], theme)
            _thresholds(axes, panel, [m for m in marks if m.run == i], theme)
            if one or i == 0:
                axes.set_title(panel.title if across < 3 else panel.title.split(":")[0])
            axes.set_ylabel(panel.axis if one else "" if k else plain(shorten(names[i], 18)))
            _axes.step_axis(axes, steps, label=bottom, ticks=8 // across + 1)
            axes.xaxis.set_tick_params(labelbottom=bottom)
    for axes in panels.flat[len(shown) if one else down * across :]:
        axes.set_axis_off()
    _legend(fig, grids[0][shown[0].metric].names if one else [], theme)
    return fig


def _panel(axes: Axes, g: Grid, theme: Theme) -> None:
    if not len(g):
        _axes.say(axes, "not recorded", theme)
        return
    ramp = depth_ramp(theme)
    thin = len(g.sites) > NAMED
    for j in range(len(g.sites)):
        y = np.where(np.isfinite(g.values[:, j]), g.values[:, j], np.nan)
        axes.plot(
            g.steps,
            y,
            color=ramp(j / max(1, len(g.sites) - 1)),
            lw=1.0 if thin else 1.6,
            marker="o" if len(g.steps) <= 3 else "",
            ms=4,
        )


def _scale(axes: Axes, panel: Panel, grids: Sequence[Grid]) -> None:
    """The same for all runs: fixed where the metric is bounded, logarithmic for gains,
    which multiply, and where values differ widely."""
    if panel.bounds:
        axes.set_ylim(panel.bounds[0] - 0.03, panel.bounds[1] + 0.03)
        return
    values = np.concatenate([g.positive[np.isfinite(g.positive)] for g in grids] or [[]])
    if not values.size:
        return
    if panel.metric == "gain" or values.max() / values.min() > 30:
        _axes.log_axis(axes, "y", _axes.log_limits([values, _diffuse(panel, grids)]))
    else:
        axes.set_ylim(0, float(values.max()) * 1.08)
        _axes.plain_ticks(axes)


def _diffuse(panel: Panel, grids: Sequence[Grid]) -> np.ndarray:
    """What the metric is for an even distribution, if all softmaxes have rows of one length."""
    lengths = {s.shape[-1] for g in grids for s in g.sites if s.shape}
    if len(lengths) != 1 or (n := lengths.pop()) < 2:
        return np.array([])
    even = {"jacobian_norm": math.sqrt(n - 1) / n, "gain": 1 / n}
    return np.array([even[panel.metric]] if panel.metric in even else [])


def _reference(axes: Axes, panel: Panel, grids: Sequence[Grid], theme: Theme) -> None:
    for y in _diffuse(panel, grids):
        axes.axhline(y, color=theme.muted, lw=1, ls=":")


def _thresholds(axes: Axes, panel: Panel, marks: Sequence[Mark], theme: Theme) -> None:
    """Where findings begin, in the colour of their severity."""
    for m in marks:
        if m.kind == "softmax" and m.metric == panel.metric and not m.relative_to:
            for label, y in m.thresholds.items():
                colour = theme.severity[m.severity]
                axes.axhline(y, color=colour, lw=1, ls="--")
                text = plain(f"{m.label} {label}")
                axes.text(
                    1,
                    y,
                    text,
                    color=colour,
                    fontsize=8,
                    ha="right",
                    va="bottom",
                    transform=axes.get_yaxis_transform(),
                    zorder=5,
                    bbox={"facecolor": theme.paper, "alpha": 0.85, "lw": 0, "pad": 1},
                )


def _legend(fig: Figure, names: Sequence[str], theme: Theme) -> None:
    ramp = depth_ramp(theme)
    if names and len(names) <= NAMED:
        labels = [plain(t) for t in shorten_all(names, 34)]
    else:
        labels = ["first softmax", "half-way", "last softmax"]
    places = np.linspace(0, 1, len(labels)) if len(labels) > 1 else [0.0]
    handles = [Line2D([], [], color=ramp(x), lw=2.5) for x in places]
    fig.legend(handles, labels, loc="outside lower left", ncols=4 if len(names) < 5 else 3)
