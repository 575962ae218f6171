"""Scripts run by python, and by `gradscope run`."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from gradscope.launch.command import BOOT, command

SCRIPTS = Path(__file__).parent / "scripts"
ROOT = Path(__file__).parents[2]


class Done(NamedTuple):
    """How a script ended. `told`: the lines of standard error that are gradscope's."""

    code: int
    out: str
    err: str
    told: list[str]


def by_python(*words, cwd, options=()):
    return _done([sys.executable, *options, *map(str, words)], cwd)


def by_command_line(*words, cwd, options=()):
    return _done([sys.executable, *options, "-m", "gradscope", "run", *map(str, words)], cwd)


def by_gradscope(*words, cwd, every=10, module=False):
    return _done(program(*words, every=every, module=module), cwd)


def program(*words, every=10, module=False, out="run.pt"):
    """What `gradscope run` becomes: without the second it takes to get there."""
    full = command([str(w) for w in words], module=module, every=str(every), out=out)
    return [sys.executable, *full[full.index(str(BOOT)) :]]


def environment():
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def _done(command, cwd):
    done = subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300
    )
    lines = done.stderr.splitlines(keepends=True)
    told = [line.strip() for line in lines if line.startswith("gradscope: ")]
    err = "".join(line for line in lines if not line.startswith("gradscope: "))
    return Done(done.returncode, done.stdout, err, told)


def assert_same(plain, recorded):
    """Standard output, standard error but for gradscope's one line, and exit code."""
    assert recorded[:3] == plain[:3]
    assert len(recorded.told) == 1, recorded.told
