"""What the next attention layer is asked with: the three readings of a stack."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

Query = Literal["residual", "anchored", "chain"]
QUERIES: tuple[str, ...] = get_args(Query)


def checked(query: str) -> str:
    """The rule's name, if it is one."""
    if query not in QUERIES:
        raise ValueError(f"unknown query {query!r}; one of {', '.join(QUERIES)}")
    return query


def next_query(rule: str, question: Tensor, query: Tensor, content: Tensor) -> Tensor:
    """u^{k+1} from the question h, the query u^k and the content z^k, all (B, D).

    - "residual": u^k + z^k (Yang et al., CVPR 2016, equation 18). The identity path leads the
      gradient past every softmax.
    - "anchored": h + z^k. The question is in every query, but a layer reaches the next one only
      through that one's softmax.
    - "chain": z^k alone, as Fan & Zhou, CVPR 2018, draw plain stacked attention.
    """
    if rule == "residual":
        return query + content
    return question + content if rule == "anchored" else content
