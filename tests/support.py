"""The support matrix: which test proves which number for which model, loop or set of processes.

A test declares its cells:

    @pytest.mark.supports(model="GPT-2, sdpa", shows=["forks"])
    @pytest.mark.supports(loop="reentrant checkpoint", hides=["softmaxes"], because="…")
    @pytest.mark.supports(process="DDP, 2 ranks", shows=["parameters", "identical training"])

- The row is a `model=`, a `loop=` or a `process=` (how processes are started and wrapped).
- `shows=`: the test compares these numbers with an independent computation.
- `hides=`: the test finds that they are *not* recorded, and that the run or an error says so;
  `because=` is the reason, in a few words.
- `lacks=`: there is nothing of the kind to record there, and the test finds nothing recorded.

A case of a parametrized test declares with `pytest.param(…, marks=pytest.mark.supports(…))`.
`python -m tests.support` writes docs/support.md from what the tests declare, and
`--check` says whether it is what they declare.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "support.md"

GROUPS = {
    "model": "Models",
    "loop": "Training loops",
    "process": "Processes, launchers, frameworks",
}
COLUMNS = {
    "module gradients": "`grad_norm` and `grad_rms` at every module's output",
    "forks": "every edge's `grad_norm`, `projection` and `cosine`, and the `cancellation`",
    "softmaxes": "`entropy`, `max_prob`, `jacobian_norm` and `gain`",
    "parameters": "`grad_norm` of every parameter as the optimizer uses it",
    "updates": "`weight_norm` and `update_ratio` of every parameter",
    "scalars": "what was logged, at its step",
    "identical training": "losses, weights, optimizer state and random generators are the same "
    "bit for bit with and without gradscope",
    "nothing left": "no hook and no attribute is left behind",
}
CLAIMS = ("shows", "hides", "lacks")


class Cell(NamedTuple):
    """One claim of one test.

    Attributes:
        group: one of `GROUPS`; `column`: one of `COLUMNS`; `claim`: one of `CLAIMS`.
        because: why the numbers are hidden; "" otherwise.
        file: of the test, relative to the repository; `test`: its function.
    """

    group: str
    row: str
    column: str
    claim: str
    because: str
    file: str
    test: str


def cells_of(marker: pytest.Mark, file: str, test: str) -> list[Cell]:
    """The cells that a marker declares.

    Raises:
        ValueError: if the marker is not of the form above.
    """
    where = f"{file}::{test}: supports"
    given = dict(marker.kwargs)
    if marker.args:
        raise ValueError(f"{where} takes keywords only, not {marker.args}")
    rows = [(group, given.pop(group)) for group in GROUPS if group in given]
    if len(rows) != 1:
        raise ValueError(f"{where} takes one of {', '.join(GROUPS)}")
    because = given.pop("because", "")
    if bool(because) != ("hides" in given):
        raise ValueError(f"{where}: because= is the reason for hides=, and each needs the other")
    claims = {claim: given.pop(claim) for claim in CLAIMS if claim in given}
    if given or not claims:
        raise ValueError(f"{where} takes {', '.join(CLAIMS)}, not {list(given)}")
    cells = []
    for claim, columns in claims.items():
        for column in [columns] if isinstance(columns, str) else columns:
            if column not in COLUMNS:
                raise ValueError(f"{where}: no column {column!r}; one of {', '.join(COLUMNS)}")
            reason = because if claim == "hides" else ""
            cells.append(Cell(*rows[0], column, claim, reason, file, test))
    return cells


def page(cells: Iterable[Cell]) -> str:
    """The matrix as Markdown.

    Raises:
        ValueError: if one test shows what another finds hidden.
    """
    by_group: dict[str, dict[str, dict[str, list[Cell]]]] = {group: {} for group in GROUPS}
    for cell in sorted(set(cells), key=lambda c: (c.file, c.test)):
        by_group[cell.group].setdefault(cell.row, {}).setdefault(cell.column, []).append(cell)
    reasons: list[str] = []
    links: dict[tuple[str, str], int] = {}
    parts = [HEAD, *(f"- **{name}**: {text}" for name, text in COLUMNS.items()), ""]
    for group, title in GROUPS.items():
        rows = by_group[group]
        if not rows:
            continue
        parts += [
            f"## {title}",
            "",
            f"| | {' | '.join(COLUMNS)} |",
            "|---" * (len(COLUMNS) + 1) + "|",
        ]
        for row in sorted(rows, key=str.casefold):
            shown = [_shown(rows[row].get(column, []), reasons, links) for column in COLUMNS]
            parts.append(f"| {row} | {' | '.join(shown)} |")
        parts.append("")
    if reasons:
        parts += ["## Not recorded, because", ""]
        parts += [f"{number}. {why}" for number, why in enumerate(reasons, 1)]
        parts.append("")
    parts += [f'[{number}]: ../{file} "{test}"' for (file, test), number in links.items()]
    return "\n".join(parts) + "\n"


HEAD = """# What is proved to be right

Every ✓ links the test that compares the recorded numbers with an independent computation: plain
tensor hooks, `torch.autograd.grad`, the softmax written out row by row, training without
gradscope. ∅ means that there is nothing of the kind, and that nothing is recorded. ✗ means that
gradscope can't see it, and says so; the reasons are below. An empty cell has no test yet.

`python -m tests.support` writes this page from what the tests declare.
"""


def _shown(cells: list[Cell], reasons: list[str], links: dict[tuple[str, str], int]) -> str:
    claims = {cell.claim for cell in cells}
    if len(claims) > 1:
        told = "; ".join(f"{c.file}::{c.test} {c.claim}" for c in cells)
        raise ValueError(f"{cells[0].row}, {cells[0].column}: tests disagree: {told}")
    shown: dict[str, str] = {}
    for cell in cells:
        if cell.file in shown:  # one link a file
            continue
        sign = {"shows": "✓", "hides": "✗", "lacks": "∅"}[cell.claim]
        number = links.setdefault((cell.file, cell.test), len(links) + 1)
        link = f"[{sign}][{number}]"
        if cell.because:
            if cell.because not in reasons:
                reasons.append(cell.because)
            link += f"({reasons.index(cell.because) + 1})"
        shown[cell.file] = link
    return " ".join(shown.values())


class Collector:
    """A pytest plugin that gathers the cells of all tests collected."""

    def __init__(self) -> None:
        self.cells: list[Cell] = []
        self.wrong: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        for item in items:
            for marker in item.iter_markers("supports"):
                file = item.path.relative_to(ROOT).as_posix()
                try:
                    self.cells += cells_of(marker, file, item.originalname)
                except ValueError as error:
                    self.wrong.append(str(error))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write docs/support.md from the tests' markers.")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    check = parser.parse_args(arguments).check
    collector = Collector()
    with contextlib.redirect_stdout(io.StringIO()) as told:
        code = pytest.main(
            ["--collect-only", "-qq", "-p", "no:cacheprovider", str(ROOT / "tests")],
            plugins=[collector],
        )
    try:
        if code != pytest.ExitCode.OK:
            errors = told.getvalue().partition("= ERRORS =")[2]
            raise ValueError(f"{errors}\nthe tests could not be collected")
        if collector.wrong:
            raise ValueError("\n".join(collector.wrong))
        text = page(collector.cells)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if not check:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print("docs/support.md is out of date: run python -m tests.support", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
