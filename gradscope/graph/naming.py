"""Names for places in a graph, from the module calls that bracket its nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import nn

from gradscope.graph.attention_nodes import FUSED_ATTENTION
from gradscope.graph.calls import Call
from gradscope.graph.walk import Graph, operation
from gradscope.graph.wrappers import class_name

OUTPUT = "(output)"  # the root module's own output
INPUT = "(input)"
OUTSIDE = "(outside)"

# Operations that only show the same numbers another way: an edge is named for what
# eventually reads them.
VIEWS = frozenset(
    "view unsafeview reshapealias t transpose permute expand unsqueeze squeeze select slice "
    "split splitwithsizes unbind chunk clone tocopy alias movedim contiguous "
    "registerpost".split()  # by which fully_shard sees that a module's backward pass is over
)

SDPA_INPUTS = ("query", "key", "value", "mask")

Place = tuple[int, int]  # (node's index in the graph, which of its outputs)


@dataclass(frozen=True)
class Named:
    """A tensor that a module returned."""

    name: str
    type: str
    place: Place
    shape: tuple[int, ...]
    numel: int
    order: int
    outer: int  # number of calls that this call lies in
    parameters: bool


@dataclass(frozen=True)
class Footprint:
    """Who made what in one forward pass, without holding any of it.

    Attributes:
        owners: a node's sequence number, counted from the start of the pass → name of the
            innermost call around it.
        outputs: what modules returned; the first number of `place` is such a sequence number.
    """

    owners: dict[int, str]
    outputs: list[Named]


class Names:
    """Names of module outputs, forks, edges and softmaxes in one graph.

    Attributes:
        sequence: sequence numbers of the nodes.
        outputs: what modules returned.
        returned: the part of it that outermost calls returned, call by call.
        owners: sequence number → name of the innermost call around it.
        at: names of tensors that modules returned, by place.
    """

    sequence: list[int]
    outputs: list[Named]
    returned: list[list[Named]]
    owners: dict[int, str]
    at: dict[Place, str]

    def __init__(
        self,
        graph: Graph,
        calls: list[Call],
        paths: dict[nn.Module, str],
        parameters: dict[int, str],
    ) -> None:
        named_calls = call_names(calls, paths)
        self.sequence = [node._sequence_nr() for node in graph.nodes]
        by_call = [list(_outputs(graph, *named, self.sequence)) for named in named_calls]
        self.returned = [outputs for outputs in by_call if outputs and not outputs[0].outer]
        self._tell(graph, _owners(named_calls), [n for named in by_call for n in named], parameters)

    @classmethod
    def over(
        cls,
        graph: Graph,
        passes: Iterable[tuple[int, Footprint]],
        parameters: dict[int, str],
    ) -> Names:
        """Names in a graph that several forward passes made, each with where it started."""
        names = cls.__new__(cls)
        names.sequence = [node._sequence_nr() for node in graph.nodes]
        index = {number: i for i, number in enumerate(names.sequence)}
        owners: dict[int, str] = {}
        outputs: list[Named] = []
        names.returned = []
        for start, footprint in passes:
            owners.update({start + n: owner for n, owner in footprint.owners.items()})
            here = []
            for named in footprint.outputs:
                number, output = named.place
                if (at := index.get(start + number)) is not None:
                    here.append(replace(named, place=(at, output)))
            outputs += here
            names.returned.append([named for named in here if not named.outer])
        names._tell(graph, owners, outputs, parameters)
        return names

    def _tell(
        self,
        graph: Graph,
        owners: dict[int, str],
        outputs: list[Named],
        parameters: dict[int, str],
    ) -> None:
        self.graph, self.owners, self.outputs, self.parameters = graph, owners, outputs, parameters
        self.at = {}
        for place, group in self.outputs_by_place().items():
            self.at[place] = canonical(group).name

    def footprint(self, start: int, end: int) -> Footprint:
        """Of the forward pass that made the nodes numbered [start, end)."""
        made = {number - start: owner for number, owner in self.owners.items()}
        outputs = [
            replace(named, place=(self.sequence[named.place[0]] - start, named.place[1]))
            for named in self.outputs
            if start <= self.sequence[named.place[0]] < end
        ]
        return Footprint(made, outputs)

    def outputs_by_place(self) -> dict[Place, list[Named]]:
        """Module outputs that are the very same tensor, together."""
        groups: dict[Place, list[Named]] = {}
        for named in self.outputs:
            groups.setdefault(named.place, []).append(named)
        return groups

    def owner(self, node: int) -> str | None:
        """Name of the innermost module call that made the node; None outside of all."""
        return self.owners.get(self.sequence[node])

    def tensor(self, place: Place) -> str | None:
        """Name of the tensor at `place`; None if it was made outside the model."""
        if place in self.at:
            return self.at[place]
        node = self.graph.nodes[place[0]]
        if hasattr(node, "variable"):  # a leaf
            return self.parameters.get(id(node.variable), INPUT)
        return self.op(place[0])

    def op(self, node: int) -> str | None:
        """ "<module>:<operation>" of a node; None if it was made outside the model."""
        owner = self.owner(node)
        return None if owner is None else op_name(owner, operation(self.graph.nodes[node]))

    def edges(
        self,
        consumers: list[Place],
        all_consumers: dict[Place, list[Place]],
        taken: Iterable[str] = (),
    ) -> list[str]:
        """Names of a fork's edges: what reads the tensor, seen through views.

        Args:
            taken: names of its edges that have theirs already.
        """
        names = [*taken, *(self._reader(reader, all_consumers) for reader in consumers)]
        return _numbered(names)[len(names) - len(consumers) :]

    def _reader(self, reader: Place, consumers: dict[Place, list[Place]]) -> str:
        at, position = node, _ = reader
        for _ in range(8):  # a chain of views longer than that says nothing anyway
            if operation(self.graph.nodes[at]) not in VIEWS:
                break
            following = consumers.get((at, 0), [])
            if len(following) != 1:
                break
            at, position = following[0]
        name = self.op(at)
        if name is None:
            return self.op(node) or op_name(OUTSIDE, operation(self.graph.nodes[at]))
        fused = self.graph.nodes[at].name() in FUSED_ATTENTION
        return f"{name}.{SDPA_INPUTS[position]}" if fused else name


def _outputs(graph: Graph, call: Call, name: str, sequence: list[int]) -> Iterator[Named]:
    for output in call.outputs:
        node = graph.index.get(output.node)
        if node is None:
            continue
        yield Named(
            name=(name or OUTPUT) + output.field,
            type=class_name(call.module),
            place=(node, output.number),
            shape=tuple(output.shape),
            numel=output.shape.numel(),
            order=sequence[node],
            outer=call.depth,
            parameters=any(True for _ in call.module.parameters(recurse=False)),
        )


def canonical(group: list[Named]) -> Named:
    """Of several names of one tensor, the outermost module's that is not the root, the first's."""
    return min(group, key=lambda n: (n.name.startswith(OUTPUT), n.outer))


def call_names(calls: list[Call], paths: dict[nn.Module, str]) -> list[tuple[Call, str]]:
    """Calls with their names, outer before inner; a second call of a module is "path#1"."""
    seen: Counter[str] = Counter()
    named = []
    for call in sorted(calls, key=lambda c: (c.start, c.depth)):
        path = paths[call.module]
        number = seen[path]
        seen[path] += 1
        named.append((call, f"{path}#{number}" if number else path))
    return named


def _owners(named: list[tuple[Call, str]]) -> dict[int, str]:
    """Sequence number → name of the innermost call around it."""
    owners: dict[int, str] = {}
    for call, name in named:  # outer before inner: inner ones overwrite
        for number in range(call.start, call.end):
            owners[number] = name
    return owners


def op_name(owner: str, op: str) -> str:
    """Name of an operation in a module call ("" for the root's)."""
    return f"{owner}:{op}" if owner else f"{OUTPUT}:{op}"


def _numbered(names: list[str]) -> list[str]:
    """Make names that occur several times distinct: a, a#1, a#2."""
    seen: Counter[str] = Counter()
    out = []
    for name in names:
        out.append(f"{name}#{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return out
