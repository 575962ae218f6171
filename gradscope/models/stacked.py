"""Stacked attention (SAN): only the content vector goes from layer to layer."""

from __future__ import annotations

from torch import Tensor, nn

from gradscope.models.attention import Attention
from gradscope.models.query import Query, checked, next_query


class StackedAttention(nn.Module):
    """K attention layers, each asked with what the one before it found.

    Yang et al., *Stacked Attention Networks for Image Question Answering*, CVPR 2016:
    layer k attends to the same features v with the query u^k, u^1 = h, and u^{k+1} is made
    of its content z^k (see `next_query`). What a layer worked out about positions, its latent
    state and its heat map, is not handed on.

    Args:
        dim: D, of features, question and content.
        layers: K.
        latent_dim: H, of the latent state; D by default.
        query: "residual", "anchored" or "chain".

    Attributes:
        out_dim: size of what `forward` returns.
    """

    def __init__(
        self, dim: int, layers: int, *, latent_dim: int | None = None, query: Query = "residual"
    ) -> None:
        super().__init__()
        self.query = checked(query)
        self.layers = nn.ModuleList(Attention(dim, dim, latent_dim or dim) for _ in range(layers))
        self.out_dim = dim

    def forward(self, features: Tensor, question: Tensor) -> Tensor:
        """u^{K+1} (B, D), from features v (B, N, D) and the question state h (B, D)."""
        query = question
        for layer in self.layers:
            content = layer(features, query).content
            query = next_query(self.query, question, query, content)
        return query
