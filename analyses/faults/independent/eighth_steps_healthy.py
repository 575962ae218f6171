"""Runs that learn: loops as people write them, with precision, schedules and several optimizers."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_eighth_units import digits, drawn
from analyses.faults.training import Batch, Training

# Loops


class Bottle(nn.Module):
    """Residual block that may halve the image."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.short = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.short(x) + self.norm2(self.conv2(h)))


def one_cycle() -> Training:
    """Squares, discs and crosses under SGD whose rate rises and falls once."""
    torch.manual_seed(71)
    n, side = 900, 14
    kinds = torch.randint(3, (n,))
    grid = torch.arange(side).float()
    at = 4 + 6 * torch.rand(n, 2)
    dx = (grid[None, :, None] - at[:, :1, None]).abs()
    dy = (grid[None, None] - at[:, 1:, None]).abs()
    square, disc = torch.maximum(dx, dy) < 3, dx**2 + dy**2 < 10
    cross = (torch.minimum(dx, dy) < 1) & (torch.maximum(dx, dy) < 4)
    shapes = torch.stack([square, disc, cross], 1)[torch.arange(n), kinds].float()
    x = (shapes + 0.3 * torch.randn(n, side, side))[:, None]
    model = nn.Sequential(
        Bottle(1, 12, 1), Bottle(12, 24, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 3)
    )

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    training = Training(model, drawn(x, kinds, size=32), loss, optimizer, steps=200)
    training.schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=201)
    return training


def scaled_amp() -> Training:
    """A CNN in float16, with a scaler for its loss."""
    torch.manual_seed(72)
    x, y = digits()
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            out = model(x)
        return F.cross_entropy(out.float(), y)

    def step(training: Training, step: int) -> dict[str, Any]:
        training.optimizer.zero_grad(set_to_none=True)
        loss = training.loss_at(step)
        scaler.scale(loss).backward()
        scaler.step(training.optimizer)
        scaler.update()
        return {"loss": loss.detach()}

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    batch = drawn((x / 16).view(-1, 1, 8, 8), y, size=32)
    return Training(model, batch, loss, optimizer, steps=150, step=step)


def accumulated() -> Training:
    """A table with categories; four small batches make one step."""
    torch.manual_seed(73)
    shop, day = torch.randint(20, (4000,)), torch.randint(7, (4000,))
    worth, rhythm = torch.randn(20), torch.randn(7)
    more = torch.randn(4000, 4)
    sales = worth[shop] + rhythm[day] * more[:, 0] + 0.5 * more[:, 1]

    class Sales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shop, self.day = nn.Embedding(20, 6), nn.Embedding(7, 4)
            self.body = nn.Sequential(nn.Linear(14, 64), nn.ReLU(), nn.Dropout(0.1))
            self.out = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))

        def forward(self, shop: Tensor, day: Tensor, more: Tensor) -> Tensor:
            both = torch.cat([self.shop(shop), self.day(day), more], -1)
            return self.out(self.body(both)).squeeze(-1)

    def loss(model: nn.Module, shop: Tensor, day: Tensor, more: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(shop, day, more), y)

    def step(training: Training, step: int) -> dict[str, Any]:
        total = 0.0
        for part in range(4):
            loss = training.loss_at(4 * step + part) / 4
            loss.backward()
            total += float(loss.detach())
        training.optimizer.step()
        training.optimizer.zero_grad()
        return {"loss": total}

    model = Sales()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = drawn(shop, day, more, sales, size=32)
    return Training(model, batch, loss, optimizer, steps=200, step=step)


def head_only() -> Training:
    """A backbone trained before on half of the classes is frozen; a new head learns them all."""
    torch.manual_seed(74)
    x, y = digits()
    x = (x / 16).view(-1, 1, 8, 8)
    backbone = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, 64),
        nn.Tanh(),
    )
    old = nn.Linear(64, 5)
    before = torch.optim.Adam([*backbone.parameters(), *old.parameters()], lr=2e-3)
    few = drawn(x[y < 5], y[y < 5], size=48, seed=1)
    for step in range(60):
        a, b = few(step)
        before.zero_grad()
        F.cross_entropy(old(backbone(a)), b).backward()
        before.step()
    backbone.requires_grad_(False)
    backbone.zero_grad()
    model = nn.Sequential(backbone, nn.Linear(64, 10))

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=5e-3)
    return Training(model, drawn(x, y, size=48), loss, optimizer, steps=150)


