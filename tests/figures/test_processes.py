import numpy as np
import pytest

from gradscope import Run
from gradscope.figures import processes
from gradscope.figures._processes import NAMED, gradients, losses

STEPS = (0, 10, 20)


def run_of(ranks, sizes=None, ends=None):
    """Rank r logs loss r + 1, and has `sizes[r]` times the gradient 1 and 10 of two modules."""
    sizes = sizes or [1.0] * ranks
    rows = []
    for rank in range(ranks):
        for step in STEPS:
            if ends and step > ends[rank]:
                continue
            rows.append((step, "loss", "scalar", "", "value", rank + 1.0, rank))
            rows.append((step, "lr", "scalar", "", "value", 0.1, rank))
            for name, size in (("a", 1.0), ("b", 10.0)):
                rows.append((step, name, "module", "", "grad_norm", size * sizes[rank], rank))
    return Run.from_records(rows)


def test_a_run_of_one_process_has_no_such_figure():
    assert processes(run_of(1)) is None
    assert processes.missing(run_of(1)) == "the run has one process"


def test_each_process_has_its_loss():
    name, found = losses(run_of(3))
    assert name == "loss"
    assert [(s.rank, *s.values) for s in found] == [(r, r + 1, r + 1, r + 1) for r in range(3)]


def test_gradients_are_told_relative_to_the_mean_of_the_processes():
    found = gradients(run_of(2, sizes=[1.0, 3.0]))
    assert [s.values.tolist() for s in found] == [[0.5] * 3, [1.5] * 3]


def test_a_process_that_fell_silent_ends_early():
    run = run_of(2, ends=[20, 0])
    assert [s.steps.tolist() for s in losses(run)[1]] == [[0, 10, 20], [0]]
    assert [s.steps.tolist() for s in gradients(run)] == [[0, 10, 20], [0]]
    assert gradients(run)[0].values.tolist() == [1.0, 1.0, 1.0]


def test_a_value_that_is_not_finite_is_a_cross_of_that_process_alone():
    run = run_of(2)
    for block in run.blocks:
        for j, column in enumerate(block.columns):
            if run.columns[column].rank == 1 and run.columns[column].site in ("a", "loss"):
                block.values[block.steps == 10, j] = np.nan
    for found in (losses(run)[1], gradients(run)):
        assert [s.lost.tolist() for s in found] == [[], [10]]
    assert gradients(run)[0].values.tolist() == pytest.approx([1.0, 1.0, 1.0])
    figure = processes(run)
    assert [sum(line.get_marker() == "x" for line in axes.lines) for axes in figure.axes] == [1, 1]


def test_few_processes_are_named_and_many_are_not():
    texts = [t.get_text() for t in processes(run_of(2)).legends[0].get_texts()]
    assert texts == ["rank 0", "rank 1"]
    assert not processes(run_of(NAMED + 1)).legends


def test_without_a_loss_the_gradients_are_shown():
    rows = [(0, "a", "module", "", "grad_norm", 1.0, rank) for rank in range(2)]
    figure = processes(Run.from_records(rows))
    assert "no loss" in figure.axes[0].texts[0].get_text()
    assert len(figure.axes[1].lines) == 3
