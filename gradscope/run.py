"""`Run`: what was recorded over a training run, as tidy tables with units and definitions.

Index legend: S recorded steps, C columns. A *column* is one time series: (site, kind, edge,
metric, rank). Everything after recording (findings, figures, reports) reads a `Run`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from gradscope.errors import GradscopeError

KINDS = (
    "module",
    "parameter",
    "fork",
    "softmax",
    "activation",
    "input",
    "crossing",
    "pathway",
    "cut",
    "probe",
    "scalar",
)


_BESIDE = ("scalar", "probe", "cut")  # kinds that no gradient is needed for
TIME_STEP = "time step"  # type of the module sites that are time steps of a fused recurrent layer


class Metric(NamedTuple):
    """What a number in a run means."""

    unit: str
    definition: str


# With several processes, what is measured in the backward pass (modules, forks, softmaxes,
# crossings, pathways) is of each process's own loss; a parameter's gradient is the one that its
# optimizer uses, after the processes have averaged theirs.
METRICS: dict[str, Metric] = {
    "grad_norm": Metric("loss / unit of the tensor", "‖g‖₂ of the gradient"),
    "grad_rms": Metric("loss / unit of the tensor", "‖g‖₂ / √n, n the number of elements"),
    "numel": Metric("elements", "number of elements of the step, where it is not the site's own"),
    "grad_absmax": Metric("loss / unit of the tensor", "max |g|"),
    "nonfinite": Metric("elements", "number of NaN and infinite elements of the gradient"),
    "zero_fraction": Metric("fraction", "share of elements of the gradient that are exactly 0"),
    "weight_norm": Metric("unit of the parameter", "‖w‖₂ before the optimizer's step"),
    "update_ratio": Metric("fraction", "‖w_after − w_before‖₂ / ‖w_before‖₂ of one optimizer step"),
    "projection": Metric("fraction", "⟨g_e, g⟩ / ‖g‖²: the edges of a fork sum to 1"),
    "cosine": Metric("", "⟨g_e, g⟩ / (‖g_e‖ ‖g‖)"),
    "cancellation": Metric("fraction", "1 − ‖Σ g_e‖ / Σ ‖g_e‖ over the edges of a fork"),
    "shard_grad_norm": Metric(
        "loss / unit of the tensor", "‖g‖₂ of the part of a parameter that this process holds"
    ),
    "shard_nonfinite": Metric("elements", "NaN and infinite elements of that part's gradient"),
    "shard_weight_norm": Metric("unit of the parameter", "‖w‖₂ of that part before the step"),
    "shard_update_norm": Metric("unit of the parameter", "‖w_after − w_before‖₂ of that part"),
    "entropy": Metric("fraction", "H(p) / log n, mean over softmax rows p of length n"),
    "evenness": Metric(
        "fraction",
        "Σ H(p) / Σ log m over softmax rows, m the entries with p > 1e-30 (Pielou): 1 for a "
        "uniform softmax, also under a mask",
    ),
    "uniform_gain": Metric(
        "fraction", "mean 1/m over softmax rows: the gain of a uniform softmax of that many entries"
    ),
    "max_prob": Metric("probability", "max p, mean over softmax rows"),
    "jacobian_norm": Metric("", "‖diag(p) − ppᵀ‖_F, mean over softmax rows"),
    "gain": Metric("fraction", "‖Jᵀg‖ / ‖g‖ across the softmax, all measured rows together"),
    "saturated_fraction": Metric(
        "fraction", "share of an activation's elements whose slope is below 2 % of its largest"
    ),
    "dead_fraction": Metric(
        "fraction",
        "share of an activation's units (channels, or the last dimension) all of whose elements "
        "were saturated in the last 8 measurements",
    ),
    "input_rms": Metric("unit of the data", "√ of the mean square of what the model reads"),
    "input_offset": Metric("", "|mean| / standard deviation of what the model reads"),
    "input_peak": Metric("unit of the data", "root mean square of the largest feature"),
    "subnormal_fraction": Metric(
        "fraction",
        "share of the elements of a float16 gradient, other than 0, below 6.1e-5, where its "
        "precision ends",
    ),
    "effective_rank": Metric(
        "dimensions", "(Σλ)²/Σλ² over eigenvalues λ of the covariance of the samples of a batch"
    ),
    "width": Metric("numbers a sample", "minimum vertex cut between two places"),
    "source_width": Metric("numbers a sample", "size of the place where a cut's paths begin"),
    "sink_width": Metric("numbers a sample", "size of the place where a cut's paths end"),
    "attended": Metric(
        "numbers a sample", "values of the softmax at a cut's ends that attends over fewer"
    ),
    "ratio": Metric("fraction", "width of a cut over the size of its source"),
    "accuracy": Metric("fraction", "right answers of a linear probe on the held-out half"),
    "majority": Metric("fraction", "the same, always answering with the commonest label"),
    "shuffled": Metric("fraction", "the same, trained on shuffled labels"),
    "mean_crossings": Metric(
        "softmaxes", "Σ_k k ⟨G_k, g⟩/‖g‖², the mean number of attention softmaxes crossed"
    ),
    "residual": Metric("fraction", "max|Σ_k G_k − g| / Σ_k max|G_k|, the largest over the sites"),
    "value": Metric("as logged", "a scalar given to scope.log(), or logged by gradscope"),
}


@dataclass(frozen=True)
class Site:
    """A place in the model at which something was measured.

    Attributes:
        name: module path (with the call's number and the output's field, where there are
            several), parameter name, or scalar name.
        kind: one of `KINDS`.
        type: class of the module, or name of the operation.
        order: position in the forward pass of the recorded step that first saw the site.
        depth: longest path in the autograd graph back to here, in graph nodes: from the model's
            output, or from the loss where that comes from several calls. Larger is nearer the
            input. -1 where it does not apply.
        shape: of the tensor, when first seen.
        numel: elements per optimizer step, when first seen.
        alias_of: the site that measures the very same tensor, or "".
        parameters: whether parameters lie directly in the module (not in a submodule).
        note: what a reader must know about the numbers, such as a sample of rows; or "".
        shards: into how many parts a parameter is split, each held by other processes
            (`shape` and `numel` are the whole's).
        shard: which of them the process held that recorded this.
    """

    name: str
    kind: str
    type: str = ""
    order: int = -1
    depth: int = -1
    shape: tuple[int, ...] = ()
    numel: int = 0
    alias_of: str = ""
    parameters: bool = False
    note: str = ""
    shards: int = 1
    shard: int = 0


class Column(NamedTuple):
    """The key of one time series; `rank`: the process whose numbers they are."""

    site: str
    kind: str
    edge: str
    metric: str
    rank: int = 0


@dataclass(frozen=True)
class Block:
    """Values of some columns at some steps.

    Attributes:
        steps: int64 (S,), optimizer steps.
        columns: int64 (C,), indices into `Run.columns`.
        values: float64 (S, C); NaN inside `present` is a value, outside it is nothing.
        present: bool (S, C), which values were recorded.
    """

    steps: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    present: np.ndarray

    def __post_init__(self) -> None:
        shape = (len(self.steps), len(self.columns))
        if self.values.shape != shape or self.present.shape != shape:
            raise ValueError(
                f"a block of {shape[0]} steps and {shape[1]} columns holds values of shape "
                f"{self.values.shape} and a mask of shape {self.present.shape}"
            )


@dataclass
class Run:
    """One recorded training run.

    Attributes:
        meta: primitives only: versions, arguments, model summary, timings, `status`
            ("recording" until the scope was closed, then "complete"), `unseen` (a list of
            {"what", "why"}: what could not be measured). Of a run of several processes,
            `processes`: {"world_size", "parts": [{"rank", "status", …}]}, what each of the
            merged parts said of itself; of a part loaded by its own name, `process`.
        sites: by (kind, name).
        columns: the time series' keys.
        blocks: the numbers.
        path: where the run was loaded from.
    """

    meta: dict[str, Any] = field(default_factory=dict)
    sites: dict[tuple[str, str], Site] = field(default_factory=dict)
    columns: list[Column] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    path: Path | None = None

    def __repr__(self) -> str:
        steps = self.steps
        span = f"steps {steps[0]} to {steps[-1]}" if len(steps) else "no steps"
        return (
            f"<Run {self.name!r}: {len(steps)} recorded, {span}; {len(self.sites)} sites, "
            f"{len(self.columns)} columns>"
        )

    @classmethod
    def from_records(
        cls,
        records: Iterable[Sequence[Any]],
        sites: Iterable[Site] = (),
        meta: dict[str, Any] | None = None,
    ) -> Run:
        """Build a run from rows (step, site, kind, edge, metric, value[, rank])."""
        rows = [(*r, 0) if len(r) == 6 else tuple(r) for r in records]
        columns: dict[Column, int] = {}
        steps = np.array(sorted({int(r[0]) for r in rows}), dtype=np.int64)
        where = {int(s): i for i, s in enumerate(steps)}
        cells = []
        for step, site, kind, edge, metric, value, rank in rows:
            column = Column(site, kind, edge, metric, rank)
            cells.append((where[int(step)], columns.setdefault(column, len(columns)), value))
        values = np.full((len(steps), len(columns)), np.nan)
        present = np.zeros(values.shape, dtype=bool)
        for i, j, value in cells:
            values[i, j] = value
            present[i, j] = True
        run = cls(dict(meta or {}), {(s.kind, s.name): s for s in sites}, list(columns))
        run.blocks = [Block(steps, np.arange(len(columns)), values, present)]
        for column in columns:
            known = (column.kind, column.site)
            run.sites.setdefault(known, Site(column.site, column.kind, order=len(run.sites)))
        return run

    @property
    def name(self) -> str:
        """Short label: the name given at recording, else the file's stem."""
        given = self.meta.get("name")
        if given:
            return str(given)
        return self.path.stem if self.path else "run"

    @property
    def steps(self) -> np.ndarray:
        """int64 (S,): the optimizer steps at which gradients were recorded, ascending."""
        seen = []
        for block in self.blocks:
            gradients = [self.columns[c].kind not in _BESIDE for c in block.columns]
            seen.append(block.steps[block.present[:, gradients].any(axis=1)])
        return np.unique(np.concatenate(seen)) if seen else np.array([], dtype=np.int64)

    @property
    def ranks(self) -> list[int]:
        """The processes that recorded anything, ascending; [0] for a run of one process."""
        return sorted({c.rank for c in self.columns})

    def of_rank(self, rank: int) -> Run:
        """The same run with the numbers of one process only."""
        place = np.full(len(self.columns), -1, dtype=np.int64)
        kept = [i for i, c in enumerate(self.columns) if c.rank == rank]
        place[kept] = np.arange(len(kept))
        blocks = []
        for b in self.blocks:
            j = np.flatnonzero(place[b.columns] >= 0)
            blocks.append(Block(b.steps, place[b.columns[j]], b.values[:, j], b.present[:, j]))
        return Run(self.meta, self.sites, [self.columns[i] for i in kept], blocks, self.path)

    def frame(
        self,
        kind: str | None = None,
        metric: str | None = None,
        *,
        aliases: bool = True,
    ) -> pd.DataFrame:
        """Tidy table, one value a row: step, site, kind, edge, metric, value, rank.

        Args:
            kind: only this kind of site (one of `KINDS`).
            metric: only this metric (see `METRICS`). `grad_rms` is derived from `grad_norm`.
            aliases: also list module paths whose output is the very tensor that another
                module path returned (the last layer of a `Sequential`, say). Rules and
                figures turn it off, so that each tensor counts once.

        Raises:
            GradscopeError: for a kind or a metric that there is not.
        """
        if kind is not None and kind not in KINDS:
            raise GradscopeError(f"unknown kind {kind!r}; one of {', '.join(KINDS)}")
        known = {*METRICS, *(c.metric for c in self.columns)}
        if metric is not None and metric not in known:
            close = get_close_matches(metric, known, n=3, cutoff=0.6)
            meant = f"did you mean {' or '.join(close)}?" if close else ""
            every = f"there are {', '.join(sorted(known))}"
            raise GradscopeError(f"unknown metric {metric!r}; {meant or every}")
        parts = [self._tidy(b, kind, metric) for b in self.blocks]
        if metric in (None, "grad_rms"):
            parts.append(self._grad_rms(kind))
        parts = [p for p in parts if len(p)]
        if not parts:
            return _empty_frame()
        table = pd.concat(parts, ignore_index=True)
        if aliases:
            table = self._with_aliases(table)
        return table.sort_values(
            ["step", "kind", "site", "edge", "metric", "rank"], kind="stable", ignore_index=True
        )

    def wide(self, kind: str, metric: str, edge: str | None = "") -> pd.DataFrame:
        """Steps × sites in forward order (aliases left out); for `edge=None`, × (site, edge).

        Several ranks are averaged; where one of them has a NaN, so has the average.
        """
        table = self.frame(kind, metric, aliases=False)
        if edge is not None:
            table = table[table["edge"] == edge]
        keys = ["site"] if edge is not None else ["site", "edge"]
        groups = table.assign(lost=table["value"].isna()).groupby(["step", *keys], sort=True)
        mean = groups["value"].mean().mask(groups["lost"].any())
        wide = mean.unstack(keys)
        order = {s.name: s.order for s in self.sites.values() if s.kind == kind}
        site_of = (lambda c: c) if edge is not None else (lambda c: c[0])
        return wide[sorted(wide.columns, key=lambda c: order.get(site_of(c), 1 << 30))]

    def scalars(self) -> pd.DataFrame:
        """Steps × names of everything logged (loss, accuracy, learning rate, …)."""
        return self.wide("scalar", "value")

    def sites_of(self, kind: str, *, aliases: bool = False) -> list[Site]:
        """Sites of a kind in forward order."""
        found = [s for s in self.sites.values() if s.kind == kind and (aliases or not s.alias_of)]
        return sorted(found, key=lambda s: (s.order, s.name))

    # -- internals ---------------------------------------------------------------------

    def _tidy(self, block: Block, kind: str | None, metric: str | None) -> pd.DataFrame:
        keep = [
            j
            for j, c in enumerate(block.columns)
            if (kind is None or self.columns[c].kind == kind)
            and (metric is None or self.columns[c].metric == metric)
        ]
        if not keep:
            return _empty_frame()
        keys = [self.columns[block.columns[j]] for j in keep]
        at_step, at_column = np.nonzero(block.present[:, keep])
        table = {"step": block.steps[at_step]}
        for name in ("site", "kind", "edge", "metric"):
            table[name] = np.array([getattr(k, name) for k in keys], dtype=object)[at_column]
        table["value"] = block.values[:, keep][at_step, at_column]
        table["rank"] = np.array([k.rank for k in keys], dtype=np.int64)[at_column]
        return pd.DataFrame(table)

    def _grad_rms(self, kind: str | None) -> pd.DataFrame:
        """Derived: norm / √n, n as recorded at that step where shapes vary."""
        norms = [self._tidy(b, kind, "grad_norm") for b in self.blocks]
        norms = [p for p in norms if len(p)]
        if not norms:
            return _empty_frame()
        table = pd.concat(norms, ignore_index=True)
        table = table[table["kind"].isin(("module", "parameter"))].copy()
        declared = {key: site.numel for key, site in self.sites.items()}
        numel = pd.Series(
            [declared.get(key, 0) for key in zip(table["kind"], table["site"], strict=True)],
            index=table.index,
            dtype=float,
        )
        varying = [p for b in self.blocks if len(p := self._tidy(b, kind, "numel"))]
        if varying:
            keys = ["step", "site", "kind", "edge", "rank"]
            seen = pd.concat(varying, ignore_index=True)[[*keys, "value"]]
            merged = table[keys].merge(seen, on=keys, how="left")["value"]
            merged.index = table.index
            numel = merged.fillna(numel)
        table["value"] = table["value"] / np.sqrt(numel)
        table["metric"] = "grad_rms"
        return table[numel > 0]

    def _with_aliases(self, table: pd.DataFrame) -> pd.DataFrame:
        copies = [table]
        groups = None
        for site in self.sites.values():
            if not site.alias_of:
                continue
            if groups is None:
                groups = dict(list(table.groupby(["kind", "site"], sort=False)))
            original = groups.get((site.kind, site.alias_of))
            if original is not None:
                elsewhere = original["step"].isin(self._measured_at(site))
                copies.append(original[~elsewhere].assign(site=site.name))
        return pd.concat(copies, ignore_index=True) if len(copies) > 1 else table

    def _measured_at(self, site: Site) -> np.ndarray:
        """Steps at which an alias was a tensor of its own: a layer that was skipped at first."""
        key = Column(site.name, site.kind, "", "grad_norm")
        columns = [i for i, c in enumerate(self.columns) if c._replace(rank=0) == key]
        steps = [
            b.steps[b.present[:, np.isin(b.columns, columns)].any(axis=1)]
            for b in self.blocks
            if columns
        ]
        return np.concatenate(steps) if steps else np.array([], dtype=np.int64)


def _empty_frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "step": np.array([], dtype=np.int64),
            "site": np.array([], dtype=object),
            "kind": np.array([], dtype=object),
            "edge": np.array([], dtype=object),
            "metric": np.array([], dtype=object),
            "value": np.array([], dtype=float),
            "rank": np.array([], dtype=np.int64),
        }
    )