class Ring(nn.Module):
    """Both players of a game: points that look as if they were on a ring."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(8, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2),
            nn.Linear(48, 2),
        )  # fmt: skip
        self.critic = nn.Sequential(
            nn.Linear(2, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2),
            nn.Linear(48, 1),
        )  # fmt: skip


def game() -> Training:
    """A generative adversarial pair with two optimizers."""
    torch.manual_seed(75)
    model = Ring()

    def batch(step: int) -> Batch:
        drawing = torch.Generator().manual_seed(step)
        angle = torch.rand(128, generator=drawing) * 2 * math.pi
        noise = 0.05 * torch.randn(128, 2, generator=drawing)
        real = torch.stack([angle.cos(), angle.sin()], 1) + noise
        return real, torch.randn(128, 8, generator=drawing)

    def judge(model: Ring, real: Tensor, seed: Tensor) -> Tensor:
        made = model.generator(seed).detach()
        return F.softplus(-model.critic(real)).mean() + F.softplus(model.critic(made)).mean()

    def forge(model: Ring, seed: Tensor) -> Tensor:
        return F.softplus(-model.critic(model.generator(seed))).mean()

    def loss(model: Ring, real: Tensor, seed: Tensor) -> Tensor:
        return judge(model, real, seed) + forge(model, seed)

    def step(training: Training, step: int) -> dict[str, Any]:
        real, seed = training.batch(step)
        training.optimizer.zero_grad()
        first = judge(model, real, seed)
        first.backward()
        training.optimizer.step()
        training.others[0].zero_grad()
        second = forge(model, seed)
        second.backward()
        training.others[0].step()
        return {"loss": first.detach() + second.detach()}

    judging = torch.optim.Adam(model.critic.parameters(), lr=1e-3, betas=(0.5, 0.9))
    forging = torch.optim.Adam(model.generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    return Training(model, batch, loss, judging, steps=250, step=step, others=[forging])


class Walk(nn.Module):
    """Values of four moves on a small board."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(25, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.values = nn.Linear(64, 4)

    def forward(self, state: Tensor) -> Tensor:
        return self.values(self.body(state))


def walk() -> Training:
    """Q-learning from a store of random moves, with a target network that follows slowly."""
    torch.manual_seed(76)
    place, move = torch.randint(25, (4000,)), torch.randint(4, (4000,))
    row, column = place // 5, place % 5
    row = (row + torch.tensor([-1, 1, 0, 0])[move]).clamp(0, 4)
    column = (column + torch.tensor([0, 0, -1, 1])[move]).clamp(0, 4)
    to = row * 5 + column
    done = (to == 24).float()
    board = torch.eye(25)
    model = Walk()
    target = copy.deepcopy(model).requires_grad_(False)

    def loss(model: nn.Module, a: Tensor, move: Tensor, b: Tensor, done: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = done + 0.9 * (1 - done) * target(board[b]).amax(1)
        chosen = model(board[a]).gather(1, move[:, None]).squeeze(1)
        return F.smooth_l1_loss(chosen, wanted)

    def step(training: Training, step: int) -> dict[str, Any]:
        loss = training.loss_at(step)
        training.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(training.model.parameters(), 10.0)
        training.optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 0.02)
        return {"loss": loss.detach()}

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    batch = drawn(place, move, to, done, size=64)
    return Training(model, batch, loss, optimizer, steps=300, step=step)


LOOPS = Healthy(
    "ind8-loops",
    runs={
        "one-cycle": one_cycle,
        "scaler": scaled_amp,
        "accumulated": accumulated,
        "head-only": head_only,
        "game": game,
        "walk": walk,
    },
    flat={
        "game": "the losses of two players that learn against each other",
    },
)


# Models


def sentences(letters: int, length: int) -> Tensor:
    """Words of a made-up grammar: the next letter follows from the one before, mostly."""
    table = torch.randint(letters, (letters, 4))
    text = torch.randint(letters, (1500, length))
    for t in range(1, length):
        pick = torch.randint(4, (1500,)) * (torch.rand(1500) < 0.2)
        text[:, t] = table[text[:, t - 1], pick]
    return text


def gpt() -> Training:
    """The library's GPT-2, tiny: AdamW with warm-up, then a cosine, and clipping."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(81)
    text = sentences(24, 16)
    config = GPT2Config(
        vocab_size=24, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0,
        eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)

    def loss(model: nn.Module, text: Tensor) -> Tensor:
        return model(input_ids=text, labels=text).loss

    def rate(step: int) -> float:
        if step < 20:
            return (step + 1) / 20
        return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - 20) / 180))

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    training = Training(model, drawn(text, size=24), loss, optimizer, steps=200, clip=1.0)
    training.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    return training


class Spread(nn.Module):
    """Says which noise was added to an image, given how much of it."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 64), nn.SiLU())
        self.into = nn.Linear(64, 128)
        self.shift = nn.Linear(64, 128)
        self.mid = nn.Linear(128, 128)
        self.norm = nn.LayerNorm(128)
        self.out = nn.Linear(128, 64)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None] * (2.0 ** torch.arange(8))
        time = self.time(torch.cat([angle.sin(), angle.cos()], -1))
        h = F.silu(self.into(x) + self.shift(time))
        return self.out(F.silu(self.norm(h + self.mid(h))))


