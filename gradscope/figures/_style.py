"""How figures look: one light and one dark theme, applied locally and never globally."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.font_manager import fontManager
from matplotlib.rcsetup import cycler

WIDTH = 10.4
"""Width of every figure, in inches: the width of the report's column."""


@dataclass(frozen=True)
class Theme:
    """Colours of a figure. The cycle follows Okabe & Ito's colour-blind safe palette.

    Attributes:
        paper: background, that of the card that the report puts the figure on.
        ink, muted, line: text, secondary text, hairlines.
        cycle: categorical colours (runs, edges), told apart by hue and lightness.
        ramp: name of the sequential colour map (perceptually uniform).
        nonfinite, zero, absent: cells of a heat map that hold no number on a log scale.
        severity: colours of findings.
    """

    name: str
    paper: str
    ink: str
    muted: str
    line: str
    cycle: tuple[str, ...]
    ramp: str
    nonfinite: str
    zero: str
    absent: str
    severity: dict[str, str]


LIGHT = Theme(
    name="light",
    paper="#ffffff",
    ink="#1c2128",
    muted="#656d76",
    line="#d8dee4",
    cycle=(
        "#0072b2",
        "#d55e00",
        "#009e73",
        "#cc79a7",
        "#e69f00",
        "#56b4e9",
        "#6b4fa0",
        "#7a8087",
    ),
    ramp="viridis",
    nonfinite="#d1001f",
    zero="#9aa1a9",
    absent="#eceff2",
    severity={"critical": "#c4122f", "warning": "#b35900", "info": "#0969b8"},
)

DARK = Theme(
    name="dark",
    paper="#161b22",
    ink="#e6edf3",
    muted="#9aa4af",
    line="#343b44",
    cycle=(
        "#4ba9e8",
        "#ff8f4f",
        "#2fc79a",
        "#ee9dc8",
        "#f2c14e",
        "#9bd9ff",
        "#b39df2",
        "#a9b1ba",
    ),
    ramp="viridis",
    nonfinite="#ff3b52",
    zero="#6e7781",
    absent="#242b34",
    severity={"critical": "#ff6b7a", "warning": "#f0a04b", "info": "#62b0ff"},
)


def depth_ramp(theme: Theme) -> LinearSegmentedColormap:
    """Colours of lines from the first layer to the last, all of which stand out from the paper."""
    low, high = (0.0, 0.85) if theme.name == "light" else (0.25, 1.0)
    shades = mpl.colormaps[theme.ramp](np.linspace(low, high, 64))
    return LinearSegmentedColormap.from_list("depth", shades)


@contextmanager
def style(theme: Theme) -> Iterator[None]:
    """Matplotlib's settings for one figure; the caller's own are back when this ends."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_settings(theme))
        yield


@cache
def _fonts() -> tuple[str, ...]:
    # Only fonts that are there: matplotlib logs a warning for each one that is not.
    # DejaVu Sans ships with matplotlib and fills in the signs that others lack.
    there = {f.name for f in fontManager.ttflist}
    wanted = ("Helvetica Neue", "Arial", "Liberation Sans")
    return (*[f for f in wanted if f in there][:1], "DejaVu Sans")


def _settings(theme: Theme) -> dict[Any, Any]:
    return {
        "figure.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.line,
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "axes.linewidth": 0.8,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=theme.cycle),
        "axes.unicode_minus": True,
        "font.family": list(_fonts()),
        "font.size": 9,
        "grid.color": theme.line,
        "grid.linewidth": 0.6,
        "grid.alpha": 0.7,
        "hatch.color": theme.line,
        "hatch.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "legend.labelcolor": theme.ink,
        "lines.linewidth": 1.6,
        "lines.solid_capstyle": "round",
        "text.color": theme.ink,
        "xtick.color": theme.line,
        "ytick.color": theme.line,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "xtick.major.size": 3,
        "ytick.major.size": 3,
        "xtick.minor.visible": False,
        "ytick.minor.visible": False,
    }
