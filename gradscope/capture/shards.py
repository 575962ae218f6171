"""Parameters of which this process holds a part: the DTensors of `fully_shard`.

Only what is on this process is ever touched: an operation on a whole DTensor would make the
processes wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from gradscope.graph.wrappers import named_parameters


class Shard(NamedTuple):
    """Which part this process holds, and of how many; copies of a part have the same number."""

    number: int
    of: int


def spread(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor, spread over processes."""
    return hasattr(tensor, "device_mesh")


def shard_of(parameter: Any) -> Shard | None:
    """The part of a parameter on this process; None if it holds none that can be compared."""
    if not spread(parameter):
        return Shard(0, 1)
    mesh = parameter.device_mesh
    coordinates = mesh.get_coordinate()
    if coordinates is None:  # the parameter lies on other processes
        return None
    number, of = 0, 1
    for size, placement, at in zip(mesh.shape, parameter.placements, coordinates, strict=True):
        if placement.is_partial():
            return None
        if not placement.is_replicate():
            number, of = number * size + at, of * size
    return Shard(number, of)


def local(tensor: Any) -> Tensor:
    """What of a tensor is on this process (no copy)."""
    return tensor.to_local() if spread(tensor) else tensor


def local_gradient(parameter: Any) -> Tensor | None:
    """The gradient of what of a parameter is on this process; None where there is none yet."""
    gradient = parameter.grad
    if not spread(parameter):
        return gradient
    if gradient is None:  # none is made for an empty shard
        here = parameter.to_local()
        return here if not here.numel() else None
    # Otherwise it is not this shard's: a sum that is still to be taken, for example.
    return gradient.to_local() if gradient.placements == parameter.placements else None


def named_shards(model: nn.Module) -> dict[str, nn.Parameter]:
    """As `named_parameters`; where `fully_shard` has left a whole one in a module, its shard."""
    whole = gathered(model)
    return {name: whole.get(id(p), p) for name, p in named_parameters(model).items()}


def tensor_parallel(model: nn.Module) -> bool:
    """Whether parameters are spread over processes in another way than by `fully_shard` alone."""
    plain = {id(p.sharded_param) for p in _fully_sharded(model) if not p.is_dtensor}
    return any(spread(p) and id(p) not in plain for p in named_shards(model).values())


def gathered(model: nn.Module) -> dict[int, nn.Parameter]:
    """Id of each whole parameter that `fully_shard` has ever gathered → its shard.

    The whole ones are what modules compute with, and so the leaves of the graph.
    """
    return {
        id(whole): p.sharded_param
        for p in _fully_sharded(model)
        if (whole := getattr(p, "_unsharded_param", None)) is not None
    }


def _fully_sharded(model: nn.Module) -> Iterator[Any]:
    """What `fully_shard` keeps of each parameter; torch shows it nowhere else."""
    for module in model.modules():
        state = getattr(module, "_get_fsdp_state", lambda: None)()
        groups = getattr(state, "_fsdp_param_groups", None)
        if groups is None:  # older torch: one a module
            groups = [getattr(state, "_fsdp_param_group", None)]
        for group in groups:
            yield from getattr(group, "fsdp_params", ())
