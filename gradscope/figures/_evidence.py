"""The numbers behind one finding, as series ready to draw: no looks, no matplotlib.

Index legend: S steps, C columns (a site, an edge of a site, or a process).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from gradscope.figures._figure import Mark
from gradscope.figures._grid import Grid, grid, held
from gradscope.figures._text import number, pretty, shorten, shorten_all
from gradscope.run import Run

LINES = 12
"""Series up to which each has its own line; of more, the ones that matter, and a band."""
NAME = 30
"""Characters of a name in the legend, about."""
DECADES = 30.0
"""Largest over smallest value from which on the scale is logarithmic."""
ZOOM = 0.25
"""Fractions that all lie within this much of 0, or of 1, get an axis of that end only."""

SAYS = {
    "grad_norm": "norm of the gradient",
    "grad_rms": "root mean square of the gradient",
    "grad_absmax": "largest element of the gradient",
    "zero_fraction": "share of the gradient that is exactly 0",
    "subnormal_fraction": "share of the gradient below float16's precision",
    "nonfinite": "NaN and infinite elements of the gradient",
    "weight_norm": "norm of the weights",
    "update_ratio": "relative update ‖Δw‖ / ‖w‖ of one step",
    "projection": "share of the gradient",
    "entropy": "entropy H / log n",
    "max_prob": "largest probability",
    "jacobian_norm": "slope of the softmax",
    "gain": "gain ‖Jᵀg‖ / ‖g‖",
    "saturated_fraction": "share of saturated elements",
    "dead_fraction": "share of dead units",
    "input_rms": "root mean square of the input",
    "input_peak": "root mean square of the input's largest feature",
    "width": "width of the cut, in numbers per sample",
    "mean_crossings": "mean number of softmaxes crossed",
    "value": "value as logged",
}
FRACTIONS = frozenset(
    "zero_fraction subnormal_fraction entropy max_prob saturated_fraction dead_fraction "
    "cancellation accuracy majority shuffled".split()
)
"""Metrics that can only lie between 0 and 1."""


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: as the legend has it.
        steps: int64 (S,), ascending, of this series alone.
        values: float64 (S,); NaN where it was NaN or infinite.
        lost: int64, the steps at which it was NaN or infinite.
        named: the finding is about this one.
        told: it has a name in the legend; of many at one step, only some have.
    """

    name: str
    steps: np.ndarray
    values: np.ndarray
    lost: np.ndarray
    named: bool = False
    told: bool = True


@dataclass(frozen=True)
class Band:
    """Lowest and highest of the series that have no line of their own; each float64 (S,)."""

    name: str
    steps: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Limit:
    """A threshold: constant (one value) or a multiple of another series (S,)."""

    label: str
    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """What a finding's own figure shows.

    Attributes:
        missing: why there is nothing to show; "" where there is.
        title: what is measured.
        scale: "fraction" is linear from 0 to 1, or an end of that.
        limits: of the axis of values, with air.
        steps: int64, what the axis of steps covers.
        first, last: steps of the finding.
        lines: in forward order.
        reference: what the lines add up to, where that was measured.
        band: of the series without a line.
        thresholds: those of the rule.
        once: everything was measured at one and the same step: points side by side.
        note: what else a reader must know, or "".
    """

    missing: str = ""
    title: str = ""
    scale: Literal["log", "linear", "fraction"] = "linear"
    limits: tuple[float, float] = (0.0, 1.0)
    steps: np.ndarray = field(default_factory=lambda: np.array([], dtype=np.int64))
    first: int = 0
    last: int = 0
    lines: tuple[Series, ...] = ()
    reference: Series | None = None
    band: Band | None = None
    thresholds: tuple[Limit, ...] = ()
    once: bool = False
    note: str = ""


