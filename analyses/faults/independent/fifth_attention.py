"""Attention stuck on one entry, unable to choose, or passing too little; and sound kinds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from analyses.faults.case import Fault, Healthy, Symptom, Variant
from analyses.faults.independent import kit_fifth_attention as kit
from analyses.faults.symptoms import decays, diffuse, grows, peaked
from analyses.faults.training import Training


def lookup() -> Training:
    """Retrieval by content out of twelve items, plain SGD."""
    torch.manual_seed(1)
    return kit.sgd(kit.Lookup(), kit.lookups(64, 12, 24, 8), lr=0.1, steps=400)


def unit_normal_projections(training: Training) -> None:
    """Projections drawn from N(0, 1) and no division by √d: scores of some hundred."""
    model = training.model
    assert isinstance(model, kit.Lookup)
    nn.init.normal_(model.q.weight)
    nn.init.normal_(model.k.weight)
    model.scale = 1.0


def kernel(bandwidth: float = 1.0, items: int = 10) -> Training:
    """A kernel memory over embedded distances."""
    torch.manual_seed(2)
    return kit.adam(kit.Kernel(bandwidth=bandwidth), kit.lookups(64, items, 16, 6), steps=300)


def gated(items: int = 20) -> Training:
    """Pooling of bags of which one instance counts."""
    torch.manual_seed(3)
    return kit.adam(kit.Gated(), kit.bags(64, items, 12), steps=300)


def steep_score(training: Training) -> None:
    """The scores' last layer, loaded from a file of other units."""
    model = training.model
    assert isinstance(model, kit.Gated)
    with torch.no_grad():
        model.score.weight.mul_(2000)


def patches(spread: float = 0.02) -> Training:
    """Digits by a vision transformer with a learned bias by places, drawn with some spread."""
    torch.manual_seed(4)
    return kit.sgd(kit.Patches(spread=spread), kit.digit_batches(48), lr=0.02, steps=200)


def translator(slope: float = 0.02) -> Training:
    """Reversal by recurrent encoder and decoder, with a penalty on distance."""
    torch.manual_seed(5)
    return kit.adam(kit.Seq2Seq(16, 12, slope), kit.reversals(48, 12, 16), lr=3e-3, steps=250)


PEAKED = Fault(
    "ind5-peaked-attention",
    must=[["peaked-softmax"]],
    symptom=peaked(0.1),
    variants=[
        # The projections, first in the ladder, get hundreds of times less than the head.
        Variant(
            "lookup-unit-normal",
            lookup,
            change=unit_normal_projections,
            may=["vanishing-gradient"],
        ),
        Variant("kernel-too-narrow", kernel, broken=partial(kernel, bandwidth=0.03)),
        Variant("gated-steep-score", gated, change=steep_score),
        # Nothing comes back through the scores: the keys' way starves and their matrix stays.
        Variant(
            "translator-steep-penalty",
            translator,
            broken=partial(translator, slope=25.0),
            may=["vanishing-gradient", "starved-pathway", "no-update"],
        ),
    ],
)


def cosine(temperature: float = 0.1) -> Training:
    """Cosine attention over 24 keys."""
    torch.manual_seed(6)
    return kit.adam(
        kit.Cosine(16, temperature=temperature), kit.lookups(64, 24, 16, 6), lr=1e-2, steps=300
    )


def tiny_projections(training: Training) -> None:
    """Projections drawn with a tiny deviation, and scores divided by d's cube."""
    model = training.model
    assert isinstance(model, kit.Lookup)
    nn.init.normal_(model.q.weight, std=0.002)
    nn.init.normal_(model.k.weight, std=0.002)
    model.scale = 32.0**-3


def tepid(training: Training) -> None:
    """Pooling scores divided by three thousand."""
    model = training.model
    assert isinstance(model, kit.Gated)
    model.temperature = 3000.0


def hot(training: Training) -> None:
    """Scores of the translator divided by a thousand."""
    model = training.model
    assert isinstance(model, kit.Seq2Seq)
    model.factor /= 1000
    model.slope = 0.0


DIFFUSE = Fault(
    "ind5-diffuse-attention",
    must=[["diffuse-softmax"]],
    symptom=diffuse(0.97),
    variants=[
        # What leads to the scores gets next to nothing.
        Variant(
            "kernel-too-wide",
            kernel,
            broken=partial(kernel, bandwidth=3000.0),
            may=["vanishing-gradient"],
        ),
        Variant(
            "cosine-times-temperature",
            cosine,
            broken=partial(cosine, temperature=20.0),
            may=["vanishing-gradient"],
        ),
        Variant(
            "lookup-tiny-projections",
            lookup,
            change=tiny_projections,
            may=["vanishing-gradient"],
        ),
        # The features are read by the scores and by the sum: the former's way starves.
        Variant("gated-tepid", gated, change=tepid, may=["starved-pathway", "vanishing-gradient"]),
        Variant(
            "translator-hot", translator, change=hot, may=["starved-pathway", "vanishing-gradient"]
        ),
    ],
)


