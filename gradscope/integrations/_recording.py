"""What all callbacks do: a scope that is open from the beginning of a training to its end."""

from __future__ import annotations

import inspect
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradscope.capture.scope import Scope, attach

OWN = {"model", "optimizer", "first_step"}  # the framework knows


class Recording:
    """A scope that is attached when a training begins, and closed when it ends, however it ends.

    Args:
        configure: called with every scope that was attached, to ask it for more.
        arguments: of `gradscope.attach`, without the model, the optimizer and the first step.

    Raises:
        TypeError: if an argument is none of `attach`'s.
    """

    def __init__(self, configure: Callable[[Scope], Any] | None, arguments: dict[str, Any]) -> None:
        taken = inspect.signature(attach).parameters
        for name in arguments:
            if name in OWN or name not in taken:
                known = ", ".join(n for n in taken if n not in OWN)
                raise TypeError(f"unexpected argument {name!r}; gradscope.attach takes {known}")
        self._configure, self._arguments = configure, arguments
        self.scope: Scope | None = None
        self._first_step = self._held_step = 0
        self._held: dict[str, Any] = {}

    def begin(
        self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], first_step: int
    ) -> None:
        """Attach. A training that is resumed gets a file of its own beside the earlier one's.

        Args:
            first_step: optimizer steps that were made before.
        """
        self.end()  # of one that was begun anew, with smaller batches say
        arguments = dict(self._arguments)
        out = arguments.get("out", "run.pt")
        if first_step and out is not None:
            arguments["out"] = _resumed(Path(out), first_step)
        self.scope = attach(model, optimizer=optimizers, first_step=first_step, **arguments)
        self._first_step = self._held_step = first_step
        if self._configure is not None:
            try:
                self._configure(self.scope)
            except BaseException as error:
                self.end(error)
                raise

    def log(self, values: Mapping[str, Any]) -> None:
        """Record what is a number among `values`, as scalars of the step that was just made.

        Before there is one (an evaluation at the start, a step that a gradient scaler skipped)
        they belong to the first. A step keeps the last value of each name.
        """
        if self.scope is None:
            return
        step = max(self.scope.recorder.step - 1, self._first_step)
        if step != self._held_step:
            self._write()
            self._held_step = step
        self._held.update({str(k): v for k, v in values.items() if _is_number(v)})

    def _write(self) -> None:
        held, self._held = self._held, {}
        if self.scope is not None:
            self.scope.log_at(self._held_step, held)

    def end(self, error: BaseException | None = None) -> None:
        """Close the scope, if one is open; `error` is what ended the training, if not itself."""
        self._write()
        scope, self.scope = self.scope, None
        if scope is not None:
            scope.__exit__(None if error is None else type(error), error, None)


def _resumed(out: str | os.PathLike[str], first_step: int) -> Path:
    """run.pt, or run-from-50.pt where that is taken."""
    path = Path(out)
    return path.with_stem(f"{path.stem}-from-{first_step}") if path.exists() else path


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, numbers.Real)  # numpy's numbers are among them
