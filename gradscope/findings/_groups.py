"""Sites with one cause in one finding: by role, so that twelve layers make one finding."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from gradscope.findings._ladders import role_of


def anonymous(name: str) -> str:
    """A name without what tells repetitions apart: the role, without the call's number."""
    return re.sub(r"#\d+", "", role_of(name)[0])


def by_role(sites: Iterable[str]) -> dict[str, list[str]]:
    """Role → its sites, in the order given. The call's number does not make a role."""
    roles: dict[str, list[str]] = defaultdict(list)
    for site in sites:
        roles[anonymous(site)].append(site)
    return dict(roles)


def named(site: str) -> str:
    """A site in a sentence: the "0" of a Sequential as "module 0"."""
    return f"module {site}" if site.isdigit() else site


def listed(sites: list[str]) -> str:
    """The sites in a sentence: one, two, or the ends and how many."""
    if len(sites) <= 2:
        return " and ".join(map(named, sites))
    return f"{named(sites[0])} … {named(sites[-1])} ({len(sites)} sites)"
