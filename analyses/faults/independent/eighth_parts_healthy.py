"""Sound runs in which some part rests, follows, or takes turns on purpose."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_eighth_parts import batches, digits, grammar, waves
from analyses.faults.training import Training, ordinary


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def fit(
    model: nn.Module, data: Any, loss: Any, steps: int, lr: float, *, parameters: Any = None
) -> None:
    """Trains a little, before the run proper."""
    optimizer = torch.optim.Adam(parameters or model.parameters(), lr=lr)
    for step in range(steps):
        loss(model, *data(step)).backward()
        optimizer.step()
        optimizer.zero_grad()


# --- fine-tuning: some of it frozen -----------------------------------------------------------


class SmallCnn(nn.Module):
    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        )  # fmt: skip
        self.fc = nn.Linear(32, kinds)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.body(image).mean((2, 3)))


def half_of_digits(low: bool) -> tuple[Tensor, Tensor]:
    images, kinds = digits()
    chosen = (kinds < 5) == low
    return images[chosen], kinds[chosen] % 5


def head_only() -> Training:
    """A frozen body in evaluation mode; the optimizer is given what requires a gradient."""
    torch.manual_seed(1)
    model = SmallCnn(5)
    fit(model, batches(*half_of_digits(low=True)), cross_entropy, 80, 3e-3)
    for p in model.body.parameters():
        p.requires_grad_(False)
    model.fc = nn.Linear(32, 5)
    model.body.eval()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=2e-2)
    data = batches(*half_of_digits(low=False), size=48, seed=1)
    return Training(model, data, cross_entropy, optimizer, steps=200)


class Probe(nn.Module):
    """A linear classifier of another net's features, which are computed without a gradient."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.probe = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            found = self.body(x)
        return self.probe(found)


def probe() -> Training:
    """The body still "requires grad", but only the probe is handed to the optimizer."""
    torch.manual_seed(6)
    x = digits()[0].flatten(1)
    body = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 40))
    coder = nn.Sequential(body, nn.Tanh(), nn.Linear(40, 64))

    def again(model: nn.Module, x: Tensor) -> Tensor:
        return F.mse_loss(model(x), x)

    fit(coder, batches(x), again, 150, 3e-3)
    model = Probe(body)
    optimizer = torch.optim.SGD(model.probe.parameters(), lr=0.05, momentum=0.9)
    data = batches(x, digits()[1], size=64, seed=6)
    return Training(model, data, cross_entropy, optimizer, steps=150)


class Unfreezing(nn.Module):
    """An MLP in stages that are set free from the top."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU()) for _ in range(3)
        )
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.head(x)


def thaw(training: Training, step: int) -> dict[str, Any]:
    """Every 60 steps the next stage from the top joins."""
    stages = list(training.model.stages)  # type: ignore[arg-type]
    for i, stage in enumerate(reversed(stages)):
        stage.requires_grad_(step >= 60 * (i + 1))
    return ordinary(training, step)


def unfreezing() -> Training:
    torch.manual_seed(2)
    model = Unfreezing()
    x, y = half_of_digits(low=True)
    fit(model, batches(x.flatten(1), y), cross_entropy, 60, 2e-3)
    model.head = nn.Linear(64, 5)
    model.stages.requires_grad_(False)
    x, y = half_of_digits(low=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = batches(x.flatten(1), y, size=32, seed=2)
    return Training(model, data, cross_entropy, optimizer, steps=300, step=thaw)


class LowRank(nn.Module):
    """A frozen linear layer and a correction of low rank that starts at nothing."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * self.up(self.down(x))


