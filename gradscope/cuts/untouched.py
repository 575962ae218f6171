"""A forward pass that leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradscope.graph.aside import aside
from gradscope.graph.wrappers import check_initialised


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run what is inside, then put back what a forward (and backward) pass changes.

    Put back are buffers (running statistics), gradients, embedding weights with a `max_norm`
    (which are renormalised as they are read) and the random states of torch, numpy and Python.
    Hooks that wait for a parameter's gradient, to step an optimizer with it, do not run, and
    recordings that are under way hear of nothing.

    Raises:
        GradscopeError: if lazy modules have no parameters yet.
    """
    check_initialised(model)
    buffers = [_Kept(m._buffers, name) for m in model.modules() for name in m._buffers]
    held = [(m._buffers, set(m._buffers)) for m in model.modules()]
    weights = [
        _Kept(m._parameters, "weight")
        for m in model.modules()
        if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.max_norm is not None
    ]
    gradients = [(p, p.grad) for p in model.parameters()]
    for p, _ in gradients:
        p.grad = None
    waiting = [(h, dict(h)) for p, _ in gradients if (h := p._post_accumulate_grad_hooks)]
    for hooks, _ in waiting:
        hooks.clear()
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(sorted(d.index for d in devices)), aside():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for hooks, own in waiting:
            hooks.update(own)
        for p, grad in gradients:
            p.grad = grad
        for own_buffers, names in held:
            for name in set(own_buffers) - names:  # registered as it ran
                del own_buffers[name]
        for kept in (*buffers, *weights):
            kept.put_back()


class _Kept:
    """A module's tensor and its value."""

    def __init__(self, where: dict[str, Any], name: str) -> None:
        self._where, self._name = where, name
        self._tensor: Tensor | None = where[name]
        self._value = None if self._tensor is None else self._tensor.detach().clone()

    def put_back(self) -> None:
        self._where[self._name] = self._tensor  # the module may have replaced it
        if self._tensor is None or self._value is None:
            return
        # Values are compared, as batch norm writes its statistics without counting a version up.
        # By way of .data neither does this, so that a backward pass still to come runs through.
        if not torch.equal(self._tensor, self._value):
            self._tensor.data.copy_(self._value)
