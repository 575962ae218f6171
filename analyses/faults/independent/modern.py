"""Healthy runs of newer kinds: library transformers, adapters, stopped gradients, codes."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_parts import (
    classify,
    conv,
    digits,
    fit,
    flat_digits,
    keywords,
    mlp,
    next_token,
    seeded,
    shapes,
    text,
)
from analyses.faults.training import Batch, Training

ADAMW = torch.optim.AdamW


def _causal(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    scores = model(input_ids=x, use_cache=False).logits
    return F.cross_entropy(scores.flatten(0, 1), y.flatten())


def gpt2() -> Training:
    """A GPT-2 of two layers on a made-up language."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(201)
    config = GPT2Config(
        vocab_size=20, n_positions=24, n_embd=48, n_layer=2, n_head=4, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return fit(GPT2LMHeadModel(config), next_token, _causal, lr=3e-3, steps=120, how=ADAMW)


def _masked_text(step: int) -> Batch:
    tokens = text(step, 32, 16, 16)
    hidden = torch.rand(32, 16, generator=seeded(step, 201)) < 0.15
    return tokens.masked_fill(hidden, 16), tokens.masked_fill(~hidden, -100)


def _fill_in(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(input_ids=x).logits.flatten(0, 1), y.flatten())


def bert() -> Training:
    """A BERT of two layers fills in masked tokens; the rate warms up and falls."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(202)
    config = BertConfig(
        vocab_size=17, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=96, max_position_embeddings=16, hidden_dropout_prob=0.05,
        attention_probs_dropout_prob=0.05, initializer_range=0.1,
    )  # fmt: skip
    training = fit(BertForMaskedLM(config), _masked_text, _fill_in, lr=3e-3, steps=300, how=ADAMW)
    training.schedule = torch.optim.lr_scheduler.OneCycleLR(
        training.optimizer, max_lr=3e-3, total_steps=300, pct_start=0.1
    )
    return training


def _copies(step: int) -> Batch:
    tokens = torch.randint(2, 14, (32, 6), generator=seeded(step, 202))
    return tokens, tokens.sort(-1).values


def _seq2seq(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return model(input_ids=x, labels=y, use_cache=False).loss


def t5() -> Training:
    """A T5 of two layers either side sorts numbers."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(203)
    config = T5Config(
        vocab_size=14, d_model=48, d_kv=12, d_ff=96, num_layers=2, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    return fit(model, _copies, _seq2seq, lr=3e-3, steps=150, how=ADAMW, clip=1.0)


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, heads: int = 4, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = mlp(width, 2 * width, width, act=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.one(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.feed(self.two(x))


class Patches(nn.Module):
    """A vision transformer with a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 48, 4, 4)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, 48))
        self.places = nn.Parameter(0.02 * torch.randn(1, 17, 48))
        self.blocks = nn.Sequential(*[Block(48) for _ in range(3)])
        self.read = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(len(h), 1, 48), h], 1) + self.places
        return self.read(self.blocks(h)[:, 0])


def vision() -> Training:
    """Shapes by a vision transformer."""
    torch.manual_seed(204)
    return fit(Patches(), partial(shapes, n=48), classify, steps=200, how=ADAMW)


class Mixing(nn.Module):
    """A layer of an MLP-mixer."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = mlp(tokens, 32, tokens, act=nn.GELU)
        self.within = mlp(width, 64, width, act=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.one(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.two(x))


class Mixer(nn.Module):
    """Patches of digits, mixed in four layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 2, 2)
        self.layers = nn.Sequential(*[Mixing(16, 32) for _ in range(4)])
        self.read = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.layers(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


def mixer() -> Training:
    """Digits by an MLP-mixer."""
    torch.manual_seed(205)
    return fit(Mixer(), digits, classify, lr=2e-3, steps=120, how=ADAMW)


class Writer(nn.Module):
    """A language model with tied input and output embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 48)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.places = nn.Parameter(0.1 * torch.randn(20, 48))
        self.blocks = nn.Sequential(Block(48, causal=True), Block(48, causal=True))
        self.norm = nn.LayerNorm(48)
        self.read = nn.Linear(48, 20, bias=False)
        self.read.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.read(self.norm(self.blocks(self.embed(tokens) + self.places)))


class Adapted(nn.Module):
    """A fixed linear layer and a learned change of low rank."""

    def __init__(self, fixed: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.fixed = fixed
        self.down = nn.Parameter(torch.randn(rank, fixed.in_features) * fixed.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(fixed.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.fixed(x) + 2 * (x @ self.down.T @ self.up.T)


def _other_text(step: int) -> Batch:
    """The language with its alphabet turned round: next is what came before."""
    x, y = next_token(step)
    return y.flip(1), x.flip(1)


def adapters() -> Training:
    """A pretrained language model, frozen, learns another language by low-rank adapters."""
    torch.manual_seed(206)
    model = Writer()
    before = fit(model, next_token, classify, lr=3e-3)
    for step in range(80):
        before.step(before, step)
    model.requires_grad_(False)
    for block in model.blocks:
        assert isinstance(block, Block)
        block.qkv, block.out = Adapted(block.qkv), Adapted(block.out)  # type: ignore[assignment]
        block.feed[0] = Adapted(block.feed[0])  # type: ignore[arg-type]
    held = [p for p in model.parameters() if p.requires_grad]
    return fit(model, _other_text, classify, lr=5e-3, steps=200, held=held, how=ADAMW)


def _views(step: int) -> Batch:
    """Two views of digits: shifted by a pixel at most, and noisy."""
    images, _ = digits(step)
    g = seeded(step, 203)
    views = []
    for _ in range(2):
        dy, dx = torch.randint(-1, 2, (2,), generator=g).tolist()
        noise = 0.4 * torch.randn(images.shape, generator=g)
        views.append(images.roll((dy, dx), (2, 3)) + noise)
    return views[0], views[1]


class Bootstrap(nn.Module):
    """BYOL: an online network with a predictor, and a target that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(
            conv(1, 16), conv(16, 32, 2), nn.Flatten(), nn.Linear(512, 64), nn.BatchNorm1d(64),
            nn.ReLU(), nn.Linear(64, 24),
        )  # fmt: skip
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.predict = nn.Sequential(
            nn.Linear(24, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 24)
        )


def _bootstrap(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    assert isinstance(model, Bootstrap)
    found = model.predict(model.online(torch.cat([a, b])))
    with torch.no_grad():
        goal = model.target(torch.cat([b, a]))
    return 2 - 2 * F.cosine_similarity(found, goal).mean()


def _follow(training: Training, step: int) -> dict[str, Any]:
    model = training.model
    assert isinstance(model, Bootstrap)
    loss = training.loss_at(step)
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    training.optimizer.step()
    with torch.no_grad():
        for p, q in zip(model.online.parameters(), model.target.parameters(), strict=True):
            q.lerp_(p, 0.02)
    return {"loss": loss.detach()}


def bootstrap() -> Training:
    """Digits without labels, by BYOL."""
    torch.manual_seed(207)
    model = Bootstrap()
    held = [p for p in model.parameters() if p.requires_grad]
    return fit(model, _views, _bootstrap, steps=120, held=held, step=_follow)


class Codebook(nn.Module):
    """An autoencoder of images whose code is made of entries of a codebook."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.SiLU(),
            nn.Conv2d(32, 8, 1),
        )  # fmt: skip
        self.entries = nn.Parameter(0.5 * torch.randn(32, 8))
        self.decoder = nn.Sequential(
            nn.Conv2d(8, 32, 3, 1, 1), nn.SiLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        code = self.encoder(x).permute(0, 2, 3, 1)
        chosen = self.entries[torch.cdist(code.flatten(0, 2), self.entries).argmin(-1)]
        chosen = chosen.view_as(code)
        through = code + (chosen - code).detach()
        return self.decoder(through.permute(0, 3, 1, 2)), code, chosen


def _quantised(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    back, code, chosen = model(x)
    books = F.mse_loss(chosen, code.detach()) + 0.25 * F.mse_loss(code, chosen.detach())
    return F.mse_loss(back, x) + books


def quantised() -> Training:
    """Digits through a vector-quantised code."""
    torch.manual_seed(208)
    return fit(Codebook(), digits, _quantised, lr=2e-3, steps=250)


class Categories(nn.Module):
    """An autoencoder with a code of eight categorical variables."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = mlp(64, 128, 8 * 8, act=nn.ELU)
        self.decoder = mlp(8 * 8, 128, 64, act=nn.ELU)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.encoder(x).unflatten(-1, (8, 8))
        return self.decoder(F.gumbel_softmax(scores, tau=1.0, hard=True).flatten(1))


def _rebuild(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    return F.mse_loss(model(x), x)


def gumbel() -> Training:
    """Digits through categorical variables, drawn by the Gumbel trick."""
    torch.manual_seed(209)
    return fit(Categories(), flat_digits, _rebuild, lr=2e-3, steps=300)


class Binary(nn.Module):
    """A classifier with a layer of bits, passed straight through backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm = mlp(64, 96, 32, act=nn.ReLU), nn.LayerNorm(32)
        self.out = mlp(32, 64, 10, act=nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.into(x))
        return self.out(h + (h.sign() - h).detach())


def bits() -> Training:
    """Digits by way of thirty-two bits."""
    torch.manual_seed(210)
    return fit(Binary(), flat_digits, classify, lr=2e-3, steps=200)


def _agree(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    found = F.normalize(model(torch.cat([a, b])), dim=-1)
    likeness = found @ found.T / 0.2
    likeness = likeness.masked_fill(torch.eye(len(found), dtype=torch.bool), -1e9)
    return F.cross_entropy(likeness, torch.arange(len(found)).roll(len(a)))


def contrastive() -> Training:
    """Digits without labels, by SimCLR."""
    torch.manual_seed(211)
    model = nn.Sequential(
        conv(1, 24), conv(24, 48, 2), nn.Flatten(), nn.Linear(768, 64), nn.ReLU(), nn.Linear(64, 24)
    )
    return fit(model, _views, _agree, steps=120)


class Agent(nn.Module):
    """A dueling network and its older copy."""

    def __init__(self) -> None:
        super().__init__()
        self.now = Dueling()
        self.old = copy.deepcopy(self.now).requires_grad_(False)


class Dueling(nn.Module):
    """Value and advantages, added."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(4, 64, 64, act=nn.SiLU)
        self.value, self.advantage = mlp(64, 32, 1, act=nn.SiLU), mlp(64, 32, 3, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.body(x))
        advantage = self.advantage(h)
        return self.value(h) + advantage - advantage.mean(-1, keepdim=True)


def _moves(step: int) -> Batch:
    """A point in the plane (and its goal) is moved left, right or up; nearness is rewarded."""
    g = seeded(step, 204)
    x = 2 * torch.rand(96, 4, generator=g) - 1
    action = torch.randint(3, (96,), generator=g)
    step_by = torch.tensor([[-0.3, 0.0], [0.3, 0.0], [0.0, 0.3]])[action]
    after = torch.cat([x[:, :2] + step_by, x[:, 2:]], 1)
    reward = 1 - (after[:, :2] - after[:, 2:]).square().sum(-1)
    return x, action, reward, after


def _bellman(model: nn.Module, x: Tensor, action: Tensor, reward: Tensor, after: Tensor) -> Tensor:
    assert isinstance(model, Agent)
    with torch.no_grad():
        best = model.now(after).argmax(-1, keepdim=True)
        goal = reward + 0.5 * model.old(after).gather(1, best)[:, 0]
    return F.smooth_l1_loss(model.now(x).gather(1, action[:, None])[:, 0], goal)


def _renew(training: Training, step: int) -> dict[str, Any]:
    model = training.model
    assert isinstance(model, Agent)
    if step % 25 == 0:
        model.old.load_state_dict(model.now.state_dict())
    training.optimizer.zero_grad()
    loss = training.loss_at(step)
    loss.backward()
    nn.utils.clip_grad_norm_(model.now.parameters(), 10.0)
    training.optimizer.step()
    return {"loss": loss.detach()}


def agent() -> Training:
    """Double, dueling Q-learning with a target network."""
    torch.manual_seed(212)
    model = Agent()
    return fit(model, _moves, _bellman, steps=300, held=model.now.parameters(), step=_renew)


class Experts(nn.Module):
    """Four experts; each token goes to the two that its gate prefers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 4, bias=False)
        self.experts = nn.ModuleList([mlp(width, 48, width, act=nn.SiLU) for _ in range(4)])
        self.load = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        p = self.gate(x).softmax(-1)
        best, which = p.topk(2, -1)
        weights = torch.zeros_like(p).scatter(-1, which, best / best.sum(-1, keepdim=True))
        used = (weights > 0).float().flatten(0, -2).mean(0)
        self.load = 4 * (used * p.flatten(0, -2).mean(0)).sum()
        every = torch.stack([expert(x) for expert in self.experts], -1)
        return x + (every * weights.unsqueeze(-2)).sum(-1)


class Routed(nn.Module):
    """Attention, then experts, twice; the mean over tokens is read."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 32)
        self.mix = nn.ModuleList([Block(32) for _ in range(2)])
        self.route = nn.ModuleList([Experts(32) for _ in range(2)])
        self.norm, self.read = nn.LayerNorm(32), nn.Linear(32, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        for mix, route in zip(self.mix, self.route, strict=True):
            h = route(mix(h))
        return self.read(self.norm(h).mean(1))


def _balanced(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    assert isinstance(model, Routed)
    loss = F.cross_entropy(model(x), y)
    for layer in model.route:
        assert isinstance(layer, Experts)
        loss = loss + 0.01 * layer.load
    return loss


def experts() -> Training:
    """Keywords by a transformer with a mixture of experts and a loss that balances them."""
    torch.manual_seed(213)
    return fit(Routed(), keywords, _balanced, lr=2e-3, steps=150, how=ADAMW)


def _margin(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.multi_margin_loss(4 * model(x), y)


def lipschitz() -> Training:
    """Digits by layers of spectral norm one and a margin."""
    torch.manual_seed(214)
    norm = nn.utils.parametrizations.spectral_norm
    model = nn.Sequential(
        norm(nn.Conv2d(1, 32, 3, 1, 1)), nn.LeakyReLU(0.2), nn.AvgPool2d(2),
        norm(nn.Conv2d(32, 32, 3, 1, 1)), nn.LeakyReLU(0.2), nn.Flatten(),
        norm(nn.Linear(512, 64)), nn.LeakyReLU(0.2), norm(nn.Linear(64, 10)),
    )  # fmt: skip
    return fit(model, digits, _margin, lr=2e-3, steps=120)


MODERN = Healthy(
    "ind-healthy-modern",
    {
        "gpt2": gpt2,
        "bert": bert,
        "t5": t5,
        "vision": vision,
        "mixer": mixer,
        "adapters": adapters,
        "bootstrap": bootstrap,
        "contrastive": contrastive,
        "quantised": quantised,
        "gumbel": gumbel,
        "bits": bits,
        "agent": agent,
        "experts": experts,
        "lipschitz": lipschitz,
    },
)

THEMES: list[Healthy] = [MODERN]
