"""Attention that doesn't get a gradient to its scores, or lets next to nothing through."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Make, Symptom, Variant
from analyses.faults.independent.kit_fourth_attention import (
    CLASSES,
    KEY,
    WIDTH,
    Attend,
    Block,
    Tokens,
    adam,
    digits,
    generator,
    lookup,
    patches,
    per_sample,
    per_token,
    recall,
    reverse,
)
from analyses.faults.observe import Observed
from analyses.faults.symptoms import decays, diffuse, grows, peaked
from analyses.faults.training import Batch, Training

# Scores so far apart that a softmax takes one entry before anything is learnt.


def raw_scores(faulty: bool) -> Training:
    """A transformer whose scores are not divided and whose projections are drawn far too wide."""
    torch.manual_seed(1)
    width = 48
    layers = [Attend(width, 2, scale=1.0 if faulty else None) for _ in range(2)]
    if faulty:
        for a in layers:
            nn.init.normal_(a.q.weight, std=2.0)
            nn.init.normal_(a.k.weight, std=2.0)
    body = nn.Sequential(*(Block(a, width) for a in layers))
    return adam(Tokens(WIDTH, width, body), lookup, per_token)


class Matching(nn.Module):
    """A query takes the classes of the labelled images that look like it."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(12, 16, 3, stride=2, padding=1),
            nn.Flatten(),
            nn.Linear(64, 32),
        )
        self.sharpness = sharpness

    def forward(self, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        known = F.normalize(self.embed(support), dim=-1)
        asked = F.normalize(self.embed(query), dim=-1)
        weights = torch.softmax(self.sharpness * asked @ known.T, -1)
        share: Tensor = weights @ F.one_hot(labels, 10).float()
        return torch.log(share + 1e-4)


def few_shots(step: int) -> Batch:
    """Labelled images and asked ones, all noisy."""
    (a, b), (c, d) = digits(2 * step, 40), digits(2 * step + 1, 24)
    g = generator(step, 9)
    return (
        (a + 0.7 * torch.randn(a.shape, generator=g))[:, None],
        b,
        (c + 0.7 * torch.randn(c.shape, generator=g))[:, None],
        d,
    )


def nll(model: nn.Module, *batch: Tensor) -> Tensor:
    """Negative log-likelihood of what is a logarithm already."""
    *given, target = batch
    return F.nll_loss(model(*given), target)


def matching(sharpness: float) -> Training:
    torch.manual_seed(2)
    return adam(Matching(sharpness), few_shots, nll, lr=2e-3)


class Encoder(nn.Module):
    """The library's encoder layers over tokens of a look-up."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.head(self.encoder(self.embed(x)))
        return answers


def big_projection(factor: float) -> Training:
    """Queries and keys of the fused projection are that much too large."""
    torch.manual_seed(3)
    model = Encoder(32, 2, 2)
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.self_attn.in_proj_weight[:64] *= factor
    return adam(model, partial(lookup, n=12), per_token)


class Translator(nn.Module):
    """Recurrent encoder and decoder; the decoder's states ask the encoder's (Luong)."""

    def __init__(self, width: int, std: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.decoder = nn.GRU(width, width, batch_first=True)
        self.general = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.general.weight, std=std)
        self.head = nn.Linear(2 * width, 11)

    def forward(self, x: Tensor, shifted: Tensor) -> Tensor:
        states, _ = self.encoder(self.embed(x))
        asking, _ = self.decoder(self.embed(shifted))
        scores = self.general(asking) @ states.transpose(1, 2)
        read = torch.softmax(scores, -1) @ states
        answers: Tensor = self.head(torch.cat([asking, read], -1))
        return answers


def reversed_pair(step: int) -> Batch:
    """Symbols, their reversal moved by one, and the reversal."""
    x, y = reverse(step)
    return x, F.pad(y[:, :-1], (1, 0), value=10), y


def translator(std: float) -> Training:
    torch.manual_seed(4)
    return adam(Translator(64, std), reversed_pair, per_token, lr=5e-3, steps=250)


class GraphAttention(nn.Module):
    """Nodes weigh their neighbours by two learnt vectors (GAT)."""

    def __init__(self, given: int, width: int, std: float) -> None:
        super().__init__()
        self.project = nn.Linear(given, width)
        self.mine, self.theirs = nn.Linear(width, 1), nn.Linear(width, 1)
        nn.init.normal_(self.mine.weight, std=std)
        nn.init.normal_(self.theirs.weight, std=std)

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        h = self.project(x)
        scores = F.leaky_relu(self.mine(h) + self.theirs(h).transpose(-2, -1), 0.2)
        scores = scores.masked_fill(graph == 0, -math.inf)
        read: Tensor = torch.softmax(scores, -1) @ h
        return read


class GraphNet(nn.Module):
    def __init__(self, given: int, width: int, std: float, classes: int) -> None:
        super().__init__()
        self.first = GraphAttention(given, width, std)
        self.second = GraphAttention(width, width, std)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        x = F.elu(self.first(x, graph))
        answers: Tensor = self.head(F.elu(self.second(x, graph)))
        return answers


def communities(step: int, nodes: int = 64) -> Batch:
    """Nodes of four groups, mostly joined within; features so noisy that one tells little."""
    g = generator(step, 5)
    group = torch.arange(nodes) % 4
    same = group[:, None] == group
    fixed = generator(0, 6)
    chance = torch.where(same, 0.7, 0.03)
    graph = (torch.rand(nodes, nodes, generator=fixed) < chance).float()
    graph = ((graph + graph.T + torch.eye(nodes)) > 0).float()
    centre = torch.randn(4, 10, generator=fixed)
    x = centre[group] + 2.5 * torch.randn(nodes, 10, generator=g)
    return x, graph, group


def graph_net(std: float) -> Training:
    torch.manual_seed(5)
    return adam(GraphNet(10, 24, std, 4), communities, per_sample, lr=5e-3)


class KeyValueMemory(nn.Module):
    """One read by a sharpened address; values and keys have encoders of their own."""

    def __init__(self, width: int, sharpening: float) -> None:
        super().__init__()
        self.ask = nn.Linear(KEY, width)
        self.keys = nn.Linear(KEY, width)
        self.values = nn.Linear(CLASSES, width)
        self.answer = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, CLASSES))
        self.sharpening = sharpening

    def forward(self, memory: Tensor, question: Tensor) -> Tensor:
        keys, values = memory.split([KEY, CLASSES], -1)
        scores = (self.keys(keys) @ self.ask(question)[..., None])[..., 0]
        address = F.softmax(self.sharpening * scores, -1)
        answers: Tensor = self.answer((address[..., None] * self.values(values)).sum(1))
        return answers


def key_value_memory(sharpening: float) -> Training:
    torch.manual_seed(6)
    return adam(KeyValueMemory(20, sharpening), recall, per_sample, lr=5e-3)


class Sloped(Attend):
    """Causal attention with a penalty for distance (ALiBi)."""

    slope = 0.1

    def scores(self, x: Tensor, memory: Tensor) -> Tensor:
        at = torch.arange(x.shape[1])
        return super().scores(x, memory) - self.slope * (at[:, None] - at).abs()


class SlopedModel(nn.Module):
    def __init__(self, width: int, slope: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, width)
        self.places = nn.Parameter(0.3 * torch.randn(16, width))
        blocks = []
        for _ in range(2):
            attend = Sloped(width, 4, causal=True)
            attend.slope = slope
            blocks.append(Block(attend, width))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.head(self.blocks(self.embed(x) + self.places))
        return answers


def echoes(step: int) -> Batch:
    """Symbols; each position must tell the one three places before (its own at the start)."""
    x = torch.randint(12, (24, 16), generator=generator(step, 7))
    return x, torch.cat([x[:, :3], x[:, :-3]], 1)


def sloped(slope: float) -> Training:
    torch.manual_seed(7)
    return adam(SlopedModel(32, slope), echoes, per_token, steps=250)


def bert(spread: float) -> Training:
    """The library's BERT; every answer is a look-up away. `spread` is initializer_range."""
    from transformers import BertConfig

    torch.manual_seed(8)
    config = BertConfig(
        vocab_size=24,
        hidden_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=spread,
        attn_implementation="eager",
    )
    return adam(BertTagger(config), mirrored, per_token)


class BertTagger(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers import BertModel

        self.bert = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(config.hidden_size, 12)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.head(self.bert(input_ids=x).last_hidden_state)
        return answers


def mirrored(step: int) -> Batch:
    """Symbols, and the one on the other side of the row's middle."""
    x = torch.randint(12, (24, 12), generator=generator(step, 8))
    return x, x.flip(1)


PEAKED = Fault(
    "ind4-peaked",
    must=[["peaked-softmax"]],
    symptom=peaked(0.1),
    variants=[
        Variant(
            "raw-scores",
            healthy=partial(raw_scores, False),
            broken=partial(raw_scores, True),
        ),
        Variant(
            "matching-sharp",
            healthy=partial(matching, 8.0),
            broken=partial(matching, 2500.0),
            # The whole gradient passes the softmax, by construction.
            may=["softmax-borne"],
            healthy_may=["softmax-borne"],
        ),
        Variant(
            "fused-projection",
            healthy=partial(big_projection, 1.0),
            broken=partial(big_projection, 50.0),
        ),
        Variant(
            "luong-general",
            healthy=partial(translator, 0.1),
            broken=partial(translator, 60.0),
        ),
        Variant(
            "graph-attention",
            healthy=partial(graph_net, 0.2),
            broken=partial(graph_net, 60.0),
            # The two vectors that score read what the values read, and get nothing.
            may=["starved-pathway"],
        ),
        Variant(
            "sharpened-memory",
            healthy=partial(key_value_memory, 0.5),
            broken=partial(key_value_memory, 200.0),
            # Keys and questions have no way to the loss but the closed softmax.
            may=["vanishing-gradient", "softmax-borne"],
            healthy_may=["softmax-borne"],
        ),
        Variant(
            "steep-slope",
            healthy=partial(sloped, 0.05),
            broken=partial(sloped, 60.0),
            # Each place sees itself alone; queries and keys have a gradient of exactly 0.
            may=["starved-pathway", "no-update"],
        ),
        Variant(
            "initial-range",
            healthy=partial(bert, 0.05),
            broken=partial(bert, 6.0),
        ),
    ],
)

# Scores so close together that a softmax weighs all entries the same, and stays so.


def mistyped_scale(scale: float) -> Training:
    """One-headed layers; in the faulty run the exponent of the width lacks its decimal point."""
    torch.manual_seed(11)
    body = nn.Sequential(*(Block(Attend(40, 1, scale=scale), 40) for _ in range(3)))
    return adam(Tokens(WIDTH, 40, body), partial(lookup, n=24), per_token, lr=2e-3)


class Cosine(Attend):
    """Scores are cosines, between -1 and 1, times a factor."""

    factor = 25.0

    def scores(self, x: Tensor, memory: Tensor) -> Tensor:
        q = F.normalize(self.split(self.q(x)), dim=-1)
        k = F.normalize(self.split(self.k(memory)), dim=-1)
        return self.factor * torch.matmul(q, k.transpose(-2, -1))


class PostNorm(nn.Module):
    """Norms after the sums; two kinds of look-up answered by one head."""

    def __init__(self, width: int, factor: float) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, width)
        self.attends = nn.ModuleList(Cosine(width, 4) for _ in range(2))
        for a in self.attends:
            a.factor = factor  # type: ignore[assignment]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 64), nn.SiLU(), nn.Linear(64, width)) for _ in range(2)
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for i, (attend, mlp) in enumerate(zip(self.attends, self.mlps, strict=True)):
            x = self.norms[2 * i](x + attend(x))
            x = self.norms[2 * i + 1](x + mlp(x))
        answers: Tensor = self.head(x)
        return answers


def cosine(factor: float) -> Training:
    torch.manual_seed(12)
    return adam(PostNorm(48, factor), partial(lookup, n=20), per_token, steps=250)


class Additive(nn.Module):
    """A recurrent decoder that looks at the source before each symbol (Bahdanau)."""

    def __init__(self, width: int, temperature: float) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Embedding(11, width)
        self.places = nn.Parameter(0.5 * torch.randn(8, width))
        self.decoder = nn.GRUCell(2 * width, width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)
        self.head = nn.Linear(2 * width, 11)
        self.temperature = temperature

    def forward(self, x: Tensor, shifted: Tensor) -> Tensor:
        memory = self.embed(x) + self.places
        keys = self.key(memory)
        state, read = torch.zeros(len(x), self.width), memory.mean(1)
        answers = []
        for symbol in self.embed(shifted).unbind(1):
            state = self.decoder(torch.cat([symbol, read], -1), state)
            scores = self.score(torch.tanh(keys + self.query(state)[:, None]))[..., 0]
            weights = torch.softmax(scores / self.temperature, -1)
            read = (weights[..., None] * memory).sum(1)
            answers.append(self.head(torch.cat([state, read], -1)))
        return torch.stack(answers, 1)


def additive(temperature: float) -> Training:
    torch.manual_seed(13)
    return adam(Additive(32, temperature), reversed_pair, per_token, lr=2e-3, steps=240)


class Reader(nn.Module):
    """A question reads a memory by one cross-attention; `twice` normalises the weights again."""

    def __init__(self, width: int, twice: bool) -> None:
        super().__init__()
        self.slots = nn.Linear(KEY + CLASSES, width)
        self.ask = nn.Linear(KEY, width)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, CLASSES))
        self.twice = twice

    def forward(self, memory: Tensor, question: Tensor) -> Tensor:
        slots = self.slots(memory)
        query = self.q(self.ask(question))
        scores = torch.einsum("bd,bnd->bn", query, self.k(slots)) / math.sqrt(query.shape[-1])
        if self.twice:
            scores = torch.softmax(scores, -1)
        weights = torch.softmax(scores, -1)
        answers: Tensor = self.head(torch.einsum("bn,bnd->bd", weights, self.v(slots)))
        return answers


