"""Steps that are far too large, steps that leave the weights alone, and sound ways to step."""

from __future__ import annotations

import copy
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from analyses.faults.case import Fault, Healthy, Symptom, Variant
from analyses.faults.independent import kit_steps as kit
from analyses.faults.observe import Observed
from analyses.faults.symptoms import learns_less, overshoots, unmoved
from analyses.faults.training import Batch, Training, ordinary

# Too large.


def residual(*, lr: float) -> Training:
    """Shapes by a residual network with batch normalisation; SGD with momentum."""
    torch.manual_seed(41)
    model = kit.resnet(8)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    return Training(model, kit.shape_classes, kit.classify, optimizer, steps=160)


def language(*, lr: float) -> Training:
    """Letters of a made-up language by a causal transformer; Adam."""
    torch.manual_seed(42)
    model = kit.Letters(48, 2, fused=False)
    return Training(
        model, kit.grammar, kit.letters, torch.optim.Adam(model.parameters(), lr), steps=200
    )


def sums(*, lr: float) -> Training:
    """Sums of two marked numbers by PyTorch's LSTM; RMSprop."""
    torch.manual_seed(43)
    model = kit.Recurrent(nn.LSTM, 2, 48, 1, layers=2, last=True)
    return Training(
        model,
        partial(kit.adding, length=12),
        kit.regress,
        torch.optim.RMSprop(model.parameters(), lr),
        steps=300,
    )


def mixer(*, lr: float) -> Training:
    """Shapes by an MLP-mixer; Adagrad."""
    torch.manual_seed(44)
    model = kit.Mixer(32, 3)
    return Training(
        model,
        kit.shape_classes,
        kit.classify,
        torch.optim.Adagrad(model.parameters(), lr),
        steps=250,
    )


def partners(*, lr: float) -> Training:
    """Two views of a digit find each other; Nesterov's momentum."""
    torch.manual_seed(45)
    model = kit.mlp(64, 96, 96, 16, act=nn.ELU)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True)
    return Training(model, kit.views, kit.pairs, optimizer, steps=250)


def variational(*, lr: float) -> Training:
    """Digits by a variational autoencoder; AdamW."""
    torch.manual_seed(46)
    model = kit.Variational()
    return Training(
        model, kit.digits, kit.bound, torch.optim.AdamW(model.parameters(), lr), steps=300
    )


TOO_LARGE = Fault(
    "ind-too-large",
    must=[["update-too-large"]],
    symptom=overshoots(),
    variants=[
        Variant(
            "residual-sgd",
            healthy=partial(residual, lr=0.05),
            broken=partial(residual, lr=1.0),
            may=["dead-units", "vanishing-gradient"],  # half of one layer; two decades
        ),
        Variant(
            "language-adam",
            healthy=partial(language, lr=3e-3),
            broken=partial(language, lr=0.1),
            may=["peaked-softmax"],  # the largest weight is 0.93 and more, on average
        ),
        Variant(
            "sums-rmsprop",
            healthy=partial(sums, lr=2e-3),
            broken=partial(sums, lr=0.05),
            # More than nine tenths of the gates are at their ends.
            may=["saturated-activation", "vanishing-gradient"],
        ),
        Variant(
            "mixer-adagrad",
            healthy=partial(mixer, lr=0.01),
            broken=partial(mixer, lr=1.0),
            # More than half of the units in front of each last map are below -4 for all data.
            may=["dead-units", "vanishing-gradient"],
        ),
        Variant(
            "partners-nesterov",
            healthy=partial(partners, lr=0.1),
            broken=partial(partners, lr=2.0),
            # Half of the values are at the flat end, a third of the units for all data.
            may=["exploding-gradient", "saturated-activation", "dead-units"],
        ),
        Variant(
            "variational-adamw",
            healthy=partial(variational, lr=2e-3),
            broken=partial(variational, lr=0.1),
            may=["dead-units", "vanishing-gradient"],  # the encoder is off
        ),
    ],
)

