"""Observing changes nothing: the same losses, weights and random numbers, bit for bit."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradscope
from tests.reference.cases import CASES, every_case
from tests.reference.loops import LOOPS, Net
from tests.reference.networks import data, encoder, on, weighted

STEPS = 5


def ordinary(loss_of, clip=None):
    """train: (model, optimizer) -> losses of some steps that draw one stream of random numbers."""

    def train(model, optimizer):
        losses = []
        for step in range(STEPS):
            loss = loss_of(model, step)
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return losses

    return train


def state_of_the_generators():
    return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


def both_ways(build, train, make_optimizer, tmp_path, every):
    """(losses, tensors, generators) without and with a scope."""
    torch.manual_seed(0)
    plain = build()
    observed = copy.deepcopy(plain)
    results = []
    for model in (plain, observed):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        optimizer = make_optimizer(model.parameters())
        if model is plain:
            losses = train(model, optimizer)
        else:
            with gradscope.attach(
                model, optimizer=optimizer, out=tmp_path / "run.pt", every=every, flush_every=0.0
            ) as scope:
                losses = train(model, optimizer)
                scope.log(loss=losses[-1])
            assert gradscope.load(tmp_path / "run.pt").meta["errors"] == []
        tensors = [*model.state_dict().values(), *losses]
        for state in optimizer.state.values():
            tensors += [v for v in state.values() if isinstance(v, torch.Tensor)]
        results.append((tensors, state_of_the_generators()))
    return results


def assert_same(results):
    (plain, plain_state), (observed, observed_state) = results
    assert len(plain) == len(observed)
    for a, b in zip(plain, observed, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(plain_state[0], observed_state[0])
    assert plain_state[1:] == observed_state[1:]


@pytest.mark.parametrize("name", every_case("identical training"))
def test_adam_on_every_model(name, tmp_path):
    case = CASES[name]
    assert_same(both_ways(case.build, ordinary(case.loss), torch.optim.Adam, tmp_path, every=2))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.supports(loop=name, shows="identical training"))
        for name in LOOPS
    ],
)
def test_every_loop(name, tmp_path):
    loop = LOOPS[name]
    assert_same(both_ways(Net, loop.train, loop.optimizer, tmp_path, every=1))


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
        lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
        lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    ],
    ids=["momentum", "amsgrad", "fused", "foreach"],
)
def test_optimizers_with_dropout_and_clipping(make_optimizer, every, tmp_path):
    results = both_ways(
        lambda: encoder(0.3), ordinary(on(2, 5, 8), clip=0.1), make_optimizer, tmp_path, every
    )
    assert_same(results)


@pytest.mark.parametrize("length", [5, 300])
def test_sampled_rows_draw_no_random_numbers(length, tmp_path):
    def loss_of(model, step):
        return weighted(model(data(step, 2, length, 8)))

    assert_same(
        both_ways(lambda: encoder(0.3), ordinary(loss_of), torch.optim.Adam, tmp_path, every=1)
    )


def test_double_precision_and_half(tmp_path):
    for dtype in (torch.float64, torch.bfloat16):

        def loss_of(model, step, dtype=dtype):
            return weighted(model(data(step, 2, 5, 8).to(dtype)).float())

        def build(dtype=dtype):
            return encoder(0.2).to(dtype)

        assert_same(both_ways(build, ordinary(loss_of), torch.optim.Adam, tmp_path, every=1))


def test_autocast(tmp_path):
    def loss_of(model, step):
        with torch.autocast("cpu", torch.bfloat16):
            output = model(data(step, 2, 5, 8))
        return weighted(output.float())

    assert_same(
        both_ways(lambda: encoder(0.2), ordinary(loss_of), torch.optim.Adam, tmp_path, every=1)
    )


def test_reentrant_checkpoints(tmp_path):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = CASES["transformer encoder, dropout"].build()
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(checkpoint(self.inner, x.requires_grad_(), use_reentrant=True))

    assert_same(both_ways(Outer, ordinary(on(2, 5, 8)), torch.optim.Adam, tmp_path, every=1))


def test_gradients_inside_the_forward_pass(tmp_path):
    """As models of forces do: the output is a gradient of the energy."""

    class Forces(nn.Module):
        def __init__(self):
            super().__init__()
            self.energy = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 1))

        def forward(self, x):
            x = x.requires_grad_()
            energy = self.energy(x)
            (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
            return energy, -slope

    def loss_of(model, step):
        return weighted(*model(data(step, 5, 3)))

    assert_same(both_ways(Forces, ordinary(loss_of), torch.optim.Adam, tmp_path, every=1))


def test_nested_tensors(tmp_path):
    """Outputs without a shape of numbers."""

    def loss_of(model, step):
        parts = [data(step, 2, 3), data(step, 4, 3)]
        nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
        return model(nested).values().square().sum()

    def build():
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    assert_same(both_ways(build, ordinary(loss_of), torch.optim.Adam, tmp_path, every=1))


def test_compiled(tmp_path):
    """Recorded steps run as written; the others stay compiled."""

    def loss_of(model, step):
        if model not in compiled:
            compiled[model] = torch.compile(model, backend="aot_eager")
        return weighted(compiled[model](data(step, 2, 5, 8)))

    compiled = {}
    torch._dynamo.reset()
    assert_same(
        both_ways(lambda: encoder(0.0), ordinary(loss_of), torch.optim.Adam, tmp_path, every=2)
    )
    run = gradscope.load(tmp_path / "run.pt")
    assert run.steps.tolist() == [0, 2, 4]
    assert len(run.frame("module", "grad_norm").query("step == 2")) == 19
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_function_transforms_of_the_model(tmp_path):
    """Per-sample gradients by torch.func, in the middle of a recorded step."""

    def loss_of(model, step):
        parameters = dict(model.named_parameters())

        def sample_loss(parameters, x):
            return torch.func.functional_call(model, parameters, (x,)).square().sum()

        x = data(step, 5, 3)
        each = torch.func.vmap(torch.func.grad(sample_loss), in_dims=(None, 0))(
            {n: p.detach() for n, p in parameters.items()}, x
        )
        spread = sum(g.var(0).sum() for g in each.values())
        return weighted(model(x)) + spread

    def build():
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    assert_same(both_ways(build, ordinary(loss_of), torch.optim.Adam, tmp_path, every=1))


def test_the_inputs_own_gradient():
    """A user may read it after backward."""

    def input_gradients(attach):
        torch.manual_seed(0)
        model = CASES["functional forks"].build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scope = gradscope.attach(model, optimizer=optimizer, out=None, every=1) if attach else None
        found = []
        for step in range(3):
            x = data(step, 2, 3, 4).requires_grad_()
            weighted(model(x)).backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(x.grad)
        if scope:
            scope.close()
        return found

    assert all(map(torch.equal, input_gradients(False), input_gradients(True)))
