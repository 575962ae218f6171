"""One training run of an attention stack on a generated task, recorded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscope.capture.scope import attach
from gradscope.errors import GradscopeError
from gradscope.models import MODELS, build
from gradscope.stack_watch import probe_stack, watch_stack
from gradscope.tasks import TASKS, Arrows, Scenes

OPTIMIZERS = ("adam", "sgd")
VALIDATION_SCENES = 4096
VALIDATION_SEED = 0  # the same scenes whatever the run's seed, so that runs can be compared
EVALUATED_AT_ONCE = 1024
PROBED = slice(0, 1024)  # validation scenes that linear probes are trained and tested on
REPORT_EVERY = 20  # steps between two calls of `progress`


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run. What a field means is in `meanings()`.

    Raises:
        GradscopeError: if a value can't be used; the message names it and the way out.
    """

    task: Annotated[str, f"Task to learn: {', '.join(TASKS)}."] = "arrows"
    model: Annotated[str, f"Model to train: {', '.join(MODELS)}."] = "san-residual"
    layers: Annotated[int, "Attention layers in the stack."] = 4
    steps: Annotated[int, "Optimizer steps."] = 4000
    seed: Annotated[int, "Decides weights, training scenes and their order."] = 0
    lr: Annotated[float, "Learning rate."] = 2e-3
    batch: Annotated[int, "Scenes per step."] = 64
    hidden: Annotated[int, "Size of features, question, content and latent states."] = 64
    optimizer: Annotated[str, f"Optimizer: {', '.join(OPTIMIZERS)}."] = "adam"
    momentum: Annotated[float, "Momentum of SGD; Adam has no use for it."] = 0.9
    size: Annotated[int, "Cells along each side of the torus."] = 4
    hops: Annotated[int, "Longest walk asked for: questions are 1 to this many hops."] = 4
    answer: Annotated[str, "What is asked of the last cell: cell (which it is), colour."] = "cell"
    colours: Annotated[int, "Number of colours, where the answer is one."] = 4
    scenes: Annotated[int, "Training scenes."] = 40_000
    every: Annotated[int, "Record gradients every n-th step."] = 10
    pathways: Annotated[
        int,
        "Every n-th step, split the gradient by softmaxes crossed; also find bottlenecks at the "
        "start and probe the layers at the end. 0: none of it.",
    ] = 0
    eval_every: Annotated[int, "Validate every n-th step, and after the last."] = 500
    out: Annotated[Path | None, "File to record into; a run already there is replaced."] = None
    threads: Annotated[int, "CPU threads; small models are fastest with one."] = 1
    device: Annotated[str, "Device to train on: cpu, cuda, cuda:1, ..."] = "cpu"

    def __post_init__(self) -> None:
        for name, known in (("task", TASKS), ("model", MODELS), ("optimizer", OPTIMIZERS)):
            value = getattr(self, name)
            if value not in known:
                raise GradscopeError(f"unknown {name} {value!r}; one of {', '.join(known)}")
        for name in "layers steps batch hidden scenes every eval_every threads".split():
            if getattr(self, name) < 1:
                raise GradscopeError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.pathways < 0:
            raise GradscopeError(f"pathways must be at least 0, not {self.pathways}")
        if not 0 <= self.seed < 2**63:
            raise GradscopeError(f"seed must be from 0 to 2^63 - 1, not {self.seed}")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise GradscopeError(f"lr must be a positive number, not {self.lr:g}")
        if not 0 <= self.momentum < 1:
            raise GradscopeError(f"momentum must be at least 0 and below 1, not {self.momentum:g}")
        if self.batch > self.scenes:
            raise GradscopeError(
                f"batch must be at most the number of scenes ({self.scenes}), not {self.batch}"
            )
        self.make_task()
        _usable(self.device)

    def make_task(self) -> Arrows:
        return TASKS[self.task](
            size=self.size,
            hops=self.hops,
            answer=self.answer,  # type: ignore[arg-type]  # Arrows checks it
            colours=self.colours,
        )

    @classmethod
    def meanings(cls) -> dict[str, str]:
        """What each field means, in a sentence."""
        hints = get_type_hints(cls, include_extras=True)
        return {f.name: hints[f.name].__metadata__[0] for f in fields(cls)}


@dataclass(frozen=True)
class Progress:
    """How far a training run is.

    Attributes:
        step: optimizer steps made.
        loss: of the last batch.
        accuracy: of the last batch.
        val_accuracy: at the last validation.
    """

    step: int
    loss: float
    accuracy: float
    val_accuracy: float


@dataclass(frozen=True)
class Scores:
    """What a validation found.

    Attributes:
        loss: mean cross-entropy in nats.
        accuracy: share of right answers.
        by_hops: share of right answers among questions of 1, 2, … hops; NaN where none was.
    """

    loss: float
    accuracy: float
    by_hops: tuple[float, ...]

    def scalars(self) -> dict[str, float]:
        """By the names under which they are logged."""
        hops = {f"val_accuracy_hop{k}": a for k, a in enumerate(self.by_hops, 1)}
        asked = {name: value for name, value in hops.items() if not math.isnan(value)}
        return {"val_loss": self.loss, "val_accuracy": self.accuracy, **asked}


