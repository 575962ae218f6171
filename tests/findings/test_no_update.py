import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import gradscope
from gradscope.findings import no_update as rule
from gradscope.findings._rule import Skipped, apply
from gradscope.findings._signals import Signals
from gradscope.run import Site
from tests.reference import synthetic as made

NAMES = [f"net.{k}.weight" for k in range(4)]


def find(rows, sites=None):
    sites = made.parameter_sites(NAMES) if sites is None else sites
    return apply(rule.RULE, Signals(made.run(rows, sites)))


def by_state(found):
    return {f.evidence["state"]: f for f in found}


def test_all_move():
    assert find(made.parameters(NAMES)) == []


def test_two_that_the_optimizer_does_not_move():
    (finding,) = find(made.parameters(NAMES, ratio={NAMES[0]: 0.0, NAMES[1]: 1e-9}))
    assert (finding.severity, finding.evidence["state"]) == ("critical", "stuck")
    assert finding.view.sites == (NAMES[0], NAMES[1])
    assert finding.evidence["share_of_parameters"] == 0.5


def test_a_learning_rate_of_zero_is_one_finding():
    (finding,) = find(made.parameters(NAMES, ratio=0.0))
    assert finding.message.startswith("All 4 parameters have a gradient")


def test_what_no_optimizer_has_is_another_rules():
    sites = [replace(s, note="not in the optimizer") for s in made.parameter_sites(NAMES)]
    assert find(made.parameters(NAMES, ratio=0.0), sites) == []


def lr(values):
    return made.series("scalar", "lr", "value", values)


def test_warm_up_from_zero():
    rows = [r for r in made.parameters(NAMES) if r[4] != "update_ratio"]
    ramp = np.linspace(0, 1e-3, 40)
    for name in NAMES:
        rows += made.series("parameter", name, "update_ratio", ramp)
    assert find(rows + lr(ramp)) == []
    assert find(rows) == []
    (start,) = find([r for r in rows if r[0] == 0])  # one step recorded, lr = 0
    assert start.severity == "info"


def test_a_learning_rate_that_ended_at_zero():
    rows = made.parameters(NAMES, steps=10)
    for name in NAMES:
        idle = made.series("parameter", name, "update_ratio", [0.0] * 200)
        rows += [(s + 10, *rest) for s, *rest in idle]
        rows += [(s + 10, n, k, e, "grad_norm", 0.1) for s, n, k, e, *_ in idle]
    assert find(rows) == []


def test_a_gradient_that_is_zero_by_symmetry():
    names = ["conv.bias", *NAMES]
    sites = [Site("conv.bias", "parameter", shape=(8,), numel=8), *made.parameter_sites(NAMES)]
    rows = made.parameters(names, grad={"conv.bias": 1e-8}, ratio={"conv.bias": 1e-11})
    assert find(rows, sites) == []


def test_a_vector_counts_along_with_its_module():
    names = ["net.0.weight", "net.0.bias", "net.1.weight", "net.1.bias"]
    shapes = {"net.0.weight": (8, 8), "net.1.weight": (8, 8)}
    sites = [
        Site(n, "parameter", order=i, shape=shapes.get(n, (8,)), numel=8)
        for i, n in enumerate(names)
    ]
    alone = find(made.parameters(names, grad={"net.0.bias": 0.0}), sites)
    assert alone == []
    (both,) = find(made.parameters(names, grad={"net.0.bias": 0.0, "net.0.weight": 0.0}), sites)
    assert both.view.sites == ("net.0.weight", "net.0.bias")


def test_exactly_zero():
    (finding,) = find(made.parameters(NAMES, grad={NAMES[2]: 0.0}))
    assert (finding.evidence["state"], finding.severity) == ("zero", "critical")
    once = made.parameters(NAMES, steps=1, grad={NAMES[2]: 0.0})
    assert find(once)[0].severity == "info"


