"""Effective rank of what passes a place: how many directions it really uses.

Participation ratio (Σλ)²/Σλ² of the eigenvalues λ of the covariance over the batch. It lies
between 1 and min(B − 1, n), B samples of n numbers. Both sums are traces that the Gram
matrix of the centred samples shares with the covariance, Σλ = tr G and Σλ² = ‖G‖_F², so that
B × B is formed, never n × n.
"""

from __future__ import annotations

import torch
from torch import Tensor


def effective_rank(x: Tensor) -> float:
    """Participation ratio of a batch x (B, ...), each sample taken as one vector.

    NaN for fewer than two samples, or samples that are all alike.
    """
    rows = x.detach().flatten(1).to(torch.float64 if x.device.type != "mps" else torch.float32)
    if rows.shape[0] < 2:
        return float("nan")
    rows = rows - rows.mean(0)
    largest = rows.abs().max()
    if not largest > 0:
        return float("nan")
    rows = rows / largest
    gram = rows @ rows.T  # (B, B)
    return float(gram.trace() ** 2 / gram.square().sum())
