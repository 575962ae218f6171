"""Every number that is recorded of training loops, against a twin watched by plain hooks."""

import copy

import pytest
import torch

from tests.reference.loops import LOOPS, Net
from tests.reference.observer import Observer
from tests.reference.recording import assert_numbers, record


def every_loop():
    return [
        pytest.param(name, marks=pytest.mark.supports(loop=name, shows=loop.shows))
        for name, loop in LOOPS.items()
    ]


@pytest.mark.parametrize("name", every_loop())
def test_every_number(name):
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
    with Observer(twin, twin_optimizer, lambda: loop.scale, "forks" in loop.shows) as observer:
        (loop.twin or loop.train)(twin, twin_optimizer)
    assert len(observer.steps) == len(run.steps)
    assert_numbers(run, observer.steps, loop.shows, loop.rel)
    step = observer.steps[0]
    assert step.norms and step.softmaxes and step.grads and step.ratios
    assert step.forks or "forks" not in loop.shows
