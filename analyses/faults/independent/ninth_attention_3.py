"""Parts of models with attention that no gradient reaches, or that no optimizer holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_ninth_a import (
    Evidence,
    digit_bags,
    digit_patches,
    grammar,
    next_word,
    recall,
    reversal,
    stories,
)
from analyses.faults.observe import Observed
from analyses.faults.symptoms import left_out, no_gradient_before
from analyses.faults.training import Batch, Training


def suffers(evidence: Callable[..., Evidence], margin: float = 0.05) -> Callable[..., Evidence]:
    """What is measured, and a loss that ends above the twin's."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        assert twin is not None, "needs a twin"
        found = evidence(run, twin)
        worse = run.loss_last - twin.loss_last >= margin * twin.loss_first
        losses = {"loss": run.loss_last, "twin_loss": twin.loss_last}
        return {**found, "is": found["is"] and worse, **losses}

    return symptom


# ---- sequence to sequence with additive attention ------------------------------------------------


class Additive(nn.Module):
    """v·tanh(W h + U s) over the encoder's states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.W, self.U = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, 1, bias=False)

    def forward(self, state: Tensor, states: Tensor) -> Tensor:
        energy = self.v(torch.tanh(self.W(states) + self.U(state).unsqueeze(1)))
        return torch.softmax(energy.squeeze(-1), dim=1)


class Seq2Seq(nn.Module):
    """GRU encoder, GRU cell with attention."""

    def __init__(self, words: int, width: int, for_plots: bool) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(words, width), nn.Embedding(words, width)
        self.encoder = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.join = nn.Linear(2 * width, width)
        self.attention = Additive(width)
        self.cell = nn.GRUCell(2 * width, width)
        self.words = nn.Linear(2 * width, words)
        self.for_plots = for_plots

    def forward(self, source: Tensor, so_far: Tensor) -> tuple[Tensor, Tensor]:
        states = self.join(self.encoder(self.source(source))[0])
        state = states.mean(1)
        logits, maps = [], []
        for word in self.target(so_far).unbind(1):
            if self.for_plots:
                with torch.no_grad():
                    weights = self.attention(state, states)
            else:
                weights = self.attention(state, states)
            context = (weights.unsqueeze(1) @ states).squeeze(1)
            state = self.cell(torch.cat([word, context], -1), state)
            logits.append(self.words(torch.cat([state, context], -1)))
            maps.append(weights)
        return torch.stack(logits, 1), torch.stack(maps, 1)


def _words(model: nn.Module, source: Tensor, so_far: Tensor, target: Tensor) -> Tensor:
    logits, _ = model(source, so_far)
    return next_word(logits, target)


def seq2seq(for_plots: bool = False) -> Training:
    torch.manual_seed(41)
    model = Seq2Seq(12, 32, for_plots)
    return Training(
        model=model,
        batch=partial(reversal, length=9),
        loss=_words,
        optimizer=torch.optim.Adam(model.parameters(), 4e-3),
        steps=220,
        every=10,
        clip=1.0,
    )


# ---- hard attention ------------------------------------------------------------------------------


class Reader(nn.Module):
    """Reads the sentence that fits the question: all of them weighed, or the best one."""

    def __init__(self, words: int, places: int, width: int, hard: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.key = nn.Linear(2 * width, width)
        self.query = nn.Linear(width, width)
        self.content = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU())
        self.out = nn.Linear(width, places)
        self.hard = hard

    def forward(self, sentences: Tensor, asked: Tensor) -> Tensor:
        text = self.words(sentences).flatten(2)
        keys, content = self.key(text), self.content(text)
        scores = torch.einsum("bd,bnd->bn", self.query(self.words(asked)), keys)
        if self.hard:
            best = scores.argmax(dim=1)
            read = content[torch.arange(len(best)), best]
        else:
            read = torch.einsum("bn,bnd->bd", scores.softmax(-1), content)
        return self.out(read)


def _where(model: nn.Module, sentences: Tensor, asked: Tensor, place: Tensor) -> Tensor:
    return F.cross_entropy(model(sentences, asked), place)


def reader(hard: bool = False) -> Training:
    torch.manual_seed(42)
    model = Reader(12, 6, 24, hard)
    return Training(
        model=model,
        batch=stories,
        loss=_where,
        optimizer=torch.optim.Adam(model.parameters(), 4e-3),
        steps=250,
        every=10,
    )


# ---- a library encoder and a head ----------------------------------------------------------------


class Tagged(nn.Module):
    """BERT over key value … question, and a classifier on the first token."""

    def __init__(self, features_only: bool) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=24,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.1,
        )
        self.bert = BertModel(config, add_pooling_layer=False)
        self.classifier = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4))
        self.features_only = features_only

    def forward(self, text: Tensor) -> Tensor:
        if self.features_only:
            with torch.no_grad():
                h = self.bert(input_ids=text).last_hidden_state
        else:
            h = self.bert(input_ids=text).last_hidden_state
        return self.classifier(h[:, 0])


def _pairs(step: int) -> Batch:
    key, value, asked, answer = recall(step, pairs=4, keys=8, values=4)
    return torch.cat([asked[:, None], torch.stack([key, value + 16], -1).flatten(1)], 1), answer


def _class(model: nn.Module, text: Tensor, answer: Tensor) -> Tensor:
    return F.cross_entropy(model(text), answer)


def tagged(features_only: bool = False) -> Training:
    torch.manual_seed(43)
    model = Tagged(features_only)
    return Training(
        model=model,
        batch=_pairs,
        loss=_class,
        optimizer=torch.optim.AdamW(model.parameters(), 1e-3),
        steps=400,
        every=10,
    )


# ---- nn.Transformer, encoder called apart --------------------------------------------------------


class Whole(nn.Module):
    """nn.Transformer with embeddings."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(words, width), nn.Embedding(words, width)
        self.place = nn.Embedding(16, width)
        self.transformer = nn.Transformer(
            width, 4, 2, 2, 64, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, words)

    def encode(self, source: Tensor) -> Tensor:
        x = self.source(source) + self.place(torch.arange(source.shape[1]))
        return self.transformer.encoder(x)

    def decode(self, so_far: Tensor, memory: Tensor) -> Tensor:
        T = so_far.shape[1]
        y = self.target(so_far) + self.place(torch.arange(T))
        mask = nn.Transformer.generate_square_subsequent_mask(T)
        return self.head(self.transformer.decoder(y, memory, tgt_mask=mask))


