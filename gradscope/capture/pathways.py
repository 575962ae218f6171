"""Exact pathways over a training run: measured at the first backward pass of chosen steps.

Just before `loss.backward()`, the loss's graph is there and nothing of it is used up. The
parts are computed then, node by node and outside of autograd's engine, so that the training
gradient, `.grad`, buffers and random states stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.capture.ledger import Ledger
from gradscope.capture.listening import BACKWARD
from gradscope.capture.splits import LossGraph, Target
from gradscope.errors import PathwayError
from gradscope.graph.calls import Call
from gradscope.paths import through
from gradscope.paths.streaming import graded_sizes
from gradscope.quantities.inner import inner
from gradscope.quantities.norm import norm
from gradscope.run import Column, Site

REST = "(rest)"  # what of a gradient does not pass through a named pathway

Unseen = Callable[[str, str], None]


@dataclass(frozen=True)
class CrossingsRequest:
    """What `scope.crossings` asked for."""

    every: int
    max_order: int

    def measure(self, graph: LossGraph, ledger: Ledger) -> None:
        targets = [*graph.outputs, *graph.parameters]
        sizes = graded_sizes(
            graph.loss, [t.tensor for t in targets], graph.softmaxes, self.max_order
        )
        last = len(sizes.norms[0]) - 1
        for i, target in enumerate(targets):
            _declare(ledger, target, "crossing")
            for k in range(last + 1):
                edge = f"{k}+" if k == last and sizes.open_ended else str(k)
                _add(ledger, target.name, "crossing", edge, "grad_norm", sizes.norms[i][k])
                _add(ledger, target.name, "crossing", edge, "projection", sizes.projections[i][k])
            _add(ledger, target.name, "crossing", "", "mean_crossings", sizes.mean[i])
        _add(ledger, "(sum check)", "crossing", "", "residual", sizes.residual)
        ledger.site(Site("(sum check)", "crossing", order=1 << 50))


@dataclass(frozen=True)
class PathwayRequest:
    """What `scope.pathway` asked for."""

    name: str
    source: str
    gates: str
    every: int

    def measure(self, graph: LossGraph, ledger: Ledger) -> None:
        targets = graph.outputs_like(self.source, "source")
        split = through(graph.loss, [t.tensor for t in targets], graph.gates_like(self.gates))
        for target, passing, avoiding in zip(targets, split.through, split.avoiding, strict=True):
            _declare(ledger, target, "pathway")
            total = passing + avoiding
            size = float(norm(total))
            for edge, part in ((self.name, passing), (f"{REST} {self.name}", avoiding)):
                length = float(norm(part))
                share = float(inner(part, total, length * size)) / size / size if size else 0.0
                _add(ledger, target.name, "pathway", edge, "grad_norm", length)
                _add(ledger, target.name, "pathway", edge, "projection", share)


Request = CrossingsRequest | PathwayRequest


class Pathways:
    """Measures what was requested, at the first backward pass of the steps it is due.

    A request that can't be met is told once, as unseen, with its reason; it is tried again on
    the next step that it is due.
    """

    def __init__(
        self,
        ledger: Ledger,
        paths: dict[nn.Module, str],
        parameters: dict[str, nn.Parameter],
        unseen: Unseen,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._ledger = ledger
        self._paths = paths
        self._parameters = parameters
        self._unseen = unseen
        self._failed = failed
        self._requests: list[Request] = []
        self._due: list[Request] = []
        self._calls: list[Call] = []

    def request(self, request: Request, step: int) -> None:
        self._requests.append(request)
        self.begin_step(step)

    def due(self, step: int) -> bool:
        return any(step % r.every == 0 for r in self._requests)

    def begin_step(self, step: int) -> None:
        self.end_step()
        self._due = [r for r in self._requests if step % r.every == 0]
        if self._due:
            BACKWARD.listen(self)

    def forward_done(self, calls: list[Call]) -> None:
        """Keep the calls of a forward pass, outputs included, until the backward pass."""
        if self._due:
            self._calls += calls

    def end_step(self) -> None:
        BACKWARD.ignore(self)
        self._due, self._calls = [], []

    def close(self) -> None:
        self.end_step()
        self._requests, self._parameters = [], {}

    def backward_begins(self, tensors: Any, grad_tensors: Any) -> None:
        if not self._calls:
            return  # of another model
        due, calls = self._due, self._calls
        self.end_step()
        try:
            loss = _one_loss(tensors, grad_tensors)
            graph = LossGraph(loss, calls, self._paths, self._parameters)
        except PathwayError as error:
            self._unseen("pathways", str(error))
            return
        except Exception as error:
            self._failed(error)
            return
        if not graph.outputs and not graph.parameters:
            self._due, self._calls = due, calls
            BACKWARD.listen(self)
            return
        for request in due:
            try:
                with torch.no_grad():
                    request.measure(graph, self._ledger)
            except PathwayError as error:
                what = "crossings" if isinstance(request, CrossingsRequest) else request.name
                self._unseen(what, str(error))
            except Exception as error:
                self._failed(error)
                return


def _one_loss(tensors: Any, grad_tensors: Any) -> Tensor:
    several = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    if (
        len(several) != 1
        or several[0].numel() != 1
        or (grad_tensors is not None and not _ones(grad_tensors))
    ):
        raise PathwayError(
            "pathways are measured of a loss of one element; this backward pass starts from "
            f"{len(several)} tensors of shape {tuple(several[0].shape)}"
        )
    return several[0]


def _ones(grad_tensors: Any) -> bool:
    given = [grad_tensors] if isinstance(grad_tensors, Tensor) else list(grad_tensors)
    return all(g is None or (g.numel() == 1 and float(g) == 1) for g in given)


def _declare(ledger: Ledger, target: Target, kind: str) -> None:
    ledger.site(
        Site(
            target.name,
            kind,
            type=target.kind,
            order=target.order,
            shape=tuple(target.tensor.shape),
            numel=target.tensor.numel(),
        )
    )


def _add(ledger: Ledger, site: str, kind: str, edge: str, metric: str, value: float) -> None:
    power = 1 if metric == "grad_norm" else 0
    ledger.add(ledger.plain(Column(site, kind, edge, metric), mode="last", power=power), value)
