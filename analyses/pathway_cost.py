"""What does it cost to split a gradient by softmaxes crossed? In ordinary backward passes.

    python -m analyses.pathway_cost                          # print the table
    python -m analyses.pathway_cost --out reports/pathway_cost

Encoders of several depths and widths, attention fused (dropout 0) and not (dropout 0.1), one CPU
thread. `gradscope.crossings` splits the gradient of every parameter, orders 0 to 8, and is
timed together with the forward pass that it runs, as an ordinary training step's forward and
backward pass are; both take turns in one process. Quoted: the median ratio of processor times.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from torch import Tensor, nn

import gradscope

ORDERS = 8
MODELS = [(2, 64), (6, 64), (6, 256), (12, 128), (24, 64)]  # layers, width


def encoder(layers: int, width: int, dropout: float) -> nn.Module:
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def ratio(model: nn.Module, x: Tensor, rounds: int) -> float:
    """Median over rounds of (forward and split) / (forward and backward)."""

    target = torch.randn_like(x)  # a norm ends the encoder: its own size has no gradient

    def closure() -> Tensor:
        loss: Tensor = (model(x) - target).square().mean()
        return loss

    parameters = list(model.parameters())

    def ordinary() -> object:
        return torch.autograd.grad(closure(), parameters)

    def split() -> object:
        return gradscope.crossings(model, closure, sites="*.weight", max_order=ORDERS)

    ordinary(), split()  # warm up
    return statistics.median(seconds(split) / seconds(ordinary) for _ in range(rounds))


def main(
    rounds: Annotated[int, typer.Option(help="Rounds of both, in turn.")] = 7,
    out: Annotated[Path | None, typer.Option(help="Folder for a README.md.")] = None,
) -> None:
    """Print (and with --out, write) the cost of a split."""
    torch.set_num_threads(1)
    rows = []
    for layers, width in MODELS:
        row: dict[str, object] = {"layers": layers, "width": width}
        for name, dropout in (("fused", 0.0), ("not fused", 0.1)):
            torch.manual_seed(0)
            model = encoder(layers, width, dropout)
            row[name] = round(ratio(model, torch.randn(4, 64, width), rounds), 1)
        rows.append(row)
        print(row, flush=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "README.md").write_text(text(pd.DataFrame(rows)))


def text(table: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(table.columns) + " |", "|---" * len(table.columns) + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return (
        "# Cost of a split by softmaxes crossed\n\n"
        f"Forward pass and split of every weight's gradient into orders 0 to {ORDERS}, relative to "
        "forward and ordinary\nbackward pass: median ratio of processor times, one CPU thread, "
        f"torch {torch.__version__}.\n\n"
        + "\n".join(lines)
        + "\n\nMade by `python -m analyses.pathway_cost --out reports/pathway_cost`.\n"
    )


if __name__ == "__main__":
    typer.run(main)
