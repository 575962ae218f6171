"""Depth ladders: sites that play the same role in a repeated structure, input side first.

The gradient of a Linear's output and that of a softmax's differ for reasons that have nothing
to do with depth. Sites of one role in consecutive blocks differ by depth alone, so along them
like is compared with like: "layers.0.content", "layers.1.content", … or, in a Sequential, its
layers of one type. A module that is called again and again (a recurrent cell, shared layers)
is a ladder over its calls, and so are the time steps of a fused recurrent layer.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, pairwise

from gradscope.run import TIME_STEP, Site

CHAIN = "(chain)"  # the role of all modules behind one another
MIN_RUNGS = 3  # two sites show a difference, not a trend


@dataclass(frozen=True)
class Ladder:
    """Sites of one role in consecutive places of a repeated structure.

    Attributes:
        block: the structure that repeats, its varying integer as a star: "layers.*".
        role: the sites' common name: "layers.*.content".
        sites: input side first.
        shared: one module called several times, so that the rungs share their parameters.
    """

    block: str
    role: str
    sites: tuple[str, ...]
    shared: bool = False


def ladders(sites: Iterable[Site]) -> list[Ladder]:
    """Every ladder of at least `MIN_RUNGS` rungs among module sites; else the whole chain.

    A ladder's rungs must lie behind one another: depth in the autograd graph falls from each to
    the next (parallel branches and experts are no ladder, whatever their names). Where no
    structure repeats, the chain of sites whose modules hold parameters stands in; failing that,
    the chain of all sites.
    """
    known = sorted((s for s in sites if not s.alias_of), key=lambda s: (s.order, s.name))
    times = over_calls([s for s in known if s.type == TIME_STEP])
    known = [s for s in known if s.name != "(output)" and s.type != TIME_STEP]
    found = _over_indices(known) + over_calls(known)
    return (found or chain(known)) + times


def chain(sites: list[Site]) -> list[Ladder]:
    """One ladder of all modules that hold parameters, or else of all; none of under `MIN_RUNGS`.

    Args:
        sites: input side first.
    """
    sites = [s for s in sites if s.name != "(output)" and s.type != TIME_STEP and not s.alias_of]
    for links in ([s for s in sites if s.parameters], sites):
        behind = _descending(links)
        if len(behind) >= MIN_RUNGS:
            return [Ladder("", CHAIN, tuple(s.name for s in behind))]
    return []


def _over_indices(sites: list[Site]) -> list[Ladder]:
    roles: dict[tuple[str, str], list[tuple[tuple[int, ...], Site]]] = defaultdict(list)
    for site in sites:
        pattern, indices = role_of(site.name)
        if indices:
            roles[pattern, site.type].append((indices, site))
    found = []
    for (pattern, _), members in roles.items():
        if len(members) < MIN_RUNGS:
            continue
        for fixed, group in _in_series(members):
            if len(group) >= MIN_RUNGS:
                role = _fill(pattern, fixed)
                found.append(Ladder(_block(role), role, tuple(s.name for s in group)))
    return found


def _in_series(
    members: list[tuple[tuple[int, ...], Site]],
) -> list[tuple[dict[int, int], list[Site]]]:
    """Split a role by as few of its indices as make every part a series: (fixed, sites)."""
    positions = range(len(members[0][0]))
    for held in range(len(positions)):
        for kept in combinations(positions, held):
            parts: dict[tuple[int, ...], list[Site]] = defaultdict(list)
            for indices, site in members:
                parts[tuple(indices[p] for p in kept)].append(site)
            if all(_is_series(part) for part in parts.values()):
                return [(dict(zip(kept, key, strict=True)), part) for key, part in parts.items()]
    return []


def over_calls(sites: list[Site]) -> list[Ladder]:
    """Ladders over the calls of one module, "cell", "cell#1", …, sites input side first."""
    calls: dict[str, list[Site]] = defaultdict(list)
    for site in sites:
        base, _, tail = _CALL.match(site.name).groups()  # type: ignore[union-attr]
        calls[f"{base}#*{tail}"].append(site)
    long = {role: c for role, c in calls.items() if len(c) >= MIN_RUNGS and _is_series(c)}
    found = []
    for role, called in long.items():
        path = role.split("#")[0]
        over = [r.split("#")[0] for r in long if path.startswith(r.split("#")[0] + ".")]
        block = min([*over, path], key=len)
        found.append(Ladder(f"{block}#*", role, tuple(s.name for s in called), shared=True))
    return found


def role_of(name: str) -> tuple[str, tuple[int, ...]]:
    """A name with the integers that count repetitions as stars, and those integers.

    "layers.3.norm1" → "layers.*.norm1", (3,); "layer2.0.conv1" → "layer*.*.conv1", (2, 0);
    "fc2" → "fc*", (2,). Digits behind the last container index name a part of the block and
    stay. A field or call number ("[0]", "#1") stays too.
    """
    path, tail = re.match(r"([^\[#:]*)(.*)", name, re.S).groups()  # type: ignore[union-attr]
    parts = path.split(".")
    containers = [i for i, p in enumerate(parts) if p.isdigit()]
    numbered = [i for i, p in enumerate(parts) if re.search(r"\d", p)]
    if not numbered:
        return name, ()
    last = containers[-1] if containers else numbered[0]
    indices: list[int] = []
    for i in range(last + 1):
        indices += [int(d) for d in re.findall(r"\d+", parts[i])]
        parts[i] = re.sub(r"\d+", "*", parts[i])
    return ".".join(parts) + tail, tuple(indices)


def _block(role: str) -> str:
    return role[: role.rindex("*") + 1] if "*" in role else role


def _fill(pattern: str, fixed: dict[int, int]) -> str:
    pieces = pattern.split("*")
    stars = [str(fixed.get(i, "*")) for i in range(len(pieces) - 1)]
    return "".join(a + b for a, b in zip(pieces, [*stars, ""], strict=True))


def _is_series(sites: list[Site]) -> bool:
    depths = [s.depth for s in sites]
    if any(d < 0 for d in depths):
        return True
    return all(a > b for a, b in pairwise(depths))


def _descending(sites: list[Site]) -> list[Site]:
    """The sites, each nearer the loss than all before it."""
    kept: list[Site] = []
    for site in sites:
        if not kept or site.depth < 0 or site.depth < kept[-1].depth:
            kept.append(site)
    return kept


_CALL = re.compile(r"([^\[#]*)(?:#(\d+))?(.*)", re.S)
