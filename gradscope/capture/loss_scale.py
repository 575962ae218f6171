"""Be told of steps that `torch.amp.GradScaler` takes, while somebody needs to know.

It multiplies the loss by a scale, and with it every gradient of the backward pass; those of
parameters are divided by it before the optimizer uses them. A step whose gradients
overflowed is not taken. `GradScaler.step` is replaced while there is a listener, and put back
with the last one. Listeners are held weakly.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any, Protocol

import torch


class Listener(Protocol):
    def scaler_steps(self, optimizer: torch.optim.Optimizer, scale: torch.Tensor) -> None:
        """The optimizer will step, unless gradients overflowed; `scale` is that of the loss."""
        ...

    def scaler_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """It has stepped, or not."""
        ...


_listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
_original = torch.amp.GradScaler.step


@functools.wraps(_original)
def _told(self: Any, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
    scale = self._get_scale_async() if self.is_enabled() else None
    if scale is None:
        return _original(self, optimizer, *args, **kwargs)
    told = list(_listeners)
    for listener in told:
        listener.scaler_steps(optimizer, scale)
    result = _original(self, optimizer, *args, **kwargs)
    for listener in told:
        listener.scaler_stepped(optimizer)
    return result


def listen(listener: Listener) -> None:
    """Tell `listener` of every step, until `ignore`."""
    _listeners.add(listener)
    torch.amp.GradScaler.step = _told  # type: ignore[method-assign]


def ignore(listener: Listener) -> None:
    """Stop telling `listener`."""
    _listeners.discard(listener)
    if not _listeners and torch.amp.GradScaler.step is _told:
        torch.amp.GradScaler.step = _original  # type: ignore[method-assign]
