"""dead-units and saturated-activation on made-up fractions."""

import numpy as np
import pytest

from gradscope.findings import dead_units, saturated_activation
from gradscope.findings._rule import Skipped, apply
from gradscope.findings._signals import Signals
from gradscope.run import Site
from tests.reference import synthetic as made


def find(rule, metric, values, *, kind, depth=5, loss=(), name="layers.1.act"):
    values = values if isinstance(values, dict) else {name: values}
    rows = [r for n, v in values.items() for r in made.series("activation", n, metric, v)]
    sites = [
        Site(n, "activation", type=kind, order=k, depth=depth, shape=(64, 32))
        for k, n in enumerate(values)
    ]
    sites.append(Site("head", "module", order=99, depth=0, parameters=True))
    rows += loss
    return apply(rule.RULE, Signals(made.run(rows, sites)))


def dead(values, **options):
    return find(dead_units, "dead_fraction", values, kind=options.pop("kind", "relu"), **options)


def saturated(values, **options):
    options.setdefault("kind", "tanh")
    return find(saturated_activation, "saturated_fraction", values, **options)


def test_few_dead_units_are_usual():
    assert dead([0.3] * 40) == []


@pytest.mark.parametrize(("share", "severity"), [(0.8, "warning"), (1.0, "critical")])
def test_many_dead_units(share, severity):
    (finding,) = dead([share] * 40)
    assert (finding.rule, finding.severity) == ("dead-units", severity)
    assert finding.evidence["dead_fraction"] == share


def test_units_that_die_in_the_middle_and_stay_dead():
    (finding,) = dead([0.1] * 20 + [0.8] * 20)
    assert finding.first_step == 20


def test_units_that_come_back_are_no_fault():
    assert dead([0.8] * 10 + [0.1] * 30) == []


def test_small_batches_look_dead_at_first():
    assert dead([0.6, 0.55, 0.5, 0.5] + [0.1] * 20) == []


def test_one_batch_of_many_samples_is_enough():
    (finding,) = dead([0.9])
    assert finding.severity == "warning"


def test_layers_of_one_role_are_one_finding_and_the_worst_is_named():
    (finding,) = dead({f"layers.{k}.act": [0.76 + 0.1 * k] * 20 for k in range(3)})
    assert finding.evidence["layers"] == 3
    assert finding.evidence["worst"] == "layers.2.act"
    assert "Up to 96%" in finding.message


def test_a_tanh_is_never_dead_and_a_relu_never_saturated():
    assert isinstance(dead([1.0] * 40, kind="tanh"), Skipped)
    assert isinstance(saturated([1.0] * 40, kind="relu"), Skipped)


@pytest.mark.parametrize(("share", "severity"), [(0.8, "warning"), (0.99, "critical")])
def test_a_saturated_tanh(share, severity):
    (finding,) = saturated([share] * 40)
    assert (finding.rule, finding.severity) == ("saturated-activation", severity)


def test_gates_that_are_often_closed_are_no_fault():
    assert saturated([0.4] * 40, kind="sigmoid") == []


def test_the_models_answer_may_become_certain_but_not_begin_so():
    learned = [0.0] * 10 + [0.99] * 30
    assert saturated(learned, kind="sigmoid", depth=0) == []
    assert saturated(learned, kind="sigmoid", depth=5) != []
    (finding,) = saturated([0.99] * 40, kind="sigmoid", depth=0)
    assert finding.severity == "critical"


def test_one_that_learned_to_saturate():
    fell = made.loss(2.0, 0.1, 40)
    (finding,) = saturated(np.linspace(0.1, 0.9, 40), loss=fell)
    assert finding.severity == "info"
    (finding,) = saturated([0.9] * 40, loss=fell)
    assert finding.severity == "warning"
    (finding,) = saturated([0.5, 0.55] + [0.9] * 38, loss=fell)  # before it can have learned to
    assert finding.severity == "warning"


def sparse(units, elements):
    rows = made.series("activation", "act", "dead_fraction", [units] * 40)
    rows += made.series("activation", "act", "saturated_fraction", [elements] * 40)
    sites = [Site("act", "activation", type="relu", order=0, depth=5, shape=(64, 32))]
    return apply(dead_units.RULE, Signals(made.run(rows, sites)))


def test_half_of_the_units_are_too_many_where_the_others_hardly_fire():
    assert [f.severity for f in sparse(0.55, 0.997)] == ["warning"]
    assert sparse(0.55, 0.9) == []  # a layer wider than its task needs
    assert sparse(0.1, 0.997) == []  # sparse on purpose


def test_the_worst_severity_of_a_role_counts():
    """One was saturated from the start; the other, more so in the end, learned to be."""
    (finding,) = saturated(
        {"gate#1": [0.7] * 40, "gate#2": [0.1] * 10 + [0.9] * 30}, loss=made.loss(2.0, 0.1, 40)
    )
    assert (finding.severity, finding.evidence["worst"]) == ("warning", "gate#2")


def test_an_answer_that_is_certain_of_nothing():
    learned_to_be = [0.0] * 10 + [0.99] * 30
    stuck = made.loss(2.0, 2.0, 80)
    (finding,) = saturated(learned_to_be, kind="sigmoid", depth=0, loss=stuck)
    assert finding.severity == "critical"
    assert saturated(learned_to_be, kind="sigmoid", depth=0, loss=made.loss(2.0, 0.1, 80)) == []


def test_a_function_with_one_flat_side_may_rest_there():
    assert saturated([0.8] * 40, kind="elu") == []
    (finding,) = saturated([0.97] * 40, kind="elu")
    assert finding.severity == "critical"


def test_the_limit_in_the_figure_is_the_one_that_was_met():
    assert dead([0.8] * 40)[0].view.thresholds == {"dead": dead_units.DEAD}
    rows = made.series("activation", "act", "dead_fraction", [0.6] * 40)
    rows += made.series("activation", "act", "saturated_fraction", [0.985] * 40)
    site = Site("act", "activation", type="relu", shape=(64, 100))
    (finding,) = apply(dead_units.RULE, Signals(made.run(rows, [site])))
    assert finding.view.thresholds == {"dead": dead_units.HALF}


@pytest.mark.parametrize("shape", [(2, 64), (2, 64, 1, 1)])
def test_two_samples_say_little_whatever_the_shape(shape):
    rows = made.series("activation", "act", "dead_fraction", [1.0])
    site = Site("act", "activation", type="relu", shape=shape)
    assert [f.severity for f in apply(dead_units.RULE, Signals(made.run(rows, [site])))] == ["info"]
