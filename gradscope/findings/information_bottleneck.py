"""information-bottleneck: between two attention layers only a few numbers pass.

Definition. The minimum vertex cut between the latents of two consecutive softmaxes (what their
logits are computed from; its heat map is a part of it) is narrow where its width is at most
`NARROW` of the smaller of the two, and of the values that either attends over: both sides are
wide, what links them is not. Likewise from input to output. One finding for all layers of a
role. Where they were recorded, two measurements stand beside the structure: the effective rank
of what the source's layer returns, late in the run, and the weakest of the linear probes.

Source: Fan & Zhou, "Stacked Latent Attention for Multimodal Reasoning", CVPR 2018: a stack that
hands on one content vector throws the spatial reasoning of each layer away. Menger's theorem
makes the cut the most that can pass.

Severity. Warning between softmaxes, but info where linear probes read at least `READ` of what
they were asked for, and where both are calls of one place, of which the first has a way of its own
to the output, past the second: each step of a decoder gives an answer, and asks anew. Info from
input to output: an autoencoder's code is narrow on purpose.

Silent where the narrowest place is about as wide as source or sink: an output of ten classes is
no bottleneck, nor are a few latent queries that read a large input. But a sink that attends over
no more than `PAIR` entries has not much to choose from, and doesn't count: the source alone does.
Silent where the cut holds as many numbers as are attended over: the latents of all pairs of n
positions are n times as wide. Silent too about a width of 0 (no path at all), and where no
softmax follows another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradscope.findings._finding import Finding, Severity, View
from gradscope.findings._groups import by_role, named
from gradscope.findings._rule import Rule
from gradscope.findings._signals import Signals, quiet_median

NARROW = 0.15  # a vector of a latent map of n ≥ 7 positions; transformers link layers at 0.5
PAIR = 2  # entries; latent queries come in sixes and more
READ = 0.9  # of a probe's held-out answers: what was asked for does pass
LATE = 0.1  # share of the recorded steps, at the end, that an effective rank is taken from


@dataclass(frozen=True)
class Narrow:
    """A narrow cut, in numbers per sample."""

    name: str
    source: str
    sink: str
    between_softmaxes: bool
    width: float
    source_width: float
    sink_width: float
    attended: float
    tensors: tuple[str, ...]
    separate: bool
    entries: int

    @property
    def chooses_of_few(self) -> bool:
        """Between few entries, though between more than one."""
        return 1 < self.entries <= PAIR

    @property
    def room(self) -> float:
        """Numbers per sample that there are to pass."""
        if self.chooses_of_few:
            return self.source_width
        return min(self.source_width, self.sink_width, self.attended)

    @property
    def ratio(self) -> float:
        return self.width / self.room

    @property
    def of_what(self) -> str:
        """What the ratio is to, in a sentence."""
        if self.chooses_of_few:
            return "the first of them holds"
        attends = self.attended < min(self.source_width, self.sink_width)
        return "is attended over" if attends else "the smaller of the two holds"

    @property
    def asks_anew(self) -> bool:
        """Steps of a loop, each with an answer of its own."""
        return self.separate and self.source.split("#")[0] == self.sink.split("#")[0]


@dataclass(frozen=True)
class Probed:
    """A linear probe: its held-out accuracy, and the better of its two baselines."""

    name: str
    accuracy: float
    baseline: float


def find(signals: Signals) -> list[Finding]:
    narrow = [cut for cut in _cuts(signals) if 0 < cut.ratio <= NARROW]
    inside = [cut for cut in narrow if cut.between_softmaxes]
    roles = by_role(dict.fromkeys(cut.source for cut in inside))
    groups = [[cut for cut in inside if cut.source in same] for same in roles.values()]
    groups += [[cut] for cut in narrow if not cut.between_softmaxes]
    return [_finding(signals, group) for group in groups]


def _cuts(signals: Signals) -> list[Narrow]:
    """Every recorded cut, as it was last seen."""
    cuts = {f"{c['source']} → {c['sink']}": c for c in signals.run.meta.get("cuts") or ()}
    widths = signals.matrix("cut", "width")
    found = []
    for name in widths.sites:
        width, before, behind = (
            _last(signals, name, m) for m in ("width", "source_width", "sink_width")
        )
        if np.isfinite([width, before, behind]).all() and min(before, behind) > 0:
            source, _, sink = name.partition(" → ")
            softmax = signals.site("cut", name).type == "softmax"
            cut = cuts.get(name, {})
            through = tuple(map(str, cut.get("tensors") or ()))
            separate = bool(cut.get("separate"))
            values = _last(signals, name, "attended")
            attended = values if np.isfinite(values) and values > 0 else float("inf")
            entries = signals.entries(sink) if softmax else 0
            found.append(
                Narrow(
                    name,
                    source,
                    sink,
                    softmax,
                    width,
                    before,
                    behind,
                    attended,
                    through,
                    separate,
                    entries,
                )
            )
    return found


def _last(signals: Signals, name: str, metric: str) -> float:
    matrix = signals.matrix("cut", metric)
    if name not in matrix:
        return float("nan")
    column = matrix.column(name)[matrix.present[:, matrix.sites.index(name)]]
    return float(column[-1]) if len(column) else float("nan")


def _finding(signals: Signals, group: list[Narrow]) -> Finding:
    first = min(group, key=lambda cut: (cut.asks_anew, cut.ratio))
    probes = _probes(signals)
    read = bool(probes) and all(p.accuracy >= READ for p in probes)
    least = min(probes, key=lambda p: p.accuracy - p.baseline, default=None)
    matters = first.between_softmaxes and not read and not first.asks_anew
    severity: Severity = "warning" if matters else "info"
    rank, capacity = _effective_rank(signals, first.source)
    where = f"{named(first.source)} and {named(first.sink)}"
    more = len(group) - 1
    others = f", and likewise in {more} more place{'s' * (more > 1)}" if more else ""
    through = f" ({' + '.join(first.tensors[:3])})" if first.tensors else ""
    what = "the latents of " if first.between_softmaxes else ""
    return Finding(
        rule="information-bottleneck",
        severity=severity,
        site=group[0].source,
        # A matter of structure: it holds at every step.
        first_step=int(signals.steps[0]),
        last_step=int(signals.steps[-1]),
        evidence={
            "width": first.width,
            "source_width": first.source_width,
            "sink_width": first.sink_width,
            "attended": first.attended if np.isfinite(first.attended) else None,
            "ratio": first.ratio,
            "cut": list(first.tensors[:8]),
            "places": len(group),
            "separate_ways_out": first.separate,
            "effective_rank": rank,
            "rank_capacity": capacity,
            "probes": len(probes),
            "weakest_probe": least.name if least else None,
            "probe_accuracy": least.accuracy if least else None,
            "probe_baseline": least.baseline if least else None,
        },
        message=(
            f"Between {what}{where} only {first.width:g} numbers per sample pass{through}, "
            f"{first.ratio:.2g} of what {first.of_what}{others}."
        ),
        remedy=(
            "Nothing, if every step is to ask anew, as a decoder's are."
            if first.between_softmaxes and first.asks_anew
            else "Hand on more than the content vector: concatenate the layer's latent state, or "
            "at least its heat map, into the next layer."
            if first.between_softmaxes
            else "Nothing, if the code is meant to be this small; otherwise widen that place, or "
            "lead a connection around it."
        ),
        view=View(
            "cut",
            "width",
            tuple(cut.name for cut in group),
            thresholds={f"{NARROW:g} of what {first.of_what}": NARROW * first.room},
        ),
    )


def _effective_rank(signals: Signals, source: str) -> tuple[float | None, int | None]:
    """The lowest late effective rank in the source's layer, and the most it could be.

    A batch of B samples spans at most B - 1 dimensions.
    """
    if not signals.has("module", "effective_rank"):
        return None, None
    ranks = signals.matrix("module", "effective_rank")
    late = ranks.values[-max(1, round(LATE * len(ranks.steps))) :]
    found = []
    for j, name in enumerate(ranks.sites):
        value = float(quiet_median(late[:, j]))
        if (name == source or name.startswith(f"{source}.")) and np.isfinite(value):
            shape = signals.site("module", name).shape
            capacity = min(shape[0] - 1, int(np.prod(shape[1:]))) if len(shape) > 1 else None
            found.append((value, capacity))
    return min(found, key=lambda pair: pair[0]) if found else (None, None)


def _probes(signals: Signals) -> list[Probed]:
    """Every probe, as last measured."""
    accuracy = signals.matrix("probe", "accuracy")
    found = []
    for name in accuracy.sites:
        keys = [(name, "")]
        base = [
            signals.matrix("probe", m).on(accuracy.steps).columns(keys)
            for m in ("majority", "shuffled")
        ]
        at = np.flatnonzero(np.isfinite(accuracy.column(name)))
        if len(at):
            known = [float(b[at[-1], 0]) for b in base if np.isfinite(b[at[-1], 0])]
            found.append(
                Probed(name, float(accuracy.column(name)[at[-1]]), max(known, default=0.0))
            )
    return found


RULE = Rule("information-bottleneck", (("cut", "width"),), find)
