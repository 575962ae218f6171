"""Gradients of any size and precision: norms stay right where their squares do not."""

import copy
import math

import pytest
import torch
from torch import nn

import gradscope
from tests.reference.gradients import fork_terms, fork_values, norm, watched_outputs
from tests.reference.networks import data, weighted
from tests.reference.recording import fork_at, record, train_steps, values


class Net(nn.Module):
    """A fork, a softmax, and a few layers."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.b = nn.Linear(4, 4)
        self.c = nn.Linear(4, 2)

    def forward(self, x):
        x = self.a(x)
        return self.c(x + self.b(x).softmax(-1))


def pair(dtype=torch.float32):
    torch.manual_seed(0)
    model = Net().to(dtype)
    return model, copy.deepcopy(model)


def scaled(scale, dtype=torch.float32):
    """loss(model, step): a loss with gradients of about this size."""
    x = data(0, 5, 3).to(dtype)
    weights = data(1, 5, 2).to(dtype)
    return lambda model, step: (model(x) * weights).sum() * scale


def frozen_steps(model, loss_of, steps=1):
    """Recorded with a learning rate of 0, which no gradient can blow up."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return record(model, lambda o: train_steps(model, loss_of, o, steps), optimizer=optimizer)


SCALES = [
    (torch.float32, 1e-25),
    (torch.float32, 1e-30),
    (torch.float32, 1e20),
    (torch.float32, 1e30),
    (torch.float64, 1e-200),
    (torch.float64, 1e200),
    (torch.float64, 1e-25),
]


@pytest.mark.parametrize(("dtype", "scale"), SCALES)
def test_norms_of_modules_and_parameters(dtype, scale):
    model, twin = pair(dtype)
    run = frozen_steps(model, scaled(scale, dtype))
    with watched_outputs(twin) as watch:
        scaled(scale, dtype)(twin, 0).backward()
        expected, rms = watch.norms(), watch.rms()
    assert min(expected.values()) > 0
    close = {"rel": 1e-5, "abs": 0}
    assert values(run, "module", "grad_norm") == pytest.approx(expected, **close)
    assert values(run, "module", "grad_rms") == pytest.approx(rms, **close)
    parameters = {n: norm(p.grad) for n, p in twin.named_parameters()}
    assert values(run, "parameter", "grad_norm") == pytest.approx(parameters, **close)


@pytest.mark.parametrize(("dtype", "scale"), SCALES)
def test_shares_of_a_fork_and_gain_do_not_depend_on_the_scale(dtype, scale):
    model, twin = pair(dtype)
    run, plain = frozen_steps(model, scaled(scale, dtype)), frozen_steps(twin, scaled(1.0, dtype))
    for metric in ("gain", "entropy", "jacobian_norm", "max_prob"):
        a, b = (values(r, "softmax", metric) for r in (run, plain))
        assert a == pytest.approx(b, rel=1e-5), metric
    found, expected = fork_at(run, "a"), fork_at(plain, "a")
    assert found["cancellation"] == pytest.approx(expected["cancellation"], abs=1e-6)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"] * scale, rel=1e-5, abs=0)
    if abs(math.log10(scale)) > 150:  # ⟨g_e, g⟩ is beyond float64: nothing is told of it
        assert found["projection"] == found["cosines"] == {}
        return
    for what in ("projection", "cosines"):
        assert found[what].keys() == expected[what].keys()
        for consumer, value in expected[what].items():
            assert found[what][consumer] == pytest.approx(value, rel=1e-5), what
    assert sum(found["projection"].values()) == pytest.approx(1)


