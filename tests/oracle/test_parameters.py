"""Parameters: the gradient the optimizer used, and what it made of it."""

import copy

import pytest
import torch
from torch import nn

from tests.reference.cases import CASES
from tests.reference.gradients import norm
from tests.reference.networks import data, weighted
from tests.reference.recording import record, train_steps, values

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd, momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adam, fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))


def loss_of(model, step):
    return weighted(model(data(step, 5, 3)))


def reference(model, optimizer, steps, clip=None):
    """By step: gradient norms as the step begins, weight norms, and update ratios."""
    grads, weights, ratios = [], [], []
    for step in range(steps):
        loss_of(model, step).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        named = [(n, p) for n, p in model.named_parameters() if p.grad is not None]
        before = {n: p.detach().clone() for n, p in named}
        grads.append({n: norm(p.grad) for n, p in named})
        optimizer.step()
        optimizer.zero_grad()
        weights.append({n: norm(w) for n, w in before.items()})
        ratios.append(
            {
                n: norm(p.detach().double() - before[n].double()) / norm(before[n])
                for n, p in named
                if norm(before[n])
            }
        )
    return grads, weights, ratios


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_weights_and_updates_at_every_step(name, clip):
    model = net()
    twin = copy.deepcopy(model)

    def after_backward(_step):
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)

    optimizer = OPTIMIZERS[name](model.parameters())
    run = record(
        model,
        lambda o: train_steps(model, loss_of, o, 4, after_backward=after_backward),
        optimizer=optimizer,
    )
    grads, weights, ratios = reference(twin, OPTIMIZERS[name](twin.parameters()), 4, clip)
    for step in range(4):
        assert values(run, "parameter", "grad_norm", step) == pytest.approx(grads[step], rel=1e-5)
        rms = {n: v / twin.get_parameter(n).numel() ** 0.5 for n, v in grads[step].items()}
        assert values(run, "parameter", "grad_rms", step) == pytest.approx(rms, rel=1e-5)
        found = values(run, "parameter", "weight_norm", step)
        assert found == pytest.approx(weights[step], rel=1e-5)
        ratio = values(run, "parameter", "update_ratio", step)
        assert {n: ratio[n] for n in ratios[step]} == pytest.approx(ratios[step], rel=1e-4)


def test_parameters_take_turns():
    """update_every=3: each parameter within any three steps, and right when it is measured."""
    model = net()
    twin = copy.deepcopy(model)
    steps = 12
    run = record(model, lambda o: train_steps(model, loss_of, o, steps), update_every=3)
    _, weights, ratios = reference(twin, torch.optim.SGD(twin.parameters(), lr=0.01), steps)
    measured = {n: [] for n, _ in model.named_parameters()}
    for step in range(steps):
        for metric, expected in (("update_ratio", ratios), ("weight_norm", weights)):
            for n, value in values(run, "parameter", metric, step).items():
                if n in expected[step]:
                    assert value == pytest.approx(expected[step][n], rel=1e-4)
        for n in values(run, "parameter", "update_ratio", step):
            measured[n].append(step)
    for at in measured.values():
        gaps = [b - a for a, b in zip([-1, *at], [*at, steps], strict=True)]
        assert max(gaps) <= 3
    assert sum(map(len, measured.values())) < len(measured) * (steps / 3 + 1.5)


def test_weights_that_start_at_zero():
    """An update from 0 has no ratio; nothing recorded is infinite or NaN for it."""
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.bias)
    run = record(model, lambda o: train_steps(model, loss_of, o, 2))
    assert values(run, "parameter", "weight_norm", 0)["bias"] == 0
    ratio = values(run, "parameter", "update_ratio", 0).get("bias")
    assert ratio is None or ratio == ratio  # not NaN
    assert "bias" in values(run, "parameter", "update_ratio", 1)


def test_frozen_and_unused_parameters_have_no_gradient():
    case = CASES["frozen parts"]
    model, _ = case.pair()
    model.spare = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    run = record(model, lambda o: train_steps(model, case.loss, o, 2), optimizer=optimizer)
    expected = {"second.weight", "second.bias", "head.weight", "head.bias"}
    for step in range(2):
        assert values(run, "parameter", "grad_norm", step).keys() == expected


def test_thawed_in_the_middle():
    """A parameter gets rows from the step on at which it is trained."""
    model = net()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def thaw(step):
        if step == 1:
            model[0].requires_grad_(True)

    run = record(
        model, lambda o: train_steps(model, loss_of, o, 4, after_backward=thaw), optimizer=optimizer
    )
    for step in range(4):
        assert ("0.weight" in values(run, "parameter", "grad_norm", step)) == (step >= 2)


def test_parameter_groups_added_while_training():
    model = net()
    optimizer = torch.optim.SGD(model[3].parameters(), lr=0.1)

    def add(step):
        if step == 1:
            optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.05})

    run = record(
        model, lambda o: train_steps(model, loss_of, o, 3, after_backward=add), optimizer=optimizer
    )
    assert values(run, "parameter", "update_ratio", 0).get("0.weight", 0) == 0
    assert values(run, "parameter", "update_ratio", 2)["0.weight"] > 0


def test_tied_weights_are_one_parameter():
    case = CASES["tied weights"]
    model, twin = case.pair()
    run = record(model, lambda o: train_steps(model, case.loss, o, 1))
    case.loss(twin, 0).backward()
    expected = {n: norm(p.grad) for n, p in twin.named_parameters()}
    assert "out.weight" not in expected
    assert values(run, "parameter", "grad_norm") == pytest.approx(expected, rel=1e-5)


def test_sparse_gradients():
    """nn.Embedding(sparse=True): duplicated rows are added before the norm is taken."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 2))
    twin = copy.deepcopy(model)
    tokens = torch.tensor([[1, 2, 1, 1], [3, 2, 8, 1]])
    run = record(model, lambda o: train_steps(model, lambda m, _: weighted(m(tokens)), o, 1))
    weighted(twin(tokens)).backward()
    expected = {n: norm(p.grad.to_dense()) for n, p in twin.named_parameters()}
    assert run.meta["errors"] == []
    assert values(run, "parameter", "grad_norm") == pytest.approx(expected, rel=1e-5)
