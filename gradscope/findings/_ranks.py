"""Which of a run's processes it was."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradscope.run import Column, Run
from gradscope.scalars import is_training_loss


def nonfinite_ranks(run: Run, step: int) -> list[int]:
    """Ranks that had a NaN or an infinity at a step, ascending.

    By their own losses and the gradients at their modules' outputs. Those of parameters are the
    same on all processes, and count only where nothing else does.
    """
    found: dict[bool, set[int]] = {True: set(), False: set()}
    for block in run.blocks:
        for row in np.flatnonzero(block.steps == step):
            for j in np.flatnonzero(block.present[row]):
                column = run.columns[block.columns[j]]
                own = column.kind != "parameter"
                if _tells(column) and _bad(column, block.values[row, j]):
                    found[own].add(column.rank)
    return sorted(found[True] or found[False])


def on_ranks(sentence: str, ranks: Sequence[int], run: Run) -> str:
    """The sentence with the processes before it, where a run has several."""
    if len(run.ranks) < 2 or not ranks:
        return sentence
    who = f"all {len(ranks)} ranks" if list(ranks) == run.ranks else listed_ranks(ranks)
    return f"On {who}: {sentence}"


def listed_ranks(ranks: Sequence[int]) -> str:
    """ "rank 1", "ranks 1 and 3", or "ranks 0, 1, 2 … (12)"."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) <= 3:
        return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"
    return f"ranks {', '.join(map(str, ranks[:3]))} … ({len(ranks)})"


def _tells(column: Column) -> bool:
    if column.kind == "scalar":
        return is_training_loss(column.site)
    return column.kind in ("module", "parameter") and column.metric in ("grad_norm", "nonfinite")


def _bad(column: Column, value: float) -> bool:
    return value != 0 if column.metric == "nonfinite" else not np.isfinite(value)
