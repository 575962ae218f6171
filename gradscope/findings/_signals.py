"""What the rules read: a run's numbers as dense matrices, each built once.

Index legend: S recorded steps, C columns of one (kind, metric): a column is a (site, edge).
Straight from the run's blocks, without a tidy table in between: the table of a long run has
millions of rows, and the rules need none of its text columns.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gradscope.run import Run, Site
from gradscope.scalars import training_loss


@dataclass(frozen=True)
class Matrix:
    """Values of one (kind, metric).

    Attributes:
        steps: int64 (S,), ascending; only steps at which this kind and metric has a value.
        keys: C pairs (site, edge), in forward order of the sites.
        values: float64 (S, C); NaN where nothing was recorded, and where a NaN was.
        present: bool (S, C), which were recorded.
    """

    steps: np.ndarray
    keys: list[tuple[str, str]]
    values: np.ndarray
    present: np.ndarray

    @cached_property
    def sites(self) -> list[str]:
        return [site for site, _ in self.keys]

    @cached_property
    def _at(self) -> dict[tuple[str, str], int]:
        return {key: j for j, key in enumerate(self.keys)}

    def __contains__(self, site: str) -> bool:
        return (site, "") in self._at

    def column(self, site: str, edge: str = "") -> np.ndarray:
        """float64 (S,): one site's series."""
        return self.values[:, self._at[site, edge]]

    def columns(self, keys: list[tuple[str, str]]) -> np.ndarray:
        """float64 (S, len(keys)); all NaN for a key that was never recorded."""
        out = np.full((len(self.steps), len(keys)), np.nan)
        for j, key in enumerate(keys):
            if key in self._at:
                out[:, j] = self.values[:, self._at[key]]
        return out

    def on(self, steps: np.ndarray) -> Matrix:
        """The same values on other steps (ascending); nothing where a step is new."""
        values = np.full((len(steps), len(self.keys)), np.nan)
        present = np.zeros(values.shape, dtype=bool)
        _, here, there = np.intersect1d(self.steps, steps, return_indices=True)
        values[there], present[there] = self.values[here], self.present[here]
        return Matrix(steps, self.keys, values, present)


class Signals:
    """A run as the rules see it. Ranks are averaged; aliases never appear."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.steps = run.steps if len(run.steps) else _without_gradients(run)
        self._matrices: dict[tuple[str, str, bool], Matrix] = {}

    def has(self, kind: str, metric: str) -> bool:
        wanted = "grad_norm" if metric == "grad_rms" else metric
        return any(c.kind == kind and c.metric == wanted for c in self.run.columns)

    def site(self, kind: str, name: str) -> Site:
        return self.run.sites.get((kind, name)) or Site(name, kind)

    def entries(self, softmax: str) -> int:
        """Length of a softmax's rows; 0 if not recorded."""
        return (0, *self.site("softmax", softmax).shape)[-1]

    def matrix(self, kind: str, metric: str, *, edges: bool = False) -> Matrix:
        """Every site of a kind (`edges`: every edge of every site instead)."""
        key = (kind, metric, edges)
        if key not in self._matrices:
            if metric == "grad_rms":
                self._matrices[key] = self._rms(kind)
            else:
                self._matrices[key] = self._read(kind, metric, edges)
        return self._matrices[key]

    @cached_property
    def loss(self) -> Matrix | None:
        """The training loss as logged, under its most usual names; None without one."""
        scalars = self.matrix("scalar", "value")
        name = training_loss(self.run)
        if name is None or name not in scalars:
            return None
        keep = scalars.present[:, scalars.sites.index(name)]
        at = np.flatnonzero(keep)
        column = scalars.values[at][:, [scalars.sites.index(name)]]
        return Matrix(scalars.steps[at], [(name, "")], column, np.ones_like(column, dtype=bool))

    # -- internals ---------------------------------------------------------------------

    def _read(self, kind: str, metric: str, edges: bool) -> Matrix:
        run = self.run
        wanted: dict[tuple[str, str], list[int]] = {}
        for i, c in enumerate(run.columns):
            if c.kind == kind and c.metric == metric and bool(c.edge) == edges:
                wanted.setdefault((c.site, c.edge), []).append(i)
        keys = sorted(wanted, key=lambda k: (self._order(kind, k[0]), *k))
        place = np.full(len(run.columns), -1, dtype=np.int64)
        for j, key in enumerate(keys):
            place[wanted[key]] = j
        parts = []
        for block in run.blocks:
            used = np.flatnonzero(place[block.columns.astype(np.int64)] >= 0)
            if len(used):
                parts.append((block, used, place[block.columns[used]]))
        steps = np.unique(np.concatenate([b.steps for b, _, _ in parts])) if parts else _NO_STEPS
        sums, counts = np.zeros((2, len(steps), len(keys)))
        for block, used, to in parts:
            rows = np.searchsorted(steps, block.steps)
            while len(used):  # one round a rank: within a round, no two columns share a place
                _, first = np.unique(to, return_index=True)
                cells = np.ix_(rows, to[first])
                seen = block.present[:, used[first]]
                counts[cells] += seen
                sums[cells] += np.where(seen, block.values[:, used[first]], 0)
                used, to = np.delete(used, first), np.delete(to, first)
        present = counts > 0
        with np.errstate(invalid="ignore"):
            values = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=present)
        some = present.any(axis=1)
        return Matrix(steps[some], keys, values[some], present[some])

    def _rms(self, kind: str) -> Matrix:
        """grad_norm / √n, n as recorded at that step where shapes vary."""
        norms = self.matrix(kind, "grad_norm")
        declared = np.array([self.site(kind, s).numel for s in norms.sites], dtype=float)
        numel = np.broadcast_to(declared, norms.values.shape)
        if self.has(kind, "numel"):
            varying = self.matrix(kind, "numel").on(norms.steps).columns(norms.keys)
            numel = np.where(np.isfinite(varying), varying, numel)
        with np.errstate(divide="ignore", invalid="ignore"):
            rms = np.where(numel > 0, norms.values / np.sqrt(numel), np.nan)
        return Matrix(norms.steps, norms.keys, rms, norms.present & (numel > 0))

    def _order(self, kind: str, name: str) -> int:
        site = self.run.sites.get((kind, name))
        return site.order if site and site.order >= 0 else 1 << 30


def _without_gradients(run: Run) -> np.ndarray:
    """Recorded steps of a run in which no gradient reached anything: they took their time, or
    something else was measured."""
    frame = run.frame()
    recorded = (frame["kind"] != "scalar") | (frame["site"] == "step_seconds")
    return np.unique(frame["step"][recorded].to_numpy(np.int64))


_NO_STEPS = np.array([], dtype=np.int64)


def quiet_median(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Median over what is not NaN; NaN (without numpy's warning) where there is nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(values, axis=axis)
