"""`attach`: one training run's recording, from its first step to its last."""

from __future__ import annotations

import atexit
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from gradscope.capture.describe import describe
from gradscope.capture.ledger import Ledger
from gradscope.capture.pathways import CrossingsRequest, PathwayRequest
from gradscope.capture.processes import this_process
from gradscope.capture.recorder import Recorder
from gradscope.capture.shards import named_shards
from gradscope.capture.softmaxes import SOFTMAX_ROWS, SoftmaxRows
from gradscope.capture.writer import Writer
from gradscope.cuts import Cut, bottlenecks
from gradscope.errors import GradscopeError, path_given
from gradscope.findings import Finding, analyze
from gradscope.graph.wrappers import check_initialised, has_flat_parameters, unwrapped
from gradscope.live import OnFinding, Watch
from gradscope.probing import Probe, probe
from gradscope.run import Column, Run, Site
from gradscope.store import part_path


def attach(
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    out: str | os.PathLike[str] | None = "run.pt",
    every: int = 10,
    flush_every: float = 5.0,
    update_every: int = 8,
    softmax_rows: SoftmaxRows = "sample",
    first_step: int = 0,
    on_finding: OnFinding | None = None,
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
        model: any module, on any device. Of DistributedDataParallel, `torch.compile` and
            `fully_shard`, names are those of the module inside.
        optimizer: steps are counted at its `step()`. Several are given in the order in which
            they step: each parameter is read when its own optimizer steps, and a step ends with
            the last. Without one, call `scope.step()` once a step.
        out: file to write; a gradscope run already there is replaced. None records into
            memory only (`scope.run()`). Of several processes (torch.distributed, torchrun), the
            first writes it and rank r writes its part beside it (run.rank1.pt); `load` puts
            them together.
        every: record every n-th step, counted from 0.
        flush_every: seconds between writes; a killed process loses at most that much.
        update_every: training steps between two measurements of a parameter's update, which
            needs a copy of the weights: parameters take turns. So do activations, half as often.
            1 measures all of them at every recorded step.
        softmax_rows: of an attention softmax with more than 65,536 elements, measure a fixed
            "sample" of about 32,768 elements, or "all" rows. `Site.note` says which it was.
        first_step: number of the next optimizer step, where an earlier training is resumed.
        on_finding: called with every `Finding` that is new or has become worse, while training
            goes on and once more at its end, whatever ends it; looking takes up to 1 % of the time.
            What it raises comes out of the optimizer's `step()`, and it is not called again.
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
        out=None if out is None else path_given("out=", out),
        every=_positive("every", every),
        flush_every=_seconds("flush_every", flush_every),
        update_every=_positive("update_every", update_every),
        softmax_rows=_softmax_rows(softmax_rows),
        first_step=_positive("first_step", first_step, least=0),
        on_finding=on_finding,
        name=name,
        args=args,
    )


