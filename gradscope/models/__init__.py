"""Attention stacks, as plain `nn.Module`s: they know nothing of gradscope.

Index legend: B samples, N positions, D features at a position, H latent state, K layers.
"""

from gradscope.models.attention import Attended, Attention
from gradscope.models.query import QUERIES, Query
from gradscope.models.reasoner import MODELS, Reasoner, build
from gradscope.models.stacked import StackedAttention
from gradscope.models.stacked_latent import StackedLatentAttention

__all__ = [
    "MODELS",
    "QUERIES",
    "Attended",
    "Attention",
    "Query",
    "Reasoner",
    "StackedAttention",
    "StackedLatentAttention",
    "build",
]