def _in_parts(
    model: nn.Module, source: Tensor, so_far: Tensor, target: Tensor, cached: bool = False
) -> Tensor:
    assert isinstance(model, Whole)
    memory = model.encode(source)
    if cached:
        memory = memory.detach()
    return next_word(model.decode(so_far, memory), target)


def whole(cached: bool = False, decoder_only: bool = False) -> Training:
    torch.manual_seed(44)
    model = Whole(20, 32)
    parameters = list(model.parameters())
    if decoder_only:
        parameters = [
            *model.target.parameters(),
            *model.transformer.decoder.parameters(),
            *model.head.parameters(),
        ]
    return Training(
        model=model,
        batch=partial(reversal, length=8, words=20),
        loss=partial(_in_parts, cached=cached),
        optimizer=torch.optim.Adam(parameters, 2e-3),
        steps=160,
        every=5,
    )


# ---- patches by way of numpy ---------------------------------------------------------------------


class Patches(nn.Module):
    """Transformer encoder over patches with a class token."""

    def __init__(self, width: int, by_numpy: bool) -> None:
        super().__init__()
        self.patch = nn.Sequential(nn.Linear(4, width), nn.GELU(), nn.Linear(width, width))
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(torch.randn(17, width) * 0.2)
        layer = nn.TransformerEncoderLayer(
            width, 4, 64, dropout=0.0, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, 10)
        self.by_numpy = by_numpy

    def forward(self, patches: Tensor) -> Tensor:
        x = self.patch(patches)
        if self.by_numpy:
            array = x.detach().numpy()
            array = (array - array.mean()) / array.std()
            x = torch.from_numpy(array)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.place
        return self.head(self.encoder(x)[:, 0])


def patches(by_numpy: bool = False) -> Training:
    torch.manual_seed(45)
    model = Patches(32, by_numpy)
    return Training(
        model=model,
        batch=digit_patches,
        loss=_class,
        optimizer=torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.0),
        steps=150,
        every=5,
    )


DETACHED = Fault(
    "ind9-attention-detached",
    must=[["detached"]],
    # What gets no gradient does not move, either.
    may=["no-update"],
    variants=[
        Variant(
            "weights-under-no-grad",
            healthy=seq2seq,
            broken=partial(seq2seq, for_plots=True),
            # One state of the decoder is all that passes from one look at the memory to the next.
            may=["no-update", "information-bottleneck"],
            healthy_may=["information-bottleneck"],  # the same, by construction
            symptom=suffers(no_gradient_before("attention")),
        ),
        Variant(
            "index-of-the-best",
            healthy=reader,
            broken=partial(reader, hard=True),
            symptom=suffers(no_gradient_before("key")),
        ),
        Variant(
            "library-encoder-under-no-grad",
            healthy=tagged,
            broken=partial(tagged, features_only=True),
            symptom=suffers(no_gradient_before("bert")),
        ),
        Variant(
            "memory-detached",
            healthy=whole,
            broken=partial(whole, cached=True),
            symptom=suffers(no_gradient_before("encoder"), 0.03),
        ),
        Variant(
            "patches-through-numpy",
            healthy=patches,
            broken=partial(patches, by_numpy=True),
            symptom=no_gradient_before("patch"),
        ),
    ],
)


