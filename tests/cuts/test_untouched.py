"""Looking changes nothing."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack

from gradscope.capture.scope import attach
from gradscope.cuts import bottlenecks

B = 4


class Everything(nn.Module):
    """Running statistics, random numbers, power iteration, renormalised words."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8, max_norm=0.5)
        self.norm = nn.BatchNorm1d(8)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(8))
        self.register_buffer("count", None)
        self.head = nn.Linear(8, 2)

    def forward(self, words):
        x = self.norm(self.words(words).mean(1)) + random.random() + float(np.random.rand())  # noqa: NPY002
        self.seen = self.seen + x.detach().mean(0)
        return self.head(self.dropout(self.spectral(x)))


def make():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    model = Everything()
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(model, optimizer, look):
    losses = []
    words = torch.randint(0, 20, (6, B, 5))
    for batch in words:
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        look(model, batch)
        loss.backward()
        look(model, batch)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("backward", [False, True])
def test_training_is_the_same_to_the_last_bit(backward):
    def look(model, batch):
        def closure():
            loss = model(batch).square().mean()
            if backward:
                model.zero_grad()
                loss.backward()
            return loss

        assert bottlenecks(model, closure)[0].width == 2

    plain = make()
    observed = make()
    torch.manual_seed(1)
    expected = train(*plain, lambda model, batch: None)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(1)
    assert train(*observed, look) == expected
    for name, value in plain[0].state_dict().items():
        assert torch.equal(value, observed[0].state_dict()[name]), name


def traces(model):
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_always_called))
        for m in model.modules()
    ]
    everywhere = (
        len(torch_module._global_forward_hooks),
        len(torch_module._global_forward_pre_hooks),
        len(_get_current_function_mode_stack()),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )
    return hooks, everywhere


def state(model):
    return (
        [(n, t.clone(), id(t)) for n, t in model.named_buffers()],
        [(n, None if p.grad is None else p.grad.clone()) for n, p in model.named_parameters()],
        torch.get_rng_state(),
        random.getstate(),
        repr(np.random.get_state()),  # noqa: NPY002
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("grad_enabled", [True, False])
@pytest.mark.parametrize("fail", ["not at all", "in the model", "after it", "in backward"])
def test_nothing_is_left_behind(fail, grad_enabled):
    model, _ = make()
    words = torch.randint(0, 20, (B, 5))
    model(words).sum().backward()
    if fail == "in the model":
        model.head.forward = lambda x: 1 / 0

    def closure():
        out = model(words)
        if fail == "after it":
            raise ZeroDivisionError
        if fail == "in backward":
            out.register_hook(lambda g: 1 / 0)
            out.sum().backward()
        return out.sum()

    with torch.set_grad_enabled(grad_enabled):
        before = copy.deepcopy(traces(model)), state(model)
        if fail == "not at all":
            bottlenecks(model, closure)
        else:
            with pytest.raises(ZeroDivisionError):
                bottlenecks(model, closure)
        assert traces(model) == before[0]
        assert same(state(model), before[1])


def test_a_backward_pass_in_waiting_is_not_disturbed():
    """Buffers that nothing wrote to are not written to either."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    x = torch.randn(B, 4)
    loss = model(x).sum()
    bottlenecks(model, lambda: model(x).sum())
    loss.backward()


def test_the_graph_is_let_go():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    freed = []

    class Noticed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark = Mark()
            return x * 1

        @staticmethod
        def backward(ctx, g):
            return g

    class Mark:
        def __del__(self):
            freed.append(1)

    bottlenecks(model, lambda: Noticed.apply(model(torch.randn(B, 4))))
    assert freed == [1]


def test_a_recording_in_progress_is_not_disturbed():
    def record(look):
        model, optimizer = make()
        with attach(model, optimizer=optimizer, out=None, every=1) as scope:
            for batch in torch.randint(0, 20, (3, B, 5)):
                look(model, batch)
                loss = model(batch).square().mean()
                look(model, batch)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            run = scope.run()
        table = run.frame()
        return table[table["site"] != "step_seconds"].reset_index(drop=True), run.meta["errors"]

    expected, _ = record(lambda model, batch: None)
    found, errors = record(lambda model, batch: bottlenecks(model, lambda: model(batch).sum()))
    assert not errors
    assert found.equals(expected)
    assert len(found) > 100
