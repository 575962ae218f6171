"""Finds the models that a script trains, by what its optimizers hold, and attaches scopes to them.

A *root* is the outermost module whose forward pass runs with gradients and that holds
parameters of an optimizer. Its scope is attached inside that very call, so that step 0 is whole.
Torch's process-wide hooks tell of module calls (only while there are parameters that
belong to no root yet) and of optimizer steps; nothing is put on the script's objects.
"""

from __future__ import annotations

import gc
import os
import shlex
import threading
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

from gradscope.capture.listening import Listened
from gradscope.capture.scope import Scope, attach
from gradscope.errors import GradscopeError
from gradscope.graph.eager import EAGER
from gradscope.graph.wrappers import class_name, unwrapped
from gradscope.launch.losses import Losses
from gradscope.launch.rounds import Round

# Optimizer steps after which a model, or an optimizer that still has none, is not waited for: while
# modules are watched, nothing runs compiled. A step of its own brings it back.
IDLE = 1000
# Steps of an optimizer in which modules are looked for that hold the rest of its parameters.
PATIENCE = 100

_in_backward = torch._C._current_graph_task_id
_in_transform = torch._C._functorch.peek_interpreter_stack

Optimizer = torch.optim.Optimizer
Shown = tuple[str, str, int]  # a model's class, its file as the user knows it, steps


def _made(listeners: list[Recording], original: Callable[..., None], *args: Any, **kw: Any) -> None:
    original(*args, **kw)
    for listener in listeners:
        listener.optimizer_made(args[0])


def _attaches(
    listeners: list[Recording], original: Callable[..., None], *args: Any, **kw: Any
) -> None:
    for listener in listeners:
        listener.scope_made()
    original(*args, **kw)


OPTIMIZER_MADE: Listened[Recording] = Listened(Optimizer, "__init__", _made)
SCOPE_MADE: Listened[Recording] = Listened(Scope, "__init__", _attaches)


