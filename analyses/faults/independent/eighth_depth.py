"""Gradients that get lost, blow up, are starved or cancel on their way through deep models."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_eighth_depth import (
    digit_batches,
    digits,
    generator,
    recall_batches,
    wave_batches,
)
from analyses.faults.symptoms import branch_starved, decays, edges_cancel, grows
from analyses.faults.training import Training


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The usual classifier's loss."""
    return F.cross_entropy(model(x), y)


# Vanishing through layers.


def sigmoid_mlp(*, sigmoid: bool = False) -> Training:
    """Digits by a deep MLP whose hidden activation is chosen by a flag."""
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for _ in range(7):
        layer = nn.Linear(64, 64)
        if not sigmoid:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        layers += [layer, nn.Sigmoid() if sigmoid else nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    return Training(
        model,
        digit_batches(),
        cross_entropy,
        torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
        steps=250,
    )


class PlainConvs(nn.Module):
    """Fourteen convolutions one after the other."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        convs: list[nn.Module] = []
        width = 1
        for _ in range(14):
            convs.append(nn.Conv2d(width, 16, 3, padding=1, bias=False))
            if norm:
                convs.append(nn.BatchNorm2d(16))
            convs.append(nn.ReLU(inplace=True))
            width = 16
        self.features = nn.Sequential(*convs)
        self.classifier = nn.Linear(16 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def plain_cnn(*, norm: bool = True) -> Training:
    """Digit images by a plain deep CNN, with or without batch norm."""
    torch.manual_seed(2)
    model = PlainConvs(norm)
    return Training(
        model,
        digit_batches(32, image=True),
        cross_entropy,
        torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        steps=150,
    )


def _reconstruction(model: nn.ModuleDict, x: Tensor, _: Tensor) -> Tensor:
    code = model["encoder"](x)
    return F.mse_loss(model["decoder"](code), x)


def tanh_autoencoder(*, std: float = 0.0) -> Training:
    """Digits through a narrow code; weights from a normal of given width, 0 for Xavier's."""
    torch.manual_seed(3)

    def chain(*sizes: int) -> nn.Sequential:
        parts: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            parts += [nn.Linear(a, b), nn.Tanh()]
        return nn.Sequential(*parts[:-1])

    model = nn.ModuleDict({"encoder": chain(64, 96, 48, 12), "decoder": chain(12, 48, 96, 64)})
    for part in model.modules():
        if isinstance(part, nn.Linear):
            if std:
                nn.init.normal_(part.weight, std=std)
            else:
                nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
    return Training(
        model,
        digit_batches(),
        _reconstruction,
        torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9),
        steps=250,
    )


class Normalised(nn.Module):
    """Attention and a feed-forward layer over tokens; skips around both if wanted."""

    def __init__(self, width: int, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ff = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        p = torch.softmax(torch.matmul(q, k.transpose(1, 2)) / math.sqrt(q.shape[-1]), -1)
        return self.out(torch.matmul(p, v))

    def forward(self, x: Tensor) -> Tensor:
        if self.skip:
            x = x + self.attend(self.norm1(x))
            return x + self.ff(self.norm2(x))
        return self.ff(self.norm2(self.attend(self.norm1(x))))


class RowsOfDigits(nn.Module):
    """The rows of a digit as tokens of a small encoder."""

    def __init__(self, depth: int, skip: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.position = nn.Parameter(0.5 * torch.randn(8, 32))
        self.blocks = nn.ModuleList(Normalised(32, skip) for _ in range(depth))
        self.head = nn.Linear(8 * 32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.view(-1, 8, 8)) + self.position
        for block in self.blocks:
            h = block(h)
        return self.head(h.flatten(1))


def encoder_without_skips(*, skip: bool = True) -> Training:
    """An encoder of ten layers, with or without its residual connections."""
    torch.manual_seed(4)
    model = RowsOfDigits(10, skip)
    return Training(
        model,
        digit_batches(32),
        cross_entropy,
        torch.optim.AdamW(model.parameters(), lr=1e-3),
        steps=120,
    )


class GraphNet(nn.Module):
    """Layers of neighbourhood averages."""

    adjacency: Tensor

    def __init__(self, adjacency: Tensor, depth: int, skip: bool) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.skip = skip
        self.first = nn.Linear(16, 32)
        self.convs = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        self.last = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.elu(self.first(x))
        for conv in self.convs:
            new = F.elu(conv(self.adjacency @ h))
            h = h + 0.3 * new if self.skip else new
        return self.last(h)


def deep_gcn(*, skip: bool = True) -> Training:
    """Classes of the nodes of a graph of four communities, by sixteen layers of averages."""
    torch.manual_seed(5)
    nodes, kinds = 160, 4
    y = torch.arange(nodes) % kinds
    linked = torch.rand(nodes, nodes) < torch.where(y[:, None] == y[None], 0.15, 0.02)
    a = torch.triu(linked, 1).float()
    a = a + a.T + torch.eye(nodes)
    scale = a.sum(1).rsqrt()
    x = torch.randn(nodes, 16) + 0.8 * F.one_hot(y, 16).float()
    model = GraphNet(scale[:, None] * a * scale[None], 16, skip)
    return Training(
        model,
        lambda step: (x, y),
        cross_entropy,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        steps=200,
    )


class Series(nn.Module):
    """A tower of one-dimensional convolutions over a time series."""

    def __init__(self, depth: int, skips: bool) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 24, 5, stride=2, padding=2)
        self.tower = nn.ModuleList(nn.Conv1d(24, 24, 3, padding=1) for _ in range(depth))
        self.out = nn.Linear(24 * 16, 4)
        self.skips = skips

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.stem(x), 0.1)
        for conv in self.tower:
            new = F.leaky_relu(conv(h), 0.1)
            h = h + 0.4 * new if self.skips else new
        return self.out(h.flatten(1))


