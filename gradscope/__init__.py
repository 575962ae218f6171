"""Where a neural network's gradient goes, through which path, what weakens it."""

from gradscope._version import __version__
from gradscope.capture.scope import Scope, attach
from gradscope.errors import GradscopeError, RunError
from gradscope.report import report
from gradscope.run import METRICS, Run, Site
from gradscope.store import load, save

__all__ = [
    "METRICS",
    "GradscopeError",
    "Run",
    "RunError",
    "Scope",
    "Site",
    "__version__",
    "attach",
    "load",
    "report",
    "save",
]
