"""The chain rule through one autograd graph, with places where gradient can be set aside.

PyTorch's engine answers one question: the whole gradient. Splitting a gradient by pathway
needs a backward pass that starts anywhere, and that holds back what crosses chosen edges so
that a later pass can go on from there. `Backward` is that: the same nodes are called in the same
order as by `torch.autograd.grad`, but from here, one by one. So nothing is registered on the
graph, hooks that others have registered on it do not run, `.grad` is not written, and saved
tensors are not freed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge

from gradscope.errors import PathwayError
from gradscope.paths.softmax import accurate_backward

T = TypeVar("T")

Node = Any  # torch.autograd.graph.Node; its attributes depend on the operation

# What waits at each node: one gradient for each output of the operation, or None.
Arrivals = dict[Node, list[Tensor | None]]

# Nodes that call a hidden graph of their own, and how to lay that open.
OPAQUE = {
    "CheckpointFunctionBackward": "reentrant checkpointing hides the graph inside: "
    "use checkpoint(..., use_reentrant=False)",
    "CompiledFunctionBackward": "a compiled region hides the graph inside: run the forward pass "
    'under torch.compiler.set_stance("force_eager")',
    "DifferentiableGraphBackward": "a scripted region hides the graph inside: "
    "run the forward pass without torch.jit",
    "GraphedBackward": "a CUDA graph hides the graph inside: run the module that was given to "
    "torch.cuda.make_graphed_callables",
    "RegisterPostBackwardFunctionBackward": "fully_shard frees parameters between layers and "
    "gathers them by hooks: measure an unsharded copy of the model",
}


class _Edge(NamedTuple):
    """Where one of a node's gradients goes, and what it must look like there."""

    node: Node
    output: int
    outputs: int  # of the node's operation
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Backward:
    """Backward passes through the graph of `loss`, as far as `targets`.

    Args:
        loss: one element that requires a gradient; its graph must not have been freed.
        targets: leaf or intermediate tensors. One that `loss` doesn't depend on has no
            gradient (None).

    Raises:
        PathwayError: for a loss or a target without gradient, or when an operation between
            them hides what happens inside it.
    """

    def __init__(self, loss: Tensor, targets: Sequence[Tensor]) -> None:
        if loss.numel() != 1 or not loss.requires_grad:
            raise PathwayError(
                "the loss must be one element that requires a gradient; it has shape "
                f"{tuple(loss.shape)} and requires_grad={loss.requires_grad}"
            )
        if not targets:
            raise PathwayError("no target was given")
        for i, target in enumerate(targets):
            if not target.requires_grad:
                raise PathwayError(
                    f"target {i}, of shape {tuple(target.shape)}, requires no gradient"
                )
        self.loss = loss  # keeps the graph alive
        self.targets = list(targets)
        root = get_gradient_edge(loss)
        self.nodes = execution_order(root.node)
        self.start: Arrivals = {}
        with torch.no_grad():
            _add(self.start, _edge(root.node, root.output_nr), torch.ones_like(loss))
        self._captures: dict[Node, list[tuple[int, int]]] = {}
        for i, target in enumerate(targets):
            place = get_gradient_edge(target)
            self._captures.setdefault(place.node, []).append((place.output_nr, i))
        self._edges = self._lead_to_targets()
        for node in self._edges:
            refuse_opaque(node)

    @property
    def epsilon(self) -> float:
        """Relative rounding of the coarsest floating-point type on the way, such as 1.2e-7."""
        dtypes = {e.dtype for edges in self._edges.values() for e in edges if e is not None}
        dtypes.add(self.loss.dtype)
        return max(torch.finfo(d).eps for d in dtypes if d.is_floating_point or d.is_complex)

    def run(
        self,
        arriving: Mapping[Node, Sequence[Tensor | None]],
        aside: Mapping[Node, Collection[int]] | None = None,
        *,
        go_on: bool = False,
        native: bool = False,
    ) -> tuple[list[Tensor | None], Arrivals]:
        """One backward pass.

        Args:
            arriving: the gradients to start from.
            aside: by node, positions in `next_functions`. What leaves by these edges is set
                aside, where it would have arrived.
            go_on: let what was set aside also go on, as in an ordinary backward pass.
            native: call PyTorch's kernels throughout. From `start`, this makes what
                `torch.autograd.grad` returns, bit for bit. Else softmaxes are differentiated by
                `accurate_backward`.

        Returns:
            Each target's gradient (None where nothing arrived), and what was set aside; a later
            pass can start from that.
        """
        return _in_a_graph_task(lambda: self._run(arriving, aside or {}, go_on, native))

    def _run(
        self,
        arriving: Mapping[Node, Sequence[Tensor | None]],
        aside: Mapping[Node, Collection[int]],
        go_on: bool,
        native: bool,
    ) -> tuple[list[Tensor | None], Arrivals]:
        gradients: list[Tensor | None] = [None] * len(self.targets)
        live: Arrivals = {node: list(arrived) for node, arrived in arriving.items()}
        held: Arrivals = {}
        for node in self.nodes:
            arrived = live.pop(node, None)
            if arrived is None:
                continue
            for output, i in self._captures.get(node, ()):
                gradients[i] = arrived[output]
            edges = self._edges.get(node)
            if edges is None:
                continue
            away = aside.get(node, ())
            leaving = _apply(node, arrived, native)
            for position, (edge, gradient) in enumerate(zip(edges, leaving, strict=True)):
                if edge is None or gradient is None:
                    continue
                gradient = _fit(gradient, edge)
                if position in away:
                    _add(held, edge, gradient)
                    if not go_on:
                        continue
                _add(live, edge, gradient)
        return gradients, held

    def _lead_to_targets(self) -> dict[Node, list[_Edge | None]]:
        """Edges of the nodes from which a target can be reached; None where none can."""
        edges: dict[Node, list[_Edge | None]] = {}
        for node in reversed(self.nodes):
            following = [
                _edge(child, output) if child in edges or child in self._captures else None
                for child, output in node.next_functions
            ]
            if any(following):
                edges[node] = following
        return edges


