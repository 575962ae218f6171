"""Steps that are far too large, steps that aren't made, and numbers that stop being finite."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent import kit_fourth_depth as kit
from analyses.faults.observe import Observed
from analyses.faults.symptoms import learns_less, not_finite, overshoots, unmoved
from analyses.faults.training import Training

# Too large


def normed_mlp(lr: float = 1e-3) -> Training:
    """A small net with LayerNorm and GELU, Adam."""
    torch.manual_seed(31)
    model = nn.Sequential(
        nn.Linear(64, 96), nn.LayerNorm(96), nn.GELU(),
        nn.Linear(96, 96), nn.LayerNorm(96), nn.GELU(),
        nn.Linear(96, 10),
    )  # fmt: skip
    return Training(
        model=model,
        batch=kit.digits(64),
        loss=kit.classify,
        optimizer=torch.optim.Adam(model.parameters(), lr=lr),
        steps=200,
    )


class Speller(nn.Module):
    """A GRU that spells on."""

    def __init__(self, symbols: int = 14, width: int = 40, kind: str = "gru") -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, 16)
        self.reader: nn.RNNBase
        if kind == "gru":
            self.reader = nn.GRU(16, width, batch_first=True)
        else:
            self.reader = nn.LSTM(16, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, symbols)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.reader(self.embed(x))[0])
        return out


def spelling(lr: float = 1e-3) -> Training:
    """A language model on a GRU, RMSprop."""
    torch.manual_seed(32)
    model = Speller()
    return Training(
        model=model,
        batch=kit.babble(16, 20),
        loss=kit.classify,
        optimizer=torch.optim.RMSprop(model.parameters(), lr=lr),
        steps=160,
    )


class Factors(nn.Module):
    """Ratings from factors of users and items."""

    def __init__(self, users: int, items: int, width: int) -> None:
        super().__init__()
        self.users = nn.Embedding(users, width)
        self.items = nn.Embedding(items, width)
        self.mix = nn.Linear(width, 1)
        for w in (self.users.weight, self.items.weight):
            nn.init.normal_(w, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mix(self.users(x[:, 0]) * self.items(x[:, 1]))
        return out


def ratings(lr: float = 0.05) -> Training:
    """Matrix factorisation with Adagrad."""
    torch.manual_seed(33)
    truth = torch.randn(30, 3) @ torch.randn(3, 30) / 3**0.5

    def batch(step: int) -> tuple[Tensor, ...]:
        source = torch.Generator().manual_seed(step)
        x = torch.randint(30, (128, 2), generator=source)
        return x, truth[x[:, 0], x[:, 1]].unsqueeze(1)

    model = Factors(30, 30, 12)
    return Training(
        model=model,
        batch=batch,
        loss=kit.squared,
        optimizer=torch.optim.Adagrad(model.parameters(), lr=lr),
        steps=300,
    )


def rising(factor: float = 0.99) -> Training:
    """A convolutional net with GroupNorm and a rate that is multiplied by `factor` each step."""
    torch.manual_seed(34)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ELU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.GroupNorm(4, 16), nn.ELU(),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(
        model=model,
        batch=kit.digits(32, image=True),
        loss=kit.classify,
        optimizer=optimizer,
        steps=200,
        schedule=torch.optim.lr_scheduler.ExponentialLR(optimizer, factor),
    )


def in_parts(parts: int, mean: bool, training: Training, step: int) -> dict[str, Any]:
    """Accumulate the gradient over several small batches, averaged or forgotten to."""
    total = 0.0
    for part in range(parts):
        loss = training.loss_at(step * parts + part)
        (loss / parts if mean else loss).backward()
        total += loss.item() / parts
    training.optimizer.step()
    training.optimizer.zero_grad()
    return {"loss": torch.tensor(total)}


class Rows(nn.Module):
    """Convolutions along a digit's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(8, 24, 3, padding=1)
        self.second = nn.Conv1d(24, 24, 3, padding=1)
        self.norms = nn.ModuleList(nn.LayerNorm([24, 8]) for _ in range(2))
        self.head = nn.Linear(24 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.mish(self.norms[0](self.first(x.view(-1, 8, 8))))
        x = nn.functional.mish(self.norms[1](self.second(x)))
        out: Tensor = self.head(x.flatten(1))
        return out


def accumulated(mean: bool = True) -> Training:
    """Momentum and 32 small batches per step."""
    torch.manual_seed(35)
    model = Rows()
    return Training(
        model=model,
        batch=kit.digits(4),
        loss=kit.classify,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        steps=100,
        step=partial(in_parts, 32, mean),
    )


class Patches(nn.Module):
    """Two residual mixer blocks over the 16 patches of a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(4, 32)
        self.tokens = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.channels = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
            for _ in range(2)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x.view(-1, 4, 2, 4, 2).transpose(2, 3).flatten(1, 2).flatten(2))
        for tokens, channels in zip(self.tokens, self.channels, strict=True):
            x = x + tokens(x.transpose(1, 2)).transpose(1, 2)
            x = x + channels(x)
        out: Tensor = self.head(x.mean(1))
        return out


def mixed(lr: float = 1e-3) -> Training:
    """A small mixer with NAdam."""
    torch.manual_seed(36)
    model = Patches()
    return Training(
        model=model,
        batch=kit.digits(48),
        loss=kit.classify,
        optimizer=torch.optim.NAdam(model.parameters(), lr=lr),
        steps=200,
    )


TOO_LARGE = Fault(
    "ind4-steps-too-large",
    must=[["update-too-large"]],
    symptom=overshoots(),
    variants=[
        Variant(
            "mlp-adam",
            healthy=normed_mlp,
            broken=partial(normed_mlp, 0.5),
            may=["vanishing-gradient"],  # the norms divide it by the size of the large weights
        ),
        Variant(
            "gru-rmsprop",
            healthy=spelling,
            broken=partial(spelling, 0.1),
            may=["saturated-activation"],  # nine of ten gates are shut or open
        ),
        Variant("factors-adagrad", healthy=ratings, broken=partial(ratings, 2.5)),
        Variant("cnn-rising-rate", healthy=rising, broken=partial(rising, 1.05)),
        Variant(
            "rows-summed",
            healthy=accumulated,
            broken=partial(accumulated, mean=False),
            may=["vanishing-gradient"],  # the norms divide it by the size of the large weights
        ),
        Variant("mixer-nadam", healthy=mixed, broken=partial(mixed, 0.25)),
    ],
)


# None at all


def depthwise(lr: float = 0.02) -> Training:
    """Depthwise and pointwise convolutions under gradient descent."""
    torch.manual_seed(41)
    layers: list[nn.Module] = []
    for a, b in ((1, 16), (16, 24), (24, 32)):
        layers += [
            nn.Conv2d(a, a, 3, padding=1, groups=a),
            nn.Conv2d(a, b, 1),
            nn.BatchNorm2d(b),
            nn.Hardswish(),
        ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    return Training(
        model=model,
        batch=kit.digits(32, image=True),
        loss=kit.classify,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        steps=120,
    )


def rounded(step: int) -> float:
    """A warm-up in whole numbers: none until step 1000."""
    return float(min(1, (step + 1) // 1000))


def smooth(step: int) -> float:
    """A warm-up over the first 40 steps."""
    return min(1.0, (step + 1) / 40)


class Reader(nn.Module):
    """A pre-norm transformer encoder over the rows of a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(8, 32)
        self.place = nn.Parameter(0.1 * torch.randn(8, 32))
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.read(x.view(-1, 8, 8)) + self.place).mean(1))
        return out


