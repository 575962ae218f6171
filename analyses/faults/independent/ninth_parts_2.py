"""Parts that get a gradient and that no optimizer steps, or that it steps by nothing."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_ninth_d import (
    both,
    chance,
    digit_batches,
    digits,
    drawn,
    frozen_part,
    picture_batches,
)
from analyses.faults.symptoms import learns_less, left_out
from analyses.faults.training import Batch, Training


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


# --- a new head, after the optimizer ---


class SmallCNN(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 24, 3, padding=1, stride=2)
        self.bn2 = nn.BatchNorm2d(24)
        self.fc = nn.Linear(24, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def new_head(late: bool = False) -> Training:
    """A network for 3 classes gets a head for 10, before or after the optimizer is made."""
    torch.manual_seed(41)
    model = SmallCNN(3)
    if not late:
        model.fc = nn.Linear(24, 10)
    sgd = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9, weight_decay=1e-4)
    if late:
        model.fc = nn.Linear(24, 10)
    return Training(model, picture_batches(64), classify, sgd, steps=160)


# --- blocks in a plain list ---


class Mixer(nn.Module):
    """An MLP mixer over the rows of a picture."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        blocks = [
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(32),
                    "tokens": nn.Linear(8, 8),
                    "channels": nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)),
                }
            )
            for _ in range(3)
        ]
        self.blocks = nn.ModuleList(blocks) if registered else blocks
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.view(-1, 8, 8))
        for block in self.blocks:
            mixed = block["tokens"](block["norm"](h).transpose(1, 2)).transpose(1, 2)  # type: ignore[index]
            h = h + mixed
            h = h + block["channels"](h)  # type: ignore[index]
        return self.head(h.mean(1))


def mixer(registered: bool = True) -> Training:
    torch.manual_seed(42)
    model = Mixer(registered)
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    return Training(model, digit_batches(64), classify, adam, steps=160)


# --- groups by name ---


class TokenClassifier(nn.Module):
    """A transformer encoder that names, at every token, the token six places before."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 32)
        self.place = nn.Embedding(24, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(32, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        return self.out(self.encoder(self.embed(tokens) + self.place(places)))


def by_name(careful: bool = True) -> Training:
    """Weight decay for what is called a weight, none for biases; projections have other names."""
    torch.manual_seed(43)
    model = TokenClassifier()
    decay = [p for n, p in model.named_parameters() if n.endswith(".weight")]
    plain = [p for n, p in model.named_parameters() if n.endswith(".bias")]
    if careful:
        plain = [p for n, p in model.named_parameters() if not n.endswith(".weight")]
    adamw = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}], 2e-3
    )

    def batch(step: int) -> Batch:
        return (torch.randint(12, (32, 24), generator=chance(step, 11)),)

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens)[:, 6:].flatten(0, 1), tokens[:, :-6].flatten())

    return Training(model, batch, loss, adamw, steps=220)


# --- a bridge between a frozen encoder and what writes ---


class Bridged(nn.Module):
    """Measurements to text: a frozen encoder, a bridge, an LSTM that writes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(48, 160), nn.ReLU()).requires_grad_(False)
        self.bridge = nn.Sequential(nn.Linear(160, 12), nn.Tanh(), nn.Linear(12, 64))
        self.tokens = nn.Embedding(11, 16)
        self.decoder = nn.LSTMCell(16, 32)
        self.out = nn.Linear(32, 10)

    def forward(self, x: Tensor, text: Tensor) -> list[Tensor]:
        h, c = self.bridge(self.encoder(x)).chunk(2, -1)
        before, said = torch.full_like(text[:, 0], 10), []
        for t in range(text.shape[1]):
            h, c = self.decoder(self.tokens(before), (h.contiguous(), c))
            said.append(self.out(h))
            before = text[:, t]
        return said


