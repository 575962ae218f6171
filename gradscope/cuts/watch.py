"""What happens while a closure runs: module calls, where inputs come in, batch sizes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import nn

from gradscope.cuts.inputs import Entrances
from gradscope.cuts.untouched import untouched
from gradscope.errors import GradscopeError
from gradscope.graph.calls import Call, CallRecorder
from gradscope.graph.walk import tensors_in

_in_backward: Callable[[], int] = torch._C._current_graph_task_id


class Watch:
    """One run of a closure, with the model's hooks, gradients and buffers as before afterwards.

    Attributes:
        paths: module → path.
        calls: the module calls.
        entrances: where the inputs come in.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.paths = {module: path for path, module in model.named_modules()}
        self.calls: list[Call] = []
        self.entrances = Entrances()
        self._depth = 0
        self._layouts: list[int] = []  # batch sizes by modules that know their layout

    def run(self, closure: Callable[[], Any]) -> None:
        recorder = CallRecorder(self.paths, self.calls.extend, _raise)
        with ExitStack() as stack:
            stack.enter_context(untouched(self._model))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(_without_compiling())
            stack.enter_context(self.entrances)
            for module in self.paths:
                before = module.register_forward_pre_hook(self._before, with_kwargs=True)
                stack.callback(before.remove)
                after = module.register_forward_hook(self._after, always_call=True)
                stack.callback(after.remove)
            stack.callback(recorder.disarm)
            recorder.arm()
            # Compiled modules warn of the recorder's hooks, which they run once more.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message=".*global hooks on modules")
            closure()

    def batch_size(self) -> int:
        """By a module that declares its layout (`batch_first`), else the first dimension."""
        if self.entrances.first is None:
            raise GradscopeError(
                "no tensor was found among the model's inputs to tell the batch size: "
                "give batch_size="
            )
        shape = self.entrances.first.shape
        if len(shape) > 1 and shape[1] in self._layouts and shape[0] not in self._layouts:
            return shape[1]
        return shape[0]

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if _in_backward() != -1:  # recomputed by activation checkpointing
            return None
        self._depth += 1
        given = [t for _, t in tensors_in([*args, *kwargs.values()])]
        batch_first = getattr(module, "batch_first", None)
        if isinstance(batch_first, bool) and given and given[0].dim() == 3:
            self._layouts.append(given[0].shape[0 if batch_first else 1])
        return self.entrances.admit(module, args, kwargs) if self._depth == 1 else None

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if _in_backward() == -1:
            self._depth -= 1


def _raise(error: BaseException) -> None:
    raise error


def _without_compiling() -> Any:
    """Compiled regions, run as they were written: autograd then sees inside them."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
