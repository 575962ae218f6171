"""`gradscope run` started by torchrun: one run of all processes, and one line said."""

import subprocess
import sys

import pytest

import gradscope
from tests.launch.running import SCRIPTS, environment

SCRIPT = str(SCRIPTS / "distributed.py")


def torchrun(*words, cwd):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    environment_ = {**environment(), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *words],
        cwd=cwd,
        env=environment_,
        capture_output=True,
        text=True,
        timeout=300,
    )


def without_gradscope(cwd):
    """The script alone: now and then gloo aborts as its processes part, and it is run again."""
    for _ in range(3):
        process = torchrun(SCRIPT, cwd=cwd)
        if "SIGABRT" not in process.stderr:
            break
    return process


@pytest.mark.supports(process="`gradscope run` under torchrun", shows="identical training")
def test_two_processes_are_one_run(tmp_path):
    plain = without_gradscope(tmp_path)
    recorded = torchrun("-m", "gradscope", "run", SCRIPT, cwd=tmp_path)
    assert plain.returncode == recorded.returncode == 0, recorded.stderr
    assert "weights: " in plain.stdout
    assert recorded.stdout == plain.stdout
    told = [line for line in recorded.stderr.splitlines() if line.startswith("gradscope: ")]
    assert told == [
        "gradscope: recorded 11 steps of Sequential in run.pt; next: gradscope analyze run.pt"
    ]
    run = gradscope.load(tmp_path / "run.pt")
    assert run.steps.tolist() == [0, 10] and run.meta["errors"] == []
    assert {column.rank for column in run.columns} == {0, 1}