def execution_order(root: Node) -> list[Node]:
    """Every node reachable from `root`, as the engine would execute them.

    A node is ready once all that bring it gradient are done; of those ready, the engine takes
    the one made last in the forward pass. So gradients of a fork are added up in the same order.
    """
    waiting = {root: 0}
    found = [root]
    for node in found:  # grows while it is read
        for child, _ in node.next_functions:
            if child is None:
                continue
            if child not in waiting:
                waiting[child] = 0
                found.append(child)
            waiting[child] += 1
    order = []
    tie = count()  # nodes themselves don't compare
    ready = [(-root._sequence_nr(), next(tie), root)]
    while ready:
        _, _, node = heappop(ready)
        order.append(node)
        for child, _ in node.next_functions:
            if child is None:
                continue
            waiting[child] -= 1
            if not waiting[child]:
                heappush(ready, (-child._sequence_nr(), next(tie), child))
    return order


def stack_parts(
    targets: Sequence[Tensor], parts: Sequence[Sequence[Tensor | None]]
) -> list[Tensor]:
    """What n passes brought to each target, (n, *target.shape); zeros where nothing arrived."""
    return [
        torch.stack([_dense(gradients[i], target) for gradients in parts])
        for i, target in enumerate(targets)
    ]


def _dense(gradient: Tensor | None, target: Tensor) -> Tensor:
    if gradient is None:
        return torch.zeros_like(target, requires_grad=False)
    return gradient.detach() if gradient.layout is torch.strided else gradient.to_dense()


def refuse_opaque(node: Node) -> None:
    """Raise for an operation whose inside autograd does not show."""
    name = node.name().rsplit("::", 1)[-1]
    if name in OPAQUE:
        raise PathwayError(f"the graph holds {name}: {OPAQUE[name]}")


def _edge(node: Node, output: int) -> _Edge:
    expected = node._input_metadata
    metadata = expected[output]
    return _Edge(
        node, output, len(expected), tuple(metadata.shape), metadata.dtype, metadata.device
    )


def _add(arrivals: Arrivals, edge: _Edge, gradient: Tensor) -> None:
    slots = arrivals.get(edge.node)
    if slots is None:
        slots = arrivals[edge.node] = [None] * edge.outputs
    already = slots[edge.output]
    slots[edge.output] = gradient if already is None else already + gradient


def _apply(node: Node, arrived: list[Tensor | None], native: bool) -> Sequence[Tensor | None]:
    """What the node makes of the gradients that arrived, one an entry of `next_functions`."""
    try:
        if isinstance(node, BackwardCFunction):
            return _apply_custom(node, arrived)
        gradients = None if native else accurate_backward(node, arrived)
        if gradients is None:
            gradients = node(*arrived)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PathwayError(
            f"{node.name()} can't be run: measure before loss.backward() frees the graph, and "
            f"before an optimizer step changes the parameters in place ({error})"
        ) from error
    return gradients if isinstance(gradients, tuple) else (gradients,)


def _apply_custom(node: Any, arrived: list[Tensor | None]) -> list[Tensor | None]:
    """As the engine calls a Python `autograd.Function`: zeros for what did not arrive.

    The user's backward returns one gradient for each argument of the forward; the graph has
    edges for the arguments that are tensors.
    """
    filled = [
        torch.zeros(tuple(m.shape), dtype=m.dtype, device=m.device) if g is None else g
        for g, m in zip(arrived, node._input_metadata, strict=True)
    ]
    returned = node.apply(*filled)
    if not isinstance(returned, tuple):
        returned = (returned,)
    wanted = iter([g for g, asked in zip(returned, node.needs_input_grad, strict=False) if asked])
    return [None if child is None else next(wanted) for child, _ in node.next_functions]


def _fit(gradient: Tensor, edge: _Edge) -> Tensor:
    """Undo broadcasting and type promotion, which the engine leaves out of the nodes."""
    if gradient.shape != edge.shape:
        gradient = gradient.sum_to_size(edge.shape)
    if gradient.is_complex() and not edge.dtype.is_complex:
        gradient = gradient.real
    if gradient.dtype != edge.dtype or gradient.device != edge.device:
        gradient = gradient.to(device=edge.device, dtype=edge.dtype)
    return gradient


def _in_a_graph_task(work: Callable[[], T]) -> T:
    """Run `work` within a backward pass of its own, through a graph of one node.

    Non-reentrant checkpointing recomputes a region once for each backward pass that asks for
    its tensors; outside of one, it would do so again for every single tensor.
    """
    done: list[T] = []
    with torch.enable_grad():
        trigger = torch.zeros((), requires_grad=True, device="cpu").clone()  # in this thread
    trigger.register_hook(lambda _: done.append(work()))  # runs without recording a graph
    trigger.backward()
    return done[0]
