"""Where a neural network's gradient goes, through which path, what weakens it."""

from gradscope._version import __version__
from gradscope.run import METRICS, Run, Site

__all__ = ["METRICS", "Run", "Site", "__version__"]
