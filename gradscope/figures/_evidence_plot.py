"""A finding's own small figure: its series, its steps shaded, the rule's thresholds labelled.

Laid out by hand: matplotlib's layout engines measure every text twice, and a report has a dozen
of these in two themes each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from gradscope.figures import _axes
from gradscope.figures._evidence import Evidence, Limit, Series, evidence_of
from gradscope.figures._figure import Mark
from gradscope.figures._style import LIGHT, Theme, depth_ramp, style
from gradscope.figures._text import number, plain
from gradscope.run import Run

WIDTH, HEIGHT = 7.2, 2.2
"""Inches; higher where the legend is long."""
LEFT, RIGHT, TOP, BOTTOM = 0.76, 0.12, 0.3, 0.44
"""Inches around the axes: room for tick labels, the title and the name of the axis of steps."""
ENTRY, LETTER = 0.155, 0.063
"""Inches that a line of the legend is high, and that a letter is wide, about."""
ASIDE = 2.1
"""Inches for the legend, so that the axes of most findings are alike; more for long names."""
MARKS = 50
"""Marks at an edge of the axes, at most, of one line."""
FEW = 3
"""Steps up to which points are drawn beside the lines."""

REFERENCE: dict[str, Any] = {"lw": 1.1, "ls": (0, (1, 1.2))}
CROSS: dict[str, Any] = {"marker": "x", "ls": "", "ms": 4.5}
ZERO: dict[str, Any] = {"marker": "v", "ls": "", "ms": 4.5}
REST: dict[str, Any] = {"lw": 0, "alpha": 0.3}

Entry = tuple[Any, str]
"""Of the legend: handle, text."""


def evidence(run: Run, mark: Mark, theme: Theme = LIGHT) -> Figure | None:
    """The figure of one finding, or None where the run holds no numbers of it (`Evidence.missing`
    says which)."""
    found = evidence_of(run, mark)
    return None if found.missing else draw(found, mark.severity, theme)


def draw(found: Evidence, severity: str, theme: Theme) -> Figure:
    """Draw evidence that is not `missing`."""
    with style(theme):
        fig = Figure()
        axes = fig.add_axes((0, 0, 1, 1))
        colours = _colours(found, theme)
        entries = (_profile if found.once else _curves)(axes, found, colours, theme)
        entries += _thresholds(axes, found, theme.severity[severity])
        if not found.once:
            entries.append(_span(axes, found, theme.severity[severity]))
        entries += _beyond(axes, found, colours, theme)
        _scale(axes, found, theme)
        title = plain(found.title[:1].upper() + found.title[1:])
        axes.set_title(f"{title} (log scale)" if found.scale == "log" else title, size=9)
        axes.tick_params(labelsize=8)
        axes.xaxis.label.set_fontsize(8)
        _lay_out(fig, axes, entries)
        return fig


def _lay_out(fig: Figure, axes: Axes, entries: list[Entry]) -> None:
    letters = max(len(text) for _, text in entries)
    aside = max(ASIDE, 0.45 + LETTER * letters)
    height = max(HEIGHT, ENTRY * len(entries) + 0.2)
    fig.set_size_inches(WIDTH, height)
    width = max(WIDTH - aside - LEFT - RIGHT, 2.5)
    axes.set_position(
        (LEFT / WIDTH, BOTTOM / height, width / WIDTH, (height - BOTTOM - TOP) / height)
    )
    fig.legend(
        [handle for handle, _ in entries],
        [plain(text) for _, text in entries],
        loc="upper left",
        bbox_to_anchor=((LEFT + width + 0.06) / WIDTH, 1.0 - 0.06 / height),
        borderaxespad=0.0,
        handlelength=1.5,
        labelspacing=0.3,
        fontsize=8,
    )


def _colours(found: Evidence, theme: Theme) -> list[Any]:
    """By place in the forward pass where sites are compared, else told apart by hue."""
    count = len(found.lines)
    if (count > 3 and any(s.named for s in found.lines)) or count > len(theme.cycle):
        ramp = depth_ramp(theme)
        return [ramp(i / (count - 1)) for i in range(count)]
    return list(theme.cycle[:count])


def _curves(axes: Axes, found: Evidence, colours: list[Any], theme: Theme) -> list[Entry]:
    entries: list[Entry] = []
    _axes.step_axis(axes, found.steps, ticks=6)
    several, log = len(found.lines) > 1, found.scale == "log"
    for s, colour in zip(found.lines, colours, strict=True):
        look: dict[str, Any] = {"color": colour, "lw": 2.2 if s.named and several else 1.3}
        _line(axes, s, 3 if s.named else 2, log, **look)
        entries.append((Line2D([], [], **look), s.name))
    if found.reference is not None:
        look = REFERENCE | {"color": theme.ink}
        _line(axes, found.reference, 2, log, **look)
        entries.append((Line2D([], [], **look), found.reference.name))
    if found.band is not None:
        low = np.maximum(found.band.low, found.limits[0])
        grey = REST | {"color": theme.muted}
        axes.fill_between(found.band.steps, low, found.band.high, **grey)
        entries.append((Patch(**grey), found.band.name))
    return entries


def _line(axes: Axes, s: Series, zorder: float, log: bool, **look: Any) -> None:
    values = s.values
    if log:  # matplotlib would draw a line down to the edge
        values = np.where(values > 0, values, np.nan)
    axes.plot(s.steps, values, zorder=zorder, **look)
    there = np.isfinite(values)
    beside = np.concatenate([[False], there, [False]])
    alone = there & ~beside[:-2] & ~beside[2:]
    points = there if len(s.steps) <= FEW else alone
    if points.any():
        axes.plot(s.steps[points], values[points], "o", ms=3.5, color=look["color"], zorder=zorder)


def _profile(axes: Axes, found: Evidence, colours: list[Any], theme: Theme) -> list[Entry]:
    """All at one step: points side by side, in forward order."""
    entries: list[Entry] = []
    for i, (s, colour) in enumerate(zip(found.lines, colours, strict=True)):
        look: dict[str, Any] = {"color": colour, "marker": "o", "ls": "", "ms": 7 if s.named else 5}
        if not s.told:
            look |= {"color": theme.muted, "ms": 3}
        axes.plot([i] * len(s.values), s.values, **look)
        if s.told:
            entries.append((Line2D([], [], **look), s.name))
    if quiet := len(found.lines) - len(entries):
        look = {"color": theme.muted, "marker": "o", "ls": "", "ms": 3}
        entries.append((Line2D([], [], **look), f"{quiet} more"))
    if found.reference is not None:
        look = REFERENCE | {"color": theme.ink}
        axes.plot(*_across(found, found.reference), **look)
        entries.append((Line2D([], [], **look), found.reference.name))
    count = len(found.lines)
    axes.set_xlim(-0.6, count - 0.4)
    axes.set_xticks([])
    at = number(int(found.lines[0].steps[0]))
    axes.set_xlabel(f"in forward order, all at step {at}" if count > 1 else f"at step {at}")
    return entries


def _across(found: Evidence, what: Series | Limit) -> tuple[list[float], list[float]]:
    """The one value at the one step, from edge to edge."""
    at = found.lines[0].steps[0]
    here = what.values[what.steps == at] if len(what.steps) else what.values
    y = float(here[0]) if len(here) and np.isfinite(here[0]) else float("nan")
    return [-0.6, len(found.lines) - 0.4], [y, y]


def _thresholds(axes: Axes, found: Evidence, colour: str) -> list[Entry]:
    entries: list[Entry] = []
    for i, limit in enumerate(found.thresholds):
        look: dict[str, Any] = {"color": colour, "lw": 1.2, "ls": ("--", "-.", ":")[i % 3]}
        if found.once:
            axes.plot(*_across(found, limit), **look)
        elif len(limit.steps):
            values = np.where(np.isfinite(limit.values), limit.values, np.nan)
            axes.plot(limit.steps, values, marker="o" if len(values) == 1 else "", ms=3, **look)
        else:
            axes.axhline(limit.values[0], **look)
        entries.append((Line2D([], [], **look), limit.label))
    return entries


def _span(axes: Axes, found: Evidence, colour: str) -> Entry:
    """Shade the finding's steps; a single one gets a stripe that can be seen."""
    whole = float(found.steps[-1] - found.steps[0])
    gap = float(np.median(np.diff(found.steps))) if len(found.steps) > 1 else 1.0
    air = max(gap / 2, 0.004 * whole)
    axes.axvspan(found.first - air, found.last + air, color=colour, alpha=0.12, lw=0, zorder=0)
    first, last = number(found.first), number(found.last)
    text = f"found at step {first}" if first == last else f"found at steps {first}–{last}"
    return Patch(color=colour, alpha=0.2, lw=0), text


