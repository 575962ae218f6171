"""Learning rates that change, convergence, fine-tuning."""

from functools import partial

import torch
from torch import nn

from analyses.faults import data, setups
from analyses.faults.case import Healthy
from analyses.faults.training import Training

Schedule = torch.optim.lr_scheduler


def warm_up(training: Training, steps: int = 60) -> Training:
    """From a learning rate of 0."""
    training.schedule = Schedule.LambdaLR(training.optimizer, lambda n: min(1.0, n / steps))
    return training


def cosine(training: Training) -> Training:
    """Down to a learning rate of 0."""
    training.schedule = Schedule.CosineAnnealingLR(training.optimizer, training.steps)
    return training


def step_decay(training: Training) -> Training:
    training.schedule = Schedule.StepLR(training.optimizer, training.steps // 4, 0.1)
    return training


def one_cycle(training: Training, largest: float) -> Training:
    training.schedule = Schedule.OneCycleLR(
        training.optimizer, max_lr=largest, total_steps=training.steps + 1
    )
    return training


def converged(batch: int = 32, steps: int = 400) -> Training:
    """The same few samples until their loss is next to 0."""
    training = setups.mlp(depth=2, optimizer="adam", lr=5e-3, steps=steps, every=10)
    fixed = data.digits(batch)(0)
    training.batch = lambda step: fixed
    return training


def fine_tuned(lr: float = 1e-5) -> Training:
    """Trained already; goes on with a small learning rate."""
    training = setups.mlp(depth=3, optimizer="adam", lr=2e-3, seed=1)
    for step in range(200):
        training.step(training, 10_000 + step)
    training.optimizer = torch.optim.AdamW(training.model.parameters(), lr=lr)
    return training


RUNS = Healthy(
    "schedules",
    {
        "warm-up-mlp": lambda: warm_up(setups.mlp(optimizer="adam", lr=2e-3)),
        "cosine-conv": lambda: cosine(setups.conv(lr=0.03)),
        "warm-up-transformer": lambda: warm_up(setups.transformer(depth=3), 100),
        "cosine-residual": lambda: cosine(setups.residual_mlp(optimizer="adam", lr=2e-3)),
        "step-decay": lambda: step_decay(setups.mlp(depth=4, optimizer="adam", lr=3e-3)),
        "one-cycle": lambda: one_cycle(setups.conv(depth=3, optimizer="sgd", lr=0.01), 0.1),
        "converged": converged,
        "converged-regression": lambda: _fixed_regression(),
        "fine-tuning": fine_tuned,
        "fine-tuning-1e-4": partial(fine_tuned, 1e-4),
    },
    flat={
        "fine-tuning": "trained already",
        "fine-tuning-1e-4": "trained already",
    },
)


def _fixed_regression() -> Training:
    training = setups.mlp(
        depth=2, on="regression", activation=nn.Tanh, optimizer="adam", lr=1e-2, steps=400, every=10
    )
    fixed = data.regression(16)(0)
    training.batch = lambda step: fixed
    return training
