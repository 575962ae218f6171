"""Bottlenecks: the minimum vertex cut between two places of a model, in numbers per sample."""

from gradscope.cuts.bottlenecks import (
    bottlenecks,
    cut_between,
    softmax_cuts,
    training_batch_size,
    training_cuts,
)
from gradscope.cuts.cut import Cut
from gradscope.cuts.labels import Labels
from gradscope.cuts.tensors import TensorGraph, tensor_graph

__all__ = [
    "Cut",
    "Labels",
    "TensorGraph",
    "bottlenecks",
    "cut_between",
    "softmax_cuts",
    "tensor_graph",
    "training_batch_size",
    "training_cuts",
]
