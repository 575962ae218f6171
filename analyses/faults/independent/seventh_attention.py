"""Attention that goes wrong: too sharp, too flat, squeezed, cut off, or left without a say."""

from __future__ import annotations

import math
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Make, Symptom, Variant
from analyses.faults.independent import kit_seventh_attention as kit
from analyses.faults.observe import Observed
from analyses.faults.symptoms import peaked
from analyses.faults.training import Training

# --- Too sharp ------------------------------------------------------------------------------------


class ManyHeads(nn.Module):
    """Self-attention written by hand; `factor` is what the dot products are multiplied with."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)
        self.factor = (width // count) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (kit.heads(to(x), self.count) for to in (self.to_q, self.to_k, self.to_v))
        weights = torch.softmax(torch.matmul(q, k.transpose(-2, -1)) * self.factor, dim=-1)
        return self.out(kit.joined(torch.matmul(weights, v)))


class RecallTransformer(nn.Module):
    """Pre-norm blocks over pairs and a question at the end."""

    def __init__(self, keys: int, values: int, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(keys, width), nn.Embedding(values, width)
        self.asked = nn.Parameter(torch.randn(width))
        self.norm1 = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.attention = nn.ModuleList(ManyHeads(width, 2) for _ in range(depth))
        self.norm2 = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, width))
            for _ in range(depth)
        )
        self.head = nn.Linear(width, values)

    def forward(self, key: Tensor, value: Tensor, question: Tensor) -> Tensor:
        x = self.key(key) + self.value(value)
        x = torch.cat([x, (self.key(question) + self.asked).unsqueeze(1)], 1)
        for n1, attend, n2, mlp in zip(
            self.norm1, self.attention, self.norm2, self.mlp, strict=True
        ):
            x = x + attend(n1(x))
            x = x + mlp(n2(x))
        return self.head(x[:, -1])


def recall_loss(model: nn.Module, key: Tensor, value: Tensor, ask: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(key, value, ask), y)


def recall_transformer() -> Training:
    torch.manual_seed(3)
    model = RecallTransformer(12, 6)
    kit.wide(model)
    return Training(
        model,
        partial(kit.recall, batch=64, items=10, keys=12, values=6),
        recall_loss,
        torch.optim.Adam(model.parameters(), 2e-3),
        steps=300,
        every=10,
    )


def multiplies(training: Training) -> None:
    """Times the width where one divides by its root."""
    for attend in training.model.attention:  # type: ignore[union-attr]
        attend.factor = attend.factor**-2


class Bag(nn.Module):
    """Gated attention over the instances of a bag."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.encode = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU())
        self.what, self.gate = nn.Linear(48, 24), nn.Linear(48, 24)
        self.score = nn.Linear(24, 1)
        self.classify = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.encode(x)
        score = self.score(torch.tanh(self.what(h)) * torch.sigmoid(self.gate(h))).squeeze(-1)
        share = F.softmax(score / self.temperature, dim=1)
        return {"logits": self.classify(torch.einsum("bn,bnd->bd", share, h)), "share": share}


def bag_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x)["logits"], y)


def bag(temperature: float = 1.0) -> Training:
    torch.manual_seed(5)
    model = Bag(temperature)
    return Training(
        model,
        partial(kit.bags, batch=32, items=12),
        bag_loss,
        torch.optim.AdamW(model.parameters(), 1e-3),
        steps=300,
        every=10,
    )


class TableLookup(nn.Module):
    """Questions and keys have tables of their own; what is found goes through an MLP."""

    def __init__(self, keys: int, values: int, width: int, scaled: bool) -> None:
        super().__init__()
        self.ask = nn.Embedding(keys, width)
        self.keys = nn.Embedding(keys, width)
        self.values = nn.Embedding(values, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, values))
        self.scaled = scaled

    def forward(self, key: Tensor, value: Tensor, question: Tensor) -> Tensor:
        match = torch.einsum("bd,bnd->bn", self.ask(question), self.keys(key))
        if self.scaled:
            match = match / math.sqrt(self.ask.embedding_dim)
        return self.mlp((match.softmax(-1).unsqueeze(-1) * self.values(value)).sum(1))


def table_lookup(scaled: bool = True) -> Training:
    torch.manual_seed(6)
    model = TableLookup(20, 8, 512, scaled)
    return Training(
        model,
        partial(kit.recall, batch=64, items=16, keys=20, values=8),
        recall_loss,
        torch.optim.Adagrad(model.parameters(), 0.02),
        steps=250,
        every=5,
    )


class SlopedBlock(nn.Module):
    """Causal attention with a penalty on distance."""

    def __init__(self, width: int, count: int, slope: float) -> None:
        super().__init__()
        self.count, self.slope = count, slope
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        q, k, v = (kit.heads(t, self.count) for t in self.qkv(self.norm(x)).chunk(3, -1))
        place = torch.arange(n)
        far = (place[:, None] - place[None]).clamp(min=0).float()
        slopes = self.slope * torch.tensor([2.0**-i for i in range(self.count)])
        score = q @ k.mT / math.sqrt(q.shape[-1]) - slopes[:, None, None] * far
        score = score.masked_fill(kit.causal(n), -torch.inf)
        x = x + self.mix(kit.joined(score.softmax(-1) @ v))
        return x + self.feed(x)


class SlopedLM(nn.Module):
    def __init__(self, vocab: int, slope: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, 48)
        self.blocks = nn.Sequential(*[SlopedBlock(48, 4, slope) for _ in range(3)])
        self.head = nn.Linear(48, vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.blocks(self.tokens(tokens)))


def lm_loss(model: nn.Module, tokens: Tensor, following: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())


def sloped_lm(slope: float = 0.25) -> Training:
    torch.manual_seed(7)
    model = SlopedLM(10, slope)
    return Training(
        model,
        partial(kit.repeats, batch=24, length=24, period=4, vocab=10),
        lm_loss,
        torch.optim.AdamW(model.parameters(), 3e-3),
        steps=250,
        every=10,
    )


