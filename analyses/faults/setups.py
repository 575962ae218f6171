"""Healthy training runs with knobs: what cases are made of. Each call builds one anew."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradscope
from analyses.faults import data, nets
from analyses.faults.training import Training
from gradscope.models import build
from gradscope.tasks import Arrows

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of (B, C) logits and (B,) classes, or (B, T, C) and (B, T)."""
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def squared_error(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


def reconstruction(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    """The input is the target, whatever else a batch holds."""
    return F.mse_loss(model(x), x)


def assemble(
    model: nn.Module,
    batch: data.Batches,
    loss: Callable[..., Tensor] = cross_entropy,
    *,
    optimizer: str = "adam",
    lr: float = 1e-3,
    **others: Any,
) -> Training:
    """A training of all of a model's parameters."""
    return Training(model, batch, loss, OPTIMIZERS[optimizer](model.parameters(), lr=lr), **others)


def mlp(
    *,
    depth: int = 3,
    width: int = 48,
    activation: nets.Activation = nn.ReLU,
    gain: float | None = None,
    norm: Callable[[int], nn.Module] | None = None,
    dropout: float = 0.0,
    on: str = "digits",
    optimizer: str = "sgd",
    lr: float = 0.1,
    seed: int = 0,
    batch: int = 64,
    **others: Any,
) -> Training:
    """A multi-layer perceptron. `gain`: std of a weight times √fan_in; None: torch's default."""
    torch.manual_seed(seed)
    inputs, outputs, batches, loss = {
        "digits": lambda: (64, 10, data.digits(batch), cross_entropy),
        "teacher": lambda: (20, 5, data.teacher(batch), cross_entropy),
        "regression": lambda: (8, 1, data.regression(batch), squared_error),
        "reconstruction": lambda: (64, 64, data.digits(batch), reconstruction),
    }[on]()
    model = nets.mlp([inputs, *[width] * depth, outputs], activation, norm=norm, dropout=dropout)
    if gain is not None:
        nets.rescale(model, gain)
    return assemble(model, batches, loss, optimizer=optimizer, lr=lr, **others)


def residual_mlp(
    *,
    blocks: int = 4,
    width: int = 48,
    norm: bool = False,
    optimizer: str = "sgd",
    lr: float = 0.03,
    seed: int = 0,
    on: str = "digits",
    **others: Any,
) -> Training:
    torch.manual_seed(seed)
    inputs, classes = (64, 10) if on == "digits" else (20, 5)
    model = nets.ResidualMLP(inputs, width, blocks, classes, norm=norm)
    batches = data.digits() if on == "digits" else data.teacher()
    return assemble(model, batches, optimizer=optimizer, lr=lr, **others)


def conv(
    *,
    depth: int = 4,
    channels: int = 12,
    norm: bool = False,
    skip: bool = False,
    activation: nets.Activation = nn.ReLU,
    gain: float | None = 1.4,
    optimizer: str = "momentum",
    lr: float = 0.01,
    seed: int = 0,
    batch: int = 32,
    **others: Any,
) -> Training:
    """A convolutional network on the digits."""
    torch.manual_seed(seed)
    model = nets.ConvNet(depth, channels, norm=norm, skip=skip, activation=activation)
    if gain is not None:
        nets.rescale(model, gain)
    return assemble(model, data.digits(batch, image=True), optimizer=optimizer, lr=lr, **others)


def cell(
    kind: str = "gru",
    *,
    length: int = 8,
    hidden: int = 24,
    radius: float = 1.0,
    on: str = "first",
    optimizer: str = "adam",
    lr: float = 5e-3,
    seed: int = 0,
    **others: Any,
) -> Training:
    """A recurrent cell called at every step. `radius`: of the recurrent weights at first."""
    torch.manual_seed(seed)
    inputs, classes = (5, 4) if on == "first" else (2, 2)
    made: nn.Module
    if kind == "relu":
        made = nets.ReluCell(inputs, hidden, radius)
    else:
        made = {"tanh": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}[kind](inputs, hidden)
    if isinstance(made, nn.RNNCell):
        nn.init.orthogonal_(made.weight_hh, gain=radius)
    batches = data.first_symbol(length=length) if on == "first" else data.majority(length=length)
    return assemble(
        nets.CellNet(made, hidden, classes), batches, optimizer=optimizer, lr=lr, **others
    )


def sequence(
    kind: Callable[..., nn.RNNBase] = nn.GRU,
    *,
    length: int = 8,
    hidden: int = 24,
    layers: int = 1,
    on: str = "first",
    optimizer: str = "adam",
    lr: float = 5e-3,
    seed: int = 0,
    **others: Any,
) -> Training:
    """A fused recurrent module."""
    torch.manual_seed(seed)
    inputs, classes = (5, 4) if on == "first" else (2, 2)
    model = nets.SequenceNet(kind(inputs, hidden, layers, batch_first=True), classes)
    batches = data.first_symbol(length=length) if on == "first" else data.majority(length=length)
    return assemble(model, batches, optimizer=optimizer, lr=lr, **others)


def transformer(
    *,
    on: str = "text",
    depth: int = 2,
    dim: int = 32,
    heads: int = 2,
    norm: str = "pre",
    skip: bool = True,
    optimizer: str = "adam",
    lr: float = 3e-3,
    seed: int = 0,
    batch: int = 16,
    **others: Any,
) -> Training:
    """On "text" and "repeated": causal, an output a position. On "marked": one a sample.

    On "lookup" that output is read at the first position, so that attention has to fetch it.
    """
    torch.manual_seed(seed)
    shape: dict[str, Any] = {"depth": depth, "dim": dim, "heads": heads, "norm": norm, "skip": skip}
    if on in ("marked", "lookup"):
        model = nets.Transformer(9, 8, pool="mean" if on == "marked" else "first", **shape)
        batches = data.marked(batch)
    else:
        model = nets.Transformer(16, 16, symbols=True, pool="none", causal=True, **shape)
        batches = data.text(batch) if on == "text" else data.repeated(batch)
    return assemble(model, batches, optimizer=optimizer, lr=lr, **others)


def pool(
    *,
    dim: int = 32,
    positions: int = 16,
    temperature: float | None = None,
    optimizer: str = "adam",
    lr: float = 1e-2,
    seed: int = 0,
    **others: Any,
) -> Training:
    """One look at a set of positions: which value is marked?"""
    torch.manual_seed(seed)
    model = nets.AttentionPool(9, 8, dim, temperature)
    batches = data.marked(64, positions)
    return assemble(model, batches, optimizer=optimizer, lr=lr, **others)


def arrows(
    name: str,
    *,
    layers: int,
    hidden: int = 32,
    hops: int = 1,
    optimizer: str = "adam",
    lr: float = 3e-3,
    seed: int = 0,
    batch: int = 32,
    steps: int = 300,
    every: int = 10,
    bottlenecks: bool = False,
    crossings: bool = False,
    **others: Any,
) -> Training:
    """A stack of attention layers of gradscope.models follows arrows on a 3 × 3 torus."""
    torch.manual_seed(seed)
    task = Arrows(size=3, hops=hops)
    scenes = task.scenes(4000, seed)

    def draw(step: int) -> tuple[Tensor, ...]:
        random = torch.Generator().manual_seed(step)
        index = torch.randint(4000, (batch,), generator=random)
        some = scenes.pick(index)
        return (*task.inputs(some), some.answer)

    def loss(model: nn.Module, cells: Tensor, question: Tensor, answer: Tensor) -> Tensor:
        return F.cross_entropy(model(cells, question), answer)

    def watch(scope: gradscope.Scope, training: Training) -> None:
        if bottlenecks:
            scope.bottlenecks(lambda: training.loss_at(0))
        if crossings:
            scope.crossings(every=50)

    model = build(name, task, layers=layers, hidden=hidden)
    return assemble(
        model,
        draw,
        loss,
        optimizer=optimizer,
        lr=lr,
        watch=watch,
        steps=steps,
        every=every,
        **others,
    )


def with_bottlenecks(training: Training, ranks: str = "") -> Training:
    """Ask for minimum cuts and, by a pattern of modules, effective ranks."""

    def watch(scope: gradscope.Scope, training: Training) -> None:
        scope.bottlenecks(lambda: training.loss_at(0))
        if ranks:
            scope.effective_rank(ranks, every=25)

    training.watch = watch
    return training
