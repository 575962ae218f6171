"""A plan: which nodes of a graph to hang which taps on.

Made when a graph of this structure is first seen, and used for every later step whose
graph and module calls are the same, so that naming and classifying cost nothing then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from gradscope.capture.activations import Activations
from gradscope.capture.ledger import Ledger, Read, absent
from gradscope.capture.origins import OriginTap, is_risky
from gradscope.capture.softmaxes import SoftmaxRows, SoftmaxTap, rows_note
from gradscope.capture.taps import Arrived, EdgeSlots, ForkTap, NodeTap, TensorTap
from gradscope.capture.times import TimeTap, recurrent_layers
from gradscope.capture.trouble import Trouble
from gradscope.graph.attention_nodes import FUSED_ATTENTION, SOFTMAX
from gradscope.graph.calls import Call
from gradscope.graph.naming import OUTSIDE, Names, Place, canonical
from gradscope.graph.walk import OPAQUE, Graph, following, operation
from gradscope.quantities.activation import SLOPES
from gradscope.run import TIME_STEP, Column, Site

# A tensor read more often than this (the weight of an unrolled recurrence) is not split by
# edge: the parts would have to be held together until the last of them has arrived.
MAX_EDGES = 16

Unseen = Callable[[str, str], None]  # what, why


@dataclass
class Plan:
    """Taps by node index of a graph with this structure.

    Attributes:
        made: sequence number of a node, counted from the start of the forward pass → its
            operation's name and place.
    """

    taps: list[tuple[int, NodeTap]]
    leaf_forks: list[ForkTap]
    made: dict[int, tuple[str, str]]

    def hang(self, graph: Graph) -> list[Any]:
        """Hook a graph's nodes; handles to unhook them."""
        nodes = graph.nodes
        arrived: dict[ForkTap, Arrived] = {}
        handles: list[Any] = []
        for fork in self.leaf_forks:
            fork.forget()
        for index, tap in self.taps:
            handles += tap.hang(nodes[index], arrived)
        return handles


def make_plan(
    graph: Graph,
    calls: list[Call],
    *,
    start: int,
    returned: set[Place],
    paths: dict[nn.Module, str],
    parameters: dict[int, str],
    ledger: Ledger,
    softmax_rows: SoftmaxRows,
    activations: Activations,
    nonfinite: Callable[[str, str], None],
    unseen: Unseen,
    trouble: Trouble,
) -> Plan:
    """Decide what to measure in a graph.

    Args:
        start: sequence number at which this forward pass began; older nodes belong to
            another one.
        returned: tensors handed out of the model, which a loss may use directly.
        paths: module paths; `parameters`: names by id.
        softmax_rows: which rows of large softmaxes are measured.
        nonfinite: called with the place and the operation that first made a gradient NaN or
            infinite.
    """
    names = Names(graph, calls, paths, parameters)
    builder = _Builder(graph, names, start, returned, ledger, unseen, trouble)
    builder.outputs()
    builder.time_steps(paths)
    builder.forks()
    builder.softmaxes(softmax_rows)
    builder.activations(activations)
    builder.risky(nonfinite)
    builder.opaque(paths)
    made = {
        number - start: (operation(node), names.op(index) or "")
        for index, (node, number) in enumerate(zip(graph.nodes, names.sequence, strict=True))
    }
    return Plan(sorted(builder.taps.items()), builder.leaf_forks, made)


