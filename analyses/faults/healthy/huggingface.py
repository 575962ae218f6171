"""Models that others wrote: small ones of Hugging Face, as their authors wrote them.

Each is trained for 40 steps, when attention is still as it was initialised, and for 300.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from analyses.faults.case import Healthy
from analyses.faults.training import Batch, Training

WORDS = 60
TEXT = {"vocab_size": WORDS, "hidden_size": 64, "intermediate_size": 128}
FOUR = {"num_hidden_layers": 4, "num_attention_heads": 4}
THREE = {"num_hidden_layers": 3, "num_attention_heads": 4}
PICTURE = {"image_size": 32, "num_labels": 4}
BATCH = 16


def _random(step: int) -> torch.Generator:
    return torch.Generator().manual_seed(step)


def _sequences(step: int, length: int = 24) -> Tensor:
    """(B, T) words: where each begins, and how far apart they are, is drawn."""
    g = _random(step)
    start = torch.randint(1, WORDS - 1, (BATCH, 1), generator=g)
    apart = torch.randint(1, 4, (BATCH, 1), generator=g)
    return (start + apart * torch.arange(length)) % (WORDS - 1) + 1


def continued(step: int) -> dict[str, Tensor]:
    x = _sequences(step)
    return {"input_ids": x, "labels": x}


def reversed_(step: int) -> dict[str, Tensor]:
    x = _sequences(step)
    return {"input_ids": x, "labels": x.flip(1)}


def masked(step: int) -> dict[str, Tensor]:
    x = _sequences(step)
    hidden = torch.rand(x.shape, generator=_random(step)) < 0.3
    return {"input_ids": x.masked_fill(hidden, 0), "labels": x.masked_fill(~hidden, -100)}


def classified(step: int) -> dict[str, Tensor]:
    """Whether any word is one of the first seven."""
    x = torch.randint(1, WORDS, (BATCH, 16), generator=_random(step))
    return {"input_ids": x, "labels": (x < 8).any(1).long()}


def pictures(step: int) -> dict[str, Tensor]:
    """Which quarter is brighter."""
    g = _random(step)
    x = 0.5 * torch.randn(BATCH, 3, 32, 32, generator=g)
    y = torch.randint(0, 4, (BATCH,), generator=g)
    for i, k in enumerate(y.tolist()):
        x[i, :, 16 * (k // 2) : 16 * (k // 2 + 1), 16 * (k % 2) : 16 * (k % 2 + 1)] += 1.0
    return {"pixel_values": x, "labels": y}


def train(
    name: str, task: Callable[[int], dict[str, Tensor]], config: dict[str, Any], steps: int
) -> Training:
    """Args: name of the model's class, without its configuration's: "GPT2", "LMHeadModel"."""
    import transformers  # takes seconds, and most uses of the corpus don't need it

    family, _, head = name.partition(".")
    torch.manual_seed(0)
    made = getattr(transformers, f"{family}Config")(**config)
    model = getattr(transformers, f"{family}{head}")(made).train()
    keys = list(task(0))

    def batch(step: int) -> Batch:
        return tuple(task(step).values())

    def loss(model: Any, *values: Tensor) -> Tensor:
        return model(**dict(zip(keys, values, strict=True))).loss

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4 if steps < 100 else 1e-3)
    return Training(model, batch, loss, optimizer, steps=steps, every=10)


MODELS: dict[str, tuple[str, Callable[[int], dict[str, Tensor]], dict[str, Any]]] = {
    "gpt2": (
        "GPT2.LMHeadModel",
        continued,
        {"vocab_size": WORDS, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 64},
    ),
    "llama": ("Llama.ForCausalLM", continued, {**TEXT, **FOUR, "num_key_value_heads": 2}),
    "gpt-neox": ("GPTNeoX.ForCausalLM", continued, {**TEXT, **FOUR}),
    "opt": (
        "OPT.ForCausalLM",
        continued,
        {
            "vocab_size": WORDS,
            "hidden_size": 64,
            "ffn_dim": 128,
            "word_embed_proj_dim": 64,
            "max_position_embeddings": 64,
            **FOUR,
        },
    ),
    "mixtral": (
        "Mixtral.ForCausalLM",
        continued,
        {**TEXT, **THREE, "num_key_value_heads": 2, "num_local_experts": 4},
    ),
    "bert": (
        "Bert.ForSequenceClassification",
        classified,
        {
            "vocab_size": WORDS,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
    ),
    "bert-masked": ("Bert.ForMaskedLM", masked, {**TEXT, **FOUR}),
    "roberta": (
        "Roberta.ForSequenceClassification",
        classified,
        {**TEXT, **THREE, "pad_token_id": 0, "max_position_embeddings": 80},
    ),
    "distilbert": (
        "DistilBert.ForSequenceClassification",
        classified,
        {"vocab_size": WORDS, "dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 128},
    ),
    "electra": (
        "Electra.ForSequenceClassification",
        classified,
        {**TEXT, **THREE, "embedding_size": 32},
    ),
    "deberta": ("DebertaV2.ForSequenceClassification", classified, {**TEXT, **THREE}),
    "albert": (
        "Albert.ForSequenceClassification",
        classified,
        {**TEXT, **FOUR, "embedding_size": 32},
    ),
    "t5": (
        "T5.ForConditionalGeneration",
        reversed_,
        {
            "vocab_size": WORDS,
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 3,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": (
        "Bart.ForConditionalGeneration",
        reversed_,
        {
            "vocab_size": WORDS,
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "max_position_embeddings": 64,
            "decoder_start_token_id": 1,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "forced_eos_token_id": None,
        },
    ),
    "vit": (
        "ViT.ForImageClassification",
        pictures,
        {**FOUR, **PICTURE, "hidden_size": 64, "intermediate_size": 128, "patch_size": 8},
    ),
    "swin": (
        "Swin.ForImageClassification",
        pictures,
        {
            **PICTURE,
            "patch_size": 2,
            "embed_dim": 32,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    "convnext": (
        "ConvNext.ForImageClassification",
        pictures,
        {
            **PICTURE,
            "hidden_sizes": [16, 32, 64],
            "depths": [2, 2, 2],
            "num_stages": 3,
            "patch_size": 2,
        },
    ),
    "resnet": (
        "ResNet.ForImageClassification",
        pictures,
        {
            "embedding_size": 16,
            "hidden_sizes": [32, 64],
            "depths": [2, 2],
            "layer_type": "basic",
            "num_labels": 4,
        },
    ),
    "rwkv": (
        "Rwkv.ForCausalLM",
        continued,
        {
            "vocab_size": WORDS,
            "hidden_size": 64,
            "attention_hidden_size": 64,
            "num_hidden_layers": 3,
            "context_length": 64,
        },
    ),
}
UNDER_WAY = "forty steps are too few for its loss to tell"

RUNS = Healthy(
    "huggingface",
    {
        f"{name}-{steps}": partial(train, *how, steps)
        for name, how in MODELS.items()
        for steps in (40, 300)
    },
    flat={
        **{f"{name}-40": UNDER_WAY for name in MODELS},
        "bert-masked-300": "a plateau of some hundred steps comes first",
    },
)
