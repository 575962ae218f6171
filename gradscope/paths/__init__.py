"""Exact pathways: a gradient split by the softmaxes, or the named places, its paths cross."""

from gradscope.paths.crossings import Crossing, find_softmaxes
from gradscope.paths.gates import PathwayGradients, through
from gradscope.paths.graded import GradedGradients, graded_gradients, mean_crossings

__all__ = [
    "Crossing",
    "GradedGradients",
    "PathwayGradients",
    "find_softmaxes",
    "graded_gradients",
    "mean_crossings",
    "through",
]
