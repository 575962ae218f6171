"""Models of Hugging Face transformers with random weights, as tiny as their configuration allows.

transformers is imported when a model is first built.
"""

import pytest
import torch

from tests.reference.networks import NO_SOFTMAXES, Case, data, weighted

VOCABULARY = 11


def tokens(step, batch=2, length=5):
    """(batch, length) token numbers of this step; without 0, which pads."""
    generator = torch.Generator().manual_seed(2000 + step)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator)


def built(model, config, **options):
    """() -> a model in training mode, of the classes with these names."""

    def build():
        transformers = pytest.importorskip("transformers")
        implementation = options.get("attn_implementation")
        made = getattr(transformers, model)(getattr(transformers, config)(**options))
        if implementation:
            assert made.config._attn_implementation == implementation
        return made.train()

    return build


def language(model, step):
    """The next token's cross entropy, computed by the model."""
    x = tokens(step)
    return model(input_ids=x, labels=x).loss


def padded(model, step):
    """A class for each sequence; the second has three tokens."""
    x = tokens(step)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return model(input_ids=x * mask, attention_mask=mask, labels=torch.tensor([step % 3, 1])).loss


def translation(model, step):
    """Four tokens from five."""
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    return model(
        input_ids=tokens(step) * mask, attention_mask=mask, labels=tokens(step + 50, length=4)
    ).loss


def image(model, step):
    return weighted(model(pixel_values=data(step, 2, 3, 8, 8)).logits)


def gpt2(**options):
    return built(
        "GPT2LMHeadModel",
        "GPT2Config",
        vocab_size=VOCABULARY,
        n_positions=8,
        n_embd=8,
        n_layer=2,
        n_head=2,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        **options,
    )


def llama(**options):
    return built(
        "LlamaForCausalLM",
        "LlamaConfig",
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        **options,
    )


def bert(**options):
    return built(
        "BertForSequenceClassification",
        "BertConfig",
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
        **options,
    )


def vit(**options):
    return built(
        "ViTForImageClassification",
        "ViTConfig",
        image_size=8,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        num_labels=3,
        **options,
    )


def t5(**options):
    return built(
        "T5ForConditionalGeneration",
        "T5Config",
        vocab_size=VOCABULARY,
        d_model=8,
        d_kv=4,
        d_ff=12,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        **options,
    )


def resnet(layer_type):
    return built(
        "ResNetForImageClassification",
        "ResNetConfig",
        embedding_size=4,
        hidden_sizes=[4, 8],
        depths=[1, 2],
        layer_type=layer_type,
        num_labels=3,
    )


CASES = {
    f"{name}, {attention}": Case(build(attn_implementation=attention), loss)
    for name, build, loss in (
        ("GPT-2", gpt2, language),
        ("Llama, grouped queries", llama, language),
        ("BERT, padded", bert, padded),
        ("ViT", vit, image),
        ("T5", t5, translation),
    )
    for attention in ("eager", "sdpa")
}
CASES["ViT, sdpa, attention dropout"] = Case(
    vit(attn_implementation="sdpa", attention_probs_dropout_prob=0.2), image
)
for kind in ("basic", "bottleneck"):
    CASES[f"ResNet of transformers, {kind}"] = Case(resnet(kind), image, lacks=NO_SOFTMAXES)
