"""Models as users write them, for tests of what is recorded about any model.

Every case is a `Case`: how to build the model, and the loss of a step.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from tests.reference.gradients import tensors_in


@dataclass
class Case:
    """A model and its loss.

    Attributes:
        build: () -> model.
        loss: (model, step) -> loss; draws its data from `data(step, ...)`.
        twin: () -> a model with the same parameters that computes the same thing without
            operations in place, which a forward hook can't see through. `build` by default.
        lacks: columns of the support matrix for which there is nothing to record.
    """

    build: Any
    loss: Any
    twin: Any = field(default=None)
    lacks: tuple[str, ...] = ()

    def pair(self, seed=0):
        """The model and its twin, with equal weights."""
        torch.manual_seed(seed)
        model = self.build()
        twin = (self.twin or self.build)()
        twin.load_state_dict(model.state_dict())
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            b.requires_grad_(a.requires_grad)
        twin.train(model.training)
        return model, twin


def data(step, *shape):
    """Gaussian numbers of this step, without touching torch's random state."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1000 + step))


def weighted(*tensors):
    """A loss in which every element counts differently."""
    total = torch.zeros(())
    for index, tensor in enumerate(tensors):
        weights = data(77 + index, *tensor.shape).to(tensor.dtype)
        total = total + (tensor * weights).sum() + 0.1 * tensor.square().mean()
    return total


def on(*shape):
    """loss(model, step): weighted(model(x))."""
    return lambda model, step: weighted(model(data(step, *shape)))


class ConvBlock(nn.Module):
    def __init__(self, width, inplace):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=inplace)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.inplace = inplace

    def forward(self, x):
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        if self.inplace:
            y += x
        else:
            y = y + x
        return self.act(y)


class ResNet(nn.Module):
    def __init__(self, inplace=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(ConvBlock(4, inplace), ConvBlock(4, inplace))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.flatten(self.pool(self.blocks(self.stem(x)))))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1 = nn.Conv2d(1, 3, 3, padding=1)
        self.down2 = nn.Conv2d(3, 4, 3, padding=1, stride=2)
        self.middle = nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.out = nn.Conv2d(6, 1, 1)
        self.act = nn.ReLU()

    def forward(self, x):
        a = self.act(self.down1(x))
        b = self.act(self.down2(a))
        c = self.act(self.middle(b)) + b
        return self.out(torch.cat([a, self.up(c)], dim=1))


class Tagger(nn.Module):
    """A recurrent network and a head; packs its sequences if asked."""

    def __init__(self, kind, packed=False, **options):
        super().__init__()
        self.rnn = kind(3, 4, batch_first=True, **options)
        directions = 2 if options.get("bidirectional") else 1
        self.head = nn.Linear(4 * directions, 2)
        self.packed = packed

    def forward(self, x):
        if not self.packed:
            return self.head(self.rnn(x)[0])
        lengths = torch.tensor([x.shape[1], x.shape[1] - 1])
        hidden, _ = self.rnn(pack_padded_sequence(x, lengths, batch_first=True))
        return self.head(pad_packed_sequence(hidden, batch_first=True)[0])


class LastState(nn.Module):
    """The answer is read from the last hidden and cell state."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 4, num_layers=2)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        _, (h, c) = self.rnn(x)
        return self.head(torch.cat([h[-1], c[-1]], dim=-1))


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor
    unused: None = None


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Returning(nn.Module):
    """Hands its answer and its hidden tensor back in a container of some kind."""

    def __init__(self, wrap):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.head = nn.Linear(4, 2)
        self.wrap = wrap

    def forward(self, x):
        hidden = self.body(x)
        return self.wrap(self.head(hidden), hidden)


class Repeats(nn.Module):
    """One module called three times, and once more by another name."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.again = self.layer
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        for _ in range(3):
            x = x + torch.tanh(self.layer(self.norm(x)))
        return self.again(x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens):
        return self.out(torch.tanh(self.mix(self.embed(tokens))))


class Frozen(nn.Module):
    """A frozen embedding, a frozen middle, trainable ends."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4).requires_grad_(False)
        self.second = nn.Linear(4, 4)
        self.third = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.third(torch.tanh(self.second(self.first(x))))))


class Adapter(nn.Module):
    """A frozen layer and a low-rank product beside it, as LoRA adds them."""

    def __init__(self, width, rank):
        super().__init__()
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)

    def forward(self, x):
        return self.frozen(x) + 2 * self.up(self.down(x))


class Unused(nn.Module):
    """A layer that is never called, and a parameter whose result nobody reads."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.spare = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 4)
        self.shift = nn.Parameter(torch.randn(4))

    def forward(self, x):
        x = torch.tanh(self.a(x))
        x + self.shift
        return self.b(x)


