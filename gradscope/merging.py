"""Parts of one run, one a process → the run.

What processes measured of their own stays apart, by rank. A parameter that is split over them
is put together: ‖g‖² = Σ_k ‖g_k‖² over its shards k, each counted once however many processes
hold a copy of it. At a step where no process tells of one of the shards, the whole is not told.

Index legend: S steps, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradscope.run import Block, Column, Run, Site

PREFIX = "shard_"  # of metrics that hold for a shard only
_NO_STEPS = np.array([], dtype=np.int64)


def merge(parts: Sequence[Run]) -> Run:
    """One run of the parts of a launch.

    Args:
        parts: at least one, in the order of their ranks; `meta["process"]` tells rank and
            world size.
    """
    run = Run(_meta(parts), path=parts[0].path)
    for part in parts:
        for key, site in part.sites.items():
            run.sites.setdefault(key, site)
        _append(run, part)
    _numel(run, parts)
    _wholes(run, parts)
    return run


def _meta(parts: Sequence[Run]) -> dict[str, Any]:
    """That of the first part, with what the others add."""
    meta = {k: v for k, v in parts[0].meta.items() if k != "process"}
    world_size = parts[0].meta["process"]["world_size"]
    told = [
        {
            "rank": _rank(p),
            "status": p.meta.get("status", ""),
            "ended": p.meta.get("ended", ""),
            "last_step": int(p.steps[-1]) if len(p.steps) else None,
            "seconds": p.meta.get("timings", {}).get("seconds", 0.0),
            "errors": len(p.meta.get("errors", [])),
        }
        for p in parts
    ]
    meta["processes"] = {"world_size": world_size, "parts": told}
    closed = all(part["status"] == "complete" for part in told)
    meta["status"] = "complete" if closed else "recording"
    meta["unseen"] = _union(p.meta.get("unseen", []) for p in parts)
    meta["errors"] = [
        f"rank {part['rank']}: {error}"
        for part, p in zip(told, parts, strict=True)
        for error in p.meta.get("errors", [])
    ]
    if ended := next((f"rank {p['rank']}: {p['ended']}" for p in told if p["ended"]), ""):
        meta["ended"] = ended
    meta["nonfinite"] = sorted(
        ({**e, "rank": _rank(p)} for p in parts for e in p.meta.get("nonfinite", [])),
        key=lambda entry: (entry["step"], entry["rank"]),
    )
    meta["called"] = sorted({name for p in parts for name in p.meta.get("called", [])})
    absent = sorted(set(range(world_size)) - {p["rank"] for p in told})
    if absent and any(s.shards > 1 for p in parts for s in p.sites.values()):
        meta["unseen"] = _union(
            (
                meta["unseen"],
                [
                    {
                        "what": "parameters of which other processes hold a shard",
                        "why": f"no recording of rank {', '.join(map(str, absent))}",
                    }
                ],
            )
        )
    return meta


def _union(lists: Any) -> list[dict[str, str]]:
    entries: list[dict[str, str]] = []
    for entry in (e for found in lists for e in found):
        if entry not in entries:
            entries.append(entry)
    return entries


def _append(run: Run, part: Run) -> None:
    """Add a part's columns and numbers, but for those of shards."""
    place = np.full(len(part.columns), -1, dtype=np.int64)
    for i, column in enumerate(part.columns):
        if not column.metric.startswith(PREFIX):
            place[i] = len(run.columns)
            run.columns.append(column)
    for block in part.blocks:
        keep = np.flatnonzero(place[block.columns] >= 0)
        if len(keep):
            columns = place[block.columns[keep]]
            run.blocks.append(
                Block(block.steps, columns, block.values[:, keep], block.present[:, keep])
            )


def _numel(run: Run, parts: Sequence[Run]) -> None:
    """A site's number of elements is that of the first part; say where another's differs."""
    for part in parts[1:]:
        unlike = [
            site
            for key, site in part.sites.items()
            if site.kind == "module" and site.numel != run.sites[key].numel
        ]
        if not unlike:
            continue
        steps = np.unique(np.concatenate([b.steps for b in part.blocks] or [_NO_STEPS]))
        names = [site.name for site in unlike]
        measured = _held("module", "grad_norm", names, [part], steps)[1]
        told = _held("module", "numel", names, [part], steps)[1]
        numel = np.tile([float(site.numel) for site in unlike], (len(steps), 1))
        columns = [Column(n, "module", "", "numel", _rank(part)) for n in names]
        _tell(run, steps, columns, numel, measured & ~told)