class Writer(nn.Module):
    """A causal transformer of the library's encoder layers over letters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 32)
        self.places = nn.Embedding(16, 32)
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(32, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.embed(tokens) + self.places(torch.arange(length))
        return self.out(self.encoder(x, mask=mask, is_causal=True))


def next_letter(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def low_rank() -> Training:
    """A model of one grammar is adapted to another through low-rank corrections."""
    torch.manual_seed(3)
    model = Writer()
    fit(model, batches(grammar(1500, 14, seed=3), size=32), next_letter, 150, 3e-3)
    model.requires_grad_(False)
    for layer in model.encoder.layers:
        layer.linear1 = LowRank(layer.linear1, 8)
        layer.linear2 = LowRank(layer.linear2, 8)
    adapters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(adapters, lr=5e-3)
    data = batches(grammar(1500, 14, seed=33), size=24, seed=3)
    return Training(model, data, next_letter, optimizer, steps=150)


class Prompted(nn.Module):
    """A frozen GPT-2 with a few trained vectors before the text."""

    def __init__(self, body: GPT2LMHeadModel, count: int = 6) -> None:
        super().__init__()
        self.body = body.requires_grad_(False)
        self.prompt = nn.Parameter(0.1 * torch.randn(count, 32))

    def forward(self, tokens: Tensor) -> Tensor:
        text = self.body.transformer.wte(tokens)
        prompt = self.prompt.expand(len(tokens), -1, -1)
        out = self.body(inputs_embeds=torch.cat([prompt, text], 1)).logits
        return out[:, len(self.prompt) :]


def tiny_gpt() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=12, n_positions=32, n_embd=32, n_layer=2, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def prompt_tuning() -> Training:
    """A prompt is sought that makes the frozen model write the same letter over and over."""
    torch.manual_seed(4)
    body = tiny_gpt()
    text = grammar(1500, 14, seed=4)

    def ask(model: nn.Module, tokens: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    fit(body, batches(text, size=32), ask, 150, 3e-3)
    model = Prompted(body)
    optimizer = torch.optim.Adam([model.prompt], lr=5e-2)

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        predicted = model(tokens)[:, :-1].flatten(0, 1)
        return F.cross_entropy(predicted, torch.full_like(tokens[:, 1:], 5).flatten())

    return Training(model, batches(text, size=16, seed=4), loss, optimizer, steps=120)


class Sentences(nn.Module):
    """A tiny BERT and a head on the mean of its states."""

    def __init__(self, pooler: bool = False) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=12, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=16, type_vocab_size=1,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.bert = BertModel(config, add_pooling_layer=pooler)
        self.head = nn.Linear(32, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.bert(tokens).last_hidden_state.mean(1))


def embeddings_frozen() -> Training:
    """BERT's embeddings and first layer rest; decayed and undecayed groups above."""
    torch.manual_seed(5)
    text = torch.cat([grammar(700, 12, seed=5), grammar(700, 12, seed=55)])
    which = torch.arange(2).repeat_interleave(700)
    model = Sentences()
    nn.init.normal_(model.bert.embeddings.word_embeddings.weight, std=0.5)
    for part in (model.bert.embeddings, model.bert.encoder.layer[0]):
        part.requires_grad_(False)
    free = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in free if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in free if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    data = batches(text, which, size=48, seed=5)
    return Training(model, data, cross_entropy, optimizer, steps=200)


