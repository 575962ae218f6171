"""Deep, recurrent and residual models that train as they should."""

from __future__ import annotations

import itertools
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_eighth_depth import (
    digit_batches,
    generator,
    recall_batches,
    wave_batches,
)
from analyses.faults.training import Training


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The usual classifier's loss."""
    return F.cross_entropy(model(x), y)


# Plain deep stacks.


def selu_net() -> Training:
    """A self-normalising network with LeCun's weights."""
    torch.manual_seed(101)
    model = nn.Sequential()
    for a, b in itertools.pairwise([64, *([56] * 10)]):
        layer = nn.Linear(a, b)
        nn.init.normal_(layer.weight, std=a**-0.5)
        nn.init.zeros_(layer.bias)
        model.extend([layer, nn.SELU(), nn.AlphaDropout(0.02)])
    model.append(nn.Linear(56, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    return Training(model, digit_batches(), cross_entropy, optimizer, steps=200)


class Dense(nn.Module):
    """A dense block: every layer reads all that came before."""

    def __init__(self, layers: int, growth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1, bias=False)
        self.norms, self.convs = nn.ModuleList(), nn.ModuleList()
        for i in range(layers):
            self.norms.append(nn.BatchNorm2d(12 + i * growth))
            self.convs.append(nn.Conv2d(12 + i * growth, growth, 3, padding=1, bias=False))
        self.norm = nn.BatchNorm2d(12 + layers * growth)
        self.shrink = nn.Conv2d(12 + layers * growth, 8, 1)
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        h = self.shrink(F.relu(self.norm(torch.cat(features, 1))))
        return self.head(F.avg_pool2d(h, 2).flatten(1))


def dense_net() -> Training:
    """Eight densely connected convolutions."""
    torch.manual_seed(102)
    model = Dense(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
    return Training(
        model,
        digit_batches(32, image=True),
        cross_entropy,
        optimizer,
        steps=150,
        schedule=schedule,
    )


class Basic(nn.Module):
    """A ResNet's basic block; its last norm starts at zero."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        nn.init.zeros_(self.bn2.weight)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


def small_resnet() -> Training:
    """A ResNet of five blocks on digit images, blocks beginning as the identity."""
    torch.manual_seed(103)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Basic(16, 16, 1),
        Basic(16, 16, 1),
        Basic(16, 24, 2),
        Basic(24, 24, 1),
        Basic(24, 32, 2),
        nn.Flatten(),
        nn.Linear(32 * 4, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return Training(model, digit_batches(32, image=True), cross_entropy, optimizer, steps=120)


class UNet(nn.Module):
    """Two levels down, two up, skips between."""

    def __init__(self) -> None:
        super().__init__()

        def block(inside: int, outside: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inside, outside, 3, padding=1), nn.GroupNorm(4, outside), nn.SiLU()
            )

        self.down1, self.down2, self.bottom = block(1, 12), block(12, 24), block(24, 32)
        self.up2, self.up1 = block(32 + 24, 24), block(24 + 12, 12)
        self.out = nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        b = self.up2(torch.cat([F.interpolate(c, scale_factor=2), b], 1))
        a = self.up1(torch.cat([F.interpolate(b, scale_factor=2), a], 1))
        return self.out(a)


def _discs(step: int) -> tuple[Tensor, Tensor]:
    g = generator(step, 20)
    at = 10 * torch.rand(12, 2, 1, 1, generator=g) + 3
    radius = 2 + 2 * torch.rand(12, 1, 1, generator=g)
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    mask = ((rows - at[:, 0]) ** 2 + (columns - at[:, 1]) ** 2 < radius**2).float()[:, None]
    return mask + 0.7 * torch.randn(12, 1, 16, 16, generator=g), mask


def _dice_and_bce(model: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    logits = model(x)
    p = logits.sigmoid()
    overlap = 2 * (p * mask).sum((1, 2, 3)) + 1
    dice = overlap / (p.sum((1, 2, 3)) + mask.sum((1, 2, 3)) + 1)
    return F.binary_cross_entropy_with_logits(logits, mask) + (1 - dice).mean()


def unet() -> Training:
    """Segmentation of discs in noise."""
    torch.manual_seed(104)
    model = UNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, _discs, _dice_and_bce, optimizer, steps=120)


# Recurrent models.


class Tagger(nn.Module):
    """A bidirectional LSTM that marks what was opened and not yet closed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 16)
        self.lstm = nn.LSTM(16, 24, num_layers=2, batch_first=True, bidirectional=True)
        self.tag = nn.Linear(48, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out, _ = self.lstm(self.embed(tokens))
        return self.tag(out)


def _tags(step: int) -> tuple[Tensor, Tensor]:
    """The tag of a position: 0 if its neighbours are equal, 1 if they rise, 2 if they fall."""
    g = generator(step, 21)
    tokens = torch.randint(6, (24, 16), generator=g)
    before, after = tokens.roll(1, 1), tokens.roll(-1, 1)
    return tokens, torch.where(before == after, 0, torch.where(after > before, 1, 2))


def _per_position(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).transpose(1, 2), y)


def bilstm_tagger() -> Training:
    """Tags that depend on both neighbours."""
    torch.manual_seed(105)
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, _tags, _per_position, optimizer, steps=150, clip=5.0)


class CharModel(nn.Module):
    """A GRU cell unrolled by hand over characters."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, 24)
        self.cell = nn.GRUCell(24, 64)
        self.logits = nn.Linear(64, symbols)

    def forward(self, text: Tensor) -> Tensor:
        h = torch.zeros(len(text), 64)
        outs = []
        for t in range(text.shape[1]):
            h = self.cell(self.embed(text[:, t]), h)
            outs.append(self.logits(h))
        return torch.stack(outs, 1)


WORDS = "the cat sat on a mat and the dog ran to the hat so the rat had a nap ".split(" ")[:-1]


def _text(step: int) -> tuple[Tensor]:
    g = generator(step, 22)
    rows = []
    for _ in range(24):
        picks = torch.randint(len(WORDS), (12,), generator=g)
        line = " ".join(WORDS[int(i)] for i in picks)[:25]
        rows.append([0 if c == " " else ord(c) - 96 for c in line])
    return (torch.tensor(rows),)


def _next_symbol(model: nn.Module, text: Tensor) -> Tensor:
    return F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def char_gru() -> Training:
    """Sentences of a few words, letter by letter."""
    torch.manual_seed(106)
    model = CharModel(27)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=3e-3)
    return Training(model, _text, _next_symbol, optimizer, steps=120, clip=1.0)


class Recall(nn.Module):
    """nn.LSTM with its forget gates open from the start."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 16)
        self.lstm = nn.LSTM(16, 40, batch_first=True)
        self.norm = nn.LayerNorm(40)
        self.head = nn.Linear(40, 5)
        with torch.no_grad():
            self.lstm.get_parameter("bias_ih_l0")[40:80] = 3.0

    def forward(self, tokens: Tensor) -> Tensor:
        _, (h, _) = self.lstm(self.embedding(tokens))
        return self.head(self.norm(h[-1]))


def lstm_recall() -> Training:
    """The first of ten symbols."""
    torch.manual_seed(107)
    model = Recall()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, recall_batches(32, 10, 5), cross_entropy, optimizer, steps=200, clip=1.0)


