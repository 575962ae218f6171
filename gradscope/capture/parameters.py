"""Gradients of parameters as the optimizer is about to use them, and what it made of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradscope.capture.ledger import Ledger
from gradscope.capture.quantities.norm import norms
from gradscope.run import Column, Site

# At the first recorded step all updates are measured at once, unless the copy that this
# takes would be larger than this many elements (128 MiB in float32).
FIRST_STEP_ELEMENTS = 1 << 25


class Parameters:
    """Measures every trainable parameter of a model at an optimizer step.

    Gradient norms are read at every recorded step. An update needs a copy of the weights,
    so that parameters take turns: each is measured once in `turns` recorded steps, in
    groups of about equal size, and all of them at the first.
    """

    def __init__(
        self, ledger: Ledger, named: dict[str, nn.Parameter], held: set[int], turns: int
    ) -> None:
        self._ledger = ledger
        self._named = named
        self._slots: dict[str, tuple[int, int, int]] = {}
        self._turns = turns
        self._groups = _balanced(named, turns)
        self._copies: list[tuple[str, nn.Parameter, Tensor]] = []
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        for order, (name, parameter) in enumerate(named.items()):
            self._slots[name] = (
                ledger.plain(Column(name, "parameter", "", "grad_norm")),
                ledger.plain(Column(name, "parameter", "", "weight_norm"), mode="last"),
                ledger.plain(Column(name, "parameter", "", "update_ratio"), mode="last"),
            )
            ledger.site(
                Site(
                    name,
                    "parameter",
                    type=type(parameter).__name__,
                    order=order,
                    shape=tuple(parameter.shape),
                    numel=parameter.numel(),
                    note="" if id(parameter) in held else "not in the optimizer",
                )
            )

    def gradients(self) -> None:
        """Read the gradients now in `.grad`."""
        found = [(n, p.grad) for n, p in self._named.items() if p.grad is not None]
        values = norms([g.detach() for _, g in found])
        for (name, _), value in zip(found, values, strict=True):
            self._ledger.add(self._slots[name][0], value)

    def before_update(self, recorded: int) -> None:
        """Copy the weights whose turn it is. `recorded` counts recorded steps from 0."""
        whose = self._groups[recorded % self._turns]
        if recorded == 0 and sum(p.numel() for p in self._named.values()) < FIRST_STEP_ELEMENTS:
            whose = list(self._named)
        chosen = [
            (n, self._named[n])
            for n in whose
            if self._named[n].grad is not None and type(self._named[n].data) is Tensor
        ]
        self._copies = []
        for key, members in _by_kind(chosen).items():
            views = self._views(key, [p for _, p in members])
            torch._foreach_copy_(views, [p.detach() for _, p in members])
            self._copies += [(n, p, v) for (n, p), v in zip(members, views, strict=True)]

    def after_update(self) -> None:
        """Compare the weights with their copies."""
        copies, self._copies = self._copies, []
        if not copies:
            return
        weights = norms([v for _, _, v in copies])
        for members in _by_kind([(n, p) for n, p, _ in copies]).values():
            names = {n for n, _ in members}
            torch._foreach_sub_(
                [v for n, _, v in copies if n in names], [p.detach() for _, p in members]
            )
        updates = norms([v for _, _, v in copies])
        for (name, _, _), weight, update in zip(copies, weights, updates, strict=True):
            _, weight_slot, ratio_slot = self._slots[name]
            self._ledger.add(weight_slot, weight)
            self._ledger.add(ratio_slot, _ratio(update, weight))

    def free(self) -> None:
        """Let go of the copies."""
        self._copies, self._scratch = [], {}

    def _views(
        self, key: tuple[torch.device, torch.dtype], parameters: list[nn.Parameter]
    ) -> list[Tensor]:
        """Places for copies in one buffer that is kept: new memory costs more than copying."""
        sizes = [p.numel() for p in parameters]
        buffer = self._scratch.get(key)
        if buffer is None or buffer.numel() < sum(sizes):
            buffer = self._scratch[key] = torch.empty(sum(sizes), device=key[0], dtype=key[1])
        pieces = buffer[: sum(sizes)].split(sizes)
        return [v.view(p.shape) for v, p in zip(pieces, parameters, strict=True)]


def _ratio(update: Any, weight: Any) -> Any:
    if isinstance(weight, float):
        if weight == 0:
            return float("inf") if update else 0.0
        return update / weight
    return torch.where(update == 0, torch.zeros_like(update), update / weight)


def _by_kind(
    chosen: list[tuple[str, nn.Parameter]],
) -> dict[tuple[torch.device, torch.dtype], list[tuple[str, nn.Parameter]]]:
    kinds: dict[tuple[torch.device, torch.dtype], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in chosen:
        kinds.setdefault((parameter.device, parameter.dtype), []).append((name, parameter))
    return kinds


def _balanced(named: dict[str, nn.Parameter], turns: int) -> list[list[str]]:
    """Parameters in `turns` groups of about equal numbers of elements, largest first."""
    groups: list[list[str]] = [[] for _ in range(turns)]
    loads = [0] * turns
    for name, parameter in sorted(named.items(), key=lambda item: -item[1].numel()):
        lightest = loads.index(min(loads))
        groups[lightest].append(name)
        loads[lightest] += parameter.numel()
    return groups
