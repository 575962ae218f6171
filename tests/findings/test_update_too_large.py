import numpy as np
import pytest

from gradscope.findings import update_too_large as rule
from gradscope.findings._rule import Skipped, apply
from gradscope.findings._signals import Signals
from gradscope.run import Site
from tests.reference import synthetic as made

NAMES = [f"net.{k}.weight" for k in range(4)]


def find(course, loss=(), shape=(8, 8), weight=1.0):
    rows = list(loss)
    for name in NAMES:
        rows += made.series("parameter", name, "update_ratio", course)
        rows += made.series("parameter", name, "weight_norm", np.full(len(course), weight))
    return apply(rule.RULE, Signals(made.run(rows, made.parameter_sites(NAMES, shape))))


USUAL = np.full(80, 3e-3)


def with_start(value, n=1):
    return np.concatenate([np.full(n, value), USUAL])


def test_usual_updates():
    assert find(USUAL) == []
    assert find(with_start(0.3)) == []  # Adam's first step on small weights


def test_weights_that_are_rewritten():
    (finding,) = find(with_start(0.7, 3), made.loss(2.0, 2.1, steps=83))
    assert (finding.severity, finding.last_step) == ("critical", 2)
    assert finding.evidence["update_ratio_peak"] == pytest.approx(0.7)
    assert finding.view.thresholds["too large"] == rule.REWRITES


def test_the_loss_decides_on_the_severity():
    assert find(with_start(0.7, 3), made.loss(2.0, 0.1, steps=83))[0].severity == "info"
    rose_first = [2.0, *[30.0] * 5, *np.geomspace(2.0, 0.1, 77)]
    losses = made.series("scalar", "loss", "value", rose_first)
    assert find(with_start(5.0, 3), losses)[0].severity == "warning"
    assert find(with_start(0.7, 3), made.loss(2.0, 1.7, steps=83))[0].severity == "warning"
    lost = [
        *made.loss(2.0, 1.0, steps=60),
        *made.series("scalar", "loss", "value", [np.nan] * 80)[60:],
    ]
    assert find(with_start(0.7, 3), lost)[0].severity == "critical"


def test_weights_that_start_small_are_outgrown():
    assert find(with_start(5.0, 3), made.loss(2.0, 0.1, steps=83))[0].severity == "info"
    later = np.concatenate([USUAL, [5.0], USUAL])
    assert find(later, made.loss(2.0, 0.1, steps=161))[0].severity == "warning"


def test_large_for_a_good_part_of_the_run():
    assert find(with_start(0.15, 30))[0].view.thresholds["too large"] == rule.LARGE
    assert find(with_start(0.15, 10)) == []


def test_fast_at_first_and_worse_for_it():
    worse, falling = made.loss(2.0, 6.0, steps=88), made.loss(2.0, 0.5, steps=88)
    assert find(with_start(0.08, 8), worse)[0].severity == "warning"
    assert find(with_start(0.08, 8), falling) == []
    assert find(with_start(0.04, 8), worse) == []  # so do many that fail for another cause
    assert find(with_start(0.08, 8), made.loss(2.0, 2.0, steps=88)) == []


def test_a_loss_that_climbs_at_the_upper_end_of_what_is_usual():
    brisk = np.full(80, 0.015)
    (finding,) = find(brisk, made.loss(2.0, 12.0, steps=80))
    assert (finding.severity, finding.view.thresholds["too large"]) == ("warning", rule.BRISK)
    assert find(brisk, made.loss(2.0, 2.4, steps=80)) == []
    assert find(USUAL, made.loss(2.0, 12.0, steps=80)) == []


def test_data_that_are_not_finite_say_nothing_of_the_steps():
    lost = made.series("scalar", "loss", "value", [1.0] * 60 + [np.nan] * 20)
    rows = [r for n in NAMES for r in made.series("parameter", n, "update_ratio", [0.15] * 80)]
    rows += [r for n in NAMES for r in made.series("parameter", n, "weight_norm", [1.0] * 80)]
    origin = {"step": 60, "phase": "data", "operation": "addmm", "where": "net.0:addmm"}
    for meta, severity in (({"nonfinite": [origin]}, "warning"), ({}, "critical")):
        run = made.run([*rows, *lost], made.parameter_sites(NAMES), meta)
        assert [f.severity for f in apply(rule.RULE, Signals(run))] == [severity]


def test_vectors_and_weights_that_start_at_zero_are_left_out():
    assert isinstance(find(with_start(9.0), shape=(8,)), Skipped)
    assert isinstance(find(with_start(9.0), weight=0.0), Skipped)


def test_one_among_many_weights_is_not_the_model():
    rows = made.parameters(NAMES, ratio={NAMES[0]: 4.0})
    assert apply(rule.RULE, Signals(made.run(rows, made.parameter_sites(NAMES)))) == []


@pytest.mark.parametrize(("large", "found"), [(1, 0), (3, 1)])
def test_a_weight_whose_turn_it_is_does_not_stand_for_the_others(large, found):
    rows = []
    for k, name in enumerate(NAMES):
        turns = np.where(np.arange(80) % len(NAMES) == k, 0.3 if k < large else 3e-3, np.nan)
        rows += [
            (step, name, "parameter", "", "update_ratio", value)
            for step, value in enumerate(turns)
            if np.isfinite(value)
        ]
    run = made.run(rows, made.parameter_sites(NAMES))
    assert len(apply(rule.RULE, Signals(run))) == found


def test_infinite_ratios_alone():
    rows = made.series("parameter", "w", "update_ratio", [np.inf] * 3)
    skipped = apply(rule.RULE, Signals(made.run(rows, [Site("w", "parameter", shape=(2, 2))])))
    assert isinstance(skipped, Skipped)


def test_steps_that_were_usual_again_before_an_overflow():
    lost = made.series("scalar", "loss", "value", [1.0] * 70 + [np.nan] * 10)
    late = np.concatenate([np.full(60, 3e-3), np.full(20, 0.15)])
    assert find(np.concatenate([np.full(10, 0.05), USUAL[:70]]), lost) == []
    assert find(late, lost)[0].severity == "critical"


@pytest.mark.parametrize(("high", "found"), [(30, 1), (5, 0)])
def test_one_weight_that_is_thrown(high, found):
    ratios = {NAMES[0]: np.concatenate([[9.0], USUAL[1:]])}
    rows = [
        row
        for name in NAMES
        for row in [
            *made.series("parameter", name, "update_ratio", ratios.get(name, USUAL)),
            *made.series("parameter", name, "weight_norm", np.ones(80)),
        ]
    ]
    losses = [2.0, *[40.0] * high, *np.geomspace(2.0, 0.5, 79 - high)]
    rows += made.series("scalar", "loss", "value", losses)
    findings = apply(rule.RULE, Signals(made.run(rows, made.parameter_sites(NAMES))))
    assert [(f.severity, f.site) for f in findings] == [("warning", NAMES[0])] * found
    assert all("changes net.0.weight by 9 of its norm" in f.message for f in findings)
