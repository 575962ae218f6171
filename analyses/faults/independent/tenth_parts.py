"""Parts that the gradient never reaches: graphs cut by accident, and rounding in the path."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_tenth_d import digits, draw, source, tokens, waves
from analyses.faults.observe import Observed
from analyses.faults.symptoms import no_gradient_before
from analyses.faults.training import Batch, Training

SPLITS = ("test",)


class Experts(nn.Module):
    """Four experts and a router that weighs them, or chooses one."""

    def __init__(self, weighted: bool) -> None:
        super().__init__()
        self.weighted = weighted
        self.router = nn.Linear(64, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 24)) for _ in range(4)
        )
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        p = self.router(x).softmax(-1)
        best = p.argmax(-1)
        rows = torch.arange(len(x))
        out = torch.stack([e(x) for e in self.experts], 1)
        if self.weighted:
            return self.head((p[..., None] * out).sum(1))
        return self.head(out[rows, best])


def classes(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def experts(weighted: bool = True) -> Training:
    """The experts' outputs times their gates, or the output of the expert with the largest."""
    torch.manual_seed(11)
    model = Experts(weighted)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, draw(64, *digits(), seed=1), classes, optimizer, steps=250)


class Waves(nn.Module):
    """A recurrent backbone with two tasks."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.frozen = frozen
        self.backbone = nn.GRU(1, 40, batch_first=True)
        self.kind = nn.Linear(40, 4)
        self.size = nn.Sequential(nn.Linear(40, 16), nn.SiLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with torch.set_grad_enabled(not self.frozen):
            h = self.backbone(x)[0].mean(1)
        return {"kind": self.kind(h), "size": self.size(h)[:, 0]}


def both_tasks(model: nn.Module, x: Tensor, kind: Tensor, size: Tensor) -> Tensor:
    out = model(x)
    return F.cross_entropy(out["kind"], kind) + F.mse_loss(out["size"], size)


def two_tasks(frozen: bool = False) -> Training:
    """Gradients of the backbone are switched off, as if features were only extracted."""
    torch.manual_seed(12)
    model = Waves(frozen)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, draw(48, *waves(800, 24, 2), seed=2), both_tasks, optimizer, steps=250)


class Squeeze(nn.Module):
    """A convolutional autoencoder whose code is clipped."""

    def __init__(self, through_numpy: bool) -> None:
        super().__init__()
        self.through_numpy = through_numpy
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(12, 6, 3, padding=1)
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(6, 12, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(12, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        if self.through_numpy:
            z = torch.from_numpy(z.detach().cpu().numpy().clip(-3, 3))
        else:
            z = z.clamp(-3, 3)
        return self.decoder(z)


def rebuild(model: nn.Module, x: Tensor) -> Tensor:
    return F.mse_loss(model(x), x)


def squeezing(through_numpy: bool = False) -> Training:
    """The code is clipped in torch, or on its way through numpy."""
    torch.manual_seed(13)
    model = Squeeze(through_numpy)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    images = digits()[0].view(-1, 1, 8, 8)
    return Training(model, draw(48, images, seed=3), rebuild, optimizer, steps=250)


class Reverser(nn.Module):
    """Reads a sequence and writes it backwards."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.embed = nn.Embedding(13, 24)
        self.encoder = nn.LSTM(24, 64, batch_first=True)
        self.target = nn.Embedding(13, 24)
        self.decoder = nn.LSTM(24, 64, batch_first=True)
        self.out = nn.Linear(64, 12)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        _, state = self.encoder(self.embed(x))
        if self.cut:
            state = tuple(s.detach() for s in state)
        return self.out(self.decoder(self.target(before), state)[0])


def backwards(model: nn.Module, x: Tensor) -> Tensor:
    y = x.flip(1)
    before = torch.cat([torch.full_like(y[:, :1], 12), y[:, :-1]], 1)
    return F.cross_entropy(model(x, before).flatten(0, 1), y.flatten())


def reversing(cut: bool = False) -> Training:
    """The encoder's last state is handed on as it is, or detached as between windows."""
    torch.manual_seed(14)
    model = Reverser(cut)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return Training(model, tokens(64, 5, 12, 4), backwards, optimizer, steps=300, every=10)


