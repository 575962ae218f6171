"""Errors that users see. All are of the ValueError family: something given is not usable."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class GradscopeError(ValueError):
    """What was given can't be used; the message names it and says what to do."""


class RunError(GradscopeError):
    """A path that is no readable run."""


class PathwayError(GradscopeError):
    """A gradient that can't be split by pathway, with the reason."""


def path_given(what: str, value: Any) -> Path:
    """A path that a user gave.

    Raises:
        GradscopeError: if it is something else; `what` says where it was given.
    """
    if not isinstance(value, str | os.PathLike):
        raise GradscopeError(f"{what} takes a path, not {type(value).__name__}: {value!r:.80}")
    return Path(value)