# No update.


def stands(moved: float) -> Symptom:
    """No matrix moves by more than that of its norm, and the loss ends above the twin's."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        one, other = unmoved(moved)(run, twin), learns_less(0.1)(run, twin)
        return {**one, **other, "is": one["is"] and other["is"]}

    return symptom


def patches(*, rounded: bool) -> Training:
    """Shapes by a vision transformer; the learning rate grows with the batch, in whole numbers."""
    torch.manual_seed(51)
    model = kit.Patches(32, 2)
    size = 32
    share = size // 256 if rounded else size / 256
    optimizer = torch.optim.AdamW(model.parameters(), 0.016 * share)
    return Training(
        model, partial(kit.shape_classes, size=size), kit.classify, optimizer, steps=250
    )


def rebuilt(*, lr: float) -> Training:
    """A convolutional autoencoder with plain SGD."""
    torch.manual_seed(52)
    model = kit.Autoencoder(16)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    return Training(model, kit.shape_classes, kit.rebuild, optimizer, steps=200)


def warmed(*, whole: bool) -> Training:
    """Letters by a GRU; warm-up over 50 steps, or over 1000 in whole numbers."""
    torch.manual_seed(53)
    model = kit.Recurrent(nn.GRU, 24, 64, len(kit.LETTERS), tokens=len(kit.LETTERS))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) // 1000 if whole else (step + 1) / 50)
    )
    return Training(model, kit.grammar, kit.letters, optimizer, steps=200, schedule=schedule)


def decayed(*, after: int) -> Training:
    """A tenth of the learning rate after so many epochs, which are counted in batches."""
    torch.manual_seed(54)
    model = kit.Experts(64, 10, experts=5, width=48)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, after, 0.1)
    return Training(model, kit.digits, kit.classify, optimizer, steps=300, schedule=schedule)


def copied(*, after: bool) -> Training:
    """What looks at each member is put in as a copy of one that is ready, in time or too late.

    Too late is after the optimizer was given the parameters.
    """
    torch.manual_seed(55)
    model = kit.Members(64)
    if not after:
        model.each = copy.deepcopy(model.each)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    if after:
        model.each = copy.deepcopy(model.each)
    return Training(model, kit.clouds, kit.regress, optimizer, steps=250)


class Keeper:
    """Keeps the best weights; goes back to them when the loss is worse than the best."""

    def __init__(self, model: nn.Module, *, upside_down: bool) -> None:
        self.kept = copy.deepcopy(model.state_dict())
        self.best = 0.0 if upside_down else float("inf")

    def __call__(self, training: Training, step: int) -> dict[str, Any]:
        said = ordinary(training, step)
        now = float(said["loss"])
        if now < self.best:
            self.best, self.kept = now, copy.deepcopy(training.model.state_dict())
        elif now > 3 * self.best:
            training.model.load_state_dict(self.kept)
        return said


def kept(*, upside_down: bool) -> Training:
    """A sequence model that goes back to its best weights when a step went wrong.

    Where the best loss starts at 0, that is always.
    """
    torch.manual_seed(56)
    model = kit.Recurrent(nn.LSTM, 1, 40, 1)
    return Training(
        model,
        kit.waves,
        kit.regress,
        torch.optim.RMSprop(model.parameters(), 1e-3),
        steps=250,
        step=Keeper(model, upside_down=upside_down),
    )


def _forgetful(training: Training, step: int) -> dict[str, Any]:
    loss = training.loss_at(step)
    loss.backward()
    training.optimizer.zero_grad(set_to_none=False)
    training.optimizer.step()
    return {"loss": loss.detach()}


def turned(*, forgetful: bool) -> Training:
    """A sequence from its end to its start; gradients are zeroed after the step, or before."""
    torch.manual_seed(57)
    model = kit.Encoder(width=48, depth=2)
    return Training(
        model,
        kit.reversal,
        kit.letters,
        torch.optim.Adam(model.parameters(), 1e-3),
        steps=250,
        step=_forgetful if forgetful else ordinary,
    )


def throttled(*, clip: float) -> Training:
    """Communities of a graph; the gradient's norm is clipped."""
    torch.manual_seed(58)
    model = kit.Graph(12, 96, 96, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return Training(model, kit.community, kit.nodes, optimizer, steps=250, clip=clip)


NO_UPDATE = Fault(
    "ind-no-update",
    must=[["no-update"]],
    symptom=stands(1e-4),
    variants=[
        Variant(
            "rate-rounded-to-zero",
            healthy=partial(patches, rounded=False),
            broken=partial(patches, rounded=True),
        ),
        Variant(
            "rate-far-too-small",
            healthy=partial(rebuilt, lr=0.1),
            broken=partial(rebuilt, lr=1e-7),
        ),
        Variant(
            "warm-up-in-whole-numbers",
            healthy=partial(warmed, whole=False),
            broken=partial(warmed, whole=True),
        ),
        Variant(
            "epochs-counted-in-batches",
            healthy=partial(decayed, after=200),
            broken=partial(decayed, after=2),
            symptom=stands(0.05),  # the first steps do something
        ),
        Variant(
            "optimizer-of-the-old-part",
            healthy=partial(copied, after=False),
            broken=partial(copied, after=True),
            must=[["no-update", "not-in-optimizer"]],
            symptom=unmoved(0.0, like="each"),
        ),
        Variant(
            "always-back-to-the-start",
            healthy=partial(kept, upside_down=False),
            broken=partial(kept, upside_down=True),
        ),
        Variant(
            "zeroed-before-the-step",
            healthy=partial(turned, forgetful=False),
            broken=partial(turned, forgetful=True),
        ),
        Variant(
            "clipped-to-nothing",
            healthy=partial(throttled, clip=1.0),
            broken=partial(throttled, clip=1e-7),
        ),
    ],
)

# Sound.


def warm_up() -> Training:
    """The learning rate starts at 0 and rises for 60 steps."""
    torch.manual_seed(61)
    model = kit.Letters(64, 3)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 60))
    return Training(model, kit.grammar, kit.letters, optimizer, steps=240, schedule=schedule)