NAMES = "zero one two three four five six seven eight nine".split()


class Pairs(nn.Module):
    """Images and the words for them, in one space."""

    def __init__(self, cached: bool) -> None:
        super().__init__()
        self.cached = cached
        self.image = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 16))
        self.letters = nn.Embedding(27, 12, padding_idx=0)
        self.word = nn.Sequential(nn.Linear(60, 32), nn.GELU(), nn.Linear(32, 16))
        spelled = [[ord(c) - 96 for c in n.ljust(5, "`")] for n in NAMES]
        self.register_buffer("spelled", torch.tensor(spelled))

    def words(self) -> Tensor:
        found = F.normalize(self.word(self.letters(self.spelled).flatten(1)), dim=-1)
        return torch.tensor(found.tolist()) if self.cached else found

    def forward(self, x: Tensor) -> Tensor:
        return 10 * F.normalize(self.image(x), dim=-1) @ self.words().T


def pairing(cached: bool = False) -> Training:
    """The words' vectors are used as computed, or kept as lists and made tensors again."""
    torch.manual_seed(15)
    model = Pairs(cached)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, draw(64, *digits(), seed=5), classes, optimizer, steps=200)


class Codes(nn.Module):
    """An autoencoder with a codebook of 32 vectors, 8 of them per image."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        self.book = nn.Embedding(32, 4)
        self.decoder = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64))

    def nearest(self, z: Tensor) -> Tensor:
        return self.book(torch.cdist(z.detach(), self.book.weight.detach()).argmin(-1))


def with_codes(net: Codes, x: Tensor, *, straight: bool) -> Tensor:
    z = net.encoder(x).view(len(x), 8, 4)
    q = net.nearest(z)
    if not straight:
        return F.mse_loss(net.decoder(q.flatten(1)), x)
    through = z + (q - z).detach()
    rebuilt = F.mse_loss(net.decoder(through.flatten(1)), x)
    return rebuilt + F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())


def codebook(straight: bool = True) -> Training:
    """With the straight-through trick and the usual terms, or only the looked-up vectors."""
    torch.manual_seed(16)
    model = Codes()
    nn.init.normal_(model.book.weight, std=0.3)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    loss = partial(with_codes, straight=straight)
    return Training(model, draw(64, digits()[0], seed=6), loss, optimizer, steps=300)


class Agent(nn.Module):
    """A policy that names the digit it sees, and a critic that foretells the reward."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))
        self.critic = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 1))


def rollout(net: Agent, x: Tensor, y: Tensor, noise: Tensor) -> dict[str, Tensor]:
    logp = net.actor(x).log_softmax(-1)
    action = (logp.detach() + noise).argmax(-1)
    return {"logp": logp[torch.arange(len(x)), action], "reward": (action == y).float()}


def policy_loss(net: Agent, x: Tensor, y: Tensor, noise: Tensor, *, stored: bool) -> Tensor:
    if stored:
        with torch.no_grad():
            seen = rollout(net, x, y, noise)
    else:
        seen = rollout(net, x, y, noise)
    value = net.critic(x)[:, 0]
    advantage = (seen["reward"] - value).detach()
    return -(seen["logp"] * advantage).mean() + 0.5 * F.mse_loss(value, seen["reward"])


def play(training: Training, step: int) -> dict[str, Any]:
    """An ordinary step that logs the share of wrong actions as what is to fall."""
    batch = training.batch(step)
    loss = training.loss(training.model, *batch)
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    assert isinstance(training.model, Agent)
    with torch.no_grad():
        missed = 1 - rollout(training.model, *batch)["reward"].mean()
    return {"loss": missed, "objective": loss.detach()}


def acting(stored: bool = False) -> Training:
    """Log-probabilities computed for the loss, or taken from a rollout without gradients."""
    torch.manual_seed(17)
    model = Agent()
    plain = draw(128, *digits(), seed=7)

    def batch(step: int) -> Batch:
        u = torch.rand(128, 10, generator=source(step, 71)).clamp(1e-6, 1 - 1e-6)
        return (*plain(step), -(-u.log()).log())

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    loss = partial(policy_loss, stored=stored)
    return Training(model, batch, loss, optimizer, steps=300, every=10, step=play)