class Dilated(nn.Module):
    """Causal dilated convolutions with gates and skips, as in WaveNet."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.enter = nn.Conv1d(1, 16, 1)
        self.filters = nn.ModuleList(nn.Conv1d(16, 32, 2, dilation=2**i) for i in range(layers))
        self.mixes = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(layers))
        self.leave = nn.Conv1d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        total = torch.zeros_like(h)
        for i, (both, mix) in enumerate(zip(self.filters, self.mixes, strict=True)):
            value, gate = both(F.pad(h, (2**i, 0))).chunk(2, 1)
            new = mix(value.tanh() * gate.sigmoid())
            h, total = h + new, total + new
        return self.leave(F.relu(total))


def _forecast(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    return F.mse_loss(model(x)[:, :, 4:-1], x[:, :, 5:])


def wavenet() -> Training:
    """The next value of noisy waves."""
    torch.manual_seed(108)
    model = Dilated(5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, wave_batches(16, 48), _forecast, optimizer, steps=150)


# Residual branches that begin at nothing and open.


class ReZero(nn.Module):
    """x + α · f(x), α learned from zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.alpha * self.inner(x)


def rezero() -> Training:
    """Eight branches whose weights begin at zero, with a learning rate of their own."""
    torch.manual_seed(109)
    model = nn.Sequential(nn.Linear(10, 40), *(ReZero(40) for _ in range(8)), nn.Linear(40, 1))
    alphas = [p for n, p in model.named_parameters() if n.endswith("alpha")]
    others = [p for n, p in model.named_parameters() if not n.endswith("alpha")]

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(64, 10, generator=generator(step, 23))
        return x, (x[:, :1] * x[:, 1:2]).tanh() + (2 * x[:, 2:3]).sin() + 0.5 * x[:, 3:4]

    optimizer = torch.optim.Adam([{"params": others, "lr": 2e-3}, {"params": alphas, "lr": 1e-2}])
    return Training(model, batch, _square, optimizer, steps=250)


