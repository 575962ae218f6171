"""Cases written without sight of the rules or of the other cases.

Each module has a list `FAULTS`, a list `THEMES`, or both. Those whose `SPLITS` is ("test",) are the
score; the others were, once, and rules have been tuned on them since.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import Any

from analyses.faults.case import Case, Fault, Healthy, Split


@cache
def modules() -> tuple[ModuleType, ...]:
    """The modules of this package, by name."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__))
    return tuple(importlib.import_module(f"{__name__}.{name}") for name in names)


def cases(twins: dict[Any, str]) -> list[Case]:
    """Faulty cases, their twins, and further healthy ones (see `Fault.cases`)."""
    found: list[Case] = []
    for kind in ("FAULTS", "THEMES"):
        for module in modules():
            groups: list[Fault | Healthy] = getattr(module, kind, [])
            splits: tuple[Split, ...] = getattr(module, "SPLITS", ("tune",))
            found += [case for group in groups for case in group.cases(twins, splits)]
    return found
