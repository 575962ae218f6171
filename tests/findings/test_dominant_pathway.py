import numpy as np
import pytest

from gradscope.findings import dominant_pathway as rule
from gradscope.findings._rule import Skipped, apply
from gradscope.findings._signals import Signals
from tests.reference import synthetic as made
from tests.reference.made_up_pathways import pathway


def find(rows):
    return apply(rule.RULE, Signals(made.run(rows)))


def test_a_named_pathway_that_hardly_counts():
    (finding,) = find(pathway("s", "latent", 1e-6, 2.0))
    assert (finding.severity, finding.site) == ("warning", "s")
    assert finding.evidence["share"] == pytest.approx(5e-7)
    assert finding.evidence["share_of_rest"] == 1
    assert "5.0e-07 of it comes through the pathway latent" in finding.message
    assert finding.view.edges == ("latent", "(rest) latent")


def test_a_named_pathway_that_carries_everything():
    (finding,) = find(pathway("s", "softmax", 3.0, 0.0))
    assert finding.severity == "info"
    assert (finding.evidence["share"], finding.evidence["share_of_rest"]) == (1, 0)
    assert "through the pathway softmax alone: nothing at all" in finding.message


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_both_count(scale):
    assert find(pathway("s", "latent", 0.01 * scale, scale)) == []


def test_a_pathway_never_crossed_is_told():
    assert find(pathway("s", "latent", 0.0, 1.0))[0].severity == "warning"


def test_a_growing_share_is_info_and_a_grown_one_none():
    assert find(pathway("s", "latent", np.geomspace(1e-6, 5e-4, 10), 1.0))[0].severity == "info"
    assert find(pathway("s", "latent", np.geomspace(1e-5, 0.5, 10), 1.0)) == []


def test_one_step_is_info():
    assert find(pathway("s", "latent", 1e-6, 1.0, steps=(0,)))[0].severity == "info"


def test_each_pathway_is_judged_alone():
    rows = pathway("s", "latent", 1e-6, 1.0) + pathway("s", "softmax", 1.0, 0.5)
    assert [f.evidence["pathway"] for f in find(rows)] == ["latent"]


@pytest.mark.filterwarnings("error")
def test_no_gradient_and_nan_are_not_judged():
    assert find(pathway("s", "latent", 0.0, 0.0)) == []
    assert find(pathway("s", "latent", np.nan, 1.0)) == []
    assert find(made.ladder(1.0)) == Skipped("no pathway")
