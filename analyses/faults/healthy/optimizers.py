"""Every usual optimizer, batch size and network on a plain task."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from analyses.faults import data, setups
from analyses.faults.case import Healthy
from analyses.faults.training import Training


def lbfgs() -> Training:
    """`optimizer.step(closure)`: several evaluations a step."""
    training = setups.mlp(depth=2, on="regression", batch=256, steps=40, every=2)
    batch = data.regression(256)(0)
    training.batch = lambda step: batch
    training.optimizer = torch.optim.LBFGS(training.model.parameters(), lr=0.5, max_iter=4)

    def step(training: Training, number: int) -> dict[str, Any]:
        def closure() -> Tensor:
            training.optimizer.zero_grad()
            loss = training.loss_at(number)
            loss.backward()
            return loss.detach()

        return {"loss": training.optimizer.step(closure)}  # type: ignore[arg-type]

    training.step = step
    return training


def accumulated(parts: int) -> Training:
    """Gradients of several small batches add up to one step."""
    training = setups.mlp(depth=3, batch=16)

    def step(training: Training, number: int) -> dict[str, Any]:
        total = 0.0
        for part in range(parts):
            loss = training.loss_at(number * parts + part) / parts
            loss.backward()
            total += float(loss.detach())
        training.optimizer.step()
        training.optimizer.zero_grad()
        return {"loss": total}

    training.step = step
    return training


mlp = setups.mlp

RUNS = Healthy(
    "optimizers",
    {
        "sgd-relu": partial(mlp, depth=3),
        "momentum-gelu": partial(mlp, activation=nn.GELU, optimizer="momentum", lr=0.02),
        "adam-tanh": partial(mlp, activation=nn.Tanh, gain=1.0, optimizer="adam", lr=1e-3),
        "adamw-silu": partial(mlp, activation=nn.SiLU, optimizer="adamw", lr=1e-3),
        "adagrad": partial(mlp, optimizer="adagrad", lr=0.02),
        "rmsprop": partial(mlp, optimizer="rmsprop", lr=1e-3),
        "nesterov-norm": partial(mlp, norm=nn.LayerNorm, optimizer="nesterov", lr=0.02),
        "lbfgs": lbfgs,
        "batch-1": partial(mlp, batch=1, gain=1.4, lr=0.01, steps=500, every=10),
        "batch-1024": partial(mlp, batch=1024, steps=100),
        "accumulation": partial(accumulated, 4),
        "clipping": partial(mlp, depth=4, lr=0.2, clip=0.5),
        "dropout": partial(mlp, dropout=0.3, optimizer="adam", lr=2e-3),
        "batch-norm": partial(mlp, norm=nn.BatchNorm1d, depth=4),
        "he-init-8-relu": partial(mlp, depth=8, gain=1.41, lr=0.03),
        "teacher": partial(mlp, on="teacher", optimizer="adam", lr=2e-3),
        "regression": partial(mlp, on="regression", optimizer="adam", lr=2e-3),
        "residual-norm-8": partial(setups.residual_mlp, blocks=8, norm=True, optimizer="adam",
                                   lr=1e-3),
        "selu-deep": partial(mlp, depth=8, activation=nn.SELU, gain=1.0, lr=0.02),
        "leaky-relu": partial(mlp, activation=nn.LeakyReLU, depth=5, gain=1.4, lr=0.05),
    },
    flat={
        "batch-1": "the loss of single samples is noise",
    },
)  # fmt: skip
