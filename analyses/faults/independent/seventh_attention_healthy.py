"""Attention that works, of many sorts."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent import kit_seventh_attention as kit
from analyses.faults.training import Training


def classified(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def next_token(model: nn.Module, tokens: Tensor, following: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens).transpose(1, 2), following)


def answered(model: nn.Module, key: Tensor, value: Tensor, ask: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(key, value, ask), y)


def warmed(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / steps))


class PatchViT(nn.Module):
    """Fused attention on patches, a class token, pre-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(4, 48)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, 48))
        self.place = nn.Parameter(0.3 * torch.randn(17, 48))
        self.qkv = nn.ModuleList(nn.Linear(48, 144) for _ in range(3))
        self.proj = nn.ModuleList(nn.Linear(48, 48) for _ in range(3))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48))
            for _ in range(3)
        )
        self.norm = nn.ModuleList(nn.LayerNorm(48) for _ in range(4))
        self.head = nn.Linear(48, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch(kit.patches(pixels))
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.place
        for i in range(3):
            q, k, v = (kit.heads(t, 3) for t in self.qkv[i](self.norm[i](x)).chunk(3, -1))
            x = x + self.proj[i](kit.joined(F.scaled_dot_product_attention(q, k, v)))
            x = x + self.mlp[i](x)
        return self.head(self.norm[3](x)[:, 0])


def patch_vit() -> Training:
    torch.manual_seed(1)
    model = PatchViT()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    return Training(
        model,
        partial(kit.digits, batch=48),
        classified,
        optimizer,
        steps=200,
        every=10,
        schedule=warmed(optimizer, 20),
        clip=1.0,
    )


class LibraryLM(nn.Module):
    """The library's encoder with a causal mask, post-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(10, 48), nn.Embedding(24, 48)
        layer = nn.TransformerEncoderLayer(48, 4, 96, 0.0, "gelu", batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(48, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[1]
        x = self.embed(tokens) + self.place.weight[:n]
        return self.head(self.body(x, mask=kit.causal(n)))


def library_lm() -> Training:
    torch.manual_seed(2)
    model = LibraryLM()
    return Training(
        model,
        partial(kit.repeats, batch=32, length=24, period=6, vocab=10),
        next_token,
        torch.optim.Adam(model.parameters(), 2e-3),
        steps=200,
        every=10,
    )


class Pointer(nn.Module):
    """A GRU decodes by pointing at the encoder's places: sorts numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(1, 48)
        self.encode = nn.GRU(48, 48, batch_first=True)
        self.cell = nn.GRUCell(48, 48)
        self.begin = nn.Parameter(torch.zeros(48))
        self.place, self.state = nn.Linear(48, 48), nn.Linear(48, 48)
        self.energy = nn.Linear(48, 1)

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        lifted = self.lift(x.unsqueeze(-1))
        places, last = self.encode(lifted)
        h, given, said = last[0], self.begin.expand(len(x), -1), []
        for step in range(x.shape[1]):
            h = self.cell(given, h)
            energy = torch.tanh(self.place(places + lifted) + self.state(h).unsqueeze(1))
            said.append(self.energy(energy).squeeze(-1))
            given = lifted[torch.arange(len(x)), order[:, step]]
        return torch.stack(said, 1)


def unsorted(step: int) -> tuple[Tensor, Tensor]:
    x = 2 * torch.rand(64, 6, generator=kit.generator(step, 20)) - 1
    return x, x.argsort(1)


def pointer_loss(model: nn.Module, x: Tensor, order: Tensor) -> Tensor:
    return F.cross_entropy(model(x, order).flatten(0, 1), order.flatten())


def pointer() -> Training:
    torch.manual_seed(3)
    model = Pointer()
    return Training(
        model,
        unsorted,
        pointer_loss,
        torch.optim.Adam(model.parameters(), 1.5e-3),
        steps=250,
        every=10,
    )


class GraphAttention(nn.Module):
    """Two layers of attention over neighbours on a fixed graph."""

    near: Tensor

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(4)
        near = torch.rand(30, 30, generator=g) < 0.15
        self.register_buffer("near", near | near.T | torch.eye(30, dtype=torch.bool))
        self.lift = nn.ModuleList([nn.Linear(6, 32), nn.Linear(32, 32)])
        self.source = nn.ModuleList(nn.Linear(32, 4) for _ in range(2))
        self.goal = nn.ModuleList(nn.Linear(32, 4) for _ in range(2))
        self.own = nn.ModuleList([nn.Linear(6, 32), nn.Linear(32, 32)])
        self.out = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        for lift, source, goal, own in zip(
            self.lift, self.source, self.goal, self.own, strict=True
        ):
            h = lift(x)
            score = F.leaky_relu(source(h).unsqueeze(2) + goal(h).unsqueeze(1), 0.2)
            score = score.masked_fill(~self.near.unsqueeze(-1), -1e9).permute(0, 3, 1, 2)
            x = F.elu(kit.joined(score.softmax(-1) @ kit.heads(h, 4)) + own(x))
        return self.out(x).squeeze(-1)


def neighbours(step: int) -> tuple[Tensor]:
    return (torch.randn(16, 30, 6, generator=kit.generator(step, 21)),)


def strongest(model: GraphAttention, x: Tensor) -> Tensor:
    """A node is to tell the largest first number among its neighbours."""
    first = x[..., 0].unsqueeze(1).expand(-1, 30, -1)
    return F.mse_loss(model(x), first.masked_fill(~model.near, -9.0).amax(-1))


def graph_attention() -> Training:
    torch.manual_seed(4)
    model = GraphAttention()
    return Training(
        model,
        neighbours,
        strongest,
        torch.optim.Adam(model.parameters(), 5e-3),
        steps=250,
        every=10,
    )


class Linearised(nn.Module):
    """Attention without a softmax: elu + 1 as the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(8, 64), nn.Embedding(5, 64)
        self.wq, self.wk = nn.Linear(64, 64), nn.Linear(64, 64)
        self.wv, self.wo = nn.Linear(64, 64), nn.Linear(64, 64)
        self.head = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 5))

    def forward(self, key: Tensor, value: Tensor, question: Tensor) -> Tensor:
        k = F.elu(self.wk(self.key(key))) + 1
        q = F.elu(self.wq(self.key(question))) + 1
        memory = torch.einsum("bnd,bne->bde", k, self.wv(self.value(value)))
        total = torch.einsum("bd,bnd->b", q, k).unsqueeze(-1)
        return self.head(self.wo(torch.einsum("bd,bde->be", q, memory) / total))


def linearised() -> Training:
    torch.manual_seed(5)
    model = Linearised()
    return Training(
        model,
        partial(kit.recall, batch=64, items=5, keys=8, values=5),
        answered,
        torch.optim.AdamW(model.parameters(), 3e-3),
        steps=250,
        every=10,
    )


class Segments(nn.Module):
    """Attention that also sees the previous segment's states, which are kept without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 48)
        self.bias = nn.Parameter(torch.zeros(4, 48))
        self.norm = nn.LayerNorm(48)
        self.q, self.kv, self.o = nn.Linear(48, 48), nn.Linear(48, 96), nn.Linear(48, 48)
        self.feed = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 48))
        self.head = nn.Linear(48, 10)

    def forward(self, tokens: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.embed(tokens)
        context = x if memory is None else torch.cat([memory, x], 1)
        n, m = x.shape[1], context.shape[1]
        q = kit.heads(self.q(self.norm(x)), 4)
        k, v = (kit.heads(t, 4) for t in self.kv(self.norm(context)).chunk(2, -1))
        far = (torch.arange(m - n, m)[:, None] - torch.arange(m)[None]).clamp(min=0)
        score = q @ k.mT / math.sqrt(12) + self.bias[:, far]
        score = score.masked_fill(torch.ones(n, m).triu(m - n + 1).bool(), -torch.inf)
        y = x + self.o(kit.joined(score.softmax(-1) @ v))
        return self.head(y + self.feed(y)), x.detach()


def segments_loss(model: nn.Module, tokens: Tensor, following: Tensor) -> Tensor:
    losses, memory = [], None
    for part, goal in zip(tokens.chunk(2, 1), following.chunk(2, 1), strict=True):
        logits, memory = model(part, memory)
        losses.append(F.cross_entropy(logits.flatten(0, 1), goal.flatten()))
    return torch.stack(losses).mean()


def segments() -> Training:
    torch.manual_seed(6)
    model = Segments()
    return Training(
        model,
        partial(kit.repeats, batch=32, length=24, period=5, vocab=10),
        segments_loss,
        torch.optim.AdamW(model.parameters(), 4e-3),
        steps=250,
        every=10,
    )


class Experts(nn.Module):
    """A soft mixture of experts behind a softmax router, on digits."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(64, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        share = F.softmax(self.router(x), -1)
        return torch.einsum("be,bec->bc", share, torch.stack([e(x) for e in self.experts], 1))


def experts() -> Training:
    torch.manual_seed(7)
    model = Experts()
    return Training(
        model,
        partial(kit.digits, batch=64),
        classified,
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        steps=200,
        every=5,
    )


class Attentive(nn.Module):
    """A bidirectional LSTM under attention pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.LSTM(12, 24, batch_first=True, bidirectional=True)
        self.pool = nn.Sequential(nn.Linear(48, 24), nn.Tanh(), nn.Linear(24, 1))
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.read(x)
        share = torch.softmax(self.pool(states).squeeze(-1), -1)
        return self.head(torch.bmm(share.unsqueeze(1), states).squeeze(1))


def attentive() -> Training:
    torch.manual_seed(8)
    model = Attentive()
    return Training(
        model,
        partial(kit.marked, batch=32, items=12, dim=12, classes=5),
        classified,
        torch.optim.Adam(model.parameters(), 1e-2),
        steps=150,
        every=5,
    )


class NormedHeads(nn.Module):
    """Queries and keys normalised, with a learnt scale of healthy size; two layers, rotary-free."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(12, 48), nn.Embedding(6, 48)
        self.asks = nn.Parameter(torch.randn(48))
        self.scale = nn.Parameter(torch.full((2, 4, 1, 1), 8.0))
        self.qkv = nn.ModuleList(nn.Linear(48, 144, bias=False) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(48, 48, bias=False) for _ in range(2))
        self.norm = nn.ModuleList(nn.RMSNorm(48) for _ in range(3))
        self.head = nn.Linear(48, 6)

    def forward(self, key: Tensor, value: Tensor, question: Tensor) -> Tensor:
        x = self.key(key) + self.value(value)
        x = torch.cat([(self.key(question) + self.asks).unsqueeze(1), x], 1)
        for i in range(2):
            q, k, v = (kit.heads(t, 4) for t in self.qkv[i](self.norm[i](x)).chunk(3, -1))
            score = self.scale[i] * (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT)
            x = x + self.out[i](kit.joined(score.softmax(-1) @ v))
        return self.head(self.norm[2](x[:, 0]))


def normed_heads() -> Training:
    torch.manual_seed(9)
    model = NormedHeads()
    return Training(
        model,
        partial(kit.recall, batch=48, items=10, keys=12, values=6),
        answered,
        torch.optim.AdamW(model.parameters(), 2e-3),
        steps=250,
        every=10,
    )


class SideBySide(nn.Module):
    """Attention and MLP in parallel, as in some language models, on rows of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(8, 40)
        self.place = nn.Parameter(0.5 * torch.randn(8, 40))
        self.norm = nn.ModuleList(nn.LayerNorm(40) for _ in range(3))
        self.attend = nn.ModuleList(
            nn.MultiheadAttention(40, 4, batch_first=True) for _ in range(3)
        )
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(40, 80), nn.SiLU(), nn.Linear(80, 40)) for _ in range(3)
        )
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x.view(-1, 8, 8)) + self.place
        for norm, attend, mlp in zip(self.norm, self.attend, self.mlp, strict=True):
            h = norm(x)
            x = x + attend(h, h, h, need_weights=False)[0] + mlp(h)
        return self.head(x.mean(1))


