"""Where a model's inputs enter the autograd graph.

Autograd sees only what requires a gradient, and a batch of images or tokens does not. For one
forward pass, every floating-point input is replaced by a copy that does. Integers can't: they
are followed, operation by operation, to the first floating-point tensor made from them, such
as the embedding of tokens.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from gradscope.graph.walk import Node, tensors_in

# Masks say what to look at. They are no information about the sample, and one that required a
# gradient would keep attention from being fused.
_MASK = re.compile(r"masks?$")
# Writing functions (add_, __iadd__) and attributes (__get__): their argument must stay itself.
_IN_PLACE = re.compile(r"[^_]_$|^__(i[a-z]+|setitem|[gs]et)__$")


class Entrances(TorchFunctionMode):
    """Finds, while active, the tensors by which the inputs enter the graph.

    Attributes:
        found: (node, output) of each such tensor → the name of the input, or "".
        first: the first input tensor that is no mask.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[tuple[Node, int], str] = {}
        self.first: Tensor | None = None
        # What was computed from the inputs; with what takes its place in the graph, if anything.
        self._derived: Any = WeakTensorKeyDictionary()

    def admit(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments of a module, with inputs that autograd sees."""
        with torch.enable_grad():
            new = {
                name: _map_tensors(value, self._admit, name)
                for name, value in _named_arguments(module, args, kwargs).items()
            }
        return tuple(list(new.values())[: len(args)]), {name: new[name] for name in kwargs}

    def _admit(self, name: str, tensor: Tensor) -> Tensor:
        if _MASK.search(name):
            return tensor
        if self.first is None and tensor.dim():
            self.first = tensor
        if _differentiable(tensor):
            tensor = self._enter(tensor, name)
        self._derived[tensor] = None
        return tensor

    def _enter(self, tensor: Tensor, name: str = "") -> Tensor:
        if not tensor.requires_grad:
            leaf = tensor.clone() if tensor.is_inference() else tensor.detach()
            tensor = leaf.requires_grad_()
        tensor = tensor.clone()  # not a leaf: the model may write into it
        self.found[tensor.grad_fn, tensor.output_nr] = name
        self._derived[tensor] = None
        return tensor

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("numpy", "__array__"):  # refused where a gradient is required
            return func(args[0].detach(), *args[1:], **kwargs)
        if torch.is_grad_enabled() and not _IN_PLACE.search(name):
            args, kwargs = self._enter_late(args, kwargs)
        given = [t for _, t in tensors_in([*args, *kwargs.values()]) if t in self._derived]
        out = func(*args, **kwargs)
        if not given:
            return out
        if name == "__setitem__":
            self._follow(args[0], given)
        return _map_tensors(out, lambda _, made: self._made(made, given))

    def _enter_late(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """What came as far as here without a graph, through `no_grad` say, enters it now."""
        given = [t for _, t in tensors_in([*args, *kwargs.values()]) if t in self._derived]
        if not any(map(_differentiable, given)) or any(t.requires_grad for t in given):
            return args, kwargs
        return _map_tensors((args, kwargs), lambda _, t: self._late(t))

    def _late(self, tensor: Tensor) -> Tensor:
        if tensor not in self._derived or not _differentiable(tensor):
            return tensor
        if self._derived[tensor] is None:
            self._derived[tensor] = self._enter(tensor)
        return self._derived[tensor]

    def _made(self, tensor: Tensor, given: list[Tensor]) -> Tensor:
        """An operation read tensors that are derived from the inputs, and made this one."""
        from_integers = not any(map(_differentiable, given))
        if _differentiable(tensor) and from_integers and torch.is_grad_enabled():
            if tensor.requires_grad:  # an embedding
                self.found.setdefault((tensor.grad_fn, tensor.output_nr), "")
            else:
                tensor = self._enter(tensor)
        self._follow(tensor, given)
        return tensor

    def _follow(self, tensor: Tensor, given: list[Tensor]) -> None:
        """Floats hold what they were made from; integers too, unless chosen by floats (top-k);
        a comparison's result is a mask."""
        integers = tensor.dtype is not torch.bool and not any(map(_differentiable, given))
        if _differentiable(tensor) or integers:
            self._derived.setdefault(tensor, None)


def _named_arguments(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments of a module call by name, positional ones first."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # not a Python function
        parameters = []
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in parameters if p.kind in plain]
    positional = [names[i] if i < len(names) else f"[{i}]" for i in range(len(args))]
    return {**dict(zip(positional, args, strict=True)), **kwargs}


def _differentiable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _map_tensors(value: Any, change: Callable[[str, Tensor], Tensor], field: str = "") -> Any:
    """A copy of nested containers with other tensors in them; the same object if none is other."""
    if isinstance(value, Tensor):
        return change(field, value)
    if isinstance(value, Mapping):
        items = {k: _map_tensors(v, change, f"{field}.{k}") for k, v in value.items()}
        if all(items[k] is v for k, v in value.items()):
            return value
        new = copy.copy(value)
        for k, v in items.items():
            new[k] = v  # type: ignore[index]
        return new
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = [_map_tensors(getattr(value, k), change, f"{field}.{k}") for k in value._fields]
        same = all(a is b for a, b in zip(fields, value, strict=True))
        return value if same else type(value)(*fields)
    if isinstance(value, list | tuple):
        parts = [_map_tensors(v, change, f"{field}[{i}]") for i, v in enumerate(value)]
        same = all(a is b for a, b in zip(parts, value, strict=True))
        return value if same else type(value)(parts)
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        new = copy.copy(value)
        for k in value.__dataclass_fields__:
            if hasattr(value, k):
                part = _map_tensors(getattr(value, k), change, f"{field}.{k}")
                object.__setattr__(new, k, part)
        return new
    return value
