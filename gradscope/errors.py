"""Errors that users see. All are of the ValueError family: something given is not usable."""


class GradscopeError(ValueError):
    """What was given can't be used; the message names it and says what to do."""


class RunError(GradscopeError):
    """A path that is no readable run."""


class PathwayError(GradscopeError):
    """A gradient that can't be split by pathway, with the reason."""
