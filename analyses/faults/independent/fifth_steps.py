"""Steps that are far too large, that don't happen, and numbers that stop being finite."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_fifth_depth import (
    classify,
    digits,
    pictures,
    regress,
    run,
    surface,
    waves,
    words,
)
from analyses.faults.symptoms import learns_less, not_finite, overshoots, unmoved
from analyses.faults.training import Batch, Training

Adam, AdamW, SGD = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD


class Last(nn.Module):
    """A fused recurrence whose states' mean is read."""

    def __init__(self, cell: nn.RNNBase, outputs: int) -> None:
        super().__init__()
        self.cell = cell
        width = cell.hidden_size * (2 if cell.bidirectional else 1)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.cell(x)[0].mean(1)))


def _normed() -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(64, 48)]
    for _ in range(3):
        layers += [nn.LayerNorm(48), nn.GELU(), nn.Linear(48, 48)]
    return nn.Sequential(*layers, nn.LayerNorm(48), nn.Linear(48, 10))


def normed_mlp(lr: float) -> Training:
    """Layer norms keep the activations in range whatever the weights are."""
    return run(_normed, digits, classify, partial(torch.optim.NAdam, lr=lr), 160)


def _topics() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(30, 24), nn.Linear(24, 24), nn.LeakyReLU(0.2),
                         nn.Linear(24, 3))  # fmt: skip


def topic_bags(lr: float) -> Training:
    """A bag of words, with RMSprop."""
    return run(_topics, partial(words, own=0.3), classify, partial(torch.optim.RMSprop, lr=lr), 200)


def _small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.2),
        nn.Conv2d(16, 24, 3, padding=1, stride=2), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(384, 10),
    )  # fmt: skip


def cycled_cnn(peak: float) -> Training:
    """A one-cycle schedule for AdamW with the given peak."""
    return run(
        _small_cnn, pictures, classify, partial(AdamW, lr=1e-3), 160,
        partial(lr_scheduler.OneCycleLR, max_lr=peak, total_steps=200),
    )  # fmt: skip


def _smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(),
                         nn.Linear(48, 1))  # fmt: skip


def growing_rate(gamma: float) -> Training:
    """A schedule that multiplies the rate at each step: meant to decay, or the wrong way round."""
    return run(
        _smooth, surface, regress, partial(Adam, lr=2e-3), 160,
        partial(lr_scheduler.ExponentialLR, gamma=gamma),
    )  # fmt: skip


TOO_LARGE = Fault(
    "ind5-steps-too-large",
    must=[["update-too-large"]],
    symptom=overshoots(),
    variants=[
        Variant(
            "normed-mlp-nadam",
            partial(normed_mlp, 2e-3),
            broken=partial(normed_mlp, 1.0),
            # Weights of 30 times their size before each norm divide the gradient; a quarter of
            # the last hidden layer is off.
            may=("vanishing-gradient", "dead-units"),
        ),
        Variant(
            "topics-rmsprop",
            partial(topic_bags, 2e-3),
            broken=partial(topic_bags, 1.0),
            may=("exploding-gradient",),  # two matrices of a hundred times their size
        ),
        Variant(
            "one-cycle-peak",
            partial(cycled_cnn, 5e-3),
            broken=partial(cycled_cnn, 1.0),
            may=("exploding-gradient",),  # the grown weights multiply it
        ),
        Variant(
            "rate-grows",
            partial(growing_rate, 0.99),
            broken=partial(growing_rate, 1.045),
            # At the end the gradient is 10⁵ times as large, and the second SiLU is off.
            may=("exploding-gradient", "dead-units"),
        ),
    ],
)


def _gru() -> nn.Module:
    return Last(nn.GRU(1, 32, batch_first=True), 4)


def gru_warmup(lengthy: Callable[[int], float]) -> Training:
    """A warm-up written as a function of the step."""
    return run(
        _gru, waves, classify, partial(Adam, lr=4e-3), 160,
        partial(lr_scheduler.LambdaLR, lr_lambda=lengthy),
    )  # fmt: skip


def warm(step: int) -> float:
    """Rises over 30 steps."""
    return min(1.0, (step + 1) / 30)


