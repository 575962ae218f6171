"""What to say when an optional package is not there."""

from __future__ import annotations

from gradscope.errors import GradscopeError


def missing(what: str, package: str, extra: str) -> GradscopeError:
    """The error for a package that can't be imported: what needs it, and how to get it."""
    return GradscopeError(f"{what} needs {package}: pip install 'gradscope[{extra}]'")
