"""What a softmax attends over, however its probabilities are used."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradscope.cuts import bottlenecks

B, N, V, D = 3, 20, 6, 9
HEADS = 2

READS = {
    "batched product": lambda p, v: (p[:, None] @ v)[:, 0],
    "einsum": lambda p, v: torch.einsum("bn,bnv->bv", p, v),
    "weighted sum": lambda p, v: (p[..., None] * v).sum(1),
    "values first": lambda p, v: (v.mT @ p[..., None])[..., 0],
    "with dropout": lambda p, v: (F.dropout(p, 0.1)[:, None] @ v)[:, 0],
    "masked again": lambda p, v: ((p * (v[..., 0] > 0))[:, None] @ v)[:, 0],
    "renormalised": lambda p, v: ((p / p.sum(1, keepdim=True))[:, None] @ v)[:, 0],
    "several heads": lambda p, v: torch.einsum(
        "bhn,bnhv->bhv", p[:, None].expand(-1, HEADS, -1), v.unflatten(-1, (HEADS, -1))
    ).flatten(1),
}


class Twice(nn.Module):
    """Two reads of the same positions, the second asked by what the first returned."""

    def __init__(self, read):
        super().__init__()
        self.look, self.ask, self.weight = nn.Linear(V, D), nn.Linear(V, D), nn.Linear(D, 1)
        self.read = read

    def forward(self, v, u):
        for _ in range(2):
            s = torch.tanh(self.look(v) + self.ask(u)[:, None])
            u = self.read(self.weight(s).squeeze(-1).softmax(-1), v)
        return u


def between(model, *inputs):
    return bottlenecks(model, lambda: model(*inputs).sum())[1:]


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_values_are_what_probabilities_are_multiplied_with(read):
    (cut,) = between(Twice(read), torch.randn(B, N, V), torch.randn(B, V))
    assert (cut.width, cut.attended) == (V, N * V)


def test_probabilities_that_multiply_nothing_attend_over_nothing():
    model = Twice(lambda p, v: p[:, :V])
    (cut,) = between(model, torch.randn(B, N, V), torch.randn(B, V))
    assert cut.attended is None


class Pairs(nn.Module):
    """Graph attention: a latent for every pair of nodes, values for every node."""

    def __init__(self):
        super().__init__()
        self.send, self.hear, self.weight = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 1)

    def forward(self, x):
        sent = self.send(x)
        latent = F.leaky_relu(self.hear(x)[:, :, None] + sent[:, None])
        return self.weight(latent).squeeze(-1).softmax(-1) @ sent


def test_latents_of_pairs_are_wider_than_what_is_attended_over():
    (cut,) = between(nn.Sequential(Pairs(), nn.ELU(), Pairs()), torch.randn(B, N, D))
    assert cut.source_width == N * N * D
    assert cut.width == cut.attended == N * D


class Memory(nn.Module):
    """Keys computed once are asked again and again; only the question changes."""

    def __init__(self, hops, keys_once):
        super().__init__()
        self.key = nn.ModuleList(nn.Linear(V, D) for _ in range(1 if keys_once else hops))
        self.next, self.hops = nn.Linear(V, D), hops

    def forward(self, v, u):
        keys = [key(v) for key in self.key]
        for k in range(self.hops):
            key = keys[min(k, len(keys) - 1)]
            p = (key @ u[..., None])[..., 0].softmax(-1)
            u = self.next((p[:, None] @ v)[:, 0])
        return u


@pytest.mark.parametrize("keys_once", [True, False])
def test_keys_that_both_read_do_not_pass_from_one_to_the_other(keys_once):
    cuts = between(Memory(3, keys_once), torch.randn(B, N, V), torch.randn(B, D))
    latents = N * D + D
    assert [(c.width, c.source_width, c.sink_width) for c in cuts] == [(V, latents, latents)] * 2
