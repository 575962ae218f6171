"""Signals between layers of attention: narrow waists, decay, growth, and steps too large."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_tenth_a import (
    LETTERS,
    digits,
    letters,
    marked,
    rng,
    sequences,
)
from analyses.faults.symptoms import decays, grows, learns_less, overshoots
from analyses.faults.training import Batch, Training

SPLITS = ("test",)


# ------------------------------------------------------------------------------- narrow waists


class Pooled(nn.Module):
    """Encoder, and a decoder whose places look at what it says: all of it, or a summary."""

    def __init__(self, pool: bool, width: int = 48, n: int = 20) -> None:
        super().__init__()
        self.pool = pool
        self.embed = nn.Embedding(16, width)
        self.place = nn.Parameter(torch.randn(n, width) * 0.7)
        self.ask = nn.Parameter(torch.randn(n, width) * 0.7)
        self.encode = nn.TransformerEncoderLayer(
            width, 2, 96, dropout=0.0, batch_first=True, norm_first=True
        )
        self.decode = nn.TransformerDecoderLayer(
            width, 2, 96, dropout=0.0, batch_first=True, norm_first=True
        )
        self.summary = nn.Sequential(nn.Linear(width, 4), nn.Linear(4, 4 * width))
        self.summary.requires_grad_(pool)
        self.head = nn.Linear(width, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encode(self.embed(x) + self.place)
        if self.pool:
            h = self.summary(h.mean(1)).unflatten(-1, (4, -1))
        return self.head(self.decode(self.ask.expand(len(x), -1, -1), h))


def seq_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def pooled(pool: bool = False) -> Training:
    torch.manual_seed(1)
    model = Pooled(pool)
    return Training(
        model,
        lambda step: sequences(step, 24, 20, 16),
        seq_loss,
        torch.optim.Adam(model.parameters(), 2e-3),
        steps=250,
    )


class Attend(nn.Module):
    """Attention with a residual, from one set to another, by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.o = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        k, v = self.kv(memory).chunk(2, dim=-1)
        w = F.softmax(torch.bmm(self.q(x), k.transpose(1, 2)) * k.shape[-1] ** -0.5, dim=-1)
        return F.layer_norm(x + self.o(torch.bmm(w, v)), x.shape[-1:])


class Latents(nn.Module):
    """Reads patches into latents, and writes an image from them, place by place."""

    def __init__(self, latents: int, width: int = 48) -> None:
        super().__init__()
        self.patch = nn.Linear(4, width)
        self.places = nn.Parameter(torch.randn(16, width) * 0.5)
        self.latents = nn.Parameter(torch.randn(latents, width) * 0.5)
        self.asks = nn.Parameter(torch.randn(16, width) * 0.5)
        self.read, self.write = Attend(width), Attend(width)
        self.thin = nn.Linear(width, 1) if latents < 4 else nn.Identity()
        self.wide = nn.Linear(1, width) if latents < 4 else nn.Identity()
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        p = self.patch(x) + self.places
        z = self.read(self.latents.expand(len(x), -1, -1), p)
        z = self.wide(self.thin(z))
        return self.out(self.write(self.asks.expand(len(x), -1, -1), z))


def patches(step: int, batch: int = 48) -> Tensor:
    images, _ = digits(step, batch)
    return images.unfold(1, 2, 2).unfold(2, 2, 2).reshape(batch, 16, 4)


def rebuild(model: nn.Module, x: Tensor) -> Tensor:
    return F.mse_loss(model(x), x)


def latents(count: int = 16) -> Training:
    torch.manual_seed(2)
    model = Latents(count)
    return Training(
        model,
        lambda step: (patches(step),),
        rebuild,
        torch.optim.AdamW(model.parameters(), 3e-3),
        steps=400,
        every=10,
    )


class Squeezed(nn.Module):
    """Two library layers with something between them."""

    def __init__(self, waist: int, width: int = 64) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(14, width), nn.Embedding(18, width)
        one, two = (
            nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
            for _ in range(2)
        )
        self.one, self.two = one, two
        self.between = (
            nn.Sequential(nn.Linear(width, waist), nn.Linear(waist, width))
            if waist
            else nn.Linear(width, width)
        )
        self.head = nn.Linear(width, 14)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(self.embed(x) + self.place(torch.arange(x.shape[1])))
        return self.head(self.two(self.between(h)))