def diffusion() -> Training:
    """Learns to take noise out of digits, at all its levels."""
    torch.manual_seed(82)
    x, _ = digits()
    x = x / 8 - 1

    def batch(step: int) -> Batch:
        drawing = torch.Generator().manual_seed(step)
        rows = torch.randint(len(x), (96,), generator=drawing)
        return (
            x[rows],
            torch.rand(96, generator=drawing),
            torch.randn(96, 64, generator=drawing),
        )

    def loss(model: nn.Module, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        keep = (t * math.pi / 2).cos()[:, None]
        mixed = keep * x + (1 - keep**2).sqrt() * noise
        return F.mse_loss(model(mixed, t), noise)

    model = Spread()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(model, batch, loss, optimizer, steps=300)


def contrast() -> Training:
    """Two noisy views of an image shall be nearer to each other than to all others."""
    torch.manual_seed(83)
    x, _ = digits()
    x = (x / 16).view(-1, 1, 8, 8)
    model = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(384, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 32),
    )

    def batch(step: int) -> Batch:
        drawing = torch.Generator().manual_seed(step)
        seen = x[torch.randint(len(x), (48,), generator=drawing)]
        a, b = (seen.roll(s, 3) + 0.1 * torch.randn(seen.shape, generator=drawing) for s in (0, 1))
        return a, b

    def loss(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        za, zb = F.normalize(model(a), dim=-1), F.normalize(model(b), dim=-1)
        likeness = za @ zb.T / 0.2
        own = torch.arange(len(za))
        return (F.cross_entropy(likeness, own) + F.cross_entropy(likeness.T, own)) / 2

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    return Training(model, batch, loss, optimizer, steps=200)


class Adapted(nn.Module):
    """A frozen layer, and beside it one of low rank that learns."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.a), self.b) * 2


def adapted() -> Training:
    """A model of digits, trained before, is adapted to digits that are upside down."""
    torch.manual_seed(84)
    x, y = digits()
    x = x / 16
    layers = [nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 96), nn.GELU(), nn.Linear(96, 10)]
    base = nn.Sequential(*layers)
    before = torch.optim.Adam(base.parameters(), lr=2e-3)
    upright = drawn(x, y, size=64, seed=1)
    for step in range(150):
        a, b = upright(step)
        before.zero_grad()
        F.cross_entropy(base(a), b).backward()
        before.step()
    base.zero_grad()
    model = nn.Sequential(*(Adapted(m, 4) if isinstance(m, nn.Linear) else m for m in base))

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=5e-3, weight_decay=0.0)
    batch = drawn(x.view(-1, 8, 8).flip(1).flatten(1), y, size=64)
    return Training(model, batch, loss, optimizer, steps=200)


class Weather(nn.Module):
    """Two layers of fused LSTM for a series of several quantities."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 32, num_layers=2, batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return x + self.head(out)


def weather() -> Training:
    """Every next value of three coupled oscillations; clipped."""
    torch.manual_seed(85)
    time = torch.arange(2000) * 0.25
    waves = [time.sin(), (1.7 * time).sin() * (0.1 * time).cos(), (0.6 * time + 1).cos()]
    path = torch.stack(waves, -1) + 0.05 * torch.randn(2000, 3)
    windows = ((path - path.mean(0)) / path.std(0)).unfold(0, 13, 1).mT.contiguous()

    def loss(model: nn.Module, window: Tensor) -> Tensor:
        return F.mse_loss(model(window[:, :-1]), window[:, 1:])

    model = Weather()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, drawn(windows, size=32), loss, optimizer, steps=200, clip=1.0)


class Several(nn.Module):
    """One trunk, three tasks; every task's weight is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU()
        )
        self.heads = nn.ModuleDict(
            {"digit": nn.Linear(64, 10), "even": nn.Linear(64, 1), "ink": nn.Linear(64, 1)}
        )
        self.log_var = nn.ParameterDict({k: nn.Parameter(torch.zeros(())) for k in self.heads})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk(x)
        return {name: head(h) for name, head in self.heads.items()}


def several() -> Training:
    """Which digit, whether it is even, and how much ink it has; in bfloat16."""
    torch.manual_seed(86)
    x, y = digits()
    ink = x.mean(1)
    ink = (ink - ink.mean()) / ink.std()

    def loss(model: nn.Module, x: Tensor, y: Tensor, ink: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = {k: v.float() for k, v in model(x).items()}
        parts = {
            "digit": F.cross_entropy(out["digit"], y),
            "even": F.binary_cross_entropy_with_logits(out["even"][:, 0], (y % 2 == 0).float()),
            "ink": F.mse_loss(out["ink"][:, 0], ink),
        }
        own: Any = model.log_var
        return torch.stack([parts[k] * (-own[k]).exp() + own[k] for k in parts]).sum()

    model = Several()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, drawn(x / 16, y, ink, size=64), loss, optimizer, steps=200)


MODELS = Healthy(
    "ind8-models",
    runs={
        "gpt": gpt,
        "diffusion": diffusion,
        "contrast": contrast,
        "adapted": adapted,
        "weather": weather,
        "several": several,
    },
)

THEMES = [LOOPS, MODELS]