def warming(whole: bool = False) -> Training:
    """A transformer with warm-up, whose share of the rate may come out as 0."""
    torch.manual_seed(42)
    model = Reader()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(
        model=model,
        batch=kit.digits(32),
        loss=kit.classify,
        optimizer=optimizer,
        steps=150,
        schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, rounded if whole else smooth),
    )


def clipped_lm(clip: float = 1.0) -> Training:
    """A language model on two layers of LSTM, gradient descent with clipping."""
    torch.manual_seed(43)
    model = Speller(kind="lstm")
    return Training(
        model=model,
        batch=kit.babble(16, 20),
        loss=kit.classify,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.9),
        steps=160,
        clip=clip,
    )


class Twofold(nn.Module):
    """A body and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 32), nn.SiLU()
        )
        self.head = nn.Linear(32, 1)
        for w in kit.weights(self.body):
            nn.init.xavier_uniform_(w, gain=1.7)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def grouped(body: float = 3e-3) -> Training:
    """Two groups with rates of their own; both parts start from scratch."""
    torch.manual_seed(44)
    model = Twofold()
    groups = [
        {"params": list(model.body.parameters()), "lr": body},
        {"params": list(model.head.parameters()), "lr": 3e-3},
    ]
    return Training(
        model=model,
        batch=kit.surface(64),
        loss=kit.squared,
        optimizer=torch.optim.Adam(groups),
        steps=250,
    )


def every_so_often(times: int, training: Training, step: int) -> dict[str, Any]:
    """A step of the optimizer after every so many batches; the gradient is the batch's own."""
    training.optimizer.zero_grad()
    loss = training.loss_at(step)
    loss.backward()
    if (step + 1) % times == 0:
        training.optimizer.step()
    return {"loss": loss.detach()}


