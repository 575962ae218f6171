"""Every number that is recorded of models, against a twin watched by plain hooks."""

import pytest
import torch

from tests.reference.cases import CASES, every_case
from tests.reference.observer import Observer
from tests.reference.recording import assert_numbers, record, train_steps

COLUMNS = ("module gradients", "forks", "softmaxes", "parameters", "updates")
STEPS = 2


@pytest.mark.parametrize("name", every_case(*COLUMNS))
def test_every_number(name):
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
