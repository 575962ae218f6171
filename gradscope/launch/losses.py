"""The loss of a step, as the training script makes it: what `backward()` is called on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradscope.capture.listening import BACKWARD, SCALER_STEP

_in_backward = torch._C._current_graph_task_id


class Losses:
    """Gathers the losses of the backward passes since the last step, without waiting for a device.

    A backward pass that starts from given gradients, or from anything but numbers, has no loss.
    """

    def __init__(self) -> None:
        self._gathered: list[Any] = []  # numbers, or 0-d tensors on an accelerator
        self._scale: Any = None
        self._stale = False

    def listen(self) -> None:
        BACKWARD.listen(self)
        SCALER_STEP.listen(self)

    def ignore(self) -> None:
        BACKWARD.ignore(self)
        SCALER_STEP.ignore(self)
        self._gathered = []

    def of_step(self) -> Any:
        """Mean over the step's backward passes, a gradient scaler's scale divided out; or None."""
        if not self._gathered:
            return None
        if not all(isinstance(loss, float) for loss in self._gathered):
            with torch.no_grad():
                total: Any = sum(self._gathered)
                return total / len(self._gathered) / (1.0 if self._scale is None else self._scale)
        scale = 1.0 if self._scale is None else float(self._scale)
        return sum(self._gathered) / len(self._gathered) / scale

    def stepped(self) -> None:
        """The next backward pass belongs to another step."""
        self._stale = True

    # -- what torch tells --------------------------------------------------------------

    def backward_begins(self, tensors: Any, grad_tensors: Any) -> None:
        if _in_backward() != -1:  # of a checkpointed part
            return
        if self._stale:
            self._gathered, self._scale, self._stale = [], None, False
        roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        if grad_tensors is None and roots and all(_is_number(t) for t in roots):
            parts = [_number(t) for t in roots]
            self._gathered.append(sum(parts[1:], parts[0]))

    def scaler_steps(self, optimizer: torch.optim.Optimizer, scale: Tensor) -> None:
        self._scale = float(scale) if scale.is_cpu else scale.detach().clone()

    def scaler_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        self.stepped()  # or was skipped


def _is_number(tensor: Any) -> bool:
    return type(tensor) is Tensor and tensor.numel() == 1 and tensor.is_floating_point()


def _number(tensor: Tensor) -> Any:
    value = tensor.detach()
    return float(value) if value.is_cpu else value.reshape(()).to(torch.float32, copy=True)
