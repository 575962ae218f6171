"""What runs inside the backward pass: hooks on autograd nodes, for one step's graph.

A `NodeTap` belongs to one place in a plan and serves every graph that has this structure,
several at a time too: what belongs to one graph is held by the hooks on its nodes, and goes
when it goes. Nothing here returns a value to autograd, so that no gradient can change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from gradscope.capture.ledger import Ledger
from gradscope.capture.shards import spread
from gradscope.capture.trouble import Trouble
from gradscope.quantities.inner import inner
from gradscope.quantities.norm import WIDE_HIGH, WIDE_LOW, norm

Gradients = tuple[Tensor | None, ...]
EdgeSlots = tuple[int, int]  # of an edge's norm, and of its inner product with the sum
Arrived = list[tuple[EdgeSlots, Tensor]]
Gathered = dict[Any, Arrived]  # by `ForkTap` or `Borrowed`, in one graph

# Relative to the edges' norms: what is missing from their sum and is more than rounding.
MISSING = 1e-5


class Crossing(Protocol):
    """Measures an operation as the gradient passes back through it.

    Attributes:
        part: of the instrument, that is switched off when it fails.
    """

    part: str

    def saved(self, node: Any) -> list[Any] | None:
        """What will be needed of the node's saved tensors, emptied after use; None if nothing
        is to be measured this time."""
        ...

    def __call__(
        self, saved: list[Any], grad_inputs: Gradients, grad_outputs: Gradients
    ) -> None: ...


class TensorTap:
    """Measures the gradient of one tensor: at a module's output, or a fork."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._names: list[tuple[int, int, int, tuple[int, int], int]] = []
        self.fork: ForkTap | None = None

    def name(
        self,
        norm_slot: int,
        excess_slot: int,
        nonfinite_slot: int,
        half_slots: tuple[int, int],
        numel: int,
    ) -> None:
        """Record it under one more name.

        Args:
            norm_slot: for ‖g‖.
            excess_slot: for the number of elements beyond (or, negative, short of) `numel`.
            nonfinite_slot: for the number of NaN and infinite elements, when there are any.
            half_slots: for the shares of float16 elements that are 0, and that are subnormal.
            numel: of the tensor when the name was first seen.
        """
        self._names.append((norm_slot, excess_slot, nonfinite_slot, half_slots, numel))

    def measure(self, g: Tensor, arrived: Gathered) -> None:
        ledger = self._ledger
        size = norm(g)
        if g.dtype is torch.float16:
            self._measure_half(g)
        for norm_slot, excess_slot, nonfinite_slot, _, numel in self._names:
            ledger.slots.append(norm_slot)
            ledger.values.append(size)
            if g.numel() != numel:  # batches and sequences vary
                ledger.add(excess_slot, float(g.numel() - numel))
            if isinstance(size, float) and not math.isfinite(size):
                ledger.add(nonfinite_slot, float(g.numel() - int(torch.isfinite(g).sum())))
        if self.fork is not None:
            self.fork.total(g, size, self.fork.gather(arrived))

    def _measure_half(self, g: Tensor) -> None:
        """What a float16 gradient has lost at the lower end of its range."""
        zero = (g == 0).double().mean()
        tiny = (g.abs() < torch.finfo(torch.float16).smallest_normal).double().mean()
        shares = (zero, ((tiny - zero) / (1 - zero)).nan_to_num(0.0))
        for *_, half_slots, _ in self._names:
            for slot, share in zip(half_slots, shares, strict=True):
                self._ledger.add(slot, share.item() if share.is_cpu else share)


class ForkTap:
    """Gathers the gradients that a tensor's consumers send back, until their sum arrives.

    Args:
        outside: slots of what comes from elsewhere: readers in a graph that nobody showed.
        escapes: whether the tensor is handed out of the model.
        shared: where the gradients of a leaf gather, to which several graphs lead.
    """

    def __init__(
        self,
        ledger: Ledger,
        total_slot: int,
        outside: EdgeSlots,
        escapes: bool,
        shared: Arrived | None,
    ) -> None:
        self._ledger = ledger
        self._total_slot = total_slot
        self._outside = outside
        self._escapes = escapes
        self._shared = shared

    def gather(self, arrived: Gathered) -> Arrived:
        """What has arrived so far, in the graph whose hooks hold `arrived`."""
        return arrived.setdefault(self, []) if self._shared is None else self._shared

    def forget(self) -> None:
        """A new forward pass: what waits at a leaf came from a pass that broke off."""
        if self._shared is not None:
            self._shared.clear()

    def total(self, g: Tensor, size: Any, gathered: Arrived) -> None:
        """The sum has arrived: measure every edge against it."""
        parts = gathered.copy()
        gathered.clear()
        if not parts:
            return
        compared = self._escapes or len(parts) == 1
        rest = _rest(g, parts) if compared else None
        if rest is None and len(parts) == 1:
            return
        known, reach = 0.0, 0.0
        for slots, part in parts:
            part_size, product = self._edge(slots, part, g, size)
            if isinstance(part_size, float) and isinstance(product, float):
                known, reach = known + product, reach + part_size
        if isinstance(size, float) and abs(size * size - known) > MISSING * size * reach:
            # A loss may have got hold of it without its being handed out.
            rest = rest if compared else _rest(g, parts)
        if rest is not None:
            self._edge(self._outside, rest, g, size)
        self._ledger.add(self._total_slot, size)

    def _edge(self, slots: EdgeSlots, part: Tensor, g: Tensor, size: Any) -> tuple[Any, Any]:
        norm_slot, inner_slot = slots
        part_size = norm(part)
        self._ledger.add(norm_slot, part_size)
        on_host = isinstance(size, float) and isinstance(part_size, float)
        if on_host and (0 < size <= WIDE_LOW or WIDE_HIGH <= size < math.inf):
            return part_size, None  # out of float64's range
        product = inner(part, g, part_size * size if on_host else None)
        self._ledger.add(inner_slot, product)
        return part_size, product


