"""The first operation that made a NaN or an infinity, named while its graph is still there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradscope.capture.origins import OriginTap, first_nonfinite, is_risky
from gradscope.capture.passes import Passes
from gradscope.capture.taps import NodeTap
from gradscope.capture.trouble import Trouble
from gradscope.graph.naming import INPUT, OUTSIDE
from gradscope.graph.walk import operation

ENTRIES = 3  # that a run keeps: whatever comes later is a consequence
PART = OriginTap.part

Made = dict[int, tuple[str, str]]  # see Plan.made


class NonFinite:
    """Searches a loss that is not finite, and watches the backward passes of recorded steps.

    Every loss is looked at, also those of steps that are not recorded; on accelerators none is,
    because that would wait for the device.

    Args:
        entries: of the run's meta: {"step", "phase", "operation", "where"}.
        parameters: names by id.
        passes: of the step, if it is recorded.
    """

    def __init__(
        self,
        entries: list[dict[str, Any]],
        parameters: dict[int, str],
        passes: Passes,
        trouble: Trouble,
    ) -> None:
        self._entries, self._parameters, self._trouble = entries, parameters, trouble
        self._passes = passes
        self._pending: list[tuple[str, str, str, bool]] = []  # and whether inferred
        # Of the passes of the last step that was recorded: their first and last sequence number,
        # by distance from the loss, and who made which node.
        self._known: list[tuple[int, int, Made]] = []

    def found(self, where: str, operation: str) -> None:
        """A finite gradient reached an operation, and left it not finite."""
        self._pending.append(("backward", where, operation, False))

    def backward_begins(self, tensors: Any, recorded: bool) -> list[Any]:
        """Look at a loss. Returns handles of hooks on the part of its graph after the model."""
        if self._trouble.off(PART) or len(self._entries) >= ENTRIES:
            return []
        losses = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        handles: list[Any] = []
        try:
            for loss in losses:
                if not isinstance(loss, Tensor) or loss.grad_fn is None or not loss.is_cpu:
                    continue
                if recorded and self._passes:
                    now = _root(loss)._sequence_nr()
                    self._known = [(now - s, now - e, plan.made) for s, e, plan, _ in self._passes]
                    handles += self._watch(loss)
                if not bool(torch.isfinite(loss.detach()).all()):
                    self._search(loss)
        except Exception as error:
            self._trouble.caught(PART, error)
        return handles

    def end_step(self, step: int, scaled: bool = False) -> None:
        """The step was taken: what was found in it counts, but for a loss that may be infinite
        only because a gradient scaler `scaled` it."""
        for phase, where, op, inferred in self._pending:
            if len(self._entries) < ENTRIES and not (inferred and scaled):
                entry = {"step": step, "phase": phase, "operation": op, "where": where}
                self._entries.append(entry)
        self.forget_step()

    def forget_step(self) -> None:
        """The step came to nothing: a gradient scaler tries a smaller scale."""
        self._pending = []

    def _search(self, loss: Tensor) -> None:
        origin = first_nonfinite(loss, self._parameters)
        if origin is None:
            return
        if origin.phase == "parameter":
            where = self._parameters.get(id(origin.node.variable), INPUT)
        else:
            where = self._where(origin.node, loss)
        self._pending.append((origin.phase, where, origin.operation, origin.inferred))

    def _where(self, node: Any, loss: Tensor) -> str:
        behind = _root(loss)._sequence_nr() - node._sequence_nr()
        op = operation(node)
        for start, end, made in self._known:
            if end < behind <= start:
                known, where = made.get(start - behind, ("", ""))
                return where if known == op else ""  # this step's graph is another one
        return f"{OUTSIDE}:{op}"

    def _watch(self, loss: Tensor) -> list[Any]:
        """Hook the risky operations between the model's outputs and the loss."""
        handles: list[Any] = []
        for node in self._passes.beyond([_root(loss)]):
            if is_risky(node):
                tap = NodeTap(self._trouble)
                op = operation(node)
                tap.crossing = OriginTap(self.found, f"{OUTSIDE}:{op}", op)
                handles += tap.hang(node, {})
        return handles


def _root(loss: Tensor) -> Any:
    return loss.grad_fn
