"""run.pt: what is written is read back, and nothing else is taken for a run."""

import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradscope
from gradscope.errors import RunError
from gradscope.run import Block, Column, Run, Site
from gradscope.store import Journal, journal_path, load, save


def example() -> Run:
    rows = [
        (step, site, "module", "", "grad_norm", value)
        for step in (0, 10, 20)
        for site, value in (("a", 1.0 + step), ("b", float("nan")))
    ]
    rows.append((5, "loss", "scalar", "", "value", 0.25))
    sites = [Site("a", "module", "Linear", order=1, depth=3, shape=(4, 2), numel=8)]
    return Run.from_records(rows, sites, {"name": "example", "args": {"lr": 0.1, "list": [1, "x"]}})


def assert_same(left: Run, right: Run) -> None:
    pd.testing.assert_frame_equal(left.frame(), right.frame())
    assert left.sites == right.sites


def test_what_is_saved_is_loaded(tmp_path):
    save(example(), tmp_path / "run.pt")
    run = load(tmp_path / "run.pt")
    assert_same(run, example())
    assert run.meta["args"] == {"lr": 0.1, "list": [1, "x"]}
    assert run.sites["module", "a"].shape == (4, 2)
    assert run.path == tmp_path / "run.pt"


def test_torch_opens_it_with_weights_only(tmp_path):
    save(example(), tmp_path / "run.pt")
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    assert state["schema_version"] == 1
    assert state["status"] == "complete"


def test_nan_that_was_measured_stays_and_what_was_not_is_no_row(tmp_path):
    save(example(), tmp_path / "run.pt")
    frame = load(tmp_path / "run.pt").frame("module", "grad_norm")
    assert frame[frame["site"] == "b"]["value"].isna().all()
    assert set(frame["step"]) == {0, 10, 20}  # step 5 has a loss only


def fill(journal: Journal, steps: int, columns_at: int = 0) -> None:
    """One frame a step; the column is declared with the first."""
    for step in range(steps):
        new = [Column("a", "module", "", "grad_norm")] if step == columns_at else []
        block = Block(
            np.array([step]), np.array([0]), np.array([[float(step)]]), np.array([[True]])
        )
        journal.append([], new, [block], {"timings": {"seconds": float(step)}})


