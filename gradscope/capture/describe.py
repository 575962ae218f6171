"""What a run says of itself: versions, model, optimizer, command, git commit."""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
from typing import Any

import torch
from torch import nn

from gradscope._version import __version__
from gradscope.graph.wrappers import class_name

MODEL_TEXT = 20_000  # characters of the model's repr that are kept


def describe(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], **given: Any
) -> dict[str, Any]:
    """Primitives only, so that `torch.load(weights_only=True)` opens what holds them."""
    parameters = list(model.parameters())
    return {
        **{key: primitive(value) for key, value in given.items()},
        "gradscope": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(parameters[0].device) if parameters else "cpu",
        "threads": torch.get_num_threads(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "argv": [str(a) for a in sys.argv],
        "git_commit": git_commit(),
        "model": {
            "class": class_name(model),
            "parameters": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
            "text": repr(model)[:MODEL_TEXT],
        },
        "optimizer": _optimizer(optimizers[0]) if optimizers else {},
        "timings": {},
        "unseen": [],
        "errors": [],
    }


def primitive(value: Any) -> Any:
    """The nearest thing that a weights-only load accepts."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(k): primitive(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [primitive(v) for v in value]
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    return str(value)


def git_commit() -> str:
    """Commit of the working directory ("+" behind it if it has changes), or ""."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], capture_output=True, text=True, check=True, timeout=5
    ).stdout.strip()


def _optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "class": type(optimizer).__name__,
        "groups": len(optimizer.param_groups),
        **{k: primitive(v) for k, v in optimizer.param_groups[0].items() if k != "params"},
    }