class _Builder:
    def __init__(
        self,
        graph: Graph,
        names: Names,
        start: int,
        returned: set[Place],
        ledger: Ledger,
        unseen: Unseen,
        trouble: Trouble,
    ) -> None:
        self.graph, self.names, self.start, self.returned = graph, names, start, returned
        self.ledger, self.unseen, self.trouble = ledger, unseen, trouble
        self.taps: dict[int, NodeTap] = {}
        self.tensor_taps: dict[Place, TensorTap] = {}
        self.leaf_forks: list[ForkTap] = []
        self.depths = graph.depths()

    def outputs(self) -> None:
        """Gradients at module outputs; each tensor once, its other names as aliases."""
        for place, group in self.names.outputs_by_place().items():
            if self.names.sequence[place[0]] < self.start:
                continue  # a module handed through what came from elsewhere
            chosen = canonical(group)
            own = []  # names under which it is measured, rather than as an alias
            for named in group:
                alias_of = "" if named is chosen else chosen.name
                known = self.ledger.sites.get(("module", named.name))
                # What a name stands for may change from step to step.
                if named is chosen or (known is not None and known.alias_of != alias_of):
                    own.append(named.name)
                self.ledger.site(
                    Site(
                        named.name,
                        "module",
                        type=named.type,
                        order=named.order,
                        depth=self.depths[place[0]],
                        shape=named.shape,
                        numel=named.numel,
                        alias_of=alias_of,
                        parameters=named.parameters,
                    )
                )
            for name in own:
                self._tensor_tap("module", name, place)

    def time_steps(self, paths: dict[nn.Module, str]) -> None:
        """Gradients at the inputs of fused recurrent layers, by time."""
        consumers = self.graph.consumers()
        modules = {path: module for module, path in paths.items()}
        for layer in recurrent_layers(self.graph, self.names, modules):
            node = self.graph.nodes[layer.node]
            kernel_taps: list[tuple[int, TensorTap]] = []
            for position, time in enumerate(layer.times):
                name = f"{layer.name}.time#{position}"
                readers = consumers.get((layer.node, time), [])
                if not layer.kernel and not readers:
                    continue
                if layer.kernel:
                    given, output = node.next_functions[0]
                    shape = _shape(given, output)[1:]
                else:
                    shape = _shape(node, time)
                self.ledger.site(
                    Site(
                        name,
                        "module",
                        type=TIME_STEP,
                        order=self.names.sequence[layer.node] + position,
                        # A kernel's steps lie behind one another, wherever the kernel lies.
                        depth=-1 if layer.kernel else max(self.depths[n] for n, _ in readers),
                        shape=shape,
                        numel=int(np.prod(shape, dtype=np.int64)),
                        note=layer.note,
                    )
                )
                if layer.kernel:
                    kernel_taps.append((time, self._named_tap(TensorTap(self.ledger), name)))
                else:
                    self._tensor_tap("module", name, (layer.node, time))
            if kernel_taps:
                self._node_tap(layer.node).crossing = TimeTap(kernel_taps)

    def forks(self) -> None:
        """Tensors that several nodes read."""
        consumers = self.graph.consumers()
        taken: dict[str, int] = {}
        for place, readers in sorted(consumers.items(), key=self._in_forward_order):
            escapes = place in self.returned
            if len(readers) + escapes < 2 or not self._mine(place, readers):
                continue
            name = self.names.tensor(place)
            if name is None:
                continue
            number = taken.get(name, 0)
            taken[name] = number + 1
            if number:
                name = f"{name}#{number}"
            if len(readers) > MAX_EDGES:
                self.unseen(
                    f"fork {name}: its {len(readers)} edges",
                    f"a tensor read more than {MAX_EDGES} times is measured as a whole only",
                )
                continue
            self._fork(name, place, readers, consumers, escapes)

    def softmaxes(self, rows: SoftmaxRows) -> None:
        """Softmax and fused-attention nodes, unless the model's very output."""
        taken: Counter[str] = Counter()
        for index, node in self._own_nodes():
            fused = node.name() in FUSED_ATTENTION
            if not fused and node.name() not in SOFTMAX:
                continue
            if not fused and (index, 0) in self.returned and self._unread((index, 0)):
                continue
            base = self.names.owner(index) or self.names.op(index) or operation(node)
            kept = base if ":" in base else f"{base}:softmax"  # the model's own says it already
            name = f"{kept}#{taken[base]}" if taken[base] else base
            taken[base] += 1
            shape = _softmax_shape(node, fused)
            self._operation_site("softmax", name, index, shape, rows_note(shape, fused, rows))
            tap = SoftmaxTap(self.ledger, name, fused, rows, self.unseen)
            self._node_tap(index).crossing = tap

    def activations(self, activations: Activations) -> None:
        """Activation functions, named for the module that calls them."""
        taken: Counter[str] = Counter()
        for index, node in self._own_nodes():
            if node.name() not in SLOPES:
                continue
            if any(hasattr(made, "variable") for made in following(node)):
                continue  # of a parameter: a gate, no activation
            base = self.names.at.get((index, 0)) or self.names.op(index) or operation(node)
            name = f"{base}#{taken[base]}" if taken[base] else base
            taken[base] += 1
            self._operation_site("activation", name, index, _shape(node, 0))
            self._node_tap(index).crossing = activations.tap(name, node)

    def risky(self, found: Callable[[str, str], None]) -> None:
        """Operations whose derivative can be infinite where their result is finite."""
        for index, node in enumerate(self.graph.nodes):
            if not is_risky(node) or self.names.sequence[index] < self.start:
                continue
            where = self.names.op(index) or f"{OUTSIDE}:{operation(node)}"
            self._node_tap(index).crossing = OriginTap(found, where, operation(node))

    def opaque(self, paths: dict[nn.Module, str]) -> None:
        """Say what autograd does not show."""
        for index, node in enumerate(self.graph.nodes):
            for kind, why in OPAQUE.items():
                if node.name().startswith(kind):
                    inside = _module_run(node)
                    if inside is not None and inside in paths:
                        what = f"{paths[inside] or 'the model'} and the modules in it"
                    else:
                        what = f"the inside of {self.names.owner(index) or 'a part of the model'}"
                    self.unseen(what, why)

    # -- pieces ------------------------------------------------------------------------

    def _own_nodes(self) -> Iterator[tuple[int, Any]]:
        """Nodes that the model's modules made in this pass, with their indices, in their order."""
        for index in sorted(range(len(self.graph.nodes)), key=lambda i: self.names.sequence[i]):
            if self.names.sequence[index] >= self.start and self.names.owner(index) is not None:
                yield index, self.graph.nodes[index]

    def _operation_site(
        self, kind: str, name: str, index: int, shape: tuple[int, ...], note: str = ""
    ) -> None:
        self.ledger.site(
            Site(
                name,
                kind,
                type=operation(self.graph.nodes[index]),
                order=self.names.sequence[index],
                depth=self.depths[index],
                shape=shape,
                numel=int(np.prod(shape, dtype=np.int64)),
                note=note,
            )
        )

    def _in_forward_order(self, item: tuple[Place, Any]) -> tuple[int, int]:
        return (self.names.sequence[item[0][0]], item[0][1])

    def _mine(self, place: Place, readers: list[Place]) -> bool:
        """Whether a reader belongs to this forward pass, and the tensor to the model."""
        if all(self.names.sequence[node] < self.start for node, _ in readers):
            return False
        leaf = hasattr(self.graph.nodes[place[0]], "variable")
        return leaf or place in self.names.at or self.names.owner(place[0]) is not None

    def _unread(self, place: Place) -> bool:
        return not any(edge == place for edge in self.graph.edges)

    def _node_tap(self, index: int) -> NodeTap:
        return self.taps.setdefault(index, NodeTap(self.trouble))

    def _tensor_tap(self, kind: str, name: str, place: Place) -> TensorTap:
        tap = self.tensor_taps.get(place)
        if tap is None:
            tap = self.tensor_taps[place] = TensorTap(self.ledger)
            self._node_tap(place[0]).outputs.append((place[1], tap))
        return self._named_tap(tap, name, kind)

    def _named_tap(self, tap: TensorTap, name: str, kind: str = "module") -> TensorTap:
        ledger = self.ledger
        norm = ledger.slot("norm", kind, name, power=1)
        excess = ledger.slot("excess", kind, name, mode="sum")
        nonfinite = ledger.plain(Column(name, kind, "", "nonfinite"), mode="sum")
        half = (
            ledger.plain(Column(name, kind, "", "zero_fraction"), mode="mean"),
            ledger.plain(Column(name, kind, "", "subnormal_fraction"), mode="mean"),
        )
        numel = ledger.sites[(kind, name)].numel  # as first declared
        if kind == "module":
            ledger.emitter_once(norm, _Norm(norm, excess, numel, name), [norm])
        tap.name(norm, excess, nonfinite, half, numel)
        return tap

    def _fork(
        self,
        name: str,
        place: Place,
        readers: list[Place],
        consumers: dict[Place, list[Place]],
        escapes: bool,
    ) -> None:
        ledger = self.ledger
        total = ledger.slot("fork total", name, power=1)
        fork = ledger.emitter_once(total, _Fork(name, total, {}, []), [total])
        outside = fork.edge(ledger, OUTSIDE)
        shape = _shape(self.graph.nodes[place[0]], place[1])
        numel = int(np.prod(shape, dtype=np.int64))
        ledger.site(
            Site(
                name,
                "fork",
                type=operation(self.graph.nodes[place[0]]),
                order=min(self.names.sequence[place[0]], self.names.sequence[readers[0][0]]),
                depth=self.depths[place[0]],
                shape=shape,
                numel=numel,
            )
        )
        tap = self.tensor_taps.get(place) or self._tensor_tap("fork", name, place)
        leaf = hasattr(self.graph.nodes[place[0]], "variable")
        tap.fork = ForkTap(ledger, total, outside, escapes, fork.shared if leaf else None)
        if leaf:
            self.leaf_forks.append(tap.fork)
        names = self.names.edges(readers, consumers)
        for edge, (node, position) in zip(names, readers, strict=True):
            slots = fork.edge(ledger, edge)
            self._node_tap(node).edges.append((position, tap.fork, slots))