def reader(twice: bool) -> Training:
    torch.manual_seed(14)
    return adam(Reader(32, twice), partial(recall, n=40), per_sample, lr=4e-3, steps=250)


class Glimpses(nn.Module):
    """Several heads look into the memory; the weights are kept, for a regulariser."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.ask = nn.Linear(KEY, heads * width)
        self.keys = nn.Linear(KEY, heads * width)
        self.heads = heads
        self.head = nn.Linear(heads * CLASSES, CLASSES)
        self.weights = torch.zeros(0)

    def forward(self, memory: Tensor, question: Tensor) -> Tensor:
        keys, values = memory.split([KEY, CLASSES], -1)
        q = self.ask(question).unflatten(-1, (self.heads, -1))
        k = self.keys(keys).unflatten(-1, (self.heads, -1))
        scores = torch.einsum("bhd,bnhd->bhn", q, k) / math.sqrt(q.shape[-1])
        self.weights = torch.softmax(scores, -1)
        answers: Tensor = self.head((self.weights @ values).flatten(1))
        return answers


def spread_out(strength: float, model: Glimpses, *batch: Tensor) -> Tensor:
    """The answer's loss, plus how far the weights are from being equal."""
    answer = per_sample(model, *batch)
    w = model.weights
    return answer + strength * (w * torch.log(w * w.shape[-1] + 1e-9)).sum(-1).mean()


