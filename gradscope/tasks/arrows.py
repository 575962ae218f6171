"""Arrows: follow the arrows over a torus, as many hops as asked, and say where you are.

Index legend: n scenes, N = size² cells, numbered row by row, F features of a cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from gradscope.errors import GradscopeError

Answer = Literal["cell", "colour"]
Split = Literal["train", "validation"]
ANSWERS: tuple[str, ...] = get_args(Answer)
SPLITS: tuple[str, ...] = get_args(Split)
DIRECTIONS = ((-1, 0), (0, 1), (1, 0), (0, -1))  # (rows, columns): up, right, down, left


class Scenes(NamedTuple):
    """Scenes with one question each. All int64.

    Attributes:
        directions: (n, N), the arrow of each cell, an index into `DIRECTIONS`.
        colours: (n, N), the colour of each cell.
        start: (n,), the marked cell.
        hops: (n,), the question: arrows to follow, from 1.
        answer: (n,), the cell at which they end, or that cell's colour.
    """

    directions: Tensor
    colours: Tensor
    start: Tensor
    hops: Tensor
    answer: Tensor

    def pick(self, index: Tensor | slice) -> Scenes:
        """Some of the scenes."""
        return Scenes(*(part[index] for part in self))

    def to(self, device: torch.device | str) -> Scenes:
        return Scenes(*(part.to(device) for part in self))


@dataclass(frozen=True)
class Arrows:
    """The task. Every hop of a question needs a look that depends on the one before.

    A scene is a size × size torus whose cells hold an arrow in one of four directions,
    and one marked cell; all are drawn uniformly. The answer is the cell that is reached from
    the mark after the asked number of hops, or the colour of that cell. Training and
    validation scenes never share a grid of arrows, whatever their seeds: the directions of a
    grid add up to a multiple of 4 in validation only. As any N − 1 arrows of a grid are still
    independent and uniform, that gives nothing away.

    Attributes:
        size: cells along each side, at least 2.
        hops: the longest walk asked for; questions are 1 … hops, equally often.
        answer: "cell" (as many answers as cells) or "colour".
        colours: number of colours, where the answer is one.
    """

    size: int = 4
    hops: int = 4
    answer: Answer = "cell"
    colours: int = 4

    def __post_init__(self) -> None:
        if self.answer not in ANSWERS:
            raise GradscopeError(f"unknown answer {self.answer!r}; one of {', '.join(ANSWERS)}")
        for name, least in (("size", 2), ("hops", 1), ("colours", 2)):
            if getattr(self, name) < least:
                raise GradscopeError(f"{name} must be at least {least}, not {getattr(self, name)}")

    @property
    def cells(self) -> int:
        """N, positions of a scene."""
        return self.size**2

    @property
    def features(self) -> int:
        """F, numbers that describe a cell: direction, mark, place, and colour if asked for."""
        return len(DIRECTIONS) + 1 + self.cells + (self.colours if self.answer == "colour" else 0)

    @property
    def questions(self) -> int:
        return self.hops

    @property
    def answers(self) -> int:
        return self.cells if self.answer == "cell" else self.colours

    def scenes(self, count: int, seed: int, split: Split = "train") -> Scenes:
        """Draw scenes, the same for the same arguments on any machine and device."""
        if split not in SPLITS:
            raise GradscopeError(f"unknown split {split!r}; one of {', '.join(SPLITS)}")
        random = torch.Generator().manual_seed(seed)

        def draw(below: int, *shape: int) -> Tensor:
            return torch.randint(below, shape, generator=random)

        directions = draw(4, count, self.cells)
        residue = 1 + draw(3, count) if split == "train" else torch.zeros(count, dtype=torch.long)
        directions[:, 0] = (residue - directions[:, 1:].sum(dim=1)) % 4
        colours = draw(self.colours, count, self.cells)
        start = draw(self.cells, count)
        hops = 1 + draw(self.hops, count)
        end = self._walk(directions, start, hops)
        if self.answer == "colour":
            end = colours.gather(1, end.unsqueeze(1)).squeeze(1)
        return Scenes(directions, colours, start, hops, end)

    def inputs(self, scenes: Scenes) -> tuple[Tensor, Tensor]:
        """What a model gets: cells (n, N, F) float32, and questions (n,) int64 from 0.

        A cell's features are one-hot: direction (4), mark (1), place (N), and colour.
        """
        count, device = len(scenes.start), scenes.start.device
        place = torch.arange(self.cells, device=device)
        parts = [
            _one_hot(scenes.directions, len(DIRECTIONS)),
            (scenes.start.unsqueeze(1) == place).unsqueeze(2),
            _one_hot(place, self.cells).expand(count, -1, -1),
        ]
        if self.answer == "colour":
            parts.append(_one_hot(scenes.colours, self.colours))
        return torch.cat(parts, dim=2).float(), scenes.hops - 1

    def accuracy_by_hops(self, predicted: Tensor, scenes: Scenes) -> Tensor:
        """Share of right answers for each number of hops, float32 (hops,); NaN where unasked."""
        right = (predicted == scenes.answer).float()
        asked = _one_hot(scenes.hops - 1, self.hops).float()  # (n, hops)
        return right @ asked / asked.sum(dim=0)

    def _walk(self, directions: Tensor, start: Tensor, hops: Tensor) -> Tensor:
        """Where `hops` arrows from `start` lead, (n,)."""
        cell = torch.arange(self.cells)
        row, column = cell // self.size, cell % self.size
        neighbour = torch.stack(
            [
                (row + down) % self.size * self.size + (column + right) % self.size
                for down, right in DIRECTIONS
            ],
            dim=1,
        )  # (N, 4)
        here = start
        for hop in range(self.hops):
            arrow = directions.gather(1, here.unsqueeze(1)).squeeze(1)
            here = torch.where(hop < hops, neighbour[here, arrow], here)
        return here


def _one_hot(index: Tensor, size: int) -> Tensor:
    """bool, one dimension more. (`functional.one_hot` looks at the values first: slower.)"""
    return index.unsqueeze(-1) == torch.arange(size, device=index.device)
