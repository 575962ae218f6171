"""Named pathways: the part of a gradient that passes through given places of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from gradscope.errors import PathwayError
from gradscope.paths.backward import Backward, Node, stack_parts
from gradscope.paths.check import check_sum
from gradscope.paths.crossings import Crossing, crossings


@dataclass(frozen=True)
class PathwayGradients:
    """d loss / d target, split by whether a path passes through any of the gates.

    Attributes:
        through: for each target, the part whose paths pass through at least one gate.
        avoiding: the part whose paths pass through none.
        residual: how far the sum of the two is from the ordinary gradient, relative; the
            largest over the targets.
    """

    through: list[Tensor]
    avoiding: list[Tensor]
    residual: float


def through(
    loss: Tensor,
    targets: Sequence[Tensor],
    gates: Sequence[Tensor | Crossing | Node],
    *,
    reference: Sequence[Tensor | None] | None = None,
) -> PathwayGradients:
    """Split d loss / d target by whether its paths pass through any of `gates`.

    A first pass sets aside what comes to a gate, and a second one starts from there; each part
    is right to rounding of its own size. A path counts once, however many gates it passes.
    What a target that is itself a gate receives has passed through it.

    Args:
        loss: one element; its graph must still be there.
        targets: leaf or intermediate tensors of that graph.
        gates: tensors (a layer's output, say), nodes of the graph (`tensor.grad_fn`), or
            crossings, which are nodes with only some of their edges (`find_softmaxes`).
        reference: as for `graded_gradients`.

    Raises:
        PathwayError: as `graded_gradients`, and for a gate that no path from `loss` passes.
    """
    backward = Backward(loss, targets)
    aside = _departures(backward, gates)
    avoiding, arriving = backward.run(backward.start, aside)
    passing, _ = backward.run(arriving)
    parts = stack_parts(backward.targets, [avoiding, passing])
    residual = check_sum(backward, parts, reference)
    return PathwayGradients([p[1] for p in parts], [p[0] for p in parts], residual)


def _departures(
    backward: Backward, gates: Sequence[Tensor | Crossing | Node]
) -> dict[Node, set[int]]:
    """By node, the edges on which a path comes to a gate.

    Gradient comes to a tensor by the edges of all operations that consumed it.
    """
    aside = crossings(g for g in gates if not isinstance(g, Tensor))
    tensors = {i: _place(i, g) for i, g in enumerate(gates) if isinstance(g, Tensor)}
    places = set(tensors.values())
    reached = set()
    for node in backward.nodes:
        for position, edge in enumerate(node.next_functions):
            if edge in places:
                reached.add(edge)
                aside.setdefault(node, set()).add(position)
    in_graph = set(backward.nodes)
    for i, gate in enumerate(gates):
        if i in tensors:
            found = tensors[i] in reached
        else:
            found = (gate.node if isinstance(gate, Crossing) else gate) in in_graph
        if not found:
            raise PathwayError(
                f"gate {i} is not in the graph of the loss: give a tensor or a node of the same "
                "forward pass"
            )
    return aside


def _place(position: int, gate: Tensor) -> tuple[Node, int]:
    if not gate.requires_grad:
        raise PathwayError(f"gate {position} requires no gradient, so no path passes through it")
    edge = get_gradient_edge(gate)
    return edge.node, edge.output_nr
