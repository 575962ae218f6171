"""Stacked latent attention (SLA): latent states go from layer to layer, too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradscope.models.attention import Attention
from gradscope.models.query import Query, checked, next_query


class StackedLatentAttention(nn.Module):
    """K attention layers, each also given the latent state of the one before it.

    Fan & Zhou, *Stacked Latent Attention for Multimodal Reasoning*, CVPR 2018: layer k + 1
    gets s^k concatenated at every position, so that the pathway s^1 → s^2 → … → s^K carries
    the spatial reasoning and crosses no softmax. Its end reaches the answer as the mean over
    positions, beside u^{K+1}.

    Args:
        dim: D, of features, question and content.
        layers: K.
        latent_dim: H, of the latent state; D by default.
        query: what layers are asked with: "residual", "anchored" or "chain".

    Attributes:
        out_dim: size of what `forward` returns.
    """

    def __init__(
        self, dim: int, layers: int, *, latent_dim: int | None = None, query: Query = "residual"
    ) -> None:
        super().__init__()
        latent_dim = latent_dim or dim
        self.query = checked(query)
        self.layers = nn.ModuleList(
            Attention(dim, dim, latent_dim, previous_dim=latent_dim if k else 0)
            for k in range(layers)
        )
        self.out_dim = dim + latent_dim

    def forward(self, features: Tensor, question: Tensor) -> Tensor:
        """[u^{K+1}; mean_i s_i^K] (B, D + H), from v (B, N, D) and h (B, D)."""
        query, latent = question, None
        for layer in self.layers:
            content, _, latent = layer(features, query, latent)
            query = next_query(self.query, question, query, content)
        assert latent is not None
        return torch.cat([query, latent.mean(dim=1)], dim=-1)
