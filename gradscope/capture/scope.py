"""`attach`: one training run's recording, from its first step to its last."""

from __future__ import annotations

import atexit
import os
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from gradscope.capture import loss_scale
from gradscope.capture.describe import describe
from gradscope.capture.ledger import Ledger
from gradscope.capture.parameters import Parameters
from gradscope.capture.pathways import CrossingsRequest, PathwayRequest, Pathways
from gradscope.capture.plan import Plan, make_plan, structure
from gradscope.capture.ranks import Ranks
from gradscope.cuts import Cut, bottlenecks
from gradscope.errors import GradscopeError
from gradscope.graph.calls import Call, CallRecorder
from gradscope.graph.walk import walk
from gradscope.probing import Probe, probe
from gradscope.run import Column, Run, Site
from gradscope.store import Journal

PLANS = 32  # graph structures remembered; a model whose graph never repeats makes one a step
SAMPLES = 1 << 20  # samples held in memory before they are written, whatever the clock says


def attach(
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    out: str | os.PathLike[str] | None = "run.pt",
    every: int = 10,
    flush_every: float = 5.0,
    update_every: int = 8,
    name: str | None = None,
    args: dict[str, Any] | None = None,
) -> Scope:
    """Record where the gradient goes while a model is trained.

    On steps 0, every, 2·every, … the autograd graph is walked at the end of the forward
    pass and hooked for that one backward pass: gradients at all module outputs, at every
    fork by edge, and across every attention softmax; gradients of parameters when the
    optimizer steps. Nothing is put into the model, and training is bit-identical with and
    without it.

    Args:
        model: any module, on any device.
        optimizer: steps are counted at its `step()`. Several are given in the order in which
            they step: gradients are read before the first, updates after the last. Without
            one, call `scope.step()` where the optimizer would step.
        out: file to write; a gradscope run already there is replaced. None records into
            memory only (`scope.run()`).
        every: record every n-th step, counted from 0.
        flush_every: seconds between writes; a killed process loses at most that much.
        update_every: training steps between two measurements of a parameter's update, which
            needs a copy of the weights: parameters take turns.
        name: of the run, in reports; by default the file's name.
        args: the run's configuration, kept in `run.meta["args"]`.

    Returns:
        A `Scope`: leave its `with` block, or call `close()`, to finish the file.

    Raises:
        GradscopeError: if an argument can't be used, before anything is touched.
    """
    return Scope(
        model,
        optimizers=_optimizers(optimizer),
        out=None if out is None else Path(out),
        every=_positive("every", every),
        flush_every=_seconds("flush_every", flush_every),
        update_every=_positive("update_every", update_every),
        name=name,
        args=args,
    )