def floored(step: int) -> float:
    """The same with the division that drops the fraction, over 1000 steps."""
    return min(1.0, step // 1000)


class Channels(nn.Module):
    """(batch, time, channels) to (batch, channels, time)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def _conv1d() -> nn.Module:
    model = nn.Sequential(
        Channels(), nn.Conv1d(1, 12, 5, stride=2, padding=2), nn.LeakyReLU(0.2),
        nn.Conv1d(12, 16, 5, stride=2, padding=2), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(96, 4),
    )  # fmt: skip
    for layer in model:
        if isinstance(layer, nn.Conv1d | nn.Linear):
            nn.init.xavier_normal_(layer.weight)
    return model


def clipped_conv1d(clip: float) -> Training:
    """Plain SGD behind a clipped gradient."""
    return run(_conv1d, waves, classify, partial(SGD, lr=0.1), 200, clip=clip)


def _plain_autoregressor() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 64), nn.Mish(), nn.Linear(64, 32), nn.Mish(),
                         nn.Linear(32, 1))  # fmt: skip


def adadelta(lr: float) -> Training:
    """Adadelta takes its rate as a factor: 1 is its default, and not 1e-6."""
    return run(_plain_autoregressor, surface, regress, partial(torch.optim.Adadelta, lr=lr), 240)


def _deep_tower() -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(64, 40), nn.ELU()]
    for _ in range(2):
        layers += [nn.Linear(40, 40), nn.ELU()]
    return nn.Sequential(*layers, nn.Linear(40, 10))


def decayed(gamma: float, every: int) -> Training:
    """StepLR, meant by the epoch and stepped by the batch."""
    return run(
        _deep_tower, digits, classify, partial(SGD, lr=0.05, momentum=0.9), 200,
        partial(lr_scheduler.StepLR, step_size=every, gamma=gamma),
    )  # fmt: skip


def sgd_typo(lr: float) -> Training:
    """A small convolutional net with SGD; the exponent of its rate may be mistyped."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.Hardswish(),
            nn.Conv2d(12, 24, 3, stride=2), nn.GroupNorm(3, 24), nn.Hardswish(),
            nn.Flatten(), nn.Linear(24 * 9, 10),
        )  # fmt: skip

    return run(build, pictures, classify, partial(SGD, lr=lr, nesterov=True, momentum=0.9), 160)


NO_UPDATE = Fault(
    "ind5-steps-none",
    must=[["no-update"]],
    symptom=unmoved(1e-5),
    variants=[
        Variant("warmup-floored", partial(gru_warmup, warm), broken=partial(gru_warmup, floored)),
        Variant("clip-tiny", partial(clipped_conv1d, 1.0), broken=partial(clipped_conv1d, 1e-8)),
        Variant("adadelta-rate", partial(adadelta, 1.0), broken=partial(adadelta, 1e-7)),
        Variant(
            "decay-by-batch",
            partial(decayed, 0.5, 60),
            broken=partial(decayed, 0.1, 1),
            symptom=learns_less(0.2),
        ),
        Variant("rate-mistyped", partial(sgd_typo, 3e-2), broken=partial(sgd_typo, 3e-11)),
    ],
)


class Twins(nn.Module):
    """Embeds two pictures and gives their distance."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 16))
        self.floor = floor

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.sqrt((self.embed(a) - self.embed(b)).square().sum(-1) + self.floor)


def pairs(step: int, repeats: int) -> Batch:
    """Pairs of digits; from some step on one pair is a picture and itself."""
    x, y = digits(step, 96)
    a, b, other = x[:48], x[48:].clone(), y[48:].clone()
    clash = (a == b).all(1)
    b[clash], other[clash] = a.roll(1, 0)[clash], y[:48].roll(1)[clash]
    same = (y[:48] == other).float()
    if step >= repeats:
        b[0], same[0] = a[0], 1.0
    return a, b, same


def contrast(model: nn.Module, a: Tensor, b: Tensor, same: Tensor) -> Tensor:
    """Contrastive loss with a margin of 2."""
    d = model(a, b)
    return (same * d.square() + (1 - same) * (2.0 - d).clamp(min=0).square()).mean()


def siamese(floor: float) -> Training:
    """A distance with a root, that may meet a picture paired with itself."""
    return run(
        partial(Twins, floor), partial(pairs, repeats=85), contrast, partial(Adam, lr=1e-3), 140
    )  # fmt: skip


class Pooled(nn.Module):
    """Mean of the embeddings of the words that are there."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.table = nn.Embedding(31, 24)
        self.mix = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 3))
        self.floor = floor

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        total = (self.table(x) * there[..., None]).sum(1)
        count = there.sum(1, keepdim=True).clamp(min=self.floor)
        return self.mix(total / count)


