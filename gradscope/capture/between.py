"""What no single forward pass shows: how the outermost calls of a step hang together.

Training code may call the parts of a model one by one (`h = model.trunk(x)`, then two heads), and
a loss may read what was returned more than once. When its backward pass begins, the whole graph
is there: the forks between calls are measured then, the operations that the training code itself
puts between two calls, and sites learn how deep they lie below the loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from gradscope.capture.activations import Activations
from gradscope.capture.builder import MAX_EDGES, Builder, Unseen
from gradscope.capture.ledger import Ledger
from gradscope.capture.passes import Pass, Passes, roots_of
from gradscope.capture.remembered import Remembered
from gradscope.capture.softmaxes import SoftmaxRows
from gradscope.capture.taps import Borrowed, Taps
from gradscope.capture.trouble import Trouble
from gradscope.graph.naming import VIEWS, Names, Place
from gradscope.graph.walk import Graph, Node, operation, walk

Parts = list[int | None]  # node by node: which of the passes made it


class BetweenPlan(NamedTuple):
    """What to do with a graph of some structure: see `Plan`.

    Attributes:
        borrowed: forks of a single pass that others read too.
    """

    taps: Taps
    borrowed: list[Borrowed]


class Between:
    """Looks at the graph of a loss before its backward pass.

    Args:
        passes: of the step, filled as they end.
        parameters: names by id.
        nonfinite: called with the place and the operation that first made a gradient NaN or
            infinite.
        cut: called with a graph in which a pass goes on from another, when it is first seen.
    """

    def __init__(
        self,
        passes: Passes,
        parameters: dict[int, str],
        ledger: Ledger,
        softmax_rows: SoftmaxRows,
        activations: Activations,
        nonfinite: Callable[[str, str], None],
        cut: Callable[[Graph, Names], None],
        unseen: Unseen,
        trouble: Trouble,
    ) -> None:
        self._passes, self._parameters, self._ledger = passes, parameters, ledger
        self._softmax_rows, self._activations = softmax_rows, activations
        self._nonfinite = nonfinite
        self._cut, self._unseen, self._trouble = cut, unseen, trouble
        self._plans: Remembered[BetweenPlan] = Remembered()
        self._deep: set[tuple[str, str]] = set()  # sites whose depth is that below a loss

    def backward_begins(self, losses: Any) -> list[Any]:
        """Hook the graph of a loss; handles to unhook it."""
        roots = roots_of(losses)
        if not self._passes or not self._hangs_together(roots):
            return []
        graph = walk(roots)
        parts = [self._passes.of(node) for node in graph.nodes]
        used = sorted({part for part in parts if part is not None})
        if not used:
            return []
        position = {part: i for i, part in enumerate(used)}
        parts = [None if part is None else position[part] for part in parts]
        passes = [self._passes[part] for part in used]
        key = (graph.types(), graph.edges, graph.counts, parts, [p.plan for p in passes])
        plan = self._plans.find(key)
        if plan is None:
            plan = self._plan(graph, parts, passes)
            self._plans.add(key, plan)
        lent = {fork: passes[fork.part].arrived.setdefault(fork.fork, []) for fork in plan.borrowed}
        return plan.taps.hang(graph.nodes, lent)

    def _hangs_together(self, roots: list[Node]) -> bool:
        """Whether there is more in the graph than one pass shows; nearly always there isn't."""
        entered = {part for root in roots if (part := self._passes.of(root)) is not None}
        reads: Counter[tuple[Node, int]] = Counter()
        for node in self._passes.beyond(roots):
            for after, output in node.next_functions:
                if after is None:
                    continue
                part = self._passes.of(after)
                if part is not None:
                    entered.add(part)
                    if self._passes[part].measures(after, output):
                        return True
                if part is not None or operation(after) in VIEWS:
                    reads[after, output] += 1
        return (
            len(entered) > 1
            or any(count > 1 for count in reads.values())
            or any(self._passes[part].plan.reads for part in entered)
        )

    def _plan(self, graph: Graph, parts: Parts, passes: list[Pass]) -> BetweenPlan:
        footprints = [(p.start, p.plan.footprint) for p in passes]
        names = Names.over(graph, footprints, self._parameters)
        builder = _Builder(graph, names, parts, passes, self._ledger, self._unseen, self._trouble)
        builder.forks()
        builder.softmaxes(self._softmax_rows)
        builder.activations(self._activations)
        builder.risky(self._nonfinite)
        if len(passes) > 1:
            self._deepen(builder, passes)
        if any(one.plan.reads for one in passes):
            self._cut(graph, names)
        return BetweenPlan(builder.result(), builder.borrowed)

    def _deepen(self, builder: _Builder, passes: list[Pass]) -> None:
        """What several passes made lies behind one another: count from the loss."""
        index = {number: i for i, number in enumerate(builder.names.sequence)}
        for one in passes:
            for kind, name, number in one.plan.sites:
                at = index.get(one.start + number)
                if at is not None and (kind, name) not in self._deep:
                    self._deep.add((kind, name))
                    site = self._ledger.sites[kind, name]
                    if site.depth != builder.depths[at]:
                        self._ledger.site_again(replace(site, depth=builder.depths[at]))


