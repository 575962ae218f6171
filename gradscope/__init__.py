"""Where a neural network's gradient goes, through which path, what weakens it."""

from gradscope._version import __version__
from gradscope.capture.crossings import Crossings, crossings
from gradscope.capture.scope import Scope, attach
from gradscope.cuts import Cut, bottlenecks
from gradscope.diagnosis import diagnose
from gradscope.errors import GradscopeError, PathwayError, RunError
from gradscope.findings import Finding, analyze
from gradscope.probing import Probe, probe
from gradscope.report import report
from gradscope.run import METRICS, Run, Site
from gradscope.store import load, save

__all__ = [
    "METRICS",
    "Crossings",
    "Cut",
    "Finding",
    "GradscopeError",
    "PathwayError",
    "Probe",
    "Run",
    "RunError",
    "Scope",
    "Site",
    "__version__",
    "analyze",
    "attach",
    "bottlenecks",
    "crossings",
    "diagnose",
    "load",
    "probe",
    "report",
    "save",
]
