"""A `Page` as files: the HTML with its figures inside, the same figures as PNG, the findings."""

from __future__ import annotations

import base64
import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jinja2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from PIL import Image

from gradscope._version import __version__
from gradscope.figures import DARK, LIGHT, FigureKind, Theme
from gradscope.figures._evidence_plot import draw as draw_evidence
from gradscope.figures._text import aligned, number
from gradscope.findings import Finding
from gradscope.report._files import PAGE, evidence_path, figure_path
from gradscope.report._page import Page, verdict

DPI = 132
"""A third more pixels than the page is wide: sharp on most screens, small enough to mail."""

ROUNDINGS = (6, 9, 12)
"""Levels of 255 that colours in the page may differ by to count as one: no eye sees half of it.
The first that leaves a palette, which is encoded ten times as fast."""


@dataclass(frozen=True)
class Picture:
    """One figure as it stands in the page."""

    kind: FigureKind
    caption: str
    alt: str
    light: str
    dark: str
    width: int
    height: int


@dataclass(frozen=True)
class Shown:
    """A finding's own picture.

    Attributes:
        path: of the PNG, relative to the page.
        note: what else a reader must know about it, or "".
        title: what it shows.
    """

    path: str
    title: str
    note: str
    light: str
    dark: str
    width: int
    height: int


def files(page: Page) -> dict[str, bytes]:
    """Relative path → content of everything in a report's directory."""
    made: dict[str, bytes] = {}
    pictures = []
    for kind in page.figures:
        light, dark = (_drawn(page, kind, theme) for theme in (LIGHT, DARK))
        made[figure_path(kind.name)] = _png(light)
        caption = kind.caption if len(page.runs) == 1 else kind.caption_several
        alt = f"{kind.title}: {page.title}. How to read it is described below the figure."
        height, width, _ = light.shape
        pictures.append(Picture(kind, caption, alt, _uri(light), _uri(dark), width, height))
    shown: dict[str, Shown] = {}
    for view in page.findings:
        if view.shown.missing:
            continue
        light, dark = (
            _pixels(draw_evidence(view.shown, view.finding.severity, t)) for t in (LIGHT, DARK)
        )
        path = evidence_path(view.label)
        made[path] = _png(light)
        height, width, _ = light.shape
        shown[view.label] = Shown(
            path, view.shown.title, view.shown.note, _uri(light), _uri(dark), width, height
        )
    made["findings.json"] = findings_json(page).encode()
    made[PAGE] = html(page, pictures, shown).encode()
    return made


def html(page: Page, pictures: list[Picture], shown: Mapping[str, Shown]) -> str:
    """The page; everything that comes from a run is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gradscope.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["aligned"] = aligned
    environment.filters["verdict"] = verdict
    template = environment.get_template("report.html.j2")
    return template.render(
        page=page, pictures=pictures, shown=shown, version=__version__, light=LIGHT, dark=DARK
    )


def findings_json(page: Page) -> str:
    """The findings, each with its label and its figure, and what was checked, one entry a run."""
    found = {(v.run, id(v.finding)): v for v in page.findings}

    def entry(run: int, finding: Finding) -> dict[str, Any]:
        view = found[run, id(finding)]
        path = None if view.shown.missing else evidence_path(view.label)
        return {"label": view.label, **finding.to_dict(), "figure": path}

    runs = [
        {
            "name": view.run.name,
            "path": str(view.run.path) if view.run.path else None,
            "steps": [int(view.run.steps[0]), int(view.run.steps[-1])],
            "recorded_steps": len(view.run.steps),
            **view.check.to_dict(),
            "findings": [entry(i, f) for f in view.check.findings],
        }
        for i, view in enumerate(page.runs)
    ]
    content = {"gradscope": __version__, "runs": runs}
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _drawn(page: Page, kind: FigureKind, theme: Theme) -> np.ndarray:
    """uint8 (height, width, 4): the figure's pixels."""
    figure = kind([v.run for v in page.runs], page.marks, theme)
    assert isinstance(figure, Figure), f"{kind.name} was listed as available"
    return _pixels(figure)


def _pixels(figure: Figure) -> np.ndarray:
    """uint8 (height, width, 4)."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A name in a script that no installed font covers shows as boxes, which is enough.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png", dpi=DPI)
    return buffer.getvalue()


def _uri(pixels: np.ndarray) -> str:
    """Lossless WebP of colours a little rounded: a third of the size of the PNG."""
    buffer = io.BytesIO()
    image = next((p for p in map(partial(_rounded, pixels), ROUNDINGS) if p.getcolors(256)), None)
    image = image or _rounded(pixels, ROUNDINGS[0])
    image.save(buffer, "webp", lossless=True, quality=50)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _rounded(pixels: np.ndarray, levels: int) -> Image.Image:
    """From the corner's colour on, so that the background stays exactly the page's."""
    channels = []
    for c in range(3):
        paper = int(pixels[0, 0, c])
        steps = np.rint((np.arange(256) - paper) / levels)
        table = np.clip(paper + steps * levels, 0, 255).astype(np.uint8)
        channels.append(table[pixels[..., c]])
    return Image.fromarray(np.dstack(channels))
