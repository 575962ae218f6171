"""Which nodes of the autograd graph are attention softmaxes, and which of their edges cross."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from gradscope.errors import PathwayError
from gradscope.graph.attention_nodes import FUSED_ATTENTION, SOFTMAX
from gradscope.paths.backward import Node, execution_order

# The edges of fused attention are query, key, value and, in some kernels, the bias that is
# added to the logits. All but the value pass through the softmax.
VALUE = 2

_UNKNOWN = re.compile(r"attention|attn|mha|softmax", re.IGNORECASE)
_LOSS = re.compile(r"log_?softmax", re.IGNORECASE)


@dataclass(frozen=True)
class Crossing:
    """A node of the autograd graph, and the edges by which a path through it counts.

    Attributes:
        node: a `torch.autograd.graph.Node`.
        edges: positions in `node.next_functions`.
    """

    node: Node
    edges: tuple[int, ...]


def find_softmaxes(
    loss: Tensor, extra: Mapping[str, Sequence[int]] | None = None
) -> list[Crossing]:
    """The attention softmaxes in the graph of `loss`, those nearest to it first.

    A log-softmax is none, so a cross-entropy loss does not count. Every `softmax` does: leave
    out of the list what does no attending, such as a router's or an output's.

    Args:
        loss: the tensor to walk back from.
        extra: further operations, such as a custom attention kernel: the node's name, as in
            `loss.grad_fn.name()`, → the positions in `next_functions` of the tensors (queries
            and keys) from which a path crosses the softmax.

    Raises:
        PathwayError: for an operation that by its name holds a softmax and is not known here.
    """
    if loss.grad_fn is None:
        raise PathwayError("the loss has no graph: it was not computed from parameters")
    return softmaxes_among(execution_order(loss.grad_fn), extra or {})


def softmaxes_among(nodes: Sequence[Node], extra: Mapping[str, Sequence[int]]) -> list[Crossing]:
    """`find_softmaxes` in a graph that has been walked already."""
    found = []
    for node in nodes:
        name = node.name()
        if name in extra:
            found.append(Crossing(node, tuple(extra[name])))
        elif name in SOFTMAX or name in FUSED_ATTENTION or name == "MaskedSoftmaxBackward0":
            found.append(crossing(node))
        elif _UNKNOWN.search(name) and not _LOSS.search(name):
            raise PathwayError(
                f"{name} seems to hold a softmax, and which of its inputs cross it is not known. "
                f"Give find_softmaxes(loss, extra={{{name!r}: positions of queries and keys among "
                f"its {len(node.next_functions)} inputs}}), and pass on what it returns"
            )
    return found


def crossing(node: Node) -> Crossing:
    """The edges of `node` that cross it: those past the softmax, where it holds one, else all."""
    stays_out = VALUE if node.name() in FUSED_ATTENTION else None
    return Crossing(node, tuple(i for i in range(len(node.next_functions)) if i != stays_out))


def crossings(places: Iterable[Crossing | Node]) -> dict[Node, set[int]]:
    """By node, the edges that cross, of crossings or of whole nodes."""
    edges: dict[Node, set[int]] = {}
    for place in places:
        known = place if isinstance(place, Crossing) else crossing(place)
        edges.setdefault(known.node, set()).update(known.edges)
    return edges
