"""One figure a file: a run, or several to compare, in; a matplotlib `Figure` out.

A figure is drawn by calling it: `gradient_map(run)`. Each says what it needs
(`FigureKind.requires`), and `missing(run)` says why it can't be drawn. `evidence(run, mark)`
draws the small figure of a single finding.
"""

from gradscope.figures._activations import activations
from gradscope.figures._crossings import crossings
from gradscope.figures._cuts import cuts
from gradscope.figures._evidence import Evidence, evidence_of
from gradscope.figures._evidence_plot import evidence
from gradscope.figures._figure import FigureKind, Mark
from gradscope.figures._gradient_depth import Ends, depth_ends, gradient_depth
from gradscope.figures._gradient_map import gradient_map
from gradscope.figures._named_pathways import named_pathways
from gradscope.figures._parameter_map import parameter_map
from gradscope.figures._passed_on import passed_on
from gradscope.figures._path_sizes import path_sizes
from gradscope.figures._pathways import pathways
from gradscope.figures._processes import processes
from gradscope.figures._softmax import softmax
from gradscope.figures._style import DARK, LIGHT, Theme
from gradscope.figures._training_curves import training_curves
from gradscope.figures._update_map import update_map

FIGURES: tuple[FigureKind, ...] = (
    training_curves,
    processes,
    gradient_map,
    gradient_depth,
    pathways,
    path_sizes,
    crossings,
    named_pathways,
    softmax,
    activations,
    cuts,
    passed_on,
    parameter_map,
    update_map,
)
"""All figures, in the order in which a report shows them."""

__all__ = [
    "DARK",
    "FIGURES",
    "LIGHT",
    "Ends",
    "Evidence",
    "FigureKind",
    "Mark",
    "Theme",
    "activations",
    "crossings",
    "cuts",
    "depth_ends",
    "evidence",
    "evidence_of",
    "gradient_depth",
    "gradient_map",
    "named_pathways",
    "parameter_map",
    "passed_on",
    "path_sizes",
    "pathways",
    "processes",
    "softmax",
    "training_curves",
    "update_map",
]
