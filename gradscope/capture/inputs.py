"""Scale of the data that a model reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradscope.capture.ledger import Ledger
from gradscope.capture.trouble import Trouble
from gradscope.quantities.scale import data_scale
from gradscope.run import Column, Site

METRICS = ("input_rms", "input_offset", "input_peak")
MANY = 16  # modules of one forward pass that are looked at


class Inputs:
    """Measures what trainable modules read in a forward pass, if it is data: floating-point
    numbers without a gradient, or some of them beside others (a concatenation)."""

    def __init__(self, ledger: Ledger, paths: dict[nn.Module, str], trouble: Trouble) -> None:
        self._ledger, self._paths, self._trouble = ledger, paths, trouble
        self._seen: set[str] = set()
        self._looking = False

    def forward_begins(self) -> None:
        self._looking = torch.is_grad_enabled()
        self._seen = set()

    def read(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module is called with `args`."""
        if not self._looking or not args:
            return
        x = args[0]
        if type(x) is not Tensor or not x.is_floating_point() or x.numel() < 2:
            return
        if not _is_data(x) or x.is_nested or not _is_trainable(module):
            return
        try:
            self._measure(module, x)
        except Exception as error:
            self._trouble.caught("inputs", error)

    def _measure(self, module: nn.Module, x: Tensor) -> None:
        name = self._paths[module] or "(root)"
        if name in self._seen or len(self._seen) >= MANY:
            return
        self._seen.add(name)
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


def _is_data(x: Tensor) -> bool:
    """Made without parameters, or put together from such a tensor and others."""
    node = x.grad_fn
    if node is None:
        return not x.requires_grad
    if not node.name().startswith(("CatBackward", "StackBackward")):
        return False
    return any(made is None for made, _ in node.next_functions)


def _is_trainable(module: nn.Module) -> bool:
    """It has parameters of its own, be it in a list, and learns: what a frozen part hands on is
    no data."""
    lists = [m for m in module.children() if isinstance(m, nn.ParameterList | nn.ParameterDict)]
    return any(p.requires_grad for own in (module, *lists) for p in own.parameters(recurse=False))