def test_a_run_still_being_recorded_can_be_read(tmp_path):
    path = tmp_path / "run.pt"
    journal = Journal(path, Run(meta={"name": "x"}))
    fill(journal, 4)
    run = load(path)
    assert run.meta["status"] == "recording"
    assert run.frame()["value"].tolist() == [0, 1, 2, 3]
    assert run.meta["timings"] == {"seconds": 3.0}
    journal.finish()
    assert load(path).meta["status"] == "complete"
    assert load(path).frame()["value"].tolist() == [0, 1, 2, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.pt"]


@pytest.mark.parametrize("lost", [1, 5, 13, 200])
def test_a_frame_cut_off_by_a_kill_costs_that_frame_only(tmp_path, lost):
    path = tmp_path / "run.pt"
    journal = Journal(path, Run(meta={}))
    fill(journal, 5)
    raw = journal_path(path).read_bytes()
    journal_path(path).write_bytes(raw[:-lost])
    assert load(path).frame()["value"].tolist() == [0, 1, 2, 3]


def test_a_frame_with_a_flipped_bit_is_not_read(tmp_path):
    path = tmp_path / "run.pt"
    journal = Journal(path, Run(meta={}))
    fill(journal, 3)
    raw = bytearray(journal_path(path).read_bytes())
    raw[-100] ^= 1
    journal_path(path).write_bytes(raw)
    assert load(path).frame()["value"].tolist() == [0, 1]


@settings(max_examples=30)
@given(
    cells=st.lists(
        st.tuples(
            st.integers(0, 50),
            st.sampled_from(["a", "b", "c.d"]),
            st.sampled_from(["grad_norm", "update_ratio"]),
            st.floats(),
        ),
        max_size=40,
        unique_by=lambda c: c[:3],
    )
)
def test_any_numbers_survive(tmp_path_factory, cells):
    path = tmp_path_factory.mktemp("any") / "run.pt"
    run = Run.from_records([(s, n, "parameter", "", m, v) for s, n, m, v in cells])
    save(run, path)
    assert_same(load(path), run)


# -- what is no run --------------------------------------------------------------------


class Bomb:
    """Unpickling it would leave a file behind."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.system, (f"touch {self.target}",))


def bomb(path, target):
    torch.save({"format": "gradscope.run", "x": Bomb(target)}, path)


def raw_bomb(path, target):
    path.write_bytes(pickle.dumps(Bomb(target)))


def foreign_zip(path, target):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def truncated(path, target):
    save(example(), path)
    path.write_bytes(path.read_bytes()[:-300])


def cut_to_a_few_bytes(path, target):
    save(example(), path)
    path.write_bytes(path.read_bytes()[:10])


def missing_field(path, target):
    save(example(), path)
    state = torch.load(path, weights_only=True)
    del state["columns"]
    torch.save(state, path)


def wrong_shapes(path, target):
    save(example(), path)
    state = torch.load(path, weights_only=True)
    state["blocks"][0]["values"] = torch.zeros(1, 1, dtype=torch.float64)
    torch.save(state, path)


def future(path, target):
    save(example(), path)
    state = torch.load(path, weights_only=True)
    state["schema_version"] = 99
    torch.save(state, path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p, t: None, "does not exist"),
        (lambda p, t: p.mkdir(), "directory"),
        (lambda p, t: p.touch(), "empty"),
        (lambda p, t: p.write_text("hello"), "not a gradscope run"),
        (lambda p, t: torch.save({"w": torch.ones(2)}, p), "checkpoint"),
        (lambda p, t: torch.save([1, 2], p), "not a gradscope run"),
        (bomb, "not a gradscope run"),
        (raw_bomb, "not a gradscope run"),
        (foreign_zip, "not a gradscope run"),
        (truncated, "not a gradscope run"),
        (cut_to_a_few_bytes, "not a gradscope run"),
        (missing_field, "damaged"),
        (wrong_shapes, "damaged"),
        (future, "schema version 99"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(tmp_path, make, words):
    path, target = tmp_path / "thing.pt", tmp_path / "executed"
    make(path, target)
    with pytest.raises(RunError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert not target.exists()


def test_a_foreign_file_is_not_overwritten(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(2)}, path)
    before = path.read_bytes()
    with pytest.raises(RunError, match="left alone"):
        gradscope.attach(torch.nn.Linear(2, 2), out=path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_earlier_run_is_replaced(tmp_path):
    path = tmp_path / "run.pt"
    save(example(), path)
    gradscope.attach(torch.nn.Linear(2, 2), out=path).close()
    assert load(path).frame().empty


def test_a_folder_that_does_not_exist_is_made(tmp_path):
    gradscope.attach(torch.nn.Linear(2, 2), out=tmp_path / "a" / "b" / "run.pt").close()
    assert load(tmp_path / "a" / "b" / "run.pt").meta["status"] == "complete"


@pytest.mark.parametrize("out", ["/proc/run.pt", "/dev/null/run.pt"])
def test_a_place_that_can_not_be_written_is_named(out):
    with pytest.raises(RunError, match="can't write"):
        gradscope.attach(torch.nn.Linear(2, 2), out=out)


KILLED = """
import os, signal, sys, torch, gradscope
model = torch.nn.Linear(3, 3)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
scope = gradscope.attach(model, optimizer=optimizer, out=sys.argv[1], every=1, flush_every=0)
for step in range(7):
    loss = model(torch.ones(2, 3)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    scope.log(loss=loss)
{end}
"""


@pytest.mark.parametrize(
    ("end", "status", "steps"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "recording", 7),
        ("os._exit(3)", "recording", 7),
        ("raise RuntimeError('boom')", "complete", 7),
        ("", "complete", 7),
    ],
)
def test_a_process_that_ends_any_way_leaves_its_run(tmp_path, end, status, steps):
    path = tmp_path / "run.pt"
    subprocess.run(
        [sys.executable, "-c", KILLED.format(end=end), str(path)], capture_output=True, check=False
    )
    run = load(path)
    assert run.meta["status"] == status
    assert run.steps.tolist() == list(range(steps))
    assert {"weight", "bias"} <= set(run.frame("parameter")["site"])


def test_the_journal_is_frames_of_length_and_checksum(tmp_path):
    path = tmp_path / "run.pt"
    journal = Journal(path, Run(meta={}))
    fill(journal, 2)
    raw = journal_path(path).read_bytes()
    length, _ = struct.unpack_from("<QI", raw)
    assert struct.unpack_from("<QI", raw, 12 + length)[0] == len(raw) - length - 24


@pytest.mark.parametrize("kept", [100, 0.2, 0.7, 0.99])
def test_a_file_that_was_cut_off_is_called_so(tmp_path, kept):
    path = tmp_path / "run.pt"
    save(
        Run.from_records(
            [(s, f"l.{k}", "module", "", "grad_norm", 1.0) for s in range(500) for k in range(9)]
        ),
        path,
    )
    raw = path.read_bytes()
    path.write_bytes(raw[: kept if isinstance(kept, int) else int(kept * len(raw))])
    with pytest.raises(RunError, match="truncated"):
        load(path)
