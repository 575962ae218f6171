"""`Cut`: the narrowest place between two places of a model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Cut:
    """A minimum vertex cut: the fewest numbers that all paths from source to sink pass through.

    A width is a count of numbers (tensor elements) per sample. It says how much can pass at
    most, not how much does.

    Attributes:
        source: where the information comes from: a module whose output it is, "(input)", or a
            softmax site (its latent: what its logits are made from).
        sink: where it goes to, named likewise.
        kind: "softmax" between two consecutive softmax sites, else "module".
        width: numbers per sample in the narrowest place; source and sink are places too, so
            it is at most `source_width` and `sink_width`. 0 where no path leads from source to
            sink (or only one that autograd doesn't see, through `detach()` or `no_grad`).
        tensors: names of the tensors that together are the narrowest place. Of several that
            are equally narrow: the fewest tensors, then those that a module returned, then
            those nearest the source.
        shapes: their shapes, batch included.
        source_width: numbers per sample in the source itself.
        sink_width: numbers per sample in the sink itself.
        attended: of a cut between softmaxes, how many numbers per sample the one of them attends
            over that attends over fewer: its values, v in p·v. None where they were not found,
            and between modules.
        separate: a part of the output depends on the source and not, also, on the sink. So it is
            where every step of a decoder gives an answer; in a stack, all goes on through the
            last layer. Looked at where a cut between softmaxes is narrow, else False.
    """

    source: str
    sink: str
    kind: str
    width: float
    tensors: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    source_width: float
    sink_width: float
    separate: bool = False
    attended: float | None = None

    @property
    def ratio(self) -> float:
        """width / source_width: 1 where everything in the source can reach the sink."""
        return self.width / self.source_width if self.source_width else math.nan

    def to_dict(self) -> dict[str, object]:
        """Lists, strings and numbers only; with the ratio."""
        shapes = [list(shape) for shape in self.shapes]
        return {
            **asdict(self),
            "tensors": list(self.tensors),
            "shapes": shapes,
            "ratio": self.ratio,
        }

    def __str__(self) -> str:
        shown = self.tensors[:4]
        via = " + ".join(shown) or "nothing"
        if len(shown) < len(self.tensors):
            via += f" + {len(self.tensors) - len(shown)} more"
        return (
            f"{self.source} → {self.sink}: {self.width:g} of {self.source_width:g} numbers "
            f"per sample ({self.ratio:.3g}), through {via}"
        )
