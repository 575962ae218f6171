"""Scale of the data that a model reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradscope.capture.ledger import Ledger
from gradscope.capture.trouble import Trouble
from gradscope.quantities.scale import data_scale
from gradscope.run import Column, Site

METRICS = ("input_rms", "input_offset", "input_spread")


class Inputs:
    """Measures what the first module with parameters reads in a forward pass, if it is data:
    floating-point numbers without a gradient."""

    def __init__(self, ledger: Ledger, paths: dict[nn.Module, str], trouble: Trouble) -> None:
        self._ledger, self._paths, self._trouble = ledger, paths, trouble
        self._waiting = False

    def forward_begins(self) -> None:
        self._waiting = torch.is_grad_enabled()

    def read(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module is called with `args`."""
        if not self._waiting or next(module.parameters(recurse=False), None) is None:
            return
        for x in args:
            if type(x) is Tensor and x.is_floating_point() and x.numel() > 1:
                self._waiting = False
                if not x.requires_grad and not x.is_nested:
                    try:
                        self._measure(module, x)
                    except Exception as error:
                        self._trouble.caught("inputs", error)
                return

    def _measure(self, module: nn.Module, x: Tensor) -> None:
        name = self._paths[module] or "(root)"
        self._ledger.site(
            Site(name, "input", type=type(module).__name__, shape=tuple(x.shape), numel=x.numel())
        )
        with torch.no_grad():
            scale = data_scale(x)
        values = scale.tolist() if scale.is_cpu else scale.unbind()
        for metric, value in zip(METRICS, values, strict=True):
            self._ledger.add(
                self._ledger.plain(Column(name, "input", "", metric), mode="mean"), value
            )