def evidence_of(run: Run, mark: Mark) -> Evidence:
    """The series that a finding's view names, over the recorded steps of its run."""
    metric, sites = mark.metric, mark.sites or tuple(filter(None, [mark.site]))
    title = SAYS.get(metric, metric.replace("_", " "))
    found = _columns(run, mark, sites)
    if not len(found) and not mark.edges:
        # Measured by edge only, as the orders of a crossing: those of the site itself.
        edges = tuple(
            c.edge
            for c in run.columns
            if (c.kind, c.metric, c.site) == (mark.kind, metric, mark.site)
        )
        if edges:
            mark, sites = mark._replace(edges=edges), (mark.site,)
            found = _columns(run, mark, sites)
            title = f"{title} at {shorten(mark.site, 40)}"
    if not len(found):
        whose = f" of {_listed([*sites])}" if sites else ""
        return Evidence(f"Nothing to draw: the {title}{whose} was not recorded.")
    if mark.kind == "scalar" and len(set(found.names)) == 1:
        title = shorten(found.names[0], 60)
    ranks = run.ranks
    if len(found.names) == 1 and len(ranks) > 1:
        every, note = _of_ranks(run, mark, sites), "One line for each process."
    else:
        every = _series(found, mark)
        note = f"Means over {len(ranks)} processes." if len(ranks) > 1 else ""
    if unknown := [s for s in sites if s not in found.names]:
        note = f"{note} Not recorded: {_listed(unknown)}.".strip()
    once = len(np.unique(np.concatenate([s.steps for s in every]))) == 1
    kept = _worth_a_line(every, mark) if len(every) > LINES else [*range(len(every))]
    if once:
        lines = [replace(s, told=i in kept) for i, s in enumerate(every)]
        band = None
    else:
        lines = [every[i] for i in kept]
        band = _band([s for i, s in enumerate(every) if i not in kept])
    reference, limits = _reference(run, mark), _limits(run, mark)
    values = _values(lines, band, reference, limits)
    if all(len(s.values) and (s.values == 0).all() for s in every):
        note = f"{note} Exactly 0 wherever it was recorded.".strip()
    scale = _scale(mark, values)
    ends = np.array([mark.first_step, mark.last_step])
    return Evidence(
        title=title,
        scale=scale,
        limits=_extent(values, scale),
        steps=np.unique(np.concatenate([run.steps, ends, *(s.steps for s in every)])),
        first=mark.first_step,
        last=mark.last_step,
        lines=tuple(_renamed(lines)),
        reference=reference,
        band=band,
        thresholds=tuple(limits),
        once=once,
        note=note,
    )


def _columns(run: Run, mark: Mark, sites: tuple[str, ...]) -> Grid:
    """The columns that a view names: its edges, or the sites' own numbers."""
    own = grid(run, mark.kind, mark.metric, edges=bool(mark.edges))
    keep = [
        j
        for j, (name, edge) in enumerate(zip(own.names, own.edges, strict=True))
        if name in sites and (not mark.edges or edge in mark.edges) and own.present[:, j].any()
    ]
    return own.of(keep)


def _series(g: Grid, mark: Mark) -> list[Series]:
    several = len(set(g.names)) > 1
    found = []
    for j, (site, edge) in enumerate(zip(g.names, g.edges, strict=True)):
        name = _edge(edge, mark.kind) if edge else site
        if edge and several:
            name = f"{site}: {name}"
        named = site == mark.site and (not edge or several)
        found.append(_one(name, *g.column(j), named=named))
    return found


def _edge(edge: str, kind: str) -> str:
    if kind != "crossing":
        return edge
    return f"{edge} softmax{'es' * (edge != '1')} crossed"


def _one(name: str, steps: np.ndarray, values: np.ndarray, named: bool = False) -> Series:
    finite = np.isfinite(values)
    return Series(name, steps, np.where(finite, values, np.nan), steps[~finite], named)


def _of_ranks(run: Run, mark: Mark, sites: tuple[str, ...]) -> list[Series]:
    found = []
    for rank in run.ranks:
        own = _columns(run.of_rank(rank), mark, sites)
        if len(own):
            found.append(_one(f"rank {rank}", *own.column(0)))
    return found


def _worth_a_line(every: list[Series], mark: Mark) -> list[int]:
    """Of many: what the finding names and compares with, and the lowest and the highest."""
    kept = [i for i, s in enumerate(every) if s.named][: LINES - 3]
    kept += [i for i, s in enumerate(every) if s.name == mark.relative_to]
    sizes = [_median(s, mark) for s in every]
    known = [i for i, size in enumerate(sizes) if np.isfinite(size)]
    if known:
        kept += [min(known, key=lambda i: sizes[i]), max(known, key=lambda i: sizes[i])]
    kept += [i for i, s in enumerate(every) if len(s.lost)][:1]  # a NaN must not hide in a band
    return sorted(set(kept))


def _median(s: Series, mark: Mark) -> float:
    """While the finding held, or at all; NaN where it was never finite."""
    inside = (s.steps >= mark.first_step) & (s.steps <= mark.last_step)
    for values in (s.values[inside], s.values):
        if np.isfinite(values).any():
            return float(np.nanmedian(values))
    return float("nan")


