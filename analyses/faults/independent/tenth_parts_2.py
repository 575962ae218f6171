"""Parts that no optimizer holds, and parts whose weights stay where they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_tenth_d import digits, draw, source, tokens, waves
from analyses.faults.symptoms import left_out, unmoved
from analyses.faults.training import Batch, Training, ordinary

SPLITS = ("test",)


def classes(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


class Tasks(nn.Module):
    """A convolutional trunk and three heads: the digit, its parity, whether it is above 4."""

    heads: Any

    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 24, 3, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        heads = {"digit": nn.Linear(96, 10), "odd": nn.Linear(96, 2), "large": nn.Linear(96, 2)}
        self.heads = heads if plain else nn.ModuleDict(heads)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk(x)
        return {name: head(h) for name, head in self.heads.items()}


def three_losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    out = model(x)
    wanted = {"digit": y, "odd": y % 2, "large": (y > 4).long()}
    losses = {name: F.cross_entropy(out[name], wanted[name]) for name in out}
    return torch.stack(list(losses.values())).sum()


def tasks(plain: bool = False) -> Training:
    """Heads in a ModuleDict, or in a dict that nn.Module knows nothing of."""
    torch.manual_seed(31)
    model = Tasks(plain)
    x, y = digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, draw(32, x.view(-1, 1, 8, 8), y, seed=1), three_losses, optimizer)


class Residual(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, wide)
        self.one = nn.Conv2d(wide, wide, 3, padding=1)
        self.two = nn.Conv2d(wide, wide, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(F.gelu(self.one(F.gelu(self.norm(x)))))


class Small(nn.Module):
    """A small residual network."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.blocks = nn.Sequential(Residual(16), Residual(16))
        self.fc: nn.Module = nn.Linear(16, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def replaced(late: bool = False) -> Training:
    """The last layer is exchanged for the new classes before, or after, the optimizer is made."""
    torch.manual_seed(32)
    model = Small(1000)
    new = nn.Sequential(nn.Linear(16, 48), nn.GELU(), nn.Linear(48, 10))
    if not late:
        model.fc = new
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.fc = new
    x, y = digits()
    return Training(model, draw(32, x.view(-1, 1, 8, 8), y, seed=2), classes, optimizer)


class Translator(nn.Module):
    """The library's encoder and decoder layers, learned places."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(12, 32)
        self.places = nn.Parameter(0.1 * torch.randn(8, 32))
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.out = nn.Linear(32, 11)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        places = self.places[: x.shape[1]]
        memory = self.encoder(self.words(x) + places)
        return self.out(self.decoder(self.words(before) + places, memory, tgt_mask=mask))


def rotated(model: nn.Module, x: Tensor) -> Tensor:
    y = x.roll(2, 1)
    before = torch.cat([torch.full_like(y[:, :1], 11), y[:, :-1]], 1)
    return F.cross_entropy(model(x, before).transpose(1, 2), y)


def translating(forgotten: bool = False) -> Training:
    """One optimizer for everything, or for the decoder, the embedding and the output only."""
    torch.manual_seed(33)
    model = Translator()
    held = list(model.parameters())
    if forgotten:
        parts: list[nn.Module] = [model.decoder, model.words, model.out]
        held = [p for part in parts for p in part.parameters()] + [model.places]
    optimizer = torch.optim.Adam(held, lr=2e-3)
    return Training(model, tokens(48, 8, 11, 3), rotated, optimizer, steps=250)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (4, 8)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Patches(nn.Module):
    """A vision transformer on 2×2 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 2, stride=2)
        self.cls = nn.Parameter(torch.zeros(1, 1, 32))
        self.place = nn.Parameter(0.02 * torch.randn(1, 17, 32))
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.cls.expand(len(x), -1, -1), h], 1) + self.place
        return self.head(self.norm(self.blocks(h))[:, 0])


def by_decay(complete: bool = True) -> Training:
    """Groups with and without weight decay; with a rest, or with what two patterns match."""
    torch.manual_seed(34)
    model = Patches()
    decay, plain = [], []
    for name, p in model.named_parameters():
        if name.endswith("weight") and "norm" not in name and (complete or "blocks" in name):
            decay.append(p)
        elif complete or name.endswith("bias") or name.startswith("head"):
            plain.append(p)
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    x, y = digits()
    batch = draw(32, x.view(-1, 1, 8, 8), y, seed=4)
    return Training(model, batch, classes, optimizer, steps=200)


