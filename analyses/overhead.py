"""What does recording cost? Step time with a recorder attached, relative to none.

    python -m analyses.overhead                 # print the table
    python -m analyses.overhead --out reports/overhead

One CPU thread, processor time (of the process, so that other work on the machine counts
little). Every recorder trains its own copy of the model in the same process; blocks
of a few steps take turns, bare block first, and each block is compared with the bare block
of its own round, so that a machine whose speed drifts does not matter. Quoted: the median
over rounds of those ratios, with the quartiles.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from torch import nn
from torch.nn import functional as F

import gradscope


def mlp() -> tuple[nn.Module, torch.Tensor]:
    """16 × 256, batch 64: so little work an operation that hooks weigh most."""
    linears = [nn.Linear(256, 256) for _ in range(16)]
    for linear in linears:  # default initialisation would lose the gradient on the way
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    return nn.Sequential(
        *(layer for linear in linears for layer in (linear, nn.ReLU()))
    ), torch.randn(64, 256)


def transformer() -> tuple[nn.Module, torch.Tensor]:
    """`nn.TransformerEncoder`, 6 layers of 256, 4 heads, 8 sequences of 128, dropout 0.1."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
    return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False), torch.randn(8, 128, 256)


class Block(nn.Module):
    """Residual block of two 3 × 3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.body(x))


def resnet() -> tuple[nn.Module, torch.Tensor]:
    """Residual network of 8 blocks, 32 × 32 images, batch 16."""
    stages: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1)]
    for width in (32, 64):
        stages += [Block(width) for _ in range(4)]
        stages.append(nn.Conv2d(width, 64, 3, stride=2, padding=1))
    return nn.Sequential(*stages), torch.randn(16, 3, 32, 32)


Recorder = Callable[[nn.Module, torch.optim.Optimizer, Path], AbstractContextManager[Any]]


@contextmanager
def forum_snippet(model: nn.Module, optimizer: Any, out: Path) -> Iterator[None]:
    """`.grad.abs().mean().item()` for each parameter, as in many forum answers."""
    found: list[float] = []

    def read(*_: Any) -> None:
        found.extend(p.grad.abs().mean().item() for p in model.parameters() if p.grad is not None)

    handle = optimizer.register_step_pre_hook(read)
    yield
    handle.remove()


@contextmanager
def backward_hooks(model: nn.Module, optimizer: Any, out: Path) -> Iterator[None]:
    """A full backward hook on every leaf module, with `.norm().item()`."""
    found: list[float] = []

    def read(module: nn.Module, _: Any, grads: Any) -> None:
        found.extend(g.norm().item() for g in grads if g is not None)

    leaves = [m for m in model.modules() if not list(m.children())]
    handles = [m.register_full_backward_hook(read) for m in leaves]
    yield
    for handle in handles:
        handle.remove()


def scope(every: int) -> Recorder:
    def attach(model: nn.Module, optimizer: Any, out: Path) -> AbstractContextManager[Any]:
        return gradscope.attach(model, optimizer=optimizer, out=out / f"{every}.pt", every=every)

    return attach


RECORDERS: dict[str, Recorder] = {
    "none": lambda *_: nullcontext(),
    "none, again": lambda *_: nullcontext(),
    "forum snippet": forum_snippet,
    "full backward hooks": backward_hooks,
    "gradscope, every step": scope(1),
    "gradscope, every 10th": scope(10),
}
MODELS = {
    "MLP 16×256": (mlp, 20),
    "TransformerEncoder 6×256": (transformer, 2),
    "ResNet": (resnet, 2),
}


def stepper(
    model: nn.Module, x: torch.Tensor, optimizer: torch.optim.Optimizer
) -> Callable[[], None]:
    target = torch.randn_like(model(x))

    def step() -> None:
        loss = F.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(
    build: Callable[[], tuple[nn.Module, torch.Tensor]], steps: int, rounds: int
) -> pd.DataFrame:
    """Ratios to the bare blocks, one row a recorder."""
    torch.manual_seed(0)
    model, x = build()
    times: dict[str, list[float]] = {name: [] for name in RECORDERS}
    with TemporaryDirectory() as folder, ExitStack() as stack:
        runners = {}
        for name, recorder in RECORDERS.items():
            twin = copy.deepcopy(model)
            optimizer = torch.optim.Adam(twin.parameters(), lr=1e-4)
            stack.enter_context(recorder(twin, optimizer, Path(folder)))
            runners[name] = stepper(twin, x, optimizer)
        for turn in range(rounds + 1):
            for name, step in runners.items():
                began = time.process_time()
                for _ in range(max(10, steps) if name.endswith("10th") else steps):
                    step()
                count = max(10, steps) if name.endswith("10th") else steps
                if turn:  # the first round warms up
                    times[name].append((time.process_time() - began) / count)
    rows = []
    for name, seen in times.items():
        ratios = [t / bare for t, bare in zip(seen, times["none"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append((name, 1e3 * statistics.median(seen), middle, low, high))
    return pd.DataFrame(
        rows, columns=["recorder", "ms a step", "ratio", "lower quartile", "upper quartile"]
    )


def main(
    rounds: Annotated[
        int, typer.Option(help="Rounds of paired blocks for the smallest model.")
    ] = 60,
    out: Annotated[Path | None, typer.Option(help="Folder for overhead.csv and README.md.")] = None,
) -> None:
    """Print (and with --out, write) the cost of recording."""
    torch.set_num_threads(1)
    tables = []
    for name, (build, steps) in MODELS.items():
        table = measure(build, steps, rounds if steps > 2 else max(rounds // 3, 8))
        table.insert(0, "model", name)
        tables.append(table)
        print(table.to_string(index=False, float_format="%.3f"), flush=True)
    if out is not None:
        write(pd.concat(tables), out, rounds)


def write(table: pd.DataFrame, out: Path, rounds: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "overhead.csv", index=False, float_format="%.4f")
    wide = table.pivot_table(index="recorder", columns="model", values="ratio", sort=False)
    lines = ["| | " + " | ".join(wide.columns) + " |", "|---" * (len(wide.columns) + 1) + "|"]
    lines += [
        f"| {n} | " + " | ".join(f"{v:.3f}" for v in row) + " |"
        for n, row in zip(wide.index, wide.to_numpy(), strict=True)
    ]
    (out / "README.md").write_text(
        "# Cost of recording\n\nProcessor time of a training step relative to no recorder: median "
        f"of paired blocks in one process, one CPU thread, torch {torch.__version__}. “None, "
        "again” is a second bare copy: what differs from 1 there is noise.\n\n"
        + "\n".join(lines)
        + f"\n\nMade by `python -m analyses.overhead --rounds {rounds} --out reports/overhead`.\n"
    )


if __name__ == "__main__":
    typer.run(main)
