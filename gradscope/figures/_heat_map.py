"""Any positive metric by site and step, as a heat map with a logarithmic colour scale; fractions
on a linear one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from gradscope.figures import _axes
from gradscope.figures._figure import Mark, about
from gradscope.figures._grid import Grid, grid, held
from gradscope.figures._sites import Rows, rows_of
from gradscope.figures._style import WIDTH, Theme
from gradscope.figures._text import distinct, plain, shorten
from gradscope.run import Run

CELLS = 512
"""Columns drawn at most; a screen does not show more."""


class State(NamedTuple):
    """A kind of cell that a log scale can't show."""

    label: str
    colour: str
    where: Callable[[Grid], np.ndarray]


def heat_map(
    runs: Sequence[Run],
    kind: str,
    metrics: Mapping[str, str],
    unit: str,
    marks: Sequence[Mark],
    theme: Theme,
    *,
    hold: bool = False,
    empty: str = "not recorded",
    infinite: str = "",
    fractions: bool = False,
) -> Figure:
    """The heat map of any positive metric: runs side by side on one colour scale.

    Args:
        metrics: metric → title of its panel; of several, the panels of a run are side by side.
        hold: show each value until the next one was measured, for what is not measured at
            every recorded step.
        empty: what an empty cell means.
        infinite: what +∞ means, where that is no fault of the run.
        fractions: values lie between 0 and 1, and the scale is linear.
    """
    grids = [grid(r, kind, metric) for r in runs for metric in metrics]
    grids = [_held(g) for g in grids] if hold else grids
    marks = about(marks, kind)
    states = _states(theme, infinite)[fractions:]
    norm: Normalize
    if fractions:
        norm, extend = Normalize(0.0, 1.0), "neither"
    else:
        norm, extend = _axes.log_norm([g.positive for g in grids])
    rows = rows_of(grids)
    count, each = len(grids), len(metrics)
    across = each if each > 1 else min(count, 4 if rows.common else 2)
    down = -(-count // across)
    heights = [
        max(_axes.height_of_rows(len(s)) for s in rows.sites[i * across : (i + 1) * across])
        for i in range(down)
    ]
    if sum(heights) > 14:  # many runs with many sites each: a tall figure, not an endless one
        heights = [h * 14 / sum(heights) for h in heights]
    fig = Figure(figsize=(WIDTH, sum(heights) + 0.45 * down + 0.5), layout="constrained")
    panels = fig.subplots(
        down, across, squeeze=False, height_ratios=heights, sharey="row" if rows.common else False
    )
    steps = _axes.recorded_steps(runs)
    names = distinct([r.name for r in runs])
    for i, axes in enumerate(panels.flat):
        if i >= count:
            axes.set_axis_off()
            continue
        left = i % across == 0
        labelled = _row(i, across) if rows.common else (i,)
        shown = [m for m in marks if m.run in {k // each for k in labelled}]
        _panel(axes, grids[i], rows, i, norm, states, theme)
        if left or not rows.common:
            _axes.label_rows(
                axes,
                rows.sites[i],
                heights[i // across],
                theme,
                marks=shown,
                width=30 if across < 3 else 26,
            )
        else:
            axes.tick_params(axis="y", length=0, labelleft=False)
        _axes.step_axis(axes, steps, label=i + across >= count, ticks=8 // across + 1)
        titles = [shorten(names[i // each], 60 // across)] if len(runs) > 1 else []
        axes.set_title(plain(": ".join(filter(None, [*titles, [*metrics.values()][i % each]]))))
    bar = fig.colorbar(
        ScalarMappable(norm, _ramp(theme)),
        ax=panels,
        extend=extend,
        pad=0.01,
        fraction=0.03,
        aspect=24,
        anchor=(0.0, 1.0),
    )
    bar.outline.set_visible(False)
    if not fractions:
        _axes.log_ticks(bar.ax.yaxis, float(norm.vmin or 0), float(norm.vmax or 1))
    bar.set_label(unit)
    _legend(fig, grids, rows, states, theme, empty)
    return fig


def _row(i: int, across: int) -> range:
    return range(i // across * across, (i // across + 1) * across)


def _ramp(theme: Theme) -> Colormap:
    return mpl.colormaps[theme.ramp]


def _states(theme: Theme, infinite: str) -> list[State]:
    """Later ones are drawn over earlier ones."""
    zero = State("exactly 0", theme.zero, lambda g: g.zero)
    if not infinite:
        return [zero, State("NaN or infinite", theme.nonfinite, lambda g: g.nonfinite)]
    return [
        zero,
        State(infinite, theme.cycle[3], lambda g: g.present & (g.values == np.inf)),
        State("NaN", theme.nonfinite, lambda g: g.present & np.isnan(g.values)),
    ]


def _panel(
    axes: Axes,
    g: Grid,
    rows: Rows,
    i: int,
    norm: Normalize,
    states: Sequence[State],
    theme: Theme,
) -> None:
    axes.set_ylim(len(rows.sites[i]) - 0.5, -0.5)
    axes.grid(False)
    axes.set_facecolor(theme.absent)
    for side in axes.spines.values():
        side.set_visible(False)
    if not len(g):
        _axes.say(axes, "not recorded", theme)
        return
    borders = np.arange(len(rows.sites[i]) + 1) - 0.5
    log = isinstance(norm, LogNorm)
    shown = g.positive if log else np.where(g.nonfinite | ~g.present, np.nan, g.values)
    edges, values, marked = _binned(g.steps, shown, [state.where(g) for state in states], log=log)

    def draw(cells: np.ndarray, **look: Any) -> None:
        rowed = np.ma.masked_all((len(borders) - 1, cells.shape[0]))
        rowed[rows.at[i]] = cells.T
        axes.pcolormesh(edges, borders, rowed, rasterized=True, **look)

    draw(np.ma.masked_invalid(values), norm=norm, cmap=_ramp(theme))
    for state, cells in zip(states, marked, strict=True):
        if cells.any():
            draw(
                np.ma.masked_where(~cells, cells.astype(float)), cmap=ListedColormap([state.colour])
            )


def _held(g: Grid) -> Grid:
    ever = np.logical_or.accumulate(g.present, axis=0) if len(g) else g.present
    return replace(g, values=held(g.values, g.present), present=ever)


def _binned(
    steps: np.ndarray, values: np.ndarray, masks: Sequence[np.ndarray], *, log: bool
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Edges, values and masks of at most `CELLS` columns.

    A cell is the mean (`log`: the geometric mean) of the values in it; a mask that is set
    anywhere in a cell is set for the cell, for a single NaN must not be lost.
    """
    edges = _axes.step_edges(steps)
    if len(steps) <= CELLS:
        return edges, values, list(masks)
    starts = np.unique(np.linspace(0, len(steps), CELLS, endpoint=False).astype(int))
    summed = np.log(values) if log else values
    count = np.add.reduceat(np.isfinite(summed), starts, axis=0)
    total = np.add.reduceat(np.nan_to_num(summed), starts, axis=0)
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    mean = np.exp(mean) if log else mean
    marked = [np.logical_or.reduceat(m, starts, axis=0) for m in masks]
    return np.append(edges[starts], edges[-1]), mean, marked


def _legend(
    fig: Figure,
    grids: Sequence[Grid],
    rows: Rows,
    states: Sequence[State],
    theme: Theme,
    empty: str,
) -> None:
    found = [(s.colour, s.label) for s in states if any(s.where(g).any() for g in grids)]
    gaps = any(not g.present.all() for g in grids)
    if gaps or any(len(at) < len(s) for at, s in zip(rows.at, rows.sites, strict=True)):
        found.append((theme.absent, empty))
    if found:
        patches = [Patch(color=colour, label=label) for colour, label in found]
        fig.legend(handles=patches, loc="outside lower right", ncols=len(patches))