class PairEncoder(nn.Module):
    """The library's encoder layers over pairs and a question, which is read."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values = nn.Embedding(14, 64), nn.Embedding(7, 64)
        self.mark = nn.Parameter(torch.randn(64))
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classify = nn.Linear(64, 7)

    def forward(self, key: Tensor, value: Tensor, question: Tensor) -> Tensor:
        pairs = self.keys(key) + self.values(value)
        x = torch.cat([(self.keys(question) + self.mark).unsqueeze(1), pairs], 1)
        return self.classify(self.encoder(x)[:, 0])


def set_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def pair_encoder(spread: float = 0.0) -> Training:
    torch.manual_seed(8)
    model = PairEncoder()
    if spread:
        for layer in model.encoder.layers:
            nn.init.normal_(layer.self_attn.in_proj_weight[:128], std=spread)
    return Training(
        model,
        partial(kit.recall, batch=48, items=10, keys=14, values=7),
        recall_loss,
        torch.optim.AdamW(model.parameters(), 1e-3),
        steps=300,
        every=10,
    )


class CosineViT(nn.Module):
    """Patches of digits; similarity by cosine with a learnt scale."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.patch = nn.Linear(4, 32)
        self.place = nn.Parameter(0.5 * torch.randn(17, 32))
        self.first = nn.Parameter(torch.randn(1, 1, 32))
        self.queries = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.keys = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.values = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.after = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))
        self.log_scale = nn.Parameter(torch.full((2,), math.log(scale)))
        self.head = nn.Linear(32, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch(kit.patches(pixels))
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.place
        for i in range(2):
            h = self.norms[2 * i](x)
            q = F.normalize(self.queries[i](h), dim=-1)
            k = F.normalize(self.keys[i](h), dim=-1)
            share = F.softmax(q @ k.transpose(1, 2) * self.log_scale[i].exp(), dim=-1)
            x = x + share @ self.values[i](h)
            x = x + self.after[i](self.norms[2 * i + 1](x))
        return self.head(x[:, 0])


def cosine_vit(scale: float = 10.0) -> Training:
    torch.manual_seed(9)
    model = CosineViT(scale)
    return Training(
        model,
        partial(kit.digits, batch=48),
        set_loss,
        torch.optim.Adam(model.parameters(), 2e-3),
        steps=250,
        every=10,
    )


class Listener(nn.Module):
    """A GRU reads; additive attention picks; a linear layer names the marked item's class."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.GRU(13, 32, batch_first=True, bidirectional=True)
        self.look = nn.Linear(64, 32)
        self.ask = nn.Linear(32, 1, bias=False)
        self.name = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        states, _ = self.read(x)
        share = self.ask(torch.tanh(self.look(states))).softmax(1)
        return self.name((share * states).sum(1)), share


def listener_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits, _ = model(x)
    return F.cross_entropy(logits, y)


def listener() -> Training:
    torch.manual_seed(10)
    model = Listener()
    scorer = [*model.look.parameters(), *model.ask.parameters()]
    others = [*model.read.parameters(), *model.name.parameters()]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": scorer, "lr": 5e-3}]
    return Training(
        model,
        partial(kit.marked, batch=32, items=20, dim=13, classes=5),
        listener_loss,
        torch.optim.Adam(groups, lr=5e-3),
        steps=200,
        every=5,
    )


def hurried(training: Training) -> None:
    """The scorer's group has a rate a thousand times too high."""
    training.optimizer.param_groups[1]["lr"] = 5.0


class Pooler(nn.Module):
    """Scores of shape (batch, n, 1), a softmax, and the weighted sum of projected items."""

    def __init__(self, over: int) -> None:
        super().__init__()
        self.over = over
        self.embed = nn.Sequential(nn.Linear(11, 64), nn.LayerNorm(64), nn.GELU())
        self.score = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 1))
        self.content = nn.Linear(64, 64)
        self.head = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.head((self.score(h).softmax(self.over) * self.content(h)).sum(1))


def pooler(over: int = 1) -> Training:
    torch.manual_seed(11)
    model = Pooler(over)
    return Training(
        model,
        partial(kit.marked, batch=48, items=24, dim=11, classes=4),
        set_loss,
        torch.optim.RMSprop(model.parameters(), 1e-3),
        steps=200,
        every=5,
    )


class Addressing(nn.Module):
    """A memory addressed by cosine similarity, sharpened by a key strength."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.write_key = nn.Embedding(16, 24)
        self.write_value = nn.Embedding(6, 24)
        self.controller = nn.Sequential(nn.Embedding(16, 40), nn.Linear(40, 40), nn.Tanh())
        self.emit = nn.Linear(40, 24)
        self.answer = nn.Linear(24 + 40, 6)

    def forward(self, key: Tensor, value: Tensor, question: Tensor) -> Tensor:
        state = self.controller(question)
        memory = self.write_key(key)
        near = F.cosine_similarity(self.emit(state).unsqueeze(1), memory, dim=-1)
        address = torch.softmax(self.strength * near, -1)
        found = torch.bmm(address.unsqueeze(1), self.write_value(value)).squeeze(1)
        return self.answer(torch.cat([found, state], -1))


def addressing(strength: float = 8.0) -> Training:
    torch.manual_seed(12)
    model = Addressing(strength)
    return Training(
        model,
        partial(kit.recall, batch=64, items=8, keys=16, values=6),
        recall_loss,
        torch.optim.RMSprop(model.parameters(), 2e-3),
        steps=300,
        every=10,
    )


def idle(like: str) -> Symptom:
    """Matrices called so have a gradient of exactly 0 throughout, and the loss ends higher."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None
        norm = max(g for c in run.checkpoints for n, g in c.norms.items() if like in n)
        worse = run.loss_last > twin.loss_last + 0.02 * twin.loss_first
        return {"is": norm < 1e-9 and worse, "norm": norm, "loss": run.loss_last,
                "twin_loss": twin.loss_last}  # fmt: skip

    return symptom


