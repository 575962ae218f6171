"""The operation named is the first whose result, or whose gradient, was not finite."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gradscope
from gradscope.capture.origins import first_nonfinite

IGNORED = {"detach", "view", "t", "transpose", "expand", "_unsafe_view", "empty", "ones_like"}


class FirstBad(TorchDispatchMode):
    """The slow twin: looks at every result of every operation as it runs."""

    def __init__(self):
        super().__init__()
        self.name = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if self.name is None and name not in IGNORED:
            outs = result if isinstance(result, tuple | list) else [result]
            floats = [o for o in outs if isinstance(o, torch.Tensor) and o.is_floating_point()]
            if any(not torch.isfinite(o).all() for o in floats):
                self.name = name.strip("_")
        return result


def weights(seed=0):
    torch.manual_seed(seed)
    return torch.randn(4, 4, requires_grad=True), torch.randn(4, 4)


FORWARD = {
    "log of zero": lambda w, x: ((x @ w).relu() * 0).log().mean(),
    "log of a negative": lambda w, x: (-(x @ w).abs()).log().sum(),
    "exp overflows": lambda w, x: ((x @ w) * 1e4).exp().mean(),
    "division by zero": lambda w, x: ((x @ w) / ((x @ w) * 0)).mean(),
    "division by a count that is zero": lambda w, x: (x @ w).sum() / torch.tensor(0),
    "a product overflows": lambda w, x: ((x @ w) * 1e30 * (x @ w) * 1e30).mean(),
    "0 · inf": lambda w, x: ((x @ w).mul(1e4).exp() * 0).mean(),
    "square root of a negative": lambda w, x: (-(x @ w).square() - 1).sqrt().mean(),
    "a power of a negative": lambda w, x: (-(x @ w).abs() - 1).pow(0.5).mean(),
    "matrix product overflows": lambda w, x: (((x @ w) * 1e30) @ (w * 1e30)).tanh().mean(),
    "acos beyond one": lambda w, x: ((x @ w).abs() + 2).acos().mean(),
    "masked logits are meant": lambda w, x: (
        (x @ w)
        .masked_fill(torch.eye(4).bool(), -math.inf)
        .softmax(-1)
        .mul((x @ w).abs().neg().log())
        .mean()
    ),
}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_operation_is_the_one_that_a_look_at_every_result_finds(name):
    w, x = weights()
    with FirstBad() as watched:
        loss = FORWARD[name](w, x)
    assert not torch.isfinite(loss)
    origin = first_nonfinite(loss, {id(w)})
    assert origin.phase == "forward"
    if name == "masked logits are meant":  # where the twin is fooled by the mask's −inf
        assert watched.name == "masked_fill" and origin.operation == "log"
    else:
        assert origin.operation == watched.name


def test_data_and_parameters_that_are_not_finite():
    w, x = weights()
    x[1, 2] = math.nan
    assert first_nonfinite((x @ w).tanh().sum(), {id(w)}).phase == "data"
    w, x = weights()
    with torch.no_grad():
        w[0, 0] = math.inf
    origin = first_nonfinite((x @ w).tanh().mul(w).sum(), {id(w)})
    assert origin.phase == "parameter" and origin.node.variable is w


@pytest.mark.parametrize("through", ["directly", "through a clamp"])
def test_a_parameter_that_a_derivative_has_spoilt_names_the_operation(through):
    w, x = weights()
    p = torch.tensor(math.nan, requires_grad=True)
    exponent = p if through == "directly" else p.clamp_max(5)
    origin = first_nonfinite((x @ w).abs().pow(exponent).sum(), {id(w), id(p)})
    assert (origin.phase, origin.operation) == ("parameter", "pow")
    assert origin.node.variable is p
    with torch.no_grad():
        w[0, 0] = math.nan  # and others too: which of two was it?
    both = (x @ w).abs().pow(p).sum() + (x @ w).square().sum().sqrt()
    assert first_nonfinite(both, {id(w), id(p)}).operation == ""
    one = (x @ w).square().sum().sqrt()
    assert first_nonfinite(one, {id(w), id(p)}).operation == "sqrt"


def test_a_finite_loss_and_one_of_another_model_have_no_origin():
    w, x = weights()
    assert first_nonfinite((x @ w).sum(), {id(w)}) is None
    assert first_nonfinite((x @ w).mul(0).log().sum(), {0}) is None


class Net(nn.Module):
    """Two layers with something done to the second's output."""

    def __init__(self, last):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), last

    def forward(self, x):
        return self.last(self.second(torch.tanh(self.first(x))))


class Last(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.on = False

    def forward(self, x):
        return self.function(x) if self.on else x


BACKWARD = {
    "sqrt": lambda y: (y * 0).sqrt(),
    "pow": lambda y: (y * 0).abs().pow(0.25),
    "asin": lambda y: (y * 0 - 1).asin(),
    "acos": lambda y: (y * 0 + 1).acos(),
    "log": lambda y: torch.where(y > 1e9, (y * 0).log(), y),
}


def run_of(function, at, every=1, steps=6, outside=False):
    torch.manual_seed(0)
    last = Last(nn.Identity() if outside else function)
    model = Net(last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with gradscope.attach(model, optimizer=optimizer, out=None, every=every) as scope:
        for step in range(steps):
            last.on = step >= at
            y = model(torch.randn(5, 8))
            if outside and step >= at:
                y = function(y)
            loss = y.mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scope.log(loss=loss)
    assert not scope.run().meta["errors"]
    return scope.run()


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("name", BACKWARD)
def test_backward_operation_with_a_finite_loss(name, outside):
    run = run_of(BACKWARD[name], at=2, outside=outside)
    place = "(outside)" if outside else "last"
    first = run.meta["nonfinite"][0]
    assert run.scalars()["loss"][:3].notna().all()
    assert first == {
        "step": 2,
        "phase": "backward",
        "operation": name,
        "where": f"{place}:{name}",
    }


@pytest.mark.parametrize("every", [1, 2])
def test_a_loss_is_looked_at_on_steps_that_are_not_recorded_too(every):
    run = run_of(lambda y: (y * 1e5).exp(), at=3, every=every)
    first = run.meta["nonfinite"][0]
    assert (first["step"], first["phase"], first["operation"]) == (3, "forward", "exp")


def test_what_happens_in_another_graph_than_the_recorded_one_has_no_place():
    torch.manual_seed(0)
    model = Net(Last(lambda y: ((y + 1) * 0).log()))
    model.last.on = False
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with gradscope.attach(model, optimizer=optimizer, out=None, every=2) as scope:
        for step in range(2):
            model.last.on = step == 1
            model(torch.randn(5, 8)).mean().backward()
            optimizer.step()
    first = scope.run().meta["nonfinite"][0]
    assert first["operation"] == "log" and first["where"] in ("", "(output):log")


def test_no_entry_for_a_step_that_a_gradient_scaler_skips():
    torch.manual_seed(0)
    model = Net(nn.Identity())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10**6)
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1) as scope:
        for _ in range(8):
            loss = model(torch.randn(5, 8)).mul(100).mean().abs() + 100
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    run = scope.run()
    assert run.meta["nonfinite"] == []
    assert run.scalars()["skipped_steps"].dropna().iloc[0] >= 1


def test_only_the_first_few_are_kept():
    run = run_of(lambda y: (y * 0).log(), at=0, steps=10)
    assert len(run.meta["nonfinite"]) == 3
    assert run.meta["nonfinite"][0]["operation"] == "log"


def test_a_healthy_run_has_none():
    assert run_of(nn.Identity(), at=0).meta["nonfinite"] == []
