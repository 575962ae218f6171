"""How the score is shown: a table in the terminal, and the files of the report."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from rich.console import Console
from rich.table import Table

from analyses.faults.scoring import Judged, cases_table, interval, summary, tally


def score_table(judged: dict[str, list[Judged]]) -> pd.DataFrame:
    """`tally` for each judge and each split, and for both together."""
    parts = []
    for name, rows in judged.items():
        for split in ("both", "tune", "test"):
            some = [j for j in rows if split in ("both", j.case.split)]
            if some:
                parts.append(tally(some).assign(judge=name, split=split))
    table = pd.concat(parts, ignore_index=True)
    front = ["judge", "split", "rule"]
    return table[[*front, *(c for c in table.columns if c not in front)]]


def show(score: pd.DataFrame, judged: dict[str, list[Judged]], console: Console) -> None:
    """The table, and what is wrong with which case."""
    for split in ("tune", "test", "both"):
        part = score[(score["split"] == split) & (score["judge"] == "gradscope")]
        if len(part):
            console.print(_rich(part, split))
    for row in judged["gradscope"]:
        trouble = [*(f"missed {r}" for r in row.misses), *(f"false {r}" for r in row.false_alarms)]
        if row.root_right is False and not row.misses:
            trouble.append(f"first is {row.first}")
        if row.operation_right is False:
            trouble.append(f"operation {row.operation or 'not named'}")
        if trouble:
            console.print(f"[dim]{row.case.split}[/] {row.case.name}: {', '.join(trouble)}")
    for text, (k, n) in summary(judged["gradscope"]).items():
        console.print(f"{k} of {n} {text}")
    rest = score[(score["rule"] == "all") & (score["split"] == "both")]
    console.print(_rich(rest, "all judges", by="judge"))


def _rich(part: pd.DataFrame, title: str, by: str = "rule") -> Table:
    table = Table(title=title, header_style="bold")
    for name in (by, "hits", "missed", "false", "precision", "recall", "false per healthy run"):
        table.add_column(name, justify="left" if name == by else "right")
    for _, r in part.iterrows():
        table.add_row(
            str(r[by]),
            str(r["hits"]),
            str(r["misses"]),
            str(r["false_alarms"]),
            share(r, "precision"),
            share(r, "recall"),
            f"{r['per_healthy_run']:.3f}",
        )
    return table


def share(row: pd.Series, name: str) -> str:
    """0.93 (0.80 – 0.98)"""
    if pd.isna(row[name]):
        return "–"
    return f"{row[name]:.2f} ({row[f'{name}_low']:.2f} – {row[f'{name}_high']:.2f})"


def write(out: Path, score: pd.DataFrame, judged: dict[str, list[Judged]], seconds: float) -> None:
    """README.md, score.csv, cases.csv and score.png."""
    out.mkdir(parents=True, exist_ok=True)
    score.to_csv(out / "score.csv", index=False, float_format="%.4g")
    cases_table(judged).to_csv(out / "cases.csv", index=False)
    figure(score).savefig(out / "score.png", dpi=110)
    plt.close("all")
    (out / "README.md").write_text(readme(score, judged, seconds))


def figure(score: pd.DataFrame) -> plt.Figure:
    """Precision and recall of each rule on the cases that rules are not tuned on."""
    part = score[(score["split"] == "test") & (score["judge"] == "gradscope")].iloc[::-1]
    fig, axes = plt.subplots(1, 2, figsize=(9, 0.28 * len(part) + 1), sharey=True)
    for axis, name in zip(axes, ("precision", "recall"), strict=True):
        low, high = part[f"{name}_low"], part[f"{name}_high"]
        axis.hlines(part["rule"], low, high, color="0.7", lw=3)
        axis.plot(part[name], part["rule"], "o", color="C0")
        axis.set_xlim(-0.02, 1.02)
        axis.set_xlabel(f"{name} (Wilson, 95 %)")
        axis.grid(axis="x", lw=0.3)
    fig.suptitle("Rules on the test part of the corpus")
    fig.tight_layout()
    return fig


def readme(score: pd.DataFrame, judged: dict[str, list[Judged]], seconds: float) -> str:
    mine = judged["gradscope"]
    faulty = sum(bool(j.case.fault) for j in mine)
    lines = [
        "# How often are the rules right?",
        "",
        f"A corpus of {faulty} training runs with a known fault and {len(mine) - faulty} healthy "
        "ones (`analyses/faults`), recorded and\nanalysed as any run is. Labels come from how a "
        "run was made, and every run was checked by\nmeasurements of its own (`verified.csv`, "
        "made without gradscope). The *test* cases (the modules of\n`independent/` with "
        '`SPLITS = ("test",)`) were written without sight of the rules or of other cases, and '
        "scored\nwhen the rules had been fixed; *tune* are the others, that rules were tuned on. "
        "Every share with\nWilson's 95 % interval.",
        "",
        "![precision and recall of each rule](score.png)",
        "",
    ]
    for split in ("test", "tune"):
        part = score[(score["split"] == split) & (score["judge"] == "gradscope")]
        lines += [f"## {split}", "", *_markdown(part, "rule"), ""]
        some = [j for j in mine if j.case.split == split]
        for text, (k, n) in summary(some).items():
            low, high = interval(k, n)
            lines.append(f"- {k} of {n} {text} ({low:.2f} – {high:.2f})")
        lines.append("")
    lines += [
        "## Earlier test sets",
        "",
        "Each was scored once, with the rules of the commit named, and is tuned on since: the "
        "rules of today know\nit. They show how far the score of one set is from that of the next.",
        "",
        *_earlier(),
        "",
        "## Other tools' rules on the same recordings",
        "",
        "Absolute limits on one tensor, or the first layer against the last (`baselines.py` says "
        "which; the\nroot mean square of a gradient stands in for its mean absolute value). "
        "They have no rule for most\nfaults, so recall is shown for those they do have a rule for, "
        "too.",
        "",
        *_markdown(score[(score["rule"] == "all") & (score["split"] == "test")], "judge"),
        "",
        *_baseline_rules(score),
        "",
        "Made by `python -m analyses.faults --out reports/faults` and, for `verified.csv`,",
        "`python -m analyses.faults.verify --out reports/faults`. The recorded trainings took "
        f"{seconds:.0f} s in all,\non one thread each.",
        "",
    ]
    return "\n".join(lines)


def _markdown(part: pd.DataFrame, by: str) -> list[str]:
    lines = [
        f"| {by} | hits | missed | false alarms | precision | recall | per healthy run |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for _, r in part.iterrows():
        lines.append(
            f"| {r[by]} | {r['hits']} | {r['misses']} | {r['false_alarms']} | "
            f"{share(r, 'precision')} | {share(r, 'recall')} | {r['per_healthy_run']:.3f} |"
        )
    return lines


def _earlier() -> list[str]:
    """What the sets that are tuned on now gave when they were scored (`earlier.csv`)."""
    lines = [
        "| set | rules at | precision | recall | root cause first | healthy runs with an alarm |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for _, r in pd.read_csv(Path(__file__).with_name("earlier.csv")).iterrows():
        shares = []
        for k, n in ((r["hits"], r["hits"] + r["false_alarms"]), (r["hits"], r["faulty"])):
            low, high = interval(k, n)
            shares.append(f"{k / n:.2f} ({low:.2f} – {high:.2f})")
        lines.append(
            f"| {r['set']} | `{r['rules_at']}` | {' | '.join(shares)} | "
            f"{r['root_first']} of {r['faulty']} | {r['healthy_with_alarm']} of {r['healthy']} |"
        )
    return lines


def _baseline_rules(score: pd.DataFrame) -> list[str]:
    rules = ["vanishing-gradient", "exploding-gradient", "dead-units", "non-finite"]
    part = score[score["rule"].isin(rules) & (score["split"] == "test")].copy()
    part["judge and rule"] = part["judge"] + ": " + part["rule"]
    order = part["rule"].map(rules.index)
    return _markdown(part.assign(order=order).sort_values(["order", "judge"]), "judge and rule")
