"""Depth, or time, in which the gradient fades or grows; and deep networks that are fine."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from analyses.faults.case import Fault, Healthy, Symptom, Variant
from analyses.faults.independent.kit_deep import (
    Heads,
    adding,
    always,
    classify,
    communities,
    digits,
    drawn,
    early_burst,
    generator,
    kaiming,
    letters,
    majority,
    next_symbol,
    normal,
    recall,
    regress,
    sentences,
    shapes,
    teacher,
)
from analyses.faults.observe import Observed
from analyses.faults.symptoms import Evidence, decays, grows
from analyses.faults.training import Batch, Training

# --- The gradient fades ---------------------------------------------------------------------------


def sigmoid_mlp(faulty: bool = False) -> Training:
    """Eight hidden layers; the fault is the sigmoid between them."""
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for n in [64] + [48] * 7:
        layers += [nn.Linear(n, 48), nn.Sigmoid() if faulty else nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(48, 10))
    if not faulty:
        kaiming(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, drawn(digits(), 64), classify, optimizer, steps=400, every=10)


def small_init_cnn(faulty: bool = False) -> Training:
    """Ten convolutions in a row; the fault is one small deviation for all kernels."""
    torch.manual_seed(2)
    layers: list[nn.Module] = []
    for i, n in enumerate([1] + [12] * 9):
        stride = 2 if i in (3, 6) else 1
        layers += [nn.Conv2d(n, 12, 3, stride=stride, padding=1), nn.LeakyReLU(0.1)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(192, 4))
    kaiming(model)
    if faulty:
        normal(model, 0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    return Training(model, drawn(shapes(), 32), classify, optimizer, steps=250)


class CellLoop(nn.Module):
    """A tanh cell, step by step, and the answer from its last state."""

    def __init__(self, n: int, width: int, classes: int) -> None:
        super().__init__()
        self.width = width
        self.cell = nn.RNNCell(n, width)
        self.answer = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.width)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.answer(h)


def tanh_cell(faulty: bool = False) -> Training:
    """Which symbol came first, 70 steps ago? The fault is the default initialisation."""
    torch.manual_seed(3)
    model = CellLoop(4, 48, 4)
    if not faulty:
        nn.init.orthogonal_(model.cell.weight_hh)
        nn.init.zeros_(model.cell.bias_hh)
        nn.init.zeros_(model.cell.bias_ih)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=3e-4)
    batch = partial(recall, size=32, length=70, symbols=4, noise=0.1)
    return Training(model, batch, classify, optimizer, steps=300, every=10, clip=1.0)


class LastState(nn.Module):
    """A fused recurrence, and the answer from its last output."""

    def __init__(self, core: nn.RNNBase, classes: int) -> None:
        super().__init__()
        self.core = core
        self.answer = nn.Linear(core.hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.core(x)[0][:, -1])


def fused_rnn(faulty: bool = False) -> Training:
    """A sign told in the first of 80 steps; the fault is the plain recurrence."""
    torch.manual_seed(4)
    model: LastState
    if faulty:
        model = LastState(nn.RNN(1, 40, num_layers=2, batch_first=True), 2)
    else:
        model = LastState(nn.LSTM(1, 40, num_layers=2, batch_first=True), 2)
        for name, p in model.core.named_parameters():
            if "bias_ih" in name:
                nn.init.constant_(p[40:80], 6.0)  # remembers
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    batch = partial(early_burst, size=32, length=80)
    return Training(model, batch, classify, optimizer, steps=200, clip=1.0)


class Averages(nn.Module):
    """Attention written out, nothing else."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2) / x.shape[-1] ** 0.5
        return torch.matmul(scores.softmax(-1), self.v(x))