def squeezed(waist: int = 0) -> Training:
    torch.manual_seed(3)
    model = Squeezed(waist)
    return Training(
        model,
        lambda step: sequences(step, 24, 18, 14),
        seq_loss,
        torch.optim.Adam(model.parameters(), 1e-3),
        steps=250,
    )


class Captioner(nn.Module):
    """Self-attention over an image's rows; one vector of it starts a decoder with attention."""

    def __init__(self, whole: bool, width: int = 40) -> None:
        super().__init__()
        self.whole = whole
        self.rows = nn.Linear(8, width)
        self.place = nn.Parameter(torch.randn(24, width) * 0.5)
        self.look = nn.MultiheadAttention(width, 2, batch_first=True)
        self.asks = nn.Parameter(torch.randn(24, width) * 0.5)
        self.sum = nn.Linear(width, 1)
        self.norm = nn.LayerNorm(width)
        self.mix = nn.MultiheadAttention(width, 2, batch_first=True)
        self.out = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.rows(x) + self.place
        h = self.norm(h + self.look(h, h, h, need_weights=False)[0])
        if not self.whole:
            h = torch.einsum("bnd,bn->bd", h, self.sum(h).squeeze(-1).softmax(1)).unsqueeze(1)
        q = h + self.asks
        return self.out(q + self.mix(q, q, q, need_weights=False)[0])


def triples(step: int) -> Batch:
    """Three digits under each other; each row is to say which digit it belongs to."""
    images, labels = digits(step, 72)
    return images.reshape(24, 24, 8), labels.reshape(24, 3).repeat_interleave(8, 1)


def captioner(whole: bool = True) -> Training:
    torch.manual_seed(4)
    model = Captioner(whole)
    return Training(model, triples, seq_loss, torch.optim.Adam(model.parameters(), 3e-3), steps=300)


NARROW = Fault(
    "ind10-attention-narrow",
    must=[["information-bottleneck"]],
    symptom=learns_less(0.1),
    variants=[
        Variant("summary-of-the-encoder", pooled, broken=partial(pooled, True)),
        Variant(
            "three-thin-latents", latents, broken=partial(latents, 3), symptom=learns_less(0.05)
        ),
        Variant("two-features-between", squeezed, broken=partial(squeezed, 2)),
        Variant("pooled-before-rows", captioner, broken=partial(captioner, False)),
    ],
)


# ------------------------------------------------------------------------- signals that die away


class Plain(nn.Module):
    """Attention and a squashing layer, over and over, with or without the residuals."""

    def __init__(self, residual: bool, layers: int = 8, width: int = 32) -> None:
        super().__init__()
        self.residual = residual
        self.embed, self.flag = nn.Embedding(10, width), nn.Embedding(2, width)
        self.attends = nn.ModuleList(
            nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(layers)
        )
        self.ff = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor, flag: Tensor) -> Tensor:
        h = self.embed(x) + self.flag(flag)
        for attend, ff in zip(self.attends, self.ff, strict=True):
            if self.residual:
                n = F.layer_norm(h, h.shape[-1:])
                h = h + attend(n, n, n, need_weights=False)[0]
                h = h + torch.sigmoid(ff(F.layer_norm(h, h.shape[-1:])))
            else:
                h = torch.sigmoid(ff(attend(h, h, h, need_weights=False)[0]))
        return self.head(h.mean(1))


def mark_loss(model: nn.Module, x: Tensor, flag: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x, flag), y)


def plain(residual: bool = True) -> Training:
    torch.manual_seed(5)
    model = Plain(residual)
    return Training(
        model,
        lambda step: marked(step, 24, 12, 10),
        mark_loss,
        torch.optim.Adam(model.parameters(), 1e-3),
        steps=250,
    )


class Averaged(nn.Module):
    """Deep image transformer whose residuals are averaged rather than added."""

    def __init__(self, share: float, layers: int = 14, width: int = 32) -> None:
        super().__init__()
        self.share = share
        self.patch = nn.Linear(4, width)
        self.place = nn.Parameter(torch.randn(16, width) * 0.3)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.ff = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
            for _ in range(layers)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x) + self.place
        for qkv, ff in zip(self.qkv, self.ff, strict=True):
            q, k, v = qkv(h).chunk(3, dim=-1)
            h = self.share * (h + 0.3 * torch.softmax(q @ k.mT / 32**0.5, dim=-1) @ v)
            h = self.share * (h + 0.3 * ff(h))
        return self.head(h.mean(1))


