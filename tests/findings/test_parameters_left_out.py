"""detached and not-in-optimizer: what is outside the graph of the loss, or of the optimizer."""

from dataclasses import replace

import pytest

from gradscope.findings import detached, not_in_optimizer
from gradscope.findings._rule import Skipped, apply
from gradscope.findings._signals import Signals
from gradscope.run import Site
from tests.reference import synthetic as made

NAMES = [f"net.{k}.weight" for k in range(4)]


def find(rule, rows, sites=None, **meta):
    run = made.run(rows, made.parameter_sites(NAMES) if sites is None else sites)
    run.meta.update({"optimizer": {"class": "SGD"}, **meta})
    return apply(rule.RULE, Signals(run))


def called(*numbers):
    return ["", *(f"net.{k}" for k in numbers)]


def test_every_parameter_has_a_gradient():
    assert find(detached, made.parameters(NAMES), called=called(0, 1, 2, 3)) == []


def test_a_detached_start_is_critical():
    (finding,) = find(detached, made.parameters(NAMES[2:]), called=called(0, 1, 2, 3))
    assert (finding.rule, finding.severity) == ("detached", "critical")
    assert finding.view.sites == tuple(NAMES[:2])
    assert finding.evidence["module_ran"] is True
    assert finding.evidence["share_of_parameters"] == 0.5


def test_a_weight_that_the_module_around_reads_itself():
    names = ["attn.in_proj_weight", "attn.out_proj.weight", "head.weight"]
    found = find(
        detached,
        made.parameters(names[2:]),
        made.parameter_sites(names),
        called=["", "attn", "head"],
    )
    assert [f.view.sites for f in found] == [tuple(names[:2])]
    assert found[0].evidence["module_ran"]


def test_modules_that_never_ran_are_another_matter():
    (finding,) = find(detached, made.parameters(NAMES[:3]), called=called(0, 1, 2))
    assert (finding.severity, finding.evidence["module_ran"]) == ("warning", False)


def test_experts_that_never_got_a_token():
    rows = [r for r in made.parameters(NAMES[:3]) if r[1] != NAMES[1] or r[0] % 3]
    (finding,) = find(detached, rows, called=called(0, 1, 2))
    assert (finding.site, finding.severity) == (NAMES[3], "info")


def test_a_teacher_that_no_optimizer_has_is_a_note():
    sites = [
        replace(s, note="not in the optimizer") if k < 2 else s
        for k, s in enumerate(made.parameter_sites(NAMES))
    ]
    (finding,) = find(detached, made.parameters(NAMES[2:]), sites, called=called(0, 1, 2, 3))
    assert finding.severity == "info"


def test_gradients_that_were_cleared_are_not_detached():
    rows = made.series("module", "net.0", "grad_norm", [1.0] * 10)
    assert find(detached, rows, called=called(0, 1, 2, 3)) == []


def test_both_at_once_are_two_findings():
    found = find(detached, made.parameters(NAMES[:2]), called=called(0, 1, 2))
    assert [(f.site, f.evidence["module_ran"]) for f in found] == [
        (NAMES[2], True),
        (NAMES[3], False),
    ]


@pytest.mark.parametrize(
    ("size", "ran", "severity"),
    [
        (1, True, "info"),
        (1000, True, "warning"),
        (1, False, "info"),
        (10**6, False, "warning"),
    ],
)
def test_severity_by_share(size, ran, severity):
    big = [replace(s, numel=10**4) for s in made.parameter_sites(NAMES)]
    sites = [*big, Site("pooler.weight", "parameter", order=9, numel=size)]
    modules = [*called(0, 1, 2, 3), *(["pooler"] if ran else [])]
    (finding,) = find(detached, made.parameters(NAMES), sites, called=modules)
    assert finding.severity == severity


def test_without_any_gradient_there_is_nothing_to_compare():
    rows = made.loss(2.0, 1.0)
    assert isinstance(find(detached, rows), Skipped)


def unheld(*numbers):
    return [
        replace(s, note="not in the optimizer") if k in numbers else s
        for k, s in enumerate(made.parameter_sites(NAMES))
    ]


def without_updates(*numbers):
    rows = made.parameters(NAMES)
    return [r for r in rows if not (r[4] == "update_ratio" and r[1] in {NAMES[k] for k in numbers})]


def test_all_are_held():
    assert find(not_in_optimizer, made.parameters(NAMES)) == []


def test_a_part_that_the_optimizer_lacks():
    (finding,) = find(not_in_optimizer, without_updates(1, 2), unheld(1, 2))
    assert (finding.severity, finding.site) == ("critical", NAMES[1])
    assert finding.evidence == {"parameters": 2, "share_of_parameters": 0.5}


def test_what_moves_all_the_same_is_updated_by_somebody():
    assert find(not_in_optimizer, made.parameters(NAMES), unheld(1)) == []


def test_what_gets_no_gradient_is_not_its_business():
    rows = made.parameters(NAMES, grad={NAMES[1]: 0.0}, ratio={NAMES[1]: 0.0})
    assert find(not_in_optimizer, rows, unheld(1)) == []


def test_without_an_optimizer():
    found = find(not_in_optimizer, made.parameters(NAMES), unheld(1), optimizer={})
    assert isinstance(found, Skipped)


def test_a_gradient_of_exactly_zero_is_no_dependence():
    rows = made.parameters(NAMES, grad={NAMES[0]: 0.0, NAMES[1]: 0.0})
    (finding,) = find(detached, rows, called=called(0, 1, 2, 3))
    assert (finding.severity, finding.evidence["exactly_zero"]) == ("critical", True)
    assert finding.view.sites == tuple(NAMES[:2])
    assert "exactly 0" in finding.message
    few = [r for r in rows if r[0] < 2]
    assert find(detached, few, called=called(0, 1, 2, 3)) == []


def test_where_all_is_zero_nothing_tells_the_parts_apart():
    rows = made.parameters(NAMES, grad=0.0, ratio=0.0)
    assert find(detached, rows, called=called(0, 1, 2, 3)) == []


def test_a_loss_that_no_parameter_is_in():
    """Steps were recorded, and nothing but their duration."""
    rows = made.loss(2.0, 2.0) + made.series("scalar", "step_seconds", "value", [0.1] * 40)
    (finding,) = find(detached, rows, called=called(0, 1, 2, 3))
    assert (finding.severity, finding.evidence["share_of_parameters"]) == ("critical", 1.0)
    assert (finding.first_step, finding.last_step) == (0, 39)


def test_parameters_that_the_model_does_not_list_are_told_how_to_be_listed():
    names = ["(unregistered).0", "(unregistered).1", "head.weight"]
    rows = [r for r in made.parameters(names) if r[1] == names[2] or r[4] != "update_ratio"]
    sites = [
        replace(s, note="not in the optimizer") if "(" in s.name else s
        for s in made.parameter_sites(names)
    ]
    meta = {"optimizer": {"class": "SGD"}}
    (finding,) = apply(not_in_optimizer.RULE, Signals(made.run(rows, sites, meta)))
    assert "nn.ModuleList" in finding.remedy and "add_param_group" not in finding.remedy
