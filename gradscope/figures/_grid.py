"""One metric of one kind of site as an array, with the places where nothing was recorded.

Straight from the run's blocks: the tidy table of a long run has millions of rows.
Index legend: S steps, C columns (a site, or an edge of a site).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gradscope.run import Run, Site


@dataclass(frozen=True)
class Grid:
    """Steps × sites.

    Attributes:
        steps: int64 (S,), ascending; those at which anything of this was recorded.
        sites: of the C columns, in forward order.
        edges: of the C columns, "" where the metric belongs to the site itself.
        values: float64 (S, C), mean over ranks. A NaN on one rank stays a NaN here.
        present: bool (S, C), what was recorded. A NaN that is present is a measured NaN.
    """

    steps: np.ndarray
    sites: list[Site]
    edges: list[str]
    values: np.ndarray
    present: np.ndarray

    def __len__(self) -> int:
        return self.values.size

    @property
    def names(self) -> list[str]:
        return [s.name for s in self.sites]

    @property
    def nonfinite(self) -> np.ndarray:
        """bool (S, C): NaN or infinite."""
        return self.present & ~np.isfinite(self.values)

    @property
    def zero(self) -> np.ndarray:
        """bool (S, C): exactly 0."""
        return self.present & (self.values == 0)

    @property
    def positive(self) -> np.ndarray:
        """float64 (S, C): the finite values above 0, NaN elsewhere: what a log axis can show."""
        shown = self.present & np.isfinite(self.values) & (self.values > 0)
        return np.where(shown, self.values, np.nan)

    def column(self, j: int) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of one column, where it was recorded."""
        rows = self.present[:, j]
        return self.steps[rows], self.values[rows, j]

    def of_site(self, name: str) -> Grid:
        """The columns of one site: the edges of a fork."""
        return self.of([j for j, n in enumerate(self.names) if n == name])

    def of(self, keep: list[int]) -> Grid:
        """Some of the columns."""
        return Grid(
            self.steps,
            [self.sites[j] for j in keep],
            [self.edges[j] for j in keep],
            self.values[:, keep],
            self.present[:, keep],
        )


def grid(run: Run, kind: str, metric: str, *, edges: bool = False) -> Grid:
    """Steps × sites of one metric (`edges`: × the edges of every site instead).

    `grad_rms` is derived as in `Run.frame`: the norm over the root of the element count, the
    count being that of the step where shapes vary.
    """
    if metric != "grad_rms":
        return _read(run, kind, metric, edges)
    norms = _read(run, kind, "grad_norm", edges)
    numel = np.broadcast_to([float(s.numel) for s in norms.sites], norms.values.shape).copy()
    counted = _read(run, kind, "numel", edges)
    where = {name: j for j, name in enumerate(norms.names)}
    at, row = np.isin(counted.steps, norms.steps), np.searchsorted(norms.steps, counted.steps)
    for j, name in enumerate(counted.names):
        if name in where:
            use = at & counted.present[:, j]
            numel[row[use], where[name]] = counted.values[use, j]
    known = numel > 0
    values = np.divide(norms.values, np.sqrt(numel), out=np.full(numel.shape, np.nan), where=known)
    return replace(norms, values=values, present=norms.present & known)


def held(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """(S, C): each value until the next one that is `present`; NaN before the first."""
    if not values.size:
        return values
    rows = np.where(present, np.arange(len(values))[:, None], -1)
    last = np.maximum.accumulate(rows, axis=0)
    latest = np.take_along_axis(values, np.maximum(last, 0), axis=0)
    return np.where(last >= 0, latest, np.nan)


def _read(run: Run, kind: str, metric: str, edges: bool) -> Grid:
    keys: dict[tuple[str, str], list[int]] = {}
    for i, c in enumerate(run.columns):
        if c.kind == kind and c.metric == metric and bool(c.edge) == edges:
            keys.setdefault((c.site, c.edge), []).append(i)
    sites = {name: run.sites.get((kind, name)) or Site(name, kind) for name, _ in keys}
    order = {name: i for i, name in enumerate(s.name for s in run.sites_of(kind, aliases=True))}
    names = sorted(keys, key=lambda k: order.get(k[0], len(order)))
    place = np.full(len(run.columns) + 1, -1)
    for j, key in enumerate(names):
        place[keys[key]] = j
    shown = [(b, np.flatnonzero(place[b.columns] >= 0)) for b in run.blocks]
    shown = [(b, used) for b, used in shown if len(used) and b.present[:, used].any()]
    seen = [b.steps[b.present[:, used].any(axis=1)] for b, used in shown]
    steps = np.unique(np.concatenate(seen)) if seen else np.array([], dtype=np.int64)
    total, count = np.zeros((2, len(steps), len(names)))
    for block, used in shown:
        rows, columns = np.nonzero(block.present[:, used])
        where = np.searchsorted(steps, block.steps[rows]), place[block.columns[used[columns]]]
        with np.errstate(invalid="ignore"):  # inf - inf between ranks is NaN, as it should be
            np.add.at(total, where, block.values[rows, used[columns]])
        np.add.at(count, where, 1)
    values = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return Grid(steps, [sites[s] for s, _ in names], [e for _, e in names], values, count > 0)
