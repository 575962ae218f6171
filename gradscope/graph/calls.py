"""Which module made which part of the graph: every module call of a forward pass, bracketed.

Torch's process-wide module hooks do it, installed while a step is being recorded and only
then: nothing is put on the user's modules, so that copying, pickling, `state_dict` and
compiling see the model as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from gradscope.graph.eager import EAGER
from gradscope.graph.walk import tensors_in

_sequence_number: Callable[[], int] = torch._C._autograd._get_sequence_nr
_in_backward: Callable[[], int] = torch._C._current_graph_task_id
# Inside torch.func.grad, vmap, …: tensors there are stand-ins, and their graph is not training's.
_in_transform: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack


class Output(NamedTuple):
    """A tensor that a call returned, as it was then.

    An operation in place, later on, gives a tensor another place in the graph.

    Attributes:
        field: which of the output's tensors: "", ".key" or "[i]".
        node, number: the tensor is the node's output of that number; None for a leaf and
            for what needs no gradient.
        shape: of the tensor.
        tensor: itself, if the recorder keeps tensors.
    """

    field: str
    node: Any
    number: int
    shape: torch.Size
    tensor: torch.Tensor | None


class Call(NamedTuple):
    """One call of a module, `depth` calls deep. Its nodes' sequence numbers: [start, end)."""

    module: nn.Module
    start: int
    end: int
    outputs: list[Output]
    depth: int


class Reading(Protocol):
    """Is shown what modules are called with; raises nothing."""

    def forward_begins(self) -> None: ...

    def read(self, module: nn.Module, args: tuple[Any, ...]) -> None: ...


class CallRecorder:
    """Gathers the calls of each outermost forward pass and hands them over at its end.

    An outermost call is one of any module of the model: training code that calls
    `model.encode(x)`, whose `forward` of the root never runs, is seen too. Recomputation by
    activation checkpointing, which happens inside the backward pass, is not a forward pass.

    Args:
        modules: path by module, the root's being "".
        finished: called with the calls (inner before outer) of a forward pass.
        failed: called with an exception of `finished`.
        keep: keep the tensors that modules return, until the calls are dropped. Otherwise
            only those with a gradient are noted, and their memory is free to go.
    """

    def __init__(
        self,
        modules: dict[nn.Module, str],
        finished: Callable[[list[Call]], None],
        failed: Callable[[BaseException], None],
        keep: bool = True,
    ) -> None:
        self.keep = keep
        self._modules = modules
        self._finished = finished
        self._failed = failed
        self._starts: list[int] = []
        self._calls: list[Call] = []
        self._handles: list[Any] = []
        self.reading: Reading | None = None

    @property
    def armed(self) -> bool:
        return bool(self._handles)

    def arm(self) -> None:
        if not self._handles:
            self._handles = [
                torch_module.register_module_forward_pre_hook(self._before),
                torch_module.register_module_forward_hook(self._after, always_call=True),
            ]
            EAGER.hold(self)
        self.reset()

    def disarm(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        EAGER.release(self)
        self.reset()

    def reset(self) -> None:
        self._starts.clear()
        self._calls = []

    def entered(self, module: nn.Module, args: Any) -> None:
        """A module's call has begun: for one that was under way when this was armed."""
        self._before(module, args)

    def _before(self, module: nn.Module, args: Any) -> None:
        if module not in self._modules:
            return
        self._starts.append(_sequence_number())
        if self.reading is not None and _in_backward() == -1 and _in_transform() is None:
            if len(self._starts) == 1:
                self.reading.forward_begins()
            self.reading.read(module, args)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if module not in self._modules or not self._starts:
            return
        start = self._starts.pop()
        try:
            outputs = self._outputs(output)
        except Exception as error:  # never the user's problem
            self._failed(error)
            return
        self._calls.append(Call(module, start, _sequence_number(), outputs, len(self._starts)))
        if self._starts:
            return
        calls, self._calls = self._calls, []
        if _in_backward() == -1:
            try:
                self._finished(calls)
            except Exception as error:
                self._failed(error)

    def _outputs(self, output: Any) -> list[Output]:
        if _in_transform() is not None or not (self.keep or torch.is_grad_enabled()):
            return []
        if type(output) is torch.Tensor:  # nearly always
            return self._noted("", output)
        return [noted for field, t in tensors_in(output) for noted in self._noted(field, t)]

    def _noted(self, field: str, tensor: torch.Tensor) -> list[Output]:
        # Without a shape of numbers, or spread over processes, which would have to talk.
        if tensor.is_nested or hasattr(tensor, "device_mesh"):
            return []
        node = tensor.grad_fn
        if self.keep:
            return [Output(field, node, tensor.output_nr, tensor.shape, tensor)]
        return [] if node is None else [Output(field, node, tensor.output_nr, tensor.shape, None)]
