"""What a figure is: a drawing of one run or several, with the words that explain it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from matplotlib.figure import Figure

from gradscope.figures._style import LIGHT, Theme, style
from gradscope.run import Run


class Mark(NamedTuple):
    """Something worth pointing at in a figure, such as a finding.

    Attributes:
        label: short text, "F1".
        severity: info, warning or critical; decides the colour.
        site: the site it is about, or "".
        first_step, last_step: optimizer steps, both included.
        run: index of the run it is about.
        kind: kind of the site, or "".
        sites: all sites that it is about, where these are several.
        metric: the metric that shows it, or "".
        thresholds: label → value of that metric from which on it holds, or, with
            `relative_to`, the multiple of that site's value.
        relative_to: a site, or "".
        edges: of that site, where it is about some of them.
    """

    label: str
    severity: str
    site: str
    first_step: int
    last_step: int
    run: int = 0
    kind: str = ""
    sites: tuple[str, ...] = ()
    metric: str = ""
    thresholds: Mapping[str, float] = MappingProxyType({})
    relative_to: str = ""
    edges: tuple[str, ...] = ()


def about(marks: Sequence[Mark], kind: str, run: int | None = None) -> list[Mark]:
    """The marks about one kind of site, of one run."""
    return [m for m in marks if m.kind in ("", kind) and run in (None, m.run)]


Draw = Callable[[Sequence[Run], Sequence[Mark], Theme], Figure]


@dataclass(frozen=True)
class FigureKind:
    """One figure of the report; call it with a run, or several, to draw it.

    Attributes:
        name: of the file and of the anchor in the report.
        title: what is shown.
        caption: how to read it, for one run.
        caption_several: the same for several runs.
        requires: pairs (kind, metric) of which at least one must have been recorded.
        parallel: only runs of several processes have it.
        absent: why there is no figure when none of them was.
        shows: pairs (kind, metric) whose findings this figure makes visible; a metric "*"
            stands for any.
    """

    name: str
    title: str
    caption: str
    caption_several: str
    requires: tuple[tuple[str, str], ...]
    absent: str
    shows: tuple[tuple[str, str], ...]
    draw: Draw
    parallel: bool = False

    def missing(self, runs: Run | Sequence[Run]) -> str:
        """Why this figure can't be drawn from these runs; "" when it can."""
        return "" if any(self._available(r) for r in _several(runs)) else self.absent

    def __call__(
        self,
        runs: Run | Sequence[Run],
        marks: Sequence[Mark] = (),
        theme: Theme = LIGHT,
    ) -> Figure | None:
        """Draw it, or return None where `missing` says why not.

        The figure belongs to no window and to no pyplot state: show it by returning it from a
        notebook cell, or write it with `savefig`.
        """
        runs = _several(runs)
        if self.missing(runs):
            return None
        with style(theme):
            return self.draw(runs, marks, theme)

    def _available(self, run: Run) -> bool:
        if self.parallel and len(run.ranks) < 2:
            return False
        wanted = {i for i, c in enumerate(run.columns) if (c.kind, c.metric) in self.requires}
        return any(
            int(c) in wanted and b.present[:, j].any()
            for b in run.blocks
            for j, c in enumerate(b.columns)
        )


def _several(runs: Run | Sequence[Run]) -> list[Run]:
    return [runs] if isinstance(runs, Run) else list(runs)


def figure(
    *,
    title: str,
    caption: str,
    caption_several: str = "",
    requires: tuple[tuple[str, str], ...],
    absent: str,
    shows: tuple[tuple[str, str], ...] = (),
    parallel: bool = False,
) -> Callable[[Draw], FigureKind]:
    """Decorate a drawing function with what it needs and with the words that go with it."""

    def wrap(draw: Draw) -> FigureKind:
        name = draw.__name__
        return FigureKind(
            name,
            title,
            caption,
            caption_several or caption,
            requires,
            absent,
            shows,
            draw,
            parallel,
        )

    return wrap