def patch_batch(step: int) -> Batch:
    return patches(step, 32), digits(step, 32)[1]


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def averaged(share: float = 1.0) -> Training:
    torch.manual_seed(6)
    model = Averaged(share)
    return Training(
        model,
        patch_batch,
        classify,
        torch.optim.Adam(model.parameters(), 2e-3),
        steps=150,
    )


class LastState(nn.Module):
    """Recurrent encoder step by step; a head of attention reads its last states or all."""

    def __init__(self, reach: int, gain: float, width: int = 48) -> None:
        super().__init__()
        self.reach = reach
        self.embed = nn.Embedding(8, width)
        self.cell = nn.RNNCell(width, width)
        nn.init.orthogonal_(self.cell.weight_hh, gain)
        self.ask = nn.Parameter(torch.randn(width) * 0.3)
        self.key = nn.Linear(width, width)
        self.head = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), self.ask.shape[0])
        states = []
        for one in self.embed(x).unbind(1):
            h = self.cell(one, h)
            states.append(h)
        s = torch.stack(states[-self.reach :], 1)
        w = (self.key(s) @ self.ask).softmax(1)
        return self.head((w.unsqueeze(-1) * s).sum(1))


def first_token(step: int) -> Batch:
    x = torch.randint(8, (32, 30), generator=rng(step, 31))
    return x, x[:, 0]


def last_state(reach: int = 30, gain: float = 1.0) -> Training:
    torch.manual_seed(7)
    model = LastState(reach, gain)
    return Training(
        model,
        first_token,
        classify,
        torch.optim.Adam(model.parameters(), 2e-3),
        steps=200,
    )


VANISHING = Fault(
    "ind10-attention-vanishing",
    must=[["vanishing-gradient"]],
    symptom=decays(2.5),
    variants=[
        Variant(
            "no-residuals",
            plain,
            broken=partial(plain, False),
            may=["diffuse-softmax", "no-update", "starved-pathway"],
        ),
        Variant(
            "averaged-residuals",
            averaged,
            broken=partial(averaged, 0.5),
            may=["diffuse-softmax", "no-update", "starved-pathway"],
        ),
        Variant(
            "recurrence-under-attention",
            last_state,
            broken=partial(last_state, 3, 0.4),
            symptom=decays(2.5, "cell"),
        ),
    ],
)


# ------------------------------------------------------------------------------ signals that grow


class Unnormed(nn.Module):
    """Residual blocks of attention without norms; their outputs are scaled by a gain."""

    def __init__(self, gain: float, layers: int = 8, width: int = 32) -> None:
        super().__init__()
        self.gain = gain
        self.embed, self.place = nn.Embedding(12, width), nn.Embedding(14, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "q": nn.Linear(width, width),
                    "k": nn.Linear(width, width),
                    "v": nn.Linear(width, width),
                    "up": nn.Linear(width, 64),
                    "down": nn.Linear(64, width),
                }
            )
            for _ in range(layers)
        )
        self.head = nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place(torch.arange(x.shape[1]))
        for b in self.blocks:
            assert isinstance(b, nn.ModuleDict)
            q, k = F.normalize(b["q"](h), dim=-1), F.normalize(b["k"](h), dim=-1)
            h = h + self.gain * (torch.softmax(4 * q @ k.mT, dim=-1) @ b["v"](h))
            h = h + self.gain * b["down"](F.relu(b["up"](h)))
        return self.head(h)


def shifted(step: int) -> Batch:
    x = torch.randint(12, (24, 14), generator=rng(step, 32))
    return x, x.roll(1, 1)


def unnormed(gain: float = 0.3) -> Training:
    torch.manual_seed(8)
    model = Unnormed(gain)
    return Training(
        model,
        shifted,
        seq_loss,
        torch.optim.Adam(model.parameters(), 2e-3),
        steps=200,
        clip=1.0,
    )