class LowRank(nn.Module):
    """A frozen linear layer with a trainable addition of rank 4."""

    def __init__(self, wide: int, out: int, merged: bool) -> None:
        super().__init__()
        self.base = nn.Linear(wide, out)
        self.base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(4, wide) / wide**0.5)
        self.up = nn.Parameter(torch.zeros(out, 4))
        self.merged = merged

    def forward(self, x: Tensor) -> Tensor:
        weight = self.base.weight + self.up @ self.down
        if self.merged:
            weight = weight.data
        return F.linear(x, weight, self.base.bias)


def adapters(merged: bool = False) -> Training:
    """Adapters in a frozen network; the sum of weights as it is, or its `.data`."""
    torch.manual_seed(18)
    model = nn.Sequential(
        LowRank(64, 64, merged), nn.ReLU(), LowRank(64, 64, merged), nn.ReLU(), nn.Linear(64, 10)
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=4e-3)
    return Training(model, draw(32, *digits(), seed=8), classes, optimizer, steps=250)


CUT = Fault(
    "ind10-parts-cut",
    must=[["detached"]],
    # What gets no gradient stays where it was.
    may=["no-update"],
    symptom=no_gradient_before(),
    variants=[
        Variant("router-argmax", experts, broken=partial(experts, weighted=False)),
        Variant("backbone-no-grad", two_tasks, broken=partial(two_tasks, frozen=True)),
        Variant("code-numpy", squeezing, broken=partial(squeezing, through_numpy=True)),
        Variant("encoder-state", reversing, broken=partial(reversing, cut=True)),
        Variant("words-rebuilt", pairing, broken=partial(pairing, cached=True)),
        Variant("codes-looked-up", codebook, broken=partial(codebook, straight=False)),
        Variant("rollout-no-grad", acting, broken=partial(acting, stored=True)),
        Variant("merged-data", adapters, broken=partial(adapters, merged=True)),
    ],
)


class Steps(nn.Module):
    """A step function in the forward pass, or a smooth one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "sign":
            return torch.sign(x)
        if self.kind == "round":
            return torch.round(4 * x) / 4
        return torch.tanh(x) if self.kind == "tanh" else x


def hashing(kind: str = "tanh") -> Training:
    """A code of 24 bits for images, read by a classifier."""
    torch.manual_seed(21)
    model = nn.Sequential()
    model.add_module("encode", nn.Sequential(nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 24)))
    model.add_module("bits", Steps(kind))
    model.add_module("read", nn.Linear(24, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, draw(64, *digits(), seed=9), classes, optimizer, steps=200)


def levels(kind: str = "none") -> Training:
    """Signals compressed by convolutions, the code rounded to levels before it is stored."""
    torch.manual_seed(22)
    model = nn.Sequential()
    encode = nn.Sequential(nn.Conv1d(1, 16, 5, 2, 2), nn.GELU(), nn.Conv1d(16, 3, 5, 2, 2))
    decode = nn.Sequential(
        nn.ConvTranspose1d(3, 16, 4, 2, 1), nn.GELU(), nn.ConvTranspose1d(16, 1, 4, 2, 1)
    )
    model.add_module("encode", encode)
    model.add_module("levels", Steps(kind))
    model.add_module("decode", decode)
    x = waves(600, 32, 3)[0].transpose(1, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Training(model, draw(32, x, seed=10), rebuild, optimizer, steps=200)


def silent(like: str) -> Symptom:
    """The gradient of every matrix called so is exactly 0 throughout, and the twin's is not."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        def largest(seen: Observed) -> float:
            return max(n for c in seen.checkpoints for k, n in c.norms.items() if like in k)

        assert twin is not None
        return {"is": largest(run) == 0 < largest(twin), "gradient": largest(run)}

    return symptom


ROUNDED = Fault(
    "ind10-parts-rounded",
    must=[["detached", "no-update"]],
    # From the rounding back, the signal's gradient is 0.
    may=["vanishing-gradient"],
    symptom=silent("encode"),
    variants=[
        Variant("bits-by-sign", hashing, broken=partial(hashing, kind="sign")),
        Variant("levels-by-round", levels, broken=partial(levels, kind="round")),
    ],
)

FAULTS = [CUT, ROUNDED]