def pooler_unused() -> Training:
    """The library's model comes with a pooler, which the mean of the states makes needless."""
    torch.manual_seed(7)
    text = torch.cat([grammar(700, 12, seed=7), grammar(700, 12, seed=77)])
    which = torch.arange(2).repeat_interleave(700)
    model = Sentences(pooler=True)
    nn.init.normal_(model.bert.embeddings.word_embeddings.weight, std=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    data = batches(text, which, size=32, seed=7)
    return Training(model, data, cross_entropy, optimizer, steps=150)


RESTING = Healthy(
    "ind8-resting",
    {
        "head-only": head_only,
        "unfreezing": unfreezing,
        "low-rank": low_rank,
        "prompt": prompt_tuning,
        "embeddings-frozen": embeddings_frozen,
        "probe": probe,
        "pooler-unused": pooler_unused,
    },
    may={
        # The body runs, is trainable, has no gradient and no optimizer: all of it on purpose.
        "probe": ["detached", "not-in-optimizer", "no-update"],
        # The pooler reads the states beside the head, and the loss does not depend on it.
        "pooler-unused": ["detached", "no-update", "starved-pathway"],
    },
)


# --- parts that follow others -----------------------------------------------------------------


class Teaching(nn.Module):
    """A student and its moving average."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(
            nn.Linear(64, 96), nn.BatchNorm1d(96), nn.SiLU(), nn.Linear(96, 10)
        )
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)


def follow(training: Training, step: int, parts: tuple[str, str], rate: float) -> dict[str, Any]:
    """An ordinary step, after which one part is moved a little towards the other."""
    logged = ordinary(training, step)
    leader, follower = (training.model.get_submodule(name) for name in parts)
    with torch.no_grad():
        for a, b in zip(leader.parameters(), follower.parameters(), strict=True):
            b.lerp_(a, rate)
    return logged


def mean_teacher() -> Training:
    """Few labels, and a teacher's opinion on the rest."""
    torch.manual_seed(11)
    images, kinds = digits()
    x = images.flatten(1)
    some = torch.randperm(len(x))[:300]
    model = Teaching()

    def loss(model: Teaching, rows: Tensor, wanted: Tensor, unlabelled: Tensor) -> Tensor:
        noisy = unlabelled + 0.3 * torch.randn_like(unlabelled)
        with torch.no_grad():
            opinion = model.teacher(unlabelled).softmax(-1)
        mine, theirs = model.student(torch.cat([rows, noisy])).split([len(rows), len(noisy)])
        supervised = F.cross_entropy(mine, wanted)
        return supervised + 2 * F.mse_loss(theirs.softmax(-1), opinion)

    labelled = batches(x[some], kinds[some], size=32, seed=11)
    others = batches(x, size=64, seed=12)
    optimizer = torch.optim.Adam(model.student.parameters(), lr=2e-3)
    return Training(
        model, lambda step: (*labelled(step), *others(step)), loss, optimizer, steps=200,
        step=partial(follow, parts=("student", "teacher"), rate=0.05),
    )  # fmt: skip


class Views(nn.Module):
    """Encoder, projection and predictor; a stop of the gradient on the other view's side."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
            nn.Linear(128, 48), nn.BatchNorm1d(48),
        )  # fmt: skip
        self.predictor = nn.Sequential(
            nn.Linear(48, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 48)
        )

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        z1, z2 = self.encoder(one), self.encoder(two)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        near = F.cosine_similarity(p1, z2.detach()) + F.cosine_similarity(p2, z1.detach())
        return 1 - near.mean() / 2


def views() -> Training:
    torch.manual_seed(12)
    model = Views()

    def loss(model: nn.Module, image: Tensor) -> Tensor:
        one = image.roll(1, -1) + 0.3 * torch.randn_like(image)
        return model(one, image + 0.3 * torch.randn_like(image))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    return Training(model, batches(digits()[0], size=64, seed=12), loss, optimizer, steps=150)


class Distilled(nn.Module):
    """A student that learns from a trained, frozen GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.ModuleDict(
            {"gru": nn.GRU(1, 48, batch_first=True), "out": nn.Linear(48, 6)}
        )
        self.student = nn.Sequential(
            nn.Conv1d(1, 16, 9, stride=2), nn.ReLU(), nn.Conv1d(16, 16, 9, stride=2), nn.ReLU(),
            nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(64, 6),
        )  # fmt: skip

    def teach(self, x: Tensor) -> Tensor:
        states, _ = self.teacher["gru"](x.transpose(1, 2))
        return self.teacher["out"](states.mean(1))


def distilled() -> Training:
    torch.manual_seed(13)
    x, kind = waves()
    model = Distilled()

    def teaching(model: Distilled, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model.teach(x), y)

    fit(model, batches(x, kind), teaching, 60, 1e-2, parameters=list(model.teacher.parameters()))
    model.teacher.requires_grad_(False)

    def loss(model: Distilled, x: Tensor, y: Tensor) -> Tensor:
        logits = model.student(x)
        soft = F.kl_div(
            (logits / 2).log_softmax(-1), (model.teach(x) / 2).softmax(-1), reduction="batchmean"
        )
        return 0.5 * F.cross_entropy(logits, y) + 0.5 * 4 * soft

    optimizer = torch.optim.Adam(model.student.parameters(), lr=3e-3)
    return Training(model, batches(x, kind, size=48, seed=13), loss, optimizer, steps=150)


class Deep(nn.Module):
    """A Q-network and the copy that its targets come from."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(
            nn.Linear(4, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 3)
        )
        self.target = copy.deepcopy(self.online).requires_grad_(False)


def copied(training: Training, step: int) -> dict[str, Any]:
    if step % 25 == 0:
        model = training.model
        model.get_submodule("target").load_state_dict(model.get_submodule("online").state_dict())
    return ordinary(training, step)


def q_learning() -> Training:
    """A point is pushed left, not at all, or right, and is rewarded for being in the middle."""
    torch.manual_seed(14)
    state = 2 * torch.rand(4000, 4) - 1
    action = torch.randint(3, (4000,))
    then = state.clone()
    then[:, 0] = (0.9 * state[:, 0] + 0.3 * (action - 1) + 0.1 * state[:, 1]).clamp(-2, 2)
    reward = 2 - 3 * then[:, 0].abs() + 0.5 * state[:, 2]
    model = Deep()

    def loss(model: Deep, s: Tensor, a: Tensor, r: Tensor, s2: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = r + 0.5 * model.target(s2).amax(-1)
        return F.smooth_l1_loss(model.online(s).gather(1, a[:, None])[:, 0], wanted)

    optimizer = torch.optim.Adam(model.online.parameters(), lr=1e-3)
    data = batches(state, action, reward, then, size=128, seed=14)
    return Training(model, data, loss, optimizer, steps=300, step=copied)


FOLLOWING = Healthy(
    "ind8-following",
    {
        "mean-teacher": mean_teacher,
        "two-views": views,
        "distilled": distilled,
        "q-learning": q_learning,
    },
)


# --- parts that take turns --------------------------------------------------------------------


class Players(nn.Module):
    """A generator of short waves and its critic."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(6, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2),
            nn.Linear(48, 16),
        )  # fmt: skip
        self.critic = nn.Sequential(
            nn.Linear(16, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2),
            nn.Linear(48, 1),
        )  # fmt: skip


