"""Recording the training of a Lightning `Trainer`, by either of Lightning's names.

from gradscope.integrations.lightning import GradscopeCallback

Trainer(..., callbacks=[GradscopeCallback(out="run.pt", every=10)]).fit(module, loader)
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from gradscope.capture.scope import Scope
from gradscope.integrations._extras import missing
from gradscope.integrations._recording import Recording


def _framework() -> Any:
    """`lightning.pytorch`, or `pytorch_lightning` where that is what the script imports."""
    names = ["lightning.pytorch", "pytorch_lightning"]
    names.sort(key=lambda name: name not in sys.modules)
    for name in names:
        try:
            importlib.import_module(f"{name}.loggers.logger")
        except ImportError:
            continue
        return sys.modules[name]
    raise missing("GradscopeCallback", "lightning (or pytorch-lightning)", "lightning")


_pl = _framework()
_Callback: Any = _pl.Callback
_DummyLogger: Any = _pl.loggers.logger.DummyLogger


class GradscopeCallback(_Callback):
    """Records every `Trainer.fit()` of the trainer that it is given to.

    Attaches to the module and its optimizers when training begins, and closes the file when
    it ends, also by an exception. What Lightning hands to its loggers (`self.log`, its
    callbacks' metrics, at `log_every_n_steps`, with or without a logger) becomes a scalar of
    the optimizer step that was just made; metrics of single validation batches, which belong
    to no training step, are left out.

    With several optimizers a step ends with the step of the one that `configure_optimizers`
    returns last. A training resumed from a checkpoint goes on with its step numbers; its
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
        super().__init__()
        self._recording = Recording(configure, arguments)
        self._ear: _Ear | None = None

    @property
    def scope(self) -> Scope | None:
        """The recording in progress, while training."""
        return self._recording.scope

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach. The optimizers are there by now, and so is what a checkpoint restores."""
        optimizers = trainer.optimizers
        # Lightning counts the steps of all optimizers together.
        made = trainer.global_step // max(1, len(optimizers))
        self._recording.begin(pl_module, optimizers, made)
        self._ear = _Ear(self._recording, trainer.default_root_dir)
        trainer.loggers = [*trainer.loggers, self._ear]

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Batches follow, whose metrics are of no training step."""
        if self._ear is not None:
            self._ear.open = False

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """What is logged from here on is of the whole validation."""
        if self._ear is not None:
            self._ear.open = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Finish the file."""
        self._end(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Finish the file: what was recorded is kept, and what ended it."""
        self._end(trainer, exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Finish the file, if neither of the above did."""
        self._end(trainer)

    def _end(self, trainer: Any, error: BaseException | None = None) -> None:
        ear, self._ear = self._ear, None
        if ear is not None:
            trainer.loggers = [logger for logger in trainer.loggers if logger is not ear]
        self._recording.end(error)


class _Ear(_DummyLogger):
    """A logger that hears what Lightning logs; everything else that is done to it does nothing.

    It is the last of the trainer's loggers, and where it is the only one, `trainer.logger`,
    `trainer.log_dir` and `logger.experiment` do no more than they do without a logger.
    """

    def __init__(self, recording: Recording, directory: str) -> None:
        super().__init__()
        self._recording, self._directory = recording, directory
        self.open = True

    @property
    def save_dir(self) -> str:
        """Where Lightning writes when there is no logger."""
        return self._directory

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record what is logged."""
        if self.open:
            self._recording.log(metrics)