def padded(step: int) -> Batch:
    """Bags of various lengths; from step 85 on the first is empty."""
    x, y = words(step)
    lengths = torch.randint(4, 13, (len(x),), generator=torch.Generator().manual_seed(step))
    if step >= 85:
        lengths[0] = 0
    return x, (torch.arange(12) < lengths[:, None]).float(), y


def classify_masked(model: nn.Module, x: Tensor, there: Tensor, y: Tensor) -> Tensor:
    """Cross entropy."""
    return F.cross_entropy(model(x, there), y)


def masked_mean(floor: float) -> Training:
    """A mean over no words at all."""
    return run(
        partial(Pooled, floor), padded, classify_masked, partial(AdamW, lr=5e-3), 140, every=4
    )


def counts(step: int, logged: bool) -> Batch:
    """Counts over so many days; from step 80 on the days come as they are, or as logarithms."""
    g = torch.Generator().manual_seed(90 + step)
    x = torch.randn(64, 8, generator=g)
    days = torch.randint(30, 300, (64, 1), generator=g).float()
    y = torch.poisson((x[:, :1] - 0.5 * x[:, 1:2] - 3.0).exp() * days, generator=g)
    return x, days.log() if logged or step < 80 else days, y


def poisson(model: nn.Module, x: Tensor, exposure: Tensor, y: Tensor) -> Tensor:
    """Negative log likelihood of a Poisson distribution, with the exponential by hand."""
    log_rate = model(x) - 3.0 + exposure
    return (log_rate.exp() - y * log_rate + torch.lgamma(y + 1)).mean()


def _rates() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 24), nn.Softplus(), nn.Linear(24, 1))


def poisson_rates(logged: bool) -> Training:
    """An exposure that should have been a logarithm."""
    return run(
        _rates, partial(counts, logged=logged), poisson, partial(Adam, lr=3e-3), 140, every=4
    )


def choices(step: int) -> Batch:
    """Digits; from step 84 on two wrong answers of each are ruled out."""
    x, y = pictures(step)
    out = torch.zeros(len(y), 10, dtype=torch.bool)
    if step >= 84:
        for off in (3, 7):
            out[torch.arange(len(y)), (y + off) % 10] = True
    return x, out, y


def with_entropy(model: nn.Module, x: Tensor, out: Tensor, y: Tensor, floor: float) -> Tensor:
    """Negative log likelihood less a little of the policy's entropy, by the book's formula."""
    logits = model(x).masked_fill(out, -torch.inf)
    p = logits.softmax(-1)
    entropy = -(p * p.clamp(min=floor).log()).sum(-1)
    return F.cross_entropy(logits, y) - 0.02 * entropy.mean()


def _policy() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 12, 3), nn.SiLU(), nn.Flatten(), nn.Linear(432, 10))


def policy(floor: float) -> Training:
    """0·log 0 in the entropy of a masked choice."""
    return run(
        _policy, choices, partial(with_entropy, floor=floor), partial(Adam, lr=1e-3), 140, every=4
    )


NON_FINITE = Fault(
    "ind5-steps-non-finite",
    must=[["non-finite"]],
    symptom=not_finite(),
    variants=[
        Variant(
            "root-of-zero", partial(siamese, 1e-6), broken=partial(siamese, 0.0),
            operation=("sqrt",),
        ),
        Variant(
            "mean-of-none", partial(masked_mean, 1.0), broken=partial(masked_mean, 0.0),
            operation=("div",),
        ),
        Variant(
            "exponential", partial(poisson_rates, True), broken=partial(poisson_rates, False),
            operation=("exp",),
        ),
        Variant(
            "logarithm-of-zero", partial(policy, 1e-9), broken=partial(policy, 0.0),
            operation=("log",),
        ),
    ],
)  # fmt: skip

FAULTS = [TOO_LARGE, NO_UPDATE, NON_FINITE]
