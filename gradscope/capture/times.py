"""Time steps inside fused recurrent layers (nn.RNN, nn.GRU, nn.LSTM), which are one module call.

What is measured is the gradient at a layer's input of one time step. A layer that PyTorch runs as a
loop splits its input, projected by weight_ih, by time: an Unbind node, and the gradients at its
outputs. A layer that is one kernel (oneDNN's LSTM on CPU) gives its input's gradient as a whole,
which is read by time. Where the input is data the kernel's backward computes that gradient and
autograd drops it, so it is run once more. cuDNN's kernels are not looked into.

The reverse direction of a bidirectional layer is left out. How much gradient its time steps get is
a matter of what reads them more than of the way back through time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.capture.saved import UnreadableError, saved_tensor
from gradscope.capture.taps import Gradients, TensorTap
from gradscope.graph.naming import Names, op_name
from gradscope.graph.walk import Graph, shape_of

MOST = 16  # time steps of a layer that are measured, at even distances
KERNEL = "MkldnnRnnLayerBackward0"  # one direction of one layer; its input is laid out (T, B, D)
# What the kernel's node saved: tensors, and options in the order of its backward function.
TENSORS = "input weight0 weight1 weight2 weight3 hx_ cx_ result0 result1 result2 result3".split()
OPTIONS = (
    "reverse mode hidden_size num_layers has_biases train bidirectional batch_sizes batch_first"
).split()


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
        name = op_name(owner, f"l{number // directions}")
        yield Layer(name, index, kernel, tuple(times), length)


class TimeTap:
    """Measures a kernel's input by time when the backward pass has crossed it."""

    part = "gradients"

    def __init__(self, taps: list[tuple[int, TensorTap]]) -> None:
        self._taps = taps

    def saved(self, node: Any) -> list[Any] | None:
        if node.next_functions[0][0] is not None:
            return [None]  # the gradient will be there
        try:
            return [_Kernel(node)]
        except UnreadableError:
            return None

    def __call__(self, saved: list[Any], grad_inputs: Gradients, grad_outputs: Gradients) -> None:
        if not saved:
            return
        (kernel,) = saved
        g = grad_inputs[0] if kernel is None else kernel.input_gradient(grad_outputs)
        if g is None:
            return
        for time, tap in self._taps:
            tap.measure(g[time], {})


class _Kernel:
    """What oneDNN's kernel needs for its backward pass.

    Raises:
        UnreadableError: if what it saved can't be read.
    """

    def __init__(self, node: Any) -> None:
        self._tensors = {name: saved_tensor(node, name) for name in TENSORS}
        self._options = {name: getattr(node, f"_saved_{name}") for name in OPTIONS}

    def input_gradient(self, grad_outputs: Gradients) -> Tensor | None:
        """As autograd's formula for the node calls it."""
        if all(g is None for g in grad_outputs[:3]):
            return None
        read = {name: None if s is None else s.read() for name, s in self._tensors.items()}
        result = torch.ops.aten.mkldnn_rnn_layer_backward(
            read["input"],
            *(read[f"weight{i}"] for i in range(4)),
            read["hx_"],
            read["cx_"],
            *(read[f"result{i}"] for i in range(3)),
            *grad_outputs[:3],
            *self._options.values(),
            read["result3"],
        )
        gradient: Tensor = result[0]
        return gradient


def input_shape(node: Any) -> tuple[int, ...]:
    """Shape of what a kernel reads at one time, (B, D); () if the node does not show it."""
    given, output = node.next_functions[0]
    if given is not None:
        return shape_of(given, output)[1:]
    unhooked = getattr(node._raw_saved_input, "unpack_hook", True) is None
    return tuple(node._saved_input.shape[1:]) if unhooked else ()


def _kernel_length(node: Any) -> int:
    """Time steps of a kernel's input; 0 for packed sequences."""
    packed = tuple(node._saved_batch_sizes or ())
    return 0 if packed else int(node._input_metadata[0].shape[0])