def side_by_side() -> Training:
    torch.manual_seed(10)
    model = SideBySide()
    return Training(
        model,
        partial(kit.digits, batch=48, seed=22),
        classified,
        torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
        steps=200,
        every=10,
        clip=1.0,
    )


def pretrained_shape() -> Training:
    """A library's GPT-2 in small."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(11)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=12, n_positions=32, n_embd=48, n_layer=2, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    return Training(
        model,
        partial(kit.repeats, batch=24, length=24, period=6, vocab=12),
        hub_loss,
        torch.optim.AdamW(model.parameters(), 3e-3),
        steps=250,
        every=10,
    )


def hub_loss(model: nn.Module, tokens: Tensor, following: Tensor) -> Tensor:
    return F.cross_entropy(model(input_ids=tokens).logits.flatten(0, 1), following.flatten())


class Sequencer(nn.Module):
    """The library's encoder and decoder: writes a line that it has read."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(8, 48), nn.Embedding(9, 48)
        self.place = nn.Parameter(torch.randn(8, 48))
        self.core = nn.Transformer(48, 4, 1, 1, 96, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(48, 8)

    def forward(self, line: Tensor, shifted: Tensor) -> Tensor:
        mask = kit.causal(shifted.shape[1])
        said = self.target(shifted) + self.place
        return self.head(self.core(self.source(line) + self.place, said, tgt_mask=mask))


def dictation(step: int) -> tuple[Tensor, Tensor, Tensor]:
    line = kit.words(step, batch=48, length=8, vocab=8, seed=30)
    return line, torch.cat([torch.full((48, 1), 8), line[:, :-1]], 1), line


def dictation_loss(model: nn.Module, line: Tensor, shifted: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(line, shifted).flatten(0, 1), y.flatten())


def sequencer() -> Training:
    torch.manual_seed(12)
    model = Sequencer()
    return Training(
        model,
        dictation,
        dictation_loss,
        torch.optim.Adam(model.parameters(), 2e-3),
        steps=250,
        every=10,
    )


class Siamese(nn.Module):
    """Two halves of a digit through one attention encoder; matching halves are to be found."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.place = nn.Linear(4, 40), nn.Parameter(0.5 * torch.randn(8, 40))
        self.attend = nn.ModuleDict({n: nn.Linear(40, 40) for n in "qkvo"})
        self.norm = nn.LayerNorm(40)
        self.project = nn.Sequential(nn.Linear(40, 64), nn.GELU(), nn.Linear(64, 24))
        self.sharpness = nn.Parameter(torch.tensor(2.0))

    def forward(self, half: Tensor) -> Tensor:
        x = self.lift(half) + self.place
        h = self.norm(x)
        q, k, v = (kit.heads(self.attend[n](h), 2) for n in "qkv")
        x = x + self.attend["o"](kit.joined((q @ k.mT / 20**0.5).softmax(-1) @ v))
        return F.normalize(self.project(x.mean(1)), dim=-1)


def siamese_loss(model: Siamese, x: Tensor, _: Tensor) -> Tensor:
    parts = kit.patches(x)
    near = model(parts[:, :8]) @ model(parts[:, 8:]).T * model.sharpness.exp()
    own = torch.arange(len(x))
    return (F.cross_entropy(near, own) + F.cross_entropy(near.T, own)) / 2


def siamese() -> Training:
    torch.manual_seed(13)
    model = Siamese()
    return Training(
        model,
        partial(kit.digits, batch=32, seed=31),
        siamese_loss,
        torch.optim.AdamW(model.parameters(), 3e-3),
        steps=250,
        every=10,
    )


HEALTHY = Healthy(
    "ind7-attention-works",
    runs={
        "patch-vit": patch_vit,
        "library-causal": library_lm,
        "pointer-sorts": pointer,
        "graph-attention": graph_attention,
        "linearised": linearised,
        "segments-with-memory": segments,
        "soft-experts": experts,
        "lstm-pooled": attentive,
        "normed-queries": normed_heads,
        "side-by-side": side_by_side,
        "library-gpt2": pretrained_shape,
        "encoder-decoder": sequencer,
        "siamese-halves": siamese,
    },
    may={
        # It has learnt large energies: 0.6 of its tanh's values are at their ends.
        "pointer-sorts": ["saturated-activation"],
    },
)

THEMES = [HEALTHY]
