"""A place too narrow for what the task needs to pass. Minimum cuts are asked for in every run.

A narrow layer between input and output is told at severity info, as it may be on purpose; the
labels accept that.
"""

from functools import partial

import torch
from torch import nn

from analyses.faults import data, nets, setups
from analyses.faults.case import Fault, Variant
from analyses.faults.symptoms import learns_less, narrow
from analyses.faults.training import Training


def squeezed(code: int, *, width: int = 48, seed: int = 0) -> Training:
    """Digits are to be copied through `code` numbers."""
    torch.manual_seed(seed)
    model = nets.mlp([64, width, code, width, 64], nn.GELU)
    return setups.with_bottlenecks(
        setups.assemble(model, data.digits(), setups.reconstruction, lr=3e-3)
    )


def narrow_classifier(width: int) -> Training:
    """Ten digits through `width` tanh units."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, width), nn.Tanh(),
        nn.Linear(width, 48), nn.ReLU(), nn.Linear(48, 10),
    )  # fmt: skip
    return setups.with_bottlenecks(setups.assemble(model, data.digits(), lr=3e-3))


def narrow_conv(channels: int) -> Training:
    """An image is to be copied; the middle layer has few channels and a quarter of the places."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, stride=2), nn.GELU(),
        nn.Conv2d(16, channels, 3, padding=1, stride=2), nn.GELU(),
        nn.ConvTranspose2d(channels, 16, 4, padding=1, stride=2), nn.GELU(),
        nn.ConvTranspose2d(16, 1, 4, padding=1, stride=2),
    )  # fmt: skip
    return setups.with_bottlenecks(
        setups.assemble(model, data.digits(image=True), setups.reconstruction, lr=3e-3)
    )


stack = partial(setups.arrows, bottlenecks=True)

# Layers that see each other through softmaxes only: known consequences of a chain of contents.
CHAIN = [
    "softmax-borne",
    "diffuse-softmax",
    "vanishing-gradient",
    "no-update",
]

FAULT = Fault(
    "bottleneck",
    must=[["information-bottleneck"]],
    at_info=["information-bottleneck"],
    symptom=learns_less(0.1),
    variants=[
        Variant("copy-through-2", partial(squeezed, 64), broken=partial(squeezed, 2),
                healthy_at_info=[]),
        Variant(
            "san-chain-4",
            partial(stack, "sla", layers=4),
            broken=partial(stack, "san-chain", layers=4),
            may=[*CHAIN, "starved-pathway"],  # what only uniform attention reads
            symptom=narrow(stack, ("san-chain", 4), ("sla", 4)),
        ),
        Variant("classifier-through-1", partial(narrow_classifier, 48),
                broken=partial(narrow_classifier, 1)),
        Variant("conv-copy-through-1-channel", partial(narrow_conv, 16),
                broken=partial(narrow_conv, 1)),
        Variant(
            "san-anchored-3",
            partial(stack, "sla-anchored", layers=3),
            broken=partial(stack, "san-anchored", layers=3),
            may=[*CHAIN, "saturated-activation"],  # its latent states, when it has learned
            symptom=narrow(stack, ("san-anchored", 3), ("sla-anchored", 3)),
        ),
        Variant("copy-through-1-wide", partial(squeezed, 64, width=96),
                broken=partial(squeezed, 1, width=96)),
    ],
)  # fmt: skip
