"""The softmaxes of whole models equal those that Python calls, written out row by row."""

import pytest
import torch

from tests.reference.cases import CASES, every_case
from tests.reference.recording import record, train_steps, values
from tests.reference.softmax_watch import SoftmaxWatch

METRICS = ("entropy", "max_prob", "jacobian_norm", "gain")
STEPS = 2


@pytest.mark.parametrize("name", every_case("softmaxes"))
def test_every_softmax_of_every_step(name):
    case = CASES[name]
    model, twin = case.pair()
    run = record(model, lambda opt: train_steps(model, case.loss, opt, STEPS))
    assert run.meta["errors"] == []
    assert bool(run.sites_of("softmax")) == ("softmaxes" not in case.lacks)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
    for step in range(STEPS):
        torch.manual_seed(step)
        with SoftmaxWatch(twin) as watch:
            case.loss(twin, step).backward()
        expected = watch.values()
        assert bool(expected) == ("softmaxes" not in case.lacks)
        for metric in METRICS:
            found = values(run, "softmax", metric, step)
            wanted = {site: numbers[metric] for site, numbers in expected.items()}
            assert found == pytest.approx(wanted, rel=2e-5, abs=1e-6), metric
        optimizer.step()
        optimizer.zero_grad()
