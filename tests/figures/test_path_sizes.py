import numpy as np
import pytest

from gradscope import Run
from gradscope.figures import Mark, path_sizes
from gradscope.figures._forks import forks
from gradscope.figures._path_sizes import relative, spread


def run_of(norms):
    """{edge: [norm at step 0, 1, …]} of one fork."""
    return Run.from_records(
        [
            (step, "f", "fork", edge, "grad_norm", value)
            for edge, values in norms.items()
            for step, value in enumerate(values)
        ]
    )


def lines(figure):
    return [line.get_ydata() for line in figure.axes[0].lines if line.get_linestyle() == "-"]


def test_lines_are_norms_relative_to_all_of_them():
    figure = path_sizes(run_of({"a:x": [3.0, 1.0], "b:y": [4.0, 0.0]}))
    a, b = lines(figure)
    assert a.tolist() == pytest.approx([0.6, 1.0])
    assert b[0] == pytest.approx(0.8) and np.isnan(b[1])  # 0 is not on a log scale
    assert figure.axes[0].get_yscale() == "log"


@pytest.mark.parametrize("scale", (1e-200, 1.0, 1e200))
def test_squares_neither_vanish_nor_overflow(scale):
    fork = relative(forks(run_of({"a:x": [3 * scale], "b:y": [4 * scale]}), "grad_norm")[0])
    assert fork.values[0].tolist() == pytest.approx([0.6, 0.8])


def test_spread_is_the_decades_between_strongest_and_weakest():
    norms = {"a:x": [1.0, 1.0, np.nan], "b:y": [1e-3, 1e-5, 1.0], "c:z": [0.1, 0.1, 0.1]}
    assert spread(forks(run_of(norms), "grad_norm")[0]) == pytest.approx(4.0)
    assert spread(forks(run_of({"a:x": [0.0], "b:y": [0.0]}), "grad_norm")[0]) == 0.0


def test_layers_of_one_path_share_a_hue_and_differ_in_strength():
    figure = path_sizes(run_of({f"l.{k}:add": [10.0**-k] for k in range(3)}))
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert len(set(colours)) == 3
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["l.*:add"]


def test_the_threshold_of_a_finding_is_drawn():
    mark = Mark("F1", "info", "f", 0, 1, kind="fork", metric="grad_norm", thresholds={"few": 1e-3})
    figure = path_sizes(run_of({"a:x": [1.0, 1.0], "b:y": [1e-9, 1e-9]}), [mark])
    dotted = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert [line.get_ydata()[0] for line in dotted] == [1e-3]
    assert figure.axes[0].get_title(loc="left") == "F1  f"
    assert figure.axes[0].get_ylim()[0] < 1e-9
