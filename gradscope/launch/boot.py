"""The program that `gradscope run` becomes: runs a training script as python itself would.

Executed by its path, in a process that has imported neither gradscope nor torch: what the
script sets before it imports torch (OMP_NUM_THREADS, say) counts as ever. gradscope is
imported when the script has imported torch.

    python boot.py EVERY OUT script|module TARGET [ARGUMENT]...
"""

import atexit
import os
import sys
from collections.abc import Callable
from types import CodeType, ModuleType, TracebackType
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGE = os.path.dirname(HERE)
# Frames of these files stand between the script and torch, and are no part of a traceback.
TRANSPARENT = (HERE + os.sep, os.path.join(PACKAGE, "capture", "listening.py"))


def main() -> None:
    every, out, how, target = sys.argv[1:5]
    sys.argv = sys.argv[4:]
    session = Session(out, int(every))
    atexit.register(session.tell)  # the first to be registered is the last to run
    sys.meta_path.insert(0, WhenImported("torch", session.begin))
    try:
        code, program = (as_module if how == "module" else as_script)(target)
        sys.modules["__main__"] = program
        exec(code, program.__dict__)
    except SystemExit as stop:
        session.end("" if stop.code in (None, 0) else f"SystemExit: {stop.code}")
        raise
    except BaseException as error:
        session.end(f"{type(error).__name__}: {error}")
        show = sys.excepthook
        sys.excepthook = lambda kind, value, trace: show(kind, value, stripped(value))
        raise
    # Exit handlers and threads may go on training: what they do is recorded too.


def as_script(path: str) -> tuple[CodeType, ModuleType]:
    """What `python path` runs, and its `__main__`."""
    from importlib.machinery import SourceFileLoader

    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    program = ModuleType("__main__")
    program.__file__ = os.path.abspath(path)
    program.__loader__ = SourceFileLoader("__main__", program.__file__)
    program.__dict__.update(__builtins__=__builtins__, __cached__=None, __annotations__={})
    with open(program.__file__, "rb") as file:
        return compile(file.read(), program.__file__, "exec", dont_inherit=True), program


def as_module(name: str) -> tuple[CodeType, ModuleType]:
    """What `python -m name` runs, and its `__main__`."""
    import importlib.util

    if not sys.flags.safe_path:
        sys.path[0] = os.getcwd()
    arguments, sys.argv[0] = sys.argv[1:], "-m"
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError as error:
        if not error.name or not f"{name}.".startswith(f"{error.name}."):
            raise  # what a parent package imports is missing
        spec = None
    code = spec.loader.get_code(spec.name) if spec and spec.loader else None  # type: ignore[attr-defined]
    if spec is None or code is None:
        say(f"there is no module {name} to run; a script is run without -m")
        sys.exit(2)
    sys.argv = [spec.origin or name, *arguments]
    program = ModuleType("__main__")
    program.__dict__.update(
        __builtins__=__builtins__,
        __file__=spec.origin,
        __cached__=spec.cached,
        __loader__=spec.loader,
        __package__=spec.parent,
        __spec__=spec,
    )
    return code, program


class Session:
    """The recording of this process, once there is one, and what is said of it at the end."""

    def __init__(self, out: str, every: int) -> None:
        self._out, self._every, self._process = out, every, os.getpid()
        self._directory = os.getcwd()
        self._recording: Any = None
        self._failed = ""

    def begin(self) -> None:
        """Torch is there: watch what the script does with it."""
        root = os.path.dirname(PACKAGE)
        sys.path.append(root)  # where gradscope was started from a checkout
        try:
            from gradscope.launch.recording import Recording

            self._recording = Recording(self._out, self._directory, self._every)
            self._recording.begin()
        except Exception as error:  # no reason for the script to fail
            self._failed = f"gradscope could not start ({type(error).__name__}: {error})"
        finally:
            sys.path.reverse()  # take away the last of them, which is ours
            sys.path.remove(root)
            sys.path.reverse()

    def end(self, reason: str) -> None:
        """The script has ended, for this reason if not in the ordinary way."""
        if self._recording is not None and os.getpid() == self._process:
            self._recording.end(reason)

    def tell(self) -> None:
        """One line, when all is over."""
        if os.getpid() != self._process:
            return
        if self._failed:
            say(f"nothing was recorded: {self._failed}")
        elif self._recording is None:
            say("nothing was recorded: the script did not import torch")
        else:
            self._recording.end("")
            if os.environ.get("RANK", "0") == "0":  # one of the processes speaks for all
                say(self._recording.summary())


class WhenImported:
    """A finder that finds nothing: it calls `then` when a module has been imported."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name, self._then = name, then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self._name:
            return None
        import importlib.util

        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        original = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # back to that of its class
            original(module)
            self._then()

        loader.exec_module = exec_module
        return spec


def stripped(error: BaseException) -> TracebackType | None:
    """An exception's traceback as it is without gradscope, also in the exceptions behind it."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        now = waiting.pop()
        if now is None or id(now) in seen:
            continue
        seen.add(id(now))
        now.__traceback__ = _without_ours(now.__traceback__)
        waiting += [now.__cause__, now.__context__]
        if isinstance(now, BaseExceptionGroup):
            waiting += now.exceptions
    return error.__traceback__


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    kept = []
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith(TRANSPARENT):
            kept.append(trace)
        trace = trace.tb_next
    behind = None
    for t in reversed(kept):
        behind = TracebackType(behind, t.tb_frame, t.tb_lasti, t.tb_lineno)
    return behind


def say(text: str) -> None:
    """To standard error: standard output is the script's."""
    if sys.stderr is not None and not sys.stderr.closed:
        sys.stderr.write(f"gradscope: {text}\n")


if __name__ == "__main__":
    main()