class Recurring(nn.Module):
    """One layer applied again and again to a grid of image patches, then attention pooling."""

    def __init__(self, gain: float, times: int = 10, width: int = 36) -> None:
        super().__init__()
        self.gain, self.times = gain, times
        self.patch = nn.Linear(4, width)
        self.place = nn.Parameter(torch.randn(16, width) * 0.3)
        self.attend = nn.MultiheadAttention(width, 3, batch_first=True)
        self.step = nn.Linear(width, width)
        nn.init.orthogonal_(self.step.weight, gain)
        self.score = nn.Linear(width, 1)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x) + self.place
        h = h + self.attend(h, h, h, need_weights=False)[0]
        for _ in range(self.times):
            h = F.leaky_relu(self.step(h), 0.6)
        pool = self.score(F.layer_norm(h, h.shape[-1:])).softmax(1)
        return self.head((pool * h).sum(1))


def recurring(gain: float = 1.2) -> Training:
    torch.manual_seed(9)
    model = Recurring(gain)
    return Training(
        model,
        patch_batch,
        classify,
        torch.optim.Adam(model.parameters(), 1e-3),
        steps=200,
    )


GROWING = Fault(
    "ind10-attention-growing",
    must=[["exploding-gradient"]],
    symptom=grows(2),
    variants=[
        Variant(
            "blocks-without-norm",
            unnormed,
            broken=partial(unnormed, 5.0),
            may=["diffuse-softmax"],
        ),
        Variant("layer-again-and-again", recurring, broken=partial(recurring, 4.0)),
    ],
)


# ------------------------------------------------------------------------------- steps too large


class Classifier(nn.Module):
    """Library encoder over tokens, mean, linear."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed, self.flag = nn.Embedding(10, width), nn.Embedding(2, width)
        layer = nn.TransformerEncoderLayer(width, 4, 96, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor, flag: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x) + self.flag(flag)).mean(1))


def encoder(lr: float = 1e-3) -> Training:
    torch.manual_seed(10)
    model = Classifier()
    return Training(
        model,
        lambda step: marked(step, 32, 12, 10),
        mark_loss,
        torch.optim.Adam(model.parameters(), lr),
        steps=200,
    )


def gpt(lr: float = 2e-3) -> Training:
    torch.manual_seed(11)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(LETTERS),
            n_positions=40,
            n_embd=48,
            n_layer=2,
            n_head=4,
            bos_token_id=0,
            eos_token_id=1,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation="eager",
            use_cache=False,
        )
    )
    return Training(
        model,
        lambda step: letters(step, 16, 32),
        gpt_loss,
        torch.optim.AdamW(model.parameters(), lr),
        steps=150,
    )


def gpt_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).logits.transpose(1, 2), y)


class Vit(nn.Module):
    """Pre-norm image transformer with a class token."""

    def __init__(self, width: int = 40, layers: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, 2)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(torch.randn(17, width) * 0.1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.attends = nn.ModuleList(
            nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(layers)
        )
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 80), nn.GELU(), nn.Linear(80, width))
            for _ in range(layers)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x.unsqueeze(1)).flatten(2).mT
        h = torch.cat([self.cls.expand(len(x), -1, -1), h], 1) + self.place
        for i, (attend, mlp) in enumerate(zip(self.attends, self.mlps, strict=True)):
            n = self.norms[2 * i](h)
            h = h + attend(n, n, n, need_weights=False)[0]
            h = h + mlp(self.norms[2 * i + 1](h))
        return self.head(h[:, 0])


def vit(lr: float = 0.02) -> Training:
    torch.manual_seed(12)
    model = Vit()
    return Training(
        model,
        lambda step: digits(step, 32),
        classify,
        torch.optim.Adagrad(model.parameters(), lr),
        steps=150,
    )


LEAPS = Fault(
    "ind10-attention-leaps",
    must=[["update-too-large"]],
    symptom=overshoots(),
    variants=[
        Variant(
            "encoder-adam",
            encoder,
            broken=partial(encoder, 0.05),
            may=["dead-units", "vanishing-gradient", "diffuse-softmax", "peaked-softmax"],
        ),
        Variant(
            "gpt-adamw",
            gpt,
            broken=partial(gpt, 0.1),
            may=["saturated-activation", "peaked-softmax"],
        ),
        Variant(
            "vit-adagrad",
            vit,
            broken=partial(vit, 2.0),
            may=["vanishing-gradient", "peaked-softmax"],
        ),
    ],
)

FAULTS = [NARROW, VANISHING, GROWING, LEAPS]