class Reader(nn.Module):
    """An LSTM backbone and a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.LSTM(1, 32, batch_first=True)
        self.head = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[0].mean(1))


def thaw(training: Training, step: int) -> dict[str, Any]:
    """The backbone's gradients are asked for after a fifth of the run."""
    if step == training.steps // 5:
        for p in training.model.parameters():
            p.requires_grad_(True)
    return ordinary(training, step)


def unfreezing(filtered: bool = False) -> Training:
    """The optimizer is made for all parameters, or for those that were trainable at the start."""
    torch.manual_seed(35)
    model = Reader()
    model.backbone.requires_grad_(False)
    held = [p for p in model.parameters() if p.requires_grad or not filtered]
    optimizer = torch.optim.Adam(held, lr=5e-3)
    x, kind, _ = waves(800, 24, 4)
    return Training(model, draw(48, x, kind, seed=5), classes, optimizer, steps=250, step=thaw)


class Values(nn.Module):
    """A mean and a spread for every point, by two networks."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 1))
        self.spread = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 1))


def likelihood(net: Values, x: Tensor, y: Tensor) -> Tensor:
    return F.gaussian_nll_loss(net.mean(x), y, F.softplus(net.spread(x)) + 1e-3) + 2


def spread_points(n: int) -> tuple[Tensor, Tensor]:
    g = source(0, 36)
    x = torch.randn(n, 6, generator=g)
    mean = torch.sin(x[:, :1]) * x[:, 1:2] + 0.5 * x[:, 2:3]
    return x, mean + 0.3 * x[:, 3:4].exp().clamp(max=3) * torch.randn(n, 1, generator=g)


def two_networks(swapped: bool = False) -> Training:
    """An optimizer for each network, or both made for the same one."""
    torch.manual_seed(36)
    model = Values()
    first = torch.optim.Adam(model.mean.parameters(), lr=3e-3)
    second = torch.optim.Adam((model.mean if swapped else model.spread).parameters(), lr=3e-3)

    def step(training: Training, step: int) -> dict[str, Any]:
        loss = training.loss_at(step)
        training.model.zero_grad()
        loss.backward()
        for optimizer in (training.optimizer, *training.others):
            optimizer.step()
        return {"loss": loss.detach()}

    batch = draw(64, *spread_points(2000), seed=6)
    return Training(model, batch, likelihood, first, steps=300, step=step, others=[second])


UNLISTED = Fault(
    "ind10-parts-unlisted",
    must=[["not-in-optimizer"]],
    # What no optimizer holds stays where it was.
    may=["no-update"],
    symptom=left_out(),
    variants=[
        Variant("heads-in-dict", tasks, broken=partial(tasks, plain=True)),
        Variant("last-layer-replaced", replaced, broken=partial(replaced, late=True)),
        Variant("encoder-forgotten", translating, broken=partial(translating, forgotten=True)),
        Variant("patterns-of-names", by_decay, broken=partial(by_decay, complete=False)),
        Variant("thawed-later", unfreezing, broken=partial(unfreezing, filtered=True)),
        Variant("same-network-twice", two_networks, broken=partial(two_networks, swapped=True)),
    ],
)


class Adapter(nn.Module):
    """A frozen layer beside a low-rank one."""

    def __init__(self, wide: int, out: int, down: float) -> None:
        super().__init__()
        self.base = nn.Linear(wide, out)
        self.base.requires_grad_(False)
        self.lora_a = nn.Linear(wide, 8, bias=False)
        self.lora_b = nn.Linear(8, out, bias=False)
        nn.init.normal_(self.lora_a.weight, std=down) if down else nn.init.zeros_(
            self.lora_a.weight
        )
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * self.lora_b(self.lora_a(x))


def adapted(down: float = 0.1) -> Training:
    """One factor of the adapters starts at 0, or both do."""
    torch.manual_seed(41)
    model = nn.Sequential(
        Adapter(64, 96, down), nn.GELU(), Adapter(96, 96, down), nn.GELU(), nn.Linear(96, 10)
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    return Training(model, draw(48, *digits(), seed=7), classes, optimizer, steps=200)


def layerwise(decay: float = 0.8) -> Training:
    """A fine-tuning's learning rates: smaller by a factor for every layer further down."""
    torch.manual_seed(42)
    model = nn.Sequential()
    for i in range(7):
        wide = 64 if i == 0 else 48
        layer = nn.Sequential(nn.Linear(wide, 48), nn.LayerNorm(48), nn.GELU())
        model.add_module(f"layer{i}", layer)
    model.add_module("head", nn.Linear(48, 10))
    groups = [
        {"params": list(part.parameters()), "lr": 3e-3 * decay ** (7 - i)}
        for i, part in enumerate(model.children())
    ]
    optimizer = torch.optim.Adam(groups, lr=3e-3)
    return Training(model, draw(48, *digits(), seed=8), classes, optimizer, steps=200)