def series_tower(*, skips: bool = True) -> Training:
    """Kinds of waves by a deep tower of convolutions, with or without skips around them."""
    torch.manual_seed(6)
    model = Series(12, skips)
    return Training(
        model,
        wave_batches(32, 32),
        cross_entropy,
        torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        steps=200,
    )


class Regressor(nn.Module):
    """A tanh network of twenty layers for tables of numbers."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(12, 40), *(nn.Linear(40, 40) for _ in range(19))])
        self.out = nn.Linear(40, 1)
        if gain:
            for layer in self.layers:
                assert isinstance(layer, nn.Linear)
                nn.init.orthogonal_(layer.weight, gain=gain)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for layer in self.layers:
            x = layer(x).tanh()
        return {"prediction": self.out(x).squeeze(-1), "features": x}


def _huber(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.huber_loss(model(x)["prediction"], y)


def tabular(*, gain: float = 1.2) -> Training:
    """A target that mixes products and sines of twelve columns; gain 0 leaves default weights."""
    torch.manual_seed(7)
    model = Regressor(gain)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(64, 12, generator=generator(step, 3))
        return x, x[:, 0] * x[:, 1] + (2 * x[:, 2]).sin() + x[:, 3] - 0.5 * x[:, 4]

    return Training(
        model, batch, _huber, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), steps=300
    )


class Painter(nn.Module):
    """Paints a digit from its class and a little noise, by upsampling convolutions."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.project = nn.Linear(14, 32 * 4)
        steps: list[nn.Module] = []
        for up in (False, True, False, True, False):
            steps.append(
                nn.ConvTranspose2d(32, 32, 4, 2, 1) if up else nn.Conv2d(32, 32, 3, padding=1)
            )
            if norm:
                steps.append(nn.BatchNorm2d(32))
            steps.append(nn.LeakyReLU(0.2))
        self.steps = nn.Sequential(*steps)
        self.image = nn.Conv2d(32, 1, 3, padding=1)
        self.apply(self._start)

    @staticmethod
    def _start(module: nn.Module) -> None:
        """The weights that GANs of convolutions begin with."""
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, given: Tensor) -> Tensor:
        h = self.project(given).view(-1, 32, 2, 2)
        return self.image(self.steps(h))


def painter(*, norm: bool = True) -> Training:
    """A generator trained by its error, with the customary weights, with or without norms."""
    torch.manual_seed(8)
    model = Painter(norm)
    pick = digit_batches(32, image=True)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = pick(step)
        noise = torch.randn(len(y), 4, generator=generator(step, 7))
        return torch.cat([F.one_hot(y, 10).float(), noise], 1), x

    def error(model: nn.Module, given: Tensor, x: Tensor) -> Tensor:
        return F.mse_loss(model(given), x)

    return Training(
        model, batch, error, torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9), steps=150
    )


class Towers(nn.Module):
    """One tower that embeds anchors, positives and negatives."""

    def __init__(self, std: float) -> None:
        super().__init__()
        tower: list[nn.Module] = []
        for a, b in itertools.pairwise([64, 32, 32, 32, 32, 32, 32, 16]):
            layer = nn.Linear(a, b)
            nn.init.normal_(layer.weight, std=std or a**-0.5)
            nn.init.zeros_(layer.bias)
            tower += [layer, nn.Softsign()]
        self.tower = nn.Sequential(*tower[:-1])

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.tower(x) for x in given)


def _triplets(step: int) -> tuple[Tensor, Tensor, Tensor]:
    x, y = digits()
    g = generator(step, 13)
    anchors = torch.randint(len(x), (48,), generator=g)
    shuffled = torch.randperm(len(x), generator=g)
    same = y[shuffled][None] == y[anchors][:, None]
    positives = shuffled[same.float().argmax(1)]
    negatives = shuffled[(~same).float().argmax(1)]
    return x[anchors], x[positives], x[negatives]


def _triplet_loss(model: nn.Module, *given: Tensor) -> Tensor:
    anchor, positive, negative = model(*given)
    return F.triplet_margin_loss(anchor, positive, negative, margin=0.5)