def glimpses(strength: float) -> Training:
    torch.manual_seed(15)
    model = Glimpses(2, 16)
    return adam(model, partial(recall, n=20), partial(spread_out, strength), lr=6e-3, steps=250)


class Haystack(nn.Module):
    """A learnt bilinear form finds the entry that is asked for, among very many."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = nn.Linear(KEY, 24)
        self.keys = nn.Linear(KEY, 24)
        self.values = nn.Linear(CLASSES, 16)
        self.answer = nn.Sequential(nn.Linear(16, 24), nn.ELU(), nn.Linear(24, CLASSES))

    def forward(self, memory: Tensor, question: Tensor) -> Tensor:
        keys, values = memory.split([KEY, CLASSES], -1)
        scores = (self.keys(keys) * self.ask(question)[:, None]).sum(-1) * 24**-0.5
        read = torch.softmax(scores, -1)[:, None] @ self.values(values)
        answers: Tensor = self.answer(read[:, 0])
        return answers


def haystack(n: int) -> Training:
    torch.manual_seed(16)
    model = Haystack()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    return Training(model, partial(recall, batch=16, n=n), per_sample, optimizer, steps=250)


class GemmaTagger(nn.Module):
    def __init__(self, scalar: int) -> None:
        super().__init__()
        from transformers import Gemma2Config, Gemma2Model

        config = Gemma2Config(
            vocab_size=16,
            pad_token_id=15,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=32,
            query_pre_attn_scalar=scalar,
            initializer_range=0.1,
            attn_implementation="eager",
        )
        self.gemma = Gemma2Model(config)
        self.head = nn.Linear(32, 12)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.head(self.gemma(input_ids=x, use_cache=False).last_hidden_state)
        return answers


def gemma(scalar: int) -> Training:
    torch.manual_seed(17)
    return adam(GemmaTagger(scalar), echoes, per_token, lr=4e-3)


class Filter(nn.Module):
    """Nodes read their neighbours, of which many are noise and say so (GATv2)."""

    def __init__(self, width: int, divisor: float) -> None:
        super().__init__()
        self.project = nn.Linear(9, width)
        self.mine, self.theirs = nn.Linear(width, width), nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4))
        self.divisor = divisor

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        h = self.project(x)
        pair = self.mine(h)[:, None] + self.theirs(h)[None]
        scores = self.score(F.leaky_relu(pair, 0.2))[..., 0] / self.divisor
        scores = torch.where(graph > 0, scores, torch.tensor(-1e9))
        answers: Tensor = self.mix(torch.softmax(scores, -1) @ h)
        return answers


def liars(step: int, nodes: int = 60) -> Batch:
    """A dense graph; a node's class is what its honest neighbours' features say."""
    g = generator(step, 10)
    group = torch.arange(nodes) % 4
    graph = (group[:, None] == group).float()
    honest = torch.rand(nodes, generator=g) < 0.3
    honest[:4] = True
    centre = torch.randn(4, 8, generator=generator(0, 11))
    noise = torch.randn(nodes, 8, generator=g)
    # A node doesn't know its own group: it has its neighbours' word for it only.
    x = torch.where(honest[:, None], centre[group] + 0.3 * noise, 8.0 * noise)
    return torch.cat([x, 3.0 * honest[:, None].float()], -1), graph, group


def graph_filter(divisor: float) -> Training:
    torch.manual_seed(18)
    return adam(Filter(24, divisor), liars, per_sample, lr=5e-3)


def last_diffuse(run: Observed, twin: Observed | None) -> dict[str, Any]:
    """The softmax that is called last, whose weights are used, stays even to the end."""
    found = min(c.entropies[-1] for c in run.checkpoints)
    evidence = {"entropy": found, "loss": run.loss_last, "twin_loss": twin.loss_last if twin else 0}
    return {"is": found >= 0.97, **evidence}


DIFFUSE = Fault(
    "ind4-diffuse",
    must=[["diffuse-softmax"]],
    symptom=diffuse(0.97),
    variants=[
        Variant(
            "mistyped-scale",
            healthy=partial(mistyped_scale, 40**-0.5),
            broken=partial(mistyped_scale, 40**-2.5),
            # Queries and keys read what the values read, and get a thousandth of the gradient.
            may=["starved-pathway"],
        ),
        Variant(
            "cosine-no-factor",
            healthy=partial(cosine, 25.0),
            broken=partial(cosine, 12**-0.5 / 12),
        ),
        Variant(
            "additive-hot",
            healthy=partial(additive, 1.0),
            broken=partial(additive, 500.0),
            # Each look at the source depends on the last by the decoder's state alone.
            may=["information-bottleneck"],
            healthy_may=["information-bottleneck"],
        ),
        Variant(
            "softmax-twice",
            healthy=partial(reader, False),
            broken=partial(reader, True),
            symptom=last_diffuse,
        ),
        Variant(
            "kept-uniform",
            healthy=partial(glimpses, 0.0),
            broken=partial(glimpses, 30.0),
            # Keys and question have no other way to the loss.
            may=["softmax-borne"],
            healthy_may=["softmax-borne"],
        ),
        Variant(
            "haystack",
            healthy=partial(haystack, 12),
            broken=partial(haystack, 2500),
            # Keys and question have no other way to the loss, and it is 1/2500 wide.
            may=["vanishing-gradient", "softmax-borne"],
            healthy_may=["softmax-borne"],
        ),
        Variant(
            "library-scalar",
            healthy=partial(gemma, 16),
            broken=partial(gemma, 16**8),
            symptom=diffuse(0.85),  # the mask shortens the rows
            may=["starved-pathway"],
        ),
        Variant(
            "graph-divisor",
            healthy=partial(graph_filter, 1.0),
            broken=partial(graph_filter, 500.0),
            symptom=diffuse(0.65),  # 15 neighbours of 60: a logarithm of 0.66
        ),
    ],
)

# Two attention layers with next to nothing between them.


def narrow_between(make: Make, first: str, second: str, attended: int) -> Symptom:
    """The rank of the second layer's dependence on the first's output is a tenth of the numbers.

    `attended` counts the numbers in the values that the first layer attends to.
    """

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        training = make()
        model = training.model.double()
        kept: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, given: Any, out: Any) -> None:
            kept.setdefault(name, out[0] if isinstance(out, tuple) else out)

        for name in (first, second):
            model.get_submodule(name).register_forward_hook(partial(keep, name))
        batch = [t.double() if t.is_floating_point() else t for t in training.batch(0)]
        training.loss(model, *batch)
        g = generator(0, 13)
        rows = []
        for _ in range(150):
            weights = torch.randn(kept[second][0].shape, generator=g, dtype=torch.double)
            wanted = (kept[second][0] * weights).sum()
            row = torch.autograd.grad(wanted, kept[first], retain_graph=True)[0]
            rows.append(row[0].flatten())
        values = torch.linalg.svdvals(torch.stack(rows))
        rank = int((values > 1e-9 * values[0]).sum())
        evidence = {"rank": rank, "of": attended, "loss": run.loss_last}
        if twin:
            evidence["twin"] = twin.loss_last
        return {"is": 0 < rank <= attended / 10, **evidence}

    return symptom


class OneVector(nn.Module):
    """Encoder and decoder of symbols; the faulty one hands over the tokens' mean only."""

    def __init__(self, width: int, n: int, mean: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.places = nn.Parameter(0.5 * torch.randn(n, width))
        self.encoder = Block(Attend(width, 2), width)
        self.hand_over = nn.Linear(width, width)
        self.decoder = Block(Attend(width, 2), width)
        self.slots = nn.Parameter(0.5 * torch.randn(n, width))
        self.head = nn.Linear(width, 20)
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        coded = self.hand_over(self.encoder(self.embed(x) + self.places))
        if self.mean:
            coded = coded.mean(1, keepdim=True)
        answers: Tensor = self.head(self.decoder(self.slots + coded))
        return answers


def many_symbols(step: int) -> Batch:
    x = torch.randint(20, (24, 24), generator=generator(step, 14))
    return x, x.flip(1)


def one_vector(mean: bool) -> Training:
    torch.manual_seed(21)
    return adam(OneVector(32, 24, mean), many_symbols, per_token, lr=4e-3)


class Broadcast(nn.Module):
    """Two library attentions; in between, each token may get the mean in place of itself."""

    def __init__(self, width: int, pooled: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, width)
        self.first = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.places = nn.Parameter(torch.randn(16, width))
        self.second = nn.MultiheadAttention(width, 2, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, CLASSES))
        self.pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.norm(x + self.first(x, x, x)[0])
        if self.pooled:
            x = x.mean(1, keepdim=True).expand(x.shape)
        x = x + self.places
        x = x + self.second(x, x, x)[0]
        answers: Tensor = self.head(x)
        return answers