def bridged(forgotten: bool = False) -> Training:
    """The bridge is what has to be trained, and the writer; or the writer alone is."""
    torch.manual_seed(44)
    model = Bridged()
    parts = [model.tokens, model.decoder, model.out]
    if not forgotten:
        parts.append(model.bridge)
    adam = torch.optim.Adam([p for part in parts for p in part.parameters()], 4e-3)
    codes = torch.randn(3, 10, 48, generator=chance(0, 12))

    def batch(step: int) -> Batch:
        g = chance(step, 13)
        text = torch.randint(10, (64, 3), generator=g)
        return torch.stack([codes[i][text[:, i]] for i in range(3)]).sum(0), text

    def loss(model: nn.Module, x: Tensor, text: Tensor) -> Tensor:
        said = model(x, text)
        return torch.stack([F.cross_entropy(s, text[:, i]) for i, s in enumerate(said)]).mean()

    return Training(model, batch, loss, adam, steps=250)


# --- prototypes of a loss ---


class Prototypes(nn.Module):
    """Distances from a learned centre of each class, for the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(0.1 * torch.randn(10, 8))

    def forward(self, z: Tensor) -> Tensor:
        return -torch.cdist(z, self.centres).square()


def prototypes(forgotten: bool = False) -> Training:
    torch.manual_seed(45)
    net = nn.Sequential(
        nn.Linear(64, 100), nn.LeakyReLU(0.1), nn.Linear(100, 50), nn.LeakyReLU(0.1),
        nn.Linear(50, 8),
    )  # fmt: skip
    model = nn.ModuleDict({"net": net, "criterion": Prototypes()})
    stepped = net if forgotten else model
    adam = torch.optim.Adam(stepped.parameters(), 1e-3)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        assert isinstance(model, nn.ModuleDict)
        return F.cross_entropy(model["criterion"](model["net"](x)), y)

    return Training(model, digit_batches(64, 14), loss, adam, steps=200)


# --- adapters ---


class Adapted(nn.Module):
    """A frozen linear layer and what is learned beside it, of low rank."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.normal_(self.up.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def adapters(late: bool = False) -> Training:
    """A trained classifier is adapted to pictures whose rows are mixed up."""
    torch.manual_seed(46)
    model = nn.Sequential(
        nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10)
    )
    x, y = digits()
    before = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        F.cross_entropy(model(x), y).backward()
        before.step()
        before.zero_grad()
    rows = torch.randperm(8, generator=chance(1, 15))
    model[4] = nn.Linear(96, 10)
    if late:
        for p in model[:4].parameters():
            p.requires_grad_(False)
        optimizer = torch.optim.AdamW(filter(lambda p: p.requires_grad, model.parameters()), 2e-3)
    for i in (0, 2):
        model[i] = Adapted(model[i], 8)  # type: ignore[arg-type]
    if not late:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-3)
    mixed = x.view(-1, 8, 8)[:, rows].flatten(1)
    return Training(model, drawn(64, mixed, y, seed=16), classify, optimizer, steps=200)


# --- a trunk that neither of two optimizers holds ---


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh())
        self.actor = nn.Linear(12, 4)
        self.critic = nn.Linear(12, 1)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(state)
        return self.actor(h), self.critic(h).squeeze(-1)


def actor_critic(forgotten: bool = False) -> Training:
    """Policy gradient in a bandit whose best arm depends on the state; a critic as baseline."""
    torch.manual_seed(47)
    model = ActorCritic()
    arms = torch.randn(8, 4, generator=chance(0, 17))

    def batch(step: int) -> Batch:
        return (torch.randn(256, 8, generator=chance(step, 18)),)

    def reward(state: Tensor, action: Tensor) -> Tensor:
        return ((state @ arms).argmax(-1) == action).float()

    def loss(model: nn.Module, state: Tensor) -> Tensor:
        logits, value = model(state)
        policy = torch.distributions.Categorical(logits=logits)
        action = policy.sample()
        gained = reward(state, action)
        advantage = gained - value.detach()
        gain = (policy.log_prob(action) * advantage).mean() + 0.003 * policy.entropy().mean()
        return F.mse_loss(value, gained) - gain

    acts = [*model.actor.parameters()]
    if not forgotten:
        acts += model.trunk.parameters()
    first = torch.optim.Adam(acts, 1e-2)
    second = torch.optim.Adam(model.critic.parameters(), 1e-2)

    def step(training: Training, step: int) -> dict[str, Any]:
        (state,) = training.batch(step)
        model.zero_grad()
        training.loss(model, state).backward()
        first.step()
        second.step()
        with torch.no_grad():
            return {"loss": 1 - reward(state, model(state)[0].argmax(-1)).mean()}

    return Training(model, batch, loss, first, steps=250, step=step, others=[second])


