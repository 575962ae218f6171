"""All cases."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

from analyses.faults import causes, healthy, independent
from analyses.faults.case import Case


def corpus() -> list[Case]:
    """Every case, faulty ones with their twins first."""
    twins: dict[Any, str] = {}
    return [*causes.cases(twins), *healthy.cases(twins), *independent.cases(twins)]


def chosen(only: str = "*", split: str = "") -> list[Case]:
    """Cases whose name matches a pattern, of "tune" or "test" alone if asked for."""
    return [c for c in corpus() if fnmatch(c.name, only) and split in ("", c.split)]
