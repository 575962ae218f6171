"""Softmax sites on the graph of tensors: their latents, and which follows which."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from gradscope.cuts.tensors import PROBABILITIES, TensorGraph
from gradscope.graph.attention_nodes import FUSED_ATTENTION, SOFTMAX
from gradscope.graph.naming import VIEWS

# What makes logits out of latents (names as `operation` gives them: bmm, addmm, convolution).
_PRODUCT = re.compile(r"(mm|mv|dot|(?<!cum)sum|mean|(mkldnn)?linear)$|convolution")
# Between the logits' product and the softmax: masks, biases, scaling, capping. An operation on
# a single tensor that keeps its size is one of these, too, whatever it is called.
_ON_LOGITS = VIEWS | {"add", "sub", "rsub", "addcmul", "mul", "div", "where", "copyslices", "cat"}
# Between the latent and that product.
_SCALING = frozenset({"mul", "div", "neg"})
# Operations that put tensors beside each other.
TOGETHER = frozenset({"stack", "cat"})


@dataclass(frozen=True)
class SoftmaxSite:
    """One attention softmax.

    Attributes:
        node: index of its node in the autograd graph.
        probabilities: the tensor p.
        latents: the tensors that the logits were computed from, in which the reasoning about
            positions is: s in w·s, query and key in q·k.
        values: the tensors that it attends over: v in p·v. Empty where none was found.
    """

    node: int
    probabilities: int
    latents: tuple[int, ...]
    values: tuple[int, ...] = ()


def softmax_sites(tensors: TensorGraph) -> list[SoftmaxSite]:
    """The attention softmaxes, in an order in which none depends on a later one.

    A softmax whose probabilities nothing in the graph reads, such as one over classes at the
    model's end, attends to nothing and is left out.
    """
    children = tensors.children()
    found = []
    for tensor, (node, output) in enumerate(tensors.places):
        name = tensors.graph.nodes[node].name()
        softmax = name in SOFTMAX or (name in FUSED_ATTENTION and output == PROBABILITIES)
        if softmax and children[tensor]:
            latents, values = _latents(tensors, tensor), _values(tensors, tensor, children)
            found.append(SoftmaxSite(node, tensor, latents, values))
    return found


def consecutive(tensors: TensorGraph, sites: list[SoftmaxSite]) -> list[tuple[int, int]]:
    """Pairs (i, j) of sites where j's latent depends on i's with no site in between.

    "In between" is a site that depends on i and that j depends on. Residual connections from i
    past the next site therefore make no pair, and branches that don't see each other neither.
    """
    origins = tensors.origins([site.latents for site in sites])
    before: list[int] = []  # bit i of before[j]: site j comes after site i
    for j, site in enumerate(sites):
        depends = 0
        for latent in site.latents:
            depends |= origins[latent]
        before.append(depends & ((1 << j) - 1))
    pairs = []
    for j, depends in enumerate(before):
        direct = depends
        for i in _bits(depends):
            direct &= ~before[i]
        pairs += [(i, j) for i in _bits(direct)]
    return pairs


def _latents(tensors: TensorGraph, probabilities: int) -> tuple[int, ...]:
    """Back from the softmax to the product that made its logits, and to what it multiplied."""
    if tensors.places[probabilities][1] == PROBABILITIES:
        return _unscaled(tensors, tensors.parents[probabilities])
    found: list[int] = []
    seen: set[int] = set()
    stack = list(reversed(tensors.parents[probabilities])) or [probabilities]
    while stack:
        tensor = stack.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        parents = tensors.parents[tensor]
        operation = tensors.operation(tensor)
        if not parents or operation.endswith("softmax"):
            found.append(tensor)
        elif _PRODUCT.search(operation):
            found.extend(parents)
        elif operation in _ON_LOGITS or _keeps_size(tensors, tensor):
            stack.extend(reversed(parents))
        else:
            found.extend(parents)
    return _unscaled(tensors, found)


def _values(tensors: TensorGraph, probabilities: int, children: list[list[int]]) -> tuple[int, ...]:
    """On from the softmax, past masks and dropout, to what its probabilities are multiplied with:
    a product sums over positions, so that its size is another, or it ends in one that does."""
    found: list[int] = []
    waiting, seen = [probabilities], {probabilities}
    while waiting:
        tensor = waiting.pop()
        for child in children[tensor]:
            operation = tensors.operation(child)
            others = [p for p in tensors.parents[child] if p != tensor]
            product = bool(_PRODUCT.search(operation))
            if product or tensors.numel[child] != tensors.numel[tensor]:
                if operation not in TOGETHER:
                    found += others
            elif child not in seen:
                seen.add(child)
                waiting.append(child)
    return tuple(dict.fromkeys(found))


def _unscaled(tensors: TensorGraph, latents: Iterable[int]) -> tuple[int, ...]:
    """The tensors before they were multiplied by a constant, by weights, or by a smaller tensor
    that was broadcast over them (a gate or a query for all positions), which is one of them."""
    found = []
    waiting = list(reversed(list(latents)))
    while waiting:
        tensor = waiting.pop()
        parents, numel = tensors.parents[tensor], tensors.numel[tensor]
        sizes = [tensors.numel[p] for p in parents]
        scaled = tensors.operation(tensor) in _SCALING
        if scaled and sizes.count(numel) == 1 and max(sizes) == numel:
            waiting += reversed(parents)
        else:
            found.append(tensor)
    return tuple(dict.fromkeys(found))


def _keeps_size(tensors: TensorGraph, tensor: int) -> bool:
    """Whether a tensor was computed from a single other one with as many numbers."""
    parents = tensors.parents[tensor]
    return len(parents) == 1 and tensors.numel[parents[0]] == tensors.numel[tensor]


def _bits(mask: int) -> list[int]:
    return [i for i in range(mask.bit_length()) if mask >> i & 1]