@dataclass(frozen=True)
class _Norm:
    """grad_norm of a module's output, and its number of elements where that varies."""

    norm: int
    excess: int
    numel: int
    name: str

    def emit(self, read: Read) -> Any:
        size = read[self.norm]
        yield Column(self.name, "module", "", "grad_norm"), size
        count = read.counts[self.norm]
        if count > 1 or self.excess in read:
            numel = np.full(len(size), float(count * self.numel))
            yield (
                Column(self.name, "module", "", "numel"),
                numel + read.get(self.excess, np.zeros(len(size))),
            )


@dataclass(frozen=True)
class _Fork:
    """Edges of a fork against their sum.

    projection_e = ⟨g_e, g⟩/‖g‖², cosine_e = ⟨g_e, g⟩/(‖g_e‖‖g‖),
    cancellation = 1 − ‖g‖/Σ‖g_e‖; over micro-batches norms combine as root-sum-square and
    inner products as sums, so that projections still sum to 1.

    Attributes:
        edges: slots of all edges seen so far, in whatever graph.
        shared: where the gradients of a leaf gather.
    """

    name: str
    total: int
    edges: dict[str, EdgeSlots]
    shared: Arrived

    def edge(self, ledger: Ledger, edge: str) -> EdgeSlots:
        """Slots of an edge: of its norm, and of its inner product with the sum."""
        if edge not in self.edges:
            self.edges[edge] = (
                ledger.slot("fork norm", self.name, edge, power=1),
                ledger.slot("fork inner", self.name, edge, mode="sum", power=2),
            )
        return self.edges[edge]

    def emit(self, read: Read) -> Any:
        size = read[self.total]
        seen = [(e, *s) for e, s in self.edges.items() if s[0] in read]
        together = sum(read[norm] for _, norm, _ in seen)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            yield self._column("", "grad_norm"), size
            # not below 0 by rounding
            cancellation = np.maximum(1 - size / together, 0)
            yield self._column("", "cancellation"), _told(cancellation, together != 0)
            for edge, norm, product in seen:
                part = read[norm]
                told = (part != 0) | np.full(len(part), edge != OUTSIDE)
                yield self._column(edge, "grad_norm"), _told(part, told)
                if product not in read:  # out of range
                    continue
                along = read[product]
                yield (
                    self._column(edge, "projection"),
                    _told(along / size / size, told & (size != 0)),
                )
                yield (
                    self._column(edge, "cosine"),
                    _told(along / size / part, told & (size != 0) & (part != 0)),
                )

    def _column(self, edge: str, metric: str) -> Column:
        return Column(self.name, "fork", edge, metric)


