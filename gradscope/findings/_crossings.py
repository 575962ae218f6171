"""Gradients by the number of attention softmaxes crossed, as the rules read them.

Index legend: S recorded steps, K+1 orders: order k is the part that crossed k softmaxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradscope.findings._signals import Signals


@dataclass(frozen=True)
class Crossings:
    """The parts of one site's gradient.

    Attributes:
        site: module path.
        orders: int64 (K+1,), ascending.
        open_ended: whether the last order stands for itself and everything above.
        norms: float64 (S, K+1), ‖G_k‖.
        projections: float64 (S, K+1), ⟨G_k, g⟩/‖g‖²; a row sums to 1.
    """

    site: str
    orders: np.ndarray
    open_ended: bool
    norms: np.ndarray
    projections: np.ndarray

    @property
    def size(self) -> np.ndarray:
        """float64 (S,): norm of the largest part; NaN where nothing arrives or it is not finite."""
        known = np.isfinite(self.norms).all(axis=1)
        largest = np.where(known, np.max(np.where(np.isfinite(self.norms), self.norms, 0), 1), 0)
        return np.where(largest > 0, largest, np.nan)

    @property
    def mean(self) -> np.ndarray:
        """float64 (S,): the mean number of softmaxes crossed, as a share of the gradient."""
        return self.projections @ self.orders.astype(float)

    @property
    def uncounted(self) -> np.ndarray:
        """bool (S,): most of the gradient crossed as many softmaxes as are told apart, or more."""
        size = np.abs(self.projections)
        return self.open_ended & (size[:, -1] >= 0.5 * size.sum(axis=1))

    def below(self, order: int) -> np.ndarray:
        """float64 (S,): Σ |projection| of what crossed fewer softmaxes than `order`.

        Absolute values: parts that cancel each other are there all the same.
        """
        return np.abs(self.projections[:, self.orders < order]).sum(axis=1)


def crossings(signals: Signals) -> tuple[np.ndarray, dict[str, Crossings]]:
    """Recorded steps of crossings, and the module sites by name, in forward order."""
    norms = signals.matrix("crossing", "grad_norm", edges=True)
    shares = signals.matrix("crossing", "projection", edges=True).on(norms.steps)
    edges: dict[str, list[str]] = {}
    for site, edge in norms.keys:
        if signals.site("crossing", site).type != "parameter":
            edges.setdefault(site, []).append(edge)
    found = {}
    for site, own in edges.items():
        own.sort(key=order_of)
        keys = [(site, edge) for edge in own]
        orders = np.array([order_of(edge) for edge in own], dtype=np.int64)
        open_ended = own[-1].endswith("+")
        found[site] = Crossings(site, orders, open_ended, norms.columns(keys), shares.columns(keys))
    return norms.steps, found


def order_of(edge: str) -> int:
    """ "3" → 3; "8+" → 8."""
    return int(edge.removesuffix("+"))
