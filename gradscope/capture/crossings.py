"""`crossings`: the gradient at every module and parameter, by attention softmaxes crossed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd
from torch import Tensor, nn

from gradscope.capture.splits import Target, loss_graph
from gradscope.errors import GradscopeError
from gradscope.paths import graded_gradients


@dataclass(frozen=True)
class Crossings:
    """A gradient split by the number of attention softmaxes that its paths cross.

    Attributes:
        sites: module paths (gradient at the module's output) in forward order, then
            parameter names.
        orders: K, the last order kept.
        open_ended: the last order holds all paths that crossed K softmaxes or more.
        residual: how far Σ_k G_k is from autograd's gradient, relative; the largest over
            the sites.
    """

    sites: tuple[str, ...]
    orders: int
    open_ended: bool
    residual: float
    _components: tuple[Tensor, ...]
    _norms: tuple[tuple[float, ...], ...]
    _projections: tuple[tuple[float, ...], ...]

    def component(self, site: str, k: int) -> Tensor:
        """G_k at a site, of the shape of the tensor there.

        Raises:
            GradscopeError: if there is no such site or order.
        """
        if site not in self.sites:
            raise GradscopeError(f"no site {site!r}; sites are {', '.join(self.sites)}")
        if not 0 <= k <= self.orders:
            raise GradscopeError(f"orders are 0 to {self.orders}, not {k}")
        return self._components[self.sites.index(site)][k]

    def frame(self) -> pd.DataFrame:
        """Tidy table: site, crossings, grad_norm ‖G_k‖₂, projection ⟨G_k, g⟩/‖g‖²."""
        rows = [
            (site, k, norm, projection)
            for site, norms, projections in zip(
                self.sites, self._norms, self._projections, strict=True
            )
            for k, (norm, projection) in enumerate(zip(norms, projections, strict=True))
        ]
        return pd.DataFrame(rows, columns=["site", "crossings", "grad_norm", "projection"])


def crossings(
    model: nn.Module,
    closure: Callable[[], Any],
    *,
    sites: str = "*",
    max_order: int = 8,
) -> Crossings:
    """Split the gradient by the number of attention softmaxes crossed, exactly.

    The forward pass is run once; model, gradients and random states are left as they were.

    Args:
        closure: runs the forward pass and returns the loss, as for `optimizer.step(closure)`.
        sites: pattern of the module paths and parameter names to split at, such as
            "layers.*". All orders of all sites are kept in memory.
        max_order: M, the last order kept apart; its component holds "M or more".

    Raises:
        GradscopeError: if the closure returns no loss of the model, nothing matches `sites`,
            or the split is refused: part of the graph is hidden, or the sum check fails.
    """
    graph = loss_graph(model, closure)
    targets: list[Target] = [
        t for t in (*graph.outputs, *graph.parameters) if fnmatchcase(t.name, sites)
    ]
    if not targets:
        raise GradscopeError(f"sites={sites!r} matches no module output and no parameter")
    graded = graded_gradients(graph.loss, [t.tensor for t in targets], graph.softmaxes, max_order)
    return Crossings(
        sites=tuple(t.name for t in targets),
        orders=graded.orders,
        open_ended=graded.open_ended,
        residual=graded.residual,
        _components=tuple(graded.components),
        _norms=tuple(tuple(n.tolist()) for n in graded.norms()),
        _projections=tuple(tuple(p.tolist()) for p in graded.projections()),
    )
