"""A run in another program's format.

Every exporter writes all of `run.frame()`, one file a format: `write(run, target)` makes the
file or directory `target`, which does not exist yet, in float64 throughout.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from gradscope.errors import GradscopeError
from gradscope.run import Run


class Format(NamedTuple):
    """Where a format is written: the module here, and what the run's name gets for an ending."""

    module: str
    ending: str


FORMATS = {
    "csv": Format("csv", ".csv"),
    "parquet": Format("parquet", ".parquet"),
    "tensorboard": Format("tensorboard", "-tensorboard"),
    "wandb": Format("wandb", "-wandb"),
}


def export(run: Run, to: str, out: str | os.PathLike[str] | None = None) -> Path:
    """Write a run in another format; return the path of what was written.

    It is made beside `out` and moved there when it is whole.

    Args:
        run: what `gradscope.load` returns.
        to: one of `FORMATS`: "csv" and "parquet" hold the rows of `run.frame()`;
            "tensorboard" (event files) and "wandb" (an offline run, for `wandb sync`) hold
            a scalar for every column, named by `tags.tag`.
        out: file (csv, parquet) or directory (tensorboard, wandb) to make; by default the run
            file's name with another ending, beside it.

    Raises:
        GradscopeError: if the format is unknown, its package is not installed, or `out`
            exists or can't be written.
    """
    if to not in FORMATS:
        raise GradscopeError(f"can't export to {to!r}; one of {', '.join(FORMATS)}")
    target = _default(run, to) if out is None else Path(out)
    if os.path.lexists(target):
        raise GradscopeError(f"{target} exists and is left alone; remove it or choose another out")
    exporter = importlib.import_module(f"{__name__}.{FORMATS[to].module}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            exporter.write(run, made / "export")
            (made / "export").rename(target)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise GradscopeError(
            f"can't write {target} ({error.strerror or error}); choose another out"
        ) from error
    return target


def _default(run: Run, to: str) -> Path:
    if run.path is None:
        raise GradscopeError("this run was not loaded from a file: say where to export it with out")
    return run.path.with_name(run.path.stem + FORMATS[to].ending)
