"""Gradients of parameters as the optimizer is about to use them, and what it made of them."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.capture.ledger import Ledger
from gradscope.capture.shards import Shard, local, local_gradient, shard_of, spread
from gradscope.quantities.norm import norms
from gradscope.run import Column, Site

# At the first recorded step all updates are measured at once, unless the copy that this
# takes would be larger than this many elements (128 MiB in float32).
FIRST_STEP_ELEMENTS = 1 << 25
NOT_HELD = "not in the optimizer"  # Site.note


@dataclass(frozen=True)
class Reading:
    """A parameter and the slots for what is read of it.

    Attributes:
        update: of ‖Δw‖/‖w‖; of a parameter in `shards` parts, of this part's ‖Δw‖. All that is
            read of such a parameter is this part's, and is put together with the other
            processes' when their files are loaded.
    """

    parameter: nn.Parameter
    gradient: int
    weight: int
    update: int
    nonfinite: int
    shards: int

    @property
    def share(self) -> int:
        """Elements of a part; the same number on all processes."""
        return self.parameter.numel() // self.shards


class Parameters:
    """Measures every trainable parameter of a model at an optimizer step.

    A frozen parameter joins them at the first recorded step at which it is trainable.

    Gradient norms are read at every recorded step. An update needs a copy of the weights,
    so that parameters take turns: each is measured once in `turns` recorded steps, in
    groups of about equal size, and all of them at the first.
    """

    def __init__(
        self, ledger: Ledger, named: dict[str, nn.Parameter], held: set[int], turns: int
    ) -> None:
        self._ledger = ledger
        self._readings: list[Reading] = []
        self._turns = turns
        self._turn_batches: dict[int, list[_Batch]] = {}
        self._copied: list[_Batch] = []
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._frozen = {n: (order, p) for order, (n, p) in enumerate(named.items())}
        self._held, self._named = held, named
        self._groups: list[list[Reading]] = []
        self._thaw()

    def adopt(self, name: str, parameter: nn.Parameter) -> None:
        """Measure one more, which the model uses but does not list."""
        self._frozen[name] = (len(self._named), parameter)
        self._named[name] = parameter
        self._thaw()

    def gradients(self, scale: Any = None, of: Container[int] | None = None) -> None:
        """Read the gradients now in `.grad`, which the optimizer will divide by `scale`.

        Args:
            of: ids of the parameters that are meant; None means all.
        """
        if any(p.requires_grad for _, p in self._frozen.values()):
            self._thaw()
        meant = [r for r in self._readings if of is None or id(r.parameter) in of]
        found = [(r, g) for r in meant if (g := local_gradient(r.parameter)) is not None]
        sizes = norms([g for _, g in found])
        self._ledger.slots.extend([r.gradient for r, _ in found])
        self._ledger.values.extend(sizes if scale is None else [s / scale for s in sizes])
        for (reading, g), size in zip(found, sizes, strict=True):
            if isinstance(size, float) and not math.isfinite(size):
                g = g.coalesce().values() if g.is_sparse else g
                count = g.numel() - int(torch.isfinite(g).sum())
                self._ledger.add(reading.nonfinite, float(count))

    def held_now(self, held: set[int]) -> None:
        """Parameters with these ids are the optimizers' from now on."""
        self._held = held
        for site in list(self._ledger.sites.values()):
            if site.kind == "parameter":
                note = "" if id(self._named[site.name]) in held else NOT_HELD
                if note != site.note:
                    self._ledger.site_again(replace(site, note=note))

    def _thaw(self) -> None:
        """Take in the parameters that are trainable now."""
        ledger = self._ledger
        for name, (order, parameter) in list(self._frozen.items()):
            if not parameter.requires_grad:
                continue
            del self._frozen[name]
            shard = shard_of(parameter)
            if shard is None:
                continue
            self._readings.append(_reading(ledger, name, parameter, shard))
            ledger.site(
                Site(
                    name,
                    "parameter",
                    type="Parameter" if spread(parameter) else type(parameter).__name__,
                    order=order,
                    shape=tuple(parameter.shape),
                    numel=parameter.numel(),
                    note="" if id(parameter) in self._held else NOT_HELD,
                    shards=shard.of,
                    shard=shard.number,
                )
            )
        self._groups = _balanced(self._readings, self._turns)
        self._turn_batches = {}

    def before_update(
        self, recorded: int, of: Container[int] | None = None, gradients_follow: bool = False
    ) -> None:
        """Copy the weights whose turn it is.

        Args:
            recorded: counts recorded steps from 0.
            of: ids of the parameters that are meant; None means all.
            gradients_follow: the optimizer's closure will make them.
        """
        self._copied = [
            batch
            for whole in self._batches(recorded)
            if (batch := whole.of(of, gradients_follow)) is not None
        ]
        for batch in self._copied:
            torch._foreach_copy_(batch.copies, batch.weights())

    def after_update(self) -> None:
        """Compare the weights with their copies."""
        copied, self._copied = self._copied, []
        for batch in filter(None, (c.of(None) for c in copied)):
            weights = norms(batch.copies)
            torch._foreach_sub_(batch.copies, batch.weights())
            updates = norms(batch.copies)
            for reading, update, weight in zip(batch.readings, updates, weights, strict=True):
                self._ledger.add(reading.weight, weight)
                split = reading.shards > 1
                self._ledger.add(reading.update, update if split else _ratio(update, weight))

    def free(self) -> None:
        """Let go of the parameters and their copies."""
        self._copied, self._turn_batches, self._scratch = [], {}, {}
        self._readings, self._groups, self._frozen, self._named = [], [], {}, {}

    def _batches(self, recorded: int) -> list[_Batch]:
        turn = recorded % self._turns
        if recorded == 0 and sum(r.share for r in self._readings) < FIRST_STEP_ELEMENTS:
            return self._make_batches(self._readings)
        if turn not in self._turn_batches:
            self._turn_batches[turn] = self._make_batches(self._groups[turn])
        return self._turn_batches[turn]

    def _make_batches(self, readings: list[Reading]) -> list[_Batch]:
        """Parameters of one device and dtype together, with places for their copies.

        The places are views into one buffer that is kept and shared by all turns: new memory
        costs more than copying.
        """
        kinds: dict[tuple[torch.device, torch.dtype], list[Reading]] = {}
        for reading in readings:
            here = local(reading.parameter.data)
            if type(here) is Tensor and here.layout is torch.strided:
                kinds.setdefault((here.device, here.dtype), []).append(reading)
        batches = []
        for key, members in kinds.items():
            shapes = [local(r.parameter).shape for r in members]
            sizes = [shape.numel() for shape in shapes]
            buffer = self._scratch.get(key)
            if buffer is None or buffer.numel() < sum(sizes):
                buffer = torch.empty(sum(sizes), device=key[0], dtype=key[1])
                if len(members) < len(self._readings) or self._turns == 1:
                    self._scratch[key] = buffer  # that of the first step is let go
            pieces = buffer[: sum(sizes)].split(sizes)
            copies = [v.view(shape) for v, shape in zip(pieces, shapes, strict=True)]
            batches.append(_Batch(members, copies))
        return batches


