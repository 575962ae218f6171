"""Which sites share a row when runs are compared, and which of them form a ladder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gradscope.figures._figure import Mark
from gradscope.figures._grid import Grid
from gradscope.run import Site


@dataclass(frozen=True)
class Rows:
    """Rows of a figure that lists sites from top to bottom.

    Attributes:
        common: whether all runs share their rows.
        sites: per run, the site of each row.
        at: per run, the row of each of its grid's columns.
    """

    common: bool
    sites: list[list[Site]]
    at: list[list[int]]


def rows_of(grids: Sequence[Grid]) -> Rows:
    """Common rows where the runs' models are mostly alike, else each run's own."""
    merged = merge([g.names for g in grids])
    alike = all(2 * len(g.sites) >= len(merged) for g in grids if g.sites)
    if not alike:
        return Rows(False, [g.sites for g in grids], [list(range(len(g.sites))) for g in grids])
    known = {s.name: s for g in grids for s in g.sites}
    where = {name: i for i, name in enumerate(merged)}
    sites = [known[name] for name in merged]
    return Rows(True, [sites] * len(grids), [[where[n] for n in g.names] for g in grids])


def merge(orders: Sequence[Sequence[str]]) -> list[str]:
    """One order of all names: that of the longest list, with what others have in addition put
    behind the name that it follows there."""
    merged: list[str] = []
    for names in sorted(orders, key=len, reverse=True):
        known = set(merged)
        place = 0
        for name in names:
            if name in known:
                place = merged.index(name) + 1
            else:
                merged.insert(place, name)
                place += 1
    return merged


def ladder(sites: Sequence[Site], marks: Sequence[Mark] = ()) -> list[int]:
    """Indices of the sites that a depth profile joins: one role, and type, in layer after layer.

    That which a finding is about, if there is one; else the outermost role that runs through
    most layers (`layers.0`, `layers.1`, … rather than what is inside them). All sites where no
    name repeats with another number.
    """
    where = {s.name: i for i, s in enumerate(sites)}
    for m in marks:
        rungs = [where[name] for name in m.sites if name in where]
        if m.kind == "module" and len(rungs) >= 3:
            return sorted(rungs)
    found = _ladders(sites)
    return found[_outermost([found])] if found else [*range(len(sites))]


def common_ladders(
    several: Sequence[Sequence[Site]], marks: Sequence[Mark] = ()
) -> list[list[int]]:
    """`ladder` for models that are compared: the same role in each, where they share one."""
    if len(several) == 1:
        return [ladder(several[0], marks)]
    known = [_ladders(sites) for sites in several]
    shared = set.intersection(*(set(k) for k in known)) if known else set()
    if not shared:
        return [ladder(sites) for sites in several]
    types = {s.name: s.type for sites in several for s in sites}
    found = [
        (role(m.site), types.get(m.site, ""))
        for m in marks
        if m.kind == "module" and len(m.sites) >= 3
    ]
    best = next(
        (kind for kind in found if kind in shared),
        _outermost([{kind: k[kind] for kind in shared} for k in known]),
    )
    return [k[best] for k in known]


Kind = tuple[str, str]  # role and type: a Linear's gradient differs from that of the GELU behind it


def _outermost(known: Sequence[dict[Kind, list[int]]]) -> Kind:
    """The shortest name among the roles with nearly as many rungs as any.

    Nearly: the last block's output is often the stack's own, and then bears the stack's name.
    """
    rungs = {kind: sum(len(k[kind]) for k in known) for kind in known[0]}
    many = [kind for kind, n in rungs.items() if n >= 0.75 * max(rungs.values())]
    return min(many, key=lambda kind: (kind[0].count("."), len(kind[0]), -rungs[kind], kind))


def _ladders(sites: Sequence[Site]) -> dict[Kind, list[int]]:
    kinds: dict[Kind, list[int]] = {}
    for i, site in enumerate(sites):
        kinds.setdefault((role(site.name), site.type), []).append(i)
    return {
        kind: rungs
        for kind, rungs in kinds.items()
        if "*" in kind[0] and _in_series([sites[i] for i in rungs])
    }


def role(name: str) -> str:
    """A name with its layer numbers as stars: `layers.*.mlp`, `layer*.*.conv1`."""
    last = max((m.end() for m in re.finditer(r"(?<![^.])\d+(?![^.:\[#])", name)), default=0)
    return re.sub(r"\d+", "*", name[:last]) + name[last:]


def _in_series(sites: Sequence[Site]) -> bool:
    """Whether the sites lie behind one another, rather than side by side (heads, experts)."""
    depths = [s.depth for s in sites]
    falling = all(a > b for a, b in pairwise(depths))
    return len(sites) >= 2 and (falling or min(depths) < 0)
