"""`bottlenecks`: how few numbers per sample link the parts of a model."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from torch import nn

from gradscope.cuts.cut import Cut
from gradscope.cuts.flow import minimum_vertex_cut, reachable
from gradscope.cuts.forward import Forward, observe, returned_by
from gradscope.cuts.labels import Labels
from gradscope.cuts.sites import TOGETHER, SoftmaxSite, consecutive, softmax_sites
from gradscope.cuts.tensors import TensorGraph, tensor_graph
from gradscope.errors import GradscopeError
from gradscope.graph.calls import Call
from gradscope.graph.naming import INPUT, OUTPUT, Names
from gradscope.graph.walk import Graph

NARROW = 0.25  # of the smaller end: below it, a cut is asked whether its ends are separate


def bottlenecks(
    model: nn.Module,
    closure: Callable[[], Any],
    source: str | None = None,
    sink: str | None = None,
    *,
    batch_size: int | None = None,
) -> list[Cut]:
    """The narrowest places that information has to pass in a model, in numbers per sample.

    With neither source nor sink: between input and output, and between every two consecutive
    attention softmaxes, from the latent of one (what its logits are computed from) to that of
    the next; its heat map is a part of the first, not a place between the two, and keys that
    both read pass without it. Else the one cut between source and sink.

    The closure is run once. Buffers, gradients and random states are left as they were.

    What autograd doesn't see is not followed: `detach()`, code under `torch.no_grad()` after
    the first differentiable operation, the inside of reentrant checkpointing, a softmax made
    by hand from exp and sum (its parts are seen, but it is no softmax site). Arguments named
    "…mask" are no inputs.

    Args:
        model: the model.
        closure: runs the forward pass of one batch and returns the loss, as for
            `optimizer.step(closure)`; calling `backward` inside is allowed. A batch of two
            samples or more is best: with one, constants among the inputs can't be told from
            data.
        source: a module's path, "(input)", or the name of a softmax site with ":softmax"
            added. "path#1" is the second call of a module, "path[0]" and "path.field" are one
            of several tensors that it returned. By default "(input)".
        sink: likewise, by default "(output)".
        batch_size: samples in the closure's batch. By default the first dimension of the first
            input; the second if that is the batch of a module with `batch_first=False`.

    Returns:
        Cuts, input to output first, then between softmaxes in forward order.

    Raises:
        GradscopeError: for a name that is unknown or carries nothing of the input, or a
            closure that doesn't run the model.
    """
    if not isinstance(model, nn.Module):
        raise GradscopeError(
            f"bottlenecks() takes a torch.nn.Module, not {type(model).__name__}: {model!r:.80}"
        )
    if not callable(closure):
        raise GradscopeError(f"closure must be a function without arguments, not {closure!r:.80}")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise GradscopeError(f"batch_size must be a positive integer, not {batch_size!r}")
    forward = observe(model, closure, batch_size)
    tensors = forward.tensors
    labels = Labels.of_modules(tensors, forward.names, forward.inputs)
    if source is None and sink is None:
        inside = softmax_cuts(tensors, labels, forward.batch_size, forward.outputs)
    else:
        inside = []
    places = _Places(forward, labels)
    start, end = places.find(source or INPUT), places.find(sink or OUTPUT)
    kept = places.inside(start[0]) - set(end[1])
    cut = cut_between(tensors, labels, start, end, "module", forward.batch_size, kept)
    return [cut, *inside]


def softmax_cuts(
    tensors: TensorGraph, labels: Labels, batch_size: int, outputs: Collection[int]
) -> list[Cut]:
    """The cut between the latents of every two consecutive softmax sites, in forward order.

    Inputs need no gradient for it: all that leads from one latent to the next is in the graph.
    """
    sites = softmax_sites(tensors)
    names = labels.sites(sites)
    found = []
    for i, j in consecutive(tensors, sites):
        source, sink = ((names[k], sites[k].latents) for k in (i, j))
        # The heat map is a part of the layer, not a place between it and the next.
        kept = _inside(tensors, sites[i]) - set(sites[j].latents)
        # Keys that both read need not pass: a memory is there, whatever the first found in it.
        new = [t for t in sink[1] if t not in source[1]] or sink[1]
        cut = cut_between(tensors, labels, source, (sink[0], new), "softmax", batch_size, kept)
        cut = replace(cut, sink_width=_per_sample(tensors, sink[1], batch_size))
        if 0 < cut.width < NARROW * min(cut.source_width, cut.sink_width):
            separate = _separate(tensors, source[1], sink[1], outputs)
            cut = replace(cut, separate=separate)
        values = [_per_sample(tensors, sites[k].values, batch_size) for k in (i, j)]
        found.append(replace(cut, attended=min(filter(None, values), default=None)))
    return found


def training_cuts(graph: Graph, names: Names, batch_size: int) -> list[Cut]:
    """The cuts between softmaxes, from a forward pass as training makes it."""
    tensors = tensor_graph(graph)
    labels = Labels.of_modules(tensors, names)
    return softmax_cuts(tensors, labels, batch_size, returned_by(tensors, names))


def training_batch_size(calls: list[Call]) -> int:
    """First dimension of what the model returned; the second by a module that says so."""
    for call in calls:
        for output in call.outputs[:1]:
            if getattr(call.module, "batch_first", None) is False and len(output.shape) == 3:
                return output.shape[1]
    shapes = [output.shape for output in calls[-1].outputs if output.shape]
    return shapes[0][0] if shapes and shapes[0][0] else 1


def _inside(tensors: TensorGraph, site: SoftmaxSite) -> set[int]:
    """What a softmax computes from its latents: logits and probabilities."""
    found, waiting = {site.probabilities}, [site.probabilities]
    while waiting:
        for parent in tensors.parents[waiting.pop()]:
            if parent not in found and parent not in site.latents:
                found.add(parent)
                waiting.append(parent)
    children = tensors.children()
    return found & reachable(site.latents, lambda t: children[t])


def _separate(
    tensors: TensorGraph, first: Collection[int], second: Collection[int], outputs: Collection[int]
) -> bool:
    """Whether a part of the output depends on the first and not, also, on the second."""
    children = tensors.children()
    behind = reachable(second, lambda t: children[t])
    own = reachable(first, lambda t: [c for c in children[t] if c not in behind])
    return not own.isdisjoint(_parts(tensors, outputs))


def _parts(tensors: TensorGraph, outputs: Collection[int]) -> set[int]:
    """The outputs, or what they were put together from: an answer for every step, say."""
    found: set[int] = set()
    for tensor in outputs:
        chain = [tensor]
        while tensors.operation(tensor) not in TOGETHER and len(tensors.parents[tensor]) == 1:
            (tensor,) = tensors.parents[tensor]
            chain.append(tensor)
        together = tensors.operation(tensor) in TOGETHER
        found.update(tensors.parents[tensor] if together else chain[:1])
    return found


def cut_between(
    tensors: TensorGraph,
    labels: Labels,
    source: tuple[str, Collection[int]],
    sink: tuple[str, Collection[int]],
    kind: str,
    batch_size: int,
    kept: Collection[int] = (),
) -> Cut:
    """The cut between two sets of tensors, each given with its name; `kept` are not cut."""
    sizes = tensors.numel
    if kept:
        sizes = [
            sum(tensors.numel) if t in kept else numel for t, numel in enumerate(tensors.numel)
        ]
    chosen = minimum_vertex_cut(tensors.parents, sizes, source[1], sink[1], labels.preference)
    order = sorted(chosen, key=tensors.forward_position)
    return Cut(
        source=source[0],
        sink=sink[0],
        kind=kind,
        width=_per_sample(tensors, chosen, batch_size),
        tensors=tuple(labels[t] for t in order),
        shapes=tuple(labels.shape(t) for t in order),
        source_width=_per_sample(tensors, source[1], batch_size),
        sink_width=_per_sample(tensors, sink[1], batch_size),
    )


def _per_sample(tensors: TensorGraph, which: Collection[int], batch_size: int) -> float:
    numel = sum(tensors.numel[t] for t in set(which))
    return numel // batch_size if numel % batch_size == 0 else numel / batch_size


class _Places:
    """What the names that users give stand for."""

    def __init__(self, forward: Forward, labels: Labels) -> None:
        self._found: dict[str, Collection[int]] = {
            **{name: [tensor] for name, tensor in forward.inputs.items()},
            **forward.returned,
            INPUT: list(forward.inputs.values()),
            OUTPUT: forward.outputs,
        }
        self._inside: dict[str, set[int]] = {}
        sites: list[SoftmaxSite] = softmax_sites(forward.tensors)
        for name, site in zip(labels.sites(sites), sites, strict=True):
            explicit = name if ":softmax" in name else f"{name}:softmax"
            self._found[explicit] = site.latents
            self._inside[explicit] = _inside(forward.tensors, site)

    def inside(self, name: str) -> set[int]:
        """Of a softmax site, what is no place between it and others."""
        return self._inside.get(name, set())

    def find(self, name: str) -> tuple[str, Collection[int]]:
        if name not in self._found:
            close = difflib.get_close_matches(name, self._found, n=3, cutoff=0.4)
            raise GradscopeError(
                f"the closure did not call a module {name!r}; did you mean "
                f"{' or '.join(map(repr, close or list(self._found)[:3]))}?"
            )
        if not self._found[name]:
            raise GradscopeError(
                f"what {name!r} returned does not depend on the model's input, as far as "
                "autograd sees: it is a constant, or was computed under torch.no_grad()"
            )
        return name, self._found[name]
