"""What a report says, as data: everything but its looks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gradscope.figures import FIGURES, Ends, Evidence, FigureKind, Mark, depth_ends, evidence_of
from gradscope.figures._text import distinct, number, pretty, shorten
from gradscope.findings import SEVERITIES, Check, Finding, check, rules
from gradscope.run import METRICS, Run
from gradscope.scalars import training_loss

WORST_FIRST: tuple[str, ...] = tuple(reversed(SEVERITIES))


@dataclass(frozen=True)
class FindingView:
    """A finding with its place in the report.

    Attributes:
        label: "F1", by which figures and texts refer to it.
        run: index of its run.
        finding: the finding.
        figures: those that show it.
        cause: label of the finding that explains it, or "".
        shown: the numbers behind it, for its own figure.
    """

    label: str
    run: int
    finding: Finding
    figures: tuple[FigureKind, ...]
    cause: str = ""
    shown: Evidence = field(default_factory=Evidence)

    @property
    def steps(self) -> str:
        first, last = self.finding.first_step, self.finding.last_step
        if first == last:
            return f"step {number(first)}"
        return f"steps {number(first)}–{number(last)}"

    @property
    def message(self) -> str:
        return pretty(self.finding.message)

    @property
    def remedy(self) -> str:
        return pretty(self.finding.remedy)

    @property
    def evidence(self) -> list[tuple[str, str]]:
        """The numbers that were measured, as (name, text)."""
        return [
            (name.replace("_", " "), _text(value, digits=4))
            for name, value in self.finding.evidence.items()
            if value is not None and value != ""
        ]

    @property
    def mark(self) -> Mark:
        """How figures point at it."""
        f = self.finding
        return Mark(
            self.label,
            f.severity,
            f.site,
            f.first_step,
            f.last_step,
            self.run,
            f.view.kind,
            f.view.sites,
            f.view.metric,
            f.view.thresholds,
            f.view.relative_to,
            f.view.edges,
        )


@dataclass(frozen=True)
class RunView:
    """One run: what stands at the top, and what stands in the details."""

    run: Run
    check: Check
    facts: list[str]
    tiles: list[tuple[str, str]]
    details: list[tuple[str, list[tuple[str, str]]]]

    @property
    def ran(self) -> str:
        """Such as "7 rules ran, 3 not applicable: no softmax"."""
        ran = sum(o.ran for o in self.check.outcomes)
        rest = [o.skipped for o in self.check.outcomes if not o.ran]
        reasons = "; ".join(filter(None, dict.fromkeys(map(_brief, rest))))
        text = f"{ran} rule{'s' * (ran != 1)} ran"
        return f"{text}, {len(rest)} not applicable: {reasons}" if reasons else text

    @property
    def complete(self) -> bool:
        return bool(self.run.meta.get("status", "complete") == "complete")

    @property
    def model(self) -> str:
        return str((self.run.meta.get("model") or {}).get("class", ""))

    @property
    def unseen(self) -> list[dict[str, str]]:
        return [
            {"what": str(u.get("what", "")), "why": str(u.get("why", ""))}
            for u in self.run.meta.get("unseen") or []
        ]

    @property
    def errors(self) -> list[tuple[str, str]]:
        """(what failed, in a line; all that is known of it) of every part that stopped."""
        return [_error(str(e)) for e in self.run.meta.get("errors") or []]

    @property
    def ended(self) -> str:
        """What ended the training, if not its last step; or ""."""
        return str(self.run.meta.get("ended") or "")

    @property
    def nonfinite(self) -> list[str]:
        """Where a NaN or an infinity first arose, a sentence each, by step."""
        entries = self.run.meta.get("nonfinite") or []
        return [_origin(e) for e in sorted(entries, key=lambda e: e["step"])]

    @property
    def model_text(self) -> str:
        return str((self.run.meta.get("model") or {}).get("text", ""))


@dataclass(frozen=True)
class RuleView:
    """A row of what was checked.

    Attributes:
        rule: its name.
        says: what it looks for.
        outcomes: of each run, labels of its findings, or why the rule could not be applied; ([],
            "") where it ran and found nothing.
    """

    rule: str
    says: str
    outcomes: list[tuple[list[str], str]]


@dataclass(frozen=True)
class Comparison:
    """A row of the table that compares runs; None where something was not recorded."""

    loss: float | None
    accuracy: float | None
    val_accuracy: float | None
    first_layer: float | None
    last_layer: float | None
    ratio: float | None


@dataclass(frozen=True)
class Page:
    """A report on one run or several.

    Attributes:
        runs: in the order given.
        findings: of all runs, worst first.
        compared: one row a run where there are several, else empty.
        figures: those that can be drawn.
        absent: (title, reason) of those that can't.
        definitions: (metric, unit, definition) of every metric that was recorded.
        checked: every rule, those with findings first, those that did not apply last.
    """

    runs: list[RunView]
    findings: list[FindingView]
    compared: list[Comparison]
    figures: list[FigureKind]
    absent: list[tuple[str, str]]
    definitions: list[tuple[str, str, str]]
    checked: list[RuleView]

    @property
    def title(self) -> str:
        names = [r.run.name for r in self.runs]
        return " · ".join(distinct(names)) if len(names) <= 4 else f"{len(names)} runs compared"

    def counts(self, run: int | None = None) -> dict[str, int]:
        """Findings by severity, worst first."""
        found: list[str] = [v.finding.severity for v in self.findings if run in (None, v.run)]
        return {s: found.count(s) for s in WORST_FIRST}

    def reaches(self, severity: str) -> bool:
        """Whether any finding is at least that severe."""
        enough = WORST_FIRST[: [*WORST_FIRST].index(severity) + 1]
        return any(v.finding.severity in enough for v in self.findings)

    @property
    def verdict(self) -> str:
        """One line: how many findings of which severity."""
        return verdict(self.counts())

    @property
    def best(self) -> dict[str, float | None]:
        """The best final values among the compared runs."""
        return {
            name: best([getattr(row, name) for row in self.compared], highest=name != "loss")
            for name in ("loss", "accuracy", "val_accuracy")
        }

    @property
    def marks(self) -> list[Mark]:
        return [v.mark for v in self.findings]


def build(runs: Sequence[Run]) -> Page:
    """Judge the runs and gather what a report on them says."""
    checks = [check(r) for r in runs]
    figures = [k for k in FIGURES if not k.missing(runs)]
    findings = _views(runs, checks, figures)
    ends = depth_ends(runs, [v.mark for v in findings])
    return Page(
        runs=[
            RunView(r, c, _facts(r), _tiles(r, e), _details(r))
            for r, c, e in zip(runs, checks, ends, strict=True)
        ],
        findings=findings,
        compared=compare(runs, ends) if len(runs) > 1 else [],
        figures=figures,
        absent=[(k.title, k.missing(runs)) for k in FIGURES if k not in figures],
        definitions=_definitions(runs),
        checked=_checked(checks, findings),
    )


def verdict(counts: dict[str, int]) -> str:
    """{"critical": 1, "warning": 2, "info": 0} → "1 critical, 2 warnings"."""
    names = {"critical": ("critical",) * 2, "warning": ("warning", "warnings")}
    parts = [f"{n} {names.get(s, ('note', 'notes'))[n != 1]}" for s, n in counts.items() if n]
    return ", ".join(parts) or "No findings"


def last_values(run: Run) -> dict[str, tuple[int, float]]:
    """Name of each scalar → (step, mean over ranks) of the last time it was logged."""
    table = run.frame("scalar", "value").sort_values("step", kind="stable")
    table = table.groupby(["site", "rank"], sort=False).tail(1)
    latest = table[table["step"] == table.groupby("site")["step"].transform("max")]
    return {
        str(site): (int(own["step"].iloc[0]), float(own["value"].mean(skipna=False)))
        for site, own in latest.groupby("site", sort=False)
    }


def compare(runs: Sequence[Run], ends: Sequence[Ends | None]) -> list[Comparison]:
    """Final values side by side, and how much gradient arrives at the first layer."""
    rows = []
    for run, e in zip(runs, ends, strict=True):
        loss, accuracy, val_accuracy = _headlines(run).values()
        gradient = (e.first, e.last, e.ratio) if e else (None, None, None)
        rows.append(Comparison(loss, accuracy, val_accuracy, *gradient))
    return rows


def best(values: Sequence[float | None], *, highest: bool) -> float | None:
    """The best of the values that are numbers."""
    numbers = [v for v in values if v is not None and math.isfinite(v)]
    return (max if highest else min)(numbers, default=None)


_ACCURACIES = {
    "final accuracy": ("accuracy", "acc", "train_accuracy", "train/accuracy"),
    "validation accuracy": ("val_accuracy", "val_acc", "val/accuracy", "valid_accuracy"),
}


def _headlines(run: Run) -> dict[str, float | None]:
    """Title → the value of the last time it was logged: the training loss, and accuracies."""
    last = last_values(run)
    loss = training_loss(run)
    titles = {"final loss": (loss,) if loss else (), **_ACCURACIES}
    return {
        title: next((last[n][1] for n in names if n in last), None)
        for title, names in titles.items()
    }


def _views(
    runs: Sequence[Run], checks: Sequence[Check], figures: Sequence[FigureKind]
) -> list[FindingView]:
    found = [(run, f) for run, c in enumerate(checks) for f in c.findings]
    # Stable: within a severity, a run's findings stay in their order, causes first.
    found.sort(key=lambda item: WORST_FIRST.index(item[1].severity))
    labels = {(run, id(f)): f"F{i}" for i, (run, f) in enumerate(found, 1)}
    views = []
    for run, f in found:
        cause = next(
            (
                labels[run, id(c)]
                for c in checks[run].findings
                if f.cause and (c.rule, c.site) == (f.cause, f.cause_site)
            ),
            "",
        )
        view = FindingView(labels[run, id(f)], run, f, shown_by(f, figures), cause)
        views.append(replace(view, shown=evidence_of(runs[run], view.mark)))
    return views


def _checked(checks: Sequence[Check], findings: Sequence[FindingView]) -> list[RuleView]:
    rows = []
    for rule in rules():
        outcomes = []
        for run, c in enumerate(checks):
            (own,) = [o for o in c.outcomes if o.rule == rule.name]
            labels = [v.label for v in findings if v.run == run and v.finding.rule == rule.name]
            outcomes.append((labels, _reason(own.skipped)))
        rows.append(RuleView(rule.name, rule.says, outcomes))

    def place(row: RuleView) -> int:
        if any(labels for labels, _ in row.outcomes):
            return 0
        return 2 if all(reason for _, reason in row.outcomes) else 1

    return sorted(rows, key=place)


# Why a rule did not run, as it says itself → in a word or two ("" where nobody asked for it), and
# for someone who has not read the rules.
_SKIPPED = {
    "no softmax": ("no softmax", "the model has no attention softmax that could be seen"),
    "no fork": ("no fork", "no tensor of the model is used in several places"),
    "no activation": (
        "no activation",
        "no gradient reached an activation function with a flat side",
    ),
    "no input": ("data not measured", "what the model reads was not measured"),
    "no parameter": ("no gradient of a parameter", "no gradient reached a trainable parameter"),
    "no crossing": (
        "",
        "gradients were not split by softmaxes crossed (ask with scope.crossings())",
    ),
    "no pathway": ("", "no pathway was named (ask with scope.pathway())"),
    "no cut": (
        "no softmax behind another",
        "no attention softmax follows another (scope.bottlenecks() looks from input to output)",
    ),
    "no zero fraction of any module": ("no float16 gradient", "no gradient in float16"),
    "one process": ("", "one process"),
}


def _brief(skipped: str) -> str:
    return _SKIPPED.get(skipped, (skipped, skipped))[0]


def _reason(skipped: str) -> str:
    return _SKIPPED.get(skipped, (skipped, skipped))[1]


def _error(text: str) -> tuple[str, str]:
    """ "step 3: part: traceback" → its first and its last line, and everything."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    head = lines[0].removesuffix("Traceback (most recent call last):").rstrip(": ")
    return (f"{head}: {lines[-1]}" if len(lines) > 1 else lines[0]), text