def cosine() -> Training:
    """The learning rate ends at 0."""
    torch.manual_seed(62)
    model = kit.resnet(10)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    return Training(model, kit.shape_classes, kit.classify, optimizer, steps=200, schedule=schedule)


def pair_by_pair() -> Training:
    """Batches of two."""
    torch.manual_seed(63)
    model = kit.mlp(64, 64, 64, 10, norm=True)
    return Training(
        model,
        partial(kit.digits, size=2),
        kit.classify,
        torch.optim.Adam(model.parameters(), 5e-4),
        steps=600,
        every=10,
    )


def _all_points(step: int) -> Batch:
    return kit.friedman(0, 400)


def _with_closure(training: Training, step: int) -> dict[str, Any]:
    def closure() -> Tensor:
        training.optimizer.zero_grad()
        loss = training.loss_at(step)
        loss.backward()
        return loss

    loss = training.optimizer.step(closure)  # type: ignore[arg-type]
    return {"loss": torch.as_tensor(loss).detach()}


def all_at_once() -> Training:
    """All points in every step of L-BFGS."""
    torch.manual_seed(64)
    model = kit.mlp(10, 24, 24, 1, act=nn.Tanh)
    optimizer = torch.optim.LBFGS(
        model.parameters(), 0.5, max_iter=5, line_search_fn="strong_wolfe"
    )
    return Training(
        model, _all_points, kit.regress, optimizer, steps=60, every=2, step=_with_closure
    )


@cache
def _teacher() -> tuple[Tensor, Tensor]:
    g = kit.stream(65, 0)
    x = torch.randn(128, 6, generator=g)
    return x, torch.sin(x @ torch.randn(6, 1, generator=g) * 0.5).squeeze(-1)


