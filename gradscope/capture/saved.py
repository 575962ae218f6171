"""Tensors that an autograd node saved, read without disturbing whoever keeps them.

Where nobody does, a saved tensor is simply there. Hooks on saved tensors
(`torch.autograd.graph.saved_tensors_hooks`) put something else in its place: activation
checkpointing a promise to compute it again, `save_on_cpu` a copy elsewhere. Reading such a
tensor runs its hook, and checkpointing allows that once in a backward pass: a second
reading would make torch raise in the user's. So the tensor is looked at where checkpointing
has it anyway, between the node's own reading and the end of the node's hooks. Nothing is
computed for it, and nothing is kept longer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.utils import checkpoint

# Torch's own names: a version without them has its checkpointed tensors listed as unseen.
_HOLDER: Any = getattr(checkpoint, "_Holder", None)
SAVE_ON_CPU = "torch.autograd.graph.save_on_cpu."


class UnreadableError(Exception):
    """A saved tensor can't be read without harm; says why."""


class Saved(Protocol):
    """A tensor that a node saved."""

    def read(self) -> Tensor:
        """The tensor; to be called from a hook that runs after the node.

        Raises:
            UnreadableError: if it is gone.
        """
        ...


def saved_tensor(node: Any, name: str) -> Saved | None:
    """What `node` saved under `name`; None if it saved nothing there.

    Holds neither the node nor what leads to it: hooks on the node may hold it.

    Raises:
        UnreadableError: if hooks keep it that may not be run twice.
    """
    raw = getattr(node, f"_raw_saved_{name}")
    if not hasattr(raw, "unpack_hook"):
        raise UnreadableError("this version of torch does not show who keeps a saved tensor")
    hook = raw.unpack_hook
    if hook is None:
        tensor = getattr(node, f"_saved_{name}")
        return None if tensor is None else Held(tensor.detach())
    if _HOLDER is not None and isinstance(raw.data, _HOLDER):
        return Recomputed(raw.data, hook)
    if f"{hook.__module__}.{hook.__qualname__}".startswith(SAVE_ON_CPU):
        device, copy = raw.data
        return Offloaded(hook, device, copy.detach())
    raise UnreadableError(
        "what it saved is kept by hooks on saved tensors "
        f"({hook.__module__}.{hook.__qualname__}), which may not bear being run twice"
    )


@dataclass
class Held:
    """It is there."""

    tensor: Tensor

    def read(self) -> Tensor:
        return self.tensor


@dataclass
class Offloaded:
    """`save_on_cpu` keeps a copy, which is brought back as it does so itself."""

    unpack: Callable[[Any], Tensor]
    device: Any
    copy: Tensor

    def read(self) -> Tensor:
        return self.unpack((self.device, self.copy))


class Recomputed:
    """Checkpointing computes it again in the backward pass.

    Its holder has, by backward pass, a handle that keeps the tensor alive until the node
    takes it. The dictionary of handles is replaced by one that keeps the handle taken last,
    until all that watch it are gone.
    """

    def __init__(self, holder: Any, hook: Any) -> None:
        try:
            names = hook.__code__.co_freevars
            frame = hook.__closure__[names.index("frame")].cell_contents
            handles, self._recomputed = holder.handles, frame.recomputed
        except (AttributeError, ValueError) as error:
            raise UnreadableError(
                "this version of torch keeps checkpointed tensors in a way that is not known"
            ) from error
        if not isinstance(handles, _Watched):
            handles = holder.handles = _Watched(handles)
        handles.watchers += 1
        self._holder = holder

    def read(self) -> Tensor:
        taken = self._holder.handles.taken
        if taken is None:
            raise UnreadableError("activation checkpointing did not compute it again")
        backward_pass, handle = taken
        return self._recomputed[backward_pass][handle].detach()

    def __del__(self) -> None:  # with the hook that holds it, and at the latest with the graph
        handles = self._holder.handles if hasattr(self, "_holder") else None
        if isinstance(handles, _Watched):
            handles.watchers -= 1
            if not handles.watchers:
                self._holder.handles = dict(handles)


class _Watched(dict[Any, Any]):
    """Handles by backward pass; None once taken."""

    def __init__(self, handles: dict[Any, Any]) -> None:
        super().__init__(handles)
        self.watchers = 0
        self.taken: tuple[Any, Any] | None = None

    def __setitem__(self, backward_pass: Any, handle: Any) -> None:
        if handle is None:
            self.taken = backward_pass, self[backward_pass]
        super().__setitem__(backward_pass, handle)