class Attends(nn.Module):
    """Multi-head attention to itself, whose weights may be asked for, and read."""

    def __init__(self, need_weights):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 2)
        self.need_weights = need_weights

    def forward(self, x):
        mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
        y, weights = self.attention(x, x, x, key_padding_mask=mask, need_weights=self.need_weights)
        y = self.head(x + y)
        return y if weights is None else (y, weights)


class Flip(torch.autograd.Function):
    """Two outputs from two inputs; the second input's gradient is scaled by a constant."""

    @staticmethod
    def forward(ctx, a, b, scale):
        ctx.scale = scale
        return a - b, a + 2 * b

    @staticmethod
    def backward(ctx, first, second):
        return first + second, ctx.scale * (2 * second - first), None


class Reversal(nn.Module):
    def forward(self, a, b):
        return Flip.apply(a, b, -0.5)


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.b = nn.Linear(3, 4)
        self.flip = Reversal()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        first, second = self.flip(self.a(x), self.b(x))
        return self.head(torch.tanh(first) * second)


class Chunks(nn.Module):
    """Outputs that share one graph node, some of them read twice, one by nobody."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(3, 12)
        self.split = Split()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        a, b, _ = self.split(self.wide(x))
        return self.head(a * torch.sigmoid(b) + a)


class Split(nn.Module):
    def forward(self, x):
        return x.chunk(3, dim=-1)


class Forks(nn.Module):
    """Tensors read several times by functions: squared, as query, key and value at once."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        y = self.a(x)
        y = self.b(y * y + y.sin())
        attended, _ = self.attend(y, y, y)
        return torch.cat([attended, y, y], dim=-1) + attended.mean(-1, keepdim=True)


class StochasticDepth(nn.Module):
    """Hands its input straight through on every second call."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x if self.calls % 2 else x + self.linear(x)


class Checkpointed(nn.Module):
    def __init__(self, use):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.block = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.head = nn.Linear(4, 2)
        self.use = use

    def forward(self, x):
        x = self.stem(x)
        y = checkpoint(self.block, x, use_reentrant=False) if self.use else self.block(x)
        return self.head(torch.tanh(y + x))


class Slices(nn.Module):
    """Writes into a part of what a layer returned."""

    def __init__(self, inplace):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.b = nn.Linear(4, 4)
        self.c = nn.Linear(4, 2)
        self.inplace = inplace

    def forward(self, x):
        y = self.a(x)
        z = y if self.inplace else y.clone()
        z[:, 0] = 0.5
        z[:, 1] *= 2
        y = self.b(z)
        y = torch.relu_(y) if self.inplace else torch.relu(y)
        return self.c(y)


class Prompt(nn.Module):
    """Returns its parameter as it is."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(2, 4))

    def forward(self):
        return self.tokens


