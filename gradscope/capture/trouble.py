"""What goes wrong inside the instrument: told once, written into the run, never harmful."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable

from gradscope.errors import RunError


def _told(error: BaseException, text: str) -> str:
    if isinstance(error, RunError):  # the file system's or the user's doing, said in a sentence
        return str(error)
    return f"Please report this with the text below.\n{text}"


class Trouble:
    """Switches a part of the instrument off at its first failure.

    Args:
        errors: of the run's meta; what failed is appended.
        step: the current step.
        failing: called with the part, to let go of what it holds.
    """

    def __init__(
        self, errors: list[str], step: Callable[[], int], failing: Callable[[str], None]
    ) -> None:
        self._errors, self._step, self._failing = errors, step, failing
        self._off: set[str] = set()

    def off(self, part: str) -> bool:
        """Whether the part has failed before."""
        return part in self._off

    def of(self, part: str) -> Callable[[BaseException], None]:
        """`caught`, for one part."""
        return lambda error: self.caught(part, error)

    def caught(self, part: str, error: BaseException) -> None:
        """A part has failed: switch it off and leave the training run alone."""
        if part in self._off:
            return
        self._off.add(part)
        self._failing(part)
        text = "".join(traceback.format_exception(error)).strip()
        self._errors.append(f"step {self._step()}: {part}: {text}")
        warnings.warn(
            f"gradscope stopped recording {part} at step {self._step()}; training goes on "
            f"unchanged. {_told(error, text)}",
            RuntimeWarning,
            stacklevel=3,
        )