def test_nan_is_not_zero():
    assert find(made.parameters(NAMES, grad=np.nan)) == []


def modules():
    return made.series("module", "net.0", "grad_norm", [1.0] * 40)


def test_gradients_that_are_cleared_before_the_step():
    (finding,) = find(modules() + [r for r in made.parameters(NAMES) if r[4] == "weight_norm"])
    assert (finding.evidence["state"], finding.severity) == ("cleared", "critical")
    zeros = made.parameters(NAMES, grad=0.0, ratio=0.0)
    (finding,) = find(modules() + zeros)
    assert finding.evidence["state"] == "cleared" and "zero_grad" in finding.remedy


def stopped(after, end, steps=40):
    ratios = [1e-3 if i < after else 0.0 for i in range(steps)]
    rows = [r for r in made.parameters(NAMES, steps) if r[4] != "update_ratio"]
    for name in NAMES:
        rows += made.series("parameter", name, "update_ratio", ratios)
    # a learning rate that decays, and is never exactly 0
    return rows + lr([1e-3 * 0.1**i for i in range(steps)]) + made.loss(2.0, end, 100)


def test_a_schedule_that_ends_learning_too_soon():
    (finding,) = find(stopped(5, end=1.99))
    assert (finding.evidence["state"], finding.severity) == ("stopped", "warning")
    assert find(stopped(5, end=0.1)) == []  # it had learned by then
    assert find(stopped(35, end=1.99)) == []  # at the very end it may stop
    silent = [
        (s, n, k, e, m, 0.0 if m == "grad_norm" and s > 5 else v)
        for s, n, k, e, m, v in stopped(5, end=1.99)
    ]
    assert find(silent) == []  # for want of a gradient: another rule's


def trained(after_step):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = copy.deepcopy(model.state_dict())
    x, y = torch.randn(32, 6), torch.randint(3, (32,))
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1) as scope:
        for _ in range(60):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            after_step(model, before)
            scope.log(loss=loss)
    return apply(rule.RULE, Signals(scope.run()))


def test_weights_that_are_put_back_after_every_step():
    (finding,) = trained(lambda model, before: model.load_state_dict(before))
    assert (finding.severity, finding.evidence["state"]) == ("critical", "put back")
    assert finding.message.startswith("All 4 parameters have an update at every step")


def test_weights_of_unit_norm_are_not_put_back():
    def project(model, before):
        with torch.no_grad():
            for p in model.parameters():
                p.div_(p.norm())

    assert trained(project) == []


def test_frozen_parameters_have_no_rows_and_no_site():
    assert find(made.parameters(NAMES[1:]), made.parameter_sites(NAMES[1:])) == []


def test_no_parameters():
    assert isinstance(find(made.ladder(0.1), made.ladder_sites()), Skipped)


@pytest.mark.parametrize(("passes", "found"), [(60, 1), (20, 0)])
def test_an_optimizer_that_never_steps(passes, found):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.attach(model, optimizer=optimizer, out=None) as scope:
        for _ in range(passes):
            loss = model(torch.ones(1, 2)).square().sum()
            loss.backward()
            scope.log(loss=loss)
    findings = gradscope.analyze(scope.run())
    assert [(f.rule, f.severity, f.evidence["passes"]) for f in findings] == [
        ("no-update", "critical", passes)
    ] * found


def test_passes_that_belong_to_no_training_are_not_counted():
    """Forward passes alone, another model's backward passes, and micro-batches of a step."""
    model, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.attach(model, optimizer=optimizer, out=None) as scope:
        for _ in range(60):
            model(torch.ones(1, 2)).square().sum().backward()
        optimizer.step()
        for _ in range(60):
            other(torch.ones(1, 2)).sum().backward()
    assert scope.run().meta["unfinished"] == 0
    with gradscope.attach(model, optimizer=optimizer, out=None) as scope:
        for _ in range(60):
            model(torch.ones(1, 2))
    assert scope.run().meta["unfinished"] == 0
    assert gradscope.analyze(scope.run()) == []


