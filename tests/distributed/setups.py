"""The model, the data and the ways of spreading them over processes that the tests here share."""

import math
from dataclasses import dataclass

import torch
from torch import nn

STEPS = 4
BATCH = 8  # rows of the whole batch
CLIP = 0.5


class Block(nn.Module):
    """Attention over the positions with a softmax of its own, and a residual connection."""

    def __init__(self, width):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width, bias=False)

    def forward(self, h):
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        p = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1)
        return h + self.mix(p @ v)


class Net(nn.Module):
    """Two blocks between an embedding and the same weights as a classifier.

    Over two processes the embedding's 7 rows are split unevenly, and the scalar `gain` leaves
    the second process with nothing; over four also the bias leaves one with nothing.
    """

    def __init__(self, unused=False):
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.blocks = nn.ModuleList(Block(5) for _ in range(2))
        self.gain = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(5, 7)
        self.head.weight = self.embed.weight
        if unused:
            self.spare = nn.Linear(5, 5)

    def forward(self, tokens):
        h = self.embed(tokens)
        for block in self.blocks:
            h = block(h)
        return self.head(h * self.gain)


@dataclass(frozen=True)
class Setup:
    """One way of training.

    Attributes:
        kind: "ddp" or "fsdp".
        options: of DistributedDataParallel.
        replicas: mesh dimension over which shards are replicated.
        micro: micro-batches of a step; processes talk to each other in the last only.
        unused: the model has a module that never runs.
        nan_at: step at which the second process reads a NaN.
        crossings: split gradients by the softmaxes they crossed, too.
    """

    kind: str
    options: tuple = ()
    replicas: int = 1
    micro: int = 1
    unused: bool = False
    nan_at: int = -1
    crossings: bool = False


TWO = {
    "DDP": Setup("ddp", crossings=True),
    "DDP, gradient_as_bucket_view": Setup("ddp", ("gradient_as_bucket_view",)),
    "DDP, find_unused_parameters": Setup("ddp", ("find_unused_parameters",), unused=True),
    "DDP, static_graph": Setup("ddp", ("static_graph",)),
    "DDP, accumulation with no_sync": Setup("ddp", micro=2),
    "FSDP2": Setup("fsdp"),
    "FSDP2, accumulation": Setup("fsdp", micro=2),
}
LOST = {"DDP, lost": Setup("ddp", nan_at=2), "FSDP2, lost": Setup("fsdp", nan_at=2)}
FOUR = {
    "FSDP2": Setup("fsdp"),
    "HSDP, 2 × 2": Setup("fsdp", replicas=2),
}


def build(setup):
    torch.manual_seed(0)
    return Net(setup.unused)


def batch(step):
    """Tokens (BATCH, 3) and targets (BATCH, 3) of a step, for all processes together."""
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randint(0, 7, (2, BATCH, 3), generator=generator)


def part(step, rank, world_size, micro=1, which=0):
    """What one process reads in one of its micro-batches."""
    rows = BATCH // world_size // micro
    start = (rank * micro + which) * rows
    return batch(step)[:, start : start + rows]


def loss_of(model, tokens, targets):
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def make_optimizer(parameters):
    return torch.optim.SGD(parameters, lr=0.3, momentum=0.9)
