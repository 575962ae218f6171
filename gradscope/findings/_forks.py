"""What the two rules about forks share: which forks and edges they judge, as matrices.

Left out are forks of a parameter: its uses share one weight, their gradients cancel at every
optimum, and an early time step of a recurrence may well contribute nothing. Told apart are those
that normalise, with an edge into a reduction beside others of the same module: in x / ‖x‖,
x − mean(x), exp(x) / Σ exp(x) that edge exists to take back what the other one sends along the
direction that is normalised away.
x / (1 + |x|), a softsign, is left out: one function, whose denominator matters where it is flat.
So is a maximum that is subtracted and added again, as in a running log-sum-exp: the result does not
depend on it.
Where all edges reduce, as in pooling by mean and by maximum, none takes back another's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from gradscope.findings._signals import Signals

# `maximum` as well: of two tensors, but what is shifted by it is shifted as by max().
_REDUCTIONS = re.compile(
    r"^(linalg_?|vector_?)*(norm|mean|sum|var|std|varmean|stdmean|amax|amin|max|min|pow|logsumexp"
    r"|square|prod|cumsum|maximum)\d*$"
)

_LARGEST = frozenset({"maximum", "amax", "max", "cummax", "logsumexp"})
_SHIFTS = _LARGEST | {"sub", "add", "exp"}


@dataclass(frozen=True)
class Fork:
    """One fork over the run.

    Attributes:
        site: the tensor that is consumed several times.
        edges: E names, "<consumer module path>:<op>".
        norms: float64 (S, E), ‖g_e‖.
        total: float64 (S,), ‖Σ g_e‖.
        normalises: a reduction takes back what goes along the direction it removes.
    """

    site: str
    edges: tuple[str, ...]
    norms: np.ndarray
    total: np.ndarray
    normalises: bool = False

    @property
    def scale(self) -> np.ndarray:
        """√Σ‖g_e‖² (S,): the norm of the sum, if the terms had nothing to do with each other."""
        scale = np.sqrt(np.nansum(self.norms**2, axis=1))
        return np.where(np.isfinite(scale) & (scale > 0), scale, np.nan)


def forks(signals: Signals) -> tuple[np.ndarray, list[Fork]]:
    """Recorded steps of forks, and the forks that can be judged, in forward order."""
    norms = signals.matrix("fork", "grad_norm", edges=True)
    totals = signals.matrix("fork", "grad_norm").on(norms.steps)
    columns: dict[str, list[int]] = {}
    for j, (site, _) in enumerate(norms.keys):
        columns.setdefault(site, []).append(j)
    found = []
    for site, at in columns.items():
        edges = tuple(norms.keys[j][1] for j in at)
        if len(edges) < 2 or ("parameter", site) in signals.run.sites:
            continue
        if {_operation(edge) for edge in edges} == {"abs", "div"} or _is_shift(site, edges):
            continue
        total = totals.column(site) if site in totals else np.full(len(norms.steps), np.nan)
        found.append(Fork(site, edges, norms.values[:, at], total, _normalises(edges)))
    return norms.steps, found


def _is_shift(site: str, edges: tuple[str, ...]) -> bool:
    """Whether the tensor is a largest value that others are shifted by."""
    read = {_operation(edge) for edge in edges}
    return _operation(site) in _LARGEST and "sub" in read and read <= _SHIFTS


def _normalises(edges: tuple[str, ...]) -> bool:
    """Whether one of them is reduced beside another that the same module reads as it is."""
    reduced = {_reader(edge) for edge in edges if _is_reduction(edge)}
    return any(_reader(edge) in reduced for edge in edges if not _is_reduction(edge))


def _reader(edge: str) -> str:
    return edge.rpartition(":")[0]


def _is_reduction(edge: str) -> bool:
    return bool(_REDUCTIONS.match(_operation(edge)))


def _operation(edge: str) -> str:
    op = edge.rpartition(":")[2].partition("#")[0].lower()
    return op.removesuffix("backward").strip("_")
