import numpy as np
import pytest

from gradscope import Run
from gradscope.figures import Mark, training_curves
from gradscope.figures._training_curves import BARS, NAMED, panels_of, running_quantile, series_of
from tests.reference.made_up_runs import broken, scalars


def logged(**series):
    rows = [(s, n, "scalar", "", "value", v) for n, xs in series.items() for s, v in xs.items()]
    return Run.from_records([*rows, (0, "m", "module", "", "grad_norm", 1.0)])


def titles(figure):
    return [a.get_title(loc="left") for a in figure.axes]


def test_held_out_data_stands_beside_its_own():
    assert series_of("val_accuracy") == ("accuracy", "val_accuracy", True)
    assert series_of("train/loss") == ("loss", "train/loss", False)
    assert series_of("validation.top5") == ("top5", "validation.top5", True)
    assert series_of("value") == ("value", "value", False)
    names = ["lr", "val_acc", "aux_loss", "step_seconds", "acc", "val/loss", "f1"]
    assert panels_of(names) == ["loss", "aux_loss", "acc", "f1", "lr", "step_seconds"]


def test_lines_are_the_logged_values():
    figure = training_curves(logged(loss={0: 3.0, 1: 2.0, 5: 1.0}, val_loss={0: 4.0, 5: 2.0}))
    assert titles(figure) == ["loss"]
    train, val = figure.axes[0].lines
    assert train.get_xdata().tolist() == [0, 1, 5] and train.get_ydata().tolist() == [3, 2, 1]
    assert val.get_xdata().tolist() == [0, 5] and val.get_linestyle() == "--"


def test_settings_that_never_changed_are_left_out():
    series = {0: 1.0, 1: 1.0}
    assert titles(training_curves(logged(loss=series, lr=series, clip={0: 1.0, 1: 2.0}))) == [
        "loss",
        "clip",
    ]


def test_what_gradscope_logs_itself_has_words_and_a_unit_and_comes_last():
    figure = training_curves(
        logged(
            clip_norm={0: 3.0, 1: 2.0},
            clip_scale={0: 0.3, 1: 0.5},
            loss_scale={0: 65536.0, 1: 128.0},
            loss={0: 1.0, 1: 0.5},
            perplexity={0: 3.0, 1: 2.0},
            step_seconds={0: 0.1, 1: 0.2},
        )
    )
    assert [t.partition(":")[0] for t in titles(figure)] == [
        *("loss", "perplexity", "clip_norm", "clip_scale", "loss_scale")
    ]
    units = [axes.get_ylabel() for axes in figure.axes]
    assert units == ["as logged", "as logged", "‖g‖₂", "fraction", "factor (log scale)"]
    assert figure.axes[3].get_ylim() == (-0.02, 1.02)


def test_groups_of_parameters_share_the_panel_of_the_learning_rate():
    groups = {f"lr[{i}]": {0: 0.1 * (i + 1), 1: 0.05} for i in range(20)}
    (axes,) = training_curves(logged(**groups)).axes
    assert axes.get_title(loc="left") == "lr: learning rate"
    assert len(axes.lines) == 20 and axes.lines[0].get_color() != axes.lines[1].get_color()
    assert [t.get_text() for t in axes.get_legend().get_texts()] == [
        f"lr[{i}]" for i in range(NAMED)
    ]


@pytest.mark.parametrize("panel", (0, 1))
def test_skipped_steps_are_marks_beside_the_loss_scale(panel):
    scale = {"loss_scale": {0: 2.0, 5: 1.0}} if panel else {}
    figure = training_curves(logged(loss={0: 2.0, 5: 1.0}, skipped_steps={5: 3.0}, **scale))
    assert len(figure.axes) == 1 + panel
    marks = [[m for m in axes.lines if m.get_marker() == "^"] for axes in figure.axes]
    assert [m.get_xdata().tolist() for m in marks[panel]] == [[5]]
    assert panel == 0 or not marks[0]