class Scope:
    """A recording in progress. Made by `attach`."""

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizers: list[torch.optim.Optimizer],
        out: Path | None,
        every: int,
        flush_every: float,
        update_every: int,
        name: str | None,
        args: dict[str, Any] | None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise GradscopeError(
                f"attach() takes a torch.nn.Module, not {type(model).__name__}: {model!r:.80}"
            )
        self._every = every
        self._flush_every = flush_every
        self._step = 0
        self._recorded = 0
        self._log_offset: dict[str, int] = {}
        self._closed = self._failed = False
        self._with_closure = False
        self._process = os.getpid()
        self._began = self._step_began = self._flushed = time.perf_counter()
        self._spent = 0.0

        self._model = weakref.ref(model)
        self._paths = {module: path for path, module in model.named_modules()}
        named = dict(model.named_parameters())
        trainable = {n: p for n, p in named.items() if p.requires_grad}
        self._parameter_names = {id(p): n for n, p in named.items()}
        self._optimizers = optimizers
        held = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}
        if not optimizers:
            held = set(self._parameter_names)

        meta = describe(
            model,
            optimizers,
            name=name or (out.stem if out else "run"),
            args=args or {},
            every=every,
            flush_every=flush_every,
            update_every=update_every,
        )
        self._memory: Run | None = Run(meta=meta) if out is None else None
        self._journal = None if out is None else Journal(out, Run(meta=meta))
        self._meta = meta

        self._ledger = Ledger()
        turns = max(1, round(update_every / every))
        self._parameters = Parameters(self._ledger, named, held, turns)
        self._plans: list[tuple[tuple[list[Any], ...], Plan]] = []
        self._hung: list[Any] = []  # handles of this step's hooks
        self._calls = CallRecorder(self._paths, self._forward_done, self._fail, keep=False)
        self._pathways = Pathways(
            self._ledger, self._paths, trainable, self._note_unseen, self._fail
        )
        self._optimizer_handles: list[Any] = []
        if optimizers:
            self._optimizer_handles = [
                optimizers[0].register_step_pre_hook(self._before_step),
                optimizers[-1].register_step_post_hook(self._after_step),
            ]
        self._ranks: list[Ranks] = []
        self._at_exit = _close_at_exit(self)
        self._recording = True
        self._asked_at = -1  # step at which a gradient scaler was last asked for one
        self._calls.arm()
        loss_scale.listen(self)

    # -- what users call ---------------------------------------------------------------

    def log(self, **values: Any) -> None:
        """Record scalars of the current step: loss, accuracy, anything.

        Before the first optimizer step they belong to step 0, and a name logged then counts
        as logged *before* the step ever after; otherwise scalars belong to the step that was
        just made. Tensors are read when the run is next flushed, so that nothing waits for
        the device.

        Raises:
            GradscopeError: if a value is no number.
        """
        if self._closed:
            return
        for name, value in values.items():
            offset = self._log_offset.setdefault(name, 0 if self._step == 0 else 1)
            self._ledger.scalar(max(self._step - offset, 0), name, _number(name, value))
        if not self._calls.armed:  # on a recorded step the flush comes with its end
            self._maybe_flush()

    def crossings(self, every: int = 100, max_order: int = 8) -> None:
        """Also split the gradient by the number of attention softmaxes crossed.

        At the first backward pass of every n-th step, at every module's output and every
        parameter: ‖G_k‖ and ⟨G_k, g⟩/‖g‖² for k = 0 … max_order (the last: "or more"), and the
        mean number of crossings. See `gradscope.crossings` for a single pass. Costs up to
        `max_order` + 2 backward passes each time.

        Raises:
            GradscopeError: if an argument can't be used.
        """
        if isinstance(max_order, bool) or not isinstance(max_order, int) or max_order < 0:
            raise GradscopeError(f"max_order= takes a whole number from 0 on, not {max_order!r}")
        self._request(CrossingsRequest(_positive("every", every), max_order))

    def pathway(self, name: str, source: str, through: str, every: int = 100) -> None:
        """Also follow a named pathway: the part of a gradient that passes through given places.

        At the first backward pass of every n-th step, the gradient at `source` is split into
        what passes through any of the places and the rest; both are recorded, as ‖part‖ and
        as ⟨part, g⟩/‖g‖².

        Args:
            name: of the pathway, in tables and figures.
            source: pattern of module paths ("layers.0.latent"), whose outputs are meant.
            through: pattern of module paths, whose outputs are the places, or of softmaxes:
                a module path with ":softmax" behind it ("layers.*:softmax").

        Raises:
            GradscopeError: if an argument can't be used. A pattern that matches nothing in the
                graph is told in the run's `unseen`.
        """
        self._request(PathwayRequest(name, source, through, _positive("every", every)))

    def effective_rank(self, sites: str, every: int = 100) -> None:
        """Also record the effective rank of module outputs, over the samples of a batch.

        Args:
            sites: pattern of module paths, such as "layers.*.content".

        Raises:
            GradscopeError: if `every` can't be used.
        """
        if not self._closed:
            self._ranks.append(Ranks(self._ledger, self._paths, sites, _positive("every", every)))
            self._calls.keep |= self._step % every == 0
            self._calls.arm()

    def bottlenecks(self, closure: Callable[[], Any]) -> list[Cut]:
        """Also record the minimum cuts of the model: see `gradscope.bottlenecks`.

        Once a run is enough: they are a matter of structure.

        Args:
            closure: runs a forward pass and returns the loss.

        Raises:
            GradscopeError: if the closure doesn't run the model.
        """
        model = self._model()
        if model is None or self._closed:
            raise GradscopeError("bottlenecks() takes a scope that is open")
        was_armed = self._calls.armed
        self._calls.disarm()
        try:
            cuts = bottlenecks(model, closure)
        finally:
            if was_armed:
                self._calls.arm()
        self._meta["cuts"] = [cut.to_dict() for cut in cuts]
        for cut in cuts:
            name = f"{cut.source} → {cut.sink}"
            self._ledger.site(Site(name, "cut", type=cut.kind, order=len(self._ledger.sites)))
            for metric in ("width", "source_width", "sink_width", "ratio"):
                column = Column(name, "cut", "", metric)
                self._ledger.once(self._step, column, float(getattr(cut, metric)))
        return cuts

    def probe(self, name: str, features: Any, labels: Any) -> Probe:
        """Also record how well labels can be read from features: see `gradscope.probe`.

        Belongs to the step just made.

        Args:
            name: of the probe, in tables and figures.
            features: (B, ...), what a layer hands on.
            labels: (B,) integers.

        Raises:
            GradscopeError: if the sizes don't fit.
        """
        found = probe(features, labels)
        note = f"{found.samples} held-out samples"
        self._ledger.site(Site(name, "probe", order=len(self._ledger.sites), note=note))
        for metric in ("accuracy", "majority", "shuffled"):
            column = Column(name, "probe", "", metric)
            self._ledger.once(max(self._step - 1, 0), column, getattr(found, metric))
        return found

    def _request(self, request: CrossingsRequest | PathwayRequest) -> None:
        if not self._closed:
            self._pathways.request(request, self._step)
            self._calls.keep |= self._pathways.due(self._step)
            self._calls.arm()

    def step(self) -> None:
        """Count a step by hand: for training loops without a torch optimizer."""
        if self._closed:
            return
        if self._optimizers:
            raise GradscopeError("steps are counted at the optimizer's step(); don't call step()")
        self._before_step(None, (), {})
        self._after_step(None, (), {})

    def run(self) -> Run:
        """What was recorded so far.

        Raises:
            GradscopeError: if the recording goes to a file: load that instead.
        """
        if self._memory is None:
            raise GradscopeError("this recording goes to a file: use gradscope.load() on it")
        if not self._closed:
            self._flush()
        return self._memory

    def close(self) -> None:
        """Finish the file and let go of the model. What leaving the `with` block does."""
        self._close("")

    def __enter__(self) -> Scope:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close("" if error is None else f"{type(error).__name__}: {error}")

    # -- the course of a step ----------------------------------------------------------

    def _forward_done(self, calls: list[Call]) -> None:
        """An outermost forward pass has ended: walk its graph and hang the taps."""
        if not torch.is_grad_enabled():
            return
        self._pathways.forward_done(calls)
        for ranks in self._ranks:
            if self._step % ranks.every == 0:
                ranks.forward_done(calls)
        if not self._recording:
            return
        began = time.perf_counter()
        outer = calls[-1]
        returned = [o for o in outer.outputs if o.node is not None]
        # Roots: what the model returned, then whatever else modules made (a loss kept on
        # the side). Where no gradient comes, nothing is recorded.
        roots = [o.node for call in (outer, *calls) for o in call.outputs if o.node is not None]
        if not roots:
            return
        graph = walk(roots)
        key = structure(graph, calls)
        plan = self._known_plan(key)
        if plan is None:
            plan = make_plan(
                graph,
                calls,
                start=outer.start,
                returned={(graph.index[o.node], o.number) for o in returned},
                paths=self._paths,
                parameters=self._parameter_names,
                ledger=self._ledger,
                unseen=self._note_unseen,
                failed=self._fail,
            )
            self._plans.insert(0, (key, plan))
            del self._plans[PLANS:]
        self._hung += plan.hang(graph)
        self._spent += time.perf_counter() - began

    def _known_plan(self, key: tuple[list[Any], ...]) -> Plan | None:
        for position, (known, plan) in enumerate(self._plans):
            if known == key:
                if position:
                    self._plans.insert(0, self._plans.pop(position))
                return plan
        return None

    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._recording:
            return
        try:
            with torch.no_grad():
                # A closure makes the gradients inside step(): they are read afterwards.
                self._with_closure = any(map(callable, (*args[1:], *kwargs.values())))
                if not self._with_closure:
                    # Set where a fused optimizer divides by the scale itself.
                    self._parameters.gradients(getattr(optimizer, "grad_scale", None))
                self._parameters.before_update(self._recorded)
        except Exception as error:
            self._fail(error)

    def _after_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        now = time.perf_counter()
        if self._calls.armed:
            try:
                if self._recording:
                    with torch.no_grad():
                        if self._with_closure:
                            self._parameters.gradients()
                        self._parameters.after_update()
                self._end_armed_step(now)
            except Exception as error:
                self._fail(error)
        self._step_began = now
        self._step += 1
        if not self._closed:
            self._begin_step()

    def scaler_steps(self, optimizer: torch.optim.Optimizer, scale: torch.Tensor) -> None:
        """A `torch.amp.GradScaler` will have the optimizer step."""
        if optimizer in self._optimizers:
            self._ledger.scale = scale.item() if scale.is_cpu else scale
            self._asked_at = self._step

    def scaler_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients that overflowed are thrown away, and so is what was recorded of them."""
        skipped = self._step == self._asked_at
        if self._calls.armed and skipped and optimizer is self._optimizers[-1]:
            self._release_graph()
            self._ledger.forget_step()
            self._begin_step()

    def _begin_step(self) -> None:
        self._recording = self._step % self._every == 0
        pathways = not self._failed and self._pathways.due(self._step)
        ranks = not self._failed and any(self._step % r.every == 0 for r in self._ranks)
        if pathways:
            self._pathways.begin_step(self._step)
        if self._recording or pathways or ranks:
            self._calls.keep = pathways or ranks
            self._calls.arm()
        elif self._calls.armed:
            self._calls.disarm()

    def _end_armed_step(self, now: float) -> None:
        self._release_graph()
        self._pathways.end_step()
        self._calls.reset()
        self._ledger.end_step(self._step)
        if self._recording:
            for group, lr in self._learning_rates().items():
                self._ledger.scalar(self._step, group, lr)
            self._ledger.scalar(self._step, "step_seconds", now - self._step_began)
            self._recorded += 1
        self._maybe_flush()

    def _release_graph(self) -> None:
        for handle in self._hung:
            handle.remove()
        self._hung = []

    def _learning_rates(self) -> dict[str, float]:
        groups = [g for o in self._optimizers for g in o.param_groups if "lr" in g]
        if not groups:
            return {}
        rates = [float(g["lr"]) for g in groups]
        if len(set(rates)) == 1:
            return {"lr": rates[0]}
        return {f"lr[{i}]": rate for i, rate in enumerate(rates)}

    # -- writing -----------------------------------------------------------------------

    def _maybe_flush(self) -> None:
        now = time.perf_counter()
        due = now - self._flushed >= self._flush_every or self._recorded == 1
        if due or self._ledger.waiting > SAMPLES:
            try:
                self._flush()
            except Exception as error:  # a full disk, say: no reason for training to end
                self._fail(error)

    def _flush(self) -> None:
        began = time.perf_counter()
        sites, columns, blocks = self._ledger.drain()
        timings = {"seconds": began - self._began, "gradscope_seconds": self._spent}
        self._meta["timings"] = timings
        if self._memory is not None:
            self._memory.sites.update({(s.kind, s.name): s for s in sites})
            self._memory.columns.extend(columns)
            self._memory.blocks.extend(blocks)
            self._memory.meta = self._meta
        elif self._journal is not None:
            changing: dict[str, Any] = {
                k: self._meta[k]
                for k in ("timings", "unseen", "errors", "ended", "steps", "cuts")
                if k in self._meta
            }
            self._journal.append(sites, columns, blocks, changing)
        self._flushed = time.perf_counter()
        self._spent += self._flushed - began

    def _close(self, ended: str) -> None:
        if self._closed:
            return
        self._closed, self._recording = True, False
        self._calls.disarm()
        self._pathways.close()
        self._release_graph()
        for handle in self._optimizer_handles:
            handle.remove()
        self._optimizer_handles = []
        self._optimizers = []
        loss_scale.ignore(self)
        atexit.unregister(self._at_exit)
        self._parameters.free()
        if os.getpid() != self._process:  # a forked worker: the file is its parent's
            return
        self._meta["steps"] = self._step
        if ended:
            self._meta["ended"] = ended
        try:
            self._flush()
            if self._journal is not None:
                self._journal.finish()
            elif self._memory is not None:
                self._memory.meta["status"] = "complete"
        except Exception as error:  # what was written before can still be read
            self._fail(error)
        self._ranks.clear()
        self._paths.clear()
        self._plans.clear()

    # -- trouble -----------------------------------------------------------------------

    def _note_unseen(self, what: str, why: str) -> None:
        entry = {"what": what, "why": why}
        if entry not in self._meta["unseen"]:
            self._meta["unseen"].append(entry)

    def _fail(self, error: BaseException) -> None:
        """Say it once, stop measuring, and leave the training run alone."""
        self._calls.disarm()
        self._pathways.close()
        self._release_graph()
        self._ledger.forget_step()
        self._recording, self._failed = False, True
        self._every = 1 << 62
        text = "".join(traceback.format_exception(error)).strip()
        if not self._meta["errors"]:
            warnings.warn(
                f"gradscope stopped recording gradients at step {self._step}; training goes on "
                f"unchanged. Please report this with the text below.\n{text}",
                RuntimeWarning,
                stacklevel=2,
            )
        self._meta["errors"].append(f"step {self._step}: {text}")


def _optimizers(given: Any) -> list[torch.optim.Optimizer]:
    if given is None:
        return []
    several = [given] if isinstance(given, torch.optim.Optimizer) else list(given)
    for optimizer in several:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise GradscopeError(
                f"optimizer= takes a torch.optim.Optimizer, not {type(optimizer).__name__}"
            )
    return several


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise GradscopeError(f"{name}= takes a whole number from 1 on, not {value!r}")
    return value


def _seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise GradscopeError(f"{name}= takes a number of seconds, not {value!r}")
    return float(value)


def _number(name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise GradscopeError(
                f"log({name}=…) takes a number, not a tensor of shape {tuple(value.shape)}; "
                "log its mean"
            )
        value = value.detach()
        return float(value) if value.is_cpu else value.reshape(()).clone()
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise GradscopeError(f"log({name}=…) takes a number, not {value!r:.80}") from error


def _close_at_exit(scope: Scope) -> Any:
    """Finish the file of a script that ends without closing; holds no strong reference."""
    reference = weakref.ref(scope)

    def close() -> None:
        alive = reference()
        if alive is not None:
            alive.close()

    atexit.register(close)
    return close
