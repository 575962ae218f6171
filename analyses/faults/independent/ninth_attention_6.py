"""A library decoder whose softmaxes are set up badly, and more attention that is well."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from analyses.faults.case import Fault, Healthy, Variant
from analyses.faults.independent.kit_ninth_a import (
    digit_patches,
    marked,
    next_word,
    one_hot,
    recall,
    repeats,
    reversal,
    stays_uniform,
)
from analyses.faults.training import Training

# ---- a library decoder ---------------------------------------------------------------------------


class Decoder(nn.Module):
    """GPT-2 in small."""

    def __init__(self, spread: float, scaled: bool) -> None:
        super().__init__()
        config = GPT2Config(
            vocab_size=16,
            n_positions=24,
            n_embd=48,
            n_layer=2,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            scale_attn_weights=scaled,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
        self.lm = GPT2LMHeadModel(config)
        for name, p in self.lm.named_parameters():
            if name.endswith("c_attn.weight"):
                with torch.no_grad():
                    p[:, :96].normal_(std=spread)

    def forward(self, text: Tensor) -> Tensor:
        return self.lm(input_ids=text).logits


def _predict(model: nn.Module, text: Tensor, following: Tensor) -> Tensor:
    return next_word(model(text), following)


def decoder(spread: float = 0.1, scaled: bool = True) -> Training:
    torch.manual_seed(101)
    model = Decoder(spread, scaled)
    return Training(
        model=model,
        batch=partial(repeats, half=8, batch=24),
        loss=_predict,
        optimizer=torch.optim.AdamW(model.parameters(), 3e-3),
        steps=300,
        every=10,
    )


# ---- several questions at once -------------------------------------------------------------------


class Board(nn.Module):
    """Questions cross-attend to a board of boxes; the average over the board is taken off."""

    def __init__(self, keys: int, values: int, width: int, temperature: float) -> None:
        super().__init__()
        self.key = nn.Embedding(keys, width)
        self.value = nn.Embedding(values, width)
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, 48), nn.Tanh(), nn.Linear(48, values))
        self.temperature = temperature

    def forward(self, key: Tensor, value: Tensor, asked: Tensor) -> Tensor:
        boxes = self.key(key)
        scores = (self.k(boxes) @ self.q(self.key(asked)).unsqueeze(-1)).squeeze(-1)
        weights = torch.softmax(scores / (self.temperature * math.sqrt(boxes.shape[-1])), dim=-1)
        read = torch.einsum("bn,bnd->bd", weights, self.v(self.value(value)))
        return self.head(self.norm(read))


def _answer(model: nn.Module, key: Tensor, value: Tensor, asked: Tensor, answer: Tensor) -> Tensor:
    return F.cross_entropy(model(key, value, asked), answer)


def board(temperature: float = 1.0) -> Training:
    torch.manual_seed(102)
    model = Board(24, 8, 24, temperature)
    return Training(
        model=model,
        batch=partial(recall, pairs=16, keys=24),
        loss=_answer,
        optimizer=torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
        steps=400,
        every=10,
    )


SOFTMAXES = Fault(
    "ind9-attention-softmaxes",
    must=[["peaked-softmax"]],
    variants=[
        Variant(
            "library-unscaled-and-wide",
            healthy=decoder,
            broken=partial(decoder, spread=2.0, scaled=False),
            symptom=one_hot(partial(decoder, spread=2.0, scaled=False)),
        ),
        Variant(
            "temperature-of-distillation-kept",
            healthy=board,
            broken=partial(board, temperature=100.0),
            must=[["diffuse-softmax"]],
            # Keys and questions act through the softmax alone, and get next to nothing.
            may=["vanishing-gradient", "softmax-borne"],
            healthy_may=["softmax-borne"],  # by construction: keys are only looked up by
            symptom=stays_uniform(partial(board, temperature=100.0), 0.97),
        ),
    ],
)


# ---- branches that start at nothing --------------------------------------------------------------


class ReZero(nn.Module):
    """Every branch has a gain that starts at 0 and is learned."""

    def __init__(self, words: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.place = nn.Parameter(torch.randn(10, width))
        self.attend = nn.ModuleList(
            nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(layers)
        )
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
            for _ in range(layers)
        )
        self.gains = nn.Parameter(torch.zeros(2, layers))
        self.head = nn.Linear(width, words)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embed(text) + self.place[: text.shape[1]]
        for i, (attend, feed) in enumerate(zip(self.attend, self.feed, strict=True)):
            x = x + self.gains[0, i] * attend(x, x, x, need_weights=False)[0]
            x = x + self.gains[1, i] * feed(x)
        return self.head(x)


def _backwards(step: int) -> tuple[Tensor, Tensor]:
    source, _, target = reversal(step, length=8, words=12)
    return source, target


def rezero() -> Training:
    torch.manual_seed(103)
    model = ReZero(12, 32, 3)
    return Training(
        model=model,
        batch=_backwards,
        loss=_predict,
        optimizer=torch.optim.Adam(model.parameters(), 3e-3),
        steps=200,
        every=5,
    )


# ---- latents over patches, with warm-up ----------------------------------------------------------


class Perceiver(nn.Module):
    """Latents read patches, attend to one another, and are averaged."""

    def __init__(self, latents: int, width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(4, width)
        self.place = nn.Parameter(torch.randn(16, width) * 0.3)
        self.latents = nn.Parameter(torch.randn(latents, width) * 0.3)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width)
        self.inner = nn.TransformerEncoderLayer(
            width, 4, 64, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, 10)

    def forward(self, patches: Tensor) -> Tensor:
        x = self.patch(patches) + self.place
        z = self.latents.expand(len(x), -1, -1)
        k, v = self.kv(x).chunk(2, -1)
        z = z + F.scaled_dot_product_attention(self.q(self.norm(z)), k, v)
        return self.head(self.inner(z).mean(1))


def _class(model: nn.Module, x: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(model(x), label, label_smoothing=0.05)


def perceiver() -> Training:
    torch.manual_seed(104)
    model = Perceiver(12, 32)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    return Training(
        model=model,
        batch=digit_patches,
        loss=_class,
        optimizer=optimizer,
        steps=200,
        every=5,
        schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / 30)),
    )


# ---- gradients gathered over small batches -------------------------------------------------------


class Regressor(nn.Module):
    """Post-norm encoder over marked numbers, a token for the answer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(2, width)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.3)
        self.encoder = nn.TransformerEncoderLayer(width, 2, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
        return self.head(self.encoder(h)[:, 0])


def _gathered(training: Training, step: int) -> dict[str, Any]:
    """Two halves of a batch, one step."""
    x, y = training.batch(step)
    total = 0.0
    for part, wanted in zip(x.chunk(2), y.chunk(2), strict=True):
        loss = training.loss(training.model, part, wanted) / 2
        loss.backward()
        total += float(loss.detach())
    nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    return {"loss": torch.tensor(total)}


def _huber(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.smooth_l1_loss(model(x), y)


def regressor() -> Training:
    torch.manual_seed(105)
    model = Regressor(32)
    return Training(
        model=model,
        batch=partial(marked, length=10),
        loss=_huber,
        optimizer=torch.optim.AdamW(model.parameters(), 3e-3),
        steps=200,
        every=10,
        step=_gathered,
    )


MORE = Healthy(
    "ind9-attention-more",
    runs={"gains-from-zero": rezero, "latents": perceiver, "gathered": regressor},
)

FAULTS = [SOFTMAXES]
THEMES = [MORE]