def fooling(model: Players, real: Tensor, noise: Tensor) -> Tensor:
    """What the generator lowers."""
    verdict = model.critic(model.generator(noise))
    return F.binary_cross_entropy_with_logits(verdict, torch.ones_like(verdict))


def in_turns(training: Training, step: int) -> dict[str, Any]:
    """First the critic on a detached forgery, then the generator."""
    model, (real, noise) = training.model, training.batch(step)
    (second,) = training.others
    verdict = model.critic(real)  # type: ignore[operator]
    exposed = model.critic(model.generator(noise).detach())  # type: ignore[operator]
    critic_loss = F.binary_cross_entropy_with_logits(verdict, torch.ones_like(verdict))
    critic_loss = critic_loss + F.binary_cross_entropy_with_logits(exposed, 0 * verdict)
    second.zero_grad()
    critic_loss.backward()
    second.step()
    training.optimizer.zero_grad()
    loss = training.loss(model, real, noise)
    loss.backward()
    training.optimizer.step()
    return {"loss": loss.detach(), "critic_loss": critic_loss.detach()}


def players() -> Training:
    torch.manual_seed(21)
    phase, size = 6.283 * torch.rand(2000, 1), 0.7 + 0.6 * torch.rand(2000, 1)
    real = size * torch.sin(6.283 * torch.arange(16) / 16 + phase)
    model = Players()
    first = torch.optim.Adam(model.generator.parameters(), lr=1e-3, betas=(0.5, 0.99))
    second = torch.optim.Adam(model.critic.parameters(), lr=1e-3, betas=(0.5, 0.99))
    data = batches(real, torch.randn(2000, 6), size=64, seed=21)
    return Training(model, data, fooling, first, steps=300, step=in_turns, others=[second])


