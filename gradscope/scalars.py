"""What logged scalars are, by their names."""

from __future__ import annotations

import re

from gradscope.run import Run

_USUAL = ("loss", "train_loss", "train/loss")
_ASIDE = frozenset("val valid validation test eval scale".split())


def is_training_loss(name: str) -> bool:
    """Whether a logged scalar is the training loss."""
    parts = re.split(r"[^a-z0-9]+", name.lower())
    return "loss" in parts and not _ASIDE & set(parts)


def training_loss(run: Run) -> str | None:
    """The scalar that is the training loss: the most usual name, or the first that was logged."""
    names = [s.name for s in run.sites_of("scalar") if is_training_loss(s.name)]
    return next((n for n in _USUAL if n in names), names[0] if names else None)
