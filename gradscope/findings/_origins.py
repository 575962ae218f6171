"""The first operation of a run that was not finite, as the rules use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradscope.findings._signals import Signals

# Operations that are not defined at some finite operands; others have to overflow first.
UNDEFINED = frozenset(
    "log log2 log10 log1p sqrt rsqrt div reciprocal acos asin atanh acosh pow norm "
    "linalgvectornorm std cdist".split()
)


def first_operation(signals: Signals) -> dict[str, Any]:
    """{"step", "phase", "operation", "where"} of the earliest that was named."""
    unknown = {"step": 1 << 62, "phase": "", "operation": "", "where": ""}
    named = signals.run.meta.get("nonfinite") or []
    return min(named, key=lambda entry: entry["step"], default=unknown)


def of_itself(origin: Mapping[str, Any]) -> bool:
    """Whether no other fault led there: it came with the data, or the operation is undefined.

    Args:
        origin: what has "phase" and "operation".
    """
    return origin.get("phase") == "data" or origin.get("operation") in UNDEFINED


def broke_of_itself(signals: Signals) -> bool:
    """Whether the run broke at an operation, or at data, that no other fault leads to."""
    return of_itself(first_operation(signals))
