import numpy as np

from gradscope import Run
from gradscope.figures import Mark, activations
from tests.reference.made_up_pathways import activations as made_up

STEPS = tuple(range(0, 200, 20))


def run(lost=None, name=""):
    rows, sites = made_up(3, steps=STEPS)
    if lost is not None:
        rows = [(*r[:5], np.nan) if r[0] >= lost else r for r in rows]
    return Run.from_records(rows, sites, {"name": name})


def cells(axes):
    """Sites × steps of each map in a panel; NaN where it shows nothing."""
    return [mesh.get_array().filled(np.nan) for mesh in axes.collections]


def test_dead_units_and_saturated_elements_stand_side_by_side():
    dead, saturated = activations(run()).axes[:2]
    assert dead.get_title(loc="left") == "dead units"
    assert saturated.get_title(loc="left") == "saturated elements"
    np.testing.assert_array_equal(cells(dead)[0][:, 0], [0.0, 0.01, 0.02])
    np.testing.assert_array_equal(cells(saturated)[0][:, 0], [0.5, 0.51, 0.52])


def test_the_scale_is_that_of_a_share():
    (mesh,) = activations(run()).axes[0].collections
    assert (mesh.norm.vmin, mesh.norm.vmax) == (0, 1) and type(mesh.norm).__name__ == "Normalize"


def test_what_is_not_finite_is_no_share():
    values, lost = cells(activations(run(lost=100)).axes[0])
    assert np.isnan(values[:, -1]).all() and (lost[:, -1] == 1).all()


def test_runs_have_a_row_each():
    figure = activations([run(name="first"), run(name="second")])
    titles = [axes.get_title(loc="left") for axes in figure.axes[:4]]
    assert titles == [
        f"{name}: {what}"
        for name in ("first", "second")
        for what in ("dead units", "saturated elements")
    ]


def test_a_finding_colours_the_row_of_its_run():
    mark = Mark("F1", "critical", "l.1.act", 0, 180, run=1, kind="activation")
    figure = activations([run(name="first"), run(name="second")], [mark])
    labels = [[t.get_text() for t in axes.get_yticklabels()] for axes in figure.axes[:4]]
    assert not any("F1" in " ".join(row) for row in labels[:2])
    assert "F1  l.1.act" in labels[2]


def test_means_over_steps_that_share_a_cell_are_arithmetic():
    rows = [(step, "a", "activation", "", "dead_fraction", float(step % 2)) for step in range(1024)]
    (values,) = cells(activations(Run.from_records(rows)).axes[0])
    assert values.shape == (1, 512) and (values == 0.5).all()


def test_a_run_without_activations_has_no_such_figure():
    rows = [(0, "m", "module", "", "grad_norm", 1.0)]
    assert activations(Run.from_records(rows)) is None
