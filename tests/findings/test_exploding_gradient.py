import numpy as np
import pytest

from gradscope.findings import exploding_gradient as rule
from gradscope.findings._rule import Skipped, apply
from gradscope.findings._signals import Signals
from tests.reference import synthetic as made


def find(rows, sites=()):
    return apply(rule.RULE, Signals(made.run(rows, sites)))


def burst(at, factor, steps=40, *, after=1.0):
    norms = np.exp(0.3 * made.rng().standard_normal(steps))
    norms[at] *= factor
    norms[at + 1 :] *= after
    return made.series("parameter", "w", "grad_norm", norms)


def test_growth_along_depth():
    (finding,) = find(made.ladder(-0.8), made.ladder_sites())
    assert (finding.severity, finding.evidence["along"]) == ("warning", "depth")
    assert finding.evidence["decades_per_layer"] == pytest.approx(0.8, rel=0.1)
    assert finding.site == "layers.0.out"


@pytest.mark.parametrize(("rate", "layers", "fires"), [(0.45, 6, True), (0.2, 6, False)])
def test_steep_growth_needs_fewer_decades(rate, layers, fires):
    rows = made.ladder(-rate, layers, noise=0.02)
    assert bool(find(rows, made.ladder_sites(layers))) == fires


@pytest.mark.parametrize(("start", "end", "fires"), [(900.0, 4.0, True), (2.0, 0.5, False)])
@pytest.mark.parametrize("shared", [False, True])
def test_less_growth_is_needed_where_the_signal_grew_too(start, end, fires, shared):
    """A loss that begins far from where it ends: 1.6 decades in 5 layers, 2.6 in 16 calls."""
    if shared:
        role = "cell#{}"
        rows = made.ladder(-2.6 / 15, 16, role=role, noise=0.02)
        sites = made.ladder_sites(16, role=role)
    else:
        rows, sites = made.ladder(-0.32, 6, noise=0.02), made.ladder_sites(6)
    found = find(rows + made.loss(start, end), sites)
    assert [f.severity for f in found] == ["warning"] * fires


def test_growth_that_was_over_soon_is_info():
    rows = made.ladder(lambda step: -1.0 if step < 10 else 0.0)
    assert find(rows, made.ladder_sites())[0].severity == "info"


def test_one_step_is_info():
    assert find(made.ladder(-1.0, steps=1), made.ladder_sites())[0].severity == "info"


def test_a_burst_the_loss_does_not_recover_from():
    loss = made.loss(2.0, 0.5)[:20] + [
        (s, "loss", "scalar", "", "value", 5.0) for s in range(20, 40)
    ]
    loss += [(s, "loss", "scalar", "", "value", 5.0) for s in range(40, 60)]
    (finding,) = find(burst(20, 1e4) + loss)
    assert (finding.severity, finding.evidence["along"]) == ("critical", "time")
    assert finding.evidence["worst_step"] == 20
    assert finding.evidence["factor"] == pytest.approx(1e4, rel=0.9)


def test_a_burst_the_loss_recovers_from_is_info():
    assert find(burst(20, 1e4) + made.loss(2.0, 0.1))[0].severity == "info"


def test_a_burst_without_a_loss_is_a_warning():
    assert find(burst(20, 1e4))[0].severity == "warning"


def test_noise_and_plateaus_are_no_bursts():
    assert find(burst(20, 20.0)) == []
    rising = np.geomspace(0.1, 30.0, 40)
    assert find(made.series("parameter", "w", "grad_norm", rising)) == []


def test_a_converged_run_is_measured_against_its_start():
    fading = np.geomspace(1.0, 1e-6, 40)
    fading[35] *= 1e4
    assert find(made.series("parameter", "w", "grad_norm", fading)) == []


def test_a_small_burst_counts_if_it_ends_in_nan():
    rows = burst(36, 30.0)[:38]
    assert find(rows) == []
    lost = made.series("parameter", "w", "grad_norm", [np.nan] * 2)
    (finding,) = find(rows + [(s + 38, *rest) for s, *rest in lost])
    assert (finding.severity, finding.first_step) == ("critical", 36)


def test_the_parameter_that_rose_most_is_named():
    rows = burst(20, 1e4) + made.series("parameter", "calm", "grad_norm", [2.0] * 40)
    assert find(rows)[0].site == "w"


def test_modules_stand_in_for_parameters():
    rows = [(s, n, "module", *rest) for s, n, _, *rest in burst(20, 1e4)]
    assert find(rows)[0].view.kind == "module"


def test_no_norms():
    assert find(made.softmax("a", [0.5])) == Skipped("no gradient norms")


def test_the_view_compares_the_parameter_with_its_own_usual_norm():
    rows = burst(20, 1e4) + made.series("parameter", "calm", "grad_norm", [2.0] * 40)
    (finding,) = find(rows)
    own = [r[5] for r in rows if r[1] == finding.site and r[4] == "grad_norm" and r[0] < 20]
    assert finding.view.sites == (finding.site,)
    assert finding.view.thresholds["usual"] == pytest.approx(float(np.median(own)))
    assert finding.evidence["grad_norm_usual"] > finding.view.thresholds["usual"]


def test_an_infinite_gradient_is_no_burst():
    rows = made.parameters(["a.weight"])
    rows = [(*r[:-1], np.inf) if r[0] == 20 and r[4] == "grad_norm" else r for r in rows]
    assert find(rows) == []


def test_a_loss_below_zero_is_judged_like_any_other():
    def burst(shift):
        rows = made.parameters(["a.weight"], noise=0)
        rows = [(*r[:-1], 100.0) if r[0] == 20 and r[4] == "grad_norm" else r for r in rows]
        curve = np.linspace(1, 0.2, 40) - shift
        return find(rows + made.series("scalar", "loss", "value", curve))[0]

    assert burst(0).severity == burst(1).severity == "info"


def test_the_limit_in_the_figure_is_the_one_that_was_met():
    (finding,) = find(made.ladder(-0.23, layers=11, noise=0), made.ladder_sites(11))
    assert list(finding.view.thresholds.values()) == pytest.approx([10**2.2])