@dataclass(frozen=True)
class TrainResult:
    """A finished training run: its configuration, the model, and how well that does.

    Attributes:
        scores: on the validation scenes, after the last step.
        seconds: training took, validation and recording included.
    """

    config: TrainConfig
    model: nn.Module
    scores: Scores
    seconds: float


def train(
    config: TrainConfig | None = None, progress: Callable[[Progress], None] | None = None
) -> TrainResult:
    """Train a model, and record where its gradient goes into `config.out`, if that is given.

    The same configuration gives the same weights, bit for bit, on the same machine and
    device, recorded or not. Torch's global random state and number of threads are left as
    they were. If training is cut short by an exception, Ctrl-C included, the run file
    holds what was recorded until then.

    Args:
        config: the defaults of `TrainConfig`, if it is left out.
        progress: called every 20 steps and after the last.

    Raises:
        GradscopeError: if `config.out` can't be written.
    """
    config = config or TrainConfig()
    with _threads(config.threads):
        task = config.make_task()
        model = _initialised(config, task)
        optimizer = _optimizer(config, model)
        training = task.scenes(config.scenes, config.seed).to(config.device)
        validation = task.scenes(VALIDATION_SCENES, VALIDATION_SEED, "validation")
        validation = validation.to(config.device)
        recording = (
            nullcontext()
            if config.out is None
            else attach(
                model,
                optimizer=optimizer,
                out=config.out,
                every=config.every,
                name=f"{config.model} × {config.layers}, seed {config.seed}",
                args=asdict(config),
            )
        )
        began = time.perf_counter()
        with recording as scope:
            if scope is not None and config.pathways:
                first = training.pick(slice(0, config.batch))
                watch_stack(
                    scope,
                    model,
                    lambda: F.cross_entropy(model(*task.inputs(first)), first.answer),
                    config.pathways,
                )
            for step, index in enumerate(_batches(config)):
                scenes = training.pick(index)
                cells, question = task.inputs(scenes)
                logits = model(cells, question)
                loss = F.cross_entropy(logits, scenes.answer)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

                scalars: dict[str, Any] = {"loss": loss.detach()}
                scalars["accuracy"] = (logits.argmax(dim=1) == scenes.answer).float().mean()
                last = step == config.steps - 1
                if step % config.eval_every == 0 or last:
                    scores = evaluate(model, task, validation)
                    scalars |= scores.scalars()
                if scope is not None:
                    scope.log(**scalars)
                    if last and config.pathways:
                        probe_stack(scope, model, task.inputs(validation.pick(PROBED)))
                if progress is not None and ((step + 1) % REPORT_EVERY == 0 or last):
                    batch = float(scalars["loss"]), float(scalars["accuracy"])
                    progress(Progress(step + 1, *batch, scores.accuracy))
        return TrainResult(config, model, scores, time.perf_counter() - began)


def evaluate(model: nn.Module, task: Arrows, scenes: Scenes) -> Scores:
    """Loss and accuracy, overall and for each number of hops."""
    losses: list[Tensor] = []
    predicted: list[Tensor] = []
    with torch.no_grad():
        for first in range(0, len(scenes.answer), EVALUATED_AT_ONCE):
            part = scenes.pick(slice(first, first + EVALUATED_AT_ONCE))
            logits = model(*task.inputs(part))
            losses.append(F.cross_entropy(logits, part.answer, reduction="sum"))
            predicted.append(logits.argmax(dim=1))
        answers = torch.cat(predicted)
        loss = torch.stack(losses).sum() / len(answers)
        accuracy = (answers == scenes.answer).float().mean()
        by_hops = task.accuracy_by_hops(answers, scenes)
    return Scores(float(loss), float(accuracy), tuple(by_hops.tolist()))


def _initialised(config: TrainConfig, task: Arrows) -> nn.Module:
    """The model, its weights drawn on the CPU: the same ones for every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build(config.model, task, layers=config.layers, hidden=config.hidden)
    return model.to(config.device)


def _optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    # One fused kernel for all parameters: an update of a model this small is all overhead.
    fused = torch.device(config.device).type in ("cpu", "cuda")
    parameters = model.parameters()
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, config.lr, momentum=config.momentum, fused=fused)
    return torch.optim.Adam(parameters, config.lr, fused=fused)


def _batches(config: TrainConfig) -> Iterator[Tensor]:
    """Indices (batch,) of each step's scenes: shuffled epochs, incomplete batches left out."""
    random = torch.Generator().manual_seed(config.seed)
    made = 0
    while True:
        order = torch.randperm(config.scenes, generator=random).to(config.device)
        for index in order.split(config.batch):
            if made == config.steps:
                return
            if len(index) == config.batch:
                yield index
                made += 1


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _usable(device: str) -> None:
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA: the latter
        reason = str(error).splitlines()[0].rstrip(".")
        raise GradscopeError(f"device {device!r} can't be used: {reason}; try cpu") from error