def _taught(step: int) -> Batch:
    return _teacher()


def learned() -> Training:
    """Few examples, fitted until next to nothing is left of the loss."""
    torch.manual_seed(65)
    model = kit.mlp(6, 64, 64, 1, act=nn.SiLU)
    return Training(
        model,
        _taught,
        kit.regress,
        torch.optim.Adam(model.parameters(), 3e-3),
        steps=600,
        every=10,
    )


def _sharpness_aware(training: Training, step: int) -> dict[str, Any]:
    """Uphill by a little, the gradient there, back, and a step with it."""
    loss = training.loss_at(step)
    loss.backward()
    parameters = [p for p in training.model.parameters() if p.grad is not None]
    norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
    with torch.no_grad():
        moves = [p.grad * (0.05 / (norm + 1e-12)) for p in parameters if p.grad is not None]
        for p, move in zip(parameters, moves, strict=True):
            p.add_(move)
    training.optimizer.zero_grad()
    training.loss_at(step).backward()
    with torch.no_grad():
        for p, move in zip(parameters, moves, strict=True):
            p.sub_(move)
    training.optimizer.step()
    training.optimizer.zero_grad()
    return {"loss": loss.detach()}


def flat_minima() -> Training:
    """Sharpness-aware minimisation."""
    torch.manual_seed(66)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, 1, 1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    return Training(model, kit.pixels, kit.classify, optimizer, steps=200, step=_sharpness_aware)


def clipped() -> Training:
    """Clipping that bites at nearly every step."""
    torch.manual_seed(67)
    model = kit.Recurrent(nn.GRU, 2, 64, 1, last=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    return Training(
        model, partial(kit.adding, length=10), kit.regress, optimizer, steps=300, clip=0.1
    )


def brain_float() -> Training:
    """A vision transformer under autocast to bfloat16, which needs no scaler."""
    torch.manual_seed(68)
    model = kit.Patches(48, 3)
    return Training(
        model,
        kit.shape_classes,
        partial(kit.cast, kit.classify, torch.bfloat16),
        torch.optim.AdamW(model.parameters(), 1e-3),
        steps=200,
    )


def half_and_scaler() -> Training:
    """A wider perceptron with float16 and a loss scaler."""
    torch.manual_seed(69)
    model = kit.mlp(64, 512, 512, 10, act=nn.GELU)
    return Training(
        model,
        kit.digits,
        partial(kit.cast, kit.classify, torch.float16),
        torch.optim.NAdam(model.parameters(), 1e-3),
        steps=200,
        step=partial(kit.scaled, torch.amp.GradScaler("cpu")),
    )


def _accumulate(parts: int, training: Training, step: int) -> dict[str, Any]:
    total = torch.zeros(())
    for part in range(parts):
        loss = training.loss_at(step * parts + part) / parts
        loss.backward()
        total += loss.detach()
    training.optimizer.step()
    training.optimizer.zero_grad()
    return {"loss": total}


def accumulated() -> Training:
    """Gradients of four batches in every step."""
    torch.manual_seed(70)
    letters = len(kit.LETTERS)
    model = kit.Recurrent(nn.LSTM, 16, 64, letters, tokens=letters)
    return Training(
        model,
        partial(kit.grammar, size=4),
        kit.letters,
        torch.optim.Adam(model.parameters(), 5e-3),
        steps=150,
        step=partial(_accumulate, 4),
    )


def _averaging(average: AveragedModel, start: int, training: Training, step: int) -> dict[str, Any]:
    said = ordinary(training, step)
    if step >= start:
        average.update_parameters(training.model)
    return said


def moving_average() -> Training:
    """A copy of the model follows its weights slowly."""
    torch.manual_seed(71)
    model = kit.UNet(12)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    return Training(
        model,
        kit.shape_masks,
        kit.segment,
        torch.optim.Adam(model.parameters(), 2e-3),
        steps=150,
        step=partial(_averaging, average, 0),
    )


def weight_average() -> Training:
    """Weights averaged over the second half, at a constant learning rate."""
    torch.manual_seed(72)
    model = kit.Variational()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    return Training(
        model,
        kit.digits,
        kit.bound,
        optimizer,
        steps=300,
        step=partial(_averaging, AveragedModel(model), 150),
        schedule=SWALR(optimizer, 1e-3, anneal_epochs=150),
    )


def cyclic() -> Training:
    """The learning rate goes up and down four times."""
    torch.manual_seed(73)
    model = kit.Mixer(40, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.002, 0.1, step_size_up=40)
    return Training(model, kit.shape_classes, kit.classify, optimizer, steps=320, schedule=schedule)


def strong_decay() -> Training:
    """A weight decay a hundred times the usual."""
    torch.manual_seed(74)
    model = kit.Members(96)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1.0)
    return Training(model, kit.clouds, kit.regress, optimizer, steps=300)


