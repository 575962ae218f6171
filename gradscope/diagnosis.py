"""`diagnose`: what one batch can tell before training starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.capture.scope import attach
from gradscope.cuts.untouched import untouched
from gradscope.errors import GradscopeError
from gradscope.findings import Finding, analyze
from gradscope.run import Run


def diagnose(model: nn.Module, closure: Callable[[], Any]) -> list[Finding]:
    """Findings of one forward and backward pass, worst first.

    What shows before the first step: a gradient that vanishes or explodes at initialisation,
    parts that are detached or dead, softmaxes that are peaked or diffuse, a first operation that
    is not finite, data of the wrong scale, bottlenecks. What needs a course of training
    (updates, bursts, persistence) can't be judged, and a finding that a single step can only
    suggest is "info".

    The model's gradients, buffers and the random states are left as they were, hooks that step an
    optimizer as soon as a gradient is there do not run, and recordings that are under way hear of
    nothing.

    Args:
        model: any module.
        closure: runs the forward pass and returns the loss, as for `optimizer.step(closure)`;
            it may call `backward()` itself.

    Raises:
        GradscopeError: if the closure doesn't return a loss that depends on the model.
    """
    return analyze(one_step(model, closure))


def one_step(model: nn.Module, closure: Callable[[], Any]) -> Run:
    """Record one forward and backward pass, and the cuts of the model."""
    if not callable(closure):
        raise GradscopeError(f"closure must be a function without arguments, not {closure!r:.80}")
    with (
        untouched(model),
        torch.enable_grad(),
        attach(model, out=None, every=1, name="diagnosis") as scope,
    ):
        loss = closure()
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise GradscopeError(
                "closure() must return the loss, one number as a tensor; it returned "
                + (
                    f"a tensor of shape {tuple(loss.shape)}: take its mean"
                    if isinstance(loss, Tensor)
                    else type(loss).__name__
                )
            )
        if all(p.grad is None for p in model.parameters()):
            if not loss.requires_grad:
                raise GradscopeError(
                    "the loss that closure() returned does not depend on the model: it requires "
                    "no gradient"
                )
            loss.backward()
        scope.log(loss=loss)
        scope.step()
        try:
            scope.bottlenecks(closure)
        except GradscopeError as error:
            scope.recorder.note_unseen("bottlenecks", str(error))
    return scope.run()
