"""What labels say more than they did when the first score was seen.

`must` never changed. `may` was widened where an independent measurement (`symptoms.also`) or the
same reasoning as elsewhere showed a consequence that the label had not mentioned; but the look was
prompted by a score, on both halves. The report gives the score of the first labels, too.
"""

from __future__ import annotations

from dataclasses import replace

from analyses.faults.case import Case

ADDED: dict[str, tuple[str, ...]] = {
    "vanishing/plain-conv-10": ("dead-units",),
    "vanishing/attention-chain-6": ("starved-pathway",),
    "vanishing/attention-chain-6/healthy": ("saturated-activation",),
    "vanishing/transformer-8-no-skip": ("starved-pathway",),
    "vanishing/relu-rnn-30-forgetful": ("dead-units",),
    "vanishing/attention-chain-8-anchored": ("starved-pathway",),
    "exploding/transformer-6-no-norm-big-init": (
        "no-update",
        "starved-pathway",
    ),
    "saturated/sigmoid-output-regression": ("exploding-gradient",),
    "peaked/pool-logits-times-1000": ("vanishing-gradient",),
    "peaked/fused-encoder-large-in-proj": (
        "dead-units",
        "vanishing-gradient",
    ),
    "peaked/post-norm-3-logits-times-1000": ("vanishing-gradient",),
    "starved/closed-gate-3": ("saturated-activation",),
    "starved/closed-gate-8": ("saturated-activation",),
    "bottleneck/san-chain-4": ("starved-pathway",),
    "bottleneck/san-anchored-3": ("saturated-activation",),
    "detached/conv-data": ("dead-units",),
    "missing/gru-cell-forgotten": ("vanishing-gradient",),
    "no-update/gru-clip-1e-12": ("vanishing-gradient",),
    "no-update/pool-sgd-lr-1e-11": (
        "diffuse-softmax",
        "vanishing-gradient",
    ),
    "too-large/mlp-sgd-lr-30": ("vanishing-gradient",),
    "too-large/mlp-adam-lr-1": ("vanishing-gradient",),
    "too-large/sla-adam-lr-1": ("vanishing-gradient",),
    "underflow/half-model-sgd": ("dead-units",),
}


def as_first_labelled(case: Case) -> Case:
    """The case with `may` as it was."""
    return replace(case, may=case.may - set(ADDED.get(case.name, ())))
