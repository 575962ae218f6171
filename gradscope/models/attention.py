"""One attention layer: a question looks at N positions and reads a content vector."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Attended(NamedTuple):
    """What an attention layer returns.

    Attributes:
        content: (B, D), z = Σ_i p_i v_i.
        weights: (B, N), p: the heat map over positions, rows sum to 1.
        latent: (B, N, H), s: the layer's spatial reasoning, from which the heat map is made.
    """

    content: Tensor
    weights: Tensor
    latent: Tensor


class Attention(nn.Module):
    """Additive attention over positions, with an optional latent state from a layer before.

        s_i = tanh(W_v v_i + W_u u + b + W_s s'_i)      latent state
        p   = softmax_i(w · s_i)                        heat map
        z   = Σ_i p_i v_i                               content

    Without s' it is an attention layer of Yang et al., *Stacked Attention Networks for Image
    Question Answering*, CVPR 2016, equations 15-17. With it, it is one of Fan & Zhou,
    *Stacked Latent Attention for Multimodal Reasoning*, CVPR 2018, s_i = f(conv([v_i; u; s'_i])):
    a 1 × 1 convolution of a concatenation is a sum of one linear map for each part, which spares
    copying u to every position. The logits have no bias, to which a softmax is blind.

    It is as blind to all else that positions share. W_u u is the same at every position, so that
    a query steers attention by the curvature of tanh alone, and the smaller the features are,
    the less gradient comes back to it.

    Args:
        feature_dim: D, of the features at a position.
        query_dim: U, of the query.
        latent_dim: H, of the latent state.
        previous_dim: of the previous layer's latent state; 0 for a layer that gets none.
    """

    def __init__(
        self, feature_dim: int, query_dim: int, latent_dim: int, previous_dim: int = 0
    ) -> None:
        super().__init__()
        self.from_features = nn.Linear(feature_dim, latent_dim, bias=False)
        self.from_query = nn.Linear(query_dim, latent_dim)
        self.from_previous = (
            nn.Linear(previous_dim, latent_dim, bias=False) if previous_dim else None
        )
        self.score = nn.Linear(latent_dim, 1, bias=False)

    def forward(self, features: Tensor, query: Tensor, previous: Tensor | None = None) -> Attended:
        """Attend.

        Args:
            features: (B, N, D), v.
            query: (B, U), u.
            previous: (B, N, previous_dim), s', exactly where the layer was made for it.
        """
        reasons = self.from_features(features) + self.from_query(query).unsqueeze(1)
        if self.from_previous is not None:
            if previous is None:
                raise ValueError("this layer was made for a previous latent state: pass `previous`")
            reasons = reasons + self.from_previous(previous)
        elif previous is not None:
            raise ValueError("to use a previous latent state, make the layer with previous_dim")
        latent = torch.tanh(reasons)  # (B, N, H)
        weights = torch.softmax(self.score(latent).squeeze(-1), dim=-1)  # (B, N)
        content = torch.einsum("bn,bnd->bd", weights, features)
        return Attended(content, weights, latent)
