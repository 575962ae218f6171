import numpy as np
import pytest

from gradscope.findings import analyze
from gradscope.findings import softmax_borne as rule
from gradscope.findings._rule import Skipped, apply
from gradscope.findings._signals import Signals
from gradscope.run import Site
from tests.reference import synthetic as made
from tests.reference.made_up_pathways import crossings


def find(rows, sites=()):
    return apply(rule.RULE, Signals(made.run(rows, sites)))


def test_a_plain_stack():
    (finding,) = find(*crossings(4, decades=2.0))
    assert (finding.severity, finding.site) == ("critical", "l.0.s")
    evidence = finding.evidence
    assert (evidence["crossed_first"], evidence["crossed_last"]) == (4, 1)
    assert evidence["decades"] == pytest.approx(6)
    assert evidence["decades_per_softmax"] == pytest.approx(2)
    assert evidence["share_below_2_softmaxes"] == 0
    assert finding.view.sites == ("l.0.s", "l.1.s", "l.2.s", "l.3.s")
    assert "has crossed 4 softmaxes (all of it), at l.3.s 1: each takes 2" in finding.message


def test_a_stack_with_a_way_past_the_softmaxes():
    assert find(*crossings(4, plain=False)) == []


@pytest.mark.parametrize(("decades", "severity"), [(0.5, None), (0.7, "warning"), (2, "critical")])
def test_crossings_matter_for_what_they_cost(decades, severity):
    found = find(*crossings(4, decades=decades))
    assert [f.severity for f in found] == ([severity] if severity else [])


def test_a_loss_that_falls_all_the_same_is_not_critical():
    rows, sites = crossings(4)
    (finding,) = find(rows + made.loss(2.0, 0.1), sites)
    assert finding.severity == "warning"


def test_one_step_and_what_is_over_are_info():
    assert find(*crossings(4, steps=(0,)))[0].severity == "info"
    rows, sites = crossings(4)
    healthy, _ = crossings(4, plain=False)
    (finding,) = find([r if r[0] < 120 else h for r, h in zip(rows, healthy, strict=True)], sites)
    assert finding.severity == "info" and finding.last_step < 120


def test_softmaxes_inside_every_layer_are_no_chain():
    # Each layer holds two softmaxes behind one another, and a residual goes around them.
    rows, sites = crossings(4)
    rows = [
        (*r[:5], float(r[3] == "2") if r[4] == "projection" else r[5])
        if r[4] != "mean_crossings"
        else (*r[:5], 2.0)
        for r in rows
    ]
    assert find(rows, sites) == []


def test_a_finding_per_structure_not_per_role():
    rows, sites = crossings(4)
    more, others = crossings(4, decades=3.0, role="l.{}.content")
    (finding,) = find(rows + more, sites + others)
    assert finding.evidence["decades"] == pytest.approx(6)


def test_what_can_not_be_told_is_skipped():
    two_layers = find(*crossings(2))
    assert isinstance(two_layers, Skipped) and "three" in two_layers.reason
    rows, sites = crossings(4)
    lumped = [r for r in rows if r[3] in ("", "0")]
    assert isinstance(find(lumped, sites), Skipped)
    open_ended = [(*r[:3], "1+", *r[4:]) if r[3] == "1" else r for r in rows if r[3] < "2"]
    assert isinstance(find(open_ended, sites), Skipped)
    assert find(made.ladder(1.0)) == Skipped("no crossing")


def test_parameters_are_no_rungs():
    rows, sites = crossings(4)
    parameters = [Site(s.name, "crossing", "parameter", s.order) for s in sites]
    assert isinstance(find(rows, parameters), Skipped)


@pytest.mark.filterwarnings("error")
def test_nan_is_not_judged():
    rows, sites = crossings(4)
    assert find([(*r[:5], np.nan) for r in rows], sites) == []
    broken = [(*r[:5], np.nan) if r[0] == 100 else r for r in rows]
    assert find(broken, sites)[0].severity == "critical"


def test_it_explains_the_vanishing_gradient():
    rows, sites = crossings(6, role="layers.{}.latent")
    rows += made.ladder(0.8)
    found = analyze(made.run(rows, sites + made.ladder_sites()))
    assert [(f.rule, f.cause) for f in found] == [
        ("softmax-borne", ""),
        ("vanishing-gradient", "softmax-borne"),
    ]


@pytest.mark.parametrize("kept", [3, 5, 8])
def test_deep_stacks_whose_crossings_were_not_counted_to_the_end(kept):
    rows, sites = crossings(8, decades=1.0)
    merged = [r for r in rows if not r[3] or int(r[3]) < kept]
    for (step, site), parts in groupby_site(rows).items():
        beyond = [parts[k] for k in parts if k >= kept]
        size = float(np.sqrt(sum(p["grad_norm"] ** 2 for p in beyond)))
        share = sum(p["projection"] for p in beyond)
        merged.append((step, site, "crossing", f"{kept}+", "grad_norm", size))
        merged.append((step, site, "crossing", f"{kept}+", "projection", share))
    (finding,) = find(merged, sites)
    assert finding.evidence["decades"] == pytest.approx(7)
    assert finding.evidence["decades_per_softmax"] == pytest.approx(1)
    assert f"has crossed {kept} or more softmaxes" in finding.message


def groupby_site(rows):
    """(step, site) → order → metric → value."""
    found = {}
    for step, site, kind, edge, metric, value in rows:
        if kind == "crossing" and edge:
            parts = found.setdefault((step, site), {}).setdefault(int(edge), {})
            parts[metric] = value
    return found