class Denoiser(nn.Module):
    """A small U-shaped net over waves."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Conv1d(1, 12, 5, padding=2)
        self.down = nn.Conv1d(12, 24, 4, stride=2, padding=1)
        self.deep = nn.Conv1d(24, 24, 5, padding=2)
        self.up = nn.ConvTranspose1d(24, 12, 4, stride=2, padding=1)
        self.out = nn.Conv1d(24, 1, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        high = nn.functional.gelu(self.inward(x.unsqueeze(1)))
        low = nn.functional.gelu(self.down(high))
        low = nn.functional.gelu(self.deep(low))
        up = nn.functional.gelu(self.up(low))
        out: Tensor = self.out(torch.cat([high, up], 1)).squeeze(1)
        return out


def denoising(times: int = 1) -> Training:
    """A denoiser whose optimizer steps at every `times`-th batch."""
    torch.manual_seed(45)
    model = Denoiser()
    return Training(
        model=model,
        batch=kit.waves(24, 32),
        loss=kit.squared,
        optimizer=torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=150,
        step=partial(every_so_often, times),
    )


def fading(factor: float = 0.985) -> Training:
    """A wide, shallow net; the rate is multiplied by `factor` at every step."""
    torch.manual_seed(46)
    model = nn.Sequential(nn.Linear(64, 400), nn.Tanh(), nn.Linear(400, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    return Training(
        model=model,
        batch=kit.digits(64),
        loss=kit.classify,
        optimizer=optimizer,
        steps=200,
        schedule=torch.optim.lr_scheduler.ExponentialLR(optimizer, factor),
    )


def stands_still(make: Any, after: int) -> Symptom:
    """No matrix moves by a millionth after that step, and the loss ends far above the twin's."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        torch.set_num_threads(1)
        training: Training = make()
        start: list[Tensor] = []
        for step in range(training.steps):
            if step == after:
                start = [p.detach().clone() for p in kit.weights(training.model)]
            training.step(training, step)
        now = kit.weights(training.model)
        moved = max(
            (p.detach() - s).norm().item() / s.norm().item()
            for p, s in zip(now, start, strict=True)
        )
        worse = learns_less(0.3)(run, twin)
        return {**worse, "is": worse["is"] and moved < 1e-6, "moved": moved}

    return symptom


NONE = Fault(
    "ind4-steps-none",
    must=[["no-update"]],
    symptom=unmoved(1e-6),
    variants=[
        Variant("tiny-rate", healthy=depthwise, broken=partial(depthwise, 5e-10)),
        Variant("whole-warm-up", healthy=warming, broken=partial(warming, whole=True)),
        Variant("clipped-away", healthy=clipped_lm, broken=partial(clipped_lm, 1e-10)),
        Variant(
            "group-without-rate",
            healthy=grouped,
            broken=partial(grouped, 0.0),
            symptom=unmoved(0.0, "body"),
        ),
        Variant("never-stepped", healthy=denoising, broken=partial(denoising, 1000)),
        Variant(
            "rate-faded",
            healthy=fading,
            broken=partial(fading, 0.5),
            symptom=stands_still(partial(fading, 0.5), 40),
        ),
    ],
)

# Not finite


def explores(guard: bool, model: nn.Module, x: Tensor, y: Tensor, never: Tensor) -> Tensor:
    """The chosen action's cross entropy and a bonus on the policy's entropy."""
    p = model(x).masked_fill(never, -torch.inf).softmax(-1)
    entropy = -(p * (p.clamp(min=1e-9) if guard else p).log()).sum(-1)
    chosen = p.gather(1, y.unsqueeze(1)).clamp(min=1e-9)
    return -chosen.log().mean() - 0.01 * entropy.mean()


def policy(guard: bool = True) -> Training:
    """A policy over ten actions; from step 90 on some of them are not allowed."""
    torch.manual_seed(51)
    model = nn.Sequential(nn.Linear(64, 128), nn.Softsign(), nn.Linear(128, 10))
    data = kit.digits(32)

    def batch(step: int) -> tuple[Tensor, ...]:
        x, y = data(step)
        never = torch.zeros(32, 10, dtype=torch.bool)
        if step >= 90:
            never[torch.arange(32), (y + 1 + step % 9) % 10] = True
        return x, y, never

    return Training(
        model=model,
        batch=batch,
        loss=partial(explores, guard),
        optimizer=torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=150,
    )


