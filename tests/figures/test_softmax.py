import math

import numpy as np
import pytest

from gradscope import Run, Site
from gradscope.figures import Mark, softmax


def run_of(metric="gain", values=(0.1, 0.2), sites=3, n=16):
    rows = [
        (step, f"l.{k}", "softmax", "", metric, v * (k + 1))
        for step, v in enumerate(values)
        for k in range(sites)
    ]
    return Run.from_records(
        rows, [Site(f"l.{k}", "softmax", order=k, shape=(2, n)) for k in range(sites)]
    )


def dotted(axes):
    return [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"]


def test_a_line_a_softmax():
    axes = softmax(run_of()).axes[0]
    lines = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert [line.get_ydata().tolist() for line in lines] == [
        pytest.approx([0.1 * k, 0.2 * k]) for k in (1, 2, 3)
    ]
    assert axes.get_yscale() == "log"


def test_the_even_distribution_is_the_reference():
    assert dotted(softmax(run_of("gain", n=16)).axes[0]) == [pytest.approx(1 / 16)]
    # ‖diag p − ppᵀ‖ of uniform p over n, by its definition
    p = np.full(16, 1 / 16)
    slope = np.linalg.norm(np.diag(p) - np.outer(p, p))
    assert dotted(softmax(run_of("jacobian_norm", n=16)).axes[0]) == [pytest.approx(slope)]
    assert slope == pytest.approx(math.sqrt(15) / 16)


def test_no_reference_where_rows_differ_in_length():
    run = run_of()
    run.sites["softmax", "l.0"] = Site("l.0", "softmax", shape=(2, 99))
    assert dotted(softmax(run).axes[0]) == []


def test_bounded_metrics_are_on_their_full_scale():
    low, high = softmax(run_of("entropy", (0.1, 0.2))).axes[0].get_ylim()
    assert low < 0 < 1 < high


def test_many_softmaxes_are_told_by_colour_not_by_name():
    few, many = softmax(run_of(sites=3)), softmax(run_of(sites=30, values=(0.01,)))
    assert [t.get_text() for t in few.legends[0].get_texts()] == ["l.0", "l.1", "l.2"]
    assert many.legends[0].get_texts()[0].get_text() == "first softmax"


def test_compared_runs_share_each_metrics_axis():
    runs = [run_of(values=(0.001,)), run_of(values=(0.3,))]
    a, b = softmax(runs).axes
    assert a.get_ylim() == b.get_ylim()


def test_thresholds_of_findings():
    mark = Mark(
        "F1", "warning", "l.0", 0, 1, kind="softmax", metric="entropy", thresholds={"peaked": 0.05}
    )
    axes = softmax(run_of("entropy"), [mark]).axes[0]
    assert [t.get_text().strip() for t in axes.texts] == ["F1 peaked"]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed[0].get_ydata()[0] == 0.05