def _square(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


class VitBlock(nn.Module):
    """A vision transformer's block with a learned layer scale."""

    def __init__(self, width: int, heads: int, scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.scale1 = nn.Parameter(torch.full((width,), scale))
        self.scale2 = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)
        x = x + self.scale1 * self.proj(mixed)
        return x + self.scale2 * self.mlp(self.norm2(x))


class Vit(nn.Module):
    """Patches, a class token, blocks."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.patches = nn.Linear(4, 48)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, 48))
        self.places = nn.Parameter(0.1 * torch.randn(1, 17, 48))
        self.blocks = nn.Sequential(*(VitBlock(48, 4, 0.1) for _ in range(depth)))
        self.norm = nn.LayerNorm(48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 2, stride=2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.patches(patches)], 1)
        return self.head(self.norm(self.blocks(tokens + self.places))[:, 0])


def vit_layer_scale() -> Training:
    """Four blocks, layer scale learned from 0.1, with a warmup."""
    torch.manual_seed(110)
    model = Vit(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / 20))
    return Training(
        model,
        digit_batches(32, image=True),
        cross_entropy,
        optimizer,
        steps=150,
        schedule=schedule,
    )


class GptLike(nn.Module):
    """A pre-norm decoder after nn.TransformerEncoderLayer, with a causal mask."""

    def __init__(self, symbols: int, depth: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(symbols, 40), nn.Embedding(32, 40)
        layer = nn.TransformerEncoderLayer(
            40, 4, 80, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, depth, norm=nn.LayerNorm(40), enable_nested_tensor=False
        )
        self.logits = nn.Linear(40, symbols)

    def forward(self, text: Tensor) -> Tensor:
        length = text.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        h = self.tokens(text) + self.places(torch.arange(length))
        return self.logits(self.layers(h, mask=mask, is_causal=True))


def deep_decoder() -> Training:
    """Six layers on the same sentences."""
    torch.manual_seed(111)
    model = GptLike(27, 6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    return Training(model, _text, _next_symbol, optimizer, steps=100, clip=1.0)


class Mixer(nn.Module):
    """Token and channel mixing with skips and norms."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 32)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2 * depth))
        self.across = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(depth)
        )
        self.within = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(depth)
        )
        self.head = nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(F.unfold(x, 2, stride=2).transpose(1, 2))
        for i, (across, within) in enumerate(zip(self.across, self.within, strict=True)):
            h = h + across(self.norms[2 * i](h).transpose(1, 2)).transpose(1, 2)
            h = h + within(self.norms[2 * i + 1](h))
        return self.head(h.flatten(1))


def mixer() -> Training:
    """An MLP-mixer of five layers, with smoothed labels."""
    torch.manual_seed(112)
    model = Mixer(5)
    loss = nn.CrossEntropyLoss(label_smoothing=0.05)

    def smoothed(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = loss(model(x), y)
        return found

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, digit_batches(32, image=True), smoothed, optimizer, steps=120)


def _three_targets(step: int) -> tuple[Tensor, Tensor]:
    g = generator(step, 24)
    x = torch.randn(64, 6, generator=g)
    return x, torch.stack([(x[:, 0] * x[:, 1]).sin(), x[:, 2].abs() - 0.8, x[:, 3] - x[:, 4]], 1)


class Orthogonal(nn.Module):
    """Tanh layers with orthogonal weights."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6 if i == 0 else 48, 48) for i in range(depth))
        self.out = nn.Linear(48, 3)
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.orthogonal_(layer.weight, gain=math.sqrt(1.4))
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.out(x)


def orthogonal_tanh(*, depth: int = 12) -> Training:
    """Regression of three targets by deep tanh layers that keep their scale."""
    torch.manual_seed(113)
    model = Orthogonal(depth)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, _three_targets, _square, optimizer, steps=250)


class Dropped(nn.Module):
    """Residual blocks that are left out at random while training."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.enter = nn.Linear(64, 48)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(48), nn.SiLU(), nn.Linear(48, 48)) for _ in range(depth)
        )
        self.leave = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for i, block in enumerate(self.blocks):
            keep = 1 - 0.3 * (i + 1) / len(self.blocks)
            kept = torch.bernoulli(torch.full((len(h), 1), keep)) / keep
            h = h + kept * block(h)
        return self.leave(h)


def stochastic_depth() -> Training:
    """Ten residual blocks with stochastic depth."""
    torch.manual_seed(114)
    model = Dropped(10)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.02)
    return Training(model, digit_batches(), cross_entropy, optimizer, steps=200)


def _library_loss(model: nn.Module, text: Tensor) -> Tensor:
    loss: Tensor = model(input_ids=text, labels=text).loss
    return loss


def library_gpt2() -> Training:
    """The library's GPT-2, four layers, on sentences."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(115)
    config = GPT2Config(
        vocab_size=27, n_positions=32, n_embd=48, n_layer=4, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    return Training(model, _text, _library_loss, optimizer, steps=120, clip=1.0)


STACKS = Healthy(
    "ind8-sound-stacks",
    runs={
        "selu-net": selu_net,
        "dense-net": dense_net,
        "small-resnet": small_resnet,
        "unet": unet,
        "orthogonal-tanh": partial(orthogonal_tanh, depth=12),
    },
)

SEQUENCES = Healthy(
    "ind8-sound-recurrent",
    runs={
        "bilstm-tagger": bilstm_tagger,
        "char-gru": char_gru,
        "lstm-recall": lstm_recall,
        "wavenet": wavenet,
    },
)

BRANCHES = Healthy(
    "ind8-sound-residual",
    runs={
        "rezero": rezero,
        "vit-layer-scale": vit_layer_scale,
        "deep-decoder": deep_decoder,
        "mixer": mixer,
        "stochastic-depth": stochastic_depth,
        "library-gpt2": library_gpt2,
    },
)

THEMES = [STACKS, SEQUENCES, BRANCHES]