def triplet_towers(*, std: float = 0.0) -> Training:
    """A metric learned from triplets; weights of a fixed small width, or by fan-in."""
    torch.manual_seed(9)
    model = Towers(std)
    return Training(
        model,
        _triplets,
        _triplet_loss,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        steps=200,
    )


VANISHING = Fault(
    "ind8-vanishing",
    must=[["vanishing-gradient"]],
    symptom=decays(2.5),
    variants=[
        # SGD: what gets a millionth of the gradient stays where it is.
        Variant(
            "sigmoid-mlp",
            sigmoid_mlp,
            broken=partial(sigmoid_mlp, sigmoid=True),
            may=["no-update"],
        ),
        Variant("plain-cnn", plain_cnn, broken=partial(plain_cnn, norm=False), may=["no-update"]),
        Variant(
            "tanh-autoencoder",
            tanh_autoencoder,
            broken=partial(tanh_autoencoder, std=0.01),
            may=["no-update"],
        ),
        Variant(
            "encoder-without-skips",
            encoder_without_skips,
            broken=partial(encoder_without_skips, skip=False),
            # The tokens become equal, and with them all scores: attention stays uniform, and
            # queries and keys have a hundred-millionth of the values' gradient.
            may=["diffuse-softmax", "starved-pathway"],
        ),
        Variant("deep-gcn", deep_gcn, broken=partial(deep_gcn, skip=False), may=["no-update"]),
        Variant(
            "series-tower",
            series_tower,
            broken=partial(series_tower, skips=False),
            may=["no-update"],
        ),
        Variant("tabular", tabular, broken=partial(tabular, gain=0.0), may=["no-update"]),
        Variant("painter", painter, broken=partial(painter, norm=False), may=["no-update"]),
        Variant(
            "triplet-towers",
            triplet_towers,
            broken=partial(triplet_towers, std=0.04),
        ),
    ],
)

# Through time, and through steps that share weights.


class FirstSymbol(nn.Module):
    """A fused recurrence whose last state has to know the first symbol."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 16)
        self.rnn = nn.RNN(16, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.rnn(self.embedding(tokens))
        return self.head(states[:, -1])


def tanh_rnn(*, orthogonal: bool = True) -> Training:
    """nn.RNN with default recurrent weights, or with orthogonal ones."""
    torch.manual_seed(11)
    model = FirstSymbol(48)
    if orthogonal:
        nn.init.orthogonal_(model.rnn.get_parameter("weight_hh_l0"))
        nn.init.zeros_(model.rnn.get_parameter("bias_ih_l0"))
        nn.init.zeros_(model.rnn.get_parameter("bias_hh_l0"))
        nn.init.normal_(model.embedding.weight, std=0.3)
    return Training(
        model,
        recall_batches(32, 40, 5),
        cross_entropy,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=200,
        clip=1.0,
    )


class CellLoop(nn.Module):
    """An LSTM cell in a Python loop over a time series."""

    def __init__(self, forget: float) -> None:
        super().__init__()
        self.inp = nn.Linear(2, 16)
        self.cell = nn.LSTMCell(16, 32)
        self.out = nn.Linear(32, 1)
        with torch.no_grad():
            for bias in (self.cell.bias_ih, self.cell.bias_hh):
                bias.zero_()
                bias[32:64] = forget / 2

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 32)
        for t in range(x.shape[1]):
            h, c = self.cell(self.inp(x[:, t]), (h, c))
        return self.out(h)


def _early_values(step: int) -> tuple[Tensor, Tensor]:
    g = generator(step, 4)
    x = torch.randn(48, 30, 2, generator=g)
    x[:, :, 1] = 0.0
    x[:, :4, 1] = 1.0  # a flag: these count
    return x, x[:, :4, :1].mean(1)


def _mse(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ((model(x) - y) ** 2).mean()


def forgetful_lstm(*, forget: float = 3.0) -> Training:
    """The mean of flagged early values, with a forget gate's bias of the right or wrong sign."""
    torch.manual_seed(12)
    model = CellLoop(forget)
    return Training(
        model, _early_values, _mse, torch.optim.RMSprop(model.parameters(), lr=2e-3), steps=150
    )