def every_tenth(rows):
    return [(step * 10, *rest) for step, *rest in rows]


@pytest.mark.parametrize(
    ("ratio", "end", "found"), [(2e-6, 2.0, 1), (2e-6, 1.0, 0), (2e-5, 2.0, 0), (2e-3, 2.0, 0)]
)
def test_all_of_its_steps_lead_nowhere(ratio, end, found):
    rows = made.parameters(NAMES, ratio=ratio) + made.loss(2.0, end)
    findings = find(every_tenth(rows))
    assert [f.evidence["state"] for f in findings] == ["stuck"] * found
    assert all("All 4 parameters have" in f.message for f in findings)


def test_one_weight_that_gets_somewhere_is_enough():
    ratios = dict.fromkeys(NAMES, 2e-6) | {NAMES[0]: 1e-3}
    assert find(every_tenth(made.parameters(NAMES, ratio=ratios) + made.loss(2.0, 2.0))) == []


@pytest.mark.parametrize(
    ("creep", "end", "found"), [(1e-8, 2.0, 1), (1e-8, 0.5, 0), (1e-4, 2.0, 0)]
)
def test_weights_that_are_put_back_to_their_average(creep, end, found):
    rows = [
        (step, *rest, 1 + creep * step if rest[-1] == "weight_norm" else value)
        for step, *rest, value in made.parameters(NAMES, ratio=0.02)
    ]
    findings = find(every_tenth(rows + made.loss(2.0, end)))
    assert [f.evidence["state"] for f in findings] == ["put back"] * found


def test_a_learning_rate_of_zero_counts_once_it_has_been_above():
    moving = [5e-3] * 4 + [0.0] * 36
    rows = [r for n in NAMES for r in made.series("parameter", n, "update_ratio", moving)]
    rows += [r for n in NAMES for r in made.series("parameter", n, "grad_norm", [0.1] * 40)]
    rates = made.series("scalar", "lr", "value", [0.1] * 4 + [0.0] * 36)
    (finding,) = find(rows + rates + made.loss(2.0, 1.9))
    assert (finding.evidence["state"], finding.severity) == ("stopped", "warning")


def test_the_limit_is_what_would_lead_nowhere():
    rows = made.parameters(NAMES, ratio=2e-6) + made.loss(2.0, 2.0)
    (finding,) = find(every_tenth(rows))
    assert finding.view.thresholds["0.002 of the weight in all"] == pytest.approx(2e-3 / 390)


def test_what_stopped_is_told_from_when_on_and_how_far_the_loss_had_come():
    def stopped(at, end):
        rows = [r for r in made.parameters(NAMES) if r[4] != "update_ratio"]
        for name in NAMES:
            rows += made.series("parameter", name, "update_ratio", [1e-3] * at + [0.0] * (40 - at))
        return find(rows + made.loss(1.0, end, noise=0))[0]

    early = stopped(10, 1.0)
    assert (early.evidence["state"], early.first_step, early.last_step) == ("stopped", 10, 39)
    assert "though the loss has not fallen" in early.message
    assert "fallen by no more than 18%" in stopped(12, 0.8).message


def test_weights_that_had_gone_far_are_not_called_unmoved():
    # A third of the weight in a third of the run: the median step is 0, the way is not.
    rows = []
    for name in NAMES:
        rows += made.series("parameter", name, "grad_norm", [1.0] * 100, every=10)
        ratios = [1e-3] * 33 + [0.0] * 67
        rows += made.series("parameter", name, "update_ratio", ratios, every=10)
    rows += made.series("scalar", "loss", "value", [1.0] * 100, every=10)
    (finding,) = find(rows)
    assert (finding.severity, finding.evidence["state"]) == ("warning", "stopped")
    assert finding.first_step == 330