class Towers(nn.Module):
    """One tower for two pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(),
            nn.Linear(192, 24),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.tower(x)
        return out


def contrast(epsilon: float, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Contrastive loss on distances, the square root of a sum of squares."""
    z = model(x)
    a, b = z.chunk(2)
    same = (y[: len(a)] == y[len(a) :]).float()
    distance = ((a - b).square().sum(1) + epsilon).sqrt()
    return (same * distance + (1 - same) * (2 - distance).clamp(min=0)).mean()


def pairs(epsilon: float = 1e-6) -> Training:
    """Siamese digits; at step 85 some picture is paired with itself."""
    torch.manual_seed(52)
    model = Towers()
    data = kit.digits(64, image=True)

    def batch(step: int) -> tuple[Tensor, ...]:
        x, y = data(step)
        # half of the pairs are of a kind
        for i in range(0, 32, 2):
            alike = (y[32:] == y[i]).nonzero().flatten()
            if len(alike):
                x[32 + i], y[32 + i] = x[32 + alike[0]].clone(), y[i].clone()
        x = x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(step))
        if step == 85:
            x[32], y[32] = x[0], y[0]
        return x, y

    return Training(
        model=model,
        batch=batch,
        loss=partial(contrast, epsilon),
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=150,
    )


class Lengths(nn.Module):
    """Averages a GRU's states over the symbols that count."""

    def __init__(self, guard: bool) -> None:
        super().__init__()
        self.guard = guard
        self.embed = nn.Embedding(9, 16)
        self.reader = nn.GRU(16, 32, batch_first=True)
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        counts = (x > 0).float().unsqueeze(-1)
        states = self.reader(self.embed(x))[0] * counts
        number = counts.sum(1)
        out: Tensor = self.head(states.sum(1) / (number.clamp(min=1) if self.guard else number))
        return out


def lengths(guard: bool = True) -> Training:
    """Are there more symbols above 4 than below? One sequence, late, is padding only."""
    torch.manual_seed(53)
    model = Lengths(guard)

    def batch(step: int) -> tuple[Tensor, ...]:
        source = torch.Generator().manual_seed(step)
        x = torch.randint(1, 9, (32, 13), generator=source)
        long = torch.randint(4, 14, (32, 1), generator=source)
        x = x * (torch.arange(13) < long)
        if step >= 90 and step % 25 == 0:
            x[3] = 0
        y = ((x > 4).sum(1) > ((x > 0) & (x <= 4)).sum(1)).long()
        return x, y

    return Training(
        model=model,
        batch=batch,
        loss=kit.classify,
        optimizer=torch.optim.RMSprop(model.parameters(), lr=1e-3),
        steps=160,
    )


