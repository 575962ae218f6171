"""Where a recording goes: a file that grows beside its journal, or memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gradscope.capture.ledger import Ledger
from gradscope.run import Run
from gradscope.store import Journal, load

SAMPLES = 1 << 20  # samples held in memory before they are written, whatever the clock says
CHANGING = (
    "timings",
    "unseen",
    "errors",
    "ended",
    "steps",
    "unfinished",
    "cuts",
    "nonfinite",
    "called",
)


class Writer:
    """Takes what a ledger has gathered, every few seconds.

    Args:
        out: file to write; None keeps the run in memory.
        meta: of the run; the entries named in `CHANGING` may change while it is recorded.

    Raises:
        RunError: if the file can't be written, or holds something that would be lost.
    """

    def __init__(
        self, out: Path | None, meta: dict[str, Any], ledger: Ledger, flush_every: float
    ) -> None:
        self._meta, self._ledger, self._flush_every = meta, ledger, flush_every
        self.memory: Run | None = Run(meta=meta) if out is None else None
        self._out = out
        self._journal = None if out is None else Journal(out, Run(meta=meta))
        self._began = self._flushed = time.perf_counter()
        self.spent = 0.0  # seconds, as far as gradscope measures them itself

    def due(self) -> bool:
        late = time.perf_counter() - self._flushed >= self._flush_every
        return late or self._ledger.waiting > SAMPLES

    def flush(self) -> None:
        began = time.perf_counter()
        sites, columns, blocks = self._ledger.drain()
        self._meta["timings"] = {"seconds": began - self._began, "gradscope_seconds": self.spent}
        if self.memory is not None:
            self.memory.sites.update({(s.kind, s.name): s for s in sites})
            self.memory.columns.extend(columns)
            self.memory.blocks.extend(blocks)
        elif self._journal is not None:
            changing = {k: self._meta[k] for k in CHANGING if k in self._meta}
            self._journal.append(sites, columns, blocks, changing)
        self._flushed = time.perf_counter()
        self.spent += self._flushed - began

    def read(self) -> Run:
        """What was flushed so far."""
        if self.memory is not None:
            return self.memory
        assert self._out is not None
        return load(self._out)

    def finish(self) -> None:
        """Write what is left and complete the file."""
        self.flush()
        if self._journal is not None:
            self._journal.finish()
        elif self.memory is not None:
            self.memory.meta["status"] = "complete"

    def discard(self) -> None:
        """Remove the files, whatever is in them."""
        if self._journal is not None:
            self._journal.discard()
