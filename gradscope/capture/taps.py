"""What runs inside the backward pass: hooks on autograd nodes, for one step's graph.

A `NodeTap` belongs to one place in a plan and serves every step that has the same graph.
Nothing here returns a value to autograd, so that no gradient can change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradscope.capture.ledger import Ledger
from gradscope.capture.quantities.inner import inner
from gradscope.capture.quantities.norm import norm

Gradients = tuple[Tensor | None, ...]
Failed = Callable[[BaseException], None]


class TensorTap:
    """Measures the gradient of one tensor: at a module's output, or a fork.

    Args:
        norm_slot: for ‖g‖.
        excess_slot: for the number of elements beyond (or, negative, short of) `numel`.
        nonfinite_slot: for the number of NaN and infinite elements, when there are any.
        numel: of the tensor when the plan was made.
    """

    def __init__(
        self, ledger: Ledger, norm_slot: int, excess_slot: int, nonfinite_slot: int, numel: int
    ) -> None:
        self._ledger = ledger
        self._norm_slot = norm_slot
        self._excess_slot = excess_slot
        self._nonfinite_slot = nonfinite_slot
        self._numel = numel
        self.fork: ForkTap | None = None

    def measure(self, g: Tensor) -> None:
        ledger = self._ledger
        size = norm(g)
        ledger.slots.append(self._norm_slot)
        ledger.values.append(size)
        if g.numel() != self._numel:  # batches and sequences vary
            ledger.add(self._excess_slot, float(g.numel() - self._numel))
        if isinstance(size, float) and not (size < float("inf")):  # NaN or inf
            ledger.add(self._nonfinite_slot, float(g.numel() - int(torch.isfinite(g).sum())))
        if self.fork is not None:
            self.fork.total(g, size)


class ForkTap:
    """Gathers the gradients that a tensor's consumers send back, until their sum arrives.

    Args:
        slots: (norm, inner product with the sum) of each edge, then those of what comes from
            outside the model (a loss that uses the tensor directly).
        escapes: whether the tensor is also handed out of the model.
    """

    def __init__(
        self, ledger: Ledger, total_slot: int, slots: list[tuple[int, int]], escapes: bool
    ) -> None:
        self._ledger = ledger
        self._total_slot = total_slot
        self._slots = slots
        self._escapes = escapes
        self._arrived: list[tuple[int, Tensor]] = []

    def edge(self, number: int, g: Tensor) -> None:
        self._arrived.append((number, g))

    def clear(self) -> None:
        self._arrived.clear()

    def total(self, g: Tensor, size: Any) -> None:
        """The sum has arrived: measure every edge against it."""
        arrived, self._arrived = self._arrived, []
        if self._escapes and arrived:
            rest = _rest(g, [e for _, e in arrived])
            if rest is not None:
                arrived.append((len(self._slots) - 1, rest))
        if len(arrived) < 2:
            return
        ledger = self._ledger
        ledger.add(self._total_slot, size)
        for number, part in arrived:
            norm_slot, inner_slot = self._slots[number]
            part_size = norm(part)
            hint = (
                part_size * size
                if isinstance(size, float) and isinstance(part_size, float)
                else None
            )
            ledger.add(norm_slot, part_size)
            ledger.add(inner_slot, inner(part, g, hint))


def _rest(g: Tensor, parts: list[Tensor]) -> Tensor | None:
    """What the total holds beyond the known parts; None if nothing.

    Autograd adds gradients in the order of their arrival, and so does this: where nothing
    came from elsewhere the two sums are the same bit for bit.
    """
    known = parts[0]
    if len(parts) == 1 and known is g:
        return None
    for part in parts[1:]:
        known = known + part
    rest = g - known
    if rest.is_cpu and not rest.any():
        return None
    return rest


class NodeTap:
    """All that is measured at one autograd node."""

    def __init__(self, failed: Failed) -> None:
        self._failed = failed
        self.outputs: list[tuple[int, TensorTap]] = []  # forward outputs of the node
        self.edges: list[tuple[int, ForkTap, int]] = []  # (input, fork, edge's number)
        self.crossing: Callable[[Any, Gradients, Gradients], None] | None = None
        self._node: Any = None
        self._handles: list[Any] = []

    def hang(self, node: Any) -> None:
        """Register on a step's node."""
        if self.outputs:
            self._handles.append(node.register_prehook(self._arriving))
        if self.edges or self.crossing is not None:
            self._handles.append(node.register_hook(self._leaving))
        if self.crossing is not None:
            self._node = node

    def release(self) -> None:
        """Unregister, also from a graph that lives on."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._node = None
        for _, fork, _ in self.edges:
            fork.clear()

    def _arriving(self, grad_outputs: Gradients) -> None:
        try:
            if torch.is_grad_enabled():  # create_graph=True
                with torch.no_grad():
                    self._measure_outputs(grad_outputs)
            else:
                self._measure_outputs(grad_outputs)
        except Exception as error:
            self._failed(error)

    def _measure_outputs(self, grad_outputs: Gradients) -> None:
        for number, tap in self.outputs:
            g = grad_outputs[number]
            if g is not None:
                tap.measure(g)

    def _leaving(self, grad_inputs: Gradients, grad_outputs: Gradients) -> None:
        try:
            for number, fork, edge in self.edges:
                g = grad_inputs[number]
                if g is not None:
                    fork.edge(edge, g)
            if self.crossing is not None:
                with torch.no_grad():
                    self.crossing(self._node, grad_inputs, grad_outputs)
        except Exception as error:
            self._failed(error)
