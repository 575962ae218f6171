import numpy as np
import pytest

from gradscope import Run
from gradscope.figures import Mark, named_pathways
from gradscope.figures._named_pathways import SOURCES, series
from tests.reference.made_up_pathways import pathway

STEPS = (0, 10, 20, 30)


def run_of(*rows):
    return Run.from_records([row for part in rows for row in part])


def test_lines_are_the_shares_and_the_lengths():
    figure = named_pathways(run_of(pathway("s", "latent", 3.0, 4.0, STEPS)))
    left, right = figure.axes
    assert left.lines[0].get_ydata() == pytest.approx([9 / 25] * 4)
    assert [line.get_ydata()[0] for line in right.lines] == [3.0, 4.0]
    assert [line.get_linestyle() for line in right.lines] == ["-", "--"]
    assert right.get_yscale() == "log"


def test_a_part_that_is_zero_has_no_place_on_a_log_axis():
    right = named_pathways(run_of(pathway("s", "softmax", 1.0, 0.0, STEPS))).axes[1]
    assert np.isnan(right.lines[1].get_ydata()).all()


def test_pathways_of_one_source_share_its_row():
    rows = pathway("s", "latent", 1.0, 2.0, STEPS), pathway("s", "softmax", 2.0, 1.0, STEPS)
    run = run_of(*rows)
    assert [(s.source, s.name) for s in series(run)] == [("s", "latent"), ("s", "softmax")]
    figure = named_pathways(run)
    assert len(figure.axes) == 2
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert texts == ["latent", "softmax", "the rest, past that pathway"]


def test_sources_with_findings_go_first():
    run = run_of(*[pathway(f"s{i}", "p", 1.0, 1.0, STEPS) for i in range(9)])
    mark = Mark("F1", "warning", "s8", 0, 30, kind="pathway")
    figure = named_pathways(run, [mark])
    titles = [a.get_title(loc="left") for a in figure.axes[::2]]
    assert titles == ["F1  s8", "s0", "s1", "s2", "s3"]
    assert len(titles) == SOURCES


def test_a_share_below_zero_is_in_view():
    rows = [(*r[:5], -0.5 if r[4] == "projection" else r[5]) for r in pathway("s", "p", 1, 1)]
    assert named_pathways(run_of(rows)).axes[0].get_ylim()[0] < -0.5
