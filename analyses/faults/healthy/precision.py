"""Lower precision, as it should be used."""

import torch

from analyses.faults import setups
from analyses.faults.case import Healthy
from analyses.faults.causes.underflow import autocast, scaled_step
from analyses.faults.training import Training


def bfloat16(training: Training) -> Training:
    return autocast(training, torch.bfloat16)


def float16(training: Training) -> Training:
    training = autocast(training)
    training.step = scaled_step(2.0**12)
    return training


RUNS = Healthy(
    "precision",
    {
        "bf16-mlp": lambda: bfloat16(setups.mlp(depth=4)),
        "bf16-transformer": lambda: bfloat16(setups.transformer()),
        "fp16-scaler-mlp": lambda: float16(setups.mlp(depth=3)),
        "fp16-scaler-conv": lambda: float16(setups.conv(depth=3, steps=100)),
        "bf16-conv": lambda: bfloat16(setups.conv(depth=3, norm=True, steps=100)),
        "fp16-scaler-transformer": lambda: float16(setups.transformer(steps=100, lr=1e-3)),
    },
)