def _band(rest: list[Series]) -> Band | None:
    """Of each series the latest value, for parameters take turns being measured."""
    if not rest:
        return None
    steps = np.unique(np.concatenate([s.steps for s in rest]))
    values = np.full((len(steps), len(rest)), np.nan)
    for j, s in enumerate(rest):
        values[np.searchsorted(steps, s.steps), j] = s.values
    latest = held(values, np.isfinite(values))
    some = np.isfinite(latest).any(axis=1)
    low = np.min(latest, axis=1, where=np.isfinite(latest), initial=np.inf)
    high = np.max(latest, axis=1, where=np.isfinite(latest), initial=-np.inf)
    name = f"{len(rest)} more, lowest to highest"
    return Band(name, steps, np.where(some, low, np.nan), np.where(some, high, np.nan))


def _reference(run: Run, mark: Mark) -> Series | None:
    """What the edges of a fork add up to, beside which they are to be read."""
    if not mark.edges:
        return None
    own = grid(run, mark.kind, mark.metric)
    if mark.site not in own.names:
        return None
    return _one("sum of all edges", *own.column(own.names.index(mark.site)))


def _limits(run: Run, mark: Mark) -> list[Limit]:
    if not mark.thresholds:
        return []
    if not mark.relative_to:
        nowhere = np.array([], dtype=np.int64)
        return [
            Limit(f"{pretty(label)}: {number(float(y))}", nowhere, np.array([float(y)]))
            for label, y in mark.thresholds.items()
            if np.isfinite(y)
        ]
    base, what = _base(run, mark)
    if base is None:
        return []
    return [
        Limit(
            pretty(label)
            if any(c.isdigit() for c in label)
            else f"{pretty(label)}: {number(float(factor))} of {what}",
            base.steps,
            base.values * float(factor),
        )
        for label, factor in mark.thresholds.items()
    ]


def _base(run: Run, mark: Mark) -> tuple[Series | None, str]:
    """What relative thresholds are multiples of: a site, or all edges of one, √Σ‖g_e‖²."""
    if not mark.edges:
        own = grid(run, mark.kind, mark.metric)
        if mark.relative_to not in own.names:
            return None, ""
        found = own.column(own.names.index(mark.relative_to))
        return _one(mark.relative_to, *found), shorten(mark.relative_to, NAME)
    edges = grid(run, mark.kind, mark.metric, edges=True).of_site(mark.relative_to)
    if not len(edges):
        return None, ""
    some = edges.present.any(axis=1)
    squares = np.where(edges.present, edges.values, 0.0)[some] ** 2
    return _one("all edges", edges.steps[some], np.sqrt(squares.sum(axis=1))), "all edges"


def _values(
    lines: list[Series], band: Band | None, reference: Series | None, limits: list[Limit]
) -> np.ndarray:
    parts = [s.values for s in lines] + [limit.values for limit in limits]
    parts += [band.low, band.high] if band else []
    parts += [reference.values] if reference else []
    values = np.concatenate(parts)
    return values[np.isfinite(values)]


def _scale(mark: Mark, values: np.ndarray) -> Literal["log", "linear", "fraction"]:
    between = bool(((values >= 0) & (values <= 1)).all())
    names = " ".join(mark.sites).lower()
    if between and (mark.metric in FRACTIONS or (mark.kind == "scalar" and "acc" in names)):
        return "fraction"
    positive = values[values > 0]
    if len(positive) and not (values < 0).any() and positive.max() / positive.min() > DECADES:
        return "log"
    return "linear"


def _extent(values: np.ndarray, scale: str) -> tuple[float, float]:
    if scale == "log":
        low, high = float(values[values > 0].min()), float(values.max())
        air = max((high / low) ** 0.06, 1.3)
        return low / air, high * air
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if scale == "fraction":
        if 0 < high < ZOOM:
            return -0.06 * high, 1.25 * high
        if 1 - ZOOM < low < 1:
            return 1 - 1.25 * (1 - low), 1 + 0.06 * (1 - low)
        return -0.03, 1.03
    if low == high == 0:
        return -0.08, 1.08
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    air = 0.08 * (high - low) or 0.08 * abs(high) or 1.0
    return low - air, high + air


def _renamed(lines: list[Series]) -> list[Series]:
    names = shorten_all([s.name for s in lines], NAME)
    return [replace(s, name=name) for s, name in zip(lines, names, strict=True)]


def _listed(names: list[str]) -> str:
    shown = ", ".join(shorten(n, 40) for n in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