def _told(values: np.ndarray, where: Any) -> np.ndarray:
    return np.where(where, values.view(np.int64), absent(len(values)).view(np.int64)).view(
        np.float64
    )


def _shape(node: Any, output: int) -> tuple[int, ...]:
    if hasattr(node, "variable"):
        return tuple(node.variable.shape)
    metadata = getattr(node, "_input_metadata", ())
    shape = tuple(metadata[output].shape) if output < len(metadata) else ()
    return shape if all(type(n) is int for n in shape) else ()  # nested tensors have none


def _module_run(node: Any) -> nn.Module | None:
    """The module that a reentrant checkpoint runs, if it is one (or its method)."""
    function = getattr(node, "run_function", None)
    while isinstance(function, partial):
        function = function.func
    function = getattr(function, "__self__", function)  # of a bound method, its module
    return function if isinstance(function, nn.Module) else None


def _softmax_shape(node: Any, fused: bool) -> tuple[int, ...]:
    """Shape of p, rows last; () if a fused one does not show it."""
    shape = _shape(node, 0)
    if fused:
        made_key, output = node.next_functions[1]
        if made_key is not None:  # read from the graph: the key itself may have been let go
            key = _shape(made_key, output)
        else:
            hidden = node._raw_saved_key.unpack_hook is not None
            key = () if hidden else tuple(node._saved_key.shape)
        return (*shape[:-1], key[2]) if shape and key else ()
    dim = node._saved_dim
    dim -= (1 << 64) if dim >= 1 << 63 else 0
    if shape:
        dim %= len(shape)
        shape = (*shape[:dim], *shape[dim + 1 :], shape[dim])
    return shape


def structure(graph: Graph, calls: list[Call]) -> tuple[list[Any], ...]:
    """What must be the same for a plan to serve again: the graph, and who returned what."""
    outputs: list[Any] = []
    for call in calls:
        outputs.append(id(call.module))
        for field, node, number, _shape, _tensor in call.outputs:
            outputs.append((field, graph.index.get(node), number))
    return graph.types(), graph.edges, graph.counts, outputs