def broadcast(pooled: bool) -> Training:
    torch.manual_seed(22)
    return adam(Broadcast(40, pooled), lookup, per_token, lr=4e-3, steps=250)


class Latents(nn.Module):
    """Latent vectors read the tokens, think, and are read by the places (perceiver)."""

    def __init__(self, given: int, width: int, n: int, latents: int) -> None:
        super().__init__()
        self.embed = nn.Linear(given, width)
        self.places = nn.Parameter(torch.randn(n, width))
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.read = Attend(width)
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.asks = nn.Parameter(torch.randn(n, width))
        self.answer = Attend(width)
        self.head = nn.Linear(width, given)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x) + self.places
        latent = self.read(self.latents.expand(len(x), -1, -1), tokens)
        latent = latent + self.latents
        latent = latent + self.think(latent)
        answers: Tensor = self.head(self.answer(self.asks.expand(len(x), -1, -1), latent))
        return answers


def vectors(step: int) -> Batch:
    """Rows of random vectors, to be told again in their order."""
    x = torch.randn(24, 24, 8, generator=generator(step, 15))
    return x, x


def squared(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(model(x), target)


def latents(count: int) -> Training:
    torch.manual_seed(23)
    return adam(Latents(8, 32, 24, count), vectors, squared, lr=6e-3, steps=400, every=10)


class Adapter(nn.Module):
    """A narrow pair of linear maps, with or without the way around."""

    def __init__(self, width: int, inner: int, around: bool) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)
        self.around = around

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(F.silu(self.down(x)))
        return x + y if self.around else y