PEAKED = Fault(
    "ind7-attention-too-sharp",
    must=[["peaked-softmax"]],
    symptom=peaked(0.15),
    variants=[
        Variant("recall-multiplied-by-width", recall_transformer, multiplies),
        Variant(
            "bag-temperature",
            bag,
            broken=partial(bag, 0.0005),
            # The scorer's three layers: 1e-3 of the others' gradient and, later, 1e-6 and less.
            may=["starved-pathway", "vanishing-gradient"],
        ),
        Variant(
            "lookup-unscaled",
            table_lookup,
            broken=partial(table_lookup, False),
            # Both tables of keys: nothing but the softmax leads to them.
            may=["vanishing-gradient", "softmax-borne"],
            healthy_may=["softmax-borne"],
        ),
        Variant(
            "steep-distance-bias",
            sloped_lm,
            broken=partial(sloped_lm, 400.0),
            may=["starved-pathway"],  # queries and keys get exactly 0, values all
        ),
        Variant("library-wide-projection", pair_encoder, broken=partial(pair_encoder, 1.5)),
        Variant(
            "cosine-scale-3000",
            cosine_vit,
            broken=partial(cosine_vit, 3000.0),
            may=["starved-pathway", "vanishing-gradient"],  # queries and keys: 1e-4 to 1e-11
        ),
        Variant(
            "listener-rate",
            listener,
            hurried,
            must=[["peaked-softmax", "update-too-large"]],
            may=["saturated-activation"],  # the scorer's tanh, nearly all values
        ),
        Variant(
            "memory-key-strength",
            addressing,
            broken=partial(addressing, 2000.0),
            may=["vanishing-gradient", "softmax-borne", "starved-pathway"],  # keys, `emit`: 1e-5
            healthy_may=["softmax-borne"],  # only the softmax leads to keys and `emit`
        ),
        Variant(
            "softmax-over-one",
            pooler,
            broken=partial(pooler, 2),
            must=[["peaked-softmax", "no-update", "starved-pathway"]],
            may=["vanishing-gradient"],  # the scorer gets exactly 0
            symptom=idle("score"),
        ),
    ],
)

# --- Too flat -------------------------------------------------------------------------------------