def _rest(g: Tensor, parts: Arrived) -> Tensor | None:
    """What the total holds beyond the known parts; None if nothing.

    Autograd adds gradients in the order of their arrival, and so does this: where nothing
    came from elsewhere the two sums are the same bit for bit.
    """
    known = parts[0][1]
    if len(parts) == 1 and known is g:
        return None
    for _, part in parts[1:]:
        known = known + part
    rest = g - known
    if rest.is_cpu and not rest.any():
        return None
    return rest


@dataclass(frozen=True)
class Borrowed:
    """A fork of a forward pass, for readers in a graph that several passes make.

    Attributes:
        part: which of the passes.
    """

    part: int
    fork: ForkTap

    def gather(self, arrived: Gathered) -> Arrived:
        """See `ForkTap.gather`; what arrived in the pass is lent when the hooks are hung."""
        return arrived[self]


class NodeTap:
    """All that is measured at one autograd node."""

    def __init__(self, trouble: Trouble) -> None:
        self._trouble = trouble
        self.outputs: list[tuple[int, TensorTap]] = []  # forward outputs of the node
        self.edges: list[tuple[int, ForkTap | Borrowed, EdgeSlots]] = []  # input → a fork's edge
        self.crossing: Crossing | None = None

    def hang(self, node: Any, arrived: Gathered) -> list[Any]:
        """Register on a graph's node; handles to unregister it.

        The hooks must not hold the node, which holds them: what they need of it is taken now.
        """
        handles = []
        if self.outputs:
            handles.append(node.register_prehook(partial(self._arriving, arrived)))
        if self.edges:
            handles.append(node.register_hook(partial(self._leaving, arrived)))
        if self.crossing is not None and not self._trouble.off(self.crossing.part):
            try:
                saved = self.crossing.saved(node)
            except Exception as error:
                self._trouble.caught(self.crossing.part, error)
            else:
                if saved is not None:
                    hook = partial(self._crossed, self.crossing, saved)
                    handles.append(node.register_hook(hook))
        return handles

    def _arriving(self, arrived: Gathered, grad_outputs: Gradients) -> None:
        try:
            if torch.is_grad_enabled():  # create_graph=True
                with torch.no_grad():
                    self._measure_outputs(arrived, grad_outputs)
            else:
                self._measure_outputs(arrived, grad_outputs)
        except Exception as error:
            self._trouble.caught("gradients", error)

    def _measure_outputs(self, arrived: Gathered, grad_outputs: Gradients) -> None:
        for number, tap in self.outputs:
            g = grad_outputs[number]
            if g is not None and not g.is_nested and not spread(g):
                tap.measure(g, arrived)

    def _leaving(self, arrived: Gathered, grad_inputs: Gradients, grad_outputs: Gradients) -> None:
        try:
            for number, fork, slots in self.edges:
                g = grad_inputs[number]
                if g is not None and not g.is_nested and not spread(g):
                    fork.gather(arrived).append((slots, g))
        except Exception as error:
            self._trouble.caught("gradients", error)

    def _crossed(
        self,
        crossing: Crossing,
        saved: list[Any],
        grad_inputs: Gradients,
        grad_outputs: Gradients,
    ) -> None:
        try:
            if not any(g is not None and spread(g) for g in grad_outputs):
                with torch.no_grad():
                    crossing(saved, grad_inputs, grad_outputs)
            saved.clear()
        except Exception as error:
            self._trouble.caught(crossing.part, error)


@dataclass(eq=False)
class Taps:
    """All that is measured in graphs of one structure.

    Attributes:
        at: by index of the node.
        leaf_forks: those of leaves, to which several graphs lead.
    """

    at: list[tuple[int, NodeTap]]
    leaf_forks: list[ForkTap]

    def hang(self, nodes: list[Any], arrived: Gathered) -> list[Any]:
        """Hook a graph's nodes; handles to unhook them.

        Args:
            arrived: where what forks gather in this graph is kept.
        """
        handles: list[Any] = []
        for fork in self.leaf_forks:
            fork.forget()
        for index, tap in self.at:
            handles += tap.hang(nodes[index], arrived)
        return handles
