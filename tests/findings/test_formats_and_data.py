"""underflow and unscaled-input on made-up numbers."""

import pytest

from gradscope.findings import underflow, unscaled_input
from gradscope.findings._rule import Skipped, apply
from gradscope.findings._signals import Signals
from gradscope.run import Site
from tests.reference import synthetic as made


def half(zero, tiny, sites=4, steps=30, bad=4, scale=None, loss=()):
    rows, known = [*loss], []
    for k in range(sites):
        name = f"net.{k}"
        known.append(Site(name, "module", order=k, depth=sites - k))
        rows += made.series("module", name, "grad_norm", [1.0] * steps)
        for metric, value in (("zero_fraction", zero), ("subnormal_fraction", tiny)):
            rows += made.series("module", name, metric, [value if k < bad else 0.0] * steps)
    if scale:
        rows += made.series("scalar", "loss_scale", "value", [scale] * steps)
    return apply(underflow.RULE, Signals(made.run(rows, known)))


def test_a_healthy_scale():
    assert half(0.5, 0.05) == []


def test_all_is_zero():
    (finding,) = half(1.0, 0.0)
    assert (finding.rule, finding.severity) == ("underflow", "critical")
    assert "GradScaler" in finding.remedy


def test_most_has_lost_digits():
    (finding,) = half(0.4, 0.9)
    assert finding.severity == "warning"


def test_a_loss_that_falls_has_lost_digits_only():
    assert half(0.01, 0.9, loss=made.loss(2.0, 0.5, 30))[0].severity == "info"
    assert half(0.01, 0.9, loss=made.loss(2.0, 1.9, 30))[0].severity == "warning"
    assert half(1.0, 0.0, loss=made.loss(2.0, 0.5, 30))[0].severity == "critical"


def test_behind_a_loss_scale_lost_digits_are_a_note():
    (finding,) = half(0.01, 0.9, scale=1024.0)
    assert finding.severity == "info"
    (finding,) = half(0.3, 0.9, scale=1024.0)
    assert finding.severity == "warning"


def test_one_site_of_many_is_no_underflow():
    assert half(1.0, 0.0, sites=8, bad=1) == []


def test_with_a_scaler_the_remedy_is_another():
    (finding,) = half(1.0, 0.0, scale=2.0)
    assert "growth_interval" in finding.remedy


def test_other_formats_are_not_judged():
    rows = made.series("module", "net", "grad_norm", [0.0] * 20)
    found = apply(underflow.RULE, Signals(made.run(rows, [Site("net", "module")])))
    assert isinstance(found, Skipped)


def data(rms, kind="Linear", loss=(), peak=None):
    rows = made.series("input", "net.0", "input_rms", [rms] * 10) + list(loss)
    if peak is not None:
        rows += made.series("input", "net.0", "input_peak", [peak] * 10)
    sites = [Site("net.0", "input", type=kind)]
    return apply(unscaled_input.RULE, Signals(made.run(rows, sites)))


def test_standardised_data():
    assert data(1.0) == []


@pytest.mark.parametrize("kind", ["Linear", "Conv2d", "LSTM"])
def test_data_a_thousand_times_too_large(kind):
    (finding,) = data(1000.0, kind)
    assert (finding.rule, finding.severity) == ("unscaled-input", "warning")
    assert finding.evidence["input_rms"] == 1000


@pytest.mark.parametrize("kind", ["BatchNorm1d", "LayerNorm", "RMSNorm"])
def test_a_normalisation_takes_the_scale_away(kind):
    assert data(1000.0, kind) == []


def test_it_is_critical_where_nothing_is_learned():
    (finding,) = data(1000.0, loss=made.loss(2.0, 2.0, 100))
    assert finding.severity == "critical"


@pytest.mark.parametrize(
    ("rms", "peak", "found"), [(2e-5, 2e-5, 1), (0.005, 0.3, 0), (0.0, 0.0, 0)]
)
def test_data_that_are_next_to_nothing(rms, peak, found):
    """Sparse data have a feature of some size, and a state that starts at 0 is no data."""
    findings = data(rms, peak=peak)
    assert [f.view.thresholds["small"] for f in findings] == [unscaled_input.SMALL] * found


def test_the_limit_in_the_figure_is_the_one_that_was_met():
    (lost,), (rough,) = half(1.0, 0.0), half(0.05, 0.7)
    assert (lost.view.metric, lost.view.thresholds) == ("zero_fraction", {"gone": 0.98})
    assert (rough.view.metric, rough.view.thresholds) == ("subnormal_fraction", {"most": 0.5})


@pytest.mark.parametrize(
    ("size", "peak", "metric", "limit"),
    [
        (30.0, 60.0, "input_rms", unscaled_input.LARGE),
        (10.0, 200.0, "input_peak", unscaled_input.PEAK),
        (1e-3, 2e-3, "input_peak", unscaled_input.SMALL),
    ],
)
def test_the_figure_shows_what_was_out_of_scale(size, peak, metric, limit):
    rows = made.series("input", "fc", "input_rms", [size] * 5)
    rows += made.series("input", "fc", "input_peak", [peak] * 5)
    (finding,) = apply(
        unscaled_input.RULE, Signals(made.run(rows, [Site("fc", "input", type="Linear")]))
    )
    assert finding.view.metric == metric and limit in finding.view.thresholds.values()


@pytest.mark.parametrize("broken", [{"input_rms": float("inf")}, {"input_peak": float("inf")}])
def test_data_that_are_not_finite_are_no_matter_of_scale(broken):
    values = {"input_rms": 30.0, "input_peak": 60.0} | broken
    rows = [r for m, v in values.items() for r in made.series("input", "fc", m, [v] * 5)]
    sites = [Site("fc", "input", type="Linear")]
    assert apply(unscaled_input.RULE, Signals(made.run(rows, sites))) == []