def _origin(entry: Mapping[str, Any]) -> str:
    """A sentence on {"step", "phase", "operation", "where"}."""
    where, operation = str(entry.get("where") or ""), str(entry.get("operation") or "")
    step = f"Step {number(int(entry['step']))}"
    if entry.get("phase") == "parameter":
        whose = "the model's input" if where == "(input)" else where
        return f"{step}: {whose} was not finite before the forward pass."
    if where.startswith("(outside)"):
        where = ", between the model and the loss"
    elif where:
        where = f" at {where}"
    return f"{step}: first made by the {entry.get('phase')} pass of {operation}{where}."


def shown_by(finding: Finding, figures: Sequence[FigureKind]) -> tuple[FigureKind, ...]:
    """The figures that show a finding's evidence, the most direct first."""
    exact = [k for k in figures if (finding.view.kind, finding.view.metric) in k.shows]
    loose = [k for k in figures if (finding.view.kind, "*") in k.shows and k not in exact]
    return (*exact, *loose)


def _facts(run: Run) -> list[str]:
    model = run.meta.get("model") or {}
    steps = run.steps
    facts = []
    if model.get("class"):
        facts.append(str(model["class"]))
    if isinstance(model.get("parameters"), int):
        facts.append(f"{number(model['parameters'])} parameters")
    first, last = number(int(steps[0])), number(int(steps[-1]))
    span = f"step {first}" if len(steps) == 1 else f"steps {first}–{last}"
    facts.append(f"{span}, {number(len(steps))} recorded")
    ranks = {c.rank for c in run.columns}
    if len(ranks) > 1:
        facts.append(f"{len(ranks)} ranks, averaged")
    if run.meta.get("created"):
        facts.append(str(run.meta["created"]).replace("T", " ")[:16])
    return facts


