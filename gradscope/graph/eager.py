"""Compiled regions run as they were written while somebody looks: autograd sees inside them."""

from __future__ import annotations

import sys
from typing import Any

import torch


class Eager:
    """torch.compile's stance is process-wide: set by the first who needs it, reset by the last."""

    def __init__(self) -> None:
        self._holders: set[int] = set()
        self._stance: Any = None

    def hold(self, holder: object) -> None:
        """Run compiled regions eagerly, until `release`."""
        self._holders.add(id(holder))
        if self._stance is None and "torch._dynamo" in sys.modules:
            self._stance = torch.compiler.set_stance("force_eager")

    def release(self, holder: object) -> None:
        """`holder` has no need of it any more."""
        self._holders.discard(id(holder))
        if self._stance is not None and not self._holders:
            self._stance.__exit__(None, None, None)
            self._stance = None


EAGER = Eager()