def coder(code: int = 0) -> Training:
    """Reversal by two blocks."""
    torch.manual_seed(7)
    return kit.adam(kit.Coder(code=code), kit.reversals(48, 12, 10), lr=3e-3, steps=200)


def quarters(summary: int = 0) -> Training:
    """Digits by quarters."""
    torch.manual_seed(8)
    return kit.adam(kit.Quarters(summary), kit.digit_batches(32), lr=3e-3, steps=200)


def latents(count: int = 32, width: int = 32) -> Training:
    """Digits by latent vectors."""
    torch.manual_seed(9)
    return kit.adam(kit.Latents(count, width), kit.digit_batches(32), lr=3e-3, steps=250)


def thought(width: int = 0) -> Training:
    """Reversal by encoder and decoder."""
    torch.manual_seed(10)
    return kit.adam(kit.Thought(thought=width), kit.reversals(48, 10, 10), lr=3e-3, steps=250)


def passes_little(faulty: Callable[[], Training], sound: Callable[[], Training]) -> Symptom:
    """An eighth at most of the sound model's numbers get from attention to attention."""

    def symptom(run: Any, twin: Any) -> dict[str, Any]:
        found, theirs = kit.rank_between(faulty), kit.rank_between(sound)
        worse = run.loss_last - twin.loss_last > 0.02 * twin.loss_first
        return {
            "is": worse and found <= theirs / 8,
            "rank": found,
            "twin": theirs,
            "loss": run.loss_last,
            "twin_loss": twin.loss_last,
        }

    return symptom


def narrow(name: str, sound: Callable[[], Training], faulty: Callable[[], Training]) -> Variant:
    """A variant by its two makers."""
    return Variant(name, sound, broken=faulty, symptom=passes_little(faulty, sound))


NARROW = Fault(
    "ind5-narrow-attention",
    must=[["information-bottleneck"]],
    variants=[
        narrow("coder-three-numbers", coder, partial(coder, code=3)),
        narrow("quarters-one-number-each", quarters, partial(quarters, summary=1)),
        narrow("latents-two-numbers", latents, partial(latents, count=1, width=2)),
        narrow("thought-of-four", thought, partial(thought, width=4)),
    ],
)


def plain(layers: int = 8, around: bool = True) -> Training:
    """Digits by rows through attention layers."""
    torch.manual_seed(11)
    return kit.sgd(kit.Plain(layers, around), kit.digit_batches(32), lr=0.02, steps=150)


def scaled(factor: float = 0.9) -> Training:
    """A language model without norms."""
    torch.manual_seed(12)
    return kit.sgd(kit.Scaled(factor), kit.grammar(24, 16), lr=0.03, steps=150)


def even(times: float = 1.0) -> Training:
    """Linear attention over bags."""
    torch.manual_seed(13)
    return kit.adam(kit.Even(times=times), kit.bags(48, 10, 12), lr=1e-3, steps=200)


def normed(gain: float = 1.0) -> Training:
    """Digits by attention without norms."""
    torch.manual_seed(14)
    return kit.adam(kit.Normed(gain=gain), kit.digit_batches(32), lr=1e-3, steps=200)


VANISHING = Fault(
    "ind5-vanishing-attention",
    must=[["vanishing-gradient"]],
    # The places' states hardly differ any more, so attention is even; early layers stay put.
    may=["diffuse-softmax", "no-update"],
    symptom=decays(2.5),
    variants=[
        Variant("plain-no-way-around", plain, broken=partial(plain, around=False)),
        Variant("scaled-down-sums", scaled, broken=partial(scaled, factor=0.1)),
    ],
)

EXPLODING = Fault(
    "ind5-exploding-attention",
    must=[["exploding-gradient"]],
    symptom=grows(2.5),
    variants=[
        Variant("linear-wide-values", even, broken=partial(even, times=15.0)),
        Variant("normed-wide-values", normed, broken=partial(normed, gain=4.0)),
    ],
)


def causal() -> Training:
    """A language model on a made-up grammar."""
    torch.manual_seed(15)
    return kit.adam(kit.Causal(), kit.grammar(32, 16), lr=3e-3, steps=200)


def shared() -> Training:
    """Digits by multi-query attention in a window."""
    torch.manual_seed(16)
    return kit.adam(kit.Shared(), kit.digit_batches(48), steps=200)


def fused() -> Training:
    """Bags by PyTorch's own encoder."""
    torch.manual_seed(17)
    return kit.adam(kit.Fused(), kit.bags(48, 10, 12), lr=1e-3, steps=200)


FAULTS = [PEAKED, DIFFUSE, NARROW, VANISHING, EXPLODING]

SOUND = Healthy(
    "ind5-sound-attention",
    runs={
        "patches-learned-bias": patches,
        "causal-tied": causal,
        "multi-query-window": shared,
        "fused-encoder-bags": fused,
        "gated-large-bags": partial(gated, items=40),
        "thought-wide": partial(thought, width=40),
    },
    # All that the decoder's attention reads is one vector of 40, on purpose.
    may={"thought-wide": ["information-bottleneck"]},
)

THEMES = [SOUND]
