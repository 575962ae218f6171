import numpy as np
import pytest

from gradscope.findings import cancelling_fork as rule
from gradscope.findings._rule import Skipped, apply
from gradscope.findings._signals import Signals
from gradscope.run import Site
from tests.reference import synthetic as made


def find(rows, sites=()):
    return apply(rule.RULE, Signals(made.run(rows, sites)))


def test_edges_that_undo_each_other():
    (finding,) = find(made.fork("trunk", {"a:linear": 1.0, "b:linear": 1.0}, 0.02))
    assert (finding.severity, finding.site) == ("warning", "trunk")
    assert finding.evidence["agreement"] == pytest.approx(0.02 / np.sqrt(2), rel=1e-3)
    assert finding.evidence["cancellation"] == pytest.approx(0.99)
    assert set(finding.view.edges) == {"a:linear", "b:linear"}


def test_many_independent_edges_cancel_by_chance_and_are_fine():
    edges = {f"layers.{k}:linear": 1.0 for k in range(400)}
    assert find(made.fork("v", edges, 20.0, steps=5)) == []  # cancellation 0.95


def test_only_from_the_start():
    late = np.where(np.arange(40) < 10, 1.0, 0.01)
    assert find(made.fork("trunk", {"a:linear": 1.0, "b:linear": 1.0}, late)) == []


def test_now_and_then_is_no_finding():
    sometimes = np.where(np.arange(40) % 3, 1.0, 0.01)
    assert find(made.fork("trunk", {"a:linear": 1.0, "b:linear": 1.0}, sometimes)) == []


@pytest.mark.parametrize("op", ["norm", "linalgvectornorm", "mean", "sum", "pow", "varmean"])
def test_normalisation_takes_back_what_it_sent(op):
    edges = {"(output):div": 1.0, f"(output):{op}": 1.0}
    assert find(made.fork("x", edges, 0.01)) == []
    (finding,) = find(made.fork("x", edges, 1e-6))  # but not all of it
    assert finding.severity == "warning"
    beside = {"gate:mul": 1.0, f"pool:{op}": 1.0}  # what is read by different modules
    assert len(find(made.fork("x", beside, 0.01))) == 1


@pytest.mark.parametrize(
    ("edges", "taken", "found"),
    [
        (("cell#3:add", "cell#3:sub"), 0.99, 0),
        (("cell:rsub", "cell:add"), 0.99, 0),
        (("cell:add", "cell:sub"), 1.2, 1),  # more than a gate could take back
        (("cell:add", "other:sub"), 0.99, 1),
        (("cell:add", "cell:mul"), 0.99, 1),
        (("(outside)", "cell:sub"), 0.99, 1),
    ],
)
def test_a_gate_that_mixes_two_tensors_takes_back_what_it_gives(edges, taken, found):
    norms = {e: taken if e.partition(":")[2].endswith("sub") else 1.0 for e in edges}
    assert len(find(made.fork("h", norms, 0.02))) == found


def test_parameters_cancel_at_every_optimum():
    sites = [Site("w", "parameter")]
    assert isinstance(
        find(made.fork("w", {"a:linear": 1.0, "a:linear#1": 1.0}, 0.01), sites), Skipped
    )


def test_layers_in_one_finding():
    rows = [
        r for k in range(5) for r in made.fork(f"layers.{k}", {"a:add": 1.0, "b:add": 1.0}, 0.01)
    ]
    (finding,) = find(rows)
    assert finding.evidence["forks"] == 5


def test_one_step_is_info():
    assert find(made.fork("t", {"a:add": 1.0, "b:add": 1.0}, 0.01, steps=1))[0].severity == "info"


def test_no_gradient_to_speak_of():
    assert find(made.fork("t", {"a:add": 0.0, "b:add": 1e-300}, 0.0)) == []


def test_a_running_maximum_is_a_shift_that_the_result_does_not_depend_on():
    edges = {"block:sub": 1.0, "block:sub#1": 1.0}
    assert isinstance(find(made.fork("block:maximum", edges, 1e-8)), Skipped)
    assert len(find(made.fork("block:linear", edges, 1e-8))) == 1


@pytest.mark.parametrize(("cancelling", "found"), [(1, 0), (2, 0), (3, 1), (24, 1)])
def test_the_first_calls_of_many_are_no_condition(cancelling, found):
    rows = []
    for k in range(24):
        left = 1e-8 if k < cancelling else 1.0
        site = f"block:exp#{k}" if k else "block:exp"
        rows += made.fork(site, {"block:mul": 1.0, "block:add": 1.0}, left)
    assert len(find(rows)) == found
