"""Settings of the whole suite."""

import torch
from hypothesis import HealthCheck, settings

# Small tensors are fastest with one thread, and two workers would fight over the cores.
torch.set_num_threads(1)

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
