"""Is every fault of the corpus one, and every healthy run healthy? Measured without gradscope.

    python -m analyses.faults.verify [--only GLOB] [--jobs 2] [--out reports/faults]

Trains every case bare, looks at gradients, activations, weights and losses (`observe.py`), and
gives each one's verdict (`symptoms.py`). "unsaid" are conditions that hold and that the label
does not mention.
"""

from __future__ import annotations

import csv
import math
import pickle
from pathlib import Path
from typing import Annotated, Any

import typer

from analyses.faults.case import Case
from analyses.faults.corpus import chosen, corpus
from analyses.faults.observe import Observed, observe
from analyses.faults.recordings import FOLDER, forget, in_processes, source_key
from analyses.faults.scoring import plain
from analyses.faults.symptoms import also, healthy


def observed(name: str) -> Observed:
    """A case's observations, from the folder of recordings if they are there."""
    case = next(c for c in corpus() if c.name == name)
    key = source_key(case, "observe.py")
    path = FOLDER / f"{name.replace('/', '__')}--{key}.observed"
    if path.exists():
        return pickle.loads(path.read_bytes())
    found = observe(case.make, half=case.group == "underflow")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(found))
    forget(path)
    return found


def _observe(name: str) -> str:
    try:
        observed(name)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def verdict(case: Case) -> dict[str, Any]:
    """A case's evidence; "is" tells whether it is what its label says."""
    if not case.fault:
        return healthy(falls=not case.flat)(observed(case.name), None)
    assert case.symptom is not None, f"{case.name} has no symptom"
    twin = observed(case.twin) if case.twin else None
    evidence = case.symptom(observed(case.name), twin)
    if case.operation:
        evidence["is"] &= plain(evidence["operation"]) in map(plain, case.operation)
    return evidence


def main(
    only: Annotated[str, typer.Option(help="Pattern of names.")] = "*",
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for verified.csv.")] = None,
) -> None:
    """Print every case's verdict; exit code 1 if one isn't what its label says."""
    cases = chosen(only)
    names = sorted({c.name for c in cases} | {c.twin for c in cases if c.twin})
    trouble = {n: t for n, t in in_processes(_observe, names, jobs) if t}
    rows, wrong = [], 0
    for case in cases:
        broken = trouble.get(case.name) or trouble.get(case.twin)
        evidence = {"is": False, "error": broken} if broken else verdict(case)
        is_one = evidence.pop("is")
        wrong += not is_one
        unsaid = [] if broken else also(observed(case.name))
        unsaid = [rule for rule in unsaid if rule not in case.expected | case.may]
        shown = ", ".join(f"{k} {_short(v)}" for k, v in evidence.items())
        print(f"{'ok ' if is_one else 'NOT'}  {case.name:45} {shown} {' '.join(unsaid)}")
        rows.append(
            {
                "case": case.name,
                "as_labelled": is_one,
                "evidence": shown,
                "unsaid": " ".join(unsaid),
            }
        )
    print(f"{len(cases) - wrong} of {len(cases)} are what their labels say")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "verified.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, ["case", "as_labelled", "evidence", "unsaid"])
            table.writeheader()
            table.writerows(rows)
    raise typer.Exit(int(wrong > 0))


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if math.isfinite(value) else str(value)
    return str(value)


if __name__ == "__main__":
    typer.run(main)
