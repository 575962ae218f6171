"""Several optimizers, optimizers that are given a closure, and trainings that are resumed."""

import pytest
import torch
from torch import nn

import gradscope
from tests.reference.gradients import norm
from tests.reference.recording import values


def two_part_model():
    torch.manual_seed(0)
    return nn.ModuleDict({"first": nn.Linear(3, 4), "second": nn.Linear(4, 2)})


def loss_of(model, step):
    draw = torch.Generator().manual_seed(step)
    return model["second"](model["first"](torch.randn(5, 3, generator=draw)).tanh()).square().sum()


def optimizers_of(model):
    return [
        torch.optim.SGD(model["first"].parameters(), lr=0.1),
        torch.optim.Adam(model["second"].parameters(), lr=0.1),
    ]


def alternate(model, optimizers):
    """Each optimizer has a backward pass of its own; returns (gradients, ratios) by step."""
    told = []
    for step in range(4):
        gradients, ratios = {}, {}
        for name, optimizer in zip(("first", "second"), optimizers, strict=True):
            model.zero_grad()
            (loss_of(model, step) * (1 + step)).backward()
            named = [(n, p) for n, p in model.named_parameters() if n.startswith(name)]
            before = {n: p.detach().clone() for n, p in named}
            gradients |= {n: norm(p.grad) for n, p in named}
            optimizer.step()
            ratios |= {n: norm(p.detach() - before[n]) / norm(before[n]) for n, p in named}
        told.append((gradients, ratios))
    return told


def test_every_optimizer_is_read_at_its_own_step():
    model = two_part_model()
    optimizers = optimizers_of(model)
    with gradscope.attach(model, optimizer=optimizers, out=None, every=1, update_every=1) as scope:
        told = alternate(model, optimizers)
    run = scope.run()
    assert run.steps.tolist() == [0, 1, 2, 3]
    for step, (gradients, ratios) in enumerate(told):
        assert values(run, "parameter", "grad_norm", step) == pytest.approx(gradients, rel=1e-5)
        assert values(run, "parameter", "update_ratio", step) == pytest.approx(ratios, rel=1e-4)


def test_a_parameter_of_no_optimizer_is_read_with_the_last():
    model = two_part_model()
    optimizers = [
        torch.optim.SGD([model["first"].weight], lr=0.1),
        torch.optim.SGD([model["second"].weight], lr=0.1),
    ]
    with gradscope.attach(model, optimizer=optimizers, out=None, every=1) as scope:
        loss_of(model, 0).backward()
        gradients = {n: norm(p.grad) for n, p in model.named_parameters()}
        for optimizer in optimizers:
            optimizer.step()
    found = values(scope.run(), "parameter", "grad_norm", 0)
    assert found == pytest.approx(gradients, rel=1e-5) and len(found) == 4


def test_updates_by_a_closure_are_measured_from_the_first_step_on():
    model = two_part_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told = []
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1, update_every=1) as scope:
        for step in range(3):

            def closure(step=step):
                optimizer.zero_grad()
                loss = loss_of(model, step)
                loss.backward()
                return loss

            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            optimizer.step(closure)
            gradients = {n: norm(p.grad) for n, p in model.named_parameters()}
            ratios = {
                n: norm(p.detach() - before[n]) / norm(before[n])
                for n, p in model.named_parameters()
            }
            told.append((gradients, ratios))
    for step, (gradients, ratios) in enumerate(told):
        run = scope.run()
        assert values(run, "parameter", "grad_norm", step) == pytest.approx(gradients, rel=1e-5)
        assert values(run, "parameter", "update_ratio", step) == pytest.approx(ratios, rel=1e-4)


def test_a_resumed_training_goes_on_counting():
    model = two_part_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.attach(model, optimizer=optimizer, out=None, every=4, first_step=6) as scope:
        for step in range(6, 13):
            loss = loss_of(model, step)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scope.log(loss=loss)
    run = scope.run()
    assert run.steps.tolist() == [8, 12] and run.meta["steps"] == 13
    assert run.frame("scalar").query("site == 'loss'")["step"].tolist() == list(range(6, 13))


@pytest.mark.parametrize("first_step", [-1, 1.5, True, "7"])
def test_a_first_step_that_is_no_number_of_a_step_is_refused(first_step):
    with pytest.raises(gradscope.GradscopeError, match="first_step= takes a whole number from 0"):
        gradscope.attach(two_part_model(), out=None, first_step=first_step)
