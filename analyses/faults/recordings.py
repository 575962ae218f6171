"""Recorded runs, kept in a folder that git ignores, so that rules can be scored again in seconds.

A recording's key covers the sources it came from: the case's own file, what cases are built from,
and the part of gradscope that records. A change of a rule leaves it alone.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch

import gradscope
from analyses.faults.case import Case

A = TypeVar("A")
T = TypeVar("T")

FOLDER = Path("reports/faults/runs")
BUILT_FROM = ("training.py", "data.py", "nets.py", "setups.py")
BORROWS = re.compile(r"from analyses\.faults\.causes\.(\w+) import")
FOLDERS = ("causes", "healthy", "independent")
RECORDS = ("capture", "graph", "quantities", "paths", "cuts", "run.py", "store.py", "probing.py")


HERE = Path(__file__).parent
PACKAGE = Path(inspect.getfile(gradscope)).parent

# Read when the code is imported: what is edited later is not what makes the recordings.
_TEXTS = {f: f.read_bytes() for top in (HERE, PACKAGE) for f in sorted(top.rglob("*.py"))}


def _text(where: Path) -> bytes:
    return b"".join(text for file, text in _TEXTS.items() if file.is_relative_to(where))


def _home(case: Case) -> list[Path]:
    """Files of the functions that a case is made with, `corpus` aside."""
    found = []
    for file, text in _TEXTS.items():
        if file.parent.name in FOLDERS and f'\n    "{case.group}",\n' in text.decode():
            found.append(file)
            found += [HERE / "causes" / f"{name}.py" for name in BORROWS.findall(text.decode())]
            found += [f for f in file.parent.glob("kit_*.py") if f.stem in text.decode()]
    assert found, f"no file defines the group {case.group!r}"
    return found


def source_key(case: Case, *others: str) -> str:
    """Of the case itself, and of other files of this folder."""
    digest = hashlib.sha256(case.name.encode() + torch.__version__.encode())
    for file in [*_home(case), *(HERE / name for name in (*BUILT_FROM, *others))]:
        digest.update(_text(file))
    return digest.hexdigest()[:10]


@cache
def capture_key() -> str:
    """Of the code that records."""
    digest = hashlib.sha256()
    for name in RECORDS:
        digest.update(_text(PACKAGE / name))
    return digest.hexdigest()[:10]


def path_of(case: Case, *, any_capture: bool = False) -> Path:
    """Where a case's recording is or would be.

    With `any_capture`, the newest that some version of the recording code made, if there is one.
    """
    stem = f"{case.name.replace('/', '__')}--{source_key(case)}"
    exact = FOLDER / f"{stem}-{capture_key()}.pt"
    if any_capture and not exact.exists():
        older = sorted(FOLDER.glob(f"{stem}-*.pt"), key=lambda p: p.stat().st_mtime)
        return older[-1] if older else exact
    return exact


def record_missing(
    cases: list[Case], *, jobs: int = 1, any_capture: bool = False
) -> Iterator[tuple[Case, str]]:
    """Record what isn't there; yields each case when done, with what went wrong or ""."""
    missing = {
        (c.name, str(path_of(c))): c
        for c in cases
        if not path_of(c, any_capture=any_capture).exists()
    }
    for task, trouble in in_processes(_record, list(missing), jobs):
        yield missing[task], trouble


def in_processes(work: Callable[[A], T], tasks: list[A], jobs: int) -> Iterator[tuple[A, T]]:
    """`work(task)` for all tasks, in `jobs` processes; results as they come."""
    if jobs == 1 or len(tasks) < 2:
        yield from ((task, work(task)) for task in tasks)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        futures = {pool.submit(work, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _record(task: tuple[str, str]) -> str:
    from analyses.faults.corpus import corpus
    from analyses.faults.training import record

    name, where = task
    case = next(c for c in corpus() if c.name == name)
    path = Path(where)
    path.parent.mkdir(parents=True, exist_ok=True)
    under_way = path.with_name(f"under-way-{os.getpid()}.pt")
    try:
        record(case.make, under_way, name)
        under_way.rename(path)
    except Exception as error:
        under_way.unlink(missing_ok=True)
        return f"{type(error).__name__}: {error}"
    forget(path)
    return ""


def forget(newest: Path) -> None:
    """Keep a file and the one before it, of those of the same case and kind."""
    case, _, _ = newest.name.rpartition("--")
    older = sorted(newest.parent.glob(f"{case}--*{newest.suffix}"), key=lambda p: p.stat().st_mtime)
    for file in older[:-2]:
        file.unlink(missing_ok=True)
