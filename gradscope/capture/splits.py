"""A loss's graph with names: what to split by pathways, and at which places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.capture.listening import BACKWARD
from gradscope.capture.shards import spread
from gradscope.cuts.untouched import untouched
from gradscope.errors import GradscopeError, PathwayError
from gradscope.graph.calls import Call, CallRecorder
from gradscope.graph.naming import Names, Place, canonical
from gradscope.graph.walk import walk
from gradscope.graph.wrappers import module_paths, named_parameters, unwrapped
from gradscope.paths import Crossing, find_softmaxes


@dataclass(frozen=True)
class Target:
    """A tensor whose gradient is split.

    Attributes:
        name: module path of the output, or parameter name.
        kind: "module" or "parameter".
        order: position in the forward pass; parameters come after all modules.
    """

    name: str
    kind: str
    tensor: Tensor
    order: int


class LossGraph:
    """The graph of one loss, by name.

    Args:
        loss: one element.
        calls: the module calls that the graph came from.
        paths: module paths.
        parameters: trainable parameters by name.

    Raises:
        PathwayError: if the loss has no graph.
    """

    def __init__(
        self,
        loss: Tensor,
        calls: Sequence[Call],
        paths: dict[nn.Module, str],
        parameters: dict[str, nn.Parameter],
    ) -> None:
        if not isinstance(loss, Tensor) or loss.grad_fn is None:
            raise PathwayError(
                "the loss has no graph: return it from the closure as the tensor that was "
                "computed, outside of torch.no_grad()"
            )
        self.loss = loss
        graph = walk([loss.grad_fn])
        self._names = Names(graph, list(calls), paths, {id(p): n for n, p in parameters.items()})
        self._tensors = _tensors(calls, graph.index)
        self._aliases: dict[str, str] = {}
        outputs = []
        for place, group in self._names.outputs_by_place().items():
            chosen = canonical(group)
            self._aliases.update({named.name: chosen.name for named in group})
            outputs.append(Target(chosen.name, "module", self._tensors[place], chosen.order))
        self.outputs = sorted(outputs, key=lambda t: t.order)
        reached = {id(n.variable) for n in graph.nodes if hasattr(n, "variable")}
        self.parameters = [
            Target(name, "parameter", p, (1 << 40) + i)
            for i, (name, p) in enumerate(parameters.items())
            if id(p) in reached
        ]
        self.softmaxes, self.softmax_names = self._find_softmaxes()

    def outputs_like(self, pattern: str, what: str) -> list[Target]:
        """Module outputs whose name matches a pattern such as "layers.*.latent".

        Raises:
            PathwayError: if there is none.
        """
        wanted = {self._aliases[n] for n in self._aliases if fnmatchcase(n, pattern)}
        found = [t for t in self.outputs if t.name in wanted]
        if not found:
            raise PathwayError(
                f"{what}={pattern!r} names no module output in the graph of the loss; there are "
                + _some(list(self._aliases))
            )
        return found

    def gates_like(self, pattern: str) -> list[Tensor | Crossing]:
        """Module outputs, or softmaxes ("<name>:softmax"), whose name matches a pattern."""
        softmaxes = [
            s
            for s, name in zip(self.softmaxes, self.softmax_names, strict=True)
            if fnmatchcase(name, pattern)
        ]
        if softmaxes:
            return list(softmaxes)
        return [t.tensor for t in self.outputs_like(pattern, "through")]

    def _find_softmaxes(self) -> tuple[list[Crossing], list[str]]:
        """Softmaxes made inside a module; one that only the loss reads is an output's."""
        found, names = [], []
        index = self._names.graph.index
        consumers = self._names.graph.consumers()
        for softmax in find_softmaxes(self.loss):
            at = index[softmax.node]
            owner = self._names.owner(at)
            inside = any(self._names.owner(c) is not None for c, _ in consumers.get((at, 0), []))
            if owner is None or not inside:
                continue
            base = f"{owner}:softmax" if owner else "softmax"
            found.append(softmax)
            names.append(base)
        return found, names


def _tensors(calls: Sequence[Call], index: dict[Any, int]) -> dict[Place, Tensor]:
    return {
        (index[output.node], output.number): output.tensor
        for call in calls
        for output in call.outputs
        if output.node in index and output.tensor is not None
    }


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:6]))
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def loss_graph(model: nn.Module, closure: Callable[[], Any]) -> LossGraph:
    """Run a closure's forward pass, and hold on to its graph.

    `loss.backward()` inside the closure is skipped; gradients, buffers and random states are
    left as they were.

    Raises:
        GradscopeError: if the closure doesn't return a loss that depends on the model.
    """
    if not isinstance(model, nn.Module):
        raise GradscopeError(f"not a torch.nn.Module but {type(model).__name__}: {model!r:.80}")
    if not callable(closure):
        raise GradscopeError(f"closure must be a function without arguments, not {closure!r:.80}")
    model = unwrapped(model)
    parameters = {n: p for n, p in named_parameters(model).items() if p.requires_grad}
    if any(map(spread, parameters.values())):
        raise GradscopeError(
            "pathways can't be measured in a model of fully_shard, whose weights are not all on "
            "this process; measure them before fully_shard"
        )
    paths = module_paths(model)
    calls: list[Call] = []
    recorder = CallRecorder(paths, calls.extend, _raise)
    with ExitStack() as stack:
        stack.enter_context(untouched(model))
        stack.enter_context(torch.enable_grad())
        stack.callback(recorder.disarm)
        recorder.arm()
        skip = _Skip()
        stack.callback(BACKWARD.ignore, skip)
        BACKWARD.listen(skip)
        try:
            loss = closure()
        except _Skipped as skipped:
            loss = skipped.loss
    if not isinstance(loss, Tensor):
        raise GradscopeError(
            f"closure() must return the loss, one tensor; it returned {type(loss).__name__}"
        )
    graph = LossGraph(loss, calls, paths, parameters)
    if not graph.outputs and not graph.parameters:
        raise GradscopeError("the loss that closure() returned does not depend on the model")
    return graph


class _Skipped(BaseException):
    """Leaves a closure at its backward pass, whose graph is still needed."""

    def __init__(self, loss: Tensor) -> None:
        self.loss = loss


class _Skip:
    def backward_begins(self, tensors: Any, grad_tensors: Any) -> None:
        raise _Skipped(tensors if isinstance(tensors, Tensor) else tensors[0])


def _raise(error: BaseException) -> None:
    raise error
