import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import gradscope
from gradscope import GradscopeError, Run, RunError
from gradscope.figures import FIGURES
from gradscope.report import _files, _render, default_directory
from gradscope.report._files import PAGE, evidence_path, figure_path, write
from tests.reference.made_up_runs import broken, scalars

FILES = {PAGE: b"page", "findings.json": b"{}", figure_path(FIGURES[0].name): b"png"}


def tree(directory):
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()
    }


def test_writes_a_new_directory_with_its_parents(tmp_path):
    path = write(FILES, tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b" / "report.html"
    assert tree(path.parent) == FILES
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]


def test_updates_what_it_made_and_keeps_what_it_did_not(tmp_path):
    out = tmp_path / "report"
    stale = figure_path(FIGURES[1].name)
    write({**FILES, stale: b"old", evidence_path("F12"): b"old"}, out)
    (out / "notes.txt").write_text("mine")
    for name in ("mine.png", "finding-Final.png"):
        (out / "figures" / name).write_bytes(b"mine")
    write({**FILES, PAGE: b"new"}, out)
    assert tree(out) == {
        **FILES,
        PAGE: b"new",
        "notes.txt": b"mine",
        "figures/mine.png": b"mine",
        "figures/finding-Final.png": b"mine",
    }


@pytest.mark.parametrize("fails_at", range(4))
def test_a_failure_leaves_the_old_page_and_no_debris(tmp_path, monkeypatch, fails_at):
    out = tmp_path / "report"
    write(dict.fromkeys(FILES, b"old"), out)
    calls = 0
    real = _files._replace

    def failing(made, target):
        nonlocal calls
        calls += 1
        if calls > fails_at:
            raise OSError(28, "No space left on device")
        real(made, target)

    monkeypatch.setattr(_files, "_replace", failing)
    if fails_at < len(FILES):
        with pytest.raises(GradscopeError, match="No space left on device"):
            write(dict.fromkeys(FILES, b"new"), out)
        assert (out / PAGE).read_bytes() == b"old"
    else:
        write(dict.fromkeys(FILES, b"new"), out)
        assert (out / PAGE).read_bytes() == b"new"
    assert set(tree(out)) == set(FILES)
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_a_drawing_that_fails_writes_nothing(tmp_path, monkeypatch):
    def failing(page):
        raise RuntimeError("no figure")

    monkeypatch.setattr(_render, "files", failing)
    with pytest.raises(RuntimeError, match="no figure"):
        gradscope.report(broken(2), tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "report").write_text("mine")
    with pytest.raises(GradscopeError, match="is a file; give a directory"):
        write(FILES, tmp_path / "report")
    assert (tmp_path / "report").read_text() == "mine"


def test_a_directory_in_the_place_of_a_file(tmp_path):
    (tmp_path / "report" / PAGE).mkdir(parents=True)
    with pytest.raises(GradscopeError, match="is a directory"):
        write(FILES, tmp_path / "report")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cant_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(GradscopeError, match="can't write a report"):
        write(FILES, tmp_path / "report")


def small(**meta):
    rows = [*scalars((0, 1)), (0, "m", "module", "", "grad_norm", float("nan"))]
    return Run.from_records(rows, meta=meta)


def test_report_returns_its_page_and_strict_json(tmp_path):
    path = gradscope.report(small(name="ünï"), out=str(tmp_path / "report"))
    assert path == tmp_path / "report" / "report.html"
    content = (path.parent / "findings.json").read_bytes()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(content, parse_constant=refuse)
    (run,) = found["runs"]
    assert run["name"] == "ünï" and run["steps"] == [0, 0] and run["recorded_steps"] == 1
    expected = gradscope.findings.check(small()).to_dict()
    own = [
        {k: v for k, v in finding.items() if k not in ("label", "figure")}
        for finding in run["findings"]
    ]
    assert own == expected["findings"] != []
    for i, finding in enumerate(run["findings"], 1):
        assert finding["label"] == f"F{i}" and (path.parent / finding["figure"]).is_file()
    assert run["rules"] == expected["rules"]


def test_report_of_nothing(tmp_path):
    with pytest.raises(RunError, match="no recorded steps"):
        gradscope.report(Run.from_records(scalars((0, 1))), tmp_path / "report")
    with pytest.raises(RunError, match="no run to report on"):
        gradscope.report([], tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_a_report_on_an_optimizer_that_never_stepped(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.attach(model, optimizer=optimizer, out=None) as scope:
        for _ in range(5):
            model(torch.ones(1, 2)).sum().backward()
    with pytest.raises(RunError, match="none of the optimizers given to attach"):
        gradscope.report(scope.run(), tmp_path / "report")


def test_the_report_lies_beside_its_run():
    assert str(default_directory("runs/deep.pt")) == str(Path("runs/deep-report"))


def test_a_report_on_a_model_that_is_frozen(tmp_path):
    model = nn.Linear(2, 2).requires_grad_(False)
    with gradscope.attach(model, out=None, every=1) as scope:
        model(torch.ones(1, 2))
        scope.step()
    with pytest.raises(RunError, match="no parameter of the model is trainable"):
        gradscope.report(scope.run(), tmp_path / "report")


def test_a_file_that_is_taken_away_while_it_is_recorded(tmp_path):
    path, elsewhere = tmp_path / "run.pt", tmp_path / "elsewhere" / "run.pt"
    elsewhere.parent.mkdir()
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scope = gradscope.attach(model, optimizer=optimizer, out=path, every=1)
    for _ in range(3):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    path.rename(elsewhere)
    with pytest.warns(RuntimeWarning, match=r"put it back beside run\.pt\.journal"):
        scope.close()
    with pytest.raises(RunError, match=r"from beside run\.pt\.journal"):
        gradscope.report(gradscope.load(elsewhere), tmp_path / "report")
    elsewhere.rename(path)
    assert len(gradscope.load(path).steps) == 3
