"""Effective rank of chosen module outputs, as they come out of the forward pass."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from gradscope.capture.ledger import Ledger
from gradscope.errors import GradscopeError
from gradscope.graph.calls import Call
from gradscope.graph.naming import OUTPUT, call_names
from gradscope.quantities.effective_rank import effective_rank
from gradscope.run import Column


def check_pattern(sites: str, paths: Iterable[str]) -> None:
    """Refuse a pattern that no output of any module can match.

    Raises:
        GradscopeError: if so. Which outputs and calls a module has ("a[0]", "a#1", "a.logits") only
            a forward pass tells.
    """
    known = [path or OUTPUT for path in paths]
    module = re.split(r"#|\[(?=\d+\]$)", sites)[0]
    stems = {sites, module, module.rpartition(".")[0] or module}
    if not any(fnmatchcase(path, stem) for path in known for stem in stems):
        close = get_close_matches(sites, known, n=3, cutoff=0.4) or known[:3]
        raise GradscopeError(f"no module matches {sites!r}; {' or '.join(close)} would")


class Ranks:
    """Measures module outputs whose name matches a pattern, every n-th step."""

    def __init__(self, ledger: Ledger, paths: dict[nn.Module, str], sites: str, every: int) -> None:
        self._ledger, self._paths, self._sites, self.every = ledger, paths, sites, every

    def forward_done(self, calls: list[Call]) -> None:
        seen: set[int] = set()
        for call, name in call_names(calls, self._paths):
            for field, *_, tensor in call.outputs:
                site = (name or OUTPUT) + field
                if tensor is None or id(tensor) in seen:
                    continue
                if fnmatchcase(site, self._sites):
                    seen.add(id(tensor))
                    self._measure(site, tensor)

    def _measure(self, site: str, tensor: Tensor) -> None:
        if tensor.dim() < 2 or not tensor.is_floating_point():
            return
        with torch.no_grad():
            rank = effective_rank(tensor)
        column = Column(site, "module", "", "effective_rank")
        self._ledger.add(self._ledger.plain(column, mode="mean"), rank)
