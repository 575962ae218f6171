import numpy as np
import pytest

from gradscope import Run
from gradscope.findings import analyze
from gradscope.findings import non_finite as rule
from gradscope.findings._rule import Skipped, apply
from gradscope.findings._signals import Signals
from tests.reference import synthetic as made


def find(rows, sites=None):
    return apply(
        rule.RULE, Signals(made.run(rows, made.ladder_sites() if sites is None else sites))
    )


def spoil(rows, bad, value=np.nan):
    return [(*r[:-1], value) if bad(r[0], r[1]) else r for r in rows]


def test_one_finding_at_the_site_nearest_the_loss():
    rows = spoil(made.ladder(0.1), lambda step, site: step >= 12 and site <= "layers.3.out")
    (finding,) = find(rows)
    assert (finding.severity, finding.site) == ("critical", "layers.3.out")
    assert (finding.first_step, finding.last_step) == (12, 39)
    assert finding.evidence["bad_modules"] == 4


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_infinity_counts(value):
    assert find(spoil(made.ladder(0.1), lambda step, _: step == 39, value))


def test_counts_of_elements_alone_are_enough():
    rows = [*made.ladder(0.1), (39, "layers.2.out", "module", "", "nonfinite", 3.0)]
    assert find(rows)[0].site == "layers.2.out"
    rows = [*made.ladder(0.1), (39, "layers.2.out", "module", "", "nonfinite", 0.0)]
    assert find(rows) == []


def test_a_parameter_if_no_module_shows_it():
    rows = made.ladder(0.1) + spoil(made.parameters(["w"]), lambda step, _: step == 39)
    assert find(rows)[0].view.kind == "parameter"


def test_a_scaler_that_overflows_now_and_then_is_info():
    rows = spoil(made.ladder(0.1), lambda step, _: step in (0, 1, 20), np.inf)
    (finding,) = find(rows + made.loss(2.0, 0.1))
    assert (finding.severity, finding.evidence["ongoing"]) == ("info", False)


def test_often_is_a_warning():
    rows = spoil(made.ladder(0.1), lambda step, _: step % 3 == 0 and step < 38)
    assert find(rows)[0].severity == "warning"


def test_forward_or_backward():
    rows = spoil(made.ladder(0.1), lambda step, _: step >= 12)
    backward = find(rows + made.loss(2.0, 0.1))[0]
    assert "backward pass at step 12" in backward.message
    loss = [(s, n, k, e, m, np.nan if s >= 12 else v) for s, n, k, e, m, v in made.loss(2.0, 0.1)]
    forward = find(rows + loss)[0]
    assert "forward pass at step 12" in forward.message


def test_a_lost_loss_between_recorded_steps():
    loss = [(s, "loss", "scalar", "", "value", np.nan if s >= 31 else 1.0) for s in range(100)]
    (finding,) = find(made.ladder(0.1, steps=30) + loss)
    assert (finding.severity, finding.first_step, finding.site) == ("critical", 31, "loss")


def test_a_single_nan_among_logged_losses_is_nothing():
    loss = [(s, "loss", "scalar", "", "value", np.nan if s == 31 else 1.0) for s in range(40)]
    assert find(made.ladder(0.1) + loss) == []


def test_one_step():
    rows = spoil(made.ladder(0.1, steps=1), lambda *_: True)
    assert find(rows)[0].severity == "warning"
    assert find([*rows, (0, "loss", "scalar", "", "value", np.nan)])[0].severity == "critical"


def test_finite_and_nothing_to_look_at():
    assert find(made.ladder(0.1)) == []
    assert isinstance(find(made.softmax("a", [0.5] * 3)), Skipped)


def ranks_of(*bad, ranks=4, kind="module"):
    """At step 10 the given processes have a NaN at this kind of site, from step 20 on all do."""
    nan = float("nan")
    rows = []
    for rank in range(ranks):
        for step in (0, 10, 20):
            lost = step == 20 or (step == 10 and rank in bad)
            for name in ("module", "parameter"):
                value = nan if lost and kind == name else 1.0
                rows.append((step, "a", name, "", "grad_norm", value, rank))
            rows.append(
                (step, "loss", "scalar", "", "value", nan if lost and kind == "loss" else 1.0, rank)
            )
    return Run.from_records(rows)


@pytest.mark.parametrize("kind", ["module", "loss"])
@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ((2,), "On rank 2: "),
        ((0, 3), "On ranks 0 and 3: "),
        (range(4), "On all 4 ranks: "),
    ],
)
def test_the_processes_that_were_lost_first_are_named(kind, bad, told):
    (finding,) = [f for f in analyze(ranks_of(*bad, kind=kind)) if f.rule == "non-finite"]
    assert finding.first_step == 10
    assert finding.evidence["ranks"] == list(bad)
    assert finding.message.startswith(told)


def test_one_process_is_not_named():
    (finding,) = [f for f in analyze(ranks_of(0, ranks=1)) if f.rule == "non-finite"]
    assert finding.evidence["ranks"] is None
    assert "rank" not in finding.message


@pytest.mark.parametrize(("operation", "severities"), [("nllloss", ["warning"]), ("", [])])
def test_losses_that_are_lost_one_by_one(operation, severities):
    losses = [2.0] * 40
    losses[7] = losses[30] = np.nan
    rows = made.ladder(0.1) + made.series("scalar", "loss", "value", losses)
    origin = {"step": 7, "phase": "forward", "operation": operation, "where": ""}
    run = made.run(rows, made.ladder_sites(), {"nonfinite": [origin]} if operation else None)
    findings = apply(rule.RULE, Signals(run))
    assert [f.severity for f in findings] == severities
    assert all((f.first_step, f.last_step) == (7, 30) for f in findings)


@pytest.mark.parametrize(
    ("step", "every", "says", "remedy"),
    [
        (0, 1, "was not finite, so it arose before training began", "initialised"),
        (3, 1, "was no longer finite, so the update of step 2 made it", "Look at the optimizer"),
        (30, 10, "arose at a step before that was not recorded", "every=1"),
    ],
)
def test_when_a_parameter_was_lost(step, every, says, remedy):
    names = ["a.weight", "b.weight"]
    rows = [(s * every, *r) for s, *r in made.parameters(names, steps=10)]
    rows = [(*r[:-1], np.nan) if r[0] >= step else r for r in rows]
    lost = {"step": step, "phase": "parameter", "operation": "", "where": "a.weight"}
    meta = {"every": every, "nonfinite": [lost]}
    (finding,) = apply(rule.RULE, Signals(made.run(rows, made.parameter_sites(names), meta)))
    assert says in finding.message and remedy in finding.remedy


@pytest.mark.parametrize(
    ("bad", "says"), [(1, "1 recorded step was"), (3, "3 recorded steps were")]
)
def test_one_is_singular(bad, says):
    (finding,) = find(spoil(made.ladder(0.1), lambda step, _: 10 <= step < 10 + bad))
    assert f"recovered ({says} bad)" in finding.message
