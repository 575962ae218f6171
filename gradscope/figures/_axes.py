"""Axes shared by the figures: optimizer steps, logarithms, and rows of sites."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from gradscope.figures._figure import Mark
from gradscope.figures._style import Theme
from gradscope.figures._text import number, plain, shorten_all, superscript
from gradscope.run import Run, Site

ROW = 0.145
"""Least height of a labelled row, in inches."""

WORST_FIRST = ("critical", "warning", "info")


def power_of_ten(value: float, _position: object = None) -> str:
    """Tick label of a logarithmic axis: 10⁻³, or 2×10⁻³ between the decades."""
    if value <= 0:
        return ""
    exponent = int(np.floor(np.log10(value) + 1e-9))
    mantissa = value / 10.0**exponent
    if -2 < exponent < 4:
        return number(float(value))
    if abs(mantissa - 1) < 1e-6:
        return f"10{superscript(exponent)}"
    return f"{mantissa:.0f}×10{superscript(exponent)}"


def log_axis(axes: Axes, which: str, limits: tuple[float, float], ticks: int = 7) -> None:
    """Make `which` ("x" or "y") logarithmic over `limits`, with at most `ticks` ticks."""
    low, high = limits
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    log_ticks(getattr(axes, f"{which}axis"), low, high, ticks)


def log_ticks(axis: Axis, low: float, high: float, ticks: int = 7) -> None:
    """Decades as ticks; where the range holds fewer than two, also what lies between."""
    decades = np.log10(high / low)
    subs = (1.0,) if decades > 2 else (1.0, 2.0, 5.0) if decades > 0.7 else tuple(range(1, 10))
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=ticks))
    axis.set_major_formatter(FuncFormatter(power_of_ten))
    axis.set_minor_locator(NullLocator())


def plain_ticks(axes: Axes) -> None:
    """Tick labels of a linear y axis in the notation of the tables, all with one exponent."""

    def text(y: float, _position: object) -> str:
        largest = max(abs(v) for v in axes.get_ylim())
        power = math.floor(math.log10(largest)) if largest else 0
        ticks = axes.get_yticks()
        step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else largest
        # What tells neighbours apart: 0.9955 and 0.997 have three digits in common.
        digits = max(3, power - math.floor(math.log10(step)) + 2) if step else 3
        if y == 0 or -3 < power < 5:
            return number(float(y), digits)
        return f"{number(float(y / 10.0**power), digits)}×10{superscript(power)}"

    axes.yaxis.set_major_formatter(FuncFormatter(text))


def log_limits(values: Iterable[np.ndarray]) -> tuple[float, float]:
    """Limits of a log axis that show every finite positive value, with a little air."""
    low, high = _extent(values)
    air = max((high / low) ** 0.04, 1.15)
    return low / air, high * air


def log_norm(values: Iterable[np.ndarray]) -> tuple[LogNorm, str]:
    """A common logarithmic colour scale, and at which ends values lie beyond it.

    Single outliers must not take the contrast from everything else: the scale covers the 1st
    to the 99th percentile and reaches on to the extremes where these are within two decades.
    """
    shown = np.concatenate([np.ravel(v[np.isfinite(v)]) for v in values])
    low, high = _extent([shown])
    inner = np.quantile(np.log10(shown), [0.01, 0.99]) if shown.size else np.zeros(2)
    bottom, top = max(low, 10 ** (inner[0] - 2)), min(high, 10 ** (inner[1] + 2))
    if top / bottom < 2:
        bottom, top = bottom / 1.5, top * 1.5
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max"}.get(
        (low < bottom, high > top), "both"
    )
    return LogNorm(bottom, top), extend


def _extent(values: Iterable[np.ndarray]) -> tuple[float, float]:
    found = [v[np.isfinite(v) & (v > 0)] for v in map(np.asarray, values)]
    found = [v for v in found if v.size]
    if not found:
        return 0.1, 1.0
    return min(float(v.min()) for v in found), max(float(v.max()) for v in found)


def recorded_steps(runs: Iterable[Run]) -> np.ndarray:
    """int64: the optimizer steps at which any of the runs recorded gradients."""
    return np.unique(np.concatenate([r.steps for r in runs]))


def step_axis(axes: Axes, steps: np.ndarray, *, label: bool = True, ticks: int = 8) -> None:
    """The x axis in optimizer steps; a few steps are the ticks themselves, and a single one
    gets room on both sides."""
    first, last = float(steps[0]), float(steps[-1])
    air = max(0.5, 0.01 * (last - first))
    axes.set_xlim(first - air, last + air)
    if len(steps) <= min(ticks, 4):
        axes.xaxis.set_major_locator(FixedLocator(list(steps)))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: number(round(x))))
    if label:
        axes.set_xlabel("optimizer step")


def step_edges(steps: np.ndarray) -> np.ndarray:
    """float (S+1,): cell borders half-way between neighbouring steps."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middle[0]], middle, [2 * steps[-1] - middle[-1]]])


def height_of_rows(rows: int) -> float:
    """Inches that a stack of `rows` sites deserves: roomy when few, at most a tall page."""
    return float(min(max(0.3 * min(rows, 8) + ROW * max(0, rows - 8), 1.6), 8.5))


def label_rows(
    axes: Axes,
    sites: Sequence[Site],
    height: float,
    theme: Theme,
    *,
    marks: Sequence[Mark] = (),
    width: int = 30,
) -> None:
    """Name the rows 0, 1, … of `axes`, as many as can be read.

    Rows that are marked come first, then the ends, then the shortest paths (the blocks, rather
    than what is inside them).
    """
    marked: dict[str, list[Mark]] = {}
    for m in marks:
        marked.setdefault(m.site, []).append(m)
    rows = _readable(sites, set(marked), gap=ROW * len(sites) / height)
    names = dict(zip(rows, shorten_all((sites[i].name for i in rows), width), strict=True))
    texts = []
    for i in rows:
        labels = " ".join(dict.fromkeys(m.label for m in marked.get(sites[i].name, ())[:3]))
        texts.append(plain(f"{labels}  {names[i]}" if labels else names[i]))
    axes.set_yticks(rows, texts)
    axes.tick_params(axis="y", length=2, labelsize=8)
    for i, tick in zip(rows, axes.get_yticklabels(), strict=True):
        if found := marked.get(sites[i].name):
            tick.set_color(theme.severity[worst(found)])
            tick.set_fontweight("bold")


def worst(marks: Sequence[Mark]) -> str:
    """The gravest severity among marks."""
    return min((m.severity for m in marks), key=WORST_FIRST.index)


def _readable(sites: Sequence[Site], marked: set[str], gap: float) -> list[int]:
    ends = {0, len(sites) - 1}

    def rank(i: int) -> tuple[int, int, int]:
        name = sites[i].name
        return (0 if name in marked else 1 if i in ends else 2, name.count("."), i)

    chosen: list[int] = []
    free = np.ones(len(sites), dtype=bool)
    for i in sorted(range(len(sites)), key=rank):
        if free[i]:
            chosen.append(i)
            reach = max(1, int(np.ceil(gap)))
            free[max(0, i - reach + 1) : i + reach] = False
    return sorted(chosen)


def say(axes: Axes, text: str, theme: Theme) -> None:
    """Write into an empty panel why it is empty."""
    where = axes.transAxes
    axes.text(0.5, 0.5, plain(text), ha="center", va="center", color=theme.muted, transform=where)
