"""A labelled case: how to train it, what must be reported, what may be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from analyses.faults.training import Training

Split = Literal["tune", "test"]
SPLITS: tuple[Split, ...] = ("tune", "test")

Make = Callable[[], Training]
Change = Callable[[Training], Any]  # breaks a training in place

# Called out of `Observed` measurements (see `verify.py`): evidence by name, and the verdict.
Symptom = Callable[[Any, Any], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One training run whose state of health is known.

    Attributes:
        name: "fault/what", unique.
        fault: the cause group; "" for a healthy run.
        make: builds the model, the data and the optimizer; seeded.
        split: "tune" or "test".
        must: groups of rules; of each, one at least must be reported. A group of several is for
            causes that can rightly be described by either.
        may: rules that are known consequences of the same cause: neither right nor wrong.
        at_info: rules whose report counts at severity info, too: where info is right.
        operation: for a number that is not finite: the accepted names of the first operation
            whose result or gradient is not, in lower case and without "Backward0".
        twin: name of the same run without the fault; "" if there is none.
        symptom: how `verify` decides that the fault is one.
        flat: why the loss of a healthy run need not fall; "" where it has to.
    """

    name: str
    fault: str
    make: Make
    split: Split
    must: tuple[frozenset[str], ...] = ()
    may: frozenset[str] = frozenset()
    at_info: frozenset[str] = frozenset()
    operation: frozenset[str] = frozenset()
    twin: str = ""
    symptom: Symptom | None = None
    flat: str = ""

    @property
    def group(self) -> str:
        return self.name.split("/")[0]

    @property
    def expected(self) -> frozenset[str]:
        """Every rule whose report is right: the union of `must`."""
        return frozenset().union(*self.must)


@dataclass(frozen=True)
class Variant:
    """A fault in one architecture. What is left out is taken from the `Fault`.

    Attributes:
        name: last part of the case's name.
        healthy: the run without the fault, recorded as a case of its own unless `twin` is False.
        change: breaks it.
        broken: the run with the fault, where it isn't made by changing the healthy one.
    """

    name: str
    healthy: Make | None = None
    change: Change | None = None
    broken: Make | None = None
    must: Iterable[Iterable[str]] | None = None
    may: Iterable[str] | None = None
    at_info: Iterable[str] | None = None
    operation: Iterable[str] = ()
    twin: bool = True
    healthy_may: Iterable[str] = ()
    healthy_at_info: Iterable[str] = ()
    symptom: Symptom | None = None


@dataclass(frozen=True)
class Fault:
    """A cause, and the variants in which the corpus has it."""

    name: str
    must: Iterable[Iterable[str]]
    variants: list[Variant]
    may: Iterable[str] = ()
    at_info: Iterable[str] = ()
    symptom: Symptom | None = None

    def cases(self, twins: dict[Any, str], splits: tuple[Split, ...] = SPLITS) -> list[Case]:
        """Faulty cases and their healthy twins; variants take turns in the splits.

        `twins` holds the twins that the corpus has already: the same run is one case only.
        """
        cases = []
        for position, v in enumerate(self.variants):
            split = splits[position % len(splits)]
            name = f"{self.name}/{v.name}"
            twin = ""
            if v.healthy is not None and v.twin:
                twin = twins.setdefault(same(v.healthy), f"{name}/healthy")
            cases.append(
                Case(
                    name=name,
                    fault=self.name,
                    make=_broken(v),
                    split=split,
                    must=tuple(frozenset(g) for g in (v.must or self.must)),
                    may=frozenset(self.may if v.may is None else v.may),
                    at_info=frozenset(self.at_info if v.at_info is None else v.at_info),
                    operation=frozenset(v.operation),
                    twin=twin,
                    symptom=v.symptom or self.symptom,
                )
            )
            if twin == f"{name}/healthy" and v.healthy is not None:
                cases.append(
                    Case(
                        name=twin,
                        fault="",
                        make=v.healthy,
                        split=split,
                        may=frozenset(v.healthy_may),
                        at_info=frozenset(v.healthy_at_info),
                    )
                )
        return cases


def same(make: Make) -> Any:
    """Equal for runs that are made in the same way, defaults written out or not."""
    function, args, keywords = make, (), {}
    if isinstance(make, partial):
        function, args, keywords = make.func, make.args, make.keywords
    bound = inspect.signature(function).bind(*args, **keywords)
    bound.apply_defaults()
    return function, repr(bound.arguments)


def _broken(v: Variant) -> Make:
    if v.broken is not None:
        return v.broken
    assert v.healthy is not None and v.change is not None, f"{v.name}: neither broken nor changed"
    healthy, change = v.healthy, v.change

    def make() -> Training:
        training = healthy()
        change(training)
        return training

    return make


@dataclass
class Healthy:
    """Healthy runs of one theme: name → how to make it; they take turns in the splits.

    Attributes:
        may: rules that may be reported of a run, by its name, with the reason beside the entry.
        flat: runs whose loss says nothing of their progress, by name, with the reason.
    """

    name: str
    runs: dict[str, Make]
    may: dict[str, Iterable[str]] = field(default_factory=dict)
    flat: dict[str, str] = field(default_factory=dict)

    def cases(self, twins: dict[Any, str], splits: tuple[Split, ...] = SPLITS) -> list[Case]:
        """Runs that aren't the healthy twin of some fault already."""
        return [
            Case(
                name=f"{self.name}/{name}",
                fault="",
                make=make,
                split=splits[position % len(splits)],
                may=frozenset(self.may.get(name, ())),
                flat=self.flat.get(name, ""),
            )
            for position, (name, make) in enumerate(self.runs.items())
            if twins.setdefault(same(make), f"{self.name}/{name}") == f"{self.name}/{name}"
        ]
