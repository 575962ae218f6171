"""The course of a training run: what is armed, measured and released at every step."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.capture.activations import Activations
from gradscope.capture.between import Between
from gradscope.capture.inputs import Inputs
from gradscope.capture.ledger import Ledger
from gradscope.capture.listening import BACKWARD, CLIP, SCALER_STEP
from gradscope.capture.narrow import Narrow
from gradscope.capture.nonfinite import NonFinite
from gradscope.capture.parameters import Parameters
from gradscope.capture.passes import Pass, Passes
from gradscope.capture.pathways import CrossingsRequest, PathwayRequest, Pathways
from gradscope.capture.plan import Plan, make_plan, structure
from gradscope.capture.ranks import Ranks, check_pattern
from gradscope.capture.remembered import Remembered
from gradscope.capture.shards import gathered, named_shards, spread, tensor_parallel
from gradscope.capture.softmaxes import SoftmaxRows
from gradscope.capture.trouble import Trouble
from gradscope.capture.writer import Writer
from gradscope.cuts import Cut
from gradscope.errors import GradscopeError
from gradscope.graph.aside import UNDER_WAY
from gradscope.graph.calls import Call, CallRecorder
from gradscope.graph.naming import Names
from gradscope.graph.walk import Graph, following, walk
from gradscope.graph.wrappers import has_flat_parameters, module_paths, unwrapped


class Recorder:
    """Listens to a model and its optimizers, and hands what it measures to a ledger.

    Steps count optimizer steps from `first_step`; `every`-th ones are recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        meta: dict[str, Any],
        writer: Writer,
        ledger: Ledger,
        every: int,
        update_every: int,
        softmax_rows: SoftmaxRows,
        first_step: int = 0,
    ) -> None:
        self.step = self._first = first_step
        self.closed = False
        self.recorded: Callable[[], None] = lambda: None  # called when a recorded step is over
        self._every, self._softmax_rows = every, softmax_rows
        self._meta, self._writer, self._ledger = meta, writer, ledger
        self._recorded = 0
        self._with_closure = False
        self._step_began = time.perf_counter()

        flat = has_flat_parameters(model)
        model = unwrapped(model)
        self._model = weakref.ref(model)
        # Held weakly: a model that its owner drops is gone, also while it is being recorded.
        self.paths: dict[nn.Module, str] = weakref.WeakKeyDictionary(  # type: ignore[assignment]
            module_paths(model)
        )
        named = {} if flat else named_shards(model)
        self._spread = any(map(spread, named.values()))
        trainable = {n: p for n, p in named.items() if p.requires_grad}
        self._parameter_names = {id(p): n for n, p in named.items()}

        self.trouble = Trouble(meta["errors"], lambda: self.step, self._switch_off)
        self._turns = turns = max(1, round(update_every / every))
        held = _held(optimizers) if optimizers else set(self._parameter_names)
        self._groups = _group_sizes(optimizers)
        self._parameters = Parameters(ledger, named, held, turns)
        # Reading an activation costs more than a copy of a weight, and matters less often.
        rarely = 1 if update_every == 1 else max(1, round(2 * update_every / every))
        self._activations = Activations(ledger, rarely)
        self._inputs = Inputs(ledger, self.paths, self.trouble)
        self._called: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        meta["nonfinite"] = []
        self._narrow = Narrow(meta, ledger, self.trouble)
        self._passes = Passes()  # of the step that is being recorded
        self._nonfinite = NonFinite(
            meta["nonfinite"], self._parameter_names, self._passes, self.trouble
        )
        self._between = Between(
            self._passes,
            self._parameter_names,
            ledger,
            softmax_rows,
            self._activations,
            self._nonfinite.found,
            lambda graph, names: self._narrow.look(self.step, graph, names),
            self.note_unseen,
            self.trouble,
        )
        self._unregistered = 0
        self._plans: Remembered[Plan] = Remembered()
        self._hung: list[Any] = []  # handles of this step's hooks
        self.calls = CallRecorder(
            self.paths, self._forward_done, self.trouble.of("gradients"), keep=False
        )
        self._pathways = Pathways(
            ledger, self.paths, trainable, self.note_unseen, self.trouble.of("pathways")
        )
        self._ranks: list[Ranks] = []
        self._handles: list[Any] = []
        self.follow(optimizers)
        self.passes = 0  # backward passes of the step that is being recorded
        self._forward = False  # whether a forward pass waits for its own
        self._asked_at = -1  # step at which a gradient scaler was last asked for one
        self._skipped: Any = 0  # steps that gradient scalers have skipped since the last one taken
        SCALER_STEP.listen(self)
        CLIP.listen(self)
        BACKWARD.listen(self)
        if flat:
            self.note_unseen("parameters", "in the flat shards of FullyShardedDataParallel")
        if self._spread and tensor_parallel(model):
            self.note_unseen(
                "tensors between the modules that are DTensors",
                "tensor parallelism: each process has a part only",
            )
        self._resumes_armed = False
        UNDER_WAY.add(self)
        self._begin_step()

    @property
    def model(self) -> nn.Module | None:
        return self._model()

    @property
    def without_steps(self) -> bool:
        """Whether there were backward passes, of a model with no optimizer, and nobody counted."""
        return not self.optimizers and self.step == self._first and self.passes > 1

    def follow(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Count steps by these from now on, given in the order in which they step."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.optimizers = optimizers
        for optimizer in optimizers:
            self._handles += [
                optimizer.register_step_pre_hook(self.before_step),
                optimizer.register_step_post_hook(self.after_step),
            ]

    def begin_again(self) -> None:
        """Drop what this step has gathered: it mixes what belongs to several steps."""
        self._release_graph()
        self._ledger.forget_step()
        self._begin_step()

    def request(self, request: CrossingsRequest | PathwayRequest) -> None:
        """Measure pathways too, from this step on.

        Raises:
            GradscopeError: if they can't be, in this model.
        """
        if self._spread:
            raise GradscopeError(
                "pathways can't be measured in a model of fully_shard, whose weights are not all "
                "on this process; measure them with DistributedDataParallel or in one process"
            )
        self._pathways.request(request, self.step)
        self._arm_for_outputs(self._pathways.due(self.step))

    def rank(self, sites: str, every: int) -> None:
        """Measure effective ranks too, from this step on.

        Raises:
            GradscopeError: if no module has such a path.
        """
        check_pattern(sites, self.paths.values())
        self._ranks.append(Ranks(self._ledger, self.paths, sites, every))
        self._arm_for_outputs(self.step % every == 0)

    def write_cuts(self, cuts: list[Cut]) -> None:
        """Record minimum cuts, in place of those that were."""
        self._narrow.write(self.step, cuts)

    def note_unseen(self, what: str, why: str) -> None:
        """Tell the run what can't be measured."""
        entry = {"what": what, "why": why}
        if entry not in self._meta["unseen"]:
            self._meta["unseen"].append(entry)

    def maybe_flush(self) -> None:
        if self._writer.due() or self._recorded == 1:
            try:
                self._writer.flush()
            except Exception as error:  # a full disk, say: no reason for training to end
                self.trouble.caught("to the file", error)

    def pause(self) -> None:
        """Hear of no forward or backward pass until `resume`."""
        UNDER_WAY.discard(self)
        self._resumes_armed = self.calls.armed
        self.calls.disarm()
        BACKWARD.ignore(self)

    def resume(self) -> None:
        if self.closed:
            return
        UNDER_WAY.add(self)
        BACKWARD.listen(self)
        if self._resumes_armed:
            self.calls.arm()

    def close(self) -> None:
        """Let go of the model, the optimizers and torch."""
        self.closed, self._recording = True, False
        UNDER_WAY.discard(self)
        self.calls.disarm()
        self._pathways.close()
        self._release_graph()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._skipped:
            self._ledger.scalar(self.step, "skipped_steps", self._skipped)
        self.optimizers = []
        SCALER_STEP.ignore(self)
        CLIP.ignore(self)
        BACKWARD.ignore(self)
        self._nonfinite.end_step(self.step)
        self._called.clear()
        self._parameters.free()
        self._ranks.clear()
        self.paths.clear()
        self._plans.clear()

    # -- what happens in a step, in this order --------------------------------------------

    def _begin_step(self) -> None:
        off = self.trouble.off
        self._recording = self.step % self._every == 0 and not off("to the file")
        pathways = self._pathways.due(self.step) and not off("pathways")
        ranks = any(self.step % r.every == 0 for r in self._ranks)
        if pathways:
            self._pathways.begin_step(self.step)
        self._activations.recorded = self._recorded
        read = self._recording and self._recorded % self._turns == 0
        self.calls.reading = self._inputs if read else None
        if self._recording or pathways or ranks:
            self.calls.keep = pathways or ranks
            self.calls.arm()
        elif self.calls.armed:
            self.calls.disarm()
        if self._recording and not self.optimizers and self.step > self._first:
            self._copy_weights()

    def _copy_weights(self) -> None:
        """Nobody says when weights are about to move: compare them from one call to the next."""
        if self.trouble.off("parameters"):
            return
        try:
            with torch.no_grad():
                self._parameters.before_update(self._recorded, gradients_follow=True)
        except Exception as error:
            self.trouble.caught("parameters", error)

    def _forward_done(self, calls: list[Call]) -> None:
        """An outermost forward pass has ended: walk its graph and hang the taps."""
        if not torch.is_grad_enabled():
            return
        self._pathways.forward_done(calls)
        for ranks in self._ranks:
            if self.step % ranks.every == 0:
                ranks.forward_done(calls)
        if not self._recording or self.trouble.off("gradients"):
            return
        began = time.perf_counter()
        self._note_called(calls)
        self._narrow.forward_done(calls)
        outer = calls[-1]
        returned = [o for o in outer.outputs if o.node is not None]
        # Roots: what the model returned, then whatever else modules made (a loss kept on
        # the side). Where no gradient comes, nothing is recorded.
        roots = [o.node for call in (outer, *calls) for o in call.outputs if o.node is not None]
        if not roots:
            return
        self._forward = True
        graph = walk(roots)
        key = structure(graph, calls)
        plan = self._plans.find(key)
        if plan is None:
            plan = make_plan(
                graph,
                calls,
                start=outer.start,
                end=outer.end,
                returned={(graph.index[o.node], o.number) for o in returned},
                paths=self.paths,
                parameters=self._names_now(),
                ledger=self._ledger,
                softmax_rows=self._softmax_rows,
                activations=self._activations,
                nonfinite=self._nonfinite.found,
                unseen=self.note_unseen,
                trouble=self.trouble,
            )
            self._plans.add(key, plan)
            self._adopt(graph, outer.start)
            if self._narrow.looking and not plan.reads:  # else the loss will show all of it
                self._narrow.look(self.step, graph, Names(graph, calls, self.paths, {}))
        made = Pass(outer.start, outer.end, plan, {})
        self._hung += plan.taps.hang(graph.nodes, made.arrived)
        self._passes.add(made)
        self._writer.spent += time.perf_counter() - began

    def _names_now(self) -> dict[int, str]:
        """Names of parameters by id, also of those that `fully_shard` has gathered by now."""
        model, names = self._model(), self._parameter_names
        if self._spread and model is not None:
            for whole, shard in gathered(model).items():
                if id(shard) in names:
                    names[whole] = names[id(shard)]
        return names

    def backward_begins(self, tensors: Any, grad_tensors: Any) -> None:
        """A backward pass is about to run, of this model or another."""
        self._hung += self._nonfinite.backward_begins(tensors, self._recording)
        if self._passes:
            self._look_between(tensors)
        self.passes += self._forward
        self._forward = False

    def _look_between(self, losses: Any) -> None:
        if self.trouble.off("gradients"):
            return
        began = time.perf_counter()
        try:
            self._hung += self._between.backward_begins(losses)
        except Exception as error:
            self.trouble.caught("gradients", error)
        self._writer.spent += time.perf_counter() - began

    def clipped(self, parameters: list[Tensor], limit: float, total: Tensor) -> None:
        """`clip_grad_norm_` has clipped gradients of norm `total` to the norm `limit`."""
        if not self._recording or type(total) is not Tensor:
            return  # a sharded norm would need the other processes
        if not any(id(p) in self._parameter_names for p in parameters):
            return
        # As torch does it: min(1, limit / (total + 1e-6)).
        scale = (limit / (total.detach() + 1e-6)).clamp(max=1.0)
        for name, value in (("clip_norm", total.detach()), ("clip_scale", scale)):
            self._ledger.scalar(self.step, name, float(value) if value.is_cpu else value.clone())

    def scaler_steps(self, optimizer: torch.optim.Optimizer, scale: Tensor) -> None:
        """A `torch.amp.GradScaler` will have the optimizer step."""
        if optimizer in self.optimizers:
            self._ledger.scale = scale.item() if scale.is_cpu else scale
            self._asked_at = self.step

    def before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._recording or self.trouble.off("parameters"):
            return
        try:
            with torch.no_grad():
                self._look_for_new_groups()
                # A closure makes the gradients inside step(): they are read afterwards.
                self._with_closure = any(map(callable, (*args[1:], *kwargs.values())))
                if not self._with_closure:
                    # Set where a fused optimizer divides by the scale itself.
                    scale = getattr(optimizer, "grad_scale", None)
                    self._parameters.gradients(scale, self._moved_by(optimizer))
                if self.optimizers:  # else they were copied as the step began
                    self._parameters.before_update(
                        self._recorded,
                        self._moved_by(optimizer),
                        gradients_follow=self._with_closure,
                    )
        except Exception as error:
            self.trouble.caught("parameters", error)

    def after_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = getattr(optimizer, "found_inf", None)  # a fused optimizer skips inside step()
        if isinstance(found, Tensor):
            if found.is_cpu and found.item():
                return  # scaler_stepped will see that no step was taken
            if not found.is_cpu:  # known later: the step counts, and is marked
                self._skipped = self._skipped + found
        now = time.perf_counter()
        if self.calls.armed and self._recording and not self.trouble.off("parameters"):
            try:
                with torch.no_grad():
                    if self._with_closure:
                        self._parameters.gradients(of=self._moved_by(optimizer))
                    self._parameters.after_update()
            except Exception as error:
                self.trouble.caught("parameters", error)
        if self.optimizers and optimizer is not self.optimizers[-1]:
            return  # the step goes on with the other optimizers
        if self.calls.armed:
            self._end_armed_step(now)
        if not isinstance(self._skipped, int) or self._skipped:
            self._ledger.scalar(self.step, "skipped_steps", self._skipped)
            self._skipped = 0
        self._nonfinite.end_step(self.step, scaled=self._asked_at == self.step)
        self._step_began = now
        self.step += 1
        self.passes = 0
        was_recorded = self._recording
        if not self.closed:
            self._begin_step()
        if was_recorded:
            self.recorded()

    def scaler_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients that overflowed are thrown away, and so is what was recorded of them."""
        if self._step_was_taken() or not self.optimizers or optimizer is not self.optimizers[-1]:
            return
        self._skipped += 1
        self._nonfinite.forget_step()
        if self.calls.armed:
            self._release_graph()
            self._ledger.forget_step()
            self._begin_step()

    def _step_was_taken(self) -> bool:
        return self.step != self._asked_at

    def _end_armed_step(self, now: float) -> None:
        self._release_graph()
        self._pathways.end_step()
        self.calls.reset()
        if self._recording:
            if self._ledger.scale is not None:
                self._ledger.scalar(self.step, "loss_scale", self._ledger.scale)
            for group, lr in self._learning_rates().items():
                self._ledger.scalar(self.step, group, lr)
            self._ledger.scalar(self.step, "step_seconds", now - self._step_began)
            self._recorded += 1
            self._narrow.looking = False
        self._ledger.end_step(self.step)
        self.maybe_flush()

    # -- pieces ------------------------------------------------------------------------

    def _arm_for_outputs(self, now: bool) -> None:
        self.calls.keep |= now
        self.calls.arm()

    def _release_graph(self) -> None:
        for handle in self._hung:
            handle.remove()
        self._hung = []
        self._passes.clear()

    def _moved_by(self, optimizer: Any) -> Container[int] | None:
        """Ids of the parameters that are read when this optimizer steps; None means all.

        What no optimizer holds is read with the last one.
        """
        if len(self.optimizers) < 2:
            return None
        if optimizer is self.optimizers[-1]:
            return set(self._parameter_names) - _held(self.optimizers[:-1])
        return _held([optimizer])

    def _look_for_new_groups(self) -> None:
        """`add_param_group` while training: fine-tuning by and by, say."""
        sizes = _group_sizes(self.optimizers)
        if sizes != self._groups:
            self._groups = sizes
            self._parameters.held_now(_held(self.optimizers))

    def _adopt(self, graph: Graph, start: int) -> None:
        """Parameters that the model uses but does not list: layers in a Python list, say.

        Nodes numbered below `start` are another model's, whose result this one reads.
        """
        if self._spread:
            return  # the graph holds others than the module, which lists its shards
        own = (n for node in graph.nodes if node._sequence_nr() >= start for n in following(node))
        for node in own:
            leaf = getattr(node, "variable", None)
            if isinstance(leaf, nn.Parameter) and id(leaf) not in self._parameter_names:
                name = f"(unregistered).{self._unregistered}"
                self._unregistered += 1
                self._parameter_names[id(leaf)] = name
                self._parameters.adopt(name, leaf)

    def _note_called(self, calls: list[Call]) -> None:
        """Which modules run at all: a parameter of one that does, and gets no gradient, is
        detached; one of a module that doesn't is unused."""
        known = len(self._called)
        self._called.update(call.module for call in calls)
        if len(self._called) > known:
            self._meta["called"] = sorted(self.paths[module] for module in self._called)

    def _learning_rates(self) -> dict[str, float]:
        groups = [g for o in self.optimizers for g in o.param_groups if "lr" in g]
        if not groups:
            return {}
        rates = [float(g["lr"]) for g in groups]
        if len(set(rates)) == 1:
            return {"lr": rates[0]}
        return {f"lr[{i}]": rate for i, rate in enumerate(rates)}

    def _switch_off(self, part: str) -> None:
        """What a part that failed holds is let go, and the step is told by the others alone."""
        self._release_graph()
        self._ledger.forget_step()
        if part == "pathways":
            self._pathways.close()
        elif part == "parameters":
            self._parameters.free()
        elif part == "to the file":
            self.calls.disarm()
            self._pathways.close()
            self._recording = False


def _held(optimizers: list[torch.optim.Optimizer]) -> set[int]:
    return {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}


def _group_sizes(optimizers: list[torch.optim.Optimizer]) -> list[int]:
    return [len(g["params"]) for o in optimizers for g in o.param_groups]
