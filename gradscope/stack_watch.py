"""What there is to watch in an attention stack beside its gradients: pathways and bottlenecks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.capture.scope import Scope
from gradscope.models import Attention


def watch_stack(scope: Scope, model: nn.Module, closure: Callable[[], Tensor], every: int) -> None:
    """Have a scope follow the pathways of a stack, and find its narrowest places.

    Args:
        model: holds a stack of attention layers, `model.stack.layers`.
        closure: runs a forward pass and returns the loss.
        every: steps between two measurements.
    """
    scope.crossings(every=every)
    first = "stack.layers.0.latent"
    if any(layer.from_previous is not None for layer in _layers(model)):
        scope.pathway("latent concat", first, "stack.layers.*.from_previous", every=every)
    if len(_layers(model)) > 1:
        later = "stack.layers.[1-9]*:softmax"
        scope.pathway("later softmaxes", first, later, every=every)
    scope.effective_rank("stack.layers.*.content", every=every)
    scope.bottlenecks(closure)


def probe_stack(scope: Scope, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Probe what every layer is handed for the position that the one before it attended to.

    The features v, which all layers see, are left out: they know nothing of a layer before.
    """
    seen: list[tuple[tuple[Any, ...], Any]] = []
    handles = [
        layer.register_forward_hook(lambda module, given, found: seen.append((given, found)))
        for layer in _layers(model)
    ]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    for k, ((_, found), (given, _)) in enumerate(pairwise(seen)):
        received = [t.flatten(1) for t in given[1:] if t is not None]  # query, previous latent
        attended = found.weights.argmax(dim=1)
        if attended.unique().numel() > 1:
            name = f"stack.layers.{k} → stack.layers.{k + 1}"
            scope.probe(name, torch.cat(received, dim=1), attended)


def _layers(model: nn.Module) -> list[Attention]:
    return [m for m in model.modules() if isinstance(m, Attention)]
