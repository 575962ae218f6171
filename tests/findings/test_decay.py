import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradscope.findings._decay import _course, _logs, decays, steepest, update_ratio_ends
from gradscope.findings._signals import Signals
from gradscope.run import Site
from tests.reference import synthetic as made

PROFILES = arrays(
    float,
    st.tuples(st.integers(1, 4), st.integers(3, 8)),
    elements=st.one_of(st.floats(1e-12, 1e6), st.just(np.nan), st.just(np.inf)),
)


@given(PROFILES)
def test_course_against_polyfit(gradients):
    for row, found in zip(gradients, _course(_logs(gradients)), strict=True):
        rungs = np.flatnonzero(np.isfinite(row))
        if len(rungs) < 3:
            assert np.isnan(found)
            continue
        logs = np.log10(row[rungs])
        ends = logs[-1] - logs[0]
        line = np.polyfit(rungs, logs, 1)[0] * (rungs[-1] - rungs[0])
        expected = min(ends, line, key=abs) if ends * line > 0 else 0.0
        assert found == pytest.approx(expected, abs=1e-6)


def test_geometric_decay_is_read_exactly():
    rows = made.ladder(0.5, layers=7, steps=5, noise=0)
    (decay,) = decays(Signals(made.run(rows, made.ladder_sites(7))))
    np.testing.assert_allclose(decay.decades, 3.0)
    assert (decay.block, decay.rungs) == ("layers.*", 7)


def test_a_common_factor_does_not_matter():
    small, large = (
        decays(Signals(made.run(made.ladder(0.3, scale=s), made.ladder_sites())))[0].decades
        for s in (1e-20, 1e20)
    )
    np.testing.assert_allclose(small, large)


def test_a_difference_in_shape_is_no_decay():
    # RMS constant, sizes growing a hundredfold: the norms alone would fall by three decades.
    sizes = [10**6, 10**4, 100, 1]
    sites = [
        Site(f"net.{k}", "module", "Conv2d", k, 10 * (4 - k), (), n) for k, n in enumerate(sizes)
    ]
    rows = [
        (0, s.name, "module", "", "grad_norm", np.sqrt(n))
        for s, n in zip(sites, sizes, strict=True)
    ]
    assert decays(Signals(made.run(rows, sites)))[0].decades.tolist() == [0.0]


def test_one_odd_end_is_halved_by_the_fit():
    rows = [(0, f"net.{k}", "module", "", "grad_norm", 1.0) for k in range(9)]
    rows.append((0, "net.9", "module", "", "grad_norm", 1e4))
    sites = made.ladder_sites(10, role="net.{}")
    assert 0 < decays(Signals(made.run(rows, sites)))[0].decades[0] < 2.3


def test_no_gradient_anywhere_is_not_known_and_none_early_is_a_decay():
    rows = [(0, f"net.{k}", "module", "", "grad_norm", 0.0) for k in range(4)]
    rows += [(1, f"net.{k}", "module", "", "grad_norm", float(k > 1)) for k in range(4)]
    decades = decays(Signals(made.run(rows, made.ladder_sites(4, role="net.{}"))))[0].decades
    assert np.isnan(decades[0])
    assert decades[1] > 30


def test_median_over_roles():
    rows, sites = [], []
    for rate, part in ((0.0, "a"), (0.5, "b"), (0.6, "c")):
        rows += made.ladder(rate, steps=3, noise=0, role=f"layers.{{}}.{part}")
        sites += made.ladder_sites(role=f"layers.{{}}.{part}")
    (decay,) = decays(Signals(made.run(rows, sites)))
    np.testing.assert_allclose(decay.decades, 2.5)
    assert decay.typical(np.ones(3, bool)).role == "layers.*.b"


def test_steepest_gap_with_a_rung_that_was_never_recorded():
    levels = [1e-4, None, 1e-3, 1.0, 1.0]
    rows = [
        (0, f"net.{k}", "module", "", "grad_norm", v) for k, v in enumerate(levels) if v is not None
    ]
    signals = Signals(made.run(rows, made.ladder_sites(5, role="net.{}")))
    (decay,) = decays(signals)
    before, behind, drop = steepest(signals, decay, decay.ladders[0], np.array([0]), 1)
    assert (before, behind) == ("net.3", "net.2")
    assert drop == pytest.approx(3.0)


def test_update_ratios_of_the_ends_pass_over_modules_without_parameters():
    rows = made.ladder(0.0, steps=3, role="net.{}")  # net.0 … net.5, of which two hold weights
    names = ["net.0.weight", "net.4.weight"]
    ratios = {"net.0.weight": 1e-6, "net.4.weight": 1e-3}
    rows += made.parameters(names, 3, ratio=ratios, noise=0)
    sites = made.ladder_sites(role="net.{}") + made.parameter_sites(names)
    signals = Signals(made.run(rows, sites))
    (decay,) = decays(signals)
    assert update_ratio_ends(signals, decay, decay.steps) == pytest.approx((1e-6, 1e-3))


def test_update_ratios_not_measured():
    signals = Signals(made.run(made.ladder(0.0), made.ladder_sites()))
    (decay,) = decays(signals)
    assert update_ratio_ends(signals, decay, decay.steps) is None


def test_the_way_the_gradient_takes_is_what_counts():
    ways = made.ladder(0.5, steps=5, role="layers.{}.value", noise=0)
    queries = made.ladder(-1.0, steps=5, role="layers.{}.query", noise=0, scale=1e-9)
    keys = made.ladder(-1.0, steps=5, role="layers.{}.key", noise=0, scale=1e-9)
    sites = [
        s for r in ("value", "query", "key") for s in made.ladder_sites(role=f"layers.{{}}.{r}")
    ]
    (decay,) = decays(Signals(made.run([*ways, *queries, *keys], sites)))
    assert [ladder.role for ladder in decay.ladders] == ["layers.*.value"]
    np.testing.assert_allclose(decay.decades, 2.5)


def test_forks_stand_in_for_modules_that_a_forward_pass_does_without():
    names = ["(output):mm", *(f"(output):mm#{k}" for k in range(1, 5))]
    rows = [
        row
        for k, name in enumerate(names)
        for row in made.fork(name, {"a:mm": 1.0, "b:mm": 1.0}, 10.0 ** (k - 4), steps=3)
    ]
    sites = [Site(n, "fork", "", k, 50 - 10 * k, (8, 8), 64) for k, n in enumerate(names)]
    (decay,) = decays(Signals(made.run(rows, sites)))
    assert (decay.kind, decay.ladders[0].sites) == ("fork", tuple(names))
    np.testing.assert_allclose(decay.decades, 4.0)
    rows += made.ladder(0.1, steps=3)
    (decay,) = decays(Signals(made.run(rows, [*sites, *made.ladder_sites()])))
    assert decay.kind == "module"
