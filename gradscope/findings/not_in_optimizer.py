"""not-in-optimizer: parameters that get a gradient which no optimizer uses.

Definition. The parameter requires a gradient and had one that is not 0, and at the end of the
recording it was in none of the optimizers that were given to `attach`.

Source: definition.

Severity. Critical for `MANY` of all trainable elements, warning for less: the gradient is computed
for nothing, and the parameters stay as they were initialised.

Silent without an optimizer, about parameters without a gradient (they are detached's), and about
those that have moved in spite of it: somebody updates them another way.
"""

from __future__ import annotations

import numpy as np

from gradscope.findings._finding import Finding, View
from gradscope.findings._groups import listed
from gradscope.findings._parameters import (
    MANY,
    is_held,
    share,
    trainable,
    unregistered,
)
from gradscope.findings._rule import Rule, Skipped
from gradscope.findings._signals import Signals

LEFT_OUT = (
    "Pass model.parameters() to the optimizer after the model is complete (layers made or moved "
    "later are missed), or add them with add_param_group; where they are not meant to learn, "
    "requires_grad_(False) also saves their part of the backward pass."
)
UNLISTED = (
    "The model uses these parameters but does not list them, as of layers in a plain list or dict: "
    "keep layers in nn.ModuleList or nn.ModuleDict, and lone parameters in nn.ParameterList, "
    "before the optimizer is made."
)


def find(signals: Signals) -> list[Finding] | Skipped:
    if not signals.run.meta.get("optimizer"):
        return Skipped("no optimizer was given")
    norms = signals.matrix("parameter", "grad_norm")
    ratios = signals.matrix("parameter", "update_ratio")
    names = [
        name
        for name in trainable(signals)
        if not is_held(signals, name)
        and name in norms
        and bool((norms.column(name) > 0).any())
        and not (name in ratios and bool((np.nan_to_num(ratios.column(name)) > 0).any()))
    ]
    if not names:
        return []
    part = share(signals, names)
    several = len(names) > 1
    return [
        Finding(
            rule="not-in-optimizer",
            severity="critical" if part >= MANY else "warning",
            site=names[0],
            first_step=int(signals.steps[0]),
            last_step=int(signals.steps[-1]),
            evidence={"parameters": len(names), "share_of_parameters": part},
            message=(
                f"{listed(names)} {'get gradients' if several else 'gets a gradient'}, but no "
                f"optimizer has {'them' if several else 'it'}: {part:.1%} of the trainable "
                "numbers stay as they were initialised."
            ),
            remedy=UNLISTED if unregistered(names) else LEFT_OUT,
            view=View("parameter", "grad_norm", tuple(names)),
        )
    ]


RULE = Rule("not-in-optimizer", (("parameter", "grad_norm"),), find)