def _beyond(axes: Axes, found: Evidence, colours: list[Any], theme: Theme) -> list[Entry]:
    """Marks at the edges for what an axis can't show: NaN and infinity, and 0 on a log scale."""
    entries: list[Entry] = []
    for i, (s, colour) in enumerate(zip(found.lines, colours, strict=True)):
        _at_edge(axes, found, i, s.lost, 0.96, CROSS | {"color": theme.nonfinite})
        if found.scale == "log":
            zero = s.steps[s.values == 0]
            _at_edge(axes, found, i, zero, 0.03, ZERO | {"color": colour})
    if any(len(s.lost) for s in found.lines):
        look = CROSS | {"color": theme.nonfinite}
        entries.append((Line2D([], [], **look), "NaN or infinite"))
    if found.scale == "log" and any((s.values == 0).any() for s in found.lines):
        look = ZERO | {"color": theme.muted}
        entries.append((Line2D([], [], **look), "exactly 0"))
    return entries


def _at_edge(
    axes: Axes, found: Evidence, place: int, steps: np.ndarray, y: float, look: dict[str, Any]
) -> None:
    """Marks at a height of the axes; at most `MARKS`, where they would run into one another."""
    if not len(steps):
        return
    x = np.full(1, place) if found.once else steps
    if len(x) > MARKS:
        first, last = found.steps[0], found.steps[-1]
        _, one_each = np.unique((x - first) * MARKS // (last - first + 1), return_index=True)
        x = x[one_each]
    where = axes.get_xaxis_transform()
    axes.plot(x, np.full(len(x), y), transform=where, clip_on=False, **look)


def _scale(axes: Axes, found: Evidence, theme: Theme) -> None:
    if found.scale == "log":
        _axes.log_axis(axes, "y", found.limits, ticks=5)
        return
    axes.set_ylim(*found.limits)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    _axes.plain_ticks(axes)
    if not any(np.isfinite(s.values).any() for s in found.lines):
        axes.set_yticks([])
        _axes.say(axes, "no value was finite", theme)
