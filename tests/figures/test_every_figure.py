"""What holds for every figure, on every kind of run."""

import warnings
from copy import deepcopy
from functools import cache
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gradscope import Run
from gradscope.figures import DARK, FIGURES, LIGHT, Mark
from tests.reference.made_up_pathways import with_pathways
from tests.reference.made_up_runs import broken, deep_transformer, hostile, stacked_attention

FEW = tuple(range(0, 60, 10))


@cache
def runs(case):
    return {
        "one": lambda: [with_pathways(stacked_attention(3, steps=FEW, ranks=2))],
        "two": lambda: [
            with_pathways(stacked_attention(3, steps=FEW)),
            with_pathways(stacked_attention(3, latent=True, steps=FEW), plain=False),
        ],
        "unlike": lambda: [stacked_attention(2, steps=FEW), deep_transformer(4, steps=FEW)],
        "many sites": lambda: [
            with_pathways(
                deep_transformer(24, steps=(0, 25)),
                layers=24,
                path="model.vision_tower.encoder.layers.{}.self_attn",
            )
        ],
        "one step": lambda: [with_pathways(stacked_attention(3, steps=(7,)))],
        "not finite": lambda: [with_pathways(broken(3, at=600), lost=600)],
        "hostile names": lambda: [with_pathways(hostile(), path=r"<b>_$\frac{{a$[red].{}")],
    }[case]()


CASES = ("two", "unlike", "many sites", "one step", "not finite", "hostile names")
BY_NAME = {k.name: k for k in FIGURES}
MARKS = (
    Mark(
        "F1",
        "critical",
        "stack.layers.0",
        10,
        50,
        kind="module",
        sites=("stack.layers.0", "stack.layers.1", "stack.layers.2"),
        metric="grad_rms",
        thresholds={"a tenth": 0.1},
        relative_to="stack.layers.2",
    ),
    Mark(
        "F2",
        "warning",
        "stack.layers.1",
        0,
        0,
        kind="softmax",
        metric="entropy",
        thresholds={"peaked": 0.05},
    ),
    Mark("F3", "info", "stack.layers.1", 0, 50, kind="fork"),
    Mark("F4", "info", "no such site", 0, 50),
)


def drawn(figure):
    """Draw it as the report does, with every warning an error but that of missing glyphs."""
    figure.set_dpi(60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", FIGURES, ids=lambda k: k.name)
def test_draws_or_says_why_not(kind, case):
    figure = kind(runs(case), MARKS)
    if kind.missing(runs(case)):
        assert figure is None
        return
    assert isinstance(figure, Figure)
    pixels = drawn(figure)
    assert len(np.unique(pixels.view(np.uint32))) > 10
    assert figure.get_figheight() <= 20


@pytest.mark.parametrize("kind", FIGURES, ids=lambda k: k.name)
def test_a_run_without_the_data_is_named_as_the_reason(kind):
    empty = Run.from_records([(0, "x", "cut", "", "value", 1.0)])
    assert kind(empty) is None
    assert kind.missing(empty) == kind.absent != ""
    if not kind.missing(runs("one")):
        # One of the runs suffices: the other's panel says that it has nothing.
        assert isinstance(kind([runs("one")[0], empty]), Figure)
        drawn(kind([empty, runs("one")[0]]))


def test_a_column_that_was_never_filled_is_no_data():
    run = Run.from_records([(0, "x", "module", "", "grad_norm", 1.0)])
    run.blocks[0].present[:] = False
    assert all(k.missing(run) for k in FIGURES)


@pytest.mark.parametrize("kind", FIGURES, ids=lambda k: k.name)
def test_touches_nothing_but_what_it_returns(kind):
    (run,) = runs("one")
    settings, before = dict(mpl.rcParams), deepcopy(run)
    kind(run, MARKS)
    assert dict(mpl.rcParams) == settings
    assert run.meta == before.meta and run.sites == before.sites
    for block, old in zip(run.blocks, before.blocks, strict=True):
        np.testing.assert_array_equal(block.values, old.values)


@pytest.mark.parametrize("kind", FIGURES, ids=lambda k: k.name)
def test_ignores_the_settings_of_its_caller(kind):
    (run,) = runs("one")
    usual = drawn(kind(run))
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9}):
        figure = kind(run)
    np.testing.assert_array_equal(drawn(figure), usual)


@pytest.mark.parametrize("theme", (LIGHT, DARK), ids=lambda t: t.name)
@pytest.mark.parametrize("kind", FIGURES, ids=lambda k: k.name)
def test_stands_on_the_paper_of_its_theme(kind, theme):
    figure = kind(runs("one"), theme=theme)
    assert mpl.colors.to_hex(figure.get_facecolor()) == theme.paper
    for axes in figure.axes:
        for label in (axes.title, axes.xaxis.label, axes.yaxis.label):
            assert contrast(label.get_color(), theme.paper) > 3


@pytest.mark.parametrize("theme", (LIGHT, DARK), ids=lambda t: t.name)
def test_colours_of_findings_can_be_read(theme):
    for colour in (*theme.severity.values(), theme.ink, theme.muted):
        assert contrast(colour, theme.paper) >= 4.5  # WCAG AA


def contrast(a, b):
    def luminance(colour):
        c = np.array(mpl.colors.to_rgb(colour))
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_findings_about_other_kinds_leave_a_figure_alone():
    # The same path can be a module, a softmax and a fork.
    for kind, name in (
        ("module", "gradient_map"),
        ("module", "gradient_depth"),
        ("fork", "pathways"),
        ("fork", "path_sizes"),
    ):
        others = [m for m in MARKS if m.kind not in ("", kind)]
        np.testing.assert_array_equal(
            drawn(BY_NAME[name](runs("one"), others)), drawn(BY_NAME[name](runs("one")))
        )


@pytest.mark.parametrize("name", ("gradient_map", "gradient_depth"))
def test_row_labels_never_overlap(name):
    figure = BY_NAME[name](runs("many sites"), MARKS)
    drawn(figure)
    axes = figure.axes[0]
    boxes = [t.get_window_extent() for t in axes.get_yticklabels() if t.get_text()]
    boxes.sort(key=lambda b: b.y0)
    assert len(boxes) > 30
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))


@pytest.mark.parametrize("kind", FIGURES, ids=lambda k: k.name)
def test_says_what_it_shows_and_how_to_read_it(kind):
    assert kind.title and len(kind.caption) > 100 and len(kind.caption_several) > 100
    figure = kind(runs("one"))
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert any(labels)
