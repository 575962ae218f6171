"""Where a neural network's gradient goes, through which path, what weakens it."""

from gradscope._version import __version__
from gradscope.capture.scope import Scope, attach
from gradscope.errors import GradscopeError, RunError
from gradscope.findings import Finding, analyze
from gradscope.report import report
from gradscope.run import METRICS, Run, Site
from gradscope.store import load, save

__all__ = [
    "METRICS",
    "Finding",
    "GradscopeError",
    "Run",
    "RunError",
    "Scope",
    "Site",
    "__version__",
    "analyze",
    "attach",
    "load",
    "report",
    "save",
]