def test_where_nothing_but_settings_was_logged_they_are_drawn():
    figure = training_curves(logged(lr={0: 0.1, 1: 0.1}, step_seconds={0: 0.3, 1: 0.3}))
    assert titles(figure) == ["lr: learning rate", "step_seconds"]


def test_accuracy_is_on_a_full_scale_and_a_wide_loss_on_a_log_one():
    figure = training_curves(logged(loss={0: 100.0, 1: 0.1}, acc={0: 0.5, 1: 0.6}))
    loss, accuracy = figure.axes
    assert loss.get_yscale() == "log" and accuracy.get_yscale() == "linear"
    assert accuracy.get_ylim()[0] < 0 < 1 < accuracy.get_ylim()[1]


def test_lost_values_are_crosses():
    run = logged(loss={0: 1.0, 1: np.nan, 2: np.inf, 3: 0.5})
    crosses = [line for line in training_curves(run).axes[0].lines if line.get_marker() == "x"]
    assert crosses[0].get_xdata().tolist() == [1, 2]


def test_a_long_noisy_curve_is_a_median_in_a_band_of_most_values():
    run = Run.from_records([*scalars(range(300)), (0, "m", "module", "", "grad_norm", 1.0)])
    axes = training_curves(run).axes[0]
    (smooth,), (band,) = axes.lines, axes.collections
    raw = run.scalars()["loss"].to_numpy()
    assert np.ptp(np.diff(smooth.get_ydata())) < np.ptp(np.diff(raw))
    corners = band.get_paths()[0].vertices
    inside = [
        corners[corners[:, 0] == s, 1].min() <= v <= corners[corners[:, 0] == s, 1].max()
        for s, v in enumerate(raw)
    ]
    assert 0.7 < np.mean(inside) < 0.95


@pytest.mark.parametrize("q", (0.1, 0.5, 0.9))
def test_running_quantile_is_the_quantile_of_its_window(q):
    values = np.array([1.0, 9.0, 2.0, np.nan, 3.0, 8.0])
    expected = [np.nanquantile(values[max(0, i - 1) : i + 2], q) for i in range(6)]
    assert running_quantile(values, q, 3) == pytest.approx(expected)


def test_findings_are_bars_over_their_steps_worst_first():
    marks = [Mark("F1", "critical", "m", 600, 990), Mark("F2", "info", "m", 0, 100)]
    figure = training_curves(broken(2), marks)
    assert titles(figure)[-1] == "findings"
    bars = [line for line in figure.axes[-1].lines if line.get_linewidth() > 3]
    assert [tuple(b.get_xdata()) for b in bars] == [(600, 990), (0, 100)]
    assert [t.get_text() for t in figure.axes[-1].get_yticklabels()] == ["F1", "F2"]
    # A finding that began during training is marked in the curves as well.
    hairlines = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert [h.get_xdata()[0] for h in hairlines] == [600]


def test_only_the_worst_of_very_many_findings():
    marks = [Mark(f"F{i}", "info", "m", 0, 0) for i in range(40)]
    marks.append(Mark("worst", "critical", "m", 0, 0))
    labels = training_curves(broken(2), marks).axes[-1].get_yticklabels()
    assert len(labels) == BARS and labels[0].get_text() == "worst"


def test_runs_share_an_axis_and_differ_in_colour():
    a, b = logged(loss={0: 1.0, 9: 0.5}), logged(loss={0: 2.0, 99: 0.1})
    a.meta["name"], b.meta["name"] = "_first", "second"
    figure = training_curves([a, b])
    first, second = figure.axes[0].lines
    assert first.get_color() != second.get_color()
    assert figure.axes[0].get_xlim()[1] >= 99
    assert [t.get_text().strip() for t in figure.legends[0].get_texts()] == ["_first", "second"]


def test_scalars_logged_without_any_gradient():
    run = Run.from_records(scalars((0, 1, 2)))
    assert titles(training_curves(run)) == ["loss", "accuracy", "lr: learning rate"]