def too_flat(entropy: float, scorer: tuple[str, ...], share: float, which: int = -1) -> Symptom:
    """A softmax stays flat, its scorer gets little gradient, and the loss ends higher for it.

    `share` bounds the scorer's matrices' largest gradient over the largest of all, typically.
    """

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None
        flat = [c.entropies[which] for c in run.checkpoints]
        shares = sorted(_scorer_share(c.norms, scorer) for c in run.checkpoints)
        worse = run.loss_last > twin.loss_last + 0.1 * twin.loss_first
        found = {"entropy": min(flat), "share": shares[len(shares) // 2]}
        theirs = {"loss": run.loss_last, "twin_loss": twin.loss_last}
        return {"is": min(flat) >= entropy and found["share"] <= share and worse,
                **found, **theirs}  # fmt: skip

    return symptom


def _scorer_share(norms: dict[str, float], scorer: tuple[str, ...]) -> float:
    mine = [g for n, g in norms.items() if any(like in n for like in scorer)]
    return max(mine) / max(norms.values())


class Seeds(nn.Module):
    """Learnt seeds look at a large set by the cosine of angles."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.seeds = nn.Parameter(torch.randn(4, 32))
        self.embed = nn.Linear(14, 32)
        self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 32)
        self.query = nn.Linear(32, 32)
        self.head = nn.Linear(4 * 32, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        q, k = F.normalize(self.query(self.seeds), dim=-1), F.normalize(self.key(h), dim=-1)
        share = torch.softmax(self.scale * torch.einsum("sd,bnd->bsn", q, k), dim=-1)
        return self.head((share @ self.value(h)).flatten(1))


def seeds(scale: float = 16.0) -> Training:
    torch.manual_seed(20)
    model = Seeds(scale)
    return Training(
        model,
        partial(kit.marked, batch=16, items=320, dim=14, classes=6),
        set_loss,
        torch.optim.Adam(model.parameters(), 3e-3),
        steps=250,
        every=10,
    )


class Signal(nn.Module):
    """A convolution over a sequence, whose summary asks what to attend to."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.smooth = nn.Conv1d(10, 40, 1)
        self.ask = nn.Linear(40, 40)
        self.remember = nn.Linear(40, 40, bias=False)
        self.head = nn.Linear(40, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.smooth(x.transpose(1, 2)).transpose(1, 2)
        score = torch.bmm(self.remember(h), self.ask(h.mean(1)).unsqueeze(2)).squeeze(2)
        share = F.softmax(score / self.temperature, -1)
        return self.head(torch.bmm(share.unsqueeze(1), h).squeeze(1))


def signal(temperature: float = 1.0) -> Training:
    torch.manual_seed(21)
    model = Signal(temperature)
    return Training(
        model,
        partial(kit.marked, batch=48, items=30, dim=10, classes=4),
        set_loss,
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        steps=300,
        every=10,
    )


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    """Attention's weights."""
    return F.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1)


class Reader(nn.Module):
    """A question looks up pairs, with two heads; `twice` normalises what is normalised already."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.twice = twice
        self.embed_key, self.embed_value = nn.Embedding(30, 48), nn.Embedding(8, 48)
        self.wq, self.wk, self.wv = nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 48)
        self.head = nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 8))

    def forward(self, key: Tensor, value: Tensor, question: Tensor) -> Tensor:
        q = kit.heads(self.wq(self.embed_key(question).unsqueeze(1)), 2)
        k = kit.heads(self.wk(self.embed_key(key)), 2)
        v = kit.heads(self.wv(self.embed_value(value)), 2)
        weights = probabilities(q, k)
        if self.twice:
            weights = weights.softmax(-1)
        return self.head(kit.joined(weights @ v)[:, 0])


def reader(twice: bool = False) -> Training:
    torch.manual_seed(22)
    model = Reader(twice)
    return Training(
        model,
        partial(kit.recall, batch=48, items=28, keys=30, values=8),
        recall_loss,
        torch.optim.AdamW(model.parameters(), 3e-3),
        steps=300,
        every=10,
    )


class Hops(nn.Module):
    """Two hops over embedded pairs; the scores are capped softly."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap
        self.ask = nn.Embedding(24, 40)
        self.inward, self.outward = nn.Embedding(24, 40), nn.Embedding(6, 40)
        self.turn = nn.Linear(40, 40)
        self.norm = nn.LayerNorm(40)
        self.answer = nn.Linear(40, 6)

    def forward(self, key: Tensor, value: Tensor, question: Tensor) -> Tensor:
        u = self.ask(question)
        for _ in range(2):
            score = (self.inward(key) @ u.unsqueeze(2)).squeeze(2) / 40**0.5
            p = torch.softmax(self.cap * torch.tanh(score / self.cap), dim=1)
            u = self.norm(self.turn(u) + (p.unsqueeze(2) * self.outward(value)).sum(1))
        return self.answer(u)


def hops(cap: float = 30.0) -> Training:
    torch.manual_seed(23)
    model = Hops(cap)
    return Training(
        model,
        partial(kit.recall, batch=64, items=20, keys=24, values=6),
        recall_loss,
        torch.optim.Adam(model.parameters(), 5e-3),
        steps=300,
        every=10,
    )


class SetBlock(nn.Module):
    """The library's fused attention with projections of its own, and a read-out place."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(12, 64)
        self.readout = nn.Parameter(torch.randn(1, 1, 64))
        self.q_proj, self.k_proj = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.v_proj, self.o_proj = nn.Linear(64, 64, bias=False), nn.Linear(64, 64)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.readout.expand(len(x), -1, -1), self.lift(x)], 1)
        q, k, v = (kit.heads(to(x), 4) for to in (self.q_proj, self.k_proj, self.v_proj))
        score = q[:, :, :1] @ k.transpose(2, 3) * 0.25
        x = x[:, 0] + self.o_proj(kit.joined(torch.softmax(score, -1) @ v)[:, 0])
        return self.head(self.norm(x))


def set_block(spread: float = 0.15) -> Training:
    torch.manual_seed(24)
    model = SetBlock()
    for projection in (model.q_proj, model.k_proj):
        nn.init.normal_(projection.weight, std=spread)
    return Training(
        model,
        partial(kit.marked, batch=48, items=32, dim=12, classes=5),
        set_loss,
        torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
        steps=300,
        every=10,
    )


class Crowd(nn.Module):
    """One score for each item, learnt by a small scorer."""

    def __init__(self) -> None:
        super().__init__()
        self.content = nn.Linear(9, 24)
        self.score = nn.Sequential(nn.Linear(9, 16), nn.Tanh(), nn.Linear(16, 1))
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        share = nn.functional.softmax(self.score(x).squeeze(-1), dim=1)
        return self.head(torch.sum(share.unsqueeze(-1) * self.content(x), dim=1))


def crowd(items: int = 12) -> Training:
    torch.manual_seed(25)
    model = Crowd()
    return Training(
        model,
        partial(kit.marked, batch=24, items=items, dim=9, classes=3),
        set_loss,
        torch.optim.SGD(model.parameters(), 0.3),
        steps=300,
        every=10,
    )


class TinyGPT(nn.Module):
    """Causal blocks on the fused kernel, scores scaled by `scale`."""

    def __init__(self, vocab: int, scale: float | None) -> None:
        super().__init__()
        self.scale = scale
        self.wte, self.wpe = nn.Embedding(vocab, 64), nn.Embedding(32, 64)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "ln_1": nn.LayerNorm(64),
                    "q": nn.Linear(64, 64),
                    "k": nn.Linear(64, 64),
                    "v": nn.Linear(64, 64),
                    "proj": nn.Linear(64, 64),
                    "ln_2": nn.LayerNorm(64),
                    "fc": nn.Linear(64, 128),
                    "out": nn.Linear(128, 64),
                }
            )
            for _ in range(2)
        )
        self.ln_f = nn.LayerNorm(64)
        self.lm_head = nn.Linear(64, vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for b in self.blocks:
            h = b["ln_1"](x)  # type: ignore[index]
            q, k, v = (kit.heads(b[n](h), 4) for n in "qkv")  # type: ignore[index]
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
            x = x + b["proj"](kit.joined(a))  # type: ignore[index]
            x = x + b["out"](F.gelu(b["fc"](b["ln_2"](x))))  # type: ignore[index]
        return self.lm_head(self.ln_f(x))


def tiny_gpt(scale: float | None = None) -> Training:
    torch.manual_seed(26)
    model = TinyGPT(12, scale)
    return Training(
        model,
        partial(kit.repeats, batch=24, length=32, period=9, vocab=12),
        lm_loss,
        torch.optim.AdamW(model.parameters(), 3e-3),
        steps=300,
        every=10,
    )


def fused_flat(make: Make, entropy: float, scorer: tuple[str, ...], share: float) -> Symptom:
    """As `too_flat`, for the fused kernel: its shares are computed again after the training."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        training = make()
        for step in range(training.steps):
            training.step(training, step)
        model = training.model
        assert isinstance(model, TinyGPT)
        kept: dict[str, Tensor] = {}
        for name in "qk":
            model.blocks[0][name].register_forward_hook(  # type: ignore[index]
                lambda m, given, out, name=name: kept.__setitem__(name, out.detach())
            )
        model(training.batch(0)[0])
        q, k = kit.heads(kept["q"], 4), kit.heads(kept["k"], 4)
        p = (q[:, :, -1:] @ k.mT * (model.scale or 0.25)).softmax(-1)
        found = float(torch.special.entr(p).sum(-1).mean() / math.log(p.shape[-1]))
        for c in run.checkpoints:
            c.entropies[:] = [found]
        return too_flat(entropy, scorer, share)(run, twin)

    return symptom


DIFFUSE = Fault(
    "ind7-attention-too-flat",
    must=[["diffuse-softmax"]],
    variants=[
        Variant(
            "seeds-cosine-unscaled",
            seeds,
            broken=partial(seeds, 1.0),
            may=["vanishing-gradient"],
            symptom=too_flat(0.97, ("key", "query"), 0.1),
        ),
        Variant(
            "signal-temperature",
            signal,
            broken=partial(signal, 1000.0),
            may=["vanishing-gradient", "starved-pathway"],  # `ask` and `remember`: 1e-3 and less
            symptom=too_flat(0.97, ("ask", "remember"), 0.02),
        ),
        Variant(
            "reader-softmax-twice",
            reader,
            broken=partial(reader, True),
            # The inner softmax ends up at one entry; queries and keys get 1e-4 of the gradient.
            may=["peaked-softmax", "vanishing-gradient", "softmax-borne"],
            healthy_may=["softmax-borne"],  # only the softmax leads to the keys' table
            symptom=too_flat(0.97, ("wq", "wk"), 0.1),
        ),
        Variant(
            "hops-small-cap",
            hops,
            broken=partial(hops, 0.02),
            must=[["diffuse-softmax", "saturated-activation"]],
            # The tables behind the cap; and one vector is all that passes from hop to hop.
            may=["vanishing-gradient", "softmax-borne", "information-bottleneck"],
            healthy_may=["softmax-borne", "information-bottleneck"],
            symptom=too_flat(0.97, ("inward",), 0.1),
        ),
        Variant(
            "set-tiny-projections",
            set_block,
            broken=partial(set_block, 1e-6),
            may=["vanishing-gradient", "starved-pathway"],  # queries and keys: 1e-5 and less
            symptom=too_flat(0.97, ("q_proj", "k_proj"), 0.02),
        ),
        Variant(
            "crowd-of-keys",
            crowd,
            broken=partial(crowd, 1500),
            may=["vanishing-gradient"],  # each item's share of it
            symptom=too_flat(0.97, ("score",), 0.15),
        ),
        Variant(
            "fused-kernel-scale",
            tiny_gpt,
            broken=partial(tiny_gpt, 1e-5),
            may=["vanishing-gradient", "starved-pathway"],  # queries and keys: 1e-6 to 1e-3
            symptom=fused_flat(partial(tiny_gpt, 1e-5), 0.97, (".q.", ".k."), 0.02),
        ),
    ],
)

# --- Squeezed -------------------------------------------------------------------------------------


def squeezed(faulty: Make, sound: Make, quarter: float = 0.25) -> Symptom:
    """Less gets from the module `first` to the inputs of `second` than in the twin; it costs.

    Measured by the rank of the Jacobian of random sums of those inputs, for one sample.
    """

    def rank(make: Make) -> int:
        training = make()
        model, batch = training.model, tuple(t[:1] for t in training.batch(0))
        kept: list[Tensor] = []
        given: list[Tensor] = []

        def output(module: nn.Module, _: Any, out: Any) -> None:
            kept.append(out[0] if isinstance(out, tuple) else out)

        def inputs(module: nn.Module, args: tuple[Any, ...]) -> None:
            given.extend(t for t in args if isinstance(t, Tensor))

        model.get_submodule("first").register_forward_hook(output)
        model.get_submodule("second").register_forward_pre_hook(inputs)
        training.loss(model, *batch)
        reached = torch.cat([t.flatten() for t in given if t.requires_grad])
        sums = torch.randn(150, len(reached), generator=torch.Generator().manual_seed(0)) @ reached
        rows = [torch.autograd.grad(x, kept[0], retain_graph=True)[0].flatten() for x in sums]
        values = torch.linalg.svdvals(torch.stack(rows).double())
        return int((values > 1e-6 * values[0]).sum())

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None
        found, theirs = rank(faulty), rank(sound)
        worse = run.loss_last > twin.loss_last + 0.1 * twin.loss_first
        return {"is": found <= quarter * theirs and worse, "rank": found, "twin_rank": theirs,
                "loss": run.loss_last, "twin_loss": twin.loss_last}  # fmt: skip

    return symptom


class Mixer(nn.Module):
    """Self-attention on keys and values given apart."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.o = nn.Linear(width, width)

    def forward(self, ask: Tensor, memory: Tensor) -> Tensor:
        q = kit.heads(self.q(ask), self.count)
        k, v = (kit.heads(t, self.count) for t in self.kv(memory).chunk(2, -1))
        p = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
        return self.o(kit.joined(p @ v))


class Copier(nn.Module):
    """Reads a line with one layer and writes it with another; between them a mean, or nothing."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.embed, self.place = nn.Embedding(12, 48), nn.Parameter(0.3 * torch.randn(20, 48))
        self.out_place = nn.Parameter(0.3 * torch.randn(20, 48))
        self.first, self.second = Mixer(48, 4), Mixer(48, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(48) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48))
        self.head = nn.Linear(48, 12)

    def forward(self, line: Tensor) -> Tensor:
        x = self.embed(line) + self.place
        h = self.norms[0](x)
        x = self.norms[1](x + self.first(h, h))
        if self.pooled:
            x = x.mean(1, keepdim=True).expand_as(x)
        x = x + self.out_place
        h = self.norms[2](x)
        x = x + self.second(h, h)
        return self.head(x + self.mlp(self.norms[3](x)))


def line_loss(model: nn.Module, line: Tensor) -> Tensor:
    return F.cross_entropy(model(line).transpose(1, 2), line.flip(1))


def copier(pooled: bool = False) -> Training:
    torch.manual_seed(30)
    model = Copier(pooled)
    return Training(
        model,
        lambda step: (kit.words(step, batch=32, length=20, vocab=12),),
        line_loss,
        torch.optim.Adam(model.parameters(), 3e-3),
        steps=300,
        every=10,
    )


class Latents(nn.Module):
    """Pairs are read by a few latents, which a question looks at; or by the question itself."""

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(26, 32), nn.Embedding(8, 32)
        self.latents = nn.Parameter(torch.randn(1, latents, 32)) if latents else None
        self.first, self.second = Mixer(32, 2), Mixer(32, 2)
        self.ask = nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)
        self.classify = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))

    def forward(self, key: Tensor, value: Tensor, question: Tensor) -> Tensor:
        pairs = self.key(key) + self.value(value)
        if self.latents is None:
            memory = self.norm(pairs + self.first(pairs, pairs))
        else:
            memory = self.norm(self.first(self.latents.expand(len(pairs), -1, -1), pairs))
        return self.classify(self.second(self.ask(self.key(question)).unsqueeze(1), memory)[:, 0])


