"""Modules that only wrap another one: names and types are those of what they hold."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from gradscope.errors import GradscopeError

_FLAT = "_fsdp_wrapped_module"
# Class → attribute that holds the wrapped module. By name, since most are never imported.
_HOLDS = {
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": _FLAT,
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.CheckpointWrapper": (
        "_checkpoint_wrapped_module"
    ),
}
_SHARDED = "FSDPModule"  # fully_shard() makes a class of this and the module's own


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, torch.compile and the like."""
    while held := _held(model):
        model = model.get_submodule(held)
    return model


def check_initialised(model: nn.Module) -> None:
    """Raises a GradscopeError for lazy modules that have not seen their input yet."""
    if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
        raise GradscopeError(
            "the model has lazy modules without parameters yet: run one forward pass first"
        )


def module_paths(model: nn.Module) -> dict[nn.Module, str]:
    """Path of every module, as if nothing inside were wrapped; wrappers themselves left out."""
    inside = _inside(model)
    return {m: _clean(path, inside) for path, m in model.named_modules() if not _held(m)}


def named_parameters(model: nn.Module, *, duplicates: bool = False) -> dict[str, nn.Parameter]:
    """As `model.named_parameters()`, as if nothing inside were wrapped.

    Args:
        duplicates: also the further names of a parameter that several modules share.
    """
    inside = _inside(model)
    named = model.named_parameters(remove_duplicate=not duplicates)
    return {_clean(name, inside): parameter for name, parameter in named}


def class_name(module: nn.Module) -> str:
    """Name of the module's class, as it was before `fully_shard`."""
    kind = type(module)
    if len(kind.__bases__) == 2 and kind.__bases__[0].__name__ == _SHARDED:
        kind = kind.__bases__[1]
    return kind.__name__


def has_flat_parameters(model: nn.Module) -> bool:
    """Whether parameters lie in the flat shards of FullyShardedDataParallel."""
    return any(_held(m) == _FLAT for m in model.modules())


def _held(module: nn.Module) -> str:
    """Attribute that holds the wrapped module; "" for a module that is no wrapper."""
    for kind in type(module).__mro__:
        if found := _HOLDS.get(f"{kind.__module__}.{kind.__qualname__}"):
            return found
    return ""


def _inside(model: nn.Module) -> set[str]:
    """Paths of the modules that wrappers hold."""
    wrappers = [(path, held) for path, m in model.named_modules() if (held := _held(m))]
    return {f"{path}.{held}" if path else held for path, held in wrappers}


def _clean(name: str, inside: set[str]) -> str:
    if not inside:
        return name
    parts = name.split(".")
    return ".".join(p for i, p in enumerate(parts) if ".".join(parts[: i + 1]) not in inside)