# --- an encoder that is swapped for a loaded one ---


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def denoiser(reloaded: bool = False) -> Training:
    """An autoencoder goes on from an encoder that was read from a file, as it seems."""
    torch.manual_seed(48)
    saved = Denoiser().encoder
    model = Denoiser()
    if not reloaded:
        model.encoder.load_state_dict(saved.state_dict())
    rms = torch.optim.RMSprop(model.parameters(), 1e-3)
    if reloaded:
        model.encoder = copy.deepcopy(saved)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        noise = 0.3 * torch.randn(x.shape, generator=chance(0, 19))
        return F.mse_loss(model(x + noise), x)

    return Training(model, drawn(64, digits()[0], seed=20), loss, rms, steps=220)


NOT_HELD = Fault(
    "ind9-parts-not-held",
    must=[["not-in-optimizer"]],
    may=["no-update"],  # what isn't held stays as it is, though it has a gradient
    symptom=both(left_out(), learns_less(0.005)),
    variants=[
        Variant("head-replaced", new_head, broken=partial(new_head, late=True)),
        Variant("list-of-blocks", mixer, broken=partial(mixer, registered=False)),
        Variant("groups-by-name", by_name, broken=partial(by_name, careful=False)),
        Variant("bridge-of-two", bridged, broken=partial(bridged, forgotten=True)),
        Variant("loss-prototypes", prototypes, broken=partial(prototypes, forgotten=True)),
        Variant("late-adapters", adapters, broken=partial(adapters, late=True)),
        Variant("shared-trunk", actor_critic, broken=partial(actor_critic, forgotten=True)),
        Variant("encoder-swapped", denoiser, broken=partial(denoiser, reloaded=True)),
    ],
)


# --- parts whose steps come to nothing ---


class ImageToSet(nn.Module):
    """A convolutional encoder, a transformer decoder with one query per answer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 32, 3, 2, 1), nn.GELU()
        )
        layer = nn.TransformerDecoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.norm = nn.LayerNorm(32)
        self.query = nn.Parameter(torch.randn(2, 32))
        self.heads = nn.ModuleDict({"digit": nn.Linear(32, 10), "ink": nn.Linear(32, 1)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        memory = self.norm(self.encoder(x).flatten(2).transpose(1, 2))
        h = self.decoder(self.query.expand(len(x), -1, -1), memory)
        return {"digit": self.heads["digit"](h[:, 0]), "ink": self.heads["ink"](h[:, 1])}


def image_to_set(encoder_lr: float = 1e-3) -> Training:
    """The encoder has a learning rate of its own, as for a trained one; but it isn't trained."""
    torch.manual_seed(51)
    model = ImageToSet()
    slow = [p for n, p in model.named_parameters() if n.startswith("encoder")]
    rest = [p for n, p in model.named_parameters() if not n.startswith("encoder")]
    adamw = torch.optim.AdamW(
        [{"params": slow, "lr": encoder_lr}, {"params": rest, "lr": 1e-3}], weight_decay=0.0
    )

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = model(x)
        ink = x.mean((1, 2, 3)).unsqueeze(-1)
        return F.cross_entropy(out["digit"], y) + F.mse_loss(out["ink"], ink)

    return Training(model, picture_batches(48), loss, adamw, steps=140)


class Stages(nn.Module):
    """Residual stages that are named for their depth."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 24)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24))
            for _ in range(5)
        )
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for stage in self.stages:
            h = h + stage(h)
        return self.head(h)


def stages(decay: float = 0.8) -> Training:
    """Learning rates that fall with the distance from the head, layer by layer."""
    torch.manual_seed(52)
    model = Stages()
    layers = [model.stem, *model.stages, model.head]
    groups = [
        {"params": [*layer.parameters()], "lr": 0.03 * decay ** (len(layers) - 1 - i)}
        for i, layer in enumerate(layers)
    ]
    sgd = torch.optim.SGD(groups, 0.03, momentum=0.9)
    return Training(model, digit_batches(32, 23), classify, sgd, steps=200)


class Momentum(nn.Module):
    """An online network and its slow copy, which gives the targets."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(10, 64), nn.SiLU(), nn.Linear(64, 3))
        self.target = copy.deepcopy(self.online).requires_grad_(False)


