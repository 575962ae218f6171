"""A report's files, written so that a directory never holds half of one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from gradscope.errors import GradscopeError
from gradscope.figures import FIGURES

PAGE = "report.html"


def write(files: Mapping[str, bytes], out: Path) -> Path:
    """Put files (relative path → content) into the directory `out`; return the page's path.

    Everything is written beside `out` and moved in file by file, the page last, so that a page
    never speaks of figures that are not there. Figures that an earlier report drew and this one
    does not are removed; files that no report made are kept.

    Raises:
        GradscopeError: if `out` is a file, or can't be written.
    """
    if out.exists() and not out.is_dir():
        raise GradscopeError(f"{out} is a file; give a directory for the report (--out DIR)")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as made:
            for name, content in files.items():
                target = Path(made, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            for name in sorted(files, key=lambda n: n == PAGE):
                target = out / name
                target.parent.mkdir(parents=True, exist_ok=True)
                _replace(Path(made, name), target)
        for name in _ours(out):
            if name not in files:
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise GradscopeError(
            f"can't write a report to {out} ({error.strerror or error}); "
            "give a directory that can be written (--out DIR)"
        ) from error
    return out / PAGE


def figure_path(name: str) -> str:
    """Where a figure lies in the report's directory."""
    return f"figures/{name}.png"


def evidence_path(label: str) -> str:
    """Where the figure of the finding `label` ("F1") lies in the report's directory."""
    return figure_path(f"finding-{label}")


def _ours(out: Path) -> list[str]:
    """Figures that some report has drawn there, or may have."""
    drawn = (p.stem for p in (out / figure_path("")).parent.glob("finding-F*.png"))
    numbered = [figure_path(name) for name in drawn if name.removeprefix("finding-F").isdecimal()]
    return [figure_path(kind.name) for kind in FIGURES] + numbered


def _replace(made: Path, target: Path) -> None:
    if target.is_dir():
        raise IsADirectoryError(0, f"{target} is a directory")
    try:
        made.replace(target)
    except PermissionError:
        # Windows refuses to replace a file that a viewer holds open; its content may still go.
        shutil.copyfile(made, target)
