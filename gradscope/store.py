"""`Run` ⇄ run.pt.

run.pt is a dict of primitives and tensors, so that `torch.load(path, weights_only=True)`
opens it; it is never opened any other way. While a run is recorded, run.pt holds the header
only, and the numbers are appended to `run.pt.journal` beside it: a frame there is an
8-byte little-endian length, a CRC-32 of the payload (4 bytes), and the payload, again
written by `torch.save`. Appending costs the same at step 10 and at step 10⁶, and a process
that is killed loses at most the frame being written. `load` merges the two; closing the
recording writes one complete run.pt and removes the journal.

Of several processes that train together, rank 0 writes run.pt and rank r writes run.rank<r>.pt,
each with its journal; `meta["process"]` names the launch. `load("run.pt")` puts those of one
launch together, and `load("run.rank1.pt")` opens that part alone.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradscope.errors import RunError, path_given
from gradscope.merging import merge
from gradscope.run import Block, Column, Run, Site

FORMAT = "gradscope.run"
SCHEMA_VERSION = 1
_FRAME = struct.Struct("<QI")


def load(path: str | os.PathLike[str]) -> Run:
    """Open a recorded run, complete or still being recorded or killed.

    Of a run of several processes, the first one's file stands for all of their parts that are
    there, also where it is missing itself.

    Raises:
        RunError: if there is no such file, or it is no gradscope run.
        GradscopeError: for what is no path.
    """
    path = path_given("load()", path)
    beside = _parts_beside(path)
    alone = path.exists() or not beside
    first = _load_part(path) if alone else _newest(path, beside)
    process = first.meta.get("process")
    if process is None or (alone and process["rank"] != 0):
        return first  # of one process, or opened by its own name
    parts, damaged = [first] if alone else [], []
    for rank, file in sorted(beside.items()):
        try:
            part = _load_part(file)
        except RunError as error:
            damaged.append({"what": f"the part of rank {rank}", "why": str(error)})
            continue
        if part.meta.get("process", {}).get("launch") == process["launch"]:
            parts.append(part)
    run = merge(parts)
    run.meta["unseen"] = [*run.meta["unseen"], *damaged]
    run.blocks, run.path = _merge(run.blocks), path
    return run


def part_path(path: Path, rank: int) -> Path:
    """Where a process of that rank writes, if the first of them writes to `path`."""
    return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


def _parts_beside(path: Path) -> dict[int, Path]:
    """Rank → file of what may be further parts of a run."""
    names = re.compile(rf"{re.escape(path.stem)}\.rank([1-9]\d*){re.escape(path.suffix)}")
    try:
        files = list(path.parent.iterdir())
    except OSError:
        return {}
    return {int(m[1]): f for f in files if (m := names.fullmatch(f.name))}


def _newest(path: Path, beside: dict[int, Path]) -> Run:
    """A part of the latest launch, where the first process left nothing."""
    found = []
    for file in beside.values():
        with contextlib.suppress(RunError):
            found.append(_load_part(file))
    found = [part for part in found if "process" in part.meta]
    if not found:
        return _load_part(path)  # which says that it is not there
    return max(found, key=lambda part: str(part.meta.get("created")))


def _load_part(path: Path) -> Run:
    """What one file and its journal hold."""
    state = _read(path)
    if state.get("status") != "complete" and not journal_path(path).exists():
        state = _read(path)  # completed in this very moment
    version = state.get("schema_version")
    if version != SCHEMA_VERSION:
        raise RunError(
            f"{path} has schema version {version!r}; this gradscope reads {SCHEMA_VERSION}. "
            "Install the gradscope that wrote it."
        )
    try:
        run = _decode(state)
        if state["status"] != "complete":
            for part in _frames(journal_path(path)):
                _extend(run, part)
        if "process" in run.meta:
            _check_process(run.meta["process"])
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise RunError(f"{path} is a damaged gradscope run ({error}); record it again") from error
    run.blocks = _merge(run.blocks)
    run.path = path
    return run


def _check_process(process: dict[str, Any]) -> None:
    if not 0 <= process["rank"] < process["world_size"]:
        raise ValueError(f"rank {process['rank']} of {process['world_size']}")
    if not isinstance(process["launch"], str):
        raise TypeError("a launch without a name")


def save(run: Run, path: str | os.PathLike[str]) -> None:
    """Write a complete run.pt, by way of a temporary file: never a half-written one."""
    path = Path(path)
    _write(path, _encode(run, "complete"))


def journal_path(path: Path) -> Path:
    return path.with_name(path.name + ".journal")


class Journal:
    """The growing file beside run.pt. `append` what is new, then `finish`.

    Raises:
        RunError: if `path` can't be written, or holds something that is no gradscope run
            and would be lost.
    """

    def __init__(self, path: Path, run: Run) -> None:
        self.path = path
        _refuse_foreign(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = journal_path(path).open("wb")
            _write(path, _encode(run, "recording"))
        except OSError as error:
            raise RunError(
                f"can't write the run to {path}: {error.strerror}; choose another out="
            ) from error

    def append(
        self,
        sites: list[Site],
        columns: list[Column],
        blocks: list[Block],
        meta: dict[str, Any],
    ) -> None:
        """One frame: sites and columns that are new, blocks, and meta entries to replace."""
        part = {
            "sites": [_site_state(s) for s in sites],
            "columns": [list(c) for c in columns],
            "blocks": [_block_state(b) for b in blocks],
            "meta": meta,
        }
        buffer = io.BytesIO()
        torch.save(part, buffer)
        payload = buffer.getbuffer()
        self._file.write(_FRAME.pack(len(payload), zlib.crc32(payload)))
        self._file.write(payload)
        self._file.flush()

    def finish(self) -> Run:
        """Close the journal and put one complete run.pt in its place.

        Raises:
            RunError: if the file is no longer there; the journal is kept.
        """
        self._file.close()
        if not self.path.exists():
            raise RunError(
                f"{self.path} was moved or removed while it was recorded: put it back beside "
                f"{journal_path(self.path).name}, which has what was recorded, and load it"
            )
        run = _load_part(self.path)
        run.meta["status"] = "complete"
        save(run, self.path)
        journal_path(self.path).unlink(missing_ok=True)
        return run

    def discard(self) -> None:
        """Remove both files."""
        self._file.close()
        for path in (self.path, journal_path(self.path)):
            path.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """See that a run can be recorded into `path`, without touching anything.

    Raises:
        RunError: if it can't, or if something that is no run would be lost.
    """
    _refuse_foreign(path)
    there = next(p for p in path.absolute().parents if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise RunError(f"can't write the run to {path}: {there} can't be written to")


def _refuse_foreign(path: Path) -> None:
    if path.is_dir():
        raise RunError(f"{path} is a directory; out= takes the path of a file, such as run.pt")
    if not path.exists() or path.stat().st_size == 0:
        return
    try:
        _read(path)
    except RunError as error:
        raise RunError(
            f"{path} exists and is not a gradscope run: it is left alone; choose another out="
        ) from error


def _read(path: Path) -> dict[str, Any]:
    """The file's dict, checked to be ours."""
    if path.is_dir():
        raise RunError(f"{path} is a directory, not a recorded run; name the .pt file in it")
    if not path.exists():
        raise RunError(f"{path} does not exist; record a run with gradscope.attach(..., out=...)")
    try:
        if path.stat().st_size == 0:
            raise RunError(f"{path} is empty: the process that recorded it wrote nothing")
        with warnings.catch_warnings():  # torch's remarks on a foreign file's pickle
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        if error.errno == errno.EINVAL:  # what torch meets in a file that was cut off
            raise RunError(f"{path} is not a gradscope run: it is truncated, or damaged") from error
        raise RunError(f"can't read {path}: {error.strerror or error}") from error
    except RunError:
        raise
    except Exception as error:  # torch raises many kinds for a foreign or truncated file
        raise RunError(
            f"{path} is not a gradscope run: it is truncated, damaged, or something else "
            f"({type(error).__name__}). Nothing in it was executed"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RunError(
            f"{path} is a torch file, but not a gradscope run (a model checkpoint?); "
            "record one with gradscope.attach(..., out=...)"
        )
    return state


def _write(path: Path, state: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _frames(path: Path) -> Iterator[dict[str, Any]]:
    """Whole frames of a journal; a last one that was cut off is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        while len(head := file.read(_FRAME.size)) == _FRAME.size:
            length, checksum = _FRAME.unpack(head)
            payload = file.read(length)
            if len(payload) < length or zlib.crc32(payload) != checksum:
                return
            yield torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


def _encode(run: Run, status: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "meta": {**run.meta, "status": status},
        "sites": [_site_state(s) for s in run.sites.values()],
        "columns": [list(c) for c in run.columns],
        "blocks": [_block_state(b) for b in run.blocks],
    }


def _decode(state: dict[str, Any]) -> Run:
    run = Run(meta=dict(state["meta"]))
    _extend(run, {**state, "meta": {}})
    return run


def _extend(run: Run, part: dict[str, Any]) -> None:
    for entry in part["sites"]:
        site = Site(**{**entry, "shape": tuple(entry["shape"])})
        run.sites[(site.kind, site.name)] = site
    run.columns.extend(Column(*c) for c in part["columns"])
    for block in part["blocks"]:
        run.blocks.append(Block(*(block[k].numpy() for k in _BLOCK_FIELDS)))
    run.meta.update(part["meta"])


_BLOCK_FIELDS = ("steps", "columns", "values", "present")


def _block_state(block: Block) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(np.ascontiguousarray(getattr(block, k))) for k in _BLOCK_FIELDS}


def _site_state(site: Site) -> dict[str, Any]:
    return {**vars(site), "shape": list(site.shape)}


def _merge(blocks: list[Block]) -> list[Block]:
    """Join blocks of the same columns: a run flushed often reads as fast as one flushed once."""
    groups: dict[bytes, list[Block]] = {}
    for block in blocks:
        groups.setdefault(block.columns.tobytes(), []).append(block)
    return [
        Block(
            np.concatenate([b.steps for b in group]),
            group[0].columns,
            np.concatenate([b.values for b in group]),
            np.concatenate([b.present for b in group]),
        )
        for group in groups.values()
    ]
