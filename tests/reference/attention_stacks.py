"""Stacked attention written out, small enough to count its numbers by hand.

Features v (B, N, V) at N positions, question h (B, V). Each layer: latent s = tanh(W v + U u)
(B, N, D), probabilities p = softmax(w·s) (B, N), content z = Σ p v (B, V), next query u + z.
"""

import torch
from torch import nn


def _linear(s, w):
    return nn.functional.linear(s, w[None]).squeeze(-1)


def _einsum(s, w):
    return torch.einsum("bnd,d->bn", s, w)


LOGITS = {
    "linear": _linear,
    "matrix-vector": lambda s, w: s @ w,
    "weighted sum": lambda s, w: (w * s).sum(-1),
    "einsum": _einsum,
    "scaled and masked": lambda s, w: (_linear(s, w) / 2 + 1).masked_fill(
        torch.zeros(s.shape[1], dtype=torch.bool), -1e9
    ),
    "capped": lambda s, w: 5 * torch.tanh(_linear(s, w) / 5),
}


class Attention(nn.Module):
    def __init__(self, V, D, logits="linear", latent_in=0):
        super().__init__()
        self.look, self.ask = nn.Linear(V + latent_in, D), nn.Linear(V, D, bias=False)
        self.weight = nn.Parameter(torch.randn(D))
        self.logits = LOGITS[logits]

    def forward(self, v, u, latent=None):
        looked = self.look(v if latent is None else torch.cat([v, latent], -1))
        s = torch.tanh(looked + self.ask(u)[:, None])
        p = self.logits(s, self.weight).softmax(-1)
        return torch.einsum("bn,bnv->bv", p, v), s


class Stacked(nn.Module):
    """Stacked attention; with `latents`, each layer also gets the previous one's latent state."""

    def __init__(self, layers, V, D, classes=50, latents=False, logits="linear"):
        super().__init__()
        self.latents = latents
        self.layers = nn.ModuleList(
            Attention(V, D, logits, D if latents and k else 0) for k in range(layers)
        )
        self.answer = nn.Linear(V + (D if latents else 0), classes)

    def forward(self, v, h):
        u, s = h, None
        for layer in self.layers:
            z, s = layer(v, u, s if self.latents else None)
            u = u + z
        return self.answer(torch.cat([u, s.mean(1)], -1) if self.latents else u)