def _wholes(run: Run, parts: Sequence[Run]) -> None:
    """Norms of split parameters, from those of their shards."""
    # Parameters whose shards lie on the same processes are worked out together.
    layouts: dict[tuple[Any, ...], list[str]] = {}
    for (kind, name), site in run.sites.items():
        if site.shards > 1:
            held = tuple(_shard(part.sites.get((kind, name))) for part in parts)
            layouts.setdefault((site.shards, held), []).append(name)
    if not layouts:
        return
    steps = np.unique(np.concatenate([b.steps for p in parts for b in p.blocks] or [_NO_STEPS]))
    for (shards, held), names in layouts.items():
        holders = [[p for p, k in zip(parts, held, strict=True) if k == n] for n in range(shards)]
        gradient = _root_sum_square("shard_grad_norm", names, holders, steps)
        weight = _root_sum_square("shard_weight_norm", names, holders, steps)
        update = _root_sum_square("shard_update_norm", names, holders, steps)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(update == 0, 0.0, update / weight)
        ratio = np.where(np.isnan(update) | np.isnan(weight), np.nan, ratio)
        told = ~_missing("shard_grad_norm", names, holders, steps)
        measured = ~(
            _missing("shard_weight_norm", names, holders, steps)
            | _missing("shard_update_norm", names, holders, steps)
        )
        counts = [_held("parameter", "shard_nonfinite", names, h, steps)[0] for h in holders]
        bad = np.nansum(counts, axis=0)
        for metric, values, present in (
            ("grad_norm", gradient, told),
            ("weight_norm", weight, measured),
            ("update_ratio", ratio, measured),
            ("nonfinite", bad, told & (bad > 0)),
        ):
            columns = [Column(n, "parameter", "", metric, _rank(parts[0])) for n in names]
            _tell(run, steps, columns, values, present)
    run.sites.update(
        {
            key: Site(**{**vars(site), "shard": 0})
            for key, site in run.sites.items()
            if site.shards > 1
        }
    )


def _shard(site: Site | None) -> int:
    return -1 if site is None else site.shard


def _root_sum_square(
    metric: str, names: list[str], holders: list[list[Run]], steps: np.ndarray
) -> np.ndarray:
    """float64 (S, P): √Σ over shards of the metric's square."""
    total = np.zeros((len(steps), len(names)))
    for held in holders:
        with np.errstate(invalid="ignore", over="ignore"):
            total = np.hypot(total, _held("parameter", metric, names, held, steps)[0])
    return total


def _missing(
    metric: str, names: list[str], holders: list[list[Run]], steps: np.ndarray
) -> np.ndarray:
    """bool (S, P): where some shard is told by none of its holders."""
    lacking = np.zeros((len(steps), len(names)), dtype=bool)
    for held in holders:
        lacking |= ~_held("parameter", metric, names, held, steps)[1]
    return lacking


def _held(
    kind: str, metric: str, names: list[str], holders: list[Run], steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values (S, P), of the first of the holders that tells them, and where one does."""
    values = np.full((len(steps), len(names)), np.nan)
    present = np.zeros(values.shape, dtype=bool)
    at = {name: j for j, name in enumerate(names)}
    for part in holders:
        place = np.full(len(part.columns), -1, dtype=np.int64)
        for i, column in enumerate(part.columns):
            if column.kind == kind and column.metric == metric and column.site in at:
                place[i] = at[column.site]
        new = ~present
        for block in part.blocks:
            used = np.flatnonzero(place[block.columns] >= 0)
            if not len(used):
                continue
            cells = np.ix_(np.searchsorted(steps, block.steps), place[block.columns[used]])
            taken = block.present[:, used] & new[cells]
            values[cells] = np.where(taken, block.values[:, used], values[cells])
            present[cells] |= taken
    return values, present


def _tell(
    run: Run, steps: np.ndarray, columns: list[Column], values: np.ndarray, present: np.ndarray
) -> None:
    """Add values (S, P) to a run, but for columns without any."""
    some = np.flatnonzero(present.any(axis=0))
    rows = np.flatnonzero(present.any(axis=1))
    if not len(some):
        return
    known = {column: i for i, column in enumerate(run.columns)}
    numbers = [known.setdefault(columns[j], len(known)) for j in some]
    run.columns[:] = known
    cells = np.ix_(rows, some)
    run.blocks.append(Block(steps[rows], np.array(numbers), values[cells], present[cells]))


def _rank(part: Run) -> int:
    return int(part.meta["process"]["rank"])