class _Builder(Builder):
    """Of what lies between passes, in the graph of a loss."""

    def __init__(
        self,
        graph: Graph,
        names: Names,
        parts: Parts,
        passes: list[Pass],
        ledger: Ledger,
        unseen: Unseen,
        trouble: Trouble,
    ) -> None:
        super().__init__(graph, names, 0, set(), ledger, unseen, trouble)
        self._parts, self._passes = parts, passes
        self._between = self._lie_between()
        if len(passes) == 1:  # count from its output, as its own sites do
            top = min(d for d, part in zip(self.depths, parts, strict=True) if part is not None)
            self.depths = [max(0, depth - top) for depth in self.depths]
        self.borrowed: list[Borrowed] = []

    def _own(self, index: int) -> bool:
        return self._between[index]

    _watched = _own

    def forks(self) -> None:
        super().forks()
        consumers = self.graph.consumers()
        for (index, output), readers in consumers.items():
            part = self._parts[index]
            beyond = sorted((r for r in readers if self._parts[r[0]] != part), key=self._read_at)
            if part is None or not beyond:
                continue
            fork = self._passes[part].measures(self.graph.nodes[index], output)
            if fork is None:
                continue
            if len(fork.edges) + len(beyond) > MAX_EDGES:
                continue  # together they are the edge "(outside)"
            borrowed = Borrowed(part, fork.tap)
            self.borrowed.append(borrowed)
            names = self.names.edges(beyond, consumers, fork.edges)
            for edge, (node, position) in zip(names, beyond, strict=True):
                slots = fork.emitter.edge(self.ledger, edge)
                self._node_tap(node).edges.append((position, borrowed, slots))

    def _mine(self, place: Place, readers: list[Place]) -> bool:
        """A tensor that one pass made and others read, or that was made between passes."""
        index, output = place
        part = self._parts[index]
        if part is None:
            return self._between[index] or self._shows(index)
        if all(self._parts[reader] == part for reader, _ in readers):
            return False
        return self._passes[part].measures(self.graph.nodes[index], output) is None

    def _pass_of(self, index: int) -> int | None:
        return self._parts[index]

    def _tensor_name(self, place: Place) -> str | None:
        return self.names.tensor(place) or self._op_name(place[0])

    def _shows(self, index: int) -> bool:
        """Whether a node outside only shows what a pass made, another way."""
        while self._parts[index] is None and operation(self.graph.nodes[index]) in VIEWS:
            edges = self._edges(index)
            if len(edges) != 1:
                return False
            index, _ = edges[0]
        return self._parts[index] is not None

    def _edges(self, index: int) -> list[Place]:
        following = self.graph.nodes[index].next_functions
        return [(self.graph.index[n], output) for n, output in following if n is not None]

    def _lie_between(self) -> list[bool]:
        """Nodes that no pass made, with a pass on the way to the loss and one on the way back."""
        nodes = range(len(self._parts))
        order = sorted(nodes, key=self.depths.__getitem__)
        below = [part is not None for part in self._parts]  # a pass lies towards the loss
        for index in order:
            if below[index]:
                for after, _ in self._edges(index):
                    below[after] = True
        above = [part is not None for part in self._parts]
        for index in reversed(order):
            above[index] |= any(above[after] for after, _ in self._edges(index))
        return [self._parts[i] is None and below[i] and above[i] for i in nodes]
