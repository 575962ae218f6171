"""A process that is killed leaves a run that can be analysed, and is named."""

import pytest

import gradscope
from tests.distributed.die import LAST
from tests.distributed.launch import launch


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("death")
    done = launch("die.py", 2, directory)
    assert done.returncode != 0
    return directory


def test_what_was_recorded_until_then_is_there(directory):
    assert (directory / "run.rank1.pt.journal").exists()
    run = gradscope.load(directory / "run.pt")
    assert run.ranks == [0, 1]
    assert run.meta["status"] == "recording"
    for rank in run.ranks:
        steps = run.of_rank(rank).steps.tolist()
        assert steps == list(range(0, LAST, 2))
        norms = run.of_rank(rank).wide("module", "grad_norm")
        assert norms.shape[1] > 5 and norms.notna().all(axis=None)


def test_it_is_named(directory):
    run = gradscope.load(directory / "run.pt")
    (finding,) = [f for f in gradscope.analyze(run) if f.rule == "silent-rank"]
    assert finding.severity == "critical"
    assert finding.evidence["ranks"] == [1]
    assert finding.evidence["state"] == "killed"
    assert finding.evidence["last_step"] == LAST - 1
    assert finding.message.startswith("Rank 1 ")
    assert "rank 0 ended with" in finding.message


def test_its_report_shows_the_processes(directory, tmp_path):
    page = gradscope.report(gradscope.load(directory / "run.pt"), tmp_path / "report")
    assert (page.parent / "figures" / "processes.png").exists()
    assert "never closed the recording" in page.read_text()
