"""Saturated elements and dead units, against a slow look at every element."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradscope
from gradscope.capture.activations import SAMPLE_ELEMENTS, WINDOW, Units, sampled_units
from gradscope.quantities.activation import FLAT

FUNCTIONS = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu6": F.relu6,
    "elu": F.elu,
    "threshold": lambda x: F.threshold(x, 0.5, 0.5),
}
# Of the slopes; 1 for the others.
LARGEST = {"sigmoid": 0.25, "gelu": 1.129, "gelu_tanh": 1.129, "silu": 1.0998}


class Layer(nn.Module):
    """A linear layer or convolution with wide pre-activations, and an activation function."""

    def __init__(self, function, conv=False):
        super().__init__()
        self.inner = nn.Conv2d(3, 6, 3) if conv else nn.Linear(5, 7)
        self.function = function
        with torch.no_grad():
            self.inner.weight.mul_(6)
            self.inner.bias[:2] = -60.0
            self.inner.bias[2] = 60.0

    def forward(self, x):
        self.before = self.inner(x)
        return self.function(self.before)


def recorded(model, batches, every=1, **options):
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with gradscope.attach(
        model, optimizer=optimizer, out=None, every=every, update_every=1, **options
    ) as scope:
        for x in batches:
            model(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    run = scope.run()
    assert not run.meta["errors"]
    return run


def slopes(model, x, name):
    """|f'| at every element by autograd, relative to the function's largest."""
    model(x)
    before = model.before.detach().double().requires_grad_()
    (slope,) = torch.autograd.grad(FUNCTIONS[name](before).sum(), before)
    return slope.abs() / LARGEST.get(name, 1.0)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_fractions_equal_those_of_autograds_slopes(name, conv):
    torch.manual_seed(0)
    model = Layer(FUNCTIONS[name], conv)
    x = torch.randn(16, 3, 8, 8) if conv else torch.randn(40, 5)
    run = recorded(model, [x])
    flat = slopes(model, x, name) < FLAT
    units = flat.movedim(1, -1).reshape(-1, flat.shape[1])
    row = run.frame("activation").set_index("metric")["value"]
    assert row["saturated_fraction"] == pytest.approx(float(flat.double().mean()), abs=0.004)
    assert row["dead_fraction"] == pytest.approx(float(units.all(0).double().mean()))
    assert 0 < row["dead_fraction"] < 1 or name in ("elu",)


def test_a_unit_is_dead_once_it_was_flat_in_the_whole_window():
    units = Units()
    on, off = torch.tensor([True, True]), torch.tensor([False, True])
    assert units.dead(off) == 0.5  # never seen active so far
    assert units.dead(on) == 0
    shares = [float(units.dead(off)) for _ in range(WINDOW + 2)]
    assert shares == [0.0] * (WINDOW - 1) + [0.5] * 3
    assert units.dead(on) == 0


def test_batches_of_one_do_not_look_dead_for_long():
    torch.manual_seed(0)
    model = Layer(torch.relu)
    with torch.no_grad():
        model.inner.bias.zero_()
    run = recorded(model, torch.randn(30, 1, 5))
    dead = run.wide("activation", "dead_fraction").iloc[:, 0]
    assert dead[0] > 0.2
    assert dead.iloc[8:].max() < 0.1


@pytest.mark.parametrize("dimension", [-1, 1])
def test_a_sample_holds_whole_rows(dimension):
    x = torch.arange(64 * 6 * 40 * 40.0).view(64, 6, 40, 40)
    rows = sampled_units(x, dimension)
    assert SAMPLE_ELEMENTS / 4 <= rows.numel() <= 2 * SAMPLE_ELEMENTS
    everything = {
        tuple(r) for r in x.movedim(dimension, -1).reshape(-1, x.shape[dimension]).tolist()
    }
    assert all(tuple(r) in everything for r in rows[:50].tolist())


def test_activations_take_turns():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1, update_every=4) as scope:
        for _ in range(9):
            model(torch.randn(8, 4)).sum().backward()
            optimizer.step()
    table = scope.run().frame("activation", "saturated_fraction")
    steps = table.groupby("site")["step"].apply(list)
    assert sorted(steps) == [[0, 7], [0, 8]]


def test_under_checkpointing_activations_are_left_alone():
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    torch.manual_seed(0)
    run = recorded(Checkpointed(), [torch.randn(8, 4)] * 2)
    assert len(run.frame("activation")) == 0
    assert len(run.frame("parameter")) > 0


def test_a_run_that_has_diverged_tells_nothing_of_its_units():
    torch.manual_seed(0)
    x = torch.randn(40, 5)
    run = recorded(Layer(torch.relu), [x, x * torch.nan])
    for metric in ("dead_fraction", "saturated_fraction"):
        first, lost = run.frame("activation", metric)["value"]
        assert first == first and lost != lost


def test_an_expert_that_nothing_is_sent_to():
    """An activation of no rows has no share of anything; the others go on being measured."""

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(Layer(torch.relu) for _ in range(2))

        def forward(self, x):
            first, second = self.experts
            some = x[:, 0] > 0
            return torch.cat([first(x[some]), second(x[~some])])

    torch.manual_seed(0)
    x = torch.randn(12, 5)
    run = recorded(Experts(), [x.abs(), x, x.abs()])
    shares = run.wide("activation", "saturated_fraction")
    assert shares["experts.0"].notna().sum() == 3
    assert shares["experts.1"].dropna().index.tolist() == [1]
