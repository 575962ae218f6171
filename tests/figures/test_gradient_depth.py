import numpy as np
import pytest

from gradscope import Run, Site
from gradscope.figures import Mark, depth_ends, gradient_depth
from tests.reference.made_up_runs import deep_transformer, stacked_attention


def exact(layers, factor, steps=(0, 10, 20)):
    """RMS gradient of layer k: factor ** (layers - 1 - k), the same at all steps."""
    names = [f"l.{k}" for k in range(layers)]
    rows = [
        (s, n, "module", "", "grad_norm", 2 * factor ** (layers - 1 - k))
        for s in steps
        for k, n in enumerate(names)
    ]
    return Run.from_records(
        rows, [Site(n, "module", order=k, depth=9 - k, numel=4) for k, n in enumerate(names)]
    )


def texts(figure):
    return [t.get_text() for legend in figure.legends for t in legend.get_texts()]


def test_ends_are_first_and_last_layer():
    (ends,) = depth_ends([exact(5, 0.1)])
    assert (ends.first_site, ends.last_site) == ("l.0", "l.4")
    assert (ends.first, ends.last) == pytest.approx((1e-4, 1.0))
    assert ends.ratio == pytest.approx(1e-4)


def test_ends_look_at_the_end_of_training():
    run = exact(3, 0.1, steps=tuple(range(40)))
    run.blocks[0].values[:36] *= 1e6
    assert depth_ends([run])[0].last == pytest.approx(1.0)


def test_no_profile_no_ends():
    run = Run.from_records([(0, "x", "module", "", "grad_norm", 1.0)])
    assert depth_ends([run, Run()]) == [None, None]


def test_a_dead_end_gives_no_ratio():
    run = exact(3, 0.1)
    run.blocks[0].values[:, -1] = 0.0
    assert np.isnan(depth_ends([run])[0].ratio)


def test_one_run_five_moments_with_their_ratio():
    figure = gradient_depth(exact(4, 0.1, steps=tuple(range(0, 90, 10))))
    assert texts(figure) == [f"step {s}   first / last = 0.001" for s in (0, 20, 40, 60, 80)]
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), [1e-3, 1e-2, 0.1, 1])
    assert line.get_ydata().tolist() == [0, 1, 2, 3]


def test_few_steps_are_drawn_once_each():
    assert len(texts(gradient_depth(exact(4, 0.1, steps=(0, 10))))) == 2
    assert len(texts(gradient_depth(exact(4, 0.1, steps=(0,))))) == 1


def test_compared_runs_meet_in_one_panel_a_moment():
    figure = gradient_depth([exact(4, 0.1), exact(4, 0.5)])
    assert [a.get_title(loc="left") for a in figure.axes] == [
        "first (step 0)",
        "middle (step 10)",
        "last (step 20)",
    ]
    assert len({a.get_xlim() for a in figure.axes}) == 1
    assert texts(figure) == ["run   first / last = 0.001", "run   first / last = 0.12"]
    for axes in figure.axes:
        slow, fast = axes.lines
        assert slow.get_xdata()[0] < fast.get_xdata()[0]


def test_unlike_models_are_placed_by_their_share_of_the_way():
    figure = gradient_depth([stacked_attention(2, steps=(0,)), deep_transformer(4, steps=(0,))])
    places = np.concatenate([line.get_ydata() for line in figure.axes[0].lines])
    assert places.min() >= 0 and places.max() <= 1


def test_a_findings_threshold_is_drawn_where_it_lies():
    mark = Mark(
        "F1",
        "warning",
        "l.0",
        0,
        20,
        kind="module",
        sites=("l.0", "l.1", "l.2"),
        metric="grad_rms",
        thresholds={"10^-3 of the last": 1e-3},
        relative_to="l.3",
    )
    figure = gradient_depth(exact(4, 0.1), [mark])
    assert texts(figure)[-1] == "F1: 10⁻³ of the last"
    dotted = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert dotted[0].get_xdata()[0] == pytest.approx(1e-3)


def test_a_line_skips_what_is_not_finite_and_says_when_nothing_is():
    run = exact(4, 0.1)
    run.blocks[0].values[1, 1] = np.nan
    run.blocks[0].values[2] = np.inf
    figure = gradient_depth(run)
    assert texts(figure)[-1] == "step 20   no finite gradient"
    assert figure.axes[0].lines[1].get_ydata().tolist() == [0, 2, 3]