def latents(count: int = 0) -> Training:
    torch.manual_seed(31)
    model = Latents(count)
    return Training(
        model,
        partial(kit.recall, batch=64, items=24, keys=26, values=8),
        recall_loss,
        torch.optim.AdamW(model.parameters(), 3e-3),
        steps=300,
        every=10,
    )


class Waist(nn.Module):
    """Two of the library's attentions with a narrow linear waist between them, place by place."""

    def __init__(self, waist: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(16, 64), nn.Parameter(0.5 * torch.randn(14, 64))
        self.first = nn.MultiheadAttention(64, 4, batch_first=True)
        self.down, self.up = nn.Linear(64, waist), nn.Linear(waist, 64)
        self.second = nn.MultiheadAttention(64, 4, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(64), nn.LayerNorm(64)
        self.head = nn.Linear(64, 16)

    def forward(self, line: Tensor) -> Tensor:
        x = self.embed(line) + self.place
        x = self.norm1(x + self.first(x, x, x)[0])
        x = F.gelu(self.up(self.down(x))) + self.place
        x = self.norm2(x + self.second(x, x, x)[0])
        return self.head(x)


def waist(width: int = 64) -> Training:
    torch.manual_seed(32)
    model = Waist(width)
    return Training(
        model,
        lambda step: (kit.words(step, batch=32, length=14, vocab=16, seed=8),),
        line_loss,
        torch.optim.AdamW(model.parameters(), 2e-3),
        steps=300,
        every=10,
    )


class Denoiser(nn.Module):
    """Convolutions with attention on the way down and on the way up."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.stem = nn.Conv2d(1, 24, 3, stride=2, padding=1)
        self.first, self.second = Mixer(24, 2), Mixer(24, 2)
        self.middle = nn.Conv2d(24, 24, 1)
        self.place = nn.Parameter(torch.randn(16, 24))
        self.rise = nn.ConvTranspose2d(24, 12, 2, stride=2)
        self.last = nn.Conv2d(12, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.stem(x.view(-1, 1, 8, 8)))
        cells = h.flatten(2).transpose(1, 2) + self.place
        cells = cells + self.first(cells, cells)
        h = F.silu(self.middle(cells.transpose(1, 2).reshape(h.shape)))
        if self.pooled:
            h = F.adaptive_avg_pool2d(h, 1).expand(-1, -1, 4, 4)
        cells = h.flatten(2).transpose(1, 2) + self.place
        cells = cells + self.second(cells, cells)
        h = cells.transpose(1, 2).reshape(-1, 24, 4, 4)
        return self.last(F.silu(self.rise(h))).flatten(1)


def denoise_loss(model: nn.Module, noisy: Tensor, clean: Tensor) -> Tensor:
    return F.mse_loss(model(noisy), clean)


def noisy_digits(step: int) -> tuple[Tensor, Tensor]:
    clean, _ = kit.digits(step, batch=32)
    return clean + 0.3 * torch.randn(clean.shape, generator=kit.generator(step, 9)), clean


def denoiser(pooled: bool = False) -> Training:
    torch.manual_seed(33)
    model = Denoiser(pooled)
    kit.wide(model)
    return Training(
        model,
        noisy_digits,
        denoise_loss,
        torch.optim.Adam(model.parameters(), 3e-3),
        steps=300,
        every=10,
    )


class Relay(nn.Module):
    """Attention, an LSTM, attention: what the second reads is the last state, or all of them."""

    def __init__(self, last_only: bool) -> None:
        super().__init__()
        self.last_only = last_only
        self.embed = nn.Embedding(10, 40)
        self.where = nn.Embedding(16, 40)
        self.first = Mixer(40, 4)
        self.between = nn.LSTM(40, 40, batch_first=True)
        self.second = Mixer(40, 4)
        self.head = nn.Linear(40, 10)

    def forward(self, line: Tensor) -> Tensor:
        place = self.where(torch.arange(line.shape[1]))
        x = self.embed(line) + place
        x = x + self.first(x, x)
        states, (last, _) = self.between(x)
        x = (last[-1].unsqueeze(1) if self.last_only else states) + place
        return self.head(F.silu(x + self.second(x, x)))


def relay(last_only: bool = False) -> Training:
    torch.manual_seed(34)
    model = Relay(last_only)
    return Training(
        model,
        lambda step: (kit.words(step, batch=32, length=14, vocab=10, seed=10),),
        line_loss,
        torch.optim.RMSprop(model.parameters(), 3e-3),
        steps=350,
        every=10,
    )


class Hop(nn.Module):
    """Reads the memory once with a question."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ask = nn.Linear(width, 48)
        self.tell = nn.Linear(48, width)

    def forward(self, state: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        score = torch.einsum("bd,bnd->bn", self.ask(state), keys) / 48**0.5
        return self.tell(torch.einsum("bn,bnd->bd", score.softmax(-1), values))


class Chase(nn.Module):
    """Follows a pointer twice; between the hops passes a state of `width` numbers."""

    def __init__(self, nodes: int, width: int) -> None:
        super().__init__()
        self.source, self.goal = nn.Embedding(nodes, 48), nn.Embedding(nodes, 48)
        self.start = nn.Embedding(nodes, width)
        self.first, self.second = Hop(width), Hop(width)
        self.name = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, nodes))

    def forward(self, follows: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        keys = self.source.weight.expand(len(start), -1, -1)
        values = self.goal(follows)
        one = self.first(self.start(start), keys, values)
        return self.name(one), self.name(self.second(one, keys, values))


def permutations(step: int) -> tuple[Tensor, Tensor]:
    g = kit.generator(step, 11)
    return torch.rand(64, 16, generator=g).argsort(1), torch.randint(16, (64,), generator=g)


def chase_loss(model: nn.Module, follows: Tensor, start: Tensor) -> Tensor:
    one = follows.gather(1, start.unsqueeze(1))
    two = follows.gather(1, one)
    said = model(follows, start)
    return F.cross_entropy(said[0], one[:, 0]) + F.cross_entropy(said[1], two[:, 0])


def chase(width: int = 40) -> Training:
    torch.manual_seed(35)
    model = Chase(16, width)
    return Training(
        model,
        permutations,
        chase_loss,
        torch.optim.Adam(model.parameters(), 5e-3),
        steps=400,
        every=10,
    )


BOTTLENECK = Fault(
    "ind7-attention-squeezed",
    must=[["information-bottleneck"]],
    variants=[
        Variant(
            "copier-mean",
            copier,
            broken=partial(copier, True),
            may=["diffuse-softmax"],  # the second has nothing to tell places apart by: 0.98
            symptom=squeezed(partial(copier, True), copier, 0.5),
        ),
        Variant(
            "two-latents",
            latents,
            broken=partial(latents, 2),
            symptom=squeezed(partial(latents, 2), latents, 0.5),
        ),
        Variant(
            "narrow-waist",
            waist,
            broken=partial(waist, 1),
            symptom=squeezed(partial(waist, 1), waist),
        ),
        Variant(
            "denoiser-global-pool",
            denoiser,
            broken=partial(denoiser, True),
            symptom=squeezed(partial(denoiser, True), denoiser),
        ),
        Variant(
            "relay-last-state",
            relay,
            broken=partial(relay, True),
            symptom=squeezed(partial(relay, True), relay, 0.5),
        ),
        Variant(
            "chase-two-numbers",
            chase,
            broken=partial(chase, 2),
            # Half of a ReLU layer is off, and the second hop spreads evenly: 0.98.
            may=["softmax-borne", "dead-units", "diffuse-softmax"],
            # One vector of 40 passes from hop to hop, which is all that is needed.
            healthy_may=["information-bottleneck", "softmax-borne"],
            symptom=squeezed(partial(chase, 2), chase),
        ),
    ],
)

# --- Cut off --------------------------------------------------------------------------------------


def cut_off(like: tuple[str, ...]) -> Symptom:
    """Matrices called so never have a gradient, the twin's have, and the loss ends higher."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None
        without = [n for n in run.without_gradient if any(part in n for part in like)]
        worse = run.loss_last > twin.loss_last + 0.05 * twin.loss_first
        is_one = bool(without) and not twin.without_gradient and worse
        return {"is": is_one, "without": len(without), "all": len(run.without_gradient),
                "loss": run.loss_last, "twin_loss": twin.loss_last}  # fmt: skip

    return symptom


class Matcher(nn.Module):
    """Pairs and a question through einsum; the shares may be kept out of the graph."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.table = nn.ParameterDict(
            {
                "key": nn.Parameter(torch.randn(18, 56)),
                "value": nn.Parameter(torch.randn(8, 56)),
                "to_q": nn.Parameter(torch.randn(56, 56) / 56**0.5),
                "to_k": nn.Parameter(torch.randn(56, 56) / 56**0.5),
                "to_v": nn.Parameter(torch.randn(56, 56) / 56**0.5),
            }
        )
        self.head = nn.Linear(56, 8)

    def forward(self, key: Tensor, value: Tensor, question: Tensor) -> Tensor:
        t = self.table
        pairs = F.embedding(key, t["key"]) + F.embedding(value, t["value"])
        q = F.embedding(question, t["key"]) @ t["to_q"]
        share = torch.einsum("bd,bnd->bn", q, pairs @ t["to_k"]).div(56**0.5).softmax(1)
        if self.cut:
            share = share.detach()
        return self.head(F.layer_norm(torch.einsum("bn,bnd->bd", share, pairs @ t["to_v"]), (56,)))


def matcher(cut: bool = False) -> Training:
    torch.manual_seed(40)
    model = Matcher(cut)
    return Training(
        model,
        partial(kit.recall, batch=64, items=16, keys=18, values=8),
        recall_loss,
        torch.optim.Adam(model.parameters(), 3e-3),
        steps=250,
        every=10,
    )


class HardPick(nn.Module):
    """Items of which a score picks: all by their share, or the best alone."""

    def __init__(self, hard: bool) -> None:
        super().__init__()
        self.hard = hard
        self.lift = nn.Linear(16, 32)
        self.score = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
        self.head = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.lift(x))
        score = self.score(h).squeeze(-1)
        share = score.softmax(-1)
        if self.hard:
            share = F.one_hot(share.argmax(-1), x.shape[1]).to(h.dtype)
        return self.head((share.unsqueeze(-1) * h).sum(1))


