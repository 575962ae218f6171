"""Be told of `loss.backward()` before it runs, while somebody needs to know.

`Tensor.backward` looks `torch.autograd.backward` up when it is called. That function is
replaced while there is a listener, and put back with the last one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

Listener = Callable[[Any, Any], None]  # tensors, grad_tensors

_listeners: list[Listener] = []
_original = torch.autograd.backward


@functools.wraps(_original)
def _told(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
    for listener in list(_listeners):
        listener(tensors, grad_tensors)
    _original(tensors, grad_tensors, *args, **kwargs)


def listen(listener: Listener) -> None:
    """Call `listener(tensors, grad_tensors)` before every backward pass, until `ignore`."""
    if listener not in _listeners:
        _listeners.append(listener)
        torch.autograd.backward = _told


def ignore(listener: Listener) -> None:
    """Stop telling `listener`."""
    if listener in _listeners:
        _listeners.remove(listener)
    if not _listeners and torch.autograd.backward is _told:
        torch.autograd.backward = _original
