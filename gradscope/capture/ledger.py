"""Samples of a step → columns of a run.

Hooks add raw samples to numbered *slots* (an append each, no arithmetic). What they mean is
worked out at flush time, for all steps since the last flush at once: samples of one slot
in one step (the micro-batches of an accumulated step) are combined, and *emitters* turn
slots into the columns that a run shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from gradscope.run import Block, Column, Site

Samples = list[Any]  # float or 0-d tensor
SCALE = 0  # the slot of the loss's scale


class Read(dict[int, np.ndarray]):
    """slot → (S,) combined values of the steps at hand; `counts`: samples a step."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[int, int] = {}


class Emitter(Protocol):
    """Turns slots into columns."""

    def emit(self, read: Read) -> Iterable[tuple[Column, np.ndarray]]:
        """(column, (S,) values; `absent()` where there is nothing to tell)."""
        ...


@dataclass(frozen=True)
class Plain:
    """A slot that is a column as it stands."""

    slot: int
    column: Column

    def emit(self, read: Read) -> Iterable[tuple[Column, np.ndarray]]:
        if self.slot in read:
            yield self.column, read[self.slot]


E = TypeVar("E", bound=Emitter)


class Ledger:
    """Slots, emitters, and the samples since the last flush.

    Args:
        rank: of this process; its columns carry it.
    """

    def __init__(self, rank: int = 0) -> None:
        self._rank = rank
        self._modes: list[str] = ["last"]  # SCALE's
        self._powers: list[int] = [0]
        self._slots: dict[tuple[str, ...], int] = {}
        self._emitters: list[Emitter] = []
        self._emitter_keys: dict[object, Any] = {}
        self._emitters_of: dict[int, list[int]] = {}
        self.sites: dict[tuple[str, str], Site] = {}
        self._new_sites: list[Site] = []
        self.columns: dict[Column, int] = {}
        self._new_columns: list[Column] = []
        self._pending: list[tuple[int, list[int], Samples]] = []
        self._scalars: list[tuple[int, str, Any]] = []
        self._once: list[tuple[int, Column, float]] = []
        self.slots: list[int] = []  # of the step being recorded: hooks append here …
        self.values: Samples = []  # … and here
        self.scale: Any = None  # of the loss in this step, by a gradient scaler
        self.waiting = 0  # samples held since the last drain

    # -- while planning ----------------------------------------------------------------

    def slot(self, *key: str, mode: str = "rss", power: int = 0) -> int:
        """Number of the slot with this key.

        Args:
            mode: how samples of one step combine: "rss" (root-sum-square), "sum", "mean"
                or "last".
            power: with which a scale of the loss is in the samples: 1 for a norm of
                gradients of the backward pass, 2 for an inner product of two.
        """
        found = self._slots.get(key)
        if found is None:
            found = self._slots[key] = len(self._modes)
            self._modes.append(mode)
            self._powers.append(power)
        return found

    def emitter(self, emitter: Emitter, slots: Iterable[int]) -> None:
        """Have `emitter` run whenever any of `slots` has samples."""
        number = len(self._emitters)
        self._emitters.append(emitter)
        for slot in slots:
            self._emitters_of.setdefault(slot, []).append(number)

    def emitter_once(self, key: object, emitter: E, slots: Iterable[int]) -> E:
        """`emitter`, unless one with this key is there already (from another plan): that."""
        if key not in self._emitter_keys:
            self._emitter_keys[key] = emitter
            self.emitter(emitter, slots)
        return self._emitter_keys[key]

    def plain(self, column: Column, mode: str = "rss", power: int = 0) -> int:
        """A slot that is a column as it stands."""
        slot = self.slot("plain", *map(str, column), mode=mode, power=power)
        self.emitter_once(column, Plain(slot, column), [slot])
        return slot

    def site(self, site: Site) -> None:
        """Declare a site, once."""
        key = (site.kind, site.name)
        if key not in self.sites:
            self.sites[key] = site
            self._new_sites.append(site)

    def site_again(self, site: Site) -> None:
        """Declare a site anew: what is known of it has changed."""
        self.sites[(site.kind, site.name)] = site
        self._new_sites.append(site)

    # -- while recording ---------------------------------------------------------------

    def add(self, slot: int, value: Any) -> None:
        self.slots.append(slot)
        self.values.append(value)

    def scalar(self, step: int, name: str, value: Any) -> None:
        self._scalars.append((step, name, value))
        self.waiting += 1

    def once(self, step: int, column: Column, value: float) -> None:
        """A number that is no sample of a step's backward pass."""
        self._once.append((step, column, value))
        self.waiting += 1

    def end_step(self, step: int) -> None:
        """Close the step. Samples on an accelerator leave it in one copy, begun here."""
        if self.slots:
            if self.scale is not None:
                self.add(SCALE, self.scale)
            self._pending.append((step, self.slots, _start_copy(self.values)))
            self.waiting += len(self.slots)
        self.forget_step()

    def forget_step(self) -> None:
        """Drop the samples of a step that came to nothing."""
        self.slots, self.values, self.scale = [], [], None

    # -- flush -------------------------------------------------------------------------

    def drain(self) -> tuple[list[Site], list[Column], list[Block]]:
        """New sites, new columns and the numbers since the last call."""
        blocks = [
            b
            for b in (self._drain_steps(), self._drain_scalars(), self._drain_once())
            if b is not None
        ]
        sites, self._new_sites = self._new_sites, []
        columns, self._new_columns = self._new_columns, []
        self.waiting = 0
        return sites, columns, blocks

    def _drain_steps(self) -> Block | None:
        pending, self._pending = self._pending, []
        if not pending:
            return None
        groups: dict[tuple[int, ...], list[tuple[int, Samples]]] = {}
        for step, slots, values in pending:
            groups.setdefault(tuple(slots), []).append((step, values))
        pieces: list[tuple[np.ndarray, int, np.ndarray]] = []  # steps, column, values
        for pattern, members in groups.items():
            steps = np.array([step for step, _ in members], dtype=np.int64)
            matrix = np.array([_finish_copy(v) for _, v in members], dtype=np.float64)
            read = self._combine(pattern, matrix)
            for number in sorted({e for s in read for e in self._emitters_of.get(s, ())}):
                for column, series in self._emitters[number].emit(read):
                    pieces.append((steps, self._column(column), series))
        return _block(pieces)

    def _combine(self, pattern: tuple[int, ...], matrix: np.ndarray) -> Read:
        """Matrix (S, samples) → one series a slot."""
        where: dict[int, list[int]] = {}
        for position, slot in enumerate(pattern):
            where.setdefault(slot, []).append(position)
        read = Read()
        for slot, positions in where.items():
            read.counts[slot] = len(positions)
            samples = matrix[:, positions]
            if len(positions) == 1:
                read[slot] = samples[:, 0]
            elif self._modes[slot] == "rss":
                read[slot] = np.hypot.reduce(samples, axis=1)
            elif self._modes[slot] == "sum":
                read[slot] = samples.sum(axis=1)
            elif self._modes[slot] == "mean":
                read[slot] = samples.mean(axis=1)
            else:
                read[slot] = samples[:, -1]
        if SCALE in read:
            for slot in where:
                if self._powers[slot]:
                    read[slot] = read[slot] / read[SCALE] ** self._powers[slot]
        return read

    def _drain_scalars(self) -> Block | None:
        scalars, self._scalars = self._scalars, []
        if not scalars:
            return None
        values = np.array(_finish_copy(_start_copy([v for _, _, v in scalars])))
        for _, name, _ in scalars:
            self.site(Site(name, "scalar"))
        pieces = [
            (np.array([step]), self._column(Column(name, "scalar", "", "value")), values[i : i + 1])
            for i, (step, name, _) in enumerate(scalars)
        ]
        return _block(pieces)

    def _drain_once(self) -> Block | None:
        once, self._once = self._once, []
        return _block(
            [(np.array([step]), self._column(c), np.array([value])) for step, c, value in once]
        )

    def _column(self, column: Column) -> int:
        found = self.columns.get(column)
        if found is None:
            found = self.columns[column] = len(self.columns)
            self._new_columns.append(column._replace(rank=self._rank))
        return found