def hard_pick(hard: bool = False) -> Training:
    torch.manual_seed(42)
    model = HardPick(hard)
    return Training(
        model,
        partial(kit.marked, batch=32, items=24, dim=16, classes=6),
        set_loss,
        torch.optim.AdamW(model.parameters(), 3e-3),
        steps=200,
        every=5,
    )


class CachedLM(nn.Module):
    """Grouped heads; keys and values are put into a cache, with or without gradient."""

    def __init__(self, cached: bool) -> None:
        super().__init__()
        self.cached = cached
        self.embed, self.place = nn.Embedding(10, 48), nn.Embedding(24, 48)
        self.ln = nn.ModuleList(nn.RMSNorm(48) for _ in range(2))
        self.wq = nn.ModuleList(nn.Linear(48, 48, bias=False) for _ in range(2))
        self.wkv = nn.ModuleList(nn.Linear(48, 24, bias=False) for _ in range(2))
        self.wo = nn.ModuleList(nn.Linear(48, 48, bias=False) for _ in range(2))
        self.head = nn.Linear(48, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[1]
        x = self.embed(tokens) + self.place.weight[:n]
        for ln, wq, wkv, wo in zip(self.ln, self.wq, self.wkv, self.wo, strict=True):
            h = ln(x)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.cached):
                k, v = (kit.heads(t, 1) for t in wkv(h).chunk(2, -1))
            score = kit.heads(wq(h), 4) @ k.mT / 12**0.5
            p = score.masked_fill(kit.causal(n), -1e9).softmax(-1)
            x = x + wo(kit.joined(p @ v))
        return self.head(x)


