import sys

import pytest
import torch
from torch import nn

import gradscope
from gradscope.cli import main


@pytest.fixture
def run_cli(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gradscope", "watch", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run


@pytest.fixture
def recording(tmp_path):
    """A recording in progress, 12 tanh layers deep, and its file."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()) for _ in range(12)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    path = tmp_path / "run.pt"
    scope = gradscope.attach(model, optimizer=optimizer, out=path, every=1, flush_every=0.0)

    def step():
        loss = model(torch.randn(16, 8)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scope.log(loss=loss)

    yield scope, step, path
    scope.close()


def test_once(recording, run_cli):
    _, step, path = recording
    for _ in range(30):
        step()
    code, out, err = run_cli(path, "--once")
    assert (code, err) == (0, "") and "\x1b" not in out
    lines = {k.strip(): v for k, _, v in (line.partition("   ") for line in out.splitlines())}
    assert lines["last step"].strip() == "29"
    assert lines["status"].strip().startswith("recording, last written")
    run = gradscope.load(path)
    losses = run.scalars()["loss"].dropna()
    assert f"{losses.iloc[-1]:.3g} (step {losses.index[-1]})" in lines["loss"]
    assert "vanishing-gradient" in out
    plain = out.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")).replace("×10", "e")
    shown = float(plain.partition("first / last layer")[2].split()[0])
    late = run.wide("module", "grad_rms").iloc[-3:].median()
    names = out.partition("first / last layer")[2].split("(")[1].split(")")[0].split(" / ")
    assert shown == pytest.approx(late[names[0]] / late[names[1]], rel=0.05)


def test_a_run_without_a_step_so_far(recording, run_cli):
    code, out, _ = run_cli(recording[2], "--once")
    assert code == 0 and "none yet" in out


def test_it_follows_the_run_and_ends_with_it(recording, run_cli, monkeypatch):
    scope, step, path = recording
    looks = []

    def sleep(_seconds):
        looks.append(len(gradscope.load(path).steps))
        step()
        if len(looks) == 3:
            scope.close()

    monkeypatch.setattr("gradscope.cli.time.sleep", sleep)
    code, out, _ = run_cli(path)
    assert code == 0 and looks == [0, 1, 2]
    assert "complete" in out and "last step" in out


def test_ctrl_c_ends_it(recording, run_cli, monkeypatch):
    def interrupted(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("gradscope.cli.time.sleep", interrupted)
    assert run_cli(recording[2])[0] == 0


def test_what_is_no_run_is_one_line_and_exit_2(tmp_path, run_cli):
    code, out, err = run_cli(tmp_path / "missing.pt")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "does not exist" in err
