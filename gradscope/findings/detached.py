"""detached: trainable parameters that the loss does not depend on.

Definition. The parameter requires a gradient, and at no recorded step had one. Its module ran (a
call was recorded), or it did not: a detach(), .data, no_grad() or a numpy round trip lies
between the two, or the model's result never uses it. Or its gradient was exactly 0 at every one
of `ENOUGH` recorded steps or more, and that of others wasn't: what it computes is sliced off,
masked, or multiplied by 0.

Source: `Tensor.grad` is None for what no backward pass has reached.

Not told where no parameter of the model has a gradient though gradients reach its modules: they
were cleared before the optimizer stepped, and that is no-update's.

Severity. Critical where the module ran, and these are `MANY` of all trainable elements and include
the first parameter of the model or several modules: a cut leaves all that lies before it without a
gradient. Warning where the module ran otherwise, or where as many elements belong to modules that
never ran. Info for less, for parameters that no optimizer has either (a teacher that follows the
model, say), and for modules that never ran where others of their kind run at some
steps only (experts without tokens).

Silent about frozen parameters (they are no sites).
"""

from __future__ import annotations

from gradscope.findings._finding import Finding, Severity, View
from gradscope.findings._groups import anonymous, listed
from gradscope.findings._parameters import (
    MANY,
    WHOLE,
    always_zero,
    cleared,
    is_held,
    module_of,
    never_a_gradient,
    share,
    trainable,
    without_lone_vectors,
)
from gradscope.findings._persistence import ENOUGH
from gradscope.findings._rule import Rule, Skipped
from gradscope.findings._signals import Signals

LITTLE = 1e-3  # share of the trainable elements: a norm's scale, a token that is never used


def find(signals: Signals) -> list[Finding] | Skipped:
    every = trainable(signals)
    if not every:
        return Skipped("no parameter")
    if not len(signals.steps):
        return Skipped("no recorded step")
    names = never_a_gradient(signals)
    if cleared(signals):
        return []
    called = signals.run.meta.get("called")
    ran = names if called is None else [n for n in names if _ran(n, set(called), names)]
    rest = [n for n in names if n not in set(ran)]
    idle = all(_is_routed(signals, n, every) for n in rest)
    zero = list(
        without_lone_vectors(signals, {n: "zero" for n in every if always_zero(signals, n)})
    )
    if len(signals.steps) < ENOUGH:
        zero = []
    elif zero and share(signals, zero) >= WHOLE:
        zero = []  # no-update's
    return [
        _finding(signals, group, every, did_run, idle and not did_run, group is zero)
        for group, did_run in ((ran, True), (rest, False), (zero, True))
        if group
    ]


def _ran(name: str, called: set[str], names: list[str]) -> bool:
    """Whether its module was called, or the one around it read the weight itself, as
    `nn.MultiheadAttention` does with its `out_proj`."""
    module = module_of(name)
    if module in called:
        return True
    around = module_of(module)
    return around in called and any(module_of(n) == around for n in names)


def _is_routed(signals: Signals, name: str, every: list[str]) -> bool:
    """Whether a parameter of the same role, in a module beside this one, gets a gradient at some
    steps and none at others: data decide which of them runs."""
    norms = signals.matrix("parameter", "grad_norm")
    beside = [n for n in every if n in norms and anonymous(n) == anonymous(name)]
    return any(not norms.present[:, norms.sites.index(n)].all() for n in beside)


def _finding(
    signals: Signals, names: list[str], every: list[str], ran: bool, idle: bool, zero: bool
) -> Finding:
    part = share(signals, names)
    unheld = not any(is_held(signals, n) for n in names)
    several = len(names) > 1
    whom = f"All {len(names)} parameters" if len(names) == len(every) > 1 else listed(names)
    what = (
        f"{'have' if several else 'has'} a gradient of exactly 0 at every recorded step: the loss "
        "does not depend on what comes of it"
        if zero
        else f"{'take' if several else 'takes'} part in the forward pass but never "
        f"{'get' if several else 'gets'} a gradient: not in the graph of the loss"
        if ran
        else f"{'are' if several else 'is'} never used: the module{'s' * several} did not run"
    )
    return Finding(
        rule="detached",
        severity="info" if idle or unheld else _severity(names, every, part, ran),
        site=names[0],
        first_step=int(signals.steps[0]),
        last_step=int(signals.steps[-1]),
        evidence={
            "parameters": len(names),
            "share_of_parameters": part,
            "module_ran": ran,
            "exactly_zero": zero,
            "in_optimizer": sum(is_held(signals, n) for n in names),
            "recorded_steps": len(signals.steps),
        },
        message=f"{whom} {what}.",
        remedy=(
            "Look at what lies between these parameters and the loss: a slice, a mask or a factor "
            "of 0 that leaves their result out; round() or sign(), whose derivative is 0."
            if zero
            else "Look for a detach(), .data, no_grad() or a numpy round trip between these "
            "parameters and the loss, or for a result that the loss leaves out; where they are not "
            "meant to learn, call requires_grad_(False) on them."
            if ran
            else "Use them, or set requires_grad to False and leave them out of the optimizer."
        ),
        view=View("parameter", "grad_norm", tuple(names)),
    )


def _severity(names: list[str], every: list[str], part: float, ran: bool) -> Severity:
    cut = every[0] in names or len({module_of(n) for n in names}) > 1
    if ran and part >= MANY and cut:
        return "critical"
    return "warning" if part >= (LITTLE if ran else MANY) else "info"


RULE = Rule("detached", (), find)