def cached_lm(cached: bool = False) -> Training:
    torch.manual_seed(43)
    model = CachedLM(cached)
    return Training(
        model,
        partial(kit.repeats, batch=32, length=24, period=6, vocab=10),
        lm_loss,
        torch.optim.AdamW(model.parameters(), 4e-3),
        steps=120,
        every=5,
    )


DETACHED = Fault(
    "ind7-attention-cut-off",
    must=[["detached"]],
    may=["no-update"],  # what has no gradient stays where it was made
    variants=[
        Variant(
            "matcher-shares",
            matcher,
            broken=partial(matcher, True),
            symptom=cut_off(("to_q", "to_k")),
        ),
        Variant(
            "hard-pick", hard_pick, broken=partial(hard_pick, True), symptom=cut_off(("score",))
        ),
        Variant(
            "cached-keys-and-values",
            cached_lm,
            broken=partial(cached_lm, True),
            symptom=cut_off(("wkv",)),
        ),
    ],
)

# --- Left without a say ---------------------------------------------------------------------------


def hungry(like: tuple[str, ...], share: float) -> Symptom:
    """Matrices called so have that share of the largest gradient at most; the loss ends higher."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None
        mine, theirs = (
            median(_scorer_share(c.norms, like) for c in r.checkpoints) for r in (run, twin)
        )
        worse = run.loss_last > twin.loss_last + 0.1 * twin.loss_first
        return {"is": mine <= share < theirs and worse, "share": mine, "twin": theirs,
                "loss": run.loss_last, "twin_loss": twin.loss_last}  # fmt: skip

    return symptom


class Scaled(nn.Module):
    """Pre-norm attention whose result is scaled by a constant before it is added."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))
        self.key, self.value = nn.Embedding(12, 40), nn.Embedding(6, 40)
        self.asks = nn.Parameter(torch.randn(40))
        self.norm = nn.LayerNorm(40)
        self.attend = nn.ModuleDict({n: nn.Linear(40, 40) for n in ("q", "k", "v", "o")})
        self.mlp = nn.Sequential(nn.Linear(40, 80), nn.GELU(), nn.Linear(80, 40))
        self.head = nn.Linear(40, 6)

    def forward(self, key: Tensor, value: Tensor, question: Tensor) -> Tensor:
        x = self.key(key) + self.value(value)
        x = torch.cat([x, (self.key(question) + self.asks).unsqueeze(1)], 1)
        h = self.norm(x)
        q, k, v = (kit.heads(self.attend[n](h), 2) for n in "qkv")
        p = torch.softmax(q @ k.mT / 20**0.5, -1)
        x = x + self.factor * self.attend["o"](kit.joined(p @ v))
        return self.head((x + self.mlp(x))[:, -1])