def test_micro_batches_of_tiny_gradients():
    model, twin = pair()

    def train(optimizer):
        for _ in range(2):
            scaled(1e-25)(model, 0).backward()
        optimizer.step()

    run = record(model, train, optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
    with watched_outputs(twin) as watch:
        scaled(1e-25)(twin, 0).backward()
        expected = {site: math.sqrt(2) * value for site, value in watch.norms().items()}
    assert values(run, "module", "grad_norm") == pytest.approx(expected, rel=1e-5, abs=0)


def test_one_large_element_among_tiny_ones():
    """The small ones are below the large one's rounding; alone in their layer they are seen."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1e-25, 0.0], [0.0, 1e-28]]))
    twin = copy.deepcopy(model)
    run = frozen_steps(model, lambda m, s: m(data(s, 3, 2)).sum())
    with watched_outputs(twin) as watch:
        twin(data(0, 3, 2)).sum().backward()
        assert values(run, "module", "grad_norm") == pytest.approx(watch.norms(), rel=1e-5, abs=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_more(dtype):
    """A million elements: their squares neither overflow nor stop adding up."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 2048)
            self.b = nn.Linear(2048, 2)

        def forward(self, x):
            x = self.a(x)
            return self.b(x + torch.tanh(x))

    torch.manual_seed(0)
    model = Wide().to(dtype)
    twin = copy.deepcopy(model)
    x = data(0, 512, 4).to(dtype)

    def loss_of(m, _):
        return (m(x).float() * 60).sum()

    run = frozen_steps(model, loss_of)
    with watched_outputs(twin) as watch:
        loss_of(twin, 0).backward()
        assert values(run, "module", "grad_norm") == pytest.approx(watch.norms(), rel=1e-5)
    parameters = {n: norm(p.grad) for n, p in twin.named_parameters()}
    assert values(run, "parameter", "grad_norm") == pytest.approx(parameters, rel=1e-5)
    expected = fork_values(fork_terms(twin, lambda: loss_of(twin, 0), site="a"))
    found = fork_at(run, "a")
    # The sum itself is rounded to half precision before anyone can see it.
    rounding = 4 * torch.finfo(dtype).eps
    assert found["projection"] == pytest.approx(expected["projection"], rel=rounding)


class Poison(torch.autograd.Function):
    """Puts some values into the gradient that passes through."""

    @staticmethod
    def forward(ctx, x, poison):
        ctx.poison = poison
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        for index, value in enumerate(ctx.poison):
            grad.view(-1)[index] = value
        return grad, None


class Poisoned(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.b = nn.Linear(4, 4)
        self.c = nn.Linear(4, 2)
        self.poison = ()

    def forward(self, x):
        return self.c(torch.tanh(Poison.apply(self.b(torch.tanh(self.a(x))), self.poison)))


@pytest.mark.parametrize(
    "poison", [(math.nan,), (math.inf,), (-math.inf, math.inf, math.nan), (math.inf, -math.inf)]
)
def test_nan_and_infinite_gradients(poison):
    """The norm is not finite where the gradient is not; elements are counted; then it is over."""
    torch.manual_seed(0)
    model = Poisoned()
    twin = copy.deepcopy(model)

    def loss_of(m, step):
        m.poison = poison if step == 1 else ()
        return weighted(m(data(step, 5, 3)))

    # By hand: even a learning rate of 0 makes NaN of a NaN.
    with gradscope.attach(model, out=None, every=1) as scope:
        for step in range(3):
            loss_of(model, step).backward()
            scope.step()
            model.zero_grad()
    run = scope.run()
    assert run.meta["errors"] == []
    with watched_outputs(twin) as watch:
        for step in range(3):
            twin.zero_grad()
            loss_of(twin, step).backward()
            gradients = {site: grads[0] for site, grads in watch.gradients().items()}
            parameters = {n: p.grad for n, p in twin.named_parameters()}
            for kind, expected in (("module", gradients), ("parameter", parameters)):
                found = values(run, kind, "grad_norm", step)
                assert found.keys() == expected.keys()
                bad = {s: (~g.isfinite()).sum().item() for s, g in expected.items()}
                for site, gradient in expected.items():
                    if bad[site]:
                        assert not math.isfinite(found[site]), site
                    else:
                        assert found[site] == pytest.approx(norm(gradient), rel=1e-5), site
                counted = values(run, kind, "nonfinite", step)
                assert counted == {s: n for s, n in bad.items() if n}
            watch.clear()


def test_a_large_finite_gradient_is_not_called_infinite():
    """‖g‖ beyond float32 for a finite float32 gradient."""
    model, twin = pair()
    scale = 1e37
    run = frozen_steps(model, scaled(scale))
    with watched_outputs(twin) as watch:
        scaled(scale)(twin, 0).backward()
        assert all(g.isfinite().all() for gs in watch.gradients().values() for g in gs)
        assert values(run, "module", "grad_norm") == pytest.approx(watch.norms(), rel=1e-5)
    assert values(run, "module", "nonfinite") == {}


def test_no_gradient_at_all():
    model, _ = pair()
    run = frozen_steps(model, scaled(0.0))
    assert set(values(run, "module", "grad_norm").values()) == {0}
    table = run.frame()
    assert not table["value"].isin([math.inf, -math.inf]).any()
