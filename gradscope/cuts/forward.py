"""One forward pass of a user's closure, observed: its graph of tensors, with names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from gradscope.cuts.tensors import TensorGraph, shape_at, tensor_graph
from gradscope.cuts.watch import Watch
from gradscope.errors import GradscopeError
from gradscope.graph.calls import Call, Output
from gradscope.graph.naming import INPUT, OUTPUT, Names, Place
from gradscope.graph.walk import Graph, walk
from gradscope.graph.wrappers import unwrapped


@dataclass
class Forward:
    """What one forward pass showed.

    Attributes:
        tensors: what carries information from the inputs.
        names: of the autograd graph's nodes.
        inputs: name → tensor, where the inputs come in.
        outputs: tensors that the model returned.
        returned: name of a module call ("path", "path#1" for the second) or of a field of what
            it returned → tensors.
        batch_size: samples.
    """

    tensors: TensorGraph
    names: Names
    inputs: dict[str, int]
    outputs: list[int]
    returned: dict[str, list[int]]
    batch_size: int


def observe(model: nn.Module, closure: Callable[[], Any], batch_size: int | None) -> Forward:
    """Run the closure once, leaving model, gradients and random states as they were.

    Raises:
        GradscopeError: when the closure doesn't run the model with gradients, or no input or
            batch size can be found.
    """
    root = unwrapped(model)
    watch = Watch(root)
    watch.run(closure)
    graph = _graph_of(watch.calls)
    if not graph.nodes:
        raise GradscopeError(
            "nothing that the closure ran in this model requires a gradient: closure() must run "
            "the model's forward pass, outside of torch.no_grad() and inference_mode()"
        )
    size = batch_size or watch.batch_size()
    sources = _sources(graph, watch.entrances.found, size)
    tensors = tensor_graph(graph, sources)
    names = Names(graph, watch.calls, watch.paths, {})
    outputs = returned_by(tensors, names)
    return Forward(
        tensors,
        names,
        _inputs(tensors, sources, outputs),
        outputs,
        _returned(tensors, watch.calls, watch.paths),
        size,
    )


def _graph_of(calls: list[Call]) -> Graph:
    return walk(output.node for call in calls for output in call.outputs if output.node is not None)


def _sources(graph: Graph, found: dict[tuple[Any, int], str], batch_size: int) -> dict[Place, str]:
    """Entrances in the graph. Constants, which have no batch, are none."""
    places = {
        (graph.index[node], output): name
        for (node, output), name in found.items()
        if node in graph.index
    }
    batched = {p: n for p, n in places.items() if _has_batch(shape_at(graph, p), batch_size)}
    if not places:
        raise GradscopeError(
            "no input of the model leads to its output: gradscope follows tensors among the "
            "arguments of the model's forward (in lists, tuples, dicts and dataclasses too)"
        )
    return batched or places


def _has_batch(shape: tuple[int, ...] | None, batch_size: int) -> bool:
    if shape is None:
        return True
    return batch_size in shape or (len(shape) > 0 and shape[0] % batch_size == 0)


def _inputs(tensors: TensorGraph, sources: dict[Place, str], outputs: list[int]) -> dict[str, int]:
    """Entrances that are inputs, with their names.

    What is computed from another one is none: the state that a recurrent loop passes on, a
    look-up by index in features. What doesn't lead to the output is none either.
    """
    first = {p: n for p, n in sources.items() if not tensors.parents[tensors.at[p]]}
    origins = tensors.origins([[tensors.at[p]] for p in first])
    leading = 0
    for output in outputs:
        leading |= origins[output]
    inputs = {p: n for i, (p, n) in enumerate(first.items()) if leading >> i & 1} or first
    if len(inputs) == 1:
        (place,) = inputs
        return {INPUT: tensors.at[place]}
    taken: Counter[str] = Counter()
    found = {}
    for place, name in inputs.items():
        number = taken[name]
        taken[name] += 1
        label = f"{INPUT}.{name}" if name else INPUT
        found[f"{label}#{number}" if number or not name else label] = tensors.at[place]
    return found


def returned_by(tensors: TensorGraph, names: Names) -> list[int]:
    """What the outermost calls returned, unless a later one went on from there."""
    groups = []
    for returned in names.returned:
        # A model that returns its loss too returns it as a number.
        whole = [named for named in returned if named.shape] or returned
        groups.append([tensors.at[n.place] for n in whole if n.place in tensors.at])
    origins = tensors.origins(groups)
    found: dict[int, None] = {}
    later = 0  # bit i: a call after this one went on from call i
    for i, group in reversed(list(enumerate(groups))):
        if not later >> i & 1:
            found.update(dict.fromkeys(group))
        for tensor in group:
            later |= origins[tensor]
    return list(found)


def _returned(
    tensors: TensorGraph, calls: list[Call], paths: dict[nn.Module, str]
) -> dict[str, list[int]]:
    seen: Counter[str] = Counter()
    found: dict[str, list[int]] = {}
    for call in sorted(calls, key=lambda c: (c.start, c.depth)):
        path = paths[call.module] or OUTPUT
        name = f"{path}#{seen[path]}" if seen[path] else path
        seen[path] += 1
        fields = [
            (output.field, at)
            for output in call.outputs
            if (at := _tensor(tensors, output)) is not None
        ]
        found[name] = list(dict.fromkeys(at for _, at in fields))
        for field, at in fields:
            if field:
                found[name + field] = [at]
    return found


def _tensor(tensors: TensorGraph, output: Output) -> int | None:
    node = tensors.graph.index.get(output.node)
    return None if node is None else tensors.at.get((node, output.number))