def scaled(factor: float = 1.0) -> Training:
    torch.manual_seed(50)
    model = Scaled(factor)
    return Training(
        model,
        partial(kit.recall, batch=64, items=10, keys=12, values=6),
        recall_loss,
        torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
        steps=400,
        every=10,
    )


class LocalAndGlobal(nn.Module):
    """A causal convolution and causal attention side by side, weighed by a learnt gate."""

    def __init__(self, gate: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 48)
        self.place = nn.Parameter(torch.randn(24, 48))
        self.near = nn.Conv1d(48, 48, 3)
        self.qkv, self.out = nn.Linear(48, 144), nn.Linear(48, 48)
        self.gate = nn.Parameter(torch.full((48,), gate))
        self.head = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 10))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place
        near = self.near(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)
        q, k, v = (kit.heads(t, 2) for t in self.qkv(x).chunk(3, -1))
        score = (q @ k.mT / 24**0.5).masked_fill(kit.causal(x.shape[1]), -torch.inf)
        far = self.out(kit.joined(score.softmax(-1) @ v))
        g = torch.sigmoid(self.gate)
        return self.head((1 - g) * near + g * far)


def local_and_global(gate: float = 0.0) -> Training:
    torch.manual_seed(51)
    model = LocalAndGlobal(gate)
    return Training(
        model,
        partial(kit.repeats, batch=32, length=24, period=8, vocab=10),
        lm_loss,
        torch.optim.Adam(model.parameters(), 3e-3),
        steps=300,
        every=10,
    )


class GradientScale(torch.autograd.Function):
    """The identity, whose gradient is scaled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * grads[0], None


class Shortcut(nn.Module):
    """Attention pooling beside mean pooling of the same items; the former's gradient is scaled."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.lift = nn.Sequential(nn.Linear(16, 48), nn.LayerNorm(48), nn.SiLU())
        self.pick = nn.Sequential(nn.Linear(48, 24), nn.Tanh(), nn.Linear(24, 2))
        self.carry = nn.Linear(48, 24)
        self.average = nn.Linear(48, 48)
        self.head = nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        found = torch.einsum("bnh,bnd->bhd", self.pick(h).softmax(1), self.carry(h)).flatten(1)
        found = GradientScale.apply(found, self.factor)
        return self.head(torch.cat([found, self.average(h).mean(1)], -1))


def shortcut(factor: float = 1.0) -> Training:
    torch.manual_seed(52)
    model = Shortcut(factor)
    return Training(
        model,
        partial(kit.marked, batch=32, items=20, dim=16, classes=5),
        set_loss,
        torch.optim.SGD(model.parameters(), 0.03, momentum=0.9),
        steps=300,
        every=10,
    )


class TwoViews(nn.Module):
    """Two attentions over one memory, mixed by a softmax over two learnt logits."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.items = nn.Embedding(16, 32)
        self.colours = nn.Embedding(6, 32)
        self.mix = nn.Parameter(torch.tensor([bias, -bias]))
        self.by_place = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
        self.by_match = nn.ModuleDict({n: nn.Linear(32, 32) for n in ("ask", "keyed", "valued")})
        self.post = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 6))

    def forward(self, key: Tensor, value: Tensor, question: Tensor) -> Tensor:
        memory = self.items(key) + self.colours(value)
        asked = self.items(question)
        static = (self.by_place(memory).softmax(1) * memory).sum(1)
        score = (
            self.by_match["keyed"](memory) @ self.by_match["ask"](asked).unsqueeze(-1)
        ) / 32**0.5
        match = (score.softmax(1) * self.by_match["valued"](memory)).sum(1)
        weight = self.mix.softmax(0)
        return self.post(torch.cat([weight[0] * static + weight[1] * match, asked], -1))


def two_views(bias: float = 0.0) -> Training:
    torch.manual_seed(53)
    model = TwoViews(bias)
    return Training(
        model,
        partial(kit.recall, batch=64, items=12, keys=16, values=6),
        recall_loss,
        torch.optim.RMSprop(model.parameters(), 3e-3),
        steps=300,
        every=10,
    )


STARVED = Fault(
    "ind7-attention-without-a-say",
    must=[["starved-pathway"]],
    variants=[
        Variant(
            "scaled-residual",
            scaled,
            broken=partial(scaled, 1e-5),
            # SGD hardly moves what gets 1e-6; so the attention stays as flat as it was made: 0.98.
            may=["vanishing-gradient", "no-update", "diffuse-softmax"],
            symptom=hungry(("attend",), 1e-3),
        ),
        Variant(
            "gate-shut",
            local_and_global,
            broken=partial(local_and_global, -14.0),
            must=[["starved-pathway", "saturated-activation"]],
            # Adam moves the starved attention at random, until it looks at single entries.
            may=["vanishing-gradient", "peaked-softmax"],
            symptom=hungry(("qkv", "out"), 1e-3),
        ),
        Variant(
            "gradient-scale",
            shortcut,
            broken=partial(shortcut, 1e-5),
            may=["vanishing-gradient"],
            symptom=hungry(("pick", "carry"), 1e-3),
        ),
        Variant(
            "mix-of-two",
            two_views,
            broken=partial(two_views, 7.0),
            must=[["starved-pathway", "peaked-softmax"]],
            may=["vanishing-gradient"],
            symptom=hungry(("by_match",), 1e-3),
        ),
    ],
)

FAULTS = [PEAKED, DIFFUSE, BOTTLENECK, DETACHED, STARVED]
