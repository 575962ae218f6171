"""The first operation of a run that was not finite, as the rules use it."""

from __future__ import annotations

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


def undefined(signals: Signals) -> bool:
    """Whether the run broke at an operation that no other fault leads to."""
    return first_operation(signals)["operation"] in UNDEFINED
