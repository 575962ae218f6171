"""The course of the gradient along depth: how many decades it loses on its way to the input.

Index legend: S recorded steps, R rungs of a ladder, input side first. For one rung's gradient
g_r the profile is log₁₀ g_r, and

    decades = log₁₀ (g_last / g_first):    > 0 the gradient vanishes toward the input, < 0 it
                                           explodes, 0 it arrives as it left.

A difference in shape must not pass for one in depth. Norms favour large tensors and RMS values
small ones, so both are taken and the smaller magnitude counts, or 0 where their signs differ. A
single odd end, such as the logits of a Sequential, must not pass for a trend: beside the ends,
the least-squares line through all rungs is read, and again the smaller magnitude counts.

A structure's roles that get next to nothing of its gradient (queries and keys
behind uniform attention) are not the way it takes, and have no say in its course.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from gradscope.findings._ladders import MIN_RUNGS, Ladder, chain, ladders, over_calls
from gradscope.findings._persistence import Spell
from gradscope.findings._signals import Matrix, Signals, quiet_median
from gradscope.run import Site

TINIEST = 1.4e-45  # smallest float32 above 0: what a gradient of exactly 0 is counted as
HOPELESS = 6.0  # below 10⁻⁶ the early layers' gradient drowns in float32 noise of the late ones
MINOR = 1e-2  # of the largest role's RMS at the middle rung; values have 0.3 of outputs'


@dataclass(frozen=True)
class Decay:
    """One repeated structure, over all its roles.

    Attributes:
        kind: of the sites, "module" or "fork".
        block: the structure, "layers.*"; "" for the chain of all sites.
        ladders: one per role.
        steps: int64 (S,).
        decades: float64 (S,), median over the roles; NaN where unknown.
        by_role: float64 (S, len(ladders)).
    """

    kind: str
    block: str
    ladders: tuple[Ladder, ...]
    steps: np.ndarray
    decades: np.ndarray
    by_role: np.ndarray

    @property
    def rungs(self) -> int:
        return max(len(ladder.sites) for ladder in self.ladders)

    @property
    def shared(self) -> bool:
        return self.ladders[0].shared

    def typical(self, inside: np.ndarray) -> Ladder:
        """The role whose course over some steps (bool (S,)) is nearest the median one."""
        course = quiet_median(self.by_role[inside], axis=0)
        return self.ladders[int(np.nanargmin(np.abs(course - np.nanmedian(course))))]


def decays(signals: Signals) -> list[Decay]:
    """One `Decay` for each repeated structure among the module sites.

    A forward pass written without modules repeats itself in its forks: in `h = layer(h)` with the
    layers in a ParameterList, each h that is read twice is a rung, as if called again and again.
    """
    found = _measured(signals, "module", ladders(_sites(signals, "module")))
    own = [s for s in _sites(signals, "fork") if s.name.startswith("(output)")]
    return found or _measured(signals, "fork", over_calls(own))


def chain_decay(signals: Signals) -> list[Decay]:
    """The one `Decay` along all modules that hold parameters, whatever repeats among them."""
    return _measured(signals, "module", chain(_sites(signals, "module")))


def _sites(signals: Signals, kind: str) -> list[Site]:
    measured = {site for site, edge in signals.matrix(kind, "grad_norm").keys if not edge}
    sites = [s for s in signals.run.sites_of(kind) if s.name in measured]
    return sorted(sites, key=lambda s: (s.order, s.name))


def _measured(signals: Signals, kind: str, found: list[Ladder]) -> list[Decay]:
    norm = signals.matrix(kind, "grad_norm")
    rms = signals.matrix(kind, "grad_rms").on(norm.steps)
    blocks: dict[str, list[Ladder]] = defaultdict(list)
    for ladder in found:
        blocks[ladder.block].append(ladder)
    structures = []
    for block, roles in blocks.items():
        main = _main(roles, rms)
        by_role = np.stack([_decades(ladder, norm, rms) for ladder in main], axis=1)
        decades = quiet_median(by_role, axis=1)
        structures.append(Decay(kind, block, tuple(main), norm.steps, decades, by_role))
    return structures


def _main(roles: list[Ladder], rms: Matrix) -> list[Ladder]:
    """The roles that the gradient goes through, by their middle rung."""
    rungs = [quiet_median(rms.columns([(site, "") for site in r.sites]), axis=0) for r in roles]
    sizes = np.array([quiet_median(sizes) for sizes in rungs])
    kept = sizes >= MINOR * np.nanmax(sizes, initial=0.0)
    return [role for role, keep in zip(roles, kept, strict=True) if keep] or roles


@dataclass(frozen=True)
class End:
    """Where a gradient ends on its way to the input: all that follows gets exactly 0.

    Attributes:
        before: the last rung with a gradient.
        behind: the first without.
        decades: what was lost up to there.
    """

    before: str
    behind: str
    decades: float


def end_of(signals: Signals, decay: Decay, ladder: Ladder, steps: np.ndarray) -> End | None:
    """None where some gradient arrives at the first rung, at half of the steps or more."""
    keys = [(site, "") for site in ladder.sites]
    course = quiet_median(signals.matrix(decay.kind, "grad_norm").on(steps).columns(keys), axis=0)
    some = np.flatnonzero(course > 0)
    if course[0] != 0 or not len(some):
        return None
    before = int(some[0])
    lost = float(np.log10(course[some[-1]] / course[before]))
    return End(ladder.sites[before], ladder.sites[before - 1], lost)


def steepest(
    signals: Signals, decay: Decay, ladder: Ladder, steps: np.ndarray, sign: int
) -> tuple[str, str, float]:
    """The gap between neighbouring rungs at which the gradient loses most on its way.

    Args:
        sign: 1 for the largest loss toward the input, -1 for the largest gain.

    Returns:
        The rung before the gap (nearer the loss), the one behind it, and log₁₀ of the ratio.
    """
    keys = [(site, "") for site in ladder.sites]
    values = signals.matrix(decay.kind, "grad_rms").on(steps).columns(keys)
    if not np.isfinite(values).any(axis=0).all():
        values = signals.matrix(decay.kind, "grad_norm").on(steps).columns(keys)
    course = quiet_median(_logs(values), axis=0)
    rungs = np.flatnonzero(np.isfinite(course))
    gaps = np.diff(course[rungs])
    at = int(np.argmax(sign * gaps))
    return ladder.sites[rungs[at + 1]], ladder.sites[rungs[at]], float(gaps[at])


def update_ratio_ends(
    signals: Signals, decay: Decay, steps: np.ndarray
) -> tuple[float, float] | None:
    """Median update ratio of the first and the last rung's parameters; None if not measured."""
    ratios = signals.matrix("parameter", "update_ratio").on(steps)
    if not ratios.keys or decay.shared:
        return None
    depth = decay.block.count(".") + 1
    owners: dict[str, list[int]] = defaultdict(list)
    for j, name in enumerate(ratios.sites):
        path = name.split(".")
        for k in range(depth, len(path)):
            owners[".".join(path[:k])].append(j)
    longest = max(decay.ladders, key=lambda d: sum(_owner(s, depth, owners) != "" for s in d.sites))
    rungs = [r for s in longest.sites if (r := _owner(s, depth, owners))]
    if len(rungs) < 2:
        return None
    ends = [quiet_median(ratios.values[:, owners[r]]) for r in (rungs[0], rungs[-1])]
    return (float(ends[0]), float(ends[1])) if np.isfinite(ends).all() else None


