"""Which process this is: by its group, by its launcher, or alone."""

import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import gradscope
from gradscope.capture import processes
from gradscope.capture.processes import this_process

LAUNCHER = {
    "RANK": "2",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "0",
}

SETTINGS = ("MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")


@pytest.fixture(autouse=True)
def nothing_attached(monkeypatch):
    monkeypatch.setattr(processes, "_attached", processes.Counter())
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


def launched(monkeypatch, **told):
    for name, value in {**LAUNCHER, **told}.items():
        monkeypatch.setenv(name, value)


def test_a_process_alone_is_none_of_several():
    assert this_process(Path("run.pt")) is None


def test_a_launcher_of_one_process_is_none(monkeypatch):
    launched(monkeypatch, RANK="0", WORLD_SIZE="1")
    assert this_process(Path("run.pt")) is None


def test_a_launcher_tells_before_the_process_group_is_there(monkeypatch):
    launched(monkeypatch)
    first = this_process(Path("run.pt"))
    assert (first.rank, first.world_size) == (2, 4)
    again = this_process(Path("run.pt"))
    assert again.launch != first.launch  # the same file again is another recording


@pytest.mark.parametrize("name", SETTINGS)
def test_processes_of_one_launcher_agree_and_others_do_not(monkeypatch, name):
    found = []
    for told in ({"RANK": "0"}, {"RANK": "1"}, {"RANK": "0", name: "77"}):
        launched(monkeypatch, **told)
        processes._attached.clear()
        found.append(this_process(Path("run.pt")).launch)
    assert found[0] == found[1] != found[2]


def test_a_store_gives_all_who_ask_the_same_name():
    store = dist.HashStore()
    asked = []
    threads = [
        threading.Thread(target=lambda: asked.append(processes._agreed(store, "key")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 8 and len(set(asked)) == 1 and asked[0]
    assert processes._agreed(store, "another") not in (asked[0], "")


def test_a_store_that_fails_leaves_it_to_the_launcher(monkeypatch):
    class Gone:
        def compare_set(self, *_):
            raise RuntimeError("connection reset")

    assert processes._agreed(Gone(), "key") == ""
    assert processes._agreed(None, "key") == ""


def test_rank_r_writes_beside_the_first(monkeypatch, tmp_path):
    launched(monkeypatch)
    with gradscope.attach(nn.Linear(2, 2), out=tmp_path / "run.pt") as scope:
        scope.log(loss=1.0)
    assert [p.name for p in tmp_path.iterdir()] == ["run.rank2.pt"]
    run = gradscope.load(tmp_path / "run.rank2.pt")
    assert run.name == "run"
    assert run.ranks == [2]
    assert run.meta["process"]["world_size"] == 4
    assert gradscope.load(tmp_path / "run.pt").ranks == [2]


def test_a_recording_into_memory_carries_its_rank(monkeypatch):
    launched(monkeypatch)
    with gradscope.attach(nn.Linear(2, 2), out=None) as scope:
        scope.log(loss=1.0)
    assert scope.run().frame()["rank"].tolist() == [2]


def test_random_numbers_are_left_alone():
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=5))
    before = torch.get_rng_state()
    processes._agreed(store, "key")
    assert torch.equal(torch.get_rng_state(), before)


def test_one_process_may_record_alone(monkeypatch, tmp_path):
    launched(monkeypatch, RANK="0")
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.attach(model, optimizer=optimizer, out=tmp_path / "run.pt") as scope:
        loss = model(torch.ones(1, 2)).sum()
        loss.backward()
        optimizer.step()
        scope.log(loss=loss)
    run = gradscope.load(tmp_path / "run.pt")
    assert run.meta["processes"]["world_size"] == 4
    assert len(run.meta["processes"]["parts"]) == 1
    assert run.meta["unseen"] == []
    assert not [f for f in gradscope.analyze(run) if f.rule == "silent-rank"]
