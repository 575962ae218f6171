"""Where a value that is NaN or infinite came from: the first operation that made one.

*Forward*: when a loss is not finite, its graph still holds what every operation saved. *Backward*:
operations whose derivative can be infinite where their result is not (a square root at 0) are
watched as the gradient crosses them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradscope.capture.shards import spread
from gradscope.graph.walk import Graph, operation, walk
from gradscope.quantities.norm import norm

Gradients = tuple[Tensor | None, ...]

# Operations with finite results and infinite derivatives, or derivatives that overflow.
RISKY = frozenset(
    f"{name}Backward{i}"
    for name in (
        "Log Log2 Log10 Log1P Sqrt Rsqrt Pow Div Reciprocal LinalgVectorNorm Norm Std Acos Asin "
        "Atanh Acosh Cdist Prod Exp Atan2 Erfinv Lgamma Xlogy"
    ).split()
    for i in range(4)
)

# Which input of an operation a saved tensor is, where that is not the first.
POSITIONS = {"other": 1, "mat2": 1, "exponent": 1}
ADDMM = {"mat1": 1, "mat2": 2, "batch1": 1, "batch2": 2}
NEAR = 2  # operations from a parameter to the one that is named for it
RESULTS = ("result", "result0", "output", "out")
# What an operation saved, other than its operands: masks of −∞, say, are meant.
ASIDE = ("mask", "bias", "logsumexp", "weight", "target", "exp")

# Results of operations that save their operands only.
AGAIN: dict[str, Callable[[Any], Tensor]] = {
    "LogBackward0": lambda n: n._saved_self.log(),
    "Log2Backward0": lambda n: n._saved_self.log2(),
    "Log10Backward0": lambda n: n._saved_self.log10(),
    "Log1PBackward0": lambda n: n._saved_self.log1p(),
    "AcosBackward0": lambda n: n._saved_self.acos(),
    "AsinBackward0": lambda n: n._saved_self.asin(),
    "AtanhBackward0": lambda n: n._saved_self.atanh(),
    "PowBackward0": lambda n: n._saved_self.pow(n._saved_exponent),
    "DivBackward0": lambda n: n._saved_self / n._saved_other,
    "MulBackward0": lambda n: n._saved_self * n._saved_other,
    "MmBackward0": lambda n: n._saved_self @ n._saved_mat2,
    "BmmBackward0": lambda n: n._saved_self @ n._saved_mat2,
    "AddmmBackward0": lambda n: n._saved_mat1 @ n._saved_mat2,
    "VarBackward0": lambda n: n._saved_self.var(),
}


class Origin(NamedTuple):
    """What made the first value that is not finite.

    Attributes:
        phase: "parameter" (a weight was so already), "data", "forward" or "backward".
        operation: short name of the operation, such as "log"; or "". For a parameter: of the one
            whose derivative can be infinite and that reads it, or is the only one of its kind.
        node: its autograd node, or the leaf's.
        inferred: nothing shows its result, only that those around it are not to blame.
    """

    phase: str
    operation: str
    node: Any
    inferred: bool = False


class OriginTap:
    """Watches one risky operation in the backward pass."""

    part = "the first non-finite value"

    def __init__(self, found: Callable[[str, str], None], where: str, operation: str) -> None:
        self._found, self._where, self._operation = found, where, operation

    def saved(self, node: Any) -> list[Any]:
        return []

    def __call__(self, saved: list[Any], grad_inputs: Gradients, grad_outputs: Gradients) -> None:
        for g in grad_inputs:
            if g is None or g.is_nested:
                continue
            size = norm(g)
            if not isinstance(size, float):
                return  # on an accelerator: not worth waiting for
            if not math.isfinite(size):
                arriving = [norm(h) for h in grad_outputs if h is not None]
                if all(isinstance(h, float) and math.isfinite(h) for h in arriving):
                    self._found(self._where, self._operation)
                return


def is_risky(node: Any) -> bool:
    """Whether an operation's derivative can be infinite while its result is finite."""
    name = node.name()
    if name not in RISKY:
        return False
    if name == "DivBackward0":
        return node._raw_saved_other.unpack_hook is not None or node._saved_other is not None
    if name == "PowBackward0":
        return not (isinstance(node._saved_exponent, int | float) and node._saved_exponent >= 1)
    return True


def first_nonfinite(loss: Tensor, parameters: Container[int]) -> Origin | None:
    """The first operation, in forward order, whose NaN or infinity reached a loss.

    None for a loss that is finite, or has no graph. Operations that save neither operands nor
    result (a sum, a product with a number) are judged by those around them; where these too
    can't be, the nearest later one that can is named.

    Args:
        parameters: ids; None too for a loss that depends on none of them.
    """
    if loss.grad_fn is None or bool(torch.isfinite(loss.detach()).all()):
        return None
    with torch.no_grad():
        graph = walk([loss.grad_fn])
        if not any(id(getattr(node, "variable", None)) in parameters for node in graph.nodes):
            return None
        finite = _outputs_finite(graph)
        suspects = _reaching(graph, finite)
        leaves = [i for i in suspects if hasattr(graph.nodes[i], "variable")]
        bad = [i for i in leaves if finite.get(i) is False]
        if bad:
            reader = (_risky_reader(graph, bad[0]) if len(bad) == 1 else None) or _only_risk(graph)
            return Origin("parameter", reader or "", graph.nodes[bad[0]], inferred=bool(reader))
        inner = sorted(
            (i for i in suspects if not hasattr(graph.nodes[i], "variable")),
            key=lambda i: graph.nodes[i]._sequence_nr(),
        )
        for i in inner:
            node = graph.nodes[i]
            if _reads_nonfinite_data(node):
                return Origin("data", operation(node), node)
            if finite.get(i) is False:
                return Origin("forward", operation(node), node)
        for i in inner:  # it reads nothing suspicious, so it must have been this one
            if not any(graph.index.get(n) in suspects for n, _ in graph.nodes[i].next_functions):
                return Origin("forward", operation(graph.nodes[i]), graph.nodes[i], inferred=True)
        return Origin("forward", operation(loss.grad_fn), loss.grad_fn, inferred=True)