def _owner(site: str, depth: int, owners: dict[str, list[int]]) -> str:
    """The longest module path at or above a site, inside the block, that owns parameters."""
    path = re.split(r"[\[#:]", site)[0].split(".")
    for k in range(len(path), depth - 1, -1):
        if (prefix := ".".join(path[:k])) in owners:
            return prefix
    return ""


def _decades(ladder: Ladder, norm: Matrix, rms: Matrix) -> np.ndarray:
    keys = [(site, "") for site in ladder.sites]
    by_norm = _course(_logs(norm.columns(keys)))
    sized = rms.columns(keys)
    by_rms = _course(_logs(sized)) if np.isfinite(sized).any(axis=0).all() else by_norm
    return _smaller(by_norm, by_rms)


def _logs(values: np.ndarray) -> np.ndarray:
    finite = np.where(np.isfinite(values), values, np.nan)
    return np.log10(np.maximum(finite, TINIEST))


def _course(logs: np.ndarray) -> np.ndarray:
    """Decades (S,) from logs (S, R): the ends and the fitted line, whichever says less."""
    known = np.isfinite(logs)
    count = known.sum(axis=1)
    first = np.argmax(known, axis=1)
    last = logs.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
    row = np.arange(len(logs))
    ends = logs[row, last] - logs[row, first]
    r = np.where(known, np.arange(logs.shape[1], dtype=float), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        r -= (np.nansum(r, axis=1) / count)[:, None]
        slope = np.nansum(r * logs, axis=1) / np.nansum(r**2, axis=1)
    fitted = slope * (last - first)
    # Nothing at the loss side: no gradient at all, which is not a matter of depth.
    arrived = logs[row, last] > np.log10(TINIEST)
    return np.where((count >= MIN_RUNGS) & arrived, _smaller(ends, fitted), np.nan)


def _smaller(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The value of smaller magnitude; 0 where the signs differ; NaN where either is unknown."""
    agreed = np.where(np.sign(a) == np.sign(b), np.sign(a) * np.minimum(np.abs(a), np.abs(b)), 0.0)
    return np.where(np.isnan(a) | np.isnan(b), np.nan, agreed)


def outermost(found: list[tuple[Decay, Spell]]) -> list[tuple[Decay, Spell]]:
    """Without structures inside another that is found as well: one cause, one finding."""
    blocks = [decay.block for decay, _ in found]
    return [
        (decay, spell)
        for decay, spell in found
        if not any(decay.block.startswith(f"{b}.") for b in blocks if b != decay.block)
    ]
