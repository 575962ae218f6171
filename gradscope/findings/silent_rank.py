"""silent-rank: a process of a parallel run that fell silent before the others.

Definition. Of the parts of a run of several processes, one
- was never closed while another was: its process was killed, or
- was closed, and ends at an earlier recorded step than another: it left the loop early, or its
  recording failed, or
- has not been written to for `SILENCE` intervals in which another one was, and is behind it: it
  hangs, or is gone. (Nothing is closed then: the run goes on, or was killed as a whole.)

Source: definition. What a killed process recorded since it last wrote (`flush_every`) is lost,
so that it may have lived a few steps longer than its part.

Severity. Critical if it was killed or hangs; warning if it stopped on its own.

Silent about a process that left no part: it may never have been asked for one.
"""

from __future__ import annotations

from typing import Any

from gradscope.findings._finding import Finding, View
from gradscope.findings._ranks import listed_ranks
from gradscope.findings._rule import Rule, Skipped
from gradscope.findings._signals import Signals

SILENCE = 3  # intervals of `flush_every`; one alone passes between any two writes
KILLED, STOPPED, HANGS = "killed", "stopped", "hangs"


def find(signals: Signals) -> list[Finding] | Skipped:
    meta = signals.run.meta
    parts = (meta.get("processes") or {}).get("parts", [])
    if len(parts) < 2:
        return Skipped("one process")
    interval = SILENCE * float(meta.get("flush_every", 5.0))
    states = {part["rank"]: _state(part, parts, interval) for part in parts}
    findings = []
    for state in (KILLED, HANGS, STOPPED):
        silent = [part for part in parts if states[part["rank"]] == state]
        if silent:
            findings.append(_finding(signals, state, silent, parts))
    return findings


def _state(part: dict[str, Any], parts: list[dict[str, Any]], interval: float) -> str:
    behind = _last(part) < max(map(_last, parts))
    if part["status"] == "complete":
        return STOPPED if behind else ""
    if any(other["status"] == "complete" for other in parts):
        return KILLED
    waited = max(other["seconds"] for other in parts) - part["seconds"]
    return HANGS if behind and waited > interval else ""


def _last(part: dict[str, Any]) -> int:
    """Last recorded step; -1 without any."""
    return -1 if part["last_step"] is None else int(part["last_step"])


def _finding(
    signals: Signals, state: str, silent: list[dict[str, Any]], parts: list[dict[str, Any]]
) -> Finding:
    ranks = [part["rank"] for part in silent]
    last, furthest = min(map(_last, silent)), max(map(_last, parts))
    first_step = max(last, int(signals.steps[0]))
    others = next((p for p in parts if p["ended"] and p["rank"] not in ranks), None)
    own = next((p["ended"] for p in silent if p["ended"]), "")
    end = f"ends at step {last}" if last >= 0 else "holds no step"
    went_on = f"the others recorded up to step {furthest}"
    message = {
        KILLED: f"{listed_ranks(ranks).capitalize()} never closed the recording, which {end}: "
        f"the process was killed; {went_on}",
        HANGS: f"{listed_ranks(ranks).capitalize()} has stopped writing, and what there is {end}; "
        f"{went_on}",
        STOPPED: f"{listed_ranks(ranks).capitalize()} stopped on its own, and its recording {end}; "
        f"{went_on}",
    }[state]
    if own:
        message += f" (it ended with {own:.200})"
    elif others is not None:
        message += f" (rank {others['rank']} ended with {others['ended']:.200})"
    remedy = {
        KILLED: "Look for the reason on that machine: the kernel's log has what ran out of memory "
        "(dmesg), the launcher's log the signal.",
        HANGS: "Ask that process where it is (py-spy dump --pid …); a collective that not all "
        "processes reach makes them wait for ever.",
        STOPPED: "Give every process the same number of steps; if its recording failed, the "
        "report lists the error.",
    }[state]
    loss = signals.loss.sites[0] if signals.loss is not None else ""
    return Finding(
        rule="silent-rank",
        severity="warning" if state == STOPPED else "critical",
        site=listed_ranks(ranks),
        first_step=first_step,
        last_step=max(furthest, first_step),
        evidence={
            "ranks": ranks,
            "world_size": signals.run.meta["processes"]["world_size"],
            "state": state,
            "last_step": last,
            "last_step_of_others": furthest,
            "errors": sum(part["errors"] for part in silent),
        },
        message=f"{message}.",
        remedy=remedy,
        view=View("scalar", "value", (loss,) if loss else ()),
    )


RULE = Rule("silent-rank", (), find)
