import sys

import pytest

from gradscope.cli import main


@pytest.fixture
def run_cli(monkeypatch, capsys):
    became = []

    def become(program, words):
        became.append((program, words))
        raise SystemExit(0)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gradscope", "run", *map(str, arguments)])
        monkeypatch.setattr("gradscope.cli.os.execv", become)
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err, became

    return run


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("")
    return path


def test_what_follows_the_script_is_the_scripts(run_cli, script, tmp_path):
    out = tmp_path / "r.pt"
    words = (script, "--every", "3", "-m", "--out", "theirs", "--", "-x", "--help")
    code, *_, became = run_cli("--every", 7, "--out", out, *words)
    assert code == 0
    program, command = became[0]
    assert program == sys.executable == command[0]
    expected = ["7", str(out), "script", *map(str, words)]
    assert command[-len(expected) :] == expected


def test_a_module_and_its_arguments(run_cli, tmp_path):
    words = ("-m", "package.train", "--out", "theirs", "-m")
    code, *_, became = run_cli("--out", tmp_path / "r.pt", *words)
    assert code == 0
    assert became[0][1][-5:] == ["module", "package.train", "--out", "theirs", "-m"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "run takes a training script"),
        (["-m"], "run takes a training script"),
        (["nowhere.py"], "there is no script nowhere.py"),
        (["."], ". is a directory"),
        (["--lr", "3", "SCRIPT"], "run has no option --lr"),
        (["--every", "0", "SCRIPT"], "--every takes a whole number from 1 on, not '0'"),
        (["--every", "often", "SCRIPT"], "--every takes a whole number from 1 on, not 'often'"),
        (["--out", "SCRIPT", "SCRIPT"], "is not a gradscope run"),
        (["--out", "SCRIPT/run.pt", "SCRIPT"], "can't write the run to"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(run_cli, script, arguments, told):
    script.write_text("print()")
    words = [a.replace("SCRIPT", str(script)) for a in arguments]
    code, out, err, became = run_cli(*words)
    assert (code, out, became) == (2, "", [])
    assert err.startswith("gradscope: ") and told in err and err.count("\n") == 1
    assert script.read_text() == "print()"


def test_help_names_the_options(run_cli):
    code, out, *_ = run_cli("--help")
    assert code == 0
    for word in ("--every", "--out", "-m", "SCRIPT", "standard error"):
        assert word in out
