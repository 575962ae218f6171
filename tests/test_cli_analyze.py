import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gradscope
from gradscope import Run, Site
from gradscope.cli import main

NAN = float("nan")


def record(path, value=1.0, name="", steps=range(3)):
    """A small run file: healthy, or with NaN in its gradients. One figure shows it all."""
    rows = [(s, f"l.{k}", "parameter", "", "grad_norm", value) for s in steps for k in range(3)]
    rows += [(7, "w", "scalar", "", "value", 1.0)] if not len(steps) else []
    sites = [Site(f"l.{k}", "parameter", order=k, numel=1) for k in range(3)]
    gradscope.save(Run.from_records(rows, sites, {"name": name} if name else {}), path)
    return path


@pytest.fixture
def run_cli(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gradscope", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run


def test_analyze_writes_beside_the_run_and_says_where(tmp_path, run_cli):
    code, out, err = run_cli("analyze", record(tmp_path / "fine.pt"))
    assert (code, err) == (0, "")
    report = tmp_path / "fine-report" / "report.html"
    assert report.is_file() and out.splitlines()[-1] == f"report: {report}"
    assert "No findings" in out and "\x1b" not in out
    assert {p.name for p in report.parent.iterdir()} == {
        "report.html",
        "findings.json",
        "figures",
    }


def test_fail_on(tmp_path, run_cli):
    bad, fine = record(tmp_path / "bad.pt", NAN), record(tmp_path / "fine.pt")
    out = tmp_path / "out"
    assert run_cli("analyze", bad, "--out", out)[0] == 0
    assert run_cli("analyze", bad, "--out", out, "--fail-on", "critical")[0] == 1
    assert (out / "report.html").is_file()
    assert run_cli("analyze", fine, "--out", out, "--fail-on", "info")[0] == 0


def test_several_runs_are_compared(tmp_path, run_cli):
    runs = [record(tmp_path / f"{n}.pt", name=n) for n in ("first", "second")]
    code, out, _ = run_cli("analyze", *runs)
    assert code == 0 and "first" in out and "second" in out
    content = json.loads((tmp_path / "first-report" / "findings.json").read_text("utf-8"))
    assert [r["name"] for r in content["runs"]] == ["first", "second"]
    assert content["runs"][1]["path"] == str(runs[1])


@pytest.mark.parametrize("command", ("analyze", "info"))
def test_what_is_no_run_is_one_line_and_exit_2(tmp_path, run_cli, command):
    (tmp_path / "text.pt").write_text("not a run")
    for path in (tmp_path / "missing.pt", tmp_path / "text.pt", tmp_path):
        code, out, err = run_cli(command, path)
        assert (code, out) == (2, "")
        assert err.startswith("gradscope: ") and str(path) in err and len(err.splitlines()) == 1


def test_a_run_without_steps_is_one_line_and_exit_2(tmp_path, run_cli):
    empty = record(tmp_path / "empty.pt", steps=())
    code, out, err = run_cli("analyze", record(tmp_path / "fine.pt"), empty)
    assert (code, out) == (2, "")
    assert err.startswith(f"gradscope: {empty} has no recorded steps") and err.count("\n") == 1
    assert not (tmp_path / "fine-report").exists()
    assert run_cli("info", empty)[0] == 0


@pytest.mark.parametrize(
    "arguments", [["analyze"], ["analyze", "x.pt", "--fail-on", "bad"], ["info"], ["info", "--nix"]]
)
def test_bad_usage_is_exit_2(run_cli, arguments):
    code, _, err = run_cli(*arguments)
    assert code == 2 and "Usage" in err


def test_out_that_cant_be_a_directory(tmp_path, run_cli):
    (tmp_path / "file").write_text("mine")
    code, _, err = run_cli("analyze", record(tmp_path / "r.pt"), "--out", tmp_path / "file")
    assert code == 2 and "is a file" in err and (tmp_path / "file").read_text() == "mine"


def test_info(tmp_path, run_cli):
    code, out, _ = run_cli("info", record(tmp_path / "r.pt", name="my run"))
    assert code == 0 and "my run" in out and "l.2" in out
    assert "\x1b" not in out


def test_a_pipe_gets_plain_text_in_any_encoding(tmp_path):
    path = record(tmp_path / "r.pt", NAN, name="läuft")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "FORCE_COLOR": "", "COLUMNS": "60"}
    done = subprocess.run(
        [sys.executable, "-c", "from gradscope.cli import main; main()", "info", str(path)],
        env=environment,
        capture_output=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0 and done.stderr == b""
    text = done.stdout.decode("ascii")
    assert "\x1b" not in text and "recorded steps" in text


def test_version(run_cli):
    assert run_cli("--version") == (0, f"{gradscope.__version__}\n", "")