class ActorCritic(nn.Module):
    """Two networks: which lever to pull in a situation, and what to expect there."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 4))
        self.critic = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 1))


def levers() -> Training:
    """Policy gradient with a detached advantage; each network has its own optimizer."""
    torch.manual_seed(22)
    best = torch.randn(5, 4)
    model = ActorCritic()

    def loss(model: ActorCritic, situation: Tensor) -> Tensor:
        policy = torch.distributions.Categorical(logits=model.actor(situation))
        pulled = policy.sample()
        pays = (situation @ best).gather(1, pulled[:, None])[:, 0]
        expected = model.critic(situation)[:, 0]
        gain = (pays - expected).detach()
        actor = -(policy.log_prob(pulled) * gain).mean() - 0.01 * policy.entropy().mean()
        return actor + 0.5 * F.mse_loss(expected, pays)

    def step(training: Training, at: int) -> dict[str, Any]:
        optimizers = [training.optimizer, *training.others]
        for optimizer in optimizers:
            optimizer.zero_grad()
        value = training.loss_at(at)
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
        return {"loss": value.detach()}

    acting = torch.optim.Adam(model.actor.parameters(), lr=5e-3)
    judging = torch.optim.Adam(model.critic.parameters(), lr=1e-2)
    data = batches(torch.randn(3000, 5), size=128, seed=22)
    return Training(model, data, loss, acting, steps=300, step=step, others=[judging])


class Factors(nn.Module):
    """Ratings out of two tables and a small network on top."""

    def __init__(self) -> None:
        super().__init__()
        self.people = nn.Embedding(150, 12, sparse=True)
        self.films = nn.Embedding(100, 12, sparse=True)
        self.top = nn.Sequential(nn.Linear(36, 32), nn.GELU(), nn.Linear(32, 1))

    def forward(self, person: Tensor, film: Tensor) -> Tensor:
        a, b = self.people(person), self.films(film)
        return self.top(torch.cat([a, b, a * b], -1))[:, 0]


def ratings() -> Training:
    """Sparse gradients for the tables, dense ones above, an optimizer for each kind."""
    torch.manual_seed(23)
    taste, kind = torch.randn(150, 3), torch.randn(100, 3)
    person, film = torch.randint(150, (6000,)), torch.randint(100, (6000,))
    stars = (taste[person] * kind[film]).sum(-1) + 0.3 * torch.randn(6000)
    model = Factors()

    def loss(model: nn.Module, person: Tensor, film: Tensor, stars: Tensor) -> Tensor:
        return F.mse_loss(model(person, film), stars)

    def step(training: Training, at: int) -> dict[str, Any]:
        value = training.loss_at(at)
        value.backward()
        for optimizer in (training.optimizer, *training.others):
            optimizer.step()
            optimizer.zero_grad()
        return {"loss": value.detach()}

    tables = [model.people.weight, model.films.weight]
    sparse = torch.optim.SparseAdam(tables, lr=2e-2)
    dense = torch.optim.AdamW(model.top.parameters(), lr=3e-3)
    data = batches(person, film, stars, size=128, seed=23)
    return Training(model, data, loss, dense, steps=300, step=step, others=[sparse])


TURNS = Healthy(
    "ind8-in-turns",
    {"players": players, "levers": levers, "ratings": ratings},
    flat={
        "players": "the generator's loss depends on how good the critic has become",
        "levers": "a policy gradient's loss is no measure of the reward",
    },
)


# --- parts that work now and then, or with little weight ---------------------------------------


class SkippingBlock(nn.Module):
    def __init__(self, width: int, keep: float) -> None:
        super().__init__()
        self.keep = keep
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and float(torch.rand(())) > self.keep:
            return x
        return x + self.down(F.gelu(self.up(self.norm(x))))


def skipping() -> Training:
    """Stochastic depth: in every step some blocks are left out by chance."""
    torch.manual_seed(31)
    images, kinds = digits()
    blocks = [SkippingBlock(48, keep) for keep in (0.95, 0.9, 0.85, 0.8)]
    model = nn.Sequential(nn.Linear(64, 48), *blocks, nn.LayerNorm(48), nn.Linear(48, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.05)
    data = batches(images.flatten(1), kinds, size=48, seed=31)
    return Training(model, data, cross_entropy, optimizer, steps=250)


class Switch(nn.Module):
    """Each sample goes to one expert, whose answer is multiplied by its probability."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 24)
        self.router = nn.Linear(24, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 24)) for _ in range(3)
        )
        self.leave = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.gelu(self.enter(x))
        shares = self.router(h).softmax(-1)
        most, chosen = shares.max(-1)
        found = torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero()[:, 0]
            if len(rows):
                found = found.index_add(0, rows, expert(h[rows]) * most[rows, None])
        load = F.one_hot(chosen, 3).float().mean(0)
        balance = 3 * (load * shares.mean(0)).sum()
        return self.leave(h + found)[:, 0], balance


