"""What to measure in a graph: which nodes get which taps, under which names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from gradscope.capture.activations import Activations
from gradscope.capture.emitters import ForkEmitter, NormEmitter
from gradscope.capture.ledger import Ledger
from gradscope.capture.origins import OriginTap, is_risky
from gradscope.capture.softmaxes import SoftmaxRows, SoftmaxTap, rows_note
from gradscope.capture.taps import ForkTap, NodeTap, Taps, TensorTap
from gradscope.capture.times import TimeTap, input_shape, recurrent_layers
from gradscope.capture.trouble import Trouble
from gradscope.graph.attention_nodes import FUSED_ATTENTION, SOFTMAX
from gradscope.graph.naming import OUTSIDE, Names, Place, canonical, op_name
from gradscope.graph.walk import OPAQUE, Graph, following, operation, shape_of
from gradscope.quantities.activation import SLOPES
from gradscope.run import TIME_STEP, Column, Site

# A tensor read more often than this (the weight of an unrolled recurrence) is not split by
# edge: the parts would have to be held together until the last of them has arrived.
MAX_EDGES = 16

Unseen = Callable[[str, str], None]  # what, why


@dataclass(frozen=True)
class Fork:
    """A tensor that several nodes read.

    Attributes:
        edges: names of those that the graph shows.
    """

    tap: ForkTap
    emitter: ForkEmitter
    edges: tuple[str, ...]


class Builder:
    """Puts taps on the nodes of one graph, and declares their sites."""

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
        self.measured: dict[Place, Fork] = {}
        self.sites: list[tuple[str, str, int]] = []  # kind, name, index of the node
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
                self._declare(
                    place[0],
                    Site(
                        named.name,
                        "module",
                        type=named.type,
                        order=named.order,
                        shape=named.shape,
                        numel=named.numel,
                        alias_of=alias_of,
                        parameters=named.parameters,
                    ),
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
                shape = input_shape(node) if layer.kernel else shape_of(node, time)
                site = Site(
                    name,
                    "module",
                    type=TIME_STEP,
                    order=self.names.sequence[layer.node] + position,
                    shape=shape,
                    numel=int(np.prod(shape, dtype=np.int64)),
                    note=layer.note,
                )
                if layer.kernel:  # its steps lie behind one another, wherever the kernel lies
                    self.ledger.site(site)
                else:
                    self._declare(max((n for n, _ in readers), key=self.depths.__getitem__), site)
                if layer.kernel:
                    kernel_taps.append((time, self._named_tap(TensorTap(self.ledger), name)))
                else:
                    self._tensor_tap("module", name, (layer.node, time))
            if kernel_taps:
                self._node_tap(layer.node).crossing = TimeTap(kernel_taps)

    def forks(self) -> None:
        """Tensors that several nodes read."""
        consumers = self.graph.consumers()
        taken: Counter[tuple[int | None, str]] = Counter()
        for place, found in sorted(consumers.items(), key=self._in_forward_order):
            readers = sorted(found, key=self._read_at)
            escapes = place in self.returned
            if len(readers) + escapes < 2 or not self._mine(place, readers):
                continue
            name = self._tensor_name(place)
            if name is None:
                continue
            number = taken[self._pass_of(place[0]), name]
            taken[self._pass_of(place[0]), name] += 1
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
            base = self.names.owner(index) or self._op_name(index)
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
            base = self.names.at.get((index, 0)) or self._op_name(index)
            name = f"{base}#{taken[base]}" if taken[base] else base
            taken[base] += 1
            self._operation_site("activation", name, index, shape_of(node, 0))
            self._node_tap(index).crossing = activations.tap(name, node)

    def risky(self, found: Callable[[str, str], None]) -> None:
        """Operations whose derivative can be infinite where their result is finite."""
        for index, node in enumerate(self.graph.nodes):
            if is_risky(node) and self._watched(index):
                risky = OriginTap(found, self._op_name(index), operation(node))
                self._node_tap(index).crossing = risky

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

    def result(self) -> Taps:
        """All that was put on so far."""
        return Taps(sorted(self.taps.items()), self.leaf_forks)

    # -- pieces ------------------------------------------------------------------------

    def _own_nodes(self) -> Iterator[tuple[int, Any]]:
        """Nodes that are the model's and this plan's, with their indices, in forward order."""
        for index in sorted(range(len(self.graph.nodes)), key=lambda i: self.names.sequence[i]):
            if self._own(index):
                yield index, self.graph.nodes[index]

    def _own(self, index: int) -> bool:
        return self._watched(index) and self.names.owner(index) is not None

    def _operation_site(
        self, kind: str, name: str, index: int, shape: tuple[int, ...], note: str = ""
    ) -> None:
        self._declare(
            index,
            Site(
                name,
                kind,
                type=operation(self.graph.nodes[index]),
                order=self.names.sequence[index],
                shape=shape,
                numel=int(np.prod(shape, dtype=np.int64)),
                note=note,
            ),
        )

    def _declare(self, index: int, site: Site) -> None:
        """A site at a node, which lies as deep as the node."""
        self.sites.append((site.kind, site.name, index))
        self.ledger.site(replace(site, depth=self.depths[index]))

    def _pass_of(self, index: int) -> int | None:
        """Which forward pass made a node; those of several have the same names."""
        return 0

    def _tensor_name(self, place: Place) -> str | None:
        """Name of a tensor with several readers; None if it is not measured."""
        return self.names.tensor(place)

    def _op_name(self, index: int) -> str:
        return self.names.op(index) or op_name(OUTSIDE, operation(self.graph.nodes[index]))

    def _watched(self, index: int) -> bool:
        """Whether a node is this plan's to watch: not an earlier pass's."""
        return self.names.sequence[index] >= self.start

    def _in_forward_order(self, item: tuple[Place, Any]) -> tuple[int, int]:
        return self._read_at(item[0])

    def _read_at(self, place: Place) -> tuple[int, int]:
        return (self.names.sequence[place[0]], place[1])

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
            ledger.emitter_once(norm, NormEmitter(norm, excess, numel, name), [norm])
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
        fork = ledger.emitter_once(total, ForkEmitter(name, total, {}, []), [total])
        outside = fork.edge(ledger, OUTSIDE)
        shape = shape_of(self.graph.nodes[place[0]], place[1])
        numel = int(np.prod(shape, dtype=np.int64))
        self._declare(
            place[0],
            Site(
                name,
                "fork",
                type=operation(self.graph.nodes[place[0]]),
                order=min(self.names.sequence[place[0]], self.names.sequence[readers[0][0]]),
                shape=shape,
                numel=numel,
            ),
        )
        tap = self.tensor_taps.get(place) or self._tensor_tap("fork", name, place)
        leaf = hasattr(self.graph.nodes[place[0]], "variable")
        tap.fork = ForkTap(ledger, total, outside, escapes, fork.shared if leaf else None)
        if leaf:
            self.leaf_forks.append(tap.fork)
        names = self.names.edges(readers, consumers)
        self.measured[place] = Fork(tap.fork, fork, tuple(names))
        for edge, (node, position) in zip(names, readers, strict=True):
            slots = fork.edge(ledger, edge)
            self._node_tap(node).edges.append((position, tap.fork, slots))


def _module_run(node: Any) -> nn.Module | None:
    """The module that a reentrant checkpoint runs, if it is one (or its method)."""
    function = getattr(node, "run_function", None)
    while isinstance(function, partial):
        function = function.func
    function = getattr(function, "__self__", function)  # of a bound method, its module
    return function if isinstance(function, nn.Module) else None


def _softmax_shape(node: Any, fused: bool) -> tuple[int, ...]:
    """Shape of p, rows last; () if a fused one does not show it."""
    shape = shape_of(node, 0)
    if fused:
        made_key, output = node.next_functions[1]
        if made_key is not None:  # read from the graph: the key itself may have been let go
            key = shape_of(made_key, output)
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
