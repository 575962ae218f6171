import numpy as np
import pytest
from matplotlib.collections import QuadMesh

from gradscope import Run, Site
from gradscope.figures import LIGHT, Mark, gradient_map, parameter_map, update_map
from gradscope.figures._axes import log_norm, step_edges
from gradscope.figures._heat_map import CELLS
from tests.reference.made_up_runs import broken, stacked_attention


def cells(axes):
    """Per colour map: the mesh's values as (rows, columns), NaN where nothing is drawn."""
    meshes = [c for c in axes.collections if isinstance(c, QuadMesh)]
    return [np.ma.filled(m.get_array().astype(float), np.nan) for m in meshes]


def run_of(rows):
    return Run.from_records([(s, n, "module", "", "grad_norm", v) for s, n, v in rows], SITES)


SITES = [Site(n, "module", order=i, numel=4) for i, n in enumerate(("in", "mid", "out"))]


def test_cells_are_the_gradients_in_forward_order():
    run = run_of([(0, "out", 8.0), (0, "in", 2.0), (10, "out", 4.0), (10, "mid", 6.0)])
    axes = gradient_map(run).axes[0]
    (values,) = cells(axes)
    np.testing.assert_array_equal(values, [[1.0, np.nan], [np.nan, 3.0], [4.0, 2.0]])
    assert [t.get_text() for t in axes.get_yticklabels()] == ["in", "mid", "out"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the input is at the top


def test_nan_infinity_and_zero_are_cells_of_their_own():
    run = run_of([(0, "in", 0.0), (0, "mid", 2.0), (0, "out", np.inf), (1, "in", np.nan)])
    figure = gradient_map(run)
    values, zero, nonfinite = cells(figure.axes[0])
    np.testing.assert_array_equal(values, [[np.nan, np.nan], [1.0, np.nan], [np.nan] * 2])
    assert np.argwhere(zero == 1).tolist() == [[0, 0]]
    assert np.argwhere(nonfinite == 1).tolist() == [[0, 1], [2, 0]]
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [
        "exactly 0",
        "NaN or infinite",
        "not recorded",
    ]


def test_one_nan_in_a_long_run_is_not_lost():
    steps = 4 * CELLS
    rows = [(s, n, 2.0) for s in range(steps) for n in ("in", "mid", "out")]
    rows[3 * 777] = (777, "in", np.nan)
    values, nonfinite = cells(gradient_map(run_of(rows)).axes[0])
    assert values.shape[1] == CELLS
    assert np.nansum(nonfinite) == 1
    assert np.nanmax(abs(values - 1)) < 1e-12


def test_compared_runs_share_rows_and_colours():
    runs = [stacked_attention(3, steps=(0, 10)), stacked_attention(3, latent=True, steps=(0, 10))]
    left, right = gradient_map(runs).axes[:2]
    assert left.collections[0].norm is right.collections[0].norm
    assert left.get_ylim() == right.get_ylim()
    assert [a.get_title(loc="left") for a in (left, right)] == ["stacked", "latent"]


def test_unlike_models_keep_their_own_rows():
    other = Run.from_records([(0, n, "module", "", "grad_norm", 1.0) for n in "pqrs"])
    left, right = gradient_map([run_of([(0, "in", 1.0)]), other]).axes[:2]
    assert [t.get_text() for t in left.get_yticklabels()] == ["in"]
    assert [t.get_text() for t in right.get_yticklabels()] == list("pqrs")


def test_a_marked_row_is_labelled_in_the_colour_of_its_severity():
    run = run_of([(0, n, 1.0) for n in ("in", "mid", "out")])
    marks = [
        Mark("F1", "info", "mid", 0, 0, kind="module"),
        Mark("F2", "critical", "mid", 0, 0, kind="module"),
        Mark("F3", "critical", "out", 0, 0, kind="softmax"),
    ]
    labels = gradient_map(run, marks).axes[0].get_yticklabels()
    assert [t.get_text() for t in labels] == ["in", "F1 F2  mid", "out"]
    assert labels[1].get_color() == LIGHT.severity["critical"]
    assert labels[2].get_color() != LIGHT.severity["critical"]


def test_parameters_without_a_gradient_are_grey_rows():
    run = Run.from_records(
        [(0, "w", "parameter", "", "grad_norm", 2.0), (0, "b", "parameter", "", "grad_norm", 1.0)],
        [Site("w", "parameter", order=0, numel=4), Site("b", "parameter", order=1, numel=1)],
    )
    run.blocks[0].present[0, 1] = False
    figure = parameter_map(run)
    (values,) = cells(figure.axes[0])
    np.testing.assert_array_equal(values, [[1.0], [np.nan]])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["no gradient"]


def test_an_update_ratio_is_held_until_the_next_one():
    rows = [(s, "w", "parameter", "", "update_ratio", v) for s, v in ((10, 1e-3), (30, 2e-3))]
    rows += [(s, "v", "parameter", "", "update_ratio", v) for s, v in ((0, np.inf), (20, 1e-4))]
    values, infinite = cells(update_map(Run.from_records(rows)).axes[0])
    np.testing.assert_array_equal(
        values, [[np.nan, 1e-3, 1e-3, 2e-3], [np.nan, np.nan, 1e-4, 1e-4]]
    )
    assert np.argwhere(infinite == 1).tolist() == [[1, 0], [1, 1]]


def test_colours_survive_an_outlier_and_say_so():
    values = np.full(1000, 1e-3)
    norm, extend = log_norm([np.append(values, 1e20)])
    assert norm.vmax <= 1e-1 and extend == "max"
    norm, extend = log_norm([np.geomspace(1e-30, 1, 50)])
    assert (norm.vmin, norm.vmax) == pytest.approx((1e-30, 1)) and extend == "neither"
    norm, _ = log_norm([np.array([])])
    assert norm.vmin < norm.vmax


def test_cells_border_half_way_between_steps():
    assert step_edges(np.array([0, 10, 40])).tolist() == [-5, 5, 25, 55]
    assert step_edges(np.array([7])).tolist() == [6.5, 7.5]


def test_a_diverged_run_shows_when():
    _, zero, nonfinite = cells(gradient_map(broken(3, at=600)).axes[0])
    columns = np.flatnonzero(np.nansum(nonfinite, axis=0))
    assert columns[0] == 60 and len(columns) == 40
    assert np.nansum(zero) == 60
