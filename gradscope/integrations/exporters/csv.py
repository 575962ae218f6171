"""Rows of `run.frame()` as comma-separated values.

Numbers are written with as many digits as tell them apart; NaN is `nan`, infinities are `inf` and
`-inf`, and an empty field is an empty string (a column without an edge). pandas reads it back
exactly, before version 3.1 with `float_precision="round_trip"` too:

    pd.read_csv(path, keep_default_na=False, na_values={"value": ["nan"]})
"""

from __future__ import annotations

from pathlib import Path

from gradscope.run import Run


def write(run: Run, target: Path) -> None:
    """Make the file `target`."""
    run.frame().to_csv(target, index=False, na_rep="nan", encoding="utf-8", lineterminator="\n")