# ---- heads in a plain list -----------------------------------------------------------------------


class Head(nn.Module):
    """One causal head."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Heads(nn.Module):
    """A small decoder; heads are kept in a list."""

    def __init__(self, words: int, width: int, registered: bool) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(words, width), nn.Embedding(40, width)
        heads = [Head(width, width // 3) for _ in range(3)]
        self.heads = nn.ModuleList(heads) if registered else heads
        self.mix = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.head = nn.Linear(width, words)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embed(text) + self.place(torch.arange(text.shape[1]))
        h = self.norm1(x)
        x = x + self.mix(torch.cat([head(h) for head in self.heads], -1))
        return self.head(self.norm2(x))


def _predict(model: nn.Module, text: Tensor, following: Tensor) -> Tensor:
    return next_word(model(text), following)


def heads(registered: bool = True) -> Training:
    torch.manual_seed(46)
    model = Heads(16, 48, registered)
    return Training(
        model=model,
        batch=grammar,
        loss=_predict,
        optimizer=torch.optim.SGD(model.parameters(), 0.3, momentum=0.9),
        steps=300,
        every=10,
    )


# ---- a library model whose embedding is replaced -------------------------------------------------


class Causal(nn.Module):
    """GPT-2 in small."""

    def __init__(self, words: int) -> None:
        super().__init__()
        config = GPT2Config(
            vocab_size=words,
            n_positions=32,
            n_embd=32,
            n_layer=2,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
        self.lm = GPT2LMHeadModel(config)

    def forward(self, text: Tensor) -> Tensor:
        return self.lm(input_ids=text).logits


def causal(too_early: bool = False) -> Training:
    torch.manual_seed(47)
    model = Causal(16)
    early = torch.optim.AdamW(model.parameters(), 3e-3)
    ours = nn.Embedding(16, 32)
    nn.init.normal_(ours.weight, std=0.02)
    model.lm.set_input_embeddings(ours)
    model.lm.tie_weights()
    optimizer = early if too_early else torch.optim.AdamW(model.parameters(), 3e-3)
    return Training(
        model=model,
        batch=partial(grammar, length=25),
        loss=_predict,
        optimizer=optimizer,
        steps=150,
        every=5,
    )


# ---- a pooling put in after the optimizer was made -----------------------------------------------


class Pool(nn.Module):
    """Gated attention pooling."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.c = nn.Linear(hidden, 1)

    def forward(self, h: Tensor) -> Tensor:
        scores = self.c(torch.tanh(self.a(h)) * torch.sigmoid(self.b(h)))
        return (torch.softmax(scores * 3, dim=1) * h).sum(1)


class Mean(nn.Module):
    """Mean pooling."""

    def forward(self, h: Tensor) -> Tensor:
        return h.mean(1)


class Bags(nn.Module):
    """Embed, pool, classify."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, width), nn.GELU())
        self.pool: nn.Module = Mean()
        self.classify = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2))

    def forward(self, bag: Tensor) -> Tensor:
        return self.classify(self.pool(self.embed(bag)))


def bags(too_early: bool = False) -> Training:
    torch.manual_seed(48)
    model = Bags(32)
    optimizer = torch.optim.RMSprop(model.parameters(), 1e-3)
    model.pool = Pool(32, 16)
    if not too_early:
        optimizer.add_param_group({"params": model.pool.parameters()})
    return Training(
        model=model,
        batch=partial(digit_bags, size=12),
        loss=_class,
        optimizer=optimizer,
        steps=200,
        every=5,
    )


LEFT_OUT = Fault(
    "ind9-attention-left-out",
    must=[["not-in-optimizer"]],
    # What no optimizer holds does not move.
    may=["no-update"],
    variants=[
        Variant(
            "heads-in-a-list",
            healthy=heads,
            broken=partial(heads, registered=False),
            symptom=suffers(left_out(), 0.02),
        ),
        Variant(
            "embedding-replaced-later",
            healthy=causal,
            broken=partial(causal, too_early=True),
            symptom=suffers(left_out()),
        ),
        Variant(
            "decoder-only",
            healthy=partial(whole),
            broken=partial(whole, decoder_only=True),
            symptom=suffers(left_out(), 0.02),
        ),
        Variant(
            "pooling-swapped-in-later",
            healthy=bags,
            broken=partial(bags, too_early=True),
            symptom=left_out(),
        ),
    ],
)

FAULTS = [DETACHED, LEFT_OUT]
