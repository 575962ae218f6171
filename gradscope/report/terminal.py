"""Tables for a terminal, as rich renderables; nothing here prints.

Names from a run become `Text` through `_name`, never markup (`lstm[1]` is a name, not a style)
and never control characters.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradscope.figures._text import number, printable, shorten
from gradscope.report._page import FindingView, Page, last_values, verdict
from gradscope.run import KINDS, Run

COLOURS = {"critical": "bold red", "warning": "yellow", "info": "blue"}
SITES = 20
"""Sites listed unless all are asked for."""


def summary(page: Page) -> Group:
    """All findings, worst first, and what was checked, run by run."""
    parts: list[RenderableType] = []
    several = len(page.runs) > 1
    if several:
        parts += [comparison(page), Text("")]
    if page.findings:
        parts.append(findings(page.findings, page, several))
    for i, view in enumerate(page.runs):
        whose = f"{view.run.name}: " if several else ""
        parts.append(_name(f"{whose}{verdict(page.counts(i))}; {view.ran}."))
        if not view.complete:
            parts.append(_name(f"{view.run.name} was cut off: its recording was never closed."))
        if view.ended:
            parts.append(_name(f"{view.run.name}: the training ended with {view.ended}."))
    return Group(*parts)


def findings(views: Sequence[FindingView], page: Page, several: bool) -> Table:
    """One row a finding: what it is and where, when, and what to do about it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("severity", no_wrap=True)
    table.add_column("finding", overflow="fold", max_width=30)
    table.add_column("steps", no_wrap=True)
    table.add_column("what it means, and what to do", overflow="fold", ratio=1)
    for view in views:
        f = view.finding
        what = Text(f.rule, style="bold")
        what.append(f"\n{printable(f.site)}" if f.site else "", style="not bold")
        message = _name(view.message)
        if view.cause:
            message.append(f" Explained by {view.cause}.", style="bold")
        message.append(f"\n→ {printable(view.remedy)}\n", style="dim")
        steps = view.steps.partition(" ")[2]
        run = f"\n{printable(page.runs[view.run].run.name)}" if several else ""
        what.append(run, style="not bold dim")
        severity = Text(f.severity, style=COLOURS[f.severity])
        table.add_row(view.label, severity, what, steps, message)
    return table


def comparison(page: Page) -> Table:
    """Final values of the runs, and how much gradient arrives at their first layer."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("loss", "accuracy", "val. accuracy", "first-layer gradient", "first / last"):
        table.add_column(name, justify="right")
    for view, row in zip(page.runs, page.compared, strict=True):
        values = (row.loss, row.accuracy, row.val_accuracy, row.first_layer, row.ratio)
        table.add_row(_name(view.run.name), *("–" if v is None else number(v) for v in values))
    return table


def contents(run: Run, *, all_sites: bool = False) -> Group:
    """What a run holds: about it, counts by kind, logged scalars, sites."""
    parts: list[RenderableType] = [_about(run), _kinds(run)]
    if scalars := last_values(run):
        table = _table("scalar", "last value", "at step", right=(1, 2))
        for name, (step, value) in scalars.items():
            table.add_row(_name(name), number(value), number(step))
        parts.append(table)
    sites = [s for kind in KINDS if kind != "scalar" for s in run.sites_of(kind, aliases=True)]
    if sites:
        shown = sites if all_sites else sites[:SITES]
        table = _table("site", "kind", "type", "shape")
        for s in shown:
            label = _name(s.name if all_sites else shorten(s.name, 60))
            label.append(f"  = {printable(s.alias_of)}" if s.alias_of else "", style="dim")
            table.add_row(label, s.kind, _name(s.type), " × ".join(map(str, s.shape)))
        parts.append(table)
        if len(shown) < len(sites):
            parts.append(Text(f"… and {len(sites) - len(shown)} more sites (--sites lists all)"))
    return Group(*_spaced(parts))


def _about(run: Run) -> Table:
    meta, steps = run.meta, run.steps
    model, optimizer = meta.get("model") or {}, meta.get("optimizer") or {}
    span = "none"
    if len(steps):
        span = f"{number(len(steps))}, from {number(int(steps[0]))} to {number(int(steps[-1]))}"
    parameters = model.get("parameters")
    rows = {
        "run": run.name,
        "file": str(run.path or ""),
        "status": "complete" if meta.get("status") == "complete" else "cut off while recording",
        "ended with": str(meta.get("ended") or ""),
        "processes": _processes(run),
        "recorded steps": span,
        "every": f"{meta['every']} optimizer steps" if "every" in meta else "",
        "model": str(model.get("class", "")),
        "parameters": number(parameters) if isinstance(parameters, int) else "",
        "optimizer": str(optimizer.get("class", "")),
        "created": str(meta.get("created", "")),
        "made with": ", ".join(f"{k} {meta[k]}" for k in ("gradscope", "torch") if meta.get(k)),
        "git commit": str(meta.get("git_commit") or ""),
        "not seen": str(len(meta.get("unseen") or []) or ""),
        "errors": str(len(meta.get("errors") or []) or ""),
    }
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, _name(value))
    return table


def _processes(run: Run) -> str:
    """Which of the processes of a parallel run are in this one; "" for a run of one."""
    if "process" in run.meta:
        alone = run.meta["process"]
        return f"rank {alone['rank']} of {alone['world_size']}, alone"
    several = run.meta.get("processes")
    return f"{len(several['parts'])} of {several['world_size']}" if several else ""


def _kinds(run: Run) -> Table:
    sites = Counter(kind for kind, _ in run.sites)
    series = Counter(c.kind for c in run.columns)
    metrics: dict[str, dict[str, None]] = defaultdict(dict)
    values: Counter[str] = Counter()
    for c in run.columns:
        metrics[c.kind][c.metric] = None
    for block in run.blocks:
        for c, count in zip(block.columns, block.present.sum(axis=0), strict=True):
            values[run.columns[c].kind] += int(count)
    table = _table("kind", "sites", "series", "values", "metrics", right=(1, 2, 3))
    for kind in KINDS:
        if series[kind]:
            counts = (sites[kind], series[kind], values[kind])
            table.add_row(kind, *map(number, counts), _name(", ".join(metrics[kind])))
    return table


def _name(text: str) -> Text:
    return Text(printable(text))


def _table(*names: str, right: Sequence[int] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i in right else "left", overflow="fold")
    return table


def _spaced(parts: Sequence[RenderableType]) -> list[RenderableType]:
    return [p for part in parts for p in (part, Text(""))][:-1]