def switch() -> Training:
    torch.manual_seed(32)
    x = torch.randn(2000, 6)
    y = torch.where(x[:, 0] > 0, x[:, 1] * x[:, 2], 2 * x[:, 3].sin() + x[:, 4])
    model = Switch()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out, balance = model(x)
        return F.mse_loss(out, y) + 0.02 * balance

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, batches(x, y, size=96, seed=32), loss, optimizer, steps=300)


class Carrying(nn.Module):
    """An LSTM cell by cell; its state is carried from piece to piece without its history."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 24)
        self.cell = nn.LSTMCell(24, 64)
        self.out = nn.Linear(64, 12)

    def forward(
        self, tokens: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        outs = []
        for x in self.embed(tokens).unbind(1):
            state = self.cell(x, state)
            outs.append(self.out(state[0]))
        return torch.stack(outs, 1), state


def pieces() -> Training:
    """Long texts in pieces of twelve letters."""
    torch.manual_seed(33)
    text = grammar(32, 12 * 50 + 1, seed=33)
    model = Carrying()
    carried: dict[int, tuple[Tensor, Tensor]] = {}

    def batch(step: int) -> tuple[Tensor, ...]:
        at = 12 * (step % 50)
        if at == 0 or step - 1 not in carried:
            carried[step - 1] = (torch.zeros(32, 64), torch.zeros(32, 64))
        return text[:, at : at + 12], text[:, at + 1 : at + 13], torch.tensor(step)

    def loss(model: nn.Module, tokens: Tensor, wanted: Tensor, step: Tensor) -> Tensor:
        out, (h, c) = model(tokens, carried[int(step) - 1])
        carried[int(step)] = (h.detach(), c.detach())
        return F.cross_entropy(out.flatten(0, 1), wanted.flatten())

    optimizer = torch.optim.RMSprop(model.parameters(), lr=3e-3)
    return Training(model, batch, loss, optimizer, steps=250, clip=1.0)


class Side(nn.Module):
    """A CNN with a classifier half-way, whose loss counts for 0.3."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.high = nn.Sequential(
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        )  # fmt: skip
        self.side = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))
        self.main = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, 10))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        h = self.low(image)
        return self.main(self.high(h)), self.side(h) if self.training else None


def side() -> Training:
    torch.manual_seed(34)
    model = Side()

    def loss(model: nn.Module, image: Tensor, kind: Tensor) -> Tensor:
        main, aside = model(image)
        return F.cross_entropy(main, kind) + 0.3 * F.cross_entropy(aside, kind)

    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    return Training(model, batches(*digits(), size=48, seed=34), loss, optimizer, steps=120)


def tied() -> Training:
    """GPT-2 of the library: its embedding is its output layer, too."""
    torch.manual_seed(35)
    model = tiny_gpt()

    def loss(model: GPT2LMHeadModel, tokens: Tensor) -> Tensor:
        found: Tensor = model(tokens, labels=tokens).loss
        return found

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    return Training(
        model, batches(grammar(2000, 14, seed=35), size=24, seed=35), loss, optimizer, steps=150
    )


SOMETIMES = Healthy(
    "ind8-sometimes",
    {
        "skipping": skipping,
        "switch": switch,
        "pieces": pieces,
        "side": side,
        "tied": tied,
    },
)

THEMES = [RESTING, FOLLOWING, TURNS, SOMETIMES]
