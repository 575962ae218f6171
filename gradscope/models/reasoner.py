"""A whole model for a task: cells and a question in, scores of the answers out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn

from gradscope.models.stacked import StackedAttention
from gradscope.models.stacked_latent import StackedLatentAttention

MODELS: dict[str, Callable[..., Any]] = {
    "san-residual": partial(StackedAttention, query="residual"),
    "san-anchored": partial(StackedAttention, query="anchored"),
    "san-chain": partial(StackedAttention, query="chain"),
    "sla": partial(StackedLatentAttention, query="residual"),
    "sla-anchored": partial(StackedLatentAttention, query="anchored"),
    "sla-chain": partial(StackedLatentAttention, query="chain"),
}


class Sizes(Protocol):
    """What a task tells about its inputs and outputs."""

    @property
    def features(self) -> int:
        """Numbers that describe one position."""

    @property
    def questions(self) -> int:
        """Different questions."""

    @property
    def answers(self) -> int:
        """Different answers."""


class Reasoner(nn.Module):
    """Embeds positions and question, has a stack attend, and scores the answers.

    Cells pass a small network, so that a linear read-out of *one* attended cell can tell
    where its arrow leads; everything further needs another look. The classifier is linear:
    reasoning happens in the stack.

    Args:
        stack: maps features (B, N, D) and a question state (B, D) to (B, stack.out_dim).
        features: F, numbers that describe one position.
        questions: number of different questions.
        answers: A, number of different answers.
        dim: D.
    """

    def __init__(
        self, stack: nn.Module, *, features: int, questions: int, answers: int, dim: int
    ) -> None:
        super().__init__()
        self.cells = nn.Sequential(nn.Linear(features, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.question = nn.Embedding(questions, dim)
        self.stack = stack
        self.answer = nn.Linear(int(stack.out_dim), answers)  # type: ignore[arg-type]

    def forward(self, cells: Tensor, question: Tensor) -> Tensor:
        """Logits (B, A), from cells (B, N, F) and the questions' numbers (B,)."""
        scores: Tensor = self.answer(self.stack(self.cells(cells), self.question(question)))
        return scores


def build(name: str, task: Sizes, *, layers: int, hidden: int = 64) -> Reasoner:
    """A model by its name.

    Args:
        name: one of `MODELS`.
        task: what it is to learn.
        layers: K, attention layers.
        hidden: size of features, question, content and latent states alike.

    Raises:
        ValueError: if there is no such model.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; one of {', '.join(MODELS)}")
    return Reasoner(
        MODELS[name](hidden, layers),
        features=task.features,
        questions=task.questions,
        answers=task.answers,
        dim=hidden,
    )
