"""The figure of a single finding: what it shows as data, and how it is drawn."""

import warnings

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from gradscope import Run, Site
from gradscope.figures import DARK, LIGHT, Mark, evidence, evidence_of
from gradscope.figures._evidence import LINES
from gradscope.report._page import build
from tests.reference.made_up_pathways import with_pathways
from tests.reference.made_up_runs import broken, hostile, stacked_attention
from tests.reference.synthetic import ladder, run

STEPS = range(0, 100, 10)


def mark(kind, metric, sites, *, first=0, last=90, **more):
    site = sites[0] if sites else ""
    return Mark("F1", "critical", site, first, last, 0, kind, tuple(sites), metric, **more)


def rows_of(kind, metric, series, edge=""):
    """`series`: site → value of each step, or one for all."""
    return [
        (s, site, kind, edge, metric, values[i] if np.ndim(values) else values)
        for site, values in series.items()
        for i, s in enumerate(STEPS)
    ]


def drawn(figure):
    """Draw it as the report does, with every warning an error but that of missing glyphs."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def legend(figure):
    return [t.get_text().strip() for t in figure.legends[0].get_texts()]


def test_lines_are_the_recorded_values_of_the_sites_named():
    values = {"a": np.arange(10.0) + 1, "b": np.full(10, 5.0), "c": np.full(10, 7.0)}
    found = evidence_of(
        run(rows_of("module", "grad_norm", values)), mark("module", "grad_norm", "ab")
    )
    assert [s.name for s in found.lines] == ["a", "b"]
    assert found.lines[0].steps.tolist() == list(STEPS)
    assert found.lines[0].values.tolist() == values["a"].tolist()
    assert [s.named for s in found.lines] == [True, False]
    assert found.band is None and not found.once and not found.missing


def test_a_root_mean_square_is_the_norm_over_the_root_of_the_count():
    made = Run.from_records(
        rows_of("module", "grad_norm", {"a": 8.0}), [Site("a", "module", numel=16)]
    )
    found = evidence_of(made, mark("module", "grad_rms", "a"))
    assert found.lines[0].values.tolist() == [2.0] * 10


def test_of_many_sites_the_named_the_extremes_and_a_band_of_the_rest():
    sizes = {f"l.{k}": 10.0 ** -(k % 7) * (1 + k) for k in range(40)}
    sizes["l.20"] = 1e9
    sizes["l.33"] = 1e-12
    found = evidence_of(
        run(rows_of("module", "grad_norm", sizes)),
        mark("module", "grad_norm", list(sizes), thresholds={"low": 0.1}, relative_to="l.39"),
    )
    assert [s.name for s in found.lines] == ["l.0", "l.20", "l.33", "l.39"]
    rest = [v for name, v in sizes.items() if name not in ("l.0", "l.20", "l.33", "l.39")]
    assert found.band.low.tolist() == [min(rest)] * 10
    assert found.band.high.tolist() == [max(rest)] * 10
    assert found.band.name.startswith("36 ")
    exactly = list(sizes)[:LINES]
    found = evidence_of(
        run(rows_of("module", "grad_norm", sizes)), mark("module", "grad_norm", exactly)
    )
    assert len(found.lines) == LINES and found.band is None


def test_a_site_that_turned_nan_does_not_hide_in_the_band():
    series = {f"l.{k}": np.full(10, 1.0 + k) for k in range(30)}
    series["l.11"] = np.array([12.0] * 5 + [np.nan] * 5)
    found = evidence_of(
        run(rows_of("module", "grad_norm", series)), mark("module", "grad_norm", list(series))
    )
    (lost,) = [s for s in found.lines if len(s.lost)]
    assert lost.name == "l.11" and lost.lost.tolist() == [50, 60, 70, 80, 90]


def test_the_band_holds_the_latest_value_of_what_is_measured_in_turns():
    rows = [
        (step, f"w.{k}", "parameter", "", "update_ratio", float(k + 1))
        for step in STEPS
        for k in range(20)
        if step // 10 % 2 == k % 2
    ]
    found = evidence_of(run(rows), mark("parameter", "update_ratio", [f"w.{k}" for k in range(20)]))
    # w.0 and w.19 are the extremes and have their lines.
    assert found.band.low.tolist() == [3.0] + [2.0] * 9
    assert found.band.high.tolist() == [19.0] * 10


def test_thresholds_are_absolute_or_follow_a_site():
    made = run(rows_of("module", "grad_norm", {"a": 1.0, "b": np.arange(10.0)}))
    found = evidence_of(made, mark("module", "grad_norm", "a", thresholds={"large": 20.0}))
    assert [(t.label, t.values.tolist()) for t in found.thresholds] == [("large: 20", [20.0])]
    found = evidence_of(
        made,
        mark("module", "grad_norm", "a", thresholds={"10^-3 of b": 1e-3}, relative_to="b"),
    )
    (limit,) = found.thresholds
    assert limit.label == "10⁻³ of b" and limit.steps.tolist() == list(STEPS)
    assert limit.values == pytest.approx(1e-3 * np.arange(10.0))


def test_a_share_of_a_fork_is_one_of_all_its_edges_together():
    rows = rows_of("fork", "grad_norm", {"f": 3.0}, "x:add") + rows_of(
        "fork", "grad_norm", {"f": 4.0}, "y:add"
    )
    rows += rows_of("fork", "grad_norm", {"f": 1.0})
    found = evidence_of(
        run(rows),
        mark("fork", "grad_norm", "f", edges=("x:add",), thresholds={"s": 0.5}, relative_to="f"),
    )
    assert [s.name for s in found.lines] == ["x:add"]
    assert found.reference.values.tolist() == [1.0] * 10
    assert found.thresholds[0].values == pytest.approx(0.5 * 5.0)


def test_crossings_are_lines_by_the_softmaxes_crossed():
    made = with_pathways(stacked_attention(3, steps=(0, 10, 20)))
    found = evidence_of(made, mark("crossing", "grad_norm", ["l.0.s"], last=20))
    assert [s.name for s in found.lines][:3] == [
        "0 softmaxes crossed",
        "1 softmax crossed",
        "2 softmaxes crossed",
    ]
    ladder_of = mark("crossing", "grad_norm", ["l.0.s", "l.1.s", "l.2.s"], last=20)
    assert [s.name for s in evidence_of(made, ladder_of).lines] == [s.name for s in found.lines]
    assert found.title.endswith("at l.0.s") and not evidence_of(made, ladder_of).note


@pytest.mark.parametrize(
    ("metric", "values", "scale", "limits"),
    [
        ("grad_norm", [1.0, 100.0], "log", None),
        ("grad_norm", [1.0, 2.0], "linear", None),
        ("grad_norm", [-1.0, 2000.0], "linear", None),
        ("update_ratio", [1e-9, 1.0], "log", None),
        ("entropy", [1e-6, 1.0], "fraction", (-0.03, 1.03)),
        ("dead_fraction", [0.0, 0.6], "fraction", (-0.03, 1.03)),
        ("entropy", [0.0, 0.1], "fraction", (-0.006, 0.125)),
        ("entropy", [0.9, 1.0], "fraction", (0.875, 1.006)),
    ],
)
def test_values_that_span_decades_are_logarithmic_and_fractions_linear(
    metric, values, scale, limits
):
    kind = "parameter" if metric == "update_ratio" else "module"
    series = dict(zip("ab", values, strict=True))
    found = evidence_of(run(rows_of(kind, metric, series)), mark(kind, metric, "ab"))
    assert found.scale == scale
    low, high = found.limits
    assert low < min(values) and max(values) < high
    assert limits is None or (low, high) == pytest.approx(limits)


def test_an_axis_holds_its_thresholds_also_those_far_away():
    made = run(rows_of("input", "input_rms", {"a": 5.0}))
    found = evidence_of(made, mark("input", "input_rms", "a", thresholds={"large": 2000.0}))
    assert found.scale == "log" and found.limits[1] > 2000


def test_one_site_of_several_processes_is_a_line_each_and_more_sites_are_means():
    rows = [
        (s, name, "module", "", "grad_norm", float(rank + 1), rank)
        for s in STEPS
        for name in "ab"
        for rank in range(3)
    ]
    one = evidence_of(run(rows), mark("module", "grad_norm", "a"))
    assert [(s.name, s.values[0]) for s in one.lines] == [(f"rank {r}", r + 1.0) for r in range(3)]
    two = evidence_of(run(rows), mark("module", "grad_norm", "ab"))
    assert [s.values[0] for s in two.lines] == [2.0, 2.0] and "3 processes" in two.note


def test_sites_without_numbers_are_named():
    made = run(rows_of("module", "grad_norm", {"a": 1.0}))
    assert "gone" in evidence_of(made, mark("module", "grad_norm", ["a", "gone"])).note


@pytest.mark.parametrize(
    ("sites", "whose"), [([], ""), (["gone"], " of gone"), (["gone", "too"], " of gone, too")]
)
def test_no_numbers_are_a_sentence_and_no_figure(sites, whose):
    made = run(rows_of("module", "grad_norm", {"a": 1.0}))
    absent = mark("parameter", "weight_norm", sites)
    found = evidence_of(made, absent)
    assert found.missing == f"Nothing to draw: the norm of the weights{whose} was not recorded."
    assert evidence(made, absent) is None


def test_what_is_0_throughout_is_told():
    made = run(rows_of("parameter", "grad_norm", {"a": 0.0, "b": 0.0}))
    found = evidence_of(made, mark("parameter", "grad_norm", "ab"))
    assert found.note == "Exactly 0 wherever it was recorded."
    assert found.scale == "linear" and found.limits[0] > -0.1
    some = run(rows_of("parameter", "grad_norm", {"a": 0.0, "b": 1.0}))
    assert not evidence_of(some, mark("parameter", "grad_norm", "ab")).note


def test_the_steps_of_the_finding_are_shaded():
    made = run(rows_of("module", "grad_norm", {"a": 1.0}))
    figure = evidence(made, mark("module", "grad_norm", "a", first=20, last=50))
    (span,) = [p for p in figure.axes[0].patches if p.get_alpha()]
    assert (span.get_x(), span.get_x() + span.get_width()) == (15, 55)
    assert "found at steps 20–50" in legend(figure)
    once = evidence(made, mark("module", "grad_norm", "a", first=20, last=20))
    assert "found at step 20" in legend(once)


def test_lost_values_are_crosses_at_the_edge_and_zeros_on_a_log_scale_are_marks():
    values = np.array([1.0, 1e-6, 0.0, 1.0, np.nan, np.inf, 1.0, 1.0, 1.0, 1.0])
    figure = evidence(
        run(rows_of("module", "grad_norm", {"a": values})), mark("module", "grad_norm", "a")
    )
    by_marker = {line.get_marker(): line.get_xdata().tolist() for line in figure.axes[0].lines}
    assert by_marker["x"] == [40, 50] and by_marker["v"] == [20]
    assert by_marker["o"] == [30]  # alone between what is left out
    assert {"NaN or infinite", "exactly 0"} <= set(legend(figure))
    line = figure.axes[0].lines[0].get_ydata()
    assert np.isnan(line[[2, 4, 5]]).all() and np.isfinite(line[[0, 1, 3]]).all()


def test_one_step_is_points_side_by_side_in_forward_order():
    made = run(ladder(0.5, layers=5, steps=1, noise=0.0))
    names = [f"layers.{k}.out" for k in range(5)]
    found = mark(
        "module", "grad_norm", names, last=0, thresholds={"t": 0.1}, relative_to="layers.4.out"
    )
    assert evidence_of(made, found).once
    axes = evidence(made, found).axes[0]
    assert [line.get_xdata()[0] for line in axes.lines[:5]] == [0, 1, 2, 3, 4]
    heights = [line.get_ydata()[0] for line in axes.lines[:5]]
    assert heights == pytest.approx([10 ** (-0.5 * (4 - k)) for k in range(5)])
    (limit,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert limit.get_ydata() == pytest.approx([0.1, 0.1])
    assert "at step 0" in axes.get_xlabel()


def test_at_one_step_every_site_is_a_point_and_the_few_that_matter_have_a_name():
    made = run(ladder(0.5, layers=40, steps=1, noise=0.0))
    names = [f"layers.{k}.out" for k in range(40)]
    found = evidence_of(made, mark("module", "grad_norm", names, last=0))
    assert len(found.lines) == 40 and found.band is None
    assert [s.name for s in found.lines if s.told] == ["layers.0.out", "layers.39.out"]
    figure = evidence(made, mark("module", "grad_norm", names, last=0))
    assert legend(figure) == ["layers.0.out", "layers.39.out", "38 more"]


def test_marks_at_an_edge_are_thinned_where_they_would_touch():
    rows = [(s, "a", "module", "", "grad_norm", np.nan) for s in range(1000)]
    rows += [(s, "b", "module", "", "grad_norm", 1.0) for s in range(1000)]
    axes = evidence(run(rows), mark("module", "grad_norm", "ab", last=999)).axes[0]
    (crosses,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert crosses.get_xdata().tolist() == list(range(0, 1000, 20))


def test_nothing_finite_is_said():
    made = run(rows_of("module", "grad_norm", {"a": np.nan}))
    figure = evidence(made, mark("module", "grad_norm", "a"))
    assert "no value was finite" in [t.get_text() for t in figure.axes[0].texts]
    drawn(figure)


CASES = {
    "stack": lambda: with_pathways(stacked_attention(4, steps=tuple(STEPS), ranks=2)),
    "one step": lambda: with_pathways(stacked_attention(4, steps=(7,))),
    "lost": lambda: with_pathways(broken(3, at=600), lost=600),
    "hostile": hostile,
}
VIEWS = {
    "module": "grad_rms",
    "parameter": "update_ratio",
    "fork": "grad_norm",
    "softmax": "entropy",
    "crossing": "grad_norm",
    "pathway": "grad_norm",
    "activation": "dead_fraction",
    "cut": "ratio",
    "probe": "accuracy",
    "scalar": "value",
}


@pytest.mark.parametrize("theme", (LIGHT, DARK), ids=lambda t: t.name)
@pytest.mark.parametrize("kind", VIEWS)
@pytest.mark.parametrize("case", CASES)
def test_every_kind_draws_on_the_paper_of_its_theme(case, kind, theme):
    made = CASES[case]()
    sites = [s.name for s in made.sites_of(kind)]
    columns = [c for c in made.columns if c.kind == kind and c.metric == VIEWS[kind] and c.edge]
    edges = tuple(c.edge for c in columns if c.site == sites[0]) if kind == "fork" else ()
    about = mark(kind, VIEWS[kind], sites, last=int(made.steps[-1]), edges=edges)
    found = evidence_of(made, about)
    if not sites or found.missing:
        assert evidence(made, about, theme) is None
        return
    figure = evidence(made, about, theme)
    figure.set_dpi(50)
    pixels = drawn(figure)
    assert len(np.unique(pixels.view(np.uint32))) > 10
    paper = [int(theme.paper[i : i + 2], 16) for i in (1, 3, 5)]
    assert pixels[0, 0, :3].tolist() == paper


def test_what_is_written_stays_inside_the_figure_and_off_the_axes():
    long = "model.vision_tower.encoder.layers.{}.self_attention.output_projection"
    sizes = {long.format(k): 10.0**-k for k in range(30)}
    figure = evidence(
        run(rows_of("module", "grad_norm", sizes)),
        mark(
            "module",
            "grad_norm",
            list(sizes),
            thresholds={"10^-3 of the last layer": 1e-3},
            relative_to=long.format(29),
        ),
    )
    drawn(figure)
    whole = figure.bbox
    box = figure.legends[0].get_window_extent()
    axes = figure.axes[0]
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0
    assert box.x0 >= axes.get_window_extent().x1
    tight = axes.get_tightbbox()
    assert tight.x0 >= 0 and tight.y0 >= 0 and tight.y1 <= whole.y1


@pytest.mark.parametrize("size", (1.25e-8, 1.25e8, 12345.0, 0.00123))
def test_tick_labels_stay_inside_the_figure(size):
    made = run(rows_of("module", "grad_norm", {"a": size * (1 + np.arange(10.0) / 10)}))
    figure = evidence(made, mark("module", "grad_norm", "a"))
    drawn(figure)
    assert figure.axes[0].get_yscale() == "linear"
    assert figure.axes[0].get_tightbbox().x0 >= 0


def test_every_finding_of_a_run_has_its_evidence():
    for view in build([stacked_attention(6), broken(4)]).findings:
        assert view.shown.missing or (view.shown.lines and view.shown.title)
        assert (view.shown.first, view.shown.last) == (
            view.finding.first_step,
            view.finding.last_step,
        )
