"""Settings of the whole suite."""

import torch

# Small tensors are fastest with one thread, and two workers would fight over the cores.
torch.set_num_threads(1)