def adapter(around: bool) -> Training:
    torch.manual_seed(24)
    width = 48
    body = nn.Sequential(
        Block(Attend(width, 3), width), Adapter(width, 1, around), Block(Attend(width, 3), width)
    )
    return adam(Tokens(WIDTH, width, body), lookup, per_token, lr=3e-3)


class ClassTokenOnly(nn.Module):
    """An image's patches, told again after two stages; one keeps its class token only."""

    def __init__(self, width: int, only: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.3 * torch.randn(17, width))
        self.stage1 = Block(Attend(width, 4), width)
        self.masks = nn.Parameter(0.3 * torch.randn(16, width))
        self.stage2 = Block(Attend(width, 4), width)
        self.head = nn.Linear(width, 4)
        self.only = only

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1) + self.places
        x = self.stage1(x)
        x = x[:, :1].expand(-1, 16, -1) if self.only else x[:, 1:]
        answers: Tensor = self.head(self.stage2(x + self.masks))
        return answers


def mirrored_image(step: int) -> Batch:
    """Patches of two digits laid over each other, and of the same upside down."""
    a, b = digits(step)[0], digits(step + 50_000)[0]
    image = a - b.transpose(1, 2)
    return patches(image), patches(image.flip(1))


def class_token_only(only: bool) -> Training:
    torch.manual_seed(25)
    return adam(ClassTokenOnly(16, only), mirrored_image, squared, lr=5e-3, steps=250)


