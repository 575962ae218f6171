"""Training loops as users write them, around one small transformer.

Every loop is a `Loop`; its `train` draws its data from the step's number, and runs alike with and
without a recording around it.
"""

import copy
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.reference.networks import data, encoder, weighted

STEPS = 3
ALL = ("module gradients", "forks", "softmaxes", "parameters", "updates")


class Net(nn.Module):
    """Attention (fused) between two layers; dropout; hands its hidden tensor out too."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.dropout = nn.Dropout(0.2)
        self.encoder = encoder(0.0).layers[0]
        self.head = nn.Linear(8, 2)
        self.fails = False

    def forward(self, x):
        hidden = self.encoder(self.dropout(self.embed(x)))
        if self.fails:
            raise RuntimeError("out of luck")
        return self.head(hidden), hidden


@dataclass
class Loop:
    """A way of training.

    Attributes:
        train: (model, optimizer) -> losses.
        twin: what a twin does that is observed, where its hooks would be in the way: the same
            without what must not make a difference. `train` by default.
        optimizer: (parameters) -> optimizer.
        shows: columns of the support matrix that can be compared with an `Observer`.
        rel: relative tolerance of that.
        scale: by which the loss is multiplied before its backward pass.
    """

    train: Callable[[nn.Module, Any], list]
    optimizer: Callable[[Any], torch.optim.Optimizer] = field(
        default=lambda p: torch.optim.AdamW(p, lr=0.01)
    )
    shows: tuple[str, ...] = ALL
    rel: float = 1e-5
    scale: float = 1.0
    twin: Callable[[nn.Module, Any], list] | None = None


def batch(step, size=2):
    return data(step, size, 5, 3)


def answer(model, step, size=2):
    return weighted(model(batch(step, size))[0])


def simple(before=lambda model, step: None, loss_of=answer, between=lambda model, step: None):
    """train: an ordinary loop with something added to it."""

    def train(model, optimizer):
        losses = []
        for step in range(STEPS):
            before(model, step)
            loss = loss_of(model, step)
            between(model, step)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return losses

    return train


def accumulation(*sizes):
    """Micro-batches of these sizes."""

    def train(model, optimizer):
        losses = []
        for step in range(STEPS):
            for micro, size in enumerate(sizes):
                loss = answer(model, 10 * step + micro, size) / len(sizes)
                loss.backward()
                losses.append(loss.detach())
            optimizer.step()
            optimizer.zero_grad()
        return losses

    return train


def zeroed_before(model, optimizer):
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=False)
        loss = answer(model, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def autocast(model, step):
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = model(batch(step))
    return weighted(y.float())


SCALE = 2.0**10


def scaled(model, optimizer):
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    losses = []
    for step in range(STEPS):
        with torch.autocast("cpu", torch.float16):
            y, _ = model(batch(step))
        loss = weighted(y.float())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def summed(model, step):
    """A main loss, one that is reduced otherwise, and one of the hidden tensor."""
    y, hidden = model(batch(step))
    return weighted(y) + 0.3 * F.softplus(y).mean() + hidden.square().sum(-1).mean()


def one_after_the_other(model, optimizer):
    """Each loss has a backward pass of its own, through one graph."""
    losses = []
    for step in range(STEPS):
        y, hidden = model(batch(step))
        first, second = weighted(y), hidden.square().mean()
        first.backward(retain_graph=True)
        second.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses += [first.detach(), second.detach()]
    return losses


def with_closure(model, optimizer):
    losses = []
    for step in range(STEPS):

        def closure(step=step):
            optimizer.zero_grad()
            loss = answer(model, step)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).detach())
    return losses


def evaluated(model, step):
    model.eval()
    with torch.no_grad():
        model(batch(90 + step, 3))
    model.train()


def predicted(model, step):
    with torch.inference_mode():
        model(batch(80 + step, 3))


def tried(model, step):
    """A forward pass that breaks off in its middle."""
    model.fails = True
    with suppress(RuntimeError):
        model(batch(70 + step))
    model.fails = False


def averaged():
    """An exponential moving average beside the model, evaluated at every step."""
    shadows = {}

    def update(model, step):
        if model not in shadows:
            shadows[model] = torch.optim.swa_utils.AveragedModel(model).eval()
        shadows[model].update_parameters(model)
        answer(shadows[model], step).backward()

    return simple(before=update)


def copied(model, step):
    """Checkpoints in memory, which go on to do something else."""
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert list(model.state_dict()) == list(twin.state_dict())
        answer(twin.eval(), step).backward()


def scheduled(model, optimizer):
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=STEPS)
    losses = []
    for step in range(STEPS):
        loss = answer(model, step)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def by_grad(model, optimizer):
    """Gradients by `torch.autograd.grad`, written into `.grad`."""
    losses = []
    parameters = list(model.parameters())
    for step in range(STEPS):
        loss = answer(model, step)
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = g
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def per_sample(layer_of):
    """The spread of per-sample gradients by torch.func, beside an ordinary loss."""

    def loss_of(model, step):
        layer = layer_of(model)
        parameters = {n: p.detach() for n, p in model.head.named_parameters()}

        def sample_loss(parameters, x):
            return torch.func.functional_call(layer, parameters, (x,)).square().sum()

        y, hidden = model(batch(step))
        each = torch.func.vmap(torch.func.grad(sample_loss), in_dims=(None, 0))(
            parameters, hidden.detach().flatten(0, 1)
        )
        return weighted(y) * (1 + sum(g.var(0).sum() for g in each.values()))

    return simple(loss_of=loss_of)


LAYER = nn.Linear(8, 2)  # like the head, but no part of any model


def penalized(model, step):
    """A gradient penalty: a backward pass with a graph of its own."""
    x = batch(step).requires_grad_()
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):  # has second derivatives
        y, _ = model(x)
    (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    return weighted(y) + slope.square().sum()


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)


def groups(parameters):
    first, *others = parameters
    return torch.optim.SGD([{"params": [first], "lr": 0.5}, {"params": others}], lr=0.01)


# Forks are compared where every graph of a step has the same ones, and the backward pass begins
# at `Tensor.backward`.
WITHOUT_FORKS = tuple(c for c in ALL if c != "forks")

LOOPS = {
    "plain": Loop(simple()),
    "gradient accumulation": Loop(accumulation(2, 2, 2)),
    "gradient accumulation, batches of several sizes": Loop(accumulation(2, 4, 3)),
    "zero_grad(set_to_none=False), before the pass": Loop(zeroed_before),
    "bf16 autocast": Loop(simple(loss_of=autocast), rel=1e-4),
    "fp16 autocast, GradScaler": Loop(scaled, rel=1e-4, scale=SCALE),
    "several losses, summed": Loop(simple(loss_of=summed)),
    "several losses, a backward pass each, retain_graph": Loop(
        one_after_the_other, shows=WITHOUT_FORKS
    ),
    "step(closure)": Loop(with_closure),
    "LBFGS": Loop(with_closure, lbfgs),
    "evaluation between steps": Loop(simple(before=evaluated)),
    "evaluation between forward and backward": Loop(simple(between=evaluated)),
    "inference_mode between forward and backward": Loop(simple(between=predicted)),
    "exception in a forward pass": Loop(simple(before=tried)),
    "moving average of the model beside it": Loop(averaged(), twin=simple()),
    "deepcopy and pickle of the model at every step": Loop(simple(before=copied), twin=simple()),
    "learning rate schedule": Loop(scheduled),
    "parameter groups": Loop(simple(), groups),
    "fused optimizer": Loop(simple(), lambda p: torch.optim.AdamW(p, lr=0.01, fused=True)),
    "foreach optimizer": Loop(simple(), lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True)),
    "torch.autograd.grad into .grad": Loop(by_grad, shows=WITHOUT_FORKS),
    "torch.func beside it": Loop(
        per_sample(lambda model: model.head), twin=per_sample(lambda _: LAYER)
    ),
    "gradient penalty, create_graph": Loop(
        simple(loss_of=penalized), shows=("parameters", "updates")
    ),
}
