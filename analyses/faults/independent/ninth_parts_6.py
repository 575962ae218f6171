"""Parts of library models: read without a gradient, replaced too late, or kept still on purpose."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, GPT2Model

from analyses.faults.case import Fault, Healthy, Variant
from analyses.faults.independent.kit_ninth_d import both, chance
from analyses.faults.symptoms import learns_less, left_out, no_gradient_before
from analyses.faults.training import Batch, Training


class Sentiment(nn.Module):
    """A small BERT and a classifier of two layers."""

    def __init__(self, features_only: bool) -> None:
        super().__init__()
        self.features_only = features_only
        config = BertConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=16, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.bert = BertModel(config, add_pooling_layer=False)
        self.classifier = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))

    def forward(self, words: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.features_only):
            h = self.bert(input_ids=words).last_hidden_state
        return self.classifier(h.mean(1))


def sentiment(features_only: bool = False) -> Training:
    """Good and bad words are counted, a "not" turns the sum round; all is meant to be trained."""
    torch.manual_seed(111)
    model = Sentiment(features_only)

    def batch(step: int) -> Batch:
        g = chance(step, 101)
        words = torch.randint(3, 60, (48, 12), generator=g)
        words[:, 0] = 0
        score = ((words % 3 == 0).long() - (words % 3 == 1).long())[:, 1:].sum(1)
        return words, score.sign() + 1

    def loss(model: nn.Module, words: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(words), y)

    adamw = torch.optim.AdamW(model.parameters(), 2e-3)
    return Training(model, batch, loss, adamw, steps=150)


def tiny_gpt(words: int) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=words, n_positions=24, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def enlarge(model: GPT2LMHeadModel, words: int) -> None:
    """New embeddings, the old ones copied in; the output layer shares them, as before."""
    old = model.transformer.wte
    new = nn.Embedding(words, 32)
    with torch.no_grad():
        new.weight.mul_(0.02)
        new.weight[: len(old.weight)] = old.weight
    model.set_input_embeddings(new)
    model.lm_head = nn.Linear(32, words, bias=False)
    model.lm_head.weight = new.weight
    model.config.vocab_size = words


def enlarged(late: bool = False) -> Training:
    """A vocabulary gets new words: the embeddings are replaced before the optimizer, or after."""
    torch.manual_seed(112)
    model = tiny_gpt(20)
    if not late:
        enlarge(model, 32)
    adamw = torch.optim.AdamW(model.parameters(), 3e-3)
    if late:
        enlarge(model, 32)
    follows = torch.randperm(32, generator=chance(1, 102))

    def batch(step: int) -> Batch:
        g = chance(step, 103)
        text = [torch.randint(32, (24,), generator=g)]
        for _ in range(13):
            stay = torch.rand(24, generator=g) < 0.15
            text.append(torch.where(stay, text[-1], follows[text[-1]]))
        return (torch.stack(text, 1),)

    def loss(model: nn.Module, text: Tensor) -> Tensor:
        return model(input_ids=text, labels=text).loss

    return Training(model, batch, loss, adamw, steps=120)


LIBRARY = Fault(
    "ind9-parts-library",
    must=[["detached"]],
    variants=[
        Variant(
            "bert-features",
            sentiment,
            broken=partial(sentiment, features_only=True),
            may=["no-update"],  # the body stays as it was drawn
            symptom=both(no_gradient_before("bert"), learns_less(0.05)),
        ),
        Variant(
            "gpt-enlarged-late",
            enlarged,
            broken=partial(enlarged, late=True),
            must=[["not-in-optimizer"]],
            may=["no-update"],  # the new embeddings stay as they were drawn
            symptom=both(left_out(), learns_less(0.02)),
        ),
    ],
)

FAULTS = [LIBRARY]


def half_frozen() -> Training:
    """Embeddings and first block stay as trained; the second block and a new head are tuned."""
    before = sentiment()
    for i in range(110):
        before.step(before, 10_000 + i)
    model = before.model
    assert isinstance(model, Sentiment)
    torch.manual_seed(113)
    model.classifier = nn.Sequential(nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 4))
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[0].requires_grad_(False)

    def batch(step: int) -> Batch:
        words = before.batch(step)[0]
        score = ((words % 3 == 0).long() - (words % 3 == 1).long())[:, 1:].sum(1)
        return words, (score > -3).long() + (score > 0) + (score > 2)

    def loss(model: nn.Module, words: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(words), y)

    adamw = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    return Training(model, batch, loss, adamw, steps=120, clip=1.0)


class Valued(nn.Module):
    """A language model, and a value head that reads it without disturbing it."""

    def __init__(self) -> None:
        super().__init__()
        config = GPT2Config(
            vocab_size=16, n_positions=16, n_embd=32, n_layer=1, n_head=2, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        self.body = GPT2Model(config)
        self.words = nn.Linear(32, 16, bias=False)
        self.value = nn.Sequential(nn.Linear(32, 24), nn.SiLU(), nn.Linear(24, 1))

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(input_ids=text).last_hidden_state
        return self.words(h), self.value(h.detach()).squeeze(-1)


def valued() -> Training:
    """The value head's input is detached on purpose: the text alone shapes the body."""
    torch.manual_seed(114)
    model = Valued()

    def batch(step: int) -> Batch:
        g = chance(step, 105)
        text = torch.randint(16, (32, 12), generator=g)
        for t in range(2, 12):
            text[:, t] = (text[:, t - 1] + text[:, t - 2] % 2) % 16
        return text, (text.float().cumsum(1) / torch.arange(1, 13) - 7.5) / 4

    def loss(model: nn.Module, text: Tensor, worth: Tensor) -> Tensor:
        logits, value = model(text)
        said = F.cross_entropy(logits[:, :-1].flatten(0, 1), text[:, 1:].flatten())
        return said + 0.5 * F.mse_loss(value, worth)

    adam = torch.optim.Adam(model.parameters(), 3e-3)
    return Training(model, batch, loss, adam, steps=160)


KEPT = Healthy(
    "ind9-parts-kept",
    {
        "half-frozen-bert": half_frozen,
        "value-head": valued,
    },
)

THEMES = [KEPT]