def _tiles(run: Run, ends: Ends | None) -> list[tuple[str, str]]:
    found = _headlines(run).items()
    tiles = [(title, number(value)) for title, value in found if value is not None]
    if ends and math.isfinite(ends.ratio):
        names = (shorten(name, 24) for name in (ends.first_site, ends.last_site))
        tiles.append((f"gradient, {' / '.join(names)}", number(ends.ratio, 2)))
    return tiles


def _details(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    meta = run.meta
    model = {k: v for k, v in (meta.get("model") or {}).items() if k != "text"}
    general = {
        "file": run.path.name if run.path else None,
        "created": meta.get("created"),
        "status": meta.get("status"),
        "recorded every": f"{meta['every']} steps" if "every" in meta else None,
        "git commit": meta.get("git_commit"),
        "command": " ".join(map(str, meta.get("argv") or [])),
    }
    versions = {k: meta.get(k) for k in ("gradscope", "torch", "python", "platform")}
    seconds = {k: f"{number(float(v))} s" for k, v in (meta.get("timings") or {}).items()}
    if (step := _step_seconds(run)) is not None:
        seconds["a recorded step, median"] = f"{number(step)} s"
    groups = {
        "Recording": general,
        "Model": model,
        "Optimizer": meta.get("optimizer") or {},
        "Arguments": meta.get("args") or {},
        "Versions": versions,
        "Timings": seconds,
    }
    listed = [
        (
            title,
            [(str(k).replace("_", " "), _text(v)) for k, v in group.items() if v not in (None, "")],
        )
        for title, group in groups.items()
    ]
    return [(title, rows) for title, rows in listed if rows]


def _step_seconds(run: Run) -> float | None:
    timed = run.frame("scalar", "value")
    values = timed["value"][timed["site"] == "step_seconds"]
    return float(values.median()) if len(values) else None


def _definitions(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    recorded = {c.metric for r in runs for c in r.columns}
    if "grad_norm" in recorded:
        recorded.add("grad_rms")
    return [(name, m.unit, m.definition) for name, m in METRICS.items() if name in recorded]


def _text(value: Any, digits: int = 3) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value, digits)
    if isinstance(value, list | tuple):
        return ", ".join(_text(v, digits) for v in value)
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_text(v, digits)}" for k, v in value.items())
    return str(value)
