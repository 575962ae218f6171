"""Cases written without sight of the rules or of the other cases: half of them are the score.

Each module has a list `FAULTS`, a list `THEMES`, or both.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import Any

from analyses.faults.case import Case, Fault, Healthy


@cache
def modules() -> tuple[ModuleType, ...]:
    """The modules of this package, by name."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__))
    return tuple(importlib.import_module(f"{__name__}.{name}") for name in names)


def cases(twins: dict[Any, str]) -> list[Case]:
    """Faulty cases, their twins, and further healthy ones (see `Fault.cases`)."""
    groups: list[Fault | Healthy] = []
    for kind in ("FAULTS", "THEMES"):
        groups += [group for m in modules() for group in getattr(m, kind, ())]
    return [case for group in groups for case in group.cases(twins)]