@dataclass
class _Batch:
    """Parameters of one device and dtype, and where their weights are copied to."""

    readings: list[Reading]
    copies: list[Tensor]

    def weights(self) -> list[Tensor]:
        return [local(r.parameter) for r in self.readings]

    def of(self, ids: Container[int] | None, with_or_without: bool = False) -> _Batch | None:
        """Those of parameters with these ids that have a gradient."""
        has = [
            (ids is None or id(r.parameter) in ids)
            and (with_or_without or local_gradient(r.parameter) is not None)
            for r in self.readings
        ]
        if all(has):
            return self
        if not any(has):
            return None
        return _Batch(list(compress(self.readings, has)), list(compress(self.copies, has)))


def _reading(ledger: Ledger, name: str, parameter: nn.Parameter, shard: Shard) -> Reading:
    split = shard.of > 1

    def slot(metric: str, whole: str, mode: str = "rss") -> int:
        return ledger.plain(Column(name, "parameter", "", metric if split else whole), mode=mode)

    return Reading(
        parameter,
        gradient=slot("shard_grad_norm", "grad_norm"),
        weight=slot("shard_weight_norm", "weight_norm", mode="last"),
        update=slot("shard_update_norm", "update_ratio", mode="last"),
        nonfinite=slot("shard_nonfinite", "nonfinite", mode="sum"),
        shards=shard.of,
    )


def _ratio(update: Any, weight: Any) -> Any:
    if isinstance(weight, float):
        if weight == 0:
            return float("inf") if update else 0.0
        return update / weight
    return torch.where(update == 0, torch.zeros_like(update), update / weight)


def _balanced(readings: list[Reading], turns: int) -> list[list[Reading]]:
    """Parameters in `turns` groups of about equal numbers of elements, largest first."""
    groups: list[list[Reading]] = [[] for _ in range(turns)]
    loads = [0] * turns
    for reading in sorted(readings, key=lambda r: -r.parameter.numel()):
        lightest = loads.index(min(loads))
        groups[lightest].append(reading)
        loads[lightest] += reading.parameter.numel()
    return groups