class Adding(nn.Module):
    """A rectified recurrence for the adding problem, recurrent weights a scaled identity."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, 40, nonlinearity="relu", batch_first=True)
        self.readout = nn.Linear(40, 3)
        with torch.no_grad():
            self.rnn.get_parameter("weight_hh_l0").copy_(scale * torch.eye(40))
            self.rnn.get_parameter("bias_hh_l0").zero_()
            self.rnn.get_parameter("bias_ih_l0").zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.rnn(x)[0][:, -1])


def _marked_sum(step: int) -> tuple[Tensor, Tensor]:
    g = generator(step, 5)
    x = 2 * torch.rand(48, 30, 2, generator=g) - 1
    marks = torch.zeros(48, 30)
    marks[:, 3] = marks[:, 17] = 1.0
    x[:, :, 1] = marks
    total = (x[:, :, 0] * marks).sum(1)
    return x, torch.bucketize(total, torch.tensor([-0.35, 0.35]))


def relu_rnn(*, scale: float = 1.0) -> Training:
    """Is the sum of two marked numbers small, middling or large?"""
    torch.manual_seed(13)
    model = Adding(scale)
    return Training(
        model,
        _marked_sum,
        cross_entropy,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=200,
        clip=1.0,
    )


class Refiner(nn.Module):
    """One block applied again and again to a state, as a stand-in for an equilibrium model."""

    def __init__(self, rounds: int, step: float) -> None:
        super().__init__()
        self.rounds, self.step = rounds, step
        self.read = nn.Linear(64, 48)
        self.block = nn.Sequential(nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 48))
        self.answer = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.read(x)
        for _ in range(self.rounds):
            z = z + self.step * self.block(z) if self.step else self.block(z)
        return self.answer(z)


def refiner(*, step: float = 0.2) -> Training:
    """Twelve rounds of refinement: z + step · f(z), or f(z) alone for step 0."""
    torch.manual_seed(14)
    model = Refiner(12, step)
    return Training(
        model,
        digit_batches(),
        cross_entropy,
        torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
        steps=200,
    )


class Diagonal(nn.Module):
    """A diagonal linear state-space layer, stepped through time; its decay is learned."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.enter = nn.Embedding(9, 32)
        self.mix = nn.Linear(32, 32)
        decay = torch.linspace(low, high, 32)
        self.logit = nn.Parameter(torch.logit(decay))
        self.leave = nn.Linear(32, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        a = torch.sigmoid(self.logit)
        h = torch.zeros(len(tokens), 32)
        for t in range(tokens.shape[1]):
            h = a * h + self.mix(self.enter(tokens[:, t]))
        return self.leave(F.gelu(h))


def state_space(*, low: float = 0.9, high: float = 0.999) -> Training:
    """Recall of the first symbol by decaying sums; how slowly they decay is the question."""
    torch.manual_seed(15)
    model = Diagonal(low, high)
    return Training(
        model,
        recall_batches(32, 40, 5),
        cross_entropy,
        torch.optim.Adam(model.parameters(), lr=3e-3),
        steps=150,
    )


class Euler(nn.Module):
    """A neural differential equation, integrated by hand."""

    def __init__(self, dt: float) -> None:
        super().__init__()
        self.dt = dt
        self.lift = nn.Linear(64, 32)
        self.field_in, self.field_out = nn.Linear(32, 64), nn.Linear(64, 32)
        self.classify = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.lift(x)
        for _ in range(16):
            z = z + self.dt * self.field_out(F.elu(self.field_in(z)))
        return self.classify(z)


def neural_ode(*, dt: float = 1 / 16) -> Training:
    """Sixteen Euler steps over an interval of length one, or with a step far too large."""
    torch.manual_seed(16)
    model = Euler(dt)
    return Training(
        model,
        digit_batches(),
        cross_entropy,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=200,
    )


class Counter(nn.Module):
    """A fused GRU that reads a flagged number early and says it at the end."""

    def __init__(self, update: float) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 24, batch_first=True)
        self.say = nn.Sequential(nn.Linear(24, 16), nn.ELU(), nn.Linear(16, 1))
        with torch.no_grad():
            self.gru.get_parameter("bias_hh_l0")[24:48] = update

    def forward(self, x: Tensor) -> Tensor:
        _, h = self.gru(x)
        return self.say(h.squeeze(0))


def hasty_gru(*, update: float = 3.0) -> Training:
    """The same early values for a GRU whose update gate's bias has the right or wrong sign."""
    torch.manual_seed(17)
    model = Counter(update)
    return Training(
        model, _early_values, _mse, torch.optim.Adam(model.parameters(), lr=5e-3), steps=200
    )


RECURRENT = Fault(
    "ind8-recurrent",
    must=[["vanishing-gradient"]],
    symptom=decays(3),
    variants=[
        Variant(
            "tanh-rnn",
            tanh_rnn,
            broken=partial(tanh_rnn, orthogonal=False),
            symptom=decays(4, "rnn"),
        ),
        Variant(
            "relu-rnn",
            relu_rnn,
            broken=partial(relu_rnn, scale=1.6),
            must=[["exploding-gradient"]],
            symptom=grows(3),
        ),
        Variant("forgetful-lstm", forgetful_lstm, broken=partial(forgetful_lstm, forget=-2.0)),
        # SGD: the layer that reads the digits gets a millionth of the gradient and stays.
        Variant("refiner", refiner, broken=partial(refiner, step=0.0), may=["no-update"]),
        Variant(
            "hasty-gru",
            hasty_gru,
            broken=partial(hasty_gru, update=-4.0),
            symptom=decays(4, "gru"),
        ),
        Variant(
            "neural-ode",
            neural_ode,
            broken=partial(neural_ode, dt=8.0),
            must=[["exploding-gradient"]],
            symptom=grows(3),
        ),
        Variant("state-space", state_space, broken=partial(state_space, low=0.3, high=0.7)),
    ],
)


