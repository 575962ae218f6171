"""Any positive metric by site and step, as a heat map with a logarithmic colour scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap, ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from gradscope.figures import _axes
from gradscope.figures._figure import Mark, about
from gradscope.figures._grid import Grid, grid
from gradscope.figures._sites import Rows, rows_of
from gradscope.figures._style import WIDTH, Theme
from gradscope.figures._text import plain, shorten
from gradscope.run import Run

CELLS = 512
"""Columns drawn at most; a screen does not show more."""


def heat_map(
    runs: Sequence[Run],
    kind: str,
    metric: str,
    unit: str,
    marks: Sequence[Mark],
    theme: Theme,
    *,
    hold: bool = False,
    empty: str = "not recorded",
) -> Figure:
    """The heat map of any positive metric: runs side by side on one colour scale.

    Args:
        hold: show each value until the next one was measured, for what is not measured at
            every recorded step.
        empty: what an empty cell means.
    """
    grids = [_held(grid(r, kind, metric)) if hold else grid(r, kind, metric) for r in runs]
    marks = about(marks, kind)
    norm, extend = _axes.log_norm([g.positive for g in grids])
    rows = rows_of(grids)
    across = min(len(runs), 4 if rows.common else 2)
    down = -(-len(runs) // across)
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
    for i, axes in enumerate(panels.flat):
        if i >= len(runs):
            axes.set_axis_off()
            continue
        left = i % across == 0
        labelled = _row(i, across) if rows.common else (i,)
        shown = [m for m in marks if m.run in labelled]
        _panel(axes, grids[i], rows, i, norm, theme)
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
        _axes.step_axis(axes, steps, label=i + across >= len(runs), ticks=8 // across + 1)
        if len(runs) > 1:
            axes.set_title(plain(shorten(runs[i].name, 60 // across)))
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
    _axes.log_ticks(bar.ax.yaxis, float(norm.vmin or 0), float(norm.vmax or 1))
    bar.set_label(unit)
    _legend(fig, grids, rows, theme, empty)
    return fig


def _row(i: int, across: int) -> range:
    return range(i // across * across, (i // across + 1) * across)


def _ramp(theme: Theme) -> Colormap:
    return mpl.colormaps[theme.ramp]


def _panel(axes: Axes, g: Grid, rows: Rows, i: int, norm: LogNorm, theme: Theme) -> None:
    axes.set_ylim(len(rows.sites[i]) - 0.5, -0.5)
    axes.grid(False)
    axes.set_facecolor(theme.absent)
    for side in axes.spines.values():
        side.set_visible(False)
    if not len(g):
        _axes.say(axes, "not recorded", theme)
        return
    edges, values, nonfinite, zero = _binned(g)
    borders = np.arange(len(rows.sites[i]) + 1) - 0.5

    def spread(cells: np.ndarray, empty: object) -> np.ndarray:
        out = np.full((len(borders) - 1, cells.shape[0]), empty, dtype=cells.dtype)
        out[rows.at[i]] = cells.T
        return out

    mesh = axes.pcolormesh(
        edges,
        borders,
        np.ma.masked_invalid(spread(values, np.nan)),
        norm=norm,
        cmap=_ramp(theme),
        rasterized=True,
    )
    mesh.set_edgecolor("none")
    for cells, colour in ((zero, theme.zero), (nonfinite, theme.nonfinite)):
        _overlay(axes, edges, borders, spread(cells, False), colour)


def _overlay(
    axes: Axes, edges: np.ndarray, borders: np.ndarray, cells: np.ndarray, colour: str
) -> QuadMesh | None:
    if not cells.any():
        return None
    mask = np.ma.masked_where(~cells, np.ones(cells.shape))
    return axes.pcolormesh(edges, borders, mask, cmap=ListedColormap([colour]), rasterized=True)


def _held(g: Grid) -> Grid:
    rows = np.where(g.present, np.arange(len(g.steps))[:, None], -1)
    last = np.maximum.accumulate(rows, axis=0) if len(g) else rows
    values = np.take_along_axis(g.values, np.maximum(last, 0), axis=0)
    return replace(g, values=values, present=last >= 0)


def _binned(g: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Edges and cells of at most `CELLS` columns: geometric means; one NaN marks its cell."""
    edges = _axes.step_edges(g.steps)
    positive, nonfinite, zero = g.positive, g.nonfinite, g.zero
    if len(g.steps) <= CELLS:
        return edges, positive, nonfinite, zero
    starts = np.unique(np.linspace(0, len(g.steps), CELLS, endpoint=False).astype(int))
    logs = np.log(positive)
    count = np.add.reduceat(np.isfinite(logs), starts, axis=0)
    total = np.add.reduceat(np.nan_to_num(logs), starts, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(count > 0, np.exp(total / count), np.nan)
    return (
        np.append(edges[starts], edges[-1]),
        mean,
        np.logical_or.reduceat(nonfinite, starts, axis=0),
        np.logical_or.reduceat(zero, starts, axis=0) & (count == 0),
    )


def _legend(fig: Figure, grids: Sequence[Grid], rows: Rows, theme: Theme, empty: str) -> None:
    found = []
    if any(g.nonfinite.any() for g in grids):
        found.append(Patch(color=theme.nonfinite, label="NaN or infinite"))
    if any(g.zero.any() for g in grids):
        found.append(Patch(color=theme.zero, label="exactly 0"))
    if any(
        not g.present.all() or len(at) < len(s)
        for g, at, s in zip(grids, rows.at, rows.sites, strict=True)
    ):
        found.append(Patch(color=theme.absent, label=empty))
    if found:
        fig.legend(handles=found, loc="outside lower right", ncols=len(found))
