"""silent-rank: which process fell silent, since when, and when nothing is wrong."""

import pytest

from gradscope import Run
from gradscope.findings import analyze, check


def run_of(*parts, world_size=None, flush_every=5.0):
    """Each part: its last recorded step, and what it says of itself otherwise."""
    rows, told = [], []
    for rank, (last, more) in enumerate(parts):
        rows += [(step, "a", "module", "", "grad_norm", 1.0, rank) for step in range(last + 1)]
        rows += [(step, "loss", "scalar", "", "value", 1.0, rank) for step in range(last + 1)]
        entry = {"rank": rank, "status": "complete", "ended": "", "seconds": 100.0, "errors": 0}
        told.append({**entry, "last_step": last if last >= 0 else None, **more})
    processes = {"world_size": world_size or len(parts), "parts": told}
    return Run.from_records(rows, (), {"processes": processes, "flush_every": flush_every})


def silent(run):
    return [f for f in analyze(run) if f.rule == "silent-rank"]


OPEN = {"status": "recording"}


def test_processes_that_ended_together_are_fine():
    assert silent(run_of((20, {}), (20, {}))) == []


def test_a_part_that_was_never_closed_names_a_killed_process():
    (finding,) = silent(run_of((20, {"ended": "RuntimeError: peer"}), (14, OPEN), (20, {})))
    assert (finding.severity, finding.site) == ("critical", "rank 1")
    assert (finding.first_step, finding.last_step) == (14, 20)
    assert finding.evidence["ranks"] == [1] and finding.evidence["state"] == "killed"
    assert "Rank 1 never closed" in finding.message and "RuntimeError: peer" in finding.message


def test_several_killed_processes_are_one_finding():
    (finding,) = silent(run_of((20, {}), (14, OPEN), (12, OPEN)))
    assert finding.evidence["ranks"] == [1, 2]
    assert finding.evidence["last_step"] == 12
    assert finding.message.startswith("Ranks 1 and 2 ")


def test_a_process_that_stopped_on_its_own_is_a_warning():
    (finding,) = silent(run_of((20, {}), (9, {"errors": 1, "ended": "ValueError: odd"})))
    assert (finding.severity, finding.evidence["state"]) == ("warning", "stopped")
    assert finding.evidence["errors"] == 1
    assert "ValueError: odd" in finding.message


def test_a_run_that_goes_on_has_no_silent_process_for_a_while():
    late = {**OPEN, "seconds": 90.0}
    assert silent(run_of((20, OPEN), (15, late), flush_every=5.0)) == []
    (finding,) = silent(run_of((20, OPEN), (15, late), flush_every=3.0))
    assert finding.evidence["state"] == "hangs"
    # As far as the others: nobody went on.
    assert silent(run_of((20, OPEN), (20, late), flush_every=3.0)) == []


def test_a_process_that_was_killed_before_its_first_step_is_named():
    (finding,) = silent(run_of((20, {}), (-1, OPEN)))
    assert finding.first_step == 0
    assert "holds no step" in finding.message


def test_a_process_that_was_never_asked_for_a_recording_is_not_judged():
    assert silent(run_of((20, {}), (20, {}), world_size=4)) == []


@pytest.mark.parametrize(
    "run", [run_of((20, {})), Run.from_records([(0, "a", "module", "", "grad_norm", 1.0)])]
)
def test_one_process_is_not_applicable(run):
    (outcome,) = [o for o in check(run).outcomes if o.rule == "silent-rank"]
    assert outcome.skipped == "one process"
