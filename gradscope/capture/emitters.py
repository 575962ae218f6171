"""From slots to the columns of module outputs and of forks (see `ledger.Emitter`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.capture.ledger import Ledger, Read, absent
from gradscope.capture.taps import Arrived, EdgeSlots
from gradscope.graph.naming import OUTSIDE
from gradscope.run import Column


@dataclass(frozen=True)
class NormEmitter:
    """grad_norm of a module's output, and its number of elements where that varies."""

    norm: int
    excess: int
    numel: int
    name: str

    def emit(self, read: Read) -> Any:
        size = read[self.norm]
        yield Column(self.name, "module", "", "grad_norm"), size
        count = read.counts[self.norm]
        if count > 1 or self.excess in read:
            numel = np.full(len(size), float(count * self.numel))
            yield (
                Column(self.name, "module", "", "numel"),
                numel + read.get(self.excess, np.zeros(len(size))),
            )


@dataclass(frozen=True)
class ForkEmitter:
    """Edges of a fork against their sum.

    projection_e = ⟨g_e, g⟩/‖g‖², cosine_e = ⟨g_e, g⟩/(‖g_e‖‖g‖),
    cancellation = 1 − ‖g‖/Σ‖g_e‖; over micro-batches norms combine as root-sum-square and
    inner products as sums, so that projections still sum to 1.

    Attributes:
        edges: slots of all edges seen so far, in whatever graph.
        shared: where the gradients of a leaf gather.
    """

    name: str
    total: int
    edges: dict[str, EdgeSlots]
    shared: Arrived

    def edge(self, ledger: Ledger, edge: str) -> EdgeSlots:
        """Slots of an edge: of its norm, and of its inner product with the sum."""
        if edge not in self.edges:
            self.edges[edge] = (
                ledger.slot("fork norm", self.name, edge, power=1),
                ledger.slot("fork inner", self.name, edge, mode="sum", power=2),
            )
        return self.edges[edge]

    def emit(self, read: Read) -> Any:
        size = read[self.total]
        seen = [(e, *s) for e, s in self.edges.items() if s[0] in read]
        together = sum(read[norm] for _, norm, _ in seen)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            yield self._column("", "grad_norm"), size
            # not below 0 by rounding
            cancellation = np.maximum(1 - size / together, 0)
            yield self._column("", "cancellation"), _told(cancellation, together != 0)
            for edge, norm, product in seen:
                part = read[norm]
                told = (part != 0) | np.full(len(part), edge != OUTSIDE)
                yield self._column(edge, "grad_norm"), _told(part, told)
                if product not in read:  # out of range
                    continue
                along = read[product]
                yield (
                    self._column(edge, "projection"),
                    _told(along / size / size, told & (size != 0)),
                )
                yield (
                    self._column(edge, "cosine"),
                    _told(along / size / part, told & (size != 0) & (part != 0)),
                )

    def _column(self, edge: str, metric: str) -> Column:
        return Column(self.name, "fork", edge, metric)


def _told(values: np.ndarray, where: Any) -> np.ndarray:
    return np.where(where, values.view(np.int64), absent(len(values)).view(np.int64)).view(
        np.float64
    )
