"""The minimum cuts that a run tells of: between softmaxes, unless somebody asks for others."""

from __future__ import annotations

from typing import Any

from gradscope.capture.ledger import Ledger
from gradscope.capture.trouble import Trouble
from gradscope.cuts import Cut, training_batch_size, training_cuts
from gradscope.graph.calls import Call
from gradscope.graph.naming import Names
from gradscope.graph.walk import Graph
from gradscope.run import Column, Site

METRICS = ("width", "source_width", "sink_width", "attended", "ratio")


class Narrow:
    """Looks for the narrowest places between attention softmaxes in the first step that is
    recorded: inside its calls, and from one call to those that read what it returned.

    Args:
        meta: the run's; its "cuts" are written here.
    """

    def __init__(self, meta: dict[str, Any], ledger: Ledger, trouble: Trouble) -> None:
        self._meta, self._ledger, self._trouble = meta, ledger, trouble
        self._found: dict[tuple[str, str], Cut] = {}
        self._batch_size = 1
        self.looking = True  # until a step has been recorded

    def write(self, step: int, cuts: list[Cut]) -> None:
        """Record cuts, in place of those that were."""
        self._meta["cuts"] = [cut.to_dict() for cut in cuts]
        for cut in cuts:
            name = f"{cut.source} → {cut.sink}"
            order = len(self._ledger.sites)
            self._ledger.site(Site(name, "cut", type=cut.kind, order=order))
            for metric in METRICS:
                if (value := getattr(cut, metric)) is not None:
                    column = Column(name, "cut", "", metric)
                    self._ledger.once(step, column, float(value))

    def forward_done(self, calls: list[Call]) -> None:
        """An outermost call has ended."""
        if self.looking:
            self._batch_size = training_batch_size(calls)

    def look(self, step: int, graph: Graph, names: Names) -> None:
        """Look into a graph, and add what is found to what was."""
        if not self.looking or bool(self._found) != ("cuts" in self._meta):
            return  # somebody asked for others
        try:
            for cut in training_cuts(graph, names, self._batch_size):
                self._found[cut.source, cut.sink] = cut
            if self._found:
                self.write(step, list(self._found.values()))
        except Exception as error:
            self._trouble.caught("bottlenecks", error)