class AttentionChain(nn.Module):
    """Attention on attention, with or without what a transformer has around it."""

    def __init__(self, symbols: int, length: int, width: int, depth: int, bare: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.place = nn.Parameter(0.1 * torch.randn(length, width))
        self.layers = nn.ModuleList(Averages(width) for _ in range(depth))
        self.norms = nn.ModuleList(
            nn.Identity() if bare else nn.LayerNorm(width) for _ in range(depth)
        )
        self.answer = nn.Linear(width, symbols)
        self.bare = bare

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = layer(x) if self.bare else x + layer(norm(x))
        return self.answer(x.mean(1))


def attention_chain(faulty: bool = False) -> Training:
    """The most frequent symbol; the fault is that nothing goes around eight attentions."""
    torch.manual_seed(5)
    model = AttentionChain(5, 16, 32, depth=8, bare=faulty)
    normal(model, 0.06)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batch = partial(majority, size=32, length=16, symbols=5)
    return Training(model, batch, classify, optimizer, steps=250)


class Block(nn.Module):
    """A layer of a transformer, with skips and norms or without."""

    def __init__(self, width: int, heads: int, skips: bool = True, norms: bool = True) -> None:
        super().__init__()
        self.skips = skips
        self.norm1 = nn.LayerNorm(width) if norms else nn.Identity()
        self.attend = Heads(width, heads, causal=True)
        self.norm2 = nn.LayerNorm(width) if norms else nn.Identity()
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        if not self.skips:
            return self.mlp(self.norm2(self.attend(self.norm1(x))))
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class LanguageModel(nn.Module):
    """Embedding, blocks, norm, next symbol."""

    def __init__(self, symbols: int, length: int, width: int, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.place = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.answer = nn.Linear(width, symbols)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        return self.answer(self.norm(self.blocks(self.embed(tokens) + self.place(places))))


def skipless_transformer(faulty: bool = False) -> Training:
    """A language model of six layers; the fault is that the skips were forgotten."""
    torch.manual_seed(6)
    blocks: list[nn.Module] = [Block(48, 4, skips=not faulty, norms=not faulty) for _ in range(6)]
    model = LanguageModel(letters(), 32, 48, blocks)
    normal(model, 0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = partial(sentences, size=8, length=32)
    return Training(model, batch, next_symbol, optimizer, steps=200)


class DeepGCN(nn.Module):
    """Graph convolutions with symmetric normalisation, with or without an initial residual."""

    def __init__(self, adjacency: Tensor, n: int, width: int, depth: int, plain: bool) -> None:
        super().__init__()
        scale = adjacency.sum(1).rsqrt()
        self.register_buffer("mix", scale[:, None] * adjacency * scale)
        self.enter = nn.Linear(n, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.leave = nn.Linear(width, 4)
        self.plain = plain
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        first = h = F.leaky_relu(self.enter(x), 0.1)
        for layer in self.layers:
            mixed = self.mix @ h  # type: ignore[operator]
            if self.plain:
                h = F.leaky_relu(layer(mixed), 0.1)
            else:
                kept = 0.8 * mixed + 0.2 * first
                h = kept + 0.3 * F.leaky_relu(layer(kept), 0.1)
        return self.leave(h)


def deep_gcn(faulty: bool = False) -> Training:
    """Communities of a graph; the fault is eighteen plain graph convolutions in a row."""
    torch.manual_seed(7)
    adjacency, x, y = communities()
    model = DeepGCN(adjacency, x.shape[1], 24, depth=18, plain=faulty)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, always((x, y)), classify, optimizer, steps=200)


class Counter(nn.Module):
    """LSTM cells in a loop on tokens; the answer from the last state."""

    def __init__(self, symbols: int, width: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(symbols + 1, width)
        self.answer = nn.Linear(width, symbols)
        self.width = width

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.one_hot(tokens, self.cell.input_size).float()
        h = c = x.new_zeros(len(x), self.width)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.answer(h)


def _after_blanks(step: int, size: int, length: int, symbols: int) -> Batch:
    """A symbol, then blanks."""
    y = torch.randint(symbols, (size,), generator=generator(step))
    tokens = torch.full((size, length), symbols)
    tokens[:, 0] = y
    return tokens, y


def forgetful_lstm(faulty: bool = False) -> Training:
    """A symbol 50 blanks ago; the fault is the sign of the forget gates' first bias."""
    torch.manual_seed(8)
    model = Counter(6, 40)
    chrono = torch.log(1 + 49 * torch.rand(40, generator=generator(1)))
    with torch.no_grad():
        model.cell.bias_hh.zero_()
        model.cell.bias_ih.zero_()
        model.cell.bias_ih[40:80] = -chrono if faulty else chrono
        if not faulty:
            model.cell.bias_ih[:40] = -chrono
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batch = partial(_after_blanks, size=32, length=50, symbols=6)
    return Training(model, batch, classify, optimizer, steps=250, clip=1.0)


# --- The gradient grows ---------------------------------------------------------------------------


def wide_init_mlp(faulty: bool = False) -> Training:
    """A regression by twelve layers; the fault is weights from -0.5 to 0.5, however many."""
    torch.manual_seed(11)
    layers: list[nn.Module] = []
    for n in [20] + [96] * 11:
        layers += [nn.Linear(n, 96), nn.LeakyReLU(0.1)]
    model = nn.Sequential(*layers, nn.Linear(96, 1))
    kaiming(model)
    if faulty:
        for module in model:
            if isinstance(module, nn.Linear):
                nn.init.uniform_(module.weight, -0.5, 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    return Training(model, drawn(teacher(2000, 20), 64), regress, optimizer, steps=250)


class Rectified(nn.Module):
    """A recurrence of rectified units, written out."""

    def __init__(self, n: int, width: int, radius: float) -> None:
        super().__init__()
        self.enter = nn.Linear(n, width)
        self.again = nn.Linear(width, width, bias=False)
        self.answer = nn.Linear(width, 1)
        with torch.no_grad():
            self.again.weight.copy_(radius * torch.eye(width))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.enter(x[:, 0]))
        for t in range(1, x.shape[1]):
            h = F.relu(self.enter(x[:, t]) + self.again(h))
        return self.answer(h)


def rectified_loop(faulty: bool = False) -> Training:
    """The adding problem; the fault is a recurrence that multiplies by 1.3 at every step."""
    torch.manual_seed(12)
    model = Rectified(2, 32, 1.3 if faulty else 1.0)
    nn.init.normal_(model.enter.weight, std=0.05)
    nn.init.zeros_(model.enter.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = partial(adding, size=32, length=40)
    return Training(model, batch, regress, optimizer, steps=250, clip=None if faulty else 1.0)


def chaotic_rnn(faulty: bool = False) -> Training:
    """Which symbol came first; the fault is a recurrent matrix of radius 3."""
    torch.manual_seed(13)
    model = LastState(nn.RNN(5, 64, batch_first=True), 5)
    nn.init.orthogonal_(model.core.weight_hh_l0, gain=1.0)  # type: ignore[arg-type]
    if faulty:
        nn.init.normal_(model.core.weight_hh_l0, std=3 / 8)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    batch = partial(recall, size=32, length=40, symbols=5, noise=0.1)
    return Training(model, batch, classify, optimizer, steps=250)


class Added(nn.Module):
    """A residual block of convolutions along one axis, without a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv1d(width, width, 3, padding=1, padding_mode="circular")
        self.two = nn.Conv1d(width, width, 3, padding=1, padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(F.relu(self.one(F.relu(x))))


def unnormed_resnet(faulty: bool = False) -> Training:
    """Shapes, row by row, by 26 residual blocks without norm; the fault is their full size.

    The sound one starts every block at zero.
    """
    torch.manual_seed(14)
    blocks = [Added(14) for _ in range(26)]
    model = nn.Sequential(
        nn.Flatten(1, 2), nn.Conv1d(16, 14, 1), *blocks, nn.Flatten(), nn.Linear(14 * 16, 4)
    )
    kaiming(model)
    if not faulty:
        for block in blocks:
            nn.init.zeros_(block.two.weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    return Training(model, drawn(shapes(), 32), classify, optimizer, steps=150)


def blown_up_autoencoder(faulty: bool = False) -> Training:
    """Digits through 12 numbers and back; the fault is a learning rate of SGD given to Adam."""
    torch.manual_seed(15)
    widths = [64, 56, 40, 12, 40, 56, 64]
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m), nn.LeakyReLU(0.1)]
    model = nn.Sequential(*layers[:-1])
    x, _ = digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1 if faulty else 2e-3)
    return Training(model, drawn((x, x), 64), regress, optimizer, steps=250)


class Encoder(nn.Module):
    """A patch transformer by torch's own attention."""

    def __init__(self, depth: int, width: int, norms: bool) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 4, stride=4)
        self.place = nn.Parameter(0.1 * torch.randn(16, width))
        self.attend = nn.ModuleList(
            nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(depth)
        )
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        self.norms = nn.ModuleList(
            nn.LayerNorm(width) if norms else nn.Identity() for _ in range(2 * depth + 1)
        )
        self.answer = nn.Linear(width, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2) + self.place
        for i, (attend, mlp) in enumerate(zip(self.attend, self.mlp, strict=True)):
            h = self.norms[2 * i](x)
            x = x + attend(h, h, h, need_weights=False)[0]
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.answer(self.norms[-1](x).mean(1))


def normless_vit(faulty: bool = False) -> Training:
    """Shapes by a patch transformer of twelve layers; the fault is no norm, and He's weights."""
    torch.manual_seed(16)
    model = Encoder(12, 32, norms=not faulty)
    if faulty:
        for mlp in model.mlp:
            kaiming(mlp)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, drawn(shapes(), 16), classify, optimizer, steps=120)


class NormedLayer(nn.Module):
    """Linear, batch norm, ReLU; skipped around or not."""

    def __init__(self, width: int, skip: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.linear(x)))
        return x + 0.3 * h if self.skip else h


def batchnorm_tower(faulty: bool = False) -> Training:
    """Digits by 45 layers with batch norm; the fault is that nothing goes around them."""
    torch.manual_seed(17)
    model = nn.Sequential(
        nn.Linear(64, 48), *(NormedLayer(48, not faulty) for _ in range(45)), nn.Linear(48, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    return Training(model, drawn(digits(), 48), classify, optimizer, steps=150)


class Messages(nn.Module):
    """Messages of neighbours summed or averaged, then a small network; residual-free."""

    def __init__(self, adjacency: Tensor, n: int, width: int, depth: int, summed: bool) -> None:
        super().__init__()
        mix = adjacency if summed else adjacency / adjacency.sum(1, keepdim=True)
        self.register_buffer("mix", mix)
        self.enter = nn.Linear(n, width)
        self.own = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.others = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.leave = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.elu(self.enter(x))
        for own, others in zip(self.own, self.others, strict=True):
            h = F.elu(own(h) + others(self.mix @ h))  # type: ignore[operator]
        return self.leave(h)


def summed_messages(faulty: bool = False) -> Training:
    """Communities of a graph; the fault is that five layers add up neighbours, undivided."""
    torch.manual_seed(18)
    adjacency, x, y = communities()
    model = Messages(adjacency, x.shape[1], 32, depth=5, summed=faulty)
    kaiming(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    return Training(model, always((x, y)), classify, optimizer, steps=200)


def blows_up(times: float) -> Symptom:
    """The largest gradient of a matrix becomes that many times the first one; not the twin's."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        def growth(observed: Observed) -> float:
            largest = [max(c.norms.values()) for c in observed.checkpoints]
            return max(n for n in largest if math.isfinite(n)) / largest[0]

        assert twin is not None, "needs a twin"
        found, theirs = growth(run), growth(twin)
        return {
            "is": found >= times > 10 * theirs and run.loss_last > 2 * twin.loss_last,
            "times": found,
            "twin": theirs,
            "loss": run.loss_last,
            "twin_loss": twin.loss_last,
        }

    return symptom


# --- Deep and fine --------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """Two convolutions with batch norm and a skip."""

    def __init__(self, n: int, m: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(n, m, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(m),
            nn.ReLU(),
            nn.Conv2d(m, m, 3, padding=1, bias=False),
            nn.BatchNorm2d(m),
        )
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or n != m:
            self.skip = nn.Sequential(
                nn.Conv2d(n, m, 1, stride=stride, bias=False), nn.BatchNorm2d(m)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.body(x))


def resnet() -> Training:
    """Twenty layers in three stages, as for small images."""
    torch.manual_seed(21)
    blocks = [BasicBlock(8, 8, 1) for _ in range(3)]
    blocks += [BasicBlock(8, 16, 2), BasicBlock(16, 16, 1), BasicBlock(16, 16, 1)]
    blocks += [BasicBlock(16, 32, 2), BasicBlock(32, 32, 1), BasicBlock(32, 32, 1)]
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    )
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)
    data = drawn(shapes(), 32)
    return Training(model, data, classify, optimizer, steps=120, schedule=schedule)


def pre_norm_transformer() -> Training:
    """A language model of ten layers, warmed up."""
    torch.manual_seed(22)
    model = LanguageModel(letters(), 40, 40, [Block(40, 4) for _ in range(10)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / 20))
    batch = partial(sentences, size=8, length=40)
    return Training(model, batch, next_symbol, optimizer, steps=150, schedule=schedule, clip=1.0)


def selu_mlp() -> Training:
    """Sixteen layers that keep their own scale, by LeCun's initialisation."""
    torch.manual_seed(23)
    layers: list[nn.Module] = []
    for n in [64] + [64] * 15:
        layers += [nn.Linear(n, 64), nn.SELU()]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return Training(model, drawn(digits(), 64), classify, optimizer, steps=300, every=10)


class EveryState(nn.Module):
    """An LSTM that answers at every step."""

    def __init__(self, n: int, width: int) -> None:
        super().__init__()
        self.core = nn.LSTM(n, width, batch_first=True)
        self.answer = nn.Linear(width, n)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.core(x)[0])


def _drift(step: int, size: int, length: int) -> Batch:
    """Noise of two channels, and its slow moving average at every step."""
    x = torch.randn(size, length, 2, generator=generator(step))
    kept, state = [], torch.zeros(size, 2)
    for t in range(length):
        state = 0.95 * state + 0.3 * x[:, t]
        kept.append(state)
    return x, torch.stack(kept, 1)


def long_lstm() -> Training:
    """A moving average of 120 steps, asked for at each, by an LSTM that remembers."""
    torch.manual_seed(24)
    model = EveryState(2, 48)
    with torch.no_grad():
        dict(model.core.named_parameters())["bias_ih_l0"][48:96] = 2.0
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    batch = partial(_drift, size=24, length=120)
    return Training(model, batch, regress, optimizer, steps=200, clip=1.0)


class HighwayLayer(nn.Module):
    """Some of a layer, and of its input what is left."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.new = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, -1.0)

    def forward(self, x: Tensor) -> Tensor:
        share = torch.sigmoid(self.gate(x))
        return share * torch.tanh(self.new(x)) + (1 - share) * x


def highway() -> Training:
    """Eighteen gated layers on digits."""
    torch.manual_seed(25)
    model = nn.Sequential(
        nn.Linear(64, 40), *(HighwayLayer(40) for _ in range(18)), nn.Linear(40, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.1)
    return Training(model, drawn(digits(), 64), classify, optimizer, steps=250)


class DenseLayer(nn.Module):
    """New channels beside those that were there."""

    def __init__(self, n: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(n)
        self.conv = nn.Conv2d(n, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def densenet() -> Training:
    """Two dense blocks of six layers."""
    torch.manual_seed(26)
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1)]
    n = 8
    for block in range(2):
        for _ in range(6):
            layers.append(DenseLayer(n, 6))
            n += 6
        if block == 0:
            layers += [nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, n // 2, 1), nn.AvgPool2d(2)]
            n //= 2
    layers += [nn.BatchNorm2d(n), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(n, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, drawn(shapes(), 24), classify, optimizer, steps=120)


def orthogonal_rnn() -> Training:
    """The adding problem by a tanh recurrence that begins as a rotation."""
    torch.manual_seed(27)
    model = LastState(nn.RNN(2, 64, batch_first=True), 1)
    nn.init.orthogonal_(model.core.weight_hh_l0)  # type: ignore[arg-type]
    nn.init.normal_(model.core.weight_ih_l0, std=0.5)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = partial(adding, size=48, length=20)
    return Training(model, batch, regress, optimizer, steps=350, every=10, clip=1.0)


class DeeplySupervised(nn.Module):
    """Three stages of convolutions, each with an answer of its own."""

    def __init__(self) -> None:
        super().__init__()
        stages, answers, n = [], [], 1
        for m in (12, 16, 24):
            layers: list[nn.Module] = []
            for i in range(3):
                layers += [nn.Conv2d(n, m, 3, stride=1 + (i == 2), padding=1, bias=False)]
                layers += [nn.BatchNorm2d(m), nn.ReLU()]
                n = m
            stages.append(nn.Sequential(*layers))
            answers.append(nn.Linear(m, 4))
        self.stages, self.answers = nn.ModuleList(stages), nn.ModuleList(answers)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage, answer in zip(self.stages, self.answers, strict=True):
            x = stage(x)
            found.append(answer(x.mean((2, 3))))
        return found


def _all_answers(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    *early, last = (F.cross_entropy(answer, y) for answer in model(x))
    return last + 0.3 * sum(early)


def deep_supervision() -> Training:
    """Nine convolutions with a loss after every third."""
    torch.manual_seed(28)
    model = DeeplySupervised()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, drawn(shapes(), 24), _all_answers, optimizer, steps=150)


class Coupling(nn.Module):
    """Half of the numbers scaled and shifted by what the other half says."""

    def __init__(self, width: int, turn: bool) -> None:
        super().__init__()
        last = nn.Linear(32, width)
        nn.init.normal_(last.weight, std=0.01)
        self.net = nn.Sequential(
            nn.Linear(width // 2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), last
        )
        self.turn = turn

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, 1)
        if self.turn:
            a, b = b, a
        scale, shift = self.net(a).chunk(2, 1)
        scale = torch.tanh(scale)
        b = b * scale.exp() + shift
        return torch.cat([b, a] if self.turn else [a, b], 1), scale.sum(1)


class Flow(nn.Module):
    """Couplings one after the other, each acting on the half that the last one left."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Coupling(width, i % 2 == 1) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        volume = x.new_zeros(len(x))
        for layer in self.layers:
            x, change = layer(x)
            volume = volume + change
        return 0.5 * (x.square() + math.log(2 * math.pi)).sum(1) - volume


def _likelihood(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).mean()


def flow() -> Training:
    """The density of points on bent sheets, by ten couplings."""
    torch.manual_seed(29)
    g = generator(4)
    u = torch.randn(3000, 2, generator=g)
    x = torch.cat([u, u.square() - 1, torch.sin(2 * u)], 1) / 1.2
    x = x + 0.15 * torch.randn(3000, 6, generator=g)
    model = Flow(6, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, drawn((x,), 128), _likelihood, optimizer, steps=250)


class Dilated(nn.Module):
    """A gated, dilated, causal convolution with a skip."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.gates = nn.Conv1d(width, 2 * width, 2, dilation=dilation)
        self.out = nn.Conv1d(width, width, 1)
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.gates(F.pad(x, (self.dilation, 0))).chunk(2, 1)
        return x + self.out(torch.tanh(a) * torch.sigmoid(b))


class Wave(nn.Module):
    """Dilated convolutions over an embedded text."""

    def __init__(self, symbols: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.layers = nn.Sequential(*(Dilated(width, 2 ** (i % 5)) for i in range(10)))
        self.answer = nn.Conv1d(width, symbols, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.layers(self.embed(tokens).transpose(1, 2))
        return self.answer(F.relu(x)).transpose(1, 2)


def wavenet() -> Training:
    """Text by ten gated convolutions."""
    torch.manual_seed(30)
    model = Wave(letters(), 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, partial(sentences, size=8, length=64), next_symbol, optimizer, steps=150)


class MixerBlock(nn.Module):
    """Across places, then across channels."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.Sequential(nn.Linear(places, 24), nn.GELU(), nn.Linear(24, places))
        self.within = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norm2(x))


class Mixer(nn.Module):
    """Patches mixed eight times."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 4, stride=4)
        self.blocks = nn.Sequential(*(MixerBlock(16, 32) for _ in range(8)))
        self.norm = nn.LayerNorm(32)
        self.answer = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patch(x).flatten(2).transpose(1, 2))
        return self.answer(self.norm(x).mean(1))


def mixer() -> Training:
    """Shapes by an MLP-mixer of eight blocks."""
    torch.manual_seed(31)
    model = Mixer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    return Training(model, drawn(shapes(), 32), classify, optimizer, steps=200)


def _library_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits = model(input_ids=x).logits
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def gpt2() -> Training:
    """The library's GPT-2 with six narrow layers."""
    torch.manual_seed(32)
    config = GPT2Config(
        vocab_size=letters(), n_positions=48, n_embd=48, n_layer=6, n_head=4,
        resid_pdrop=0.0, bos_token_id=0, eos_token_id=0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(
        model, partial(sentences, size=8, length=48), _library_loss, optimizer, steps=150, clip=1.0
    )


VANISHING = Fault(
    "ind-vanishing",
    must=[["vanishing-gradient"]],
    symptom=decays(2.5),
    variants=[
        Variant("sigmoid-mlp", sigmoid_mlp, broken=partial(sigmoid_mlp, True)),
        # The first kernels move by 4e-5 of their norm in the whole run.
        Variant(
            "small-init-cnn",
            small_init_cnn,
            broken=partial(small_init_cnn, True),
            may=["no-update"],
        ),
        Variant("tanh-cell-loop", tanh_cell, broken=partial(tanh_cell, True)),
        Variant("fused-rnn", fused_rnn, broken=partial(fused_rnn, True)),
        # All rows of attention are uniform, and queries and keys get nothing of the rest.
        Variant(
            "attention-chain",
            attention_chain,
            broken=partial(attention_chain, True),
            may=["diffuse-softmax", "starved-pathway", "no-update"],
        ),
        # States so small make no scores: attention stays uniform in every layer.
        Variant(
            "skipless-transformer",
            skipless_transformer,
            broken=partial(skipless_transformer, True),
            may=["diffuse-softmax"],
        ),
        Variant("deep-gcn", deep_gcn, broken=partial(deep_gcn, True)),
        Variant(
            "forgetful-lstm",
            forgetful_lstm,
            broken=partial(forgetful_lstm, True),
            symptom=decays(2.5, like="cell"),
        ),
    ],
)

EXPLODING = Fault(
    "ind-exploding",
    must=[["exploding-gradient"]],
    symptom=grows(2.5),
    variants=[
        Variant("wide-init-mlp", wide_init_mlp, broken=partial(wide_init_mlp, True)),
        # At late times half of the units are 0 for every sample: the others' states blow up.
        Variant(
            "rectified-loop",
            rectified_loop,
            broken=partial(rectified_loop, True),
            may=["dead-units"],
        ),
        Variant("chaotic-rnn", chaotic_rnn, broken=partial(chaotic_rnn, True)),
        Variant("unnormed-resnet", unnormed_resnet, broken=partial(unnormed_resnet, True)),
        Variant(
            "adam-at-sgd-rate",
            blown_up_autoencoder,
            broken=partial(blown_up_autoencoder, True),
            must=[["exploding-gradient", "update-too-large"]],
            symptom=blows_up(100),
        ),
        # States that have grown make scores that have grown.
        Variant(
            "normless-vit",
            normless_vit,
            broken=partial(normless_vit, True),
            may=["peaked-softmax"],
        ),
        Variant("batchnorm-tower", batchnorm_tower, broken=partial(batchnorm_tower, True)),
        Variant("summed-messages", summed_messages, broken=partial(summed_messages, True)),
    ],
)

FAULTS = [VANISHING, EXPLODING]

DEEP = Healthy(
    "ind-deep-healthy",
    {
        "resnet": resnet,
        "pre-norm-transformer": pre_norm_transformer,
        "selu-mlp": selu_mlp,
        "long-lstm": long_lstm,
        "highway": highway,
        "densenet": densenet,
        "orthogonal-rnn": orthogonal_rnn,
        "deep-supervision": deep_supervision,
        "flow": flow,
        "wavenet": wavenet,
        "mixer": mixer,
        "gpt2": gpt2,
    },
)

THEMES = [DEEP]
