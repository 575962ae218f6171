"""All numbers of a training run, step by step, by plain hooks: what a recording must say.

Wrap a twin's training in an `Observer`; it may be any loop around one model and one optimizer.
"""

from dataclasses import dataclass, field
from itertools import chain
from unittest.mock import patch

import torch

from tests.reference.gradients import OutputGradients, fork_values, norm
from tests.reference.graph_by_hand import Span, forks
from tests.reference.softmax_watch import SoftmaxWatch


@dataclass
class Step:
    """Numbers of one optimizer step, by site; `forks` without names.

    From a weight of 0 an update has no ratio: None.
    """

    norms: dict = field(default_factory=dict)
    rms: dict = field(default_factory=dict)
    numel: dict = field(default_factory=dict)
    zeros: dict = field(default_factory=dict)  # of gradients in float16
    subnormals: dict = field(default_factory=dict)
    forks: list = field(default_factory=list)
    softmaxes: dict = field(default_factory=dict)
    grads: dict = field(default_factory=dict)
    grad_rms: dict = field(default_factory=dict)
    weights: dict = field(default_factory=dict)
    ratios: dict = field(default_factory=dict)


class Observer:
    """Use as a context around the training of `model`; `steps` afterwards.

    Args:
        scale: () -> by which the loss is multiplied before its backward pass.
        graphs: follow forks, which takes the same graph at every backward pass of a step, from
            one forward pass of the model.
    """

    def __init__(self, model, optimizer, scale=lambda: 1.0, graphs=True):
        self.steps = []
        self._model, self._optimizer, self._scale = model, optimizer, scale
        self._follows = graphs
        self._graphs = []  # forks of the step's backward passes

    def __enter__(self):
        self._outputs = OutputGradients(self._model)
        self._softmaxes = SoftmaxWatch(self._model).__enter__()
        self._span = Span(self._model)
        self._handles = [
            self._optimizer.register_step_pre_hook(self._before),
            self._optimizer.register_step_post_hook(self._after),
        ]
        observer, plain = self, torch.Tensor.backward

        def backward(loss, *args, **kwargs):
            if observer._follows:
                observer._graphs.append(observer._forks(loss))
            return plain(loss, *args, **kwargs)

        self._patch = patch.object(torch.Tensor, "backward", backward)
        self._patch.start()
        return self

    def __exit__(self, *_):
        self._patch.stop()
        self._softmaxes.__exit__()
        self._outputs.remove()
        self._span.remove()
        for handle in self._handles:
            handle.remove()

    def _forks(self, loss):
        scale = self._scale()
        self._outputs.paused = self._softmaxes.paused = True
        try:
            return [
                [_wide(g) / scale for g in (whole, *parts)]
                for whole, parts in forks(loss, self._span)
            ]
        finally:
            self._outputs.paused = self._softmaxes.paused = False

    def _before(self, *_):
        self._now = Step()
        named = list(self._model.named_parameters())
        self._weights = {n: p.detach().clone() for n, p in named}
        self._now.grads = self._gradients()

    def _gradients(self):
        named = self._model.named_parameters()
        return {n: norm(p.grad) for n, p in named if p.grad is not None}

    def _after(self, _optimizer, args, kwargs):
        now, scale = self._now, self._scale()
        if any(map(callable, (*args[1:], *kwargs.values()))):
            now.grads = self._gradients()  # a closure made them within the step
        for name, parameter in self._model.named_parameters():
            before = self._weights[name]
            if name in now.grads:
                now.grad_rms[name] = now.grads[name] / parameter.numel() ** 0.5
                now.weights[name] = norm(before)
                moved = norm(parameter.detach().double() - before.double())
                now.ratios[name] = moved / norm(before) if norm(before) else None
        now.norms = {site: v / scale for site, v in self._outputs.norms().items()}
        now.rms = {site: v / scale for site, v in self._outputs.rms().items()}
        gradients = self._outputs.gradients()
        now.numel = {site: sum(g.numel() for g in grads) for site, grads in gradients.items()}
        for site, grads in gradients.items():
            if grads[0].dtype is torch.float16:
                shares = [_lost(g) for g in grads]
                now.zeros[site], now.subnormals[site] = torch.tensor(shares).mean(0).tolist()
        now.softmaxes = self._softmaxes.values()
        now.forks = list(map(_fork, zip(*self._graphs, strict=True)))
        self._outputs.clear()
        self._softmaxes.clear()
        self._graphs = []
        self.steps.append(now)


def nameless(fork):
    """A fork's values with the names of its edges left out."""
    return {
        "grad_norm": fork["grad_norm"],
        "cancellation": fork["cancellation"],
        "projections": fork["projections"],
        "norms": sorted(chain(*fork["norms"].values())),
        "cosines": sorted(chain(*fork["cosines"].values())),
    }


def _wide(g):
    return g.to(torch.promote_types(g.dtype, torch.float64))


def _lost(g):
    """Of a float16 gradient: the share that is 0, and the subnormal share of the rest."""
    sizes = [abs(x) for x in g.double().flatten().tolist()]
    rest = [x for x in sizes if x]
    return 1 - len(rest) / len(sizes), sum(x < 2.0**-14 for x in rest) / max(1, len(rest))


def _fork(passes):
    """One fork over a step's backward passes: that of all their gradients at once."""
    whole, *terms = (
        torch.cat([part.flatten() for part in parts]) for parts in zip(*passes, strict=True)
    )
    return nameless(fork_values({edge: [g] for edge, g in enumerate(terms)}, whole))
