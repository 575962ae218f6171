"""Time steps inside fused recurrent layers (nn.RNN, nn.GRU, nn.LSTM), which are one module call.

What is measured is the gradient at a layer's input of one time step. A layer that PyTorch runs as a
loop splits its input, projected by weight_ih, by time: an Unbind node, and the gradients at its
outputs. A layer that is one kernel (oneDNN's LSTM on CPU) gives its input's gradient as a whole,
which is read by time; there is none where the input is data. cuDNN's kernels are not looked into.

The reverse direction of a bidirectional layer is left out. How much gradient its time steps get is
a matter of what reads them more than of the way back through time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from gradscope.capture.taps import Gradients, TensorTap
from gradscope.graph.naming import Names
from gradscope.graph.walk import Graph

MOST = 16  # time steps of a layer that are measured, at even distances
KERNEL = "MkldnnRnnLayerBackward0"  # one direction of one layer; its input is laid out (T, B, D)


@dataclass(frozen=True)
class Layer:
    """One layer of a recurrent module, in one call, read forward in time.

    Attributes:
        name: such as "encoder.rnn:l0", as torch names the layer's parameters.
        node: index of the Unbind node or of the kernel's.
        kernel: whether it is one.
        times: those that are measured.
        length: of the sequence.
    """

    name: str
    node: int
    kernel: bool
    times: tuple[int, ...]
    length: int

    @property
    def note(self) -> str:
        """What the sites' numbers mean."""
        if self.length <= MOST:
            return f"{self.length} time steps"
        return f"{MOST} of {self.length} time steps, at even distances from the first to the last"


def recurrent_layers(graph: Graph, names: Names, modules: dict[str, nn.Module]) -> Iterator[Layer]:
    """The layers whose time steps can be told apart, in forward order.

    Args:
        modules: path → module.
    """
    seen: Counter[str] = Counter()
    for index in sorted(range(len(graph.nodes)), key=lambda i: names.sequence[i]):
        node = graph.nodes[index]
        kernel = node.name() == KERNEL
        if not kernel and node.name() != "UnbindBackward0":
            continue
        owner = names.owner(index)
        module = modules.get((owner or "").split("#")[0])
        if owner is None or not isinstance(module, nn.RNNBase):
            continue
        length = _kernel_length(node) if kernel else len(node._input_metadata)
        if not length:
            continue
        number, seen[owner] = seen[owner], seen[owner] + 1
        directions = 1 + module.bidirectional
        if number % directions:
            continue  # the reverse direction
        times = sorted({round(k * (length - 1) / (MOST - 1)) for k in range(MOST)})
        name = f"{owner}:l{number // directions}"
        yield Layer(name, index, kernel, tuple(times), length)


class TimeTap:
    """Measures a kernel's input by time when the backward pass has crossed it."""

    part = "gradients"

    def __init__(self, taps: list[tuple[int, TensorTap]]) -> None:
        self._taps = taps

    def saved(self, node: Any) -> list[Any]:
        return [None]  # nothing, once

    def __call__(self, saved: list[Any], grad_inputs: Gradients, grad_outputs: Gradients) -> None:
        g = grad_inputs[0]
        if not saved or g is None:
            return
        for time, tap in self._taps:
            tap.measure(g[time], {})


def _kernel_length(node: Any) -> int:
    """Time steps of a kernel's input; 0 for packed sequences, and where the input is data."""
    packed = tuple(node._saved_batch_sizes or ())
    given = node.next_functions[0][0]
    return 0 if packed or given is None else int(node._input_metadata[0].shape[0])
