"""The command line that `gradscope run` becomes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gradscope.errors import GradscopeError
from gradscope.store import check_writable

BOOT = Path(__file__).with_name("boot.py")


def command(words: Sequence[str], *, module: bool, every: str, out: str) -> list[str]:
    """What to replace this process with, so that it runs and records a script.

    Args:
        words: the script, or the module's name, and its own arguments.
        module: whether `words[0]` names a module, as for `python -m`.
        every: record every n-th optimizer step: a whole number from 1 on.
        out: file to record into.

    Raises:
        GradscopeError: if there is no such script, or an option can't be used.
    """
    if not every.isascii() or not every.isdigit() or int(every) < 1:
        raise GradscopeError(f"--every takes a whole number from 1 on, not {every!r}")
    if not words:
        raise GradscopeError(
            "run takes a training script: gradscope run train.py, or gradscope run -m package.train"
        )
    target = words[0]
    if target.startswith("-"):
        raise GradscopeError(
            f"run has no option {target}; its own options are --every, --out and -m, and what "
            "comes after the script is the script's"
        )
    if not module:
        if Path(target).is_dir():
            raise GradscopeError(f"{target} is a directory; name the script in it, or use -m")
        if not Path(target).is_file():
            raise GradscopeError(f"there is no script {target}; a module is run with -m")
    check_writable(Path(out))
    how = "module" if module else "script"
    return [sys.executable, *_interpreter_options(), os.fspath(BOOT), every, out, how, *words]


def _interpreter_options() -> list[str]:
    """Python's own options in front of gradscope (-u, -X dev, -W error, …)."""
    head = sys.orig_argv[1 : len(sys.orig_argv) - (len(sys.argv) - 1)]
    named = len(head) > 1 and head[-2] in ("-m", "-c")  # else a path, or "-mgradscope"
    return head[: -2 if named else -1]