# Exploding through layers.


def wide_normal_mlp(*, std: float = 0.0) -> Training:
    """An MLP whose weights are drawn from a normal of given width, 0 for Kaiming's."""
    torch.manual_seed(21)
    model = nn.Sequential()
    for i, (a, b) in enumerate(itertools.pairwise([64, 80, 80, 60, 60, 40, 40, 10])):
        layer = nn.Linear(a, b)
        if std:
            nn.init.normal_(layer.weight, std=std)
        else:
            nn.init.kaiming_normal_(layer.weight)
        model.append(layer)
        if i < 6:
            model.append(nn.ReLU())
    return Training(
        model,
        digit_batches(),
        cross_entropy,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=200,
    )


class ResMlp(nn.Module):
    """Residual blocks of two layers each."""

    def __init__(self, blocks: int, norm: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 48)
        self.blocks = nn.ModuleList()
        for _ in range(blocks):
            block = nn.ModuleDict({"up": nn.Linear(48, 48), "down": nn.Linear(48, 48)})
            if norm:
                block["norm"] = nn.LayerNorm(48)
            self.blocks.append(block)
        self.head = nn.Linear(48, 10)
        for part in self.blocks.modules():
            if isinstance(part, nn.Linear):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            given = block["norm"](h) if "norm" in block else h
            h = h + block["down"](F.leaky_relu(block["up"](given), 0.1))
        return self.head(h)


def residual_mlp(*, norm: bool = True) -> Training:
    """Twenty-six residual blocks whose sum grows, with or without a norm before each."""
    torch.manual_seed(22)
    model = ResMlp(26, norm)
    return Training(
        model,
        digit_batches(32),
        cross_entropy,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=150,
    )


class Denoiser(nn.Module):
    """Convolutions that map a noisy digit to the clean one."""

    def __init__(self, forgot_kernel: bool) -> None:
        super().__init__()
        widths = [1, 16, 16, 24, 24, 24, 24, 24, 24, 16, 16, 1]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)
        )
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            fan = conv.in_channels if forgot_kernel else conv.in_channels * 9
            nn.init.normal_(conv.weight, std=math.sqrt(2 / fan))
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        *inner, last = self.convs
        for conv in inner:
            x = F.leaky_relu(conv(x), 0.2)
        return last(x)


