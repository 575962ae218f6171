"""Every number that is recorded of a training run, against a twin watched by plain hooks."""

import copy

import pytest
import torch

from tests.reference.cases import CASES, every_case
from tests.reference.loops import LOOPS, Net
from tests.reference.observer import Observer
from tests.reference.recording import assert_numbers, record, train_steps

COLUMNS = ("module gradients", "forks", "softmaxes", "parameters", "updates")
STEPS = 2


@pytest.mark.parametrize("name", every_case(*COLUMNS))
def test_of_every_model(name):
    case = CASES[name]
    model, twin = case.pair()
    optimizer, twin_optimizer = (torch.optim.AdamW(m.parameters(), lr=0.01) for m in (model, twin))
    run = record(model, lambda o: train_steps(model, case.loss, o, STEPS), optimizer=optimizer)
    with Observer(twin, twin_optimizer) as observer:
        train_steps(twin, case.loss, twin_optimizer, STEPS)
    assert_numbers(run, observer.steps, COLUMNS)
    for column, seen in (("forks", "forks"), ("softmaxes", "softmaxes")):
        found = any(getattr(step, seen) for step in observer.steps)
        assert found == (column not in case.lacks), column
    assert all(step.norms and step.grads for step in observer.steps)


def every_loop():
    return [
        pytest.param(name, marks=pytest.mark.supports(loop=name, shows=loop.shows))
        for name, loop in LOOPS.items()
    ]


@pytest.mark.parametrize("name", every_loop())
def test_of_every_loop(name):
    loop = LOOPS[name]
    torch.manual_seed(0)
    model = Net()
    twin = copy.deepcopy(model)
    optimizer, twin_optimizer = (
        loop.optimizer(model.parameters()),
        loop.optimizer(twin.parameters()),
    )
    torch.manual_seed(1)
    run = record(model, lambda o: loop.train(model, o), optimizer=optimizer)
    torch.manual_seed(1)
    with Observer(twin, twin_optimizer, lambda: loop.scale) as observer:
        (loop.twin or loop.train)(twin, twin_optimizer)
    assert len(observer.steps) == len(run.steps)
    assert_numbers(run, observer.steps, loop.shows, loop.rel)
    step = observer.steps[0]
    assert step.norms and step.softmaxes and step.grads and step.ratios
    assert step.forks or "forks" not in loop.shows
