"""The support matrix says what the tests declare, and declares nothing twice over."""

import subprocess
import sys

import pytest

from tests.support import COLUMNS, ROOT, Cell, cells_of, page


def marker(*args, **kwargs):
    return pytest.mark.supports(*args, **kwargs).mark


def cell(column="forks", claim="shows", because="", file="tests/test_a.py", test="test_a", row="R"):
    return Cell("model", row, column, claim, because, file, test)


def test_the_committed_page_is_what_the_tests_declare():
    done = subprocess.run(
        [sys.executable, "-m", "tests.support", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_marker_declares_a_cell_for_each_column():
    found = cells_of(
        marker(loop="L", shows=["forks", "updates"], hides="softmaxes", because="so"), "f", "t"
    )
    assert found == [
        Cell("loop", "L", "forks", "shows", "", "f", "t"),
        Cell("loop", "L", "updates", "shows", "", "f", "t"),
        Cell("loop", "L", "softmaxes", "hides", "so", "f", "t"),
    ]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (marker("GPT-2", shows="forks"), "keywords only"),
        (marker(shows="forks"), "one of model, loop, process"),
        (marker(model="a", loop="b", shows="forks"), "one of model, loop, process"),
        (marker(model="a"), "shows, hides, lacks"),
        (marker(model="a", shows="forks", proves="forks"), "proves"),
        (marker(model="a", shows="fork"), "no column 'fork'"),
        (marker(model="a", hides="forks"), "because="),
        (marker(model="a", shows="forks", because="why not"), "because="),
    ],
)
def test_a_marker_of_another_form_is_told(wrong, told):
    with pytest.raises(ValueError, match=told):
        cells_of(wrong, "tests/test_a.py", "test_a")


def row_of(text, row):
    """The cells of a row, by column."""
    (line,) = [x for x in text.splitlines() if x.startswith(f"| {row} |")]
    return dict(zip(COLUMNS, (c.strip() for c in line.split("|")[2:-1]), strict=True))


def test_a_cell_links_every_file_that_proves_it_once():
    cells = [
        cell(),
        cell(test="test_b"),
        cell(file="tests/test_c.py", test="test_c"),
        cell("softmaxes", "lacks"),
    ]
    text = page(cells)
    row = row_of(text, "R")
    assert row == dict.fromkeys(COLUMNS, "") | {
        "forks": "[✓][1] [✓][2]",
        "softmaxes": "[∅][1]",
    }
    assert '[1]: ../tests/test_a.py "test_a"' in text
    assert '[2]: ../tests/test_c.py "test_c"' in text


def test_reasons_are_numbered_and_told_once():
    cells = [
        cell("softmaxes", "hides", "it is dark"),
        cell("forks", "hides", "it is dark"),
        cell("forks", "hides", "it is far", row="S"),
    ]
    text = page(cells)
    assert row_of(text, "R")["softmaxes"].endswith("(1)")
    assert row_of(text, "S")["forks"].endswith("(2)")
    assert text.count("it is dark") == 1
    assert "2. it is far" in text


def test_tests_that_disagree_are_told():
    with pytest.raises(ValueError, match="R, forks: tests disagree"):
        page([cell(), cell(claim="hides", because="no", test="test_b")])


def test_the_order_of_collection_does_not_matter():
    cells = [cell(row=r, column=c) for r in "cab" for c in ("forks", "updates")]
    assert page(cells) == page(reversed(cells))