class Recording:
    """What `gradscope run` records of this process.

    Args:
        out: the first model's file, as the user wrote it; those of others are named after it.
        directory: in which that is meant, wherever the script goes.
        every: record every n-th step.
    """

    def __init__(self, out: str, directory: str, every: int) -> None:
        self._out, self._directory, self._every = Path(out), Path(directory), every
        self._optimizers: list[weakref.ref[Optimizer]] = []
        self._steps_of: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._since: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._asleep: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._models: list[_Model] = []
        self._done: list[Shown] = []
        self._names: set[str] = set()
        self._homeless: frozenset[int] = frozenset()  # parameters that belong to no root yet
        self._refused: set[int] = set()  # parameters of a root that could not be recorded
        self._empty: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # hold none of the homeless
        self._stepping: list[tuple[Optimizer, Any, Any]] = []
        self._losses = Losses()
        self._steps = 0
        self._depth = 0
        self._thread = 0
        self._step_handles: list[Any] = []
        self._call_handles: list[Any] = []
        self._attaching = self._closed = False
        self._own = False  # the script records itself
        self._reasons: list[str] = []
        self._seen_optimizer = False

    def begin(self) -> None:
        """Watch for optimizers."""
        OPTIMIZER_MADE.listen(self)
        SCOPE_MADE.listen(self)
        self._losses.listen()
        self._step_handles = [
            torch_optimizer.register_optimizer_step_pre_hook(self._step_begins),
            torch_optimizer.register_optimizer_step_post_hook(self._step_ends),
        ]
        if hasattr(os, "register_at_fork"):
            leave = weakref.WeakMethod(self._stand_down)

            def in_child() -> None:
                if (method := leave()) is not None:
                    method()

            os.register_at_fork(after_in_child=in_child)

    def end(self, reason: str) -> None:
        """Finish the files. `reason`: of an end that is not the ordinary one, else ""."""
        self._stand_down(reason)

    def summary(self) -> str:
        """One line: what was recorded where and what to do next, or why nothing was."""
        if self._own:
            return "the script records itself with gradscope; nothing was added to that"
        told = [shown for shown in self._done if shown[2]]
        if told:
            parts = [f"{n} step{'s' * (n != 1)} of {name} in {path}" for name, path, n in told]
            files = " ".join(shlex.quote(path) for _, path, _ in told)
            problems = "".join(f"; {r}" for r in self._reasons)
            return f"recorded {', '.join(parts)}{problems}; next: gradscope analyze {files}"
        if self._reasons:
            why = "; ".join(self._reasons)
        elif self._done:
            why = f"no optimizer of {self._done[0][0]} made a step after its forward pass"
        elif not self._seen_optimizer:
            why = "the script made no torch optimizer"
        else:
            why = (
                "no torch module that holds what the optimizer trains was called with gradients "
                "enabled"
            )
        return f"nothing was recorded: {why}"

    # -- optimizers --------------------------------------------------------------------

    def optimizer_made(self, optimizer: Optimizer) -> None:
        """The script has made an optimizer."""
        if self._closed or any(known() is optimizer for known in self._optimizers):
            return
        try:
            self._seen_optimizer = True
            self._thread = threading.get_ident()
            self._optimizers = [known for known in self._optimizers if known() is not None]
            self._optimizers.append(weakref.ref(optimizer))
            self._since[optimizer] = self._steps
            self._close_where(lambda model: model.gone)
            self._look_for_roots()
        except Exception as error:
            self._give_up(error)

    def scope_made(self) -> None:
        """The script attaches a scope of its own: then that is the recording."""
        if not self._attaching and not self._closed:
            self._own = True
            made = [model.scope for model in self._models]
            self._stand_down()
            for scope in made:
                scope.discard()

    def _step_begins(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._closed:
            return
        if not any(known() is optimizer for known in self._optimizers):
            self.optimizer_made(optimizer)  # a copy, or one that was unpickled
        try:
            self._stepping.append((optimizer, args, kwargs))
            for model in self._trained_by(optimizer):
                model.step_begins(optimizer)
        except Exception as error:
            self._give_up(error)

    def _step_ends(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._closed:
            return
        try:
            while self._stepping and self._stepping.pop()[0] is not optimizer:
                pass  # a step that broke off has no end
            self._steps += 1
            loss = self._losses.of_step()
            for model in self._trained_by(optimizer):
                model.step_ends(optimizer, self._steps, loss)
            self._losses.stepped()
            self._rest(optimizer)
        except Exception as error:
            self._give_up(error)

    def _rest(self, optimizer: Optimizer) -> None:
        """After a step: see what need not be waited for any more, and what has come back."""
        for model in [m for m in self._models if self._steps - m.stepped_at > IDLE]:
            self._asleep.update(o for o in self._alive() if model in self._trained_by(o))
        self._close_where(lambda m: m.gone or self._steps - m.stepped_at > IDLE)
        changed = optimizer in self._asleep
        if changed:
            self._asleep.discard(optimizer)
            self._since[optimizer] = self._steps
        if self._homeless:
            self._steps_of[optimizer] = self._steps_of.get(optimizer, 0) + 1
            changed |= self._steps_of[optimizer] == PATIENCE
            late = [o for o in self._waiting() if self._steps - self._since.get(o, 0) > IDLE]
            late = [o for o in late if not self._trained_by(o)]
            self._asleep.update(late)
            changed |= bool(late)
        if changed:
            self._look_for_roots()

    def _trained_by(self, optimizer: Optimizer) -> list[_Model]:
        held = parameter_ids(optimizer)
        return [model for model in self._models if not held.isdisjoint(model.parameters)]

    # -- roots -------------------------------------------------------------------------

    def _alive(self) -> list[Optimizer]:
        return [o for known in self._optimizers if (o := known()) is not None]

    def _waiting(self) -> list[Optimizer]:
        awake = [o for o in self._alive() if o not in self._asleep]
        return [o for o in awake if self._steps_of.get(o, 0) < PATIENCE]

    def _look_for_roots(self) -> None:
        """Watch module calls while there is an optimizer some of whose parameters are homeless."""
        held = frozenset().union(*map(parameter_ids, self._waiting()))
        self._homeless = held.difference(self._refused, *(m.parameters for m in self._models))
        self._empty.clear()
        if self._homeless and not self._call_handles:
            self._depth = 0
            self._call_handles = [
                torch_module.register_module_forward_pre_hook(self._call_begins),
                torch_module.register_module_forward_hook(self._call_ends, always_call=True),
            ]
        elif not self._homeless:
            self._stop_looking()
        if self._homeless:
            EAGER.hold(self)

    def _stop_looking(self) -> None:
        for handle in self._call_handles:
            handle.remove()
        self._call_handles = []
        EAGER.release(self)

    def _call_begins(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self._thread or _in_backward() != -1:
            return
        self._depth += 1
        if self._depth > 1 or not torch.is_grad_enabled() or _in_transform() is not None:
            return
        if self._closed or module in self._empty:
            return
        try:
            if self._homeless.isdisjoint(id(p) for p in module.parameters()):
                self._empty.add(module)
            else:
                self._follow(self._root(module), module, args)
        except Exception as error:
            self._give_up(error)

    def _call_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == self._thread and _in_backward() == -1 and self._depth:
            self._depth -= 1

    def _root(self, called: nn.Module) -> nn.Module:
        """The module called, or the smallest around it that holds all its optimizers train.

        Code that calls `agent.actor(x)` and `agent.critic(x)` trains one model, the agent,
        whose own forward pass never runs.
        """
        own = ids_of(called.parameters())
        trained = [held for o in self._alive() if not own.isdisjoint(held := parameter_ids(o))]
        needed = frozenset().union(*trained)
        if needed <= own:
            return called
        around = [
            m
            for m in gc.get_objects()
            if issubclass(type(m), nn.Module)
            and any(inner is called for inner in m.modules())
            and needed <= ids_of(m.parameters())
        ]
        return min(around, key=lambda m: len(list(m.modules())), default=called)

    def _follow(self, root: nn.Module, called: nn.Module, args: Any) -> None:
        parameters = ids_of(root.parameters())
        # One that overlaps was a part of this root, or this root before it got new layers.
        self._close_where(lambda m: m.gone or not parameters.isdisjoint(m.parameters))
        optimizers = [o for o in self._alive() if not parameters.isdisjoint(parameter_ids(o))]
        path = self._path_of(root)
        self._attaching = True
        try:
            out = self._directory / path
            scope = attach(root, optimizer=optimizers, out=out, every=self._every)
        except GradscopeError as error:
            self._reasons.append(f"{class_name(unwrapped(root))} was not recorded: {error}")
            self._refused |= parameters
        else:
            model = _Model(scope, root, parameters, optimizers, str(path), self._steps)
            self._models.append(model)
            scope.recorder.calls.entered(called, args)
            for optimizer, given, named in self._stepping[-1:]:  # inside step(closure)
                if optimizer in optimizers:
                    model.step_begins(optimizer)
                    scope.recorder.before_step(optimizer, given, named)
        finally:
            self._attaching = False
        self._look_for_roots()

    def _path_of(self, root: nn.Module) -> Path:
        """run.pt, run-Discriminator.pt, run-Discriminator-2.pt, …"""
        plain = f"{self._out.stem}-{class_name(unwrapped(root))}"
        names = [self._out.stem, plain, *(f"{plain}-{i}" for i in range(2, len(self._names) + 3))]
        stem = next(n for n in names if n not in self._names)
        self._names.add(stem)
        return self._out.with_name(stem + self._out.suffix)

    # -- ends --------------------------------------------------------------------------

    def _close_where(self, over: Callable[[_Model], bool], reason: str = "") -> None:
        for model in [m for m in self._models if over(m)]:
            self._models.remove(model)
            self._done.append(model.close(reason))

    def _stand_down(self, reason: str = "") -> None:
        """Let go of everything. In a forked worker files are left to its parent."""
        if self._closed:
            return
        self._closed = True
        OPTIMIZER_MADE.ignore(self)
        SCOPE_MADE.ignore(self)
        self._losses.ignore()
        for handle in self._step_handles:
            handle.remove()
        self._step_handles = []
        self._stop_looking()
        self._close_where(lambda _: True, reason)

    def _give_up(self, error: BaseException) -> None:
        """A failure in here ends the recording, not the script."""
        self._reasons.append(f"gradscope failed ({type(error).__name__}: {error})")
        self._stand_down(f"{type(error).__name__}: {error}")


class _Model:
    """A root and its scope."""

    def __init__(
        self,
        scope: Scope,
        root: nn.Module,
        parameters: frozenset[int],
        optimizers: list[Optimizer],
        path: str,
        now: int,
    ) -> None:
        self.scope, self.parameters = scope, parameters
        root = unwrapped(root)
        self._root, self._name, self._path = weakref.ref(root), class_name(root), path
        self._round = Round(optimizers, parameter_ids)
        self._order = list(optimizers)
        self.stepped_at = now
        self._step = 0

    @property
    def gone(self) -> bool:
        """Whether the script has dropped the model."""
        return self._root() is None

    def step_begins(self, optimizer: Optimizer) -> None:
        recorder = self.scope.recorder
        order, missed = self._round.begins(optimizer)
        if missed:
            recorder.begin_again()
        if len(order) != len(self._order) or any(map(_differ, order, self._order)):
            self._order = order
            recorder.follow(list(order))

    def step_ends(self, optimizer: Optimizer, now: int, loss: Any) -> None:
        self._round.ends(self._order, optimizer)
        self.stepped_at = now
        step = self.scope.recorder.step
        if step != self._step:  # not skipped, and the last optimizer of the round
            self._step = step
            if loss is not None:
                self.scope.log(loss=loss)

    def close(self, reason: str) -> Shown:
        shown = (self._name, self._path, self.scope.recorder.step)
        self.scope.close(reason)
        self._order = []
        self._round = Round((), parameter_ids)
        return shown


def _differ(a: object, b: object) -> bool:
    return a is not b


def ids_of(parameters: Iterable[torch.Tensor]) -> frozenset[int]:
    return frozenset(map(id, parameters))


_known_ids: weakref.WeakKeyDictionary[Optimizer, tuple[list[int], frozenset[int]]]
_known_ids = weakref.WeakKeyDictionary()


def parameter_ids(optimizer: Optimizer) -> frozenset[int]:
    """Ids of the parameters that an optimizer trains; asked for at every step."""
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    known = _known_ids.get(optimizer)
    if known is None or known[0] != sizes:
        ids = frozenset(id(p) for g in optimizer.param_groups for p in g["params"])
        known = _known_ids[optimizer] = (sizes, ids)
    return known[1]