_OPEN: weakref.WeakValueDictionary[Path, Scope] = weakref.WeakValueDictionary()  # by file


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
        softmax_rows: SoftmaxRows,
        first_step: int,
        on_finding: OnFinding | None,
        name: str | None,
        args: dict[str, Any] | None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise GradscopeError(
                f"attach() takes a torch.nn.Module, not {type(model).__name__}: {model!r:.80}"
            )
        check_initialised(model)
        _check_held(model, optimizers)
        if on_finding is not None and not callable(on_finding):
            raise GradscopeError(f"on_finding= takes a function, not {on_finding!r:.80}")
        self._log_offset: dict[str, int] = {}
        self._process = os.getpid()
        process = this_process(out)
        self._meta = describe(
            unwrapped(model),
            optimizers,
            name=name or (out.stem if out else "run"),
            args=args or {},
            every=every,
            flush_every=flush_every,
            update_every=update_every,
            softmax_rows=softmax_rows,
        )
        if process is not None:
            self._meta["process"] = asdict(process)
            out = None if out is None else part_path(out, process.rank)
        claimed = _claim(out)
        self._ledger = Ledger(process.rank if process else 0)
        self._writer = Writer(out, self._meta, self._ledger, flush_every)
        self.recorder = Recorder(
            model,
            optimizers,
            self._meta,
            self._writer,
            self._ledger,
            every,
            update_every,
            softmax_rows,
            first_step,
        )
        self._watch = None if on_finding is None else Watch(self._so_far, on_finding)
        self.recorder.recorded = self._look
        self._at_exit = _close_at_exit(self)
        if claimed is not None:
            _OPEN[claimed] = self

    # -- what users call ---------------------------------------------------------------

    def log(self, /, **values: Any) -> None:
        """Record scalars of the current step: loss, accuracy, anything.

        Before the first optimizer step they belong to step 0, and a name logged then counts
        as logged *before* the step ever after; otherwise scalars belong to the step that was
        just made. Tensors are read when the run is next flushed, so that nothing waits for
        the device.

        Raises:
            GradscopeError: if a value is no number.
        """
        if self.recorder.closed:
            return
        step = self.recorder.step
        for name, value in values.items():
            offset = self._log_offset.setdefault(name, 0 if step == 0 else 1)
            self._ledger.scalar(max(step - offset, 0), name, _number(name, value))
        self._logged()

    def log_at(self, step: int, values: Mapping[str, Any]) -> None:
        """Record scalars of a step that the caller knows by its number.

        Raises:
            GradscopeError: if a value is no number.
        """
        if self.recorder.closed:
            return
        for name, value in values.items():
            self._ledger.scalar(step, name, _number(name, value))
        self._logged()

    def _look(self, at_end: bool = False) -> None:
        """Tell of new findings, if somebody wants to know."""
        if self._watch is None or not (at_end or self._watch.due()):
            return
        try:
            found = self._watch.look()
        except Exception as error:
            self._watch = None
            self.recorder.trouble.caught("findings", error)
            return
        watch, self._watch = self._watch, None
        watch.tell(found)
        self._watch = watch  # unless the function has raised: it is done with this run

    def _logged(self) -> None:
        """Write, if it is time."""
        if not self.recorder.calls.armed:  # on a recorded step the flush comes with its end
            self.recorder.maybe_flush()

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
            GradscopeError: if `every` can't be used, or no module has such a path.
        """
        if not self.recorder.closed:
            self.recorder.rank(sites, _positive("every", every))

    def bottlenecks(self, closure: Callable[[], Any]) -> list[Cut]:
        """Also record the minimum cut from input to output: see `gradscope.bottlenecks`.

        Once a run is enough: it is a matter of structure. Cuts between attention softmaxes
        are recorded without being asked for, at the first recorded step.

        Args:
            closure: runs a forward pass and returns the loss.

        Raises:
            GradscopeError: if the closure doesn't run the model.
        """
        model = self.recorder.model
        if model is None or self.recorder.closed:
            raise GradscopeError("bottlenecks() takes a scope that is open")
        cuts = bottlenecks(model, closure)
        self.recorder.write_cuts(cuts)
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
            self._ledger.once(max(self.recorder.step - 1, 0), column, getattr(found, metric))
        return found

    def _request(self, request: CrossingsRequest | PathwayRequest) -> None:
        if not self.recorder.closed:
            self.recorder.request(request)

    def step(self) -> None:
        """Count a step by hand: for training loops without a torch optimizer.

        Call it after the backward pass, while the gradients are there, before the weights are
        changed or after it: an update is what became of them from one call to the next. The first
        call has none.
        """
        if self.recorder.closed:
            return
        if self.recorder.optimizers:
            raise GradscopeError("steps are counted at the optimizer's step(); don't call step()")
        self.recorder.before_step(None, (), {})
        self.recorder.after_step(None, (), {})

    def run(self) -> Run:
        """What was recorded so far.

        Raises:
            GradscopeError: if the recording goes to a file: load that instead.
        """
        if self._writer.memory is None:
            raise GradscopeError("this recording goes to a file: use gradscope.load() on it")
        return self._so_far()

    def findings(self) -> list[Finding]:
        """Findings of what was recorded so far, worst first: see `gradscope.analyze`.

        The run is looked at as a whole each time: call it now and then, not at every step, or
        give `attach` a function to be called (`on_finding`).
        """
        return analyze(self._so_far())

    def _so_far(self) -> Run:
        if not self.recorder.closed:
            self._writer.flush()
        return self._writer.read()

    def close(self, ended: str = "") -> None:
        """Finish the file and let go of the model. What leaving the `with` block does.

        Args:
            ended: what ended the training run, if that was not its last step: kept in
                `run.meta["ended"]`.
        """
        if self.recorder.closed:
            return
        without_steps = self.recorder.without_steps
        self.recorder.close()
        atexit.unregister(self._at_exit)
        if os.getpid() != self._process:  # a forked worker: the file is its parent's
            return
        self._meta["steps"] = self.recorder.step
        self._meta["unfinished"] = self.recorder.passes
        if ended:
            self._meta["ended"] = ended
        try:
            self._writer.finish()
        except Exception as error:  # what was written before can still be read
            self.recorder.trouble.caught("to the file", error)
            return
        if without_steps and not ended:
            warnings.warn(
                f"gradscope saw {self.recorder.passes} backward passes and no step, and recorded "
                "nothing: give attach() the optimizer, or call scope.step() once a step",
                UserWarning,
                stacklevel=2,
            )
        try:
            self._look(at_end=True)
        except Exception:
            if not ended:  # else what ended the training is what matters
                raise

    def discard(self) -> None:
        """Close, and remove what was written."""
        self._watch = None
        self.close()
        if os.getpid() == self._process:
            self._writer.discard()

    def __enter__(self) -> Scope:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close("" if error is None else f"{type(error).__name__}: {error}")


def _claim(out: Path | None) -> Path | None:
    """The file that is free to record into; an open scope whose model is gone is closed for it.

    Raises:
        GradscopeError: if an open scope records into it.
    """
    if out is None:
        return None
    claimed = out.resolve()
    other = _OPEN.get(claimed)
    if other is not None and not other.recorder.closed:
        recorded = other.recorder.model
        if recorded is not None:
            raise GradscopeError(
                f"{out} is being recorded already, of {type(recorded).__name__}: close that "
                "scope first, or give this one another out="
            )
        other.close()
    return claimed


def _check_held(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """An optimizer of another model would count other steps, or none."""
    if has_flat_parameters(model):
        return  # the optimizer holds the flat ones
    own = {id(p) for p in named_shards(unwrapped(model)).values()}
    held = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}
    if own and optimizers and not own & held:
        raise GradscopeError(
            f"no parameter of the {type(model).__name__} is in the optimizer that was given; give "
            "the one that trains it"
        )


def _optimizers(given: Any) -> list[torch.optim.Optimizer]:
    if given is None:
        return []
    several = list(given) if isinstance(given, Iterable) else [given]
    for optimizer in several:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise GradscopeError(
                f"optimizer= takes a torch.optim.Optimizer, not {type(optimizer).__name__}"
            )
    return several


def _softmax_rows(value: SoftmaxRows) -> SoftmaxRows:
    if value not in SOFTMAX_ROWS:
        raise GradscopeError(f'softmax_rows= takes "sample" or "all", not {value!r}')
    return value


def _positive(name: str, value: int, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise GradscopeError(f"{name}= takes a whole number from {least} on, not {value!r}")
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
