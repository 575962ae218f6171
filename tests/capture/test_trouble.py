"""What goes wrong inside gradscope stays there: training goes on, and the run says so."""

import errno

import pytest
import torch
from torch import nn

import gradscope
from gradscope.capture.remembered import Remembered
from gradscope.store import Journal


def trained(out, steps=6, **options):
    """Weights after a few steps, recorded into `out` unless it is None."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scope = None
    if out is not None:
        scope = gradscope.attach(model, optimizer=optimizer, out=out, every=1, **options)
    for _ in range(steps):
        loss = model(torch.ones(2, 3)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if scope is not None:
            scope.log(loss=loss)
    if scope is not None:
        scope.close()
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_full_disk_does_not_stop_training(tmp_path, monkeypatch):
    append, written = Journal.append, []

    def full(self, *args):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(args)
        append(self, *args)

    monkeypatch.setattr(Journal, "append", full)
    with pytest.warns(RuntimeWarning, match="stopped recording"):
        weights = trained(tmp_path / "run.pt", flush_every=0)
    assert same(weights, trained(None))
    monkeypatch.undo()
    run = gradscope.load(tmp_path / "run.pt")
    assert run.meta["status"] == "recording"
    assert len(run.steps) > 0


def test_a_failure_while_measuring_is_told_once_and_in_the_run(tmp_path, monkeypatch):
    def broken(self, *args):
        raise ArithmeticError("on purpose")

    monkeypatch.setattr(Remembered, "find", broken)
    with pytest.warns(RuntimeWarning, match="on purpose") as told:
        weights = trained(tmp_path / "run.pt")
    # Others may warn too: of a file that an earlier test left to the garbage collector, say.
    assert sum("stopped recording" in str(w.message) for w in told) == 1
    assert same(weights, trained(None))
    run = gradscope.load(tmp_path / "run.pt")
    assert len(run.meta["errors"]) == 1 and "on purpose" in run.meta["errors"][0]
    assert len(run.scalars()["loss"]) == 6  # what is logged is still recorded


def test_a_file_that_can_not_be_finished_is_told(tmp_path, monkeypatch):
    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Journal, "finish", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        trained(tmp_path / "run.pt")
    assert gradscope.load(tmp_path / "run.pt").steps.tolist() == list(range(6))
