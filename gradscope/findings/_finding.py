"""A finding: what a rule saw, where, when, with which numbers, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np

Severity = Literal["info", "warning", "critical"]

# critical  the run is broken, or a part of the model can not learn
# warning   training is probably worse for it
# info      worth knowing: over by now, harmless as far as can be seen, or too few steps to tell
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True)
class View:
    """The numbers of the run that show a finding's evidence, and the thresholds to draw.

    Attributes:
        kind: kind of site, as in `Run.wide`.
        metric: as in `Run.wide`.
        sites: in forward order.
        edges: of a fork, those in question.
        thresholds: label → value on the metric's axis, or, with `relative_to`, a multiple.
        relative_to: site whose value the thresholds are multiples of; "" if absolute.
    """

    kind: str
    metric: str
    sites: tuple[str, ...]
    edges: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    relative_to: str = ""


@dataclass(frozen=True)
class Finding:
    """One diagnosis of a run.

    Attributes:
        rule: identifier of the rule, such as "vanishing-gradient".
        severity: "critical": the run is broken, or a part of the model can not learn.
            "warning": training is probably worse for it. "info": worth knowing.
        site: where; of a group of sites, the one nearest the input (`view` names them all).
        first_step: first recorded optimizer step at which it held.
        last_step: last recorded optimizer step at which it held.
        evidence: the numbers behind it, ready for JSON; a number that is not finite is None.
        message: one sentence.
        remedy: what to do about it.
        view: what to look at.
        cause: rule of the finding that explains this one, or "".
        cause_site: that finding's site, or "".
    """

    rule: str
    severity: Severity
    site: str
    first_step: int
    last_step: int
    evidence: dict[str, Any]
    message: str
    remedy: str
    view: View
    cause: str = ""
    cause_site: str = ""

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"unknown severity {self.severity!r}; one of {', '.join(SEVERITIES)}")
        if self.first_step > self.last_step:
            raise ValueError(f"steps {self.first_step} to {self.last_step} run backwards")
        object.__setattr__(self, "first_step", int(self.first_step))
        object.__setattr__(self, "last_step", int(self.last_step))
        object.__setattr__(self, "evidence", _plain(self.evidence))

    def __str__(self) -> str:
        steps = f"step {self.first_step}"
        if self.last_step != self.first_step:
            steps = f"steps {self.first_step} to {self.last_step}"
        text = f"{self.severity} {self.rule} ({steps}): {self.message}"
        return f"{text} {self.remedy}"

    def to_dict(self) -> dict[str, Any]:
        """The same as primitives; `json.dumps` takes it with `allow_nan=False`."""
        return {f: _plain(getattr(self, f)) for f in self.__dataclass_fields__}


def _plain(value: Any) -> Any:
    if isinstance(value, View):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v) for v in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"evidence holds primitives, not {type(value).__name__}")