def _risky_reader(graph: Graph, leaf: int) -> str | None:
    """The operation through whose derivative a parameter alone can have lost its finite value."""
    readers, consumers = [], graph.consumers()
    waiting = [n for n, _ in consumers.get((leaf, 0), [])]
    for _ in range(NEAR):  # a clamp or an exponential may lie between
        readers += waiting
        waiting = [n for i in waiting for n, _ in consumers.get((i, 0), [])]
        if any(is_risky(graph.nodes[i]) for i in readers):
            break
    return next((operation(graph.nodes[i]) for i in readers if is_risky(graph.nodes[i])), None)


def _only_risk(graph: Graph) -> str | None:
    """The operation whose derivative can be infinite, if there is one kind of them only."""
    risky = {operation(node) for node in graph.nodes if is_risky(node)}
    return risky.pop() if len(risky) == 1 else None


def _outputs_finite(graph: Graph) -> dict[int, bool]:
    """Node → whether its result is finite, of those that can be known."""
    known: dict[int, bool] = {}
    for i, node in enumerate(graph.nodes):
        if hasattr(node, "variable"):
            if not _gone(node.variable):
                known[i] = _finite(node.variable)
            continue
        for name, tensor in _saved(node).items():
            if name in RESULTS:
                known[i] = _finite(tensor)
            else:
                producer = _producer(node, name)
                if producer is not None:
                    known.setdefault(graph.index[producer], _finite(tensor))
    for i, node in enumerate(graph.nodes):
        if _divides_by_zero(node):
            known[i] = False
        again = AGAIN.get(node.name())
        if i in known or again is None or any(_gone(t) for _, t in _readable(node)):
            continue
        try:
            known[i] = _finite(again(node))
        except (RuntimeError, TypeError, AttributeError):  # an operand was not saved
            continue
    return known


def _divides_by_zero(node: Any) -> bool:
    """x / 0 is finite for no x, which need not have been saved."""
    if node.name() != "DivBackward0":
        return False
    raw = node._raw_saved_other
    if raw is None or getattr(raw, "unpack_hook", None) is not None:
        return False
    divisor = node._saved_other
    return isinstance(divisor, Tensor) and bool((divisor == 0).any())


def _reaching(graph: Graph, finite: dict[int, bool]) -> set[int]:
    """Nodes whose result may have made the loss non-finite: no finite result lies between."""
    starts = [0]
    for count in graph.counts:
        starts.append(starts[-1] + count)
    seen, waiting = {0}, [0]
    while waiting:
        i = waiting.pop()
        for edge in graph.edges[starts[i] : starts[i + 1]]:
            if edge is not None and edge[0] not in seen and finite.get(edge[0]) is not True:
                seen.add(edge[0])
                waiting.append(edge[0])
    return seen


def _reads_nonfinite_data(node: Any) -> bool:
    """Whether an operand without a gradient is not finite."""
    for name, tensor in _saved(node).items():
        if name in RESULTS or any(a in name for a in ASIDE) or _finite(tensor):
            continue
        position = _position(node, name)
        if position is None or position >= len(node.next_functions):
            continue
        if node.next_functions[position][0] is None:
            return True
    return False


def _gone(tensor: Tensor) -> bool:
    """Whether a tensor is not here: `fully_shard` lets the memory of weights go and gathers them
    again when needed; a DTensor is spread over processes."""
    return spread(tensor) or (tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0)


def _saved(node: Any) -> dict[str, Tensor]:
    """Floating-point tensors that a node saved and that may be read."""
    return {n: t.detach() for n, t in _readable(node) if type(t) is Tensor and not _gone(t)}


def _readable(node: Any) -> Iterator[tuple[str, Tensor]]:
    """Floating-point tensors that a node saved, without a hook that unpacks them."""
    for attribute in dir(node):
        if not attribute.startswith("_raw_saved_"):
            continue
        name = attribute.removeprefix("_raw_saved_")
        raw = getattr(node, attribute)
        if isinstance(raw, tuple | list) or raw is None or raw.unpack_hook is not None:
            continue
        tensor = getattr(node, "_saved_" + name)
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            yield name, tensor


def _producer(node: Any, name: str) -> Any:
    position = _position(node, name)
    if position is None or position >= len(node.next_functions):
        return None
    return node.next_functions[position][0]


def _position(node: Any, name: str) -> int | None:
    if any(a in name for a in ASIDE) and name != "exponent":
        return None
    if node.name().startswith(("Addmm", "Addbmm", "Baddbmm")):
        return ADDMM.get(name)
    if name in POSITIONS:
        return POSITIONS[name]
    return 0 if name in ("self", "input") else None


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