class Top(nn.Module):
    """A layer of which only the most active units of each sample pass."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.inside, self.middle = nn.Linear(64, 160), nn.Linear(160, 160)
        self.head = nn.Linear(160, 10)
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.inside, self.middle):
            x = F.relu(layer(x))
            bar = x.quantile(1 - self.share, dim=-1, keepdim=True)
            x = x * (x >= bar)
        return self.head(x)


def sparse_units() -> Training:
    """A third of the units are active for each sample, others for another."""
    torch.manual_seed(75)
    model = Top(0.33)
    return Training(
        model, kit.digits, kit.classify, torch.optim.Adamax(model.parameters(), 2e-3), steps=250
    )


class Bags(nn.Module):
    """The mean of a window's letter pairs, whose table gets sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        letters = len(kit.LETTERS)
        self.table = nn.EmbeddingBag(letters * letters, 32, sparse=True)
        self.head = kit.mlp(32, 48, letters)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x[:, :-1] * len(kit.LETTERS) + x[:, 1:]))


def _missing(step: int) -> Batch:
    """Words' pairs of letters, and the letter that comes next."""
    x, y = kit.grammar(step, size=64, length=3)
    return x, y[:, -1]


def _both(training: Training, step: int) -> dict[str, Any]:
    loss = training.loss_at(step)
    loss.backward()
    for optimizer in (training.optimizer, *training.others):
        optimizer.step()
        optimizer.zero_grad()
    return {"loss": loss.detach()}


def two_optimizers() -> Training:
    """One optimizer for the table with its sparse gradients, one for the rest."""
    torch.manual_seed(76)
    model = Bags()
    return Training(
        model,
        _missing,
        kit.classify,
        torch.optim.Adam(model.head.parameters(), 3e-3),
        others=[torch.optim.SparseAdam(model.table.parameters(), 1e-2)],
        steps=300,
        step=_both,
    )


def signs() -> Training:
    """An optimizer of one's own."""
    torch.manual_seed(77)
    model = kit.Experts(10, 1, experts=3, width=48)
    return Training(
        model, kit.friedman, kit.regress, kit.Signs(model.parameters(), 1e-3, 0.1), steps=300
    )


SOUND = Healthy(
    "ind-steps-healthy",
    {
        "warm-up-from-zero": warm_up,
        "cosine-to-zero": cosine,
        "batches-of-two": pair_by_pair,
        "all-data-lbfgs": all_at_once,
        "nothing-left-to-learn": learned,
        "sharpness-aware": flat_minima,
        "clipping-that-bites": clipped,
        "bfloat16": brain_float,
        "float16-with-scaler": half_and_scaler,
        "accumulated": accumulated,
        "moving-average": moving_average,
        "weight-average": weight_average,
        "cyclic": cyclic,
        "strong-decay": strong_decay,
        "sparse-units": sparse_units,
        "two-optimizers": two_optimizers,
        "signs-only": signs,
    },
)

FAULTS = [TOO_LARGE, NO_UPDATE]
THEMES = [SOUND]