ABSENT = np.float64(np.nan).view(np.int64) ^ 1  # a NaN that no computation makes


def absent(length: int) -> np.ndarray:
    """(S,) values that stand for "nothing to tell" (and are no NaN that was measured)."""
    return np.full(length, ABSENT, dtype=np.int64).view(np.float64)


def _block(pieces: list[tuple[np.ndarray, int, np.ndarray]]) -> Block | None:
    if not pieces:
        return None
    steps = np.unique(np.concatenate([s for s, _, _ in pieces]))
    columns = np.unique(np.array([c for _, c, _ in pieces], dtype=np.int64))
    values = np.full((len(steps), len(columns)), np.nan)
    present = np.zeros(values.shape, dtype=bool)
    for at, column, series in pieces:
        rows = np.searchsorted(steps, at)
        where = np.searchsorted(columns, column)
        told = np.ascontiguousarray(series, dtype=np.float64).view(np.int64) != ABSENT
        values[rows[told], where] = series[told]
        present[rows[told], where] = True
    return Block(steps, columns, values, present)


def _start_copy(values: Samples) -> Samples:
    """Replace each accelerator's tensors by one stacked tensor: one copy a step."""
    positions: dict[torch.device, list[int]] = {}
    for i, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            positions.setdefault(value.device, []).append(i)
    if not positions:
        return values
    stacked = [
        (where, torch.stack([values[i].detach().reshape(()).double() for i in where]))
        for where in positions.values()
    ]
    return [values, stacked]


def _finish_copy(values: Samples) -> list[float]:
    if len(values) == 2 and isinstance(values[0], list):
        plain, stacked = values
        plain = list(plain)
        for where, tensor in stacked:
            for i, number in zip(where, tensor.tolist(), strict=True):
                plain[i] = number
        return plain
    return values
