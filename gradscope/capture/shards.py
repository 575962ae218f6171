"""Parameters of which this process holds a part: the DTensors of `fully_shard`.

Only what is on this process is ever touched: an operation on a whole DTensor would make the
processes wait for each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Shard(NamedTuple):
    """Which part this process holds, and of how many; copies of a part have the same number."""

    index: int
    count: int


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
    index, count = 0, 1
    for size, placement, at in zip(mesh.shape, parameter.placements, coordinates, strict=True):
        if placement.is_partial():
            return None
        if not placement.is_replicate():
            index, count = index * size + at, count * size
    return Shard(index, count)


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
