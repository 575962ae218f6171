"""A plan: which nodes of a graph to hang which taps on.

Made when a graph of this structure is first seen, and used for every later step whose
graph and module calls are the same, so that naming and classifying cost nothing then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from gradscope.capture.activations import Activations
from gradscope.capture.builder import Builder, Fork, Unseen
from gradscope.capture.ledger import Ledger
from gradscope.capture.softmaxes import SoftmaxRows
from gradscope.capture.taps import Taps
from gradscope.capture.trouble import Trouble
from gradscope.graph.calls import Call
from gradscope.graph.naming import Footprint, Names, Place
from gradscope.graph.walk import Graph, operation


@dataclass(eq=False)
class Plan:
    """What to do with a graph of this structure.

    Sequence numbers of nodes are counted from the start of the forward pass.

    Attributes:
        taps: what is measured in it.
        made: sequence number of a node → its operation's name and place.
        footprint: who made what in the forward pass.
        forks: those that the plan measures, by (sequence number, output).
        sites: (kind, name, sequence number) of those that lie at a node.
        reads: whether the graph goes on into an earlier forward pass.
    """

    taps: Taps
    made: dict[int, tuple[str, str]]
    footprint: Footprint
    forks: dict[Place, Fork]
    sites: list[tuple[str, str, int]]
    reads: bool


def make_plan(
    graph: Graph,
    calls: list[Call],
    *,
    start: int,
    end: int,
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
        start, end: sequence numbers at which this forward pass began and ended; older nodes
            belong to another one.
        returned: tensors handed out of the model, which a loss may use directly.
        paths: module paths; `parameters`: names by id.
        softmax_rows: which rows of large softmaxes are measured.
        nonfinite: called with the place and the operation that first made a gradient NaN or
            infinite.
    """
    names = Names(graph, calls, paths, parameters)
    builder = Builder(graph, names, start, returned, ledger, unseen, trouble)
    builder.outputs()
    builder.time_steps(paths)
    builder.forks()
    builder.softmaxes(softmax_rows)
    builder.activations(activations)
    builder.risky(nonfinite)
    builder.opaque(paths)
    numbers = [number - start for number in names.sequence]
    made = {
        number: (operation(node), names.op(index) or "")
        for index, (node, number) in enumerate(zip(graph.nodes, numbers, strict=True))
    }
    return Plan(
        builder.result(),
        made,
        names.footprint(start, end),
        {(numbers[index], output): fork for (index, output), fork in builder.measured.items()},
        [(kind, name, numbers[index]) for kind, name, index in builder.sites],
        min(numbers) < 0,
    )


def structure(graph: Graph, calls: list[Call]) -> tuple[list[Any], ...]:
    """What must be the same for a plan to serve again: the graph, and who returned what."""
    outputs: list[Any] = []
    for call in calls:
        outputs.append(id(call.module))
        for field, node, number, _shape, _tensor in call.outputs:
            outputs.append((field, graph.index.get(node), number))
    return graph.types(), graph.edges, graph.counts, outputs
