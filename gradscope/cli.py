"""The command line: the only room that prints or exits."""

from __future__ import annotations

import io
import math
import os
import shlex
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gradscope._version import __version__
from gradscope.errors import GradscopeError
from gradscope.store import load
from gradscope.training import TrainConfig, train

MEANING = {name: typer.Option(help=text) for name, text in TrainConfig.meanings().items()}
DEFAULT = TrainConfig()

app = typer.Typer(
    name="gradscope",
    help="Where a neural network's gradient goes, through which path, and what weakens it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Where a neural network's gradient goes, through which path, and what weakens it."""


class Severity(StrEnum):
    """What --fail-on takes."""

    info = "info"
    warning = "warning"
    critical = "critical"


class ExportFormat(StrEnum):
    """What --to takes."""

    csv = "csv"
    parquet = "parquet"
    tensorboard = "tensorboard"
    wandb = "wandb"


@app.command()
def analyze(
    runs: Annotated[
        list[Path], typer.Argument(help="Recorded runs (run.pt). Several are compared.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of the report. Default: <first run>-report beside the run."),
    ] = None,
    fail_on: Annotated[
        Severity | None,
        typer.Option(help="Exit with 1 if there are findings at or above this severity."),
    ] = None,
) -> None:
    """Say what is wrong with a run's gradients, and write a report of it."""
    from gradscope.report import default_directory, write_report
    from gradscope.report.terminal import summary

    loaded = [load(path) for path in runs]
    page, path = write_report(loaded, out or default_directory(runs[0]))
    _show(summary(page))
    typer.echo(f"report: {path}")
    if fail_on is not None and page.reaches(fail_on.value):
        raise typer.Exit(1)


@app.command(
    "run",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="[--every N] [--out RUN] [-m]",
)
def run_command(
    script: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SCRIPT [ARGUMENT]...",
            show_default=False,
            help="The training script and its own arguments, as they would follow python.",
        ),
    ] = None,
    module: Annotated[
        bool, typer.Option("-m", help="SCRIPT is the name of a module, as for python -m.")
    ] = False,
    every: Annotated[
        str, typer.Option(metavar="N", help="Record every n-th optimizer step.")
    ] = "10",
    out: Annotated[
        str,
        typer.Option(
            metavar="RUN",
            help="File to record into; a run already there is replaced. Further models of the "
            "script go to files named after it: run-Discriminator.pt.",
        ),
    ] = "run.pt",
) -> None:
    """Record a training script that knows nothing of gradscope, and needs no change.

    The models are those that its torch optimizers train. The script's output, exit code and
    results are its own; what gradscope has to say goes to standard error when it has ended.
    """
    from gradscope.launch.command import command

    words = command(script or [], module=module, every=every, out=out)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(words[0], words)


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="A run (run.pt) that is being recorded.")],
    once: Annotated[bool, typer.Option("--once", help="Show it once, and end.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two looks at the file.")
    ] = 2.0,
) -> None:
    """Follow a run while it is recorded; ends with it, or at Ctrl-C."""
    from gradscope.report.watching import complete, glance
    from gradscope.store import journal_path

    def written() -> float:
        files = [path for path in (run, journal_path(run)) if path.exists()]
        return max((path.stat().st_mtime for path in files), default=0.0)

    seen = load(run)
    if once or complete(seen):
        _show(glance(seen, written()))
        return
    try:
        with Live(console=Console(highlight=False), auto_refresh=False) as live:
            while True:
                began = time.perf_counter()
                live.update(glance(seen, written()), refresh=True)
                if complete(seen):
                    return
                # Rules on a long run take their time: the run's own process comes first.
                time.sleep(max(interval, 4 * (time.perf_counter() - began)))
                seen = load(run)
    except KeyboardInterrupt:
        return


@app.command()
def info(
    run: Annotated[Path, typer.Argument(help="A recorded run (run.pt).")],
    sites: Annotated[bool, typer.Option("--sites", help="List every site.")] = False,
) -> None:
    """Show what a run file holds."""
    from gradscope.report.terminal import contents

    _show(contents(load(run), all_sites=sites))


