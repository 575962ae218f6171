"""Be told of what training code does with torch: backward passes, scaled losses, clipping.

Each is one function of torch that is replaced while there is a listener, and put back with
the last one. Listeners are held weakly: a recording that everybody has forgotten hears nothing.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grad

L = TypeVar("L")


class Listened(Generic[L]):
    """A function of torch that somebody may listen to.

    Args:
        owner: what torch looks the function up in.
        name: of the function there.
        around: called as (listeners, original, *args, **kwargs) in the function's place.
    """

    def __init__(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        self._owner, self._name = owner, name
        self.original = getattr(owner, name, None)
        self._listeners: weakref.WeakSet[Any] = weakref.WeakSet()
        original, listeners = self.original, self._listeners

        def told(*args: Any, **kwargs: Any) -> Any:
            return around(list(listeners), original, *args, **kwargs)

        self._told = told if original is None else functools.wraps(original)(told)

    def listen(self, listener: L) -> None:
        """Tell `listener` of every call, until `ignore`."""
        self._listeners.add(listener)
        if self.original is not None:  # a torch that has no such function
            setattr(self._owner, self._name, self._told)

    def ignore(self, listener: L) -> None:
        """Stop telling `listener`."""
        self._listeners.discard(listener)
        if not self._listeners and getattr(self._owner, self._name, None) is self._told:
            setattr(self._owner, self._name, self.original)


class BackwardListener(Protocol):
    def backward_begins(self, tensors: Any, grad_tensors: Any) -> None:
        """`torch.autograd.backward(tensors, grad_tensors)` is about to run."""
        ...


class ScalerListener(Protocol):
    def scaler_steps(self, optimizer: torch.optim.Optimizer, scale: Tensor) -> None:
        """The optimizer will step, unless gradients overflowed; `scale` is that of the loss."""
        ...

    def scaler_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """It has stepped, or not."""
        ...


class ClipListener(Protocol):
    def clipped(self, parameters: list[Tensor], limit: float, total: Tensor) -> None:
        """Gradients of `parameters`, of norm `total` together, were clipped to norm `limit`."""
        ...


def _backward(
    listeners: list[BackwardListener],
    original: Callable[..., None],
    tensors: Any,
    grad_tensors: Any = None,
    *args: Any,
    **kwargs: Any,
) -> None:
    for listener in listeners:
        listener.backward_begins(tensors, grad_tensors)
    original(tensors, grad_tensors, *args, **kwargs)


def _scaler_step(
    listeners: list[ScalerListener],
    original: Callable[..., Any],
    scaler: Any,
    optimizer: torch.optim.Optimizer,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """A `GradScaler` multiplies the loss by a scale, and with it every gradient of the backward
    pass; those of parameters are divided by it before the optimizer uses them. A step whose
    gradients overflowed is not taken."""
    scale = scaler._get_scale_async() if scaler.is_enabled() else None
    if scale is None:
        return original(scaler, optimizer, *args, **kwargs)
    for listener in listeners:
        listener.scaler_steps(optimizer, scale)
    result = original(scaler, optimizer, *args, **kwargs)
    for listener in listeners:
        listener.scaler_stepped(optimizer)
    return result


def _clip(
    listeners: list[ClipListener],
    original: Callable[..., None],
    parameters: Any,
    max_norm: float,
    total_norm: Tensor,
    *args: Any,
    **kwargs: Any,
) -> None:
    """What `clip_grad_norm_` calls once it knows the norm, however it was imported."""
    several = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    original(several, max_norm, total_norm, *args, **kwargs)
    for listener in listeners:
        listener.clipped(several, float(max_norm), total_norm)


# `Tensor.backward` looks this up when it is called.
BACKWARD: Listened[BackwardListener] = Listened(torch.autograd, "backward", _backward)
SCALER_STEP: Listened[ScalerListener] = Listened(torch.amp.GradScaler, "step", _scaler_step)
CLIP: Listened[ClipListener] = Listened(clip_grad, "_clip_grads_with_norm_", _clip)
