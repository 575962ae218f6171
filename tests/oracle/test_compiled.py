"""Compiled models: recorded steps run as they were written, all others as they were compiled."""

import pytest
import torch
from torch._dynamo.backends.registry import lookup_backend

from tests.reference.loops import Net, answer
from tests.reference.observer import Observer
from tests.reference.recording import assert_numbers, record

COLUMNS = ("module gradients", "forks", "softmaxes", "parameters", "updates")


@pytest.fixture
def compilations():
    """(backend, list of one entry for each graph that was compiled)."""
    torch._dynamo.reset()
    made = []

    def backend(graph, inputs):
        made.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    yield backend, made
    torch._dynamo.reset()


def whole(model, backend):
    return torch.compile(model, backend=backend)


def in_place(model, backend):
    model.compile(backend=backend)
    return model


def part(model, backend):
    model.encoder = torch.compile(model.encoder, backend=backend)
    return model


WAYS = {
    "torch.compile(model)": whole,
    "model.compile()": in_place,
    "torch.compile of a part": part,
}


def training(called, optimizer, steps):
    losses = []
    for step in steps:
        loss = answer(called, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def net():
    """Without dropout, which compiled code may draw in another way."""
    torch.manual_seed(0)
    model = Net()
    model.dropout.p = 0.0
    return model


def _sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(
            way, marks=pytest.mark.supports(loop=way, shows=(*COLUMNS, "identical training"))
        )
        for way in WAYS
    ],
)
@pytest.mark.parametrize("attached_to_compiled", [False, True])
def test_numbers_of_recorded_steps_and_no_recompilation(way, attached_to_compiled, compilations):
    backend, made = compilations
    plain, model, twin = (net() for _ in range(3))
    expected = training(WAYS[way](plain, backend), _sgd(plain), range(6))
    without = len(made)
    assert without

    torch._dynamo.reset()
    made.clear()
    called = WAYS[way](model, backend)
    losses = []

    def train(optimizer):
        losses.extend(training(called, optimizer, range(2)))  # recorded: 0
        compiled.append(len(made))
        losses.extend(training(called, optimizer, range(2, 6)))  # recorded: 3

    compiled = []
    run = record(called if attached_to_compiled else model, train, optimizer=_sgd(model), every=3)
    assert compiled == [without], "step 1 is compiled as always"
    assert len(made) == without, "nothing is compiled again after a recorded step"
    assert all(map(torch.equal, losses, expected))
    assert all(map(torch.equal, model.parameters(), plain.parameters()))

    optimizer = _sgd(twin)
    with Observer(twin, optimizer) as observer:
        training(twin, optimizer, range(6))
    assert run.steps.tolist() == [0, 3]
    assert_numbers(run, [observer.steps[0], observer.steps[3]], COLUMNS, at=[0, 3])