def _denoise(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    noisy = x + 0.3 * torch.randn(x.shape, generator=generator(int(1000 * x[0].sum()), 6))
    return F.l1_loss(model(noisy), x)


def denoiser(*, forgot_kernel: bool = False) -> Training:
    """Hand-made He weights, their fan with or without the kernel's area."""
    torch.manual_seed(23)
    model = Denoiser(forgot_kernel)
    return Training(
        model,
        digit_batches(16, image=True),
        _denoise,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=150,
    )


class MessagePassing(nn.Module):
    """Messages of all neighbours, added or averaged, then pooled over the graph."""

    def __init__(self, rounds: int, mean: bool) -> None:
        super().__init__()
        self.mean = mean
        self.encode = nn.Linear(4, 24)
        self.messages = nn.ModuleList(nn.Linear(24, 24) for _ in range(rounds))
        self.selves = nn.ModuleList(nn.Linear(24, 24) for _ in range(rounds))
        self.decode = nn.Linear(24, 1)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        h = self.encode(nodes)
        for message, own in zip(self.messages, self.selves, strict=True):
            summed = torch.einsum("bij,bjd->bid", edges, message(h))
            if self.mean:
                summed = summed / edges.sum(-1, keepdim=True).clamp(min=1)
            h = h + F.leaky_relu(own(h) + summed)
        return self.decode(h.sum(1) / h.shape[1] ** 0.5).squeeze(-1)


def _graphs(step: int) -> tuple[Tensor, Tensor, Tensor]:
    g = generator(step, 8)
    y = torch.randn(16, generator=g)
    nodes = torch.randn(16, 24, 4, generator=g)
    nodes[:, :, 0] += y[:, None]
    edges = (torch.rand(16, 24, 24, generator=g) < 0.7).float()
    edges = torch.triu(edges, 1)
    return nodes, edges + edges.transpose(1, 2), y


def _graph_loss(model: nn.Module, nodes: Tensor, edges: Tensor, y: Tensor) -> Tensor:
    predicted = model(nodes, edges)
    return F.smooth_l1_loss(predicted, y)


def message_passing(*, mean: bool = True) -> Training:
    """A property of dense graphs by seven rounds of messages."""
    torch.manual_seed(24)
    model = MessagePassing(7, mean)
    return Training(
        model, _graphs, _graph_loss, torch.optim.Adam(model.parameters(), lr=2e-3), steps=150
    )


class Unnormed(nn.Module):
    """Residual layers that mix positions, then features; with norms or without."""

    def __init__(self, depth: int, norm: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 32)
        self.places = nn.Parameter(0.5 * torch.randn(12, 32))
        self.mixes = nn.ModuleList(nn.Linear(12, 12) for _ in range(depth))
        self.forwards = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(depth)
        )
        self.norms = nn.ModuleList(
            nn.LayerNorm(32) if norm else nn.Identity() for _ in range(2 * depth)
        )
        self.read = nn.Linear(32, 10)
        for part in self.forwards.modules():
            if isinstance(part, nn.Linear):
                nn.init.kaiming_normal_(part.weight, mode="fan_out")

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.places
        for i, (mix, ff) in enumerate(zip(self.mixes, self.forwards, strict=True)):
            x = x + mix(self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + ff(self.norms[2 * i + 1](x))
        return self.read(x)


def _reversal(step: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(10, (24, 12), generator=generator(step, 14))
    return tokens, tokens.flip(1)


def _by_position(model: nn.Module, tokens: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens).flatten(0, 1), y.flatten())


def unnormed_stack(*, norm: bool = True) -> Training:
    """Sequences to be reversed by sixteen layers that mix positions."""
    torch.manual_seed(25)
    model = Unnormed(16, norm)
    return Training(
        model, _reversal, _by_position, torch.optim.Adam(model.parameters(), lr=2e-3), steps=150
    )


EXPLODING = Fault(
    "ind8-exploding",
    must=[["exploding-gradient"]],
    symptom=grows(2.5),
    variants=[
        Variant("wide-normal-mlp", wide_normal_mlp, broken=partial(wide_normal_mlp, std=1.0)),
        Variant("residual-mlp", residual_mlp, broken=partial(residual_mlp, norm=False)),
        Variant("denoiser", denoiser, broken=partial(denoiser, forgot_kernel=True)),
        Variant("message-passing", message_passing, broken=partial(message_passing, mean=False)),
        Variant("unnormed-stack", unnormed_stack, broken=partial(unnormed_stack, norm=False)),
    ],
)

# Branches that are starved, and branches that cancel.


class ScaledBlock(nn.Module):
    """A pre-norm transformer block with scaled residual branches."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.register_buffer("gamma", torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.gamma * self.attention(h, h, h, need_weights=False)[0]
        return x + self.gamma * self.down(F.gelu(self.up(self.norm2(x))))


class PatchTransformer(nn.Module):
    """Four-pixel patches of a digit, a few blocks, the mean token classified."""

    def __init__(self, depth: int, scale: float) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 2, stride=2)
        self.place = nn.Parameter(0.3 * torch.randn(1, 16, 32))
        self.blocks = nn.Sequential(*(ScaledBlock(32, scale) for _ in range(depth)))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.blocks(tokens).mean(1))


def layer_scale(*, scale: float = 0.5) -> Training:
    """Layer scale kept in a buffer, so that it stays at what it began with."""
    torch.manual_seed(31)
    model = PatchTransformer(3, scale)
    return Training(
        model,
        digit_batches(32, image=True),
        cross_entropy,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        steps=200,
    )


class Highway(nn.Module):
    """Highway layers: y = t · h(x) + (1 − t) · x."""

    def __init__(self, depth: int, bias: float) -> None:
        super().__init__()
        self.enter = nn.Linear(12, 40)
        self.transforms = nn.ModuleList(nn.Linear(40, 40) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(40, 40) for _ in range(depth))
        self.leave = nn.Linear(40, 1)
        for gate in self.gates:
            assert isinstance(gate, nn.Linear)
            nn.init.constant_(gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for transform, gate in zip(self.transforms, self.gates, strict=True):
            t = torch.sigmoid(gate(x))
            x = t * F.elu(transform(x)) + (1 - t) * x
        return self.leave(x)


def highway(*, bias: float = -1.0) -> Training:
    """Five highway layers; their gates begin a little or entirely closed."""
    torch.manual_seed(32)
    model = Highway(5, bias)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(64, 12, generator=generator(step, 12))
        return x, (x[:, :1] * x[:, 1:2] + x[:, 2:3].abs() + 0.3 * x[:, 3:4]).tanh()

    return Training(
        model,
        batch,
        _mse,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        steps=300,
    )


class TwoScales(nn.Module):
    """A narrow and a wide convolution read the same features; their sum goes on."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.stem = nn.Conv1d(1, 16, 3, padding=1)
        self.narrow = nn.Conv1d(16, 16, 1)
        self.wide = nn.Conv1d(16, 16, 9, padding=4)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16 * 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.stem(x))
        merged = self.narrow(h) + self.weight * self.wide(h)
        return self.head(F.adaptive_max_pool1d(F.gelu(self.norm(merged)), 2).flatten(1))


def two_scales(*, weight: float = 1.0) -> Training:
    """Kinds of waves; the wide branch is weighted by a constant."""
    torch.manual_seed(33)
    model = TwoScales(weight)
    return Training(
        model,
        wave_batches(32, 40, noise=0.5),
        cross_entropy,
        torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
        steps=200,
    )