class Prompted(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.prompt = Prompt()
        self.same = nn.Identity()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.embed(self.same(x))
        return self.head(torch.tanh(torch.cat([self.prompt(), self.same(x)])))


class Fourier(nn.Module):
    """Complex tensors between two real layers."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 6)
        self.transform = Transform()
        self.b = nn.Linear(4, 2)

    def forward(self, x):
        spectrum = self.transform(self.a(x))
        return self.b(spectrum.abs() + (spectrum * spectrum).real)


class Transform(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x)


class TopValues(nn.Module):
    """Returns values with a gradient beside indices without one."""

    def forward(self, x):
        return x.max(dim=-1)


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.top = TopValues()
        self.scale = nn.Linear(1, 2)

    def forward(self, x):
        values, indices = self.top(self.a(x))
        return self.scale(values.unsqueeze(-1)) * indices.unsqueeze(-1).float().cos()


def encoder(dropout, **options):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def decoder(dropout):
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, dropout=dropout), 2)


def two_inputs(model, step):
    return weighted(model(data(step, 5, 2, 8), data(step + 50, 4, 2, 8)))


def language(model, step):
    tokens = torch.arange(10).view(2, 5) % 7
    return F.cross_entropy(model(tokens).flatten(0, 1), (tokens.flatten() + step) % 7)


def both(model, step):
    """A loss of the answer and of the hidden tensor that is returned beside it."""
    return weighted(*(tensor for _, tensor in tensors_in(model(data(step, 5, 3)), "")))


# What there is to record, in the support matrix's words: no attention, and no tensor read twice
# (by the loss either).
NO_SOFTMAXES = ("softmaxes",)
NO_FORKS = ("forks", "softmaxes")

CASES = {
    "transformer encoder": Case(lambda: encoder(0.0), on(2, 5, 8)),
    "transformer encoder, dropout": Case(lambda: encoder(0.3), on(2, 5, 8)),
    "transformer encoder, norm first": Case(lambda: encoder(0.0, norm_first=True), on(2, 5, 8)),
    "transformer decoder": Case(lambda: decoder(0.0), two_inputs),
    "transformer decoder, dropout": Case(lambda: decoder(0.2), two_inputs),
    "transformer": Case(lambda: nn.Transformer(8, 2, 1, 1, 16, dropout=0.1), two_inputs),
    "lstm": Case(lambda: Tagger(nn.LSTM), on(2, 6, 3), lacks=NO_SOFTMAXES),
    "lstm, bidirectional": Case(
        lambda: Tagger(nn.LSTM, bidirectional=True), on(2, 6, 3), lacks=NO_SOFTMAXES
    ),
    "lstm, packed": Case(lambda: Tagger(nn.LSTM, packed=True), on(2, 6, 3), lacks=NO_SOFTMAXES),
    "lstm, last state": Case(LastState, on(6, 2, 3), lacks=NO_SOFTMAXES),
    "gru": Case(lambda: Tagger(nn.GRU, num_layers=2, dropout=0.3), on(2, 6, 3), lacks=NO_SOFTMAXES),
    "rnn": Case(lambda: Tagger(nn.RNN), on(2, 6, 3), lacks=NO_SOFTMAXES),
    "resnet": Case(ResNet, on(4, 3, 6, 6), lacks=NO_SOFTMAXES),
    "resnet, in place": Case(
        lambda: ResNet(inplace=True), on(4, 3, 6, 6), twin=ResNet, lacks=NO_SOFTMAXES
    ),
    "unet": Case(UNet, on(2, 1, 8, 8), lacks=NO_SOFTMAXES),
    "dict": Case(
        lambda: Returning(lambda y, h: {"logits": y, "hidden": h}), both, lacks=NO_SOFTMAXES
    ),
    "dataclass": Case(lambda: Returning(Answer), both, lacks=NO_SOFTMAXES),
    "namedtuple": Case(lambda: Returning(Pair), both, lacks=NO_SOFTMAXES),
    "nested tuple": Case(
        lambda: Returning(lambda y, h: (y, (None, [h, 3]))), both, lacks=NO_SOFTMAXES
    ),
    "module called repeatedly": Case(Repeats, on(3, 4), lacks=NO_SOFTMAXES),
    "tied weights": Case(Tied, language, lacks=NO_SOFTMAXES),
    "frozen parts": Case(Frozen, on(5, 3), lacks=NO_SOFTMAXES),
    "low-rank adapters": Case(
        lambda: nn.Sequential(Adapter(4, 2), nn.Tanh(), Adapter(4, 1)),
        on(3, 4),
        lacks=NO_SOFTMAXES,
    ),
    "unused parameters": Case(
        Unused, lambda model, step: model(data(step, 5, 3)).square().sum(), lacks=NO_FORKS
    ),
    "multi-head attention, without weights": Case(lambda: Attends(False), on(2, 5, 8)),
    "multi-head attention, weights read": Case(
        lambda: Attends(True), lambda model, step: weighted(*model(data(step, 2, 5, 8)))
    ),
    "custom function": Case(Custom, on(5, 3), lacks=NO_SOFTMAXES),
    "chunks": Case(Chunks, on(5, 3), lacks=NO_SOFTMAXES),
    "functional forks": Case(Forks, on(2, 3, 4)),
    "input with a gradient": Case(
        Forks, lambda m, s: weighted(m(data(s, 2, 3, 4).requires_grad_()))
    ),
    "stochastic depth": Case(
        lambda: nn.Sequential(nn.Linear(4, 4), StochasticDepth(), nn.Linear(4, 2)),
        on(3, 4),
        lacks=NO_SOFTMAXES,
    ),
    "writes into slices": Case(
        lambda: Slices(True), on(5, 3), twin=lambda: Slices(False), lacks=NO_SOFTMAXES
    ),
    "returns its parameter": Case(
        Prompted,
        lambda model, step: weighted(model(data(step, 3, 3).requires_grad_())),
        lacks=NO_SOFTMAXES,
    ),
    "complex": Case(Fourier, on(5, 3), lacks=NO_SOFTMAXES),
    "values and indices": Case(Pooled, on(5, 3), lacks=NO_SOFTMAXES),
    "parametrized weights": Case(
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Linear(3, 4)),
            nn.Tanh(),
            parametrizations.orthogonal(nn.Linear(4, 4)),
        ),
        on(5, 3),
        lacks=NO_SOFTMAXES,
    ),
    "checkpoint": Case(
        lambda: Checkpointed(True), on(3, 4), twin=lambda: Checkpointed(False), lacks=NO_SOFTMAXES
    ),
}
