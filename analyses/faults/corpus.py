"""All cases."""

from __future__ import annotations

from fnmatch import fnmatch

from analyses.faults import causes, healthy
from analyses.faults.case import Case


def corpus() -> list[Case]:
    """Every case, faulty ones with their twins first."""
    return [*causes.cases(), *healthy.cases()]


def chosen(only: str = "*", split: str = "") -> list[Case]:
    """Cases whose name matches a pattern, of one half if asked for."""
    return [c for c in corpus() if fnmatch(c.name, only) and split in ("", c.split)]
