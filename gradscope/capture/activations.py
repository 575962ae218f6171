"""Activation functions: elements and units that let no gradient through.

Measured in turns, as updates are: reading an activation costs more than a norm does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradscope.capture.ledger import Ledger
from gradscope.capture.taps import Gradients
from gradscope.quantities.activation import SLOPES, Slope, openness
from gradscope.run import Column

SAMPLE_ELEMENTS = 1 << 13  # of one activation; at least MIN_ROWS rows of all its units
MIN_ROWS = 32
WINDOW = 8  # measurements for which a unit must have been flat to count as dead
CHANNELS_FIRST = ("Convolution", "MkldnnConvolution", "NativeBatchNorm", "CudnnBatchNorm")
THROUGH = ("Add", "NativeBatchNorm", "CudnnBatchNorm", "NativeGroupNorm", "Mul", "MaxPool")


class Units:
    """When each unit of an activation last let gradient through."""

    def __init__(self) -> None:
        self._measured = 0
        self._last: Tensor | None = None  # (C,) number of the measurement, -1 for never

    def dead(self, open_now: Tensor) -> Tensor:
        """Share of units that were flat in the whole window. open_now: bool (C,) → ()."""
        if self._last is None or self._last.shape != open_now.shape:
            self._measured = 0
            self._last = torch.full_like(open_now, -1, dtype=torch.long)
        self._last.masked_fill_(open_now, self._measured)
        self._measured += 1
        return (self._last < max(self._measured - WINDOW, 0)).double().mean()


class Activations:
    """Knows whose turn it is, and the units of all activations.

    Attributes:
        recorded: number of recorded steps so far.
    """

    def __init__(self, ledger: Ledger, turns: int) -> None:
        self.ledger, self._turns = ledger, turns
        self.recorded = 0
        self._units: dict[str, Units] = {}
        self._places: dict[str, int] = {}

    def due(self, site: str) -> bool:
        """All at the first recorded step, then each once in `turns` of them."""
        place = self._places.setdefault(site, len(self._places))
        return self.recorded == 0 or (self.recorded + place) % self._turns == 0

    def units(self, site: str) -> Units:
        return self._units.setdefault(site, Units())

    def tap(self, site: str, node: Any) -> ActivationTap:
        return ActivationTap(self, site, SLOPES[node.name()], unit_dimension(node))


class ActivationTap:
    """Measures one activation when the backward pass crosses it."""

    part = "activations"

    def __init__(
        self, activations: Activations, site: str, slope: Slope, unit_dimension: int
    ) -> None:
        self._activations, self._site, self._slope = activations, site, slope
        self._units_at = unit_dimension
        ledger = activations.ledger
        self._flat_slot = ledger.plain(
            Column(site, "activation", "", "saturated_fraction"), mode="mean"
        )
        self._dead_slot = ledger.plain(Column(site, "activation", "", "dead_fraction"), mode="last")

    def saved(self, node: Any) -> list[Any] | None:
        """The node's saved tensor, if it is this activation's turn and no hook guards it."""
        if not self._activations.due(self._site):
            return None
        raw = getattr(node, f"_raw_saved_{self._slope.saved}")
        if raw.unpack_hook is not None:  # under checkpointing reading it would raise
            return None
        return [getattr(node, f"_saved_{self._slope.saved}").detach(), _Constants(node)]

    def __call__(self, saved: list[Any], grad_inputs: Gradients, grad_outputs: Gradients) -> None:
        if not saved:  # a second pass over a graph that was kept
            return
        tensor, constants = saved
        if not tensor.numel():  # an expert to which nothing was sent
            return
        rows = sampled_units(tensor, self._units_at)
        found = openness(rows, self._slope, constants)
        dead = self._activations.units(self._site).dead(found.open_units)
        ledger = self._activations.ledger
        for slot, value in ((self._flat_slot, found.saturated), (self._dead_slot, dead)):
            told = torch.where(found.lost, torch.nan, value)
            ledger.add(slot, told.item() if told.is_cpu else told)


class _Constants:
    """The numbers that a node saved, without holding the node."""

    def __init__(self, node: Any) -> None:
        for name in ("_saved_min_val", "_saved_max_val", "_saved_threshold"):
            if hasattr(node, name):
                setattr(self, name, getattr(node, name))


def sampled_units(x: Tensor, unit_dimension: int) -> Tensor:
    """Rows (R, C) of an activation: samples and positions at even distances, all units.

    Distances are odd, so that no power of two that is in the data's layout meets them.
    """
    if unit_dimension == -1 or x.dim() <= 2:
        rows = x.reshape(-1, x.shape[-1])
        return rows[:: _distance(rows.shape[0], _wanted(rows.shape[1]))]
    N, C = x.shape[:2]
    positions = x.flatten(2)  # (N, C, S)
    wanted = _wanted(C)
    every_sample = _distance(N, wanted)
    every_position = _distance(positions.shape[2], max(1, wanted // N))
    some = positions[::every_sample, :, ::every_position]
    return some.movedim(1, -1).reshape(-1, C)


def _wanted(units: int) -> int:
    return max(MIN_ROWS, SAMPLE_ELEMENTS // max(units, 1))


def _distance(there: int, wanted: int) -> int:
    return 1 if there <= wanted else there // wanted | 1


def unit_dimension(node: Any) -> int:
    """1 behind a convolution, -1 otherwise. Sees through sums, products and normalisation."""
    for _ in range(4):
        name = node.name()
        if name.startswith(CHANNELS_FIRST):
            return 1
        if node.next_functions and (node.name() in SLOPES or name.startswith(THROUGH)):
            node = node.next_functions[0][0]
            if node is None:
                break
        else:
            break
    return -1
