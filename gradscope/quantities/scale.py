"""Scale of data: is it of the size that layers are initialised for?"""

from __future__ import annotations

import torch
from torch import Tensor

SAMPLE_ELEMENTS = 1 << 13


def data_scale(x: Tensor) -> Tensor:
    """(RMS, |mean|/standard deviation, RMS of the largest feature). x: (B, …) → (3,).

    Features are the last dimension of x (B, F) or (B, T, F), the channels of images
    (B, C, H, W). Measured on samples of the batch evenly spaced, at most about 8,192 numbers.
    """
    x = x.detach()
    if x.dim() >= 4:
        x = x.movedim(1, -1)
    x = x.reshape(-1, x.shape[-1]) if x.dim() > 1 else x.reshape(-1, 1)
    step = -(-x.numel() // SAMPLE_ELEMENTS)
    x = x[::step].double()
    features = x.square().mean(0)
    rms = features.mean().sqrt()
    mean = x.mean()
    spread = (rms * rms - mean * mean).clamp(min=0).sqrt()
    return torch.stack([rms, mean.abs() / spread, features.max().sqrt()])
