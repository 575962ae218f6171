"""A gradient split by the number of attention softmaxes that its paths cross.

Multiply the backward of every attention softmax by t, and the gradient of a target becomes the
polynomial Σ_k t^k G_k: G_k is the part whose paths crossed k softmaxes. What leaves a softmax
during the pass for G_k is set aside and is where the pass for G_{k+1} starts, so each part is
computed on its own and is right to rounding *of its own size*, however small it is beside the
others. The passes get shorter: order k only ever sees what lies beyond the k-th softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.errors import PathwayError
from gradscope.paths.backward import Backward, Node, stack_parts
from gradscope.paths.check import check_sum
from gradscope.paths.crossings import Crossing, crossings, softmaxes_among
from gradscope.paths.sizes import norms, projections


@dataclass(frozen=True)
class GradedGradients:
    """d loss / d target, split by the number of softmaxes crossed.

    Attributes:
        components: for each target, (K+1, *target.shape): entry k is G_k. No path crosses
            more softmaxes than K, unless `open_ended`.
        open_ended: the last entry holds all paths that crossed K softmaxes or more.
        residual: how far the sum of the components is from the ordinary gradient, relative;
            the largest over the targets. More than rounding only where softmaxes are so peaked
            that PyTorch's kernels leave noise in the ordinary gradient.
    """

    components: list[Tensor]
    open_ended: bool
    residual: float

    @property
    def orders(self) -> int:
        """K: the last order kept."""
        return self.components[0].shape[0] - 1

    def norms(self) -> list[Tensor]:
        """‖G_k‖₂ for each target, (K+1,)."""
        return [norms(c) for c in self.components]

    def projections(self) -> list[Tensor]:
        """⟨G_k, g⟩ / ‖g‖² for each target, (K+1,): sums to 1. NaN for a zero gradient."""
        return [projections(c, onto=c.sum(0)) for c in self.components]


def graded_gradients(
    loss: Tensor,
    targets: Sequence[Tensor],
    softmaxes: Sequence[Crossing | Node] | None = None,
    max_order: int = 8,
    *,
    reference: Sequence[Tensor | None] | None = None,
) -> GradedGradients:
    """Split d loss / d target by the number of attention softmaxes crossed.

    Costs at most `max_order` + 2 backward passes, less where few softmaxes follow one another.
    Leaves the graph, every `.grad` and the random state as they are.

    Args:
        loss: one element; its graph must still be there.
        targets: leaf or intermediate tensors of that graph.
        softmaxes: the nodes to count; by default those of `find_softmaxes(loss)`.
        max_order: M, the last order kept apart. Its component holds "M or more".
        reference: the targets' ordinary gradients, to check the sum against. By default they
            are computed here, bit for bit as `torch.autograd.grad` does without hooks: no hook
            on any tensor runs or counts. With the gradients of a real backward pass, a hook
            that changes them on the way is noticed.

    Raises:
        PathwayError: if part of the graph is hidden (compiled, or reentrant checkpointing), if
            the graph has been freed, or if the components don't add up to the gradient.
    """
    if max_order < 0:
        raise PathwayError(f"max_order is the last order kept, at least 0; it is {max_order}")
    backward = Backward(loss, targets)
    cross = _crossings(backward, softmaxes)
    by_order = []
    arriving = backward.start
    for order in range(max_order + 1):
        gradients, arriving = backward.run(arriving, cross, go_on=order == max_order)
        by_order.append(gradients)
        if not arriving:
            break
    components = stack_parts(backward.targets, by_order)
    return GradedGradients(components, bool(arriving), check_sum(backward, components, reference))


def mean_crossings(
    loss: Tensor,
    targets: Sequence[Tensor],
    softmaxes: Sequence[Crossing | Node] | None = None,
    *,
    reference: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Mean number of softmaxes crossed, Σ_k k ⟨G_k, g⟩ / ‖g‖², whatever the depth.

    Σ_k k G_k is d/dt Σ_k t^k G_k at t = 1. By the product rule that is the sum, over all
    softmaxes, of the gradient that went through this one: what leaves each softmax in an
    ordinary pass is where a second one starts. Two passes, no limit on the order. The weights
    ⟨G_k, g⟩ / ‖g‖² sum to 1 and can be negative.

    Args: as for `graded_gradients`.

    Returns:
        One mean a target, (len(targets),), NaN where the gradient is zero.

    Raises:
        PathwayError: as `graded_gradients`.
    """
    backward = Backward(loss, targets)
    cross = _crossings(backward, softmaxes)
    total, crossed = backward.run(backward.start, cross, go_on=True)
    slope, _ = backward.run(crossed)
    parts = stack_parts(backward.targets, [total])
    check_sum(backward, parts, reference)
    means = [
        projections(s, onto=g[0])[0].to(loss.device)
        for s, g in zip(stack_parts(backward.targets, [slope]), parts, strict=True)
    ]
    return torch.stack(means)


def _crossings(
    backward: Backward, softmaxes: Sequence[Crossing | Node] | None
) -> dict[Node, set[int]]:
    return crossings(softmaxes_among(backward.nodes, {}) if softmaxes is None else softmaxes)