def q_learning(swapped: bool = False) -> Training:
    """Q-learning on a short walk; the copy follows the network, or the network the copy."""
    torch.manual_seed(53)
    model = Momentum()
    adam = torch.optim.Adam(model.online.parameters(), 3e-3)

    def batch(step: int) -> Batch:
        g = chance(step, 24)
        place, action = (
            torch.randint(10, (128,), generator=g),
            torch.randint(3, (128,), generator=g),
        )
        return place, action, (place + action - 1).clamp(0, 9)

    def loss(model: nn.Module, place: Tensor, action: Tensor, then: Tensor) -> Tensor:
        assert isinstance(model, Momentum)
        reward = (then - 5).abs().float() / 2
        with torch.no_grad():
            best = model.target(F.one_hot(then, 10).float()).amax(-1)
        q = model.online(F.one_hot(place, 10).float()).gather(1, action[:, None])[:, 0]
        return F.smooth_l1_loss(q, reward + 0.5 * best)

    def step(training: Training, step: int) -> dict[str, Any]:
        loss = training.loss_at(step)
        adam.zero_grad()
        loss.backward()
        adam.step()
        goes, comes = (model.target, model.online)[:: -1 if swapped else 1]
        with torch.no_grad():
            for a, b in zip(goes.parameters(), comes.parameters(), strict=True):
                a.copy_(0.05 * b + 0.95 * a if not swapped else b)
        return {"loss": loss.detach()}

    return Training(model, batch, loss, adam, steps=250, step=step)


class Labeller(nn.Module):
    """A bidirectional LSTM, tagged by a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.lstm = nn.LSTM(16, 24, batch_first=True, bidirectional=True)
        self.tagger = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, words: Tensor) -> Tensor:
        return self.tagger(self.lstm(self.words(words))[0])


def labeller(frozen_for: int = 0) -> Training:
    """The tagger warms up by a schedule of its own group, which never gets to an end."""
    torch.manual_seed(54)
    model = Labeller()
    body = [*model.words.parameters(), *model.lstm.parameters()]
    adam = torch.optim.Adam([{"params": body}, {"params": [*model.tagger.parameters()]}], 3e-3)

    def whole(step: int) -> float:
        return min(1.0, (step + 1) / 10)

    def late(step: int) -> float:
        return float(step >= frozen_for)

    schedule = torch.optim.lr_scheduler.LambdaLR(adam, [late if frozen_for else whole, whole])

    def batch(step: int) -> Batch:
        words = torch.randint(20, (32, 12), generator=chance(step, 25))
        odd = (words + words.roll(1, 1)) % 2
        return words, odd + 2 * (words.roll(-1, 1) > 9).long()

    def loss(model: nn.Module, words: Tensor, tags: Tensor) -> Tensor:
        return F.cross_entropy(model(words).flatten(0, 1), tags.flatten())

    return Training(model, batch, loss, adam, steps=150, schedule=schedule)


UNMOVED = Fault(
    "ind9-parts-unmoved",
    must=[["no-update"]],
    variants=[
        Variant(
            "encoder-rate",
            image_to_set,
            broken=partial(image_to_set, encoder_lr=1e-11),
            symptom=frozen_part("encoder.0"),
        ),
        Variant(
            "layerwise-decay",
            stages,
            broken=partial(stages, decay=0.01),
            symptom=frozen_part("stem"),
        ),
        Variant(
            "copied-back",
            q_learning,
            broken=partial(q_learning, swapped=True),
            symptom=frozen_part("online"),
        ),
        Variant(
            "group-schedule",
            labeller,
            broken=partial(labeller, frozen_for=5000),
            symptom=frozen_part("lstm"),
        ),
    ],
)

FAULTS = [NOT_HELD, UNMOVED]
