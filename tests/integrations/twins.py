"""What two trainings must share: one with a callback of gradscope, one without."""

import random

import numpy as np
import torch

from tests.reference.gradients import norm


def outcome(model, optimizers, losses):
    """Everything a training leaves, in one list to compare: call it right after training."""
    found = [*model.state_dict().values(), *losses, torch.get_rng_state(), random.getstate()]
    found += np.random.get_state()[1].tolist()  # noqa: NPY002
    for optimizer in optimizers:
        states = optimizer.state_dict()["state"]
        found += [v for _, state in sorted(states.items()) for v in state.values()]
    return found


def assert_identical(plain, watched):
    """Bit for bit."""
    assert len(plain) == len(watched)
    for a, b in zip(plain, watched, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def weight_norms(weights):
    """name -> norm, of name -> weight."""
    return {n: norm(w) for n, w in weights.items()}


def update_ratios(before, after):
    """name -> ‖w_after − w_before‖ / ‖w_before‖, where there was something before."""
    return {n: norm(after[n].double() - w.double()) / norm(w) for n, w in before.items() if norm(w)}