@app.command("export")
def export_command(
    run: Annotated[Path, typer.Argument(help="A recorded run (run.pt).")],
    to: Annotated[ExportFormat, typer.Option(help="Format to write.")],
    out: Annotated[
        Path | None,
        typer.Option(help="File or directory to make. Default: beside the run, by its name."),
    ] = None,
) -> None:
    """Write a run's numbers for TensorBoard, Weights & Biases, or as a table."""
    from gradscope.integrations.exporters import export

    typer.echo(export(load(run), to.value, out))


@app.command("train")
def train_command(
    task: Annotated[str, MEANING["task"]] = DEFAULT.task,
    model: Annotated[str, MEANING["model"]] = DEFAULT.model,
    layers: Annotated[int, MEANING["layers"]] = DEFAULT.layers,
    steps: Annotated[int, MEANING["steps"]] = DEFAULT.steps,
    seed: Annotated[int, MEANING["seed"]] = DEFAULT.seed,
    lr: Annotated[float, MEANING["lr"]] = DEFAULT.lr,
    out: Annotated[Path, MEANING["out"]] = Path("run.pt"),
    every: Annotated[int, MEANING["every"]] = DEFAULT.every,
    batch: Annotated[int, MEANING["batch"]] = DEFAULT.batch,
    hidden: Annotated[int, MEANING["hidden"]] = DEFAULT.hidden,
    optimizer: Annotated[str, MEANING["optimizer"]] = DEFAULT.optimizer,
    momentum: Annotated[float, MEANING["momentum"]] = DEFAULT.momentum,
    size: Annotated[int, MEANING["size"]] = DEFAULT.size,
    hops: Annotated[int, MEANING["hops"]] = DEFAULT.hops,
    answer: Annotated[str, MEANING["answer"]] = DEFAULT.answer,
    colours: Annotated[int, MEANING["colours"]] = DEFAULT.colours,
    scenes: Annotated[int, MEANING["scenes"]] = DEFAULT.scenes,
    pathways: Annotated[int, MEANING["pathways"]] = DEFAULT.pathways,
    eval_every: Annotated[int, MEANING["eval_every"]] = DEFAULT.eval_every,
    threads: Annotated[int, MEANING["threads"]] = DEFAULT.threads,
    device: Annotated[str, MEANING["device"]] = DEFAULT.device,
) -> None:
    """Train an attention stack on a generated task, and record where its gradient goes."""
    config = TrainConfig(**locals())
    columns = [
        TextColumn("{task.completed:>6.0f}/{task.total:.0f}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  accuracy {task.fields[accuracy]:.3f}"),
        TextColumn("validation {task.fields[val_accuracy]:.3f}"),
        TimeRemainingColumn(),
    ]
    screen = Console(stderr=True)
    bar = Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)
    nan = math.nan
    work = bar.add_task("train", total=config.steps, loss=nan, accuracy=nan, val_accuracy=nan)
    try:
        with bar:
            result = train(
                config,
                lambda now: bar.update(
                    work,
                    completed=now.step,
                    loss=now.loss,
                    accuracy=now.accuracy,
                    val_accuracy=now.val_accuracy,
                ),
            )
    except KeyboardInterrupt:
        recorded = f"what was recorded is in {out}" if out.exists() else "nothing was recorded"
        typer.echo(f"stopped; {recorded}", err=True)
        raise typer.Exit(130) from None
    by_hops = "  ".join(f"{k}: {a:.3f}" for k, a in enumerate(result.scores.by_hops, 1))
    typer.echo(f"validation accuracy {result.scores.accuracy:.3f}  (by hops: {by_hops})")
    typer.echo(f"{config.steps} steps in {result.seconds:.0f} s, recorded in {out}")
    typer.echo(f"next: gradscope analyze {shlex.quote(str(out))}")


def _show(content: RenderableType) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of another encoding is no reason
    # A pipe has no width: what is narrower than this would break most lines of a table.
    width = None if sys.stdout.isatty() else 110
    Console(file=sys.stdout, width=width, highlight=False).print(content)


def main() -> None:
    """Entry point: 0 fine, 1 findings at or above --fail-on, 2 bad usage or unreadable run."""
    try:
        app()
    except GradscopeError as error:
        sys.stderr.write(f"gradscope: {error}\n")
        sys.exit(2)
