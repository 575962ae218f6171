"""Columns of a run as the names of scalars, for programs that know a scalar by one name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from gradscope.run import METRICS, Run

KEYS = ["kind", "metric", "site", "edge", "rank"]


class Series(NamedTuple):
    """A column: its name, and its metric's definition."""

    tag: str
    meaning: str


class Steps(NamedTuple):
    """The values of one step: positions in the list of series, and float64 values."""

    step: int
    series: np.ndarray
    values: np.ndarray


def tag(kind: str, metric: str, site: str, edge: str = "", rank: int = 0) -> str:
    """`kind/metric/site`, with ` → edge` and ` (rank r)` behind it where there are such.

    Programs make one group of all names with the same beginning, so that a metric's sites
    stand side by side. A scalar that was logged keeps its name: `scalar/loss`.
    """
    name = f"scalar/{site}" if (kind, metric) == ("scalar", "value") else f"{kind}/{metric}/{site}"
    name += f" → {edge}" if edge else ""
    return name + (f" (rank {rank})" if rank else "")


def by_step(run: Run) -> tuple[list[Series], Iterator[Steps]]:
    """All columns of `run.frame()`, and their values step by step, steps ascending."""
    table = run.frame()
    groups = table.groupby(KEYS, sort=False, observed=True)
    number = groups.ngroup().to_numpy()
    first = table.loc[~pd.Series(number).duplicated(), KEYS]  # ngroup counts in this order
    series = [
        Series(tag(kind, metric, site, edge, int(rank)), _meaning(metric))
        for kind, metric, site, edge, rank in first.itertuples(index=False)
    ]
    return series, _steps(table["step"].to_numpy(), number, table["value"].to_numpy())


def _steps(steps: np.ndarray, number: np.ndarray, values: np.ndarray) -> Iterator[Steps]:
    """Cut rows that are sorted by step into steps."""
    if not len(steps):
        return
    ends = [*(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(steps)]
    begin = 0
    for end in ends:
        yield Steps(int(steps[begin]), number[begin:end], values[begin:end])
        begin = end


def _meaning(metric: str) -> str:
    known = METRICS.get(metric)
    if known is None:
        return ""
    return f"{known.definition} [{known.unit}]" if known.unit else known.definition
