"""Whole scripts: the same output, exit code and weights with and without `gradscope run`."""

import pytest

import gradscope
from tests.launch.running import SCRIPTS, assert_same, by_command_line, by_gradscope, by_python


@pytest.mark.supports(process="`gradscope run`", shows=["identical training", "scalars"])
def test_a_plain_script_sees_no_difference(tmp_path):
    script = SCRIPTS / "plain.py"
    options = ("-W", "ignore::FutureWarning", "-O")
    plain = by_python(script, "--lr", "-1", cwd=tmp_path, options=options)
    recorded = by_command_line(
        "--every", 5, "--out", "deep/r.pt", script, "--lr", "-1", cwd=tmp_path, options=options
    )
    assert plain.code == 0 and "weights: " in plain.out and "threads: 1" in plain.out
    assert_same(plain, recorded)
    assert recorded.told == [
        "gradscope: recorded 21 steps of Net in deep/r.pt; next: gradscope analyze deep/r.pt"
    ]
    run = gradscope.load(tmp_path / "deep" / "r.pt")
    assert run.steps.tolist() == [0, 5, 10, 15, 20] and run.meta["errors"] == []
    logged = dict(line.split() for line in plain.out.splitlines() if line[0].isdigit())
    losses = run.scalars()["loss"]
    assert {str(s): losses[s] for s in (0, 5, 10, 15, 20)} == {
        s: pytest.approx(float(v), rel=1e-6) for s, v in logged.items()
    }
    assert "clip_norm" in run.scalars()


def test_a_gan(tmp_path):
    plain = by_python(SCRIPTS / "gan.py", cwd=tmp_path)
    recorded = by_gradscope(SCRIPTS / "gan.py", cwd=tmp_path)
    assert "weights: " in plain.out
    assert_same(plain, recorded)
    assert recorded.told[0].endswith("next: gradscope analyze run.pt run-Generator.pt")
    for name in ("run.pt", "run-Generator.pt"):
        run = gradscope.load(tmp_path / name)
        assert run.steps.tolist() == [0, 10] and run.meta["errors"] == []
