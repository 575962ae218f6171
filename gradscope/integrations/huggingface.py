"""Recording the training of a Hugging Face `Trainer`.

from gradscope.integrations.huggingface import GradscopeCallback

Trainer(..., callbacks=[GradscopeCallback(out="run.pt", every=10)]).train()
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gradscope.capture.scope import Scope
from gradscope.integrations._extras import missing
from gradscope.integrations._recording import Recording

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise missing("GradscopeCallback", "transformers with accelerate", "huggingface") from error


class GradscopeCallback(TrainerCallback):
    """Records every `Trainer.train()` of the trainer that it is given to.

    Attaches to the trainer's model and optimizer when training begins, and closes the file
    when it ends, also by an exception. What the trainer logs (loss, grad_norm, learning_rate,
    eval_loss, …) becomes a scalar of the optimizer step that was just made: what it logs at
    its `global_step` k belongs to step k − 1.

    A training resumed from a checkpoint goes on with the checkpoint's step numbers; its
    recording goes to a file of its own, `run-from-50.pt`, if `run.pt` is there already.

    Args:
        configure: called with the `Scope` when it is attached, to ask it for more:
            `configure=lambda scope: scope.crossings(every=100)`.
        **arguments: of `gradscope.attach`: `out`, `every`, `name`, …

    Raises:
        TypeError: if an argument is none of `attach`'s.
    """

    def __init__(
        self, *, configure: Callable[[Scope], Any] | None = None, **arguments: Any
    ) -> None:
        self._recording = Recording(configure, arguments)
        _watch_for_exceptions(self)

    @property
    def scope(self) -> Scope | None:
        """The recording in progress, while training."""
        return self._recording.scope

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        **_: Any,
    ) -> None:
        """Attach."""
        self._recording.begin(model, [_innermost(optimizer)], state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, *, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Record what is logged."""
        self._recording.log(logs or {})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Finish the file."""
        self.close()

    def close(self, error: BaseException | None = None) -> None:
        """Finish the file, if one is open. Called at the end of training and by an exception."""
        self._recording.end(error)


def _innermost(optimizer: Any) -> Any:
    """The optimizer whose step hooks run: accelerate wraps the one that makes the steps."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


# The Trainer tells its callbacks nothing of an exception. `Trainer.train` is replaced while
# there is a callback that has to know, and put back with the last one.
_watchers = 0
_train: Callable[..., Any] = Trainer.train


def _watch_for_exceptions(callback: GradscopeCallback) -> None:
    global _watchers, _train
    if not _watchers:
        _train = Trainer.train
        Trainer.train = _told(_train)
    _watchers += 1
    weakref.finalize(callback, _stop_watching, Trainer.train).atexit = False


def _stop_watching(told: Callable[..., Any]) -> None:
    global _watchers
    _watchers -= 1
    if not _watchers and Trainer.train is told:
        Trainer.train = _train


def _told(train: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(train)
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return train(self, *args, **kwargs)
        except BaseException as error:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, GradscopeCallback):
                    callback.close(error)
            raise

    return told