class Hops(nn.Module):
    """A question reads a memory, and what it found asks once more (end-to-end memory)."""

    def __init__(self, state: int) -> None:
        super().__init__()
        self.keys1, self.keys2 = nn.Linear(KEY, KEY), nn.Linear(KEY, KEY)
        self.hop1, self.hop2 = Read(), Read()
        self.down, self.up = nn.Linear(KEY, state), nn.Linear(state, KEY)
        self.head = nn.Linear(KEY, KEY)
        for layer in (self.keys1, self.keys2, self.down, self.up):
            nn.init.eye_(layer.weight)

    def forward(self, memory: Tensor, question: Tensor) -> Tensor:
        keys, values = memory.split(KEY, -1)
        u = self.hop1(question, self.keys1(keys), values)
        u = self.hop2(self.up(self.down(u)), self.keys2(keys), values)
        answers: Tensor = self.head(u)
        return answers


class Read(nn.Module):
    def forward(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        weights = torch.softmax((keys @ query[..., None])[..., 0] * keys.shape[-1] ** -0.5, -1)
        return (weights[:, None] @ values)[:, 0]


def chains(step: int, batch: int = 32, n: int = 20) -> Batch:
    """Slots of a key and the key of the next; asked is what comes after the next one."""
    g = generator(step, 16)
    key = torch.randn(batch, n, KEY, generator=g)
    order = torch.rand(batch, n, generator=g).argsort(-1)
    rows = torch.arange(batch)[:, None]
    links = torch.empty(batch, n, dtype=torch.long)
    links[rows, order] = order.roll(-1, 1)
    following = key[rows, links]
    at = torch.randint(n, (batch, 1), generator=g)
    answer = following[rows, links[rows, at]][:, 0]
    return torch.cat([key, following], -1), key[rows, at][:, 0], answer


def squared_answer(model: nn.Module, memory: Tensor, question: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(model(memory, question), target)


def hops(state: int) -> Training:
    torch.manual_seed(26)
    return adam(Hops(state), chains, squared_answer, lr=5e-3, steps=300)


def _bottleneck(
    name: str,
    make: Callable[[Any], Training],
    sound: Any,
    faulty: Any,
    layers: tuple[str, str],
    attended: int,
    **more: Any,
) -> Variant:
    """A variant with the measurement that suits its layers."""
    broken = partial(make, faulty)
    symptom = narrow_between(broken, *layers, attended)
    return Variant(name, healthy=partial(make, sound), broken=broken, symptom=symptom, **more)


BOTTLENECK = Fault(
    "ind4-between-attentions",
    must=[["information-bottleneck"]],
    variants=[
        _bottleneck(
            "one-vector",
            one_vector,
            False,
            True,
            ("encoder.attend", "decoder.attend"),
            24 * 32,
        ),
        _bottleneck("mean-for-all", broadcast, False, True, ("first", "second"), 16 * 40),
        _bottleneck(
            "two-latents",
            latents,
            24,
            2,
            ("read", "answer"),
            24 * 32,
            # Each place settles for one of the two latents, and stays with it.
            may=["peaked-softmax"],
        ),
        _bottleneck(
            "narrow-adapter",
            adapter,
            True,
            False,
            ("body.0.attend", "body.2.attend"),
            16 * 48,
        ),
        _bottleneck(
            "class-token-only",
            class_token_only,
            False,
            True,
            ("stage1.attend", "stage2.attend"),
            17 * 16,
        ),
        _bottleneck(
            "squeezed-hop",
            hops,
            12,
            2,
            ("hop1", "hop2"),
            20 * 12,
            # What lies between the reads is used as a question only: all its gradient comes
            # through a softmax. The sound network's reads hang together by one vector, too.
            may=["softmax-borne"],
            healthy_may=["information-bottleneck", "softmax-borne"],
        ),
    ],
)

# Stacks of attention through which the gradient fades or swells.


class Bare(nn.Module):
    """Layers of attention and a linear map, with or without a way around."""

    def __init__(self, width: int, layers: int, around: bool) -> None:
        super().__init__()
        self.attends = nn.ModuleList(Attend(width, 2) for _ in range(layers))
        self.norms = nn.ModuleList(
            nn.LayerNorm(width) if around else nn.Identity() for _ in range(layers)
        )
        self.around = around

    def forward(self, x: Tensor) -> Tensor:
        for attend, norm in zip(self.attends, self.norms, strict=True):
            y = attend(norm(x))
            x = x + y if self.around else F.gelu(y)
        return x


class Answers(nn.Module):
    """Tokens in, an answer for each out, with no norm before the head."""

    def __init__(self, width: int, body: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, width)
        self.body = body
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.head(self.body(self.embed(x)))
        return answers


def no_way_around(around: bool) -> Training:
    torch.manual_seed(31)
    model = Answers(32, Bare(32, 8, around))
    return adam(model, partial(lookup, n=10), per_token, lr=2e-3, steps=150)


class Gated(nn.Module):
    """Library attention behind gates; a closed gate either keeps the old value or nothing."""

    def __init__(self, width: int, layers: int, carry: bool) -> None:
        super().__init__()
        self.attends = nn.ModuleList(
            nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(layers)
        )
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        for gate in self.gates:
            nn.init.constant_(gate.bias, -1.5)  # type: ignore[arg-type]
        self.carry = carry

    def forward(self, x: Tensor) -> Tensor:
        for attend, gate in zip(self.attends, self.gates, strict=True):
            opened = torch.sigmoid(gate(x))
            y = opened * attend(x, x, x, need_weights=False)[0]
            x = y + (1 - opened) * x if self.carry else y
        return x


def gated(carry: bool) -> Training:
    torch.manual_seed(32)
    model = Answers(40, Gated(40, 6, carry))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    return Training(model, partial(counted, n=9), per_token, optimizer, steps=200)


def counted(step: int, n: int) -> Batch:
    """Tokens with a class; each must tell which class is the most frequent."""
    tokens, _ = lookup(step, n=n)
    votes = tokens[..., 2 * KEY :].sum(1)
    return tokens, votes.argmax(-1)[:, None].expand(-1, n)


class DeepGraph(nn.Module):
    """Many rounds of graph attention with a sigmoid after each, or a ReLU and a norm beside."""

    def __init__(self, width: int, layers: int, sound: bool) -> None:
        super().__init__()
        self.first = nn.Linear(10, width)
        self.layers = nn.ModuleList(GraphAttention(width, width, 0.2) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers if sound else 0))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        x = self.first(x)
        for i, layer in enumerate(self.layers):
            if len(self.norms):
                x = x + F.elu(layer(self.norms[i](x), graph))
            else:
                x = torch.sigmoid(layer(x, graph))
        answers: Tensor = self.head(x)
        return answers


def deep_graph(sound: bool) -> Training:
    torch.manual_seed(33)
    return adam(DeepGraph(24, 8, sound), communities, per_sample, lr=2e-3, steps=150)


VANISHING = Fault(
    "ind4-attention-fades",
    must=[["vanishing-gradient"]],
    symptom=decays(2.5),
    variants=[
        Variant(
            "no-way-around",
            healthy=partial(no_way_around, True),
            broken=partial(no_way_around, False),
            # What comes to the later layers is the same for all tokens, and next to 0.
            may=["diffuse-softmax", "starved-pathway", "no-update"],
        ),
        Variant(
            "gates-that-lose",
            healthy=partial(gated, True),
            broken=partial(gated, False),
            may=["diffuse-softmax", "starved-pathway", "no-update"],
        ),
        Variant(
            "sigmoid-rounds",
            healthy=partial(deep_graph, True),
            broken=partial(deep_graph, False),
            may=["diffuse-softmax", "starved-pathway"],
        ),
    ],
)


class Raw(nn.Module):
    """Attention and a network, both beside a way around, and no norm anywhere."""

    def __init__(self, width: int, gain: float) -> None:
        super().__init__()
        self.attend = Attend(width, 2)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
        with torch.no_grad():
            for p in [self.attend.v.weight, self.attend.out.weight, *self.mlp.parameters()]:
                p *= gain

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        y: Tensor = x + self.mlp(x)
        return y


def raw_stack(gain: float) -> Training:
    torch.manual_seed(34)
    model = Answers(32, nn.Sequential(*(Raw(32, gain) for _ in range(6))))
    return adam(model, partial(lookup, n=12), per_token, lr=3e-3, clip=1.0)


class Linearised(nn.Module):
    """Attention without a softmax: positive queries and keys, in one product with the values."""

    def __init__(self, width: int, divide: bool) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.v, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.divide = divide

    def forward(self, x: Tensor) -> Tensor:
        q = F.elu(4 * F.normalize(self.q(x), dim=-1)) + 1
        k = F.elu(4 * F.normalize(self.k(x), dim=-1)) + 1
        read = q @ (k.transpose(1, 2) @ self.v(x))
        read = read / (q @ k.sum(1)[..., None] if self.divide else x.shape[-1])
        y: Tensor = x + self.out(read)
        return y


def summed(divide: bool) -> Training:
    torch.manual_seed(35)
    model = Answers(40, nn.Sequential(*(Linearised(40, divide) for _ in range(8))))
    batch = partial(counted, n=24)
    return adam(model, batch, per_token, lr=5e-4, clip=1.0)


class Universal(nn.Module):
    """One library layer, used again and again (universal transformer)."""

    def __init__(self, width: int, times: int, norm: bool) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)
        self.change = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        nn.init.normal_(self.change.weight, std=2.5 * width**-0.5)
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = x + self.attend(x, x, x, need_weights=False)[0]
            x = self.norm(x + F.gelu(self.change(x)))
        return x


def universal(norm: bool) -> Training:
    torch.manual_seed(36)
    model = Answers(32, Universal(32, 8, norm))
    return adam(model, partial(counted, n=10), per_token, lr=1e-3, clip=1.0)


EXPLODING = Fault(
    "ind4-attention-swells",
    must=[["exploding-gradient"]],
    symptom=grows(2.5),
    variants=[
        Variant(
            "no-norms",
            healthy=partial(raw_stack, 1.0),
            broken=partial(raw_stack, 2.5),
            # The values that swell make the later layers' scores huge.
            may=["peaked-softmax"],
        ),
        Variant("sums-for-means", healthy=partial(summed, True), broken=partial(summed, False)),
        Variant(
            "one-layer-again",
            healthy=partial(universal, True),
            broken=partial(universal, False),
            may=["peaked-softmax"],  # the last rounds look with huge values
        ),
    ],
)

FAULTS = [PEAKED, DIFFUSE, BOTTLENECK, VANISHING, EXPLODING]