class Gated(nn.Module):
    """Words that may look at a memory of pairs through a gate, as adapters do."""

    def __init__(self, gate: float) -> None:
        super().__init__()
        self.words = nn.Embedding(12, 32)
        self.memory = nn.Linear(24, 32)
        self.before = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.look = nn.MultiheadAttention(32, 2, batch_first=True)
        self.gate = torch.full((1,), gate)  # a plain tensor: nothing that learns
        self.head = nn.Linear(32, 12)

    def forward(self, question: Tensor, pairs: Tensor) -> Tensor:
        x = self.words(question)
        x = x + self.before(x)
        memory = self.memory(pairs)
        seen, _ = self.look(x, memory, memory, need_weights=False)
        x = x + torch.tanh(self.gate) * seen
        return self.head(x)


def _pairs(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Key and value pairs; half of the questions can be answered without them."""
    g = generator(step, 9)
    keys = torch.stack([torch.randperm(12, generator=g)[:4] for _ in range(32)])
    values = torch.randint(12, (32, 4), generator=g)
    pairs = torch.cat([F.one_hot(keys, 12), F.one_hot(values, 12)], -1).float()
    known = torch.rand(32, 4, generator=g) < 0.5
    return keys, pairs, torch.where(known, keys, values)


def _answers(model: nn.Module, question: Tensor, pairs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(question, pairs).flatten(0, 1), y.flatten())


def gated_memory(*, gate: float = 1.0) -> Training:
    """Cross-attention behind a gate that nobody opens."""
    torch.manual_seed(34)
    model = Gated(gate)
    return Training(
        model,
        _pairs,
        _answers,
        torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9),
        steps=300,
    )


class SharedTrunk(nn.Module):
    """A convolutional trunk, a head for the class and one that says where the ink is."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ELU(), nn.Conv2d(16, 16, 3, stride=2), nn.ELU()
        )
        self.kind = nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.ELU(), nn.Linear(32, 10))
        self.where = nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.ELU(), nn.Linear(32, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        where = self.where(h)
        return self.kind(h), where


def _both_tasks(weight: float, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    ink = (x.squeeze(1) + 1) / 2
    at = torch.linspace(-1, 1, 8)
    mass = ink.sum((1, 2))
    centre = torch.stack([(ink.sum(1) * at).sum(1), (ink.sum(2) * at).sum(1)], 1) / mass[:, None]
    kind, where = model(x)
    return F.cross_entropy(kind, y) + weight * F.mse_loss(where, 5 * centre)


def two_tasks(*, weight: float = 1.0) -> Training:
    """Two heads on one trunk; the second's loss is weighted by a constant."""
    torch.manual_seed(35)
    model = SharedTrunk()
    return Training(
        model,
        digit_batches(32, image=True),
        partial(_both_tasks, weight),
        torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
        steps=200,
    )


class Experts(nn.Module):
    """A dense mixture of experts."""

    def __init__(self, favour: float) -> None:
        super().__init__()
        self.router = nn.Linear(10, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 1)) for _ in range(4)
        )
        with torch.no_grad():
            self.router.bias.copy_(torch.tensor([favour, 0.0, 0.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        weights = F.softmax(self.router(x), -1)
        answers = torch.cat([expert(x) for expert in self.experts], 1)
        return (weights * answers).sum(1, keepdim=True)


def mixture(*, favour: float = 0.0) -> Training:
    """A function that differs by quadrant; the router may begin in love with one expert."""
    torch.manual_seed(39)
    model = Experts(favour)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(64, 10, generator=generator(step, 15))
        sign = torch.where(x[:, :1] > 0, 1.0, -1.0)
        return x, torch.where(x[:, 1:2] > 0, sign * x[:, 2:3], x[:, 3:4] + sign)

    return Training(
        model, batch, _mse, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), steps=300
    )


STARVED = Fault(
    "ind8-residual",
    must=[["starved-pathway"]],
    symptom=branch_starved(1e-4),
    variants=[
        # SGD: what is behind the scale or the gate has next to no gradient and stays.
        Variant(
            "layer-scale",
            layer_scale,
            broken=partial(layer_scale, scale=1e-6),
            # and the attention stays as uniform as it began, where the twin's learns to choose
            may=["no-update", "diffuse-softmax"],
        ),
        # The closed gate starves the transform, and is itself a sigmoid at its end.
        Variant(
            "highway",
            highway,
            broken=partial(highway, bias=-12.0),
            must=[["starved-pathway", "saturated-activation"]],
            may=["no-update"],
        ),
        Variant(
            "two-scales", two_scales, broken=partial(two_scales, weight=1e-6), may=["no-update"]
        ),
        Variant(
            "gated-memory",
            gated_memory,
            broken=partial(gated_memory, gate=1e-6),
            may=["no-update", "diffuse-softmax"],
        ),
        # A router that has collapsed: its softmax is peaked, the other experts starve.
        Variant(
            "mixture",
            mixture,
            broken=partial(mixture, favour=14.0),
            must=[["starved-pathway", "peaked-softmax"]],
            may=["no-update"],
        ),
        Variant("two-tasks", two_tasks, broken=partial(two_tasks, weight=1e-6), may=["no-update"]),
    ],
)


class Adversaries(nn.Module):
    """A generator and a critic of points on a ring."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 48), nn.ELU(), nn.Linear(48, 2))
        self.critic = nn.Sequential(
            nn.Linear(2, 48), nn.ELU(), nn.Linear(48, 48), nn.ELU(), nn.Linear(48, 1)
        )
        self.as_real, self.as_fake = nn.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss()


def _ring(step: int) -> tuple[Tensor, Tensor]:
    g = generator(step, 10)
    angle = 6.2832 * torch.rand(64, generator=g)
    return torch.stack([angle.cos(), angle.sin()], 1) + 2.0, torch.randn(64, 4, generator=g)


def _all_at_once(model: nn.Module, real: Tensor, noise: Tensor) -> Tensor:
    """Both players' losses in one sum, and nothing detached."""
    ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)
    of_real = model.critic(real)  # type: ignore[operator]
    of_fake = model.critic(model.generator(noise))  # type: ignore[operator]
    critic_loss = F.binary_cross_entropy_with_logits(of_real, ones)
    critic_loss = critic_loss + model.as_fake(of_fake, zeros)  # type: ignore[operator]
    return critic_loss + model.as_real(of_fake, ones)  # type: ignore[operator]


def summed_gan() -> Training:
    """A GAN whose two losses are added and minimised together."""
    torch.manual_seed(36)
    model = Adversaries()
    return Training(
        model, _ring, _all_at_once, torch.optim.Adam(model.parameters(), lr=1e-3), steps=250
    )


class Ranker(nn.Module):
    """Scores documents; the difference of two scores goes into a symmetric loss."""

    def __init__(self, swapped: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
        self.score = nn.Linear(48, 1)
        self.forth, self.back = nn.SoftMarginLoss(), nn.SoftMarginLoss()
        self.swapped = swapped

    def forward(self, a: Tensor, b: Tensor, better: Tensor) -> Tensor:
        gap = self.score(self.body(a)) - self.score(self.body(b))
        return self.forth(gap, better) + self.back(gap, better if self.swapped else -better)


def _documents(step: int) -> tuple[Tensor, Tensor, Tensor]:
    g = generator(step, 11)
    a, b = torch.randn(2, 64, 20, generator=g)
    worth = [x[:, :1] + x[:, 1:2] * x[:, 2:3] for x in (a, b)]
    return a, b, (worth[0] - worth[1]).sign()


def _call(model: nn.Module, *given: Tensor) -> Tensor:
    loss: Tensor = model(*given)
    return loss


def symmetric_ranking(*, swapped: bool = True) -> Training:
    """Which of two documents is better, asked in both directions."""
    torch.manual_seed(37)
    model = Ranker(swapped)
    return Training(
        model,
        _documents,
        _call,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        steps=300,
    )


class Surprise(nn.Module):
    """What a predictor of the features leaves over is what gets classified."""

    def __init__(self, identity: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 48))
        self.predictor = nn.Linear(48, 48)
        self.direct = nn.Identity()
        self.classifier = nn.Linear(48, 10)
        with torch.no_grad():
            self.predictor.bias.zero_()
            self.predictor.weight.mul_(0.01 if identity else 0.5)
            if identity:
                self.predictor.weight.add_(torch.eye(48))

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        return self.classifier(self.direct(h) - self.predictor(h))


def surprise(*, identity: bool = False) -> Training:
    """Features less their prediction, by a predictor that learns slowly and begins as x → x."""
    torch.manual_seed(38)
    model = Surprise(identity)
    slow = list(model.predictor.parameters())
    held = {id(p) for p in slow}
    quick = [p for p in model.parameters() if id(p) not in held]
    groups: list[dict[str, Any]] = [{"params": quick}, {"params": slow, "lr": 1e-4}]
    return Training(
        model,
        digit_batches(),
        cross_entropy,
        torch.optim.SGD(groups, lr=0.05, momentum=0.9),
        steps=150,
    )


CANCELLING = Fault(
    "ind8-cancelling",
    must=[["cancelling-fork"]],
    symptom=edges_cancel(0.2),
    variants=[
        Variant("summed-gan", broken=summed_gan),
        Variant(
            "symmetric-ranking", symmetric_ranking, broken=partial(symmetric_ranking, swapped=False)
        ),
        # What is left of the gradient before the fork is a thousandth of that behind it.
        Variant(
            "surprise",
            surprise,
            broken=partial(surprise, identity=True),
            may=["vanishing-gradient"],
        ),
    ],
)

FAULTS = [VANISHING, RECURRENT, EXPLODING, STARVED, CANCELLING]