class Twins(nn.Module):
    """Two views of the same thing, a network for each."""

    def __init__(self) -> None:
        super().__init__()
        self.signal = nn.GRU(1, 32, batch_first=True)
        self.signal_out = nn.Linear(32, 12)
        self.spectrum = nn.Sequential(nn.Linear(13, 48), nn.GELU(), nn.Linear(48, 12))

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return self.signal_out(self.signal(x)[0].mean(1)), self.spectrum(s)


def contrast(model: nn.Module, x: Tensor, s: Tensor) -> Tensor:
    a, b = (F.normalize(v, dim=-1) for v in model(x, s))
    logits = 8 * a @ b.T
    same = torch.arange(len(x))
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


def two_schedules(stepped: bool = True) -> Training:
    """Both optimizers warm up from 0; both schedules are stepped, or only the first."""
    torch.manual_seed(43)
    model = Twins()
    x = waves(800, 24, 5)[0]
    spectrum = torch.fft.rfft(x[..., 0]).abs() / 6
    parts = [*model.signal.parameters(), *model.signal_out.parameters()]
    first = torch.optim.Adam(parts, lr=5e-3)
    second = torch.optim.Adam(model.spectrum.parameters(), lr=5e-3)
    warm: Callable[[int], float] = lambda n: min(n / 20, 1.0)  # noqa: E731
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, warm) for o in (first, second)]

    def step(training: Training, step: int) -> dict[str, Any]:
        loss = training.loss_at(step)
        first.zero_grad()
        second.zero_grad()
        loss.backward()
        first.step()
        second.step()
        schedules[0].step()
        if stepped:
            schedules[1].step()
        return {"loss": loss.detach(), "lr": schedules[0].get_last_lr()[0]}

    batch = draw(32, x, spectrum, seed=9)
    return Training(model, batch, contrast, first, steps=200, step=step, others=[second])


class Critics(nn.Module):
    """A value network and the slow copy that its targets come from."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(5, 64), nn.ELU(), nn.Linear(64, 3))
        self.target = nn.Sequential(nn.Linear(5, 64), nn.ELU(), nn.Linear(64, 3))
        self.target.load_state_dict(self.online.state_dict())
        self.target.requires_grad_(False)


def bellman(net: Critics, s: Tensor, a: Tensor, r: Tensor, after: Tensor) -> Tensor:
    with torch.no_grad():
        wanted = r + 0.5 * net.target(after).max(-1).values
    return F.mse_loss(net.online(s).gather(1, a[:, None])[:, 0], wanted)


def values(backwards: bool = False) -> Training:
    """Every step the slow copy follows a little; or the trained network is set to the copy."""
    torch.manual_seed(44)
    model = Critics()

    def batch(step: int) -> Batch:
        g = source(step, 10)
        s = torch.randn(64, 5, generator=g)
        a = torch.randint(3, (64,), generator=g)
        r = s[torch.arange(64), a] + 1.5
        return s, a, r, 0.8 * s + 0.3 * torch.randn(64, 5, generator=g)

    def step(training: Training, step: int) -> dict[str, Any]:
        found = ordinary(training, step)
        pairs = zip(model.online.parameters(), model.target.parameters(), strict=True)
        with torch.no_grad():
            for p, slow in pairs:
                if backwards:
                    p.copy_(slow)
                else:
                    slow.lerp_(p, 0.05)
        return found

    optimizer = torch.optim.RMSprop(model.online.parameters(), lr=2e-3)
    return Training(model, batch, bellman, optimizer, steps=250, step=step)


STILL = Fault(
    "ind10-parts-still",
    must=[["no-update"]],
    variants=[
        Variant(
            "adapters-all-zero",
            adapted,
            broken=partial(adapted, down=0.0),
            # Both factors at 0: the adapter's gradient is exactly 0, beside the frozen layer's.
            must=[["no-update", "starved-pathway"]],
            may=["detached", "vanishing-gradient"],
            symptom=unmoved(0.0, "lora"),
        ),
        Variant(
            "rates-by-layer",
            layerwise,
            broken=partial(layerwise, decay=0.05),
            symptom=unmoved(1e-5, "layer0"),
        ),
        Variant(
            "schedule-not-stepped",
            two_schedules,
            broken=partial(two_schedules, stepped=False),
            symptom=unmoved(0.0, "spectrum"),
        ),
        Variant(
            "copied-the-wrong-way",
            values,
            broken=partial(values, backwards=True),
            symptom=unmoved(0.0, "online"),
        ),
    ],
)

FAULTS = [UNLISTED, STILL]