class Angles(nn.Module):
    """Cosines between a picture's code and one direction per class."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Sequential(nn.Linear(64, 48), nn.Softplus(), nn.Linear(48, 24))
        self.directions = nn.Parameter(torch.randn(10, 24))

    def forward(self, x: Tensor) -> Tensor:
        code = nn.functional.normalize(self.code(x), dim=-1)
        return code @ nn.functional.normalize(self.directions, dim=-1).T


def sharpened(guard: bool, model: nn.Module, x: Tensor, y: Tensor, sharp: Tensor) -> Tensor:
    """Cross entropy of cosines times a factor that rises, the exponentials by hand."""
    scores = model(x) * sharp
    if guard:
        scores = scores - scores.detach().amax(-1, keepdim=True)
    total = scores.exp().sum(-1)
    return (total.log() - scores.gather(1, y.unsqueeze(1)).squeeze(1)).mean()


def angles(guard: bool = True) -> Training:
    """Digits by angle; the sharpness goes from 4 to 390."""
    torch.manual_seed(54)
    model = Angles()
    data = kit.digits(64)

    def batch(step: int) -> tuple[Tensor, ...]:
        return *data(step), torch.tensor(4 + 2.6 * step)

    return Training(
        model=model,
        batch=batch,
        loss=partial(sharpened, guard),
        optimizer=torch.optim.AdamW(model.parameters(), lr=2e-3),
        steps=150,
    )


class Masked(nn.Module):
    """One layer of attention by hand over symbols, padding masked out."""

    def __init__(self, guard: bool) -> None:
        super().__init__()
        self.guard = guard
        self.embed = nn.Embedding(9, 24)
        self.qkv = nn.Linear(24, 72)
        self.head = nn.Linear(24, 9)

    def forward(self, x: Tensor) -> Tensor:
        z = self.embed(x)
        q, k, v = self.qkv(z).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / 24**0.5
        mask = (x == 0).unsqueeze(1)
        scores = scores.masked_fill(mask, -1e9 if self.guard else -torch.inf)
        z = z + torch.softmax(scores, -1) @ v
        out: Tensor = self.head(z.mean(1))
        return out


def masked(guard: bool = True) -> Training:
    """The most frequent symbol; late in the run there is a sequence of padding only."""
    torch.manual_seed(55)
    model = Masked(guard)

    def batch(step: int) -> tuple[Tensor, ...]:
        source = torch.Generator().manual_seed(step)
        x = torch.randint(1, 9, (32, 10), generator=source)
        x[torch.rand(32, 10, generator=source) < 0.2] = 0
        y = nn.functional.one_hot(x, 9)[:, :, 1:].sum(1).argmax(1) + 1
        if step == 110:
            x[5] = 0
        return x, y

    return Training(
        model=model,
        batch=batch,
        loss=kit.classify,
        optimizer=torch.optim.Adam(model.parameters(), lr=3e-3),
        steps=180,
    )


class Spread(nn.Module):
    """Set statistics: mean and standard deviation of what a layer makes of a set's members."""

    def __init__(self, correction: int) -> None:
        super().__init__()
        self.correction = correction
        self.member = nn.Sequential(nn.Linear(4, 32), nn.Mish(), nn.Linear(32, 16))
        self.head = nn.Sequential(nn.Linear(32, 32), nn.Mish(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        z = self.member(x)
        spread = z.std(1, correction=self.correction)
        out: Tensor = self.head(torch.cat([z.mean(1), spread], 1))
        return out


def sets(correction: int = 0, least: int = 2) -> Training:
    """Regression on sets of numbers; their size changes by batch, down to `least`."""
    torch.manual_seed(56)
    model = Spread(correction)

    def batch(step: int) -> tuple[Tensor, ...]:
        source = torch.Generator().manual_seed(step)
        size = least if step == 100 else 3 + step % 5
        scale = 0.3 + 2 * torch.rand(48, 1, 1, generator=source)
        x = scale * torch.randn(48, size, 4, generator=source)
        return x, scale.flatten(1)

    return Training(
        model=model,
        batch=batch,
        loss=kit.squared,
        optimizer=torch.optim.Adamax(model.parameters(), lr=5e-3),
        steps=150,
    )


def shade(guard: bool, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Squared error between pictures after the usual curve for the eye."""
    out = model(x)
    out = out.clamp(min=1e-4) if guard else out
    return nn.functional.mse_loss(out**0.45, y**0.45)


def shades(guard: bool = True) -> Training:
    """A linear-light autoencoder of pictures compared after a gamma curve."""
    torch.manual_seed(57)
    model = nn.Sequential(nn.Linear(64, 24), nn.SELU(), nn.Linear(24, 64))
    last = model[-1]
    assert isinstance(last, nn.Linear)
    nn.init.constant_(last.bias, 3.0)
    nn.init.normal_(last.weight, std=0.06)
    data = kit.digits(32)

    def batch(step: int) -> tuple[Tensor, ...]:
        x, _ = data(step)
        return x, (x + 1).clamp(min=0.05)

    return Training(
        model=model,
        batch=batch,
        loss=partial(shade, guard),
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=48,
        every=1,
    )


NOT_FINITE = Fault(
    "ind4-steps-not-finite",
    must=[["non-finite"]],
    symptom=not_finite(),
    variants=[
        Variant("log-of-zero", healthy=policy, broken=partial(policy, False), operation=["log"]),
        Variant("root-of-zero", healthy=pairs, broken=partial(pairs, 0.0), operation=["sqrt"]),
        Variant("empty-mean", healthy=lengths, broken=partial(lengths, False), operation=["div"]),
        Variant("sharpened", healthy=angles, broken=partial(angles, False), operation=["exp"]),
        Variant(
            "masked-row",
            healthy=masked,
            broken=partial(masked, False),
            operation=["softmax", "_softmax"],
        ),
        Variant("lone-member", healthy=sets, broken=partial(sets, 1, 1), operation=["std"]),
        Variant("gamma-curve", healthy=shades, broken=partial(shades, False), operation=["pow"]),
    ],
)

FAULTS = [TOO_LARGE, NONE, NOT_FINITE]
