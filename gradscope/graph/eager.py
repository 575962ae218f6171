"""Compiled regions run as they were written while somebody looks: autograd sees inside them."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.nn.modules import module as torch_module

# Asked by a compiled module that is called, which warns that it will not like the answer: not
# while it runs as it was written, and the hooks are gradscope's. Not in every torch.
_ASKED = "_has_any_global_hook"


class Eager:
    """torch.compile's stance is process-wide: set by the first who needs it, reset by the last."""

    def __init__(self) -> None:
        self._holders: set[int] = set()
        self._stance: Any = None
        self._answers = getattr(torch_module, _ASKED, None)

    def hold(self, holder: object) -> None:
        """Run compiled regions eagerly, until `release`."""
        self._holders.add(id(holder))
        if self._stance is None and "torch._dynamo" in sys.modules:
            self._stance = torch.compiler.set_stance("force_eager")
        if self._answers is not None:
            setattr(torch_module, _ASKED, _none)

    def release(self, holder: object) -> None:
        """`holder` has no need of it any more."""
        self._holders.discard(id(holder))
        if self._holders:
            return
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None
        if self._answers is not None:
            setattr(torch_module, _ASKED, self._answers)


def _none() -> bool:
    return False


EAGER = Eager()
