"""However a script ends: its exit code, what python says of it, and a run that can be read."""

import signal
import subprocess
import sys

import pytest

import gradscope
from gradscope.launch.command import BOOT, command
from tests.launch.running import SCRIPTS, assert_same, by_gradscope, by_python, environment, program

ENDS = SCRIPTS / "ends.py"


@pytest.mark.parametrize(
    ("how", "code", "ended"),
    [
        ("raise", 1, "RuntimeError: training failed"),
        ("interrupt", -signal.SIGINT, "KeyboardInterrupt: "),
    ],
)
def test_an_exception_is_told_as_python_tells_it(tmp_path, how, code, ended):
    plain = by_python(ENDS, how, cwd=tmp_path)
    recorded = by_gradscope(ENDS, how, cwd=tmp_path)
    assert plain.code == code and "Traceback" in plain.err
    assert_same(plain, recorded)
    run = gradscope.load(tmp_path / "run.pt")
    assert run.meta["status"] == "complete" and run.meta["ended"] == ended
    assert run.steps.tolist() == [0, 10]


def test_an_exit_code_is_the_scripts(tmp_path):
    recorded = by_gradscope(ENDS, "3", cwd=tmp_path)
    assert (recorded.code, recorded.out, recorded.err) == (3, "trained\n", "")
    run = gradscope.load(tmp_path / "run.pt")
    assert run.meta["status"] == "complete" and run.meta["ended"] == "SystemExit: 3"


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_a_script_that_is_killed_leaves_a_run_that_can_be_analysed(tmp_path, how):
    process = subprocess.Popen(
        program(ENDS, "wait", every=1),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "trained\n"
    process.send_signal(getattr(signal, how))
    _, err = process.communicate(timeout=60)
    assert process.returncode == -getattr(signal, how)
    assert err == ""
    run = gradscope.load(tmp_path / "run.pt")
    assert run.meta["status"] == "recording" and 0 in run.steps
    assert isinstance(gradscope.analyze(run), list)


def test_a_syntax_error_is_told_as_python_tells_it(tmp_path):
    (tmp_path / "wrong.py").write_text("def f(:\n")
    plain = by_python(tmp_path / "wrong.py", cwd=tmp_path)
    recorded = by_gradscope(tmp_path / "wrong.py", cwd=tmp_path)
    assert plain.code == 1 and "SyntaxError" in plain.err
    assert_same(plain, recorded)
    assert recorded.told == ["gradscope: nothing was recorded: the script did not import torch"]


def test_an_exception_hook_of_the_scripts_own_is_asked(tmp_path):
    (tmp_path / "hook.py").write_text(
        "import sys, traceback\n"
        "def hook(kind, value, trace):\n"
        "    print(kind.__name__, [f.name for f in traceback.extract_tb(trace)])\n"
        "sys.excepthook = hook\n"
        "def f():\n"
        "    raise ExceptionGroup('several', [ValueError('one')])\n"
        "f()\n"
    )
    plain = by_python(tmp_path / "hook.py", cwd=tmp_path)
    assert plain.out == "ExceptionGroup ['<module>', 'f']\n"
    assert_same(plain, by_gradscope(tmp_path / "hook.py", cwd=tmp_path))


@pytest.mark.parametrize(
    "started", [["-m", "gradscope"], ["-mgradscope"], ["bin/gradscope"], ["-c", "…"]]
)
def test_options_of_python_are_kept(monkeypatch, started):
    options = ["-u", "-X", "dev", "-W", "error"]
    words = ["run", str(ENDS), "3"]
    monkeypatch.setattr(sys, "orig_argv", ["python", *options, *started, *words])
    monkeypatch.setattr(sys, "argv", ["gradscope", *words])
    found = command(words[1:], module=False, every="1", out="r.pt")
    assert found[: found.index(str(BOOT))] == [sys.executable, *options]
    assert found[-2:] == words[1:]
