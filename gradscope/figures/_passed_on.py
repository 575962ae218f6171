"""What layers pass on: how many directions it uses, and what a linear probe reads from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from gradscope.figures import _axes
from gradscope.figures._figure import Mark, figure
from gradscope.figures._grid import Grid, grid
from gradscope.figures._style import WIDTH, Theme
from gradscope.figures._text import distinct, plain, shorten, shorten_all
from gradscope.run import Run, Site

NAMED = 6
"""Sites up to which each is named; beyond, colour gives their order."""
PROBES = 12
"""Probes shown of a run, at most."""


class Reading(NamedTuple):
    """A probe's held-out accuracy.

    Attributes:
        first, last: at the first and the last step that it was trained at.
        majority, shuffled: its baselines at the last one; NaN where not recorded.
    """

    name: str
    first: float
    last: float
    majority: float
    shuffled: float


@figure(
    title="What layers pass on",
    caption=(
        "Left: the effective rank of module outputs, the number of directions that their samples "
        "really use, by optimizer step. The dotted line is the most it could be: the size of the "
        "output, or the number of samples in the batch less one, where that is smaller; a curve "
        "far below it carries little for its size. Right: linear probes, the share of held-out "
        "samples whose label can be read from what a layer hands on; the hollow dot is the first "
        "measurement, the full one the last. The bar is what always giving the commonest label "
        "reaches, the cross what the same probe reaches on shuffled labels: only what lies "
        "right of both was read from the features."
    ),
    caption_several=(
        "A row a run, on common axes. Left: the effective rank of module outputs, the number of "
        "directions that their samples really use; the dotted line is the most it could be (size "
        "of the output, or samples in the batch less one). Right: linear probes, the share of "
        "held-out samples whose label can be read from what a layer hands on; the hollow dot is "
        "the first measurement, the full one the last. The bar is what always giving the "
        "commonest label reaches, the cross what the same probe reaches on shuffled labels."
    ),
    requires=(("module", "effective_rank"), ("probe", "accuracy")),
    absent=(
        "neither effective ranks nor probes were recorded (ask for them with "
        "scope.effective_rank() and scope.probe())"
    ),
    shows=(("module", "effective_rank"), ("probe", "*")),
)
def passed_on(runs: Sequence[Run], marks: Sequence[Mark], theme: Theme) -> Figure:
    ranks = [grid(r, "module", "effective_rank") for r in runs]
    found = [readings(r) for r in runs]
    with_ranks, with_probes = any(len(g) for g in ranks), any(found)
    across = with_ranks + with_probes
    most = max(map(len, found), default=0)
    height = max(1.9 if len(runs) > 1 else 2.6, 0.3 * most + 0.5)
    height = min(height, 17 / len(runs))
    fig = Figure(figsize=(WIDTH, height * len(runs) + 0.9), layout="constrained")
    panels = fig.subplots(len(runs), across, squeeze=False, sharex="col")
    limits = _axes.log_limits([np.array(_capacities(g)) for g in ranks] + [g.values for g in ranks])
    names = list(dict.fromkeys(n for g in ranks for n in g.names))
    named = names if len(names) <= NAMED else []
    steps = _axes.recorded_steps(runs)
    labels = distinct([r.name for r in runs])
    for i in range(len(runs)):
        label = i == len(runs) - 1
        name = shorten(labels[i], 30) if len(runs) > 1 else ""
        if with_ranks:
            axes = panels[i, 0]
            _ranks(axes, ranks[i], named, theme)
            _axes.log_axis(axes, "y", limits, ticks=5)
            _axes.step_axis(axes, steps, label=label, ticks=6)
            axes.set_ylabel("dimensions")
            axes.set_title(plain(f"{name}: effective rank" if name else "effective rank"))
        if with_probes:
            axes = panels[i, -1]
            _probes(axes, found[i], label, theme)
            axes.set_title(plain(f"{name}: linear probes" if name else "linear probes"))
    _legend(fig, named, with_ranks, with_probes, theme)
    return fig


def readings(run: Run) -> list[Reading]:
    """The probes of a run in the order recorded, at most `PROBES`."""
    accuracy = grid(run, "probe", "accuracy")
    bases = [grid(run, "probe", metric) for metric in ("majority", "shuffled")]
    found = []
    for j, name in enumerate(accuracy.names):
        values = accuracy.column(j)[1]
        values = values[np.isfinite(values)]
        last = [
            float(g.column(g.names.index(name))[1][-1]) if name in g.names else math.nan
            for g in bases
        ]
        if len(values):
            found.append(Reading(name, float(values[0]), float(values[-1]), *last))
    return found[:PROBES]


def capacity(site: Site) -> float:
    """The most an effective rank can be: B samples of n numbers span min(B - 1, n) dimensions."""
    if len(site.shape) < 2:
        return math.nan
    return float(min(site.shape[0] - 1, math.prod(site.shape[1:])))


def _capacities(g: Grid) -> list[float]:
    return sorted({c for s in g.sites if math.isfinite(c := capacity(s)) and c > 0})


def _ranks(axes: Axes, g: Grid, named: Sequence[str], theme: Theme) -> None:
    if not len(g):
        _axes.say(axes, "no effective rank recorded", theme)
        return
    for j in range(len(g.sites)):
        y = np.where(np.isfinite(g.values[:, j]), g.values[:, j], np.nan)
        rows = g.present[:, j]
        dots = "o" if rows.sum() <= 3 else ""
        place = j / max(1, len(g.sites) - 1)
        colour = theme.cycle[named.index(g.names[j])] if named else _ramp(place, theme)
        axes.plot(g.steps[rows], y[rows], color=colour, marker=dots, ms=4)
    for most in _capacities(g):
        axes.axhline(most, color=theme.muted, lw=1.2, ls=":")


def _ramp(place: float, theme: Theme) -> str:
    low, high = (0.0, 0.85) if theme.name == "light" else (0.25, 1.0)
    return to_hex(mpl.colormaps[theme.ramp](low + (high - low) * place))


def _probes(axes: Axes, found: Sequence[Reading], label: bool, theme: Theme) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    if label:
        axes.set_xlabel("right answers on held-out samples")
    if not found:
        _axes.say(axes, "no probe recorded", theme)
        axes.set_yticks([])
        return
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_yticks(range(len(found)), [plain(t) for t in shorten_all((r.name for r in found), 34)])
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.grid(axis="y", visible=False)
    colour = theme.cycle[0]
    for i, r in enumerate(found):
        axes.plot([r.first, r.last], [i, i], color=colour, lw=1.6, alpha=0.5)
        axes.plot([r.first], [i], "o", ms=5.5, mfc=theme.paper, mec=colour)
        axes.plot([r.last], [i], "o", ms=6, color=colour)
        axes.plot([r.majority], [i], "|", ms=13, mew=2, color=theme.ink)
        axes.plot([r.shuffled], [i], "x", ms=5.5, mew=1.5, color=theme.muted)


def _legend(
    fig: Figure, named: Sequence[str], with_ranks: bool, with_probes: bool, theme: Theme
) -> None:
    handles: list[Line2D] = []
    texts: list[str] = []
    if with_ranks and named:
        handles += [Line2D([], [], color=theme.cycle[j], lw=2.5) for j in range(len(named))]
        texts += shorten_all(named, 30)
    elif with_ranks:
        handles += [Line2D([], [], color=_ramp(place, theme), lw=2.5) for place in (0.0, 1.0)]
        texts += ["first site", "last site"]
    if with_ranks:
        handles.append(Line2D([], [], color=theme.muted, ls=":"))
        texts.append("most it could be")
    if with_probes:
        dot: dict[str, Any] = {"ls": "", "color": theme.cycle[0], "marker": "o"}
        handles.append(Line2D([], [], **dot, mfc=theme.paper))
        handles.append(Line2D([], [], **dot))
        handles.append(Line2D([], [], ls="", marker="|", ms=10, mew=2, color=theme.ink))
        handles.append(Line2D([], [], ls="", marker="x", color=theme.muted))
        texts += ["first", "last measured", "commonest label", "shuffled labels"]
    fig.legend(handles, [plain(t) for t in texts], loc="outside lower left", ncols=5)
