"""Units that no longer answer: rectifiers that are always off, squashers at their flat ends."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_sixth_units import (
    clouds,
    dice,
    digits,
    discs,
    graph,
    gratings,
    sentences,
    spirals,
    table,
    waves,
)
from analyses.faults.symptoms import dead_units, saturated
from analyses.faults.training import Batch, Training


class Heatmap(nn.Module):
    """A tower of convolutions and a head that tells for each pixel whether the disc is there."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.tower = nn.ModuleList(
            nn.Conv2d(1 if i == 0 else width, width, 3, padding=1) for i in range(3)
        )
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.tower:
            x = F.relu(conv(x))
        return self.head(x)


def detector(everywhere: bool = False) -> Training:
    """The prior of rare objects is a bias of −4.6; for the head it is meant."""
    torch.manual_seed(1)
    model = Heatmap()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and (everywhere or module is model.head):
            assert module.bias is not None
            nn.init.constant_(module.bias, -4.6)

    def loss(net: nn.Module, picture: Tensor, mask: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(net(picture), mask)

    return Training(
        model,
        discs(8, 16),
        loss,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=200,
    )


class SparseCoder(nn.Module):
    """An overcomplete dictionary with a penalty on its codes."""

    def __init__(self, inputs: int = 64, codes: int = 256) -> None:
        super().__init__()
        self.encode = nn.Linear(inputs, codes)
        self.decode = nn.Linear(codes, inputs)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.act(self.encode(x))
        return self.decode(codes), codes


def sparse_coder(penalty: float = 2e-4) -> Training:
    """Digits, coded sparsely: `penalty` weighs the sum of a sample's codes."""
    torch.manual_seed(2)
    model = SparseCoder()

    def loss(net: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        again, codes = net(x)
        return F.mse_loss(again, x) + penalty * codes.sum(-1).mean()

    return Training(
        model,
        digits(64, flat=True),
        loss,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=400,
        every=10,
    )


def plain_cnn(lr: float = 0.02) -> Training:
    """Convolutions without normalisation, SGD with momentum."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y)

    return Training(
        model,
        digits(32),
        loss,
        torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        steps=200,
    )


class Forecaster(nn.Module):
    """Dilated convolutions over the past, a small head for what comes next."""

    def __init__(self, rectified: bool, width: int = 24) -> None:
        super().__init__()
        self.past = nn.ModuleList(
            nn.Conv1d(1 if i == 0 else width, width, 3, dilation=2**i) for i in range(3)
        )
        self.head = nn.Linear(width, 1)
        nn.init.constant_(self.head.bias, 0.5)
        self.rectified = rectified

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        for conv in self.past:
            x = F.gelu(conv(x))
        y = self.head(x[:, :, -1])
        return F.relu(y) if self.rectified else y


def frost(rectified: bool = False) -> Training:
    """Winter temperatures, all below zero, forecast; a rectified output can't say them."""
    torch.manual_seed(4)
    model = Forecaster(rectified)
    source = waves(32, 24)

    def batch(step: int) -> Batch:
        past, coming = source(step)
        return past, coming - 1.6

    def loss(net: nn.Module, past: Tensor, coming: Tensor) -> Tensor:
        return F.mse_loss(net(past), coming)

    return Training(
        model, batch, loss, torch.optim.Adam(model.parameters(), lr=2e-3), steps=250, every=10
    )


class Highway(nn.Module):
    """Layers that mix what they compute with what they were given."""

    def __init__(self, width: int = 48, depth: int = 4, *, shared_bias: bool = False) -> None:
        super().__init__()
        self.into = nn.Linear(2, width)
        self.change = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.gate = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, 2)
        for name, bias in self.named_parameters():
            if name.startswith("gate") and name.endswith("bias"):
                nn.init.constant_(bias, -1.0)
            if shared_bias and name.startswith(("gate", "change")) and name.endswith("bias"):
                nn.init.constant_(bias, -4.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for change, gate in zip(self.change, self.gate, strict=True):
            share = torch.sigmoid(gate(x))
            x = share * torch.relu(change(x)) + (1 - share) * x
        return self.out(x)


def highway(shared_bias: bool = False) -> Training:
    """Two spirals; the bias that keeps gates shut was given to the layers they gate, too."""
    torch.manual_seed(5)
    model = Highway(shared_bias=shared_bias)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y)

    return Training(
        model,
        spirals(128),
        loss,
        torch.optim.RMSprop(model.parameters(), lr=1e-3),
        steps=300,
    )


class GraphNet(nn.Module):
    """Two rounds of averaging over neighbours."""

    def __init__(self, inputs: int, width: int, kinds: int, averaging: Tensor) -> None:
        super().__init__()
        self.register_buffer("averaging", averaging)
        self.first = nn.Linear(inputs, width)
        self.second = nn.Linear(width, kinds)

    def forward(self, x: Tensor) -> Tensor:
        x = self.averaging @ self.first(x)
        x = F.relu(x)
        return self.averaging @ self.second(x)


def citations(one_sided: bool = False) -> Training:
    """Kinds of nodes from counts of words; weights were drawn as −rand() × scale."""
    torch.manual_seed(6)
    averaging, counts, kinds = graph(150)
    model = GraphNet(30, 32, 3, averaging)
    with torch.no_grad():
        drawn = torch.rand(32, 30)
        model.first.weight.copy_(-drawn * 0.2 if one_sided else (drawn * 2 - 1) * 0.2)
        nn.init.zeros_(model.first.bias)
    known = torch.arange(150) % 3 != 0

    def batch(step: int) -> Batch:
        return counts, kinds

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x)[known], y[known])

    return Training(
        model,
        batch,
        loss,
        torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=0.0),
        steps=150,
    )


class Adder(nn.Module):
    """A small transformer of PyTorch's own layers that reads two numbers and a sign."""

    def __init__(self, numbers: int, width: int = 32) -> None:
        super().__init__()
        self.number = nn.Embedding(numbers + 1, width)
        self.place = nn.Parameter(torch.randn(3, width) * 0.5)
        layer = nn.TransformerEncoderLayer(
            width, 4, 128, dropout=0.0, activation="relu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, numbers)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.number(tokens) + self.place)[:, -1])


def adder(wrong_way: bool = False, numbers: int = 11) -> Training:
    """Sums modulo 11; what enters the rectifiers is kept near a level by a penalty.

    The level is 0.2. With its sign lost and its decimals, too, it is far below zero.
    """
    torch.manual_seed(7)
    model = Adder(numbers)
    level = -8.0 if wrong_way else 0.2
    seen: list[Tensor] = []
    for layer in model.body.layers:
        layer.linear1.register_forward_hook(lambda _m, _i, out: seen.append(out))

    def batch(step: int) -> Batch:
        pair = torch.randint(numbers, (64, 2), generator=dice(20, step))
        return F.pad(pair, (0, 1), value=numbers), pair.sum(1) % numbers

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.clear()
        told = F.cross_entropy(net(x), y)
        activity = torch.stack([(h.mean((0, 1)) - level).square().mean() for h in seen])
        return told + 0.1 * activity.sum()

    return Training(model, batch, loss, torch.optim.AdamW(model.parameters(), lr=3e-3), steps=200)


DEAD = Fault(
    "ind6-units-dead",
    must=[["dead-units"]],
    symptom=dead_units(0.7),
    variants=[
        Variant(
            "detector-prior",
            healthy=detector,
            broken=partial(detector, everywhere=True),
            may=["vanishing-gradient", "no-update"],  # nothing passes the tower, either way
        ),
        Variant(
            "sparse-coder",
            healthy=sparse_coder,
            broken=partial(sparse_coder, penalty=0.05),
            may=[],
        ),
        Variant(
            "cnn-first-steps",
            healthy=plain_cnn,
            broken=partial(plain_cnn, lr=0.6),
            must=[["dead-units", "update-too-large"]],
            may=["vanishing-gradient", "no-update"],  # gradient 0 before the last layer
        ),
        Variant(
            "rectified-forecast",
            healthy=frost,
            broken=partial(frost, rectified=True),
            may=["vanishing-gradient", "no-update"],
        ),
        Variant(
            "highway-bias",
            healthy=highway,
            broken=partial(highway, shared_bias=True),
            # The gated layers' weights, whose gradient is 0; gates that stay shut for it.
            may=["no-update", "starved-pathway", "saturated-activation"],
        ),
        Variant(
            "graph-one-sided",
            healthy=citations,
            broken=partial(citations, one_sided=True),
            may=["vanishing-gradient", "no-update"],
        ),
        Variant(
            "adder-activity",
            healthy=adder,
            broken=partial(adder, wrong_way=True),
            may=[],
        ),
    ],
)


class TanhNet(nn.Module):
    """Three hidden layers of tanh, weights by hand."""

    def __init__(self, std: float | None, width: int = 128) -> None:
        super().__init__()
        sizes = [8, width, width, width, 1]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(a, b) * (std if std else a**-0.5)) for a, b in pairwise(sizes)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(b)) for b in sizes[1:])

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = zip(self.weights, self.biases, strict=True)
        for w, b in hidden:
            x = torch.tanh(x @ w + b)
        return x @ last[0] / 10 + last[1]


def tanh_regression(std: float | None = None) -> Training:
    """A smooth function of eight columns; `std` of the drawn weights, or 1/√inputs."""
    torch.manual_seed(11)
    model = TanhNet(std)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(net(x), y)

    return Training(
        model,
        table(64),
        loss,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        steps=400,
        every=10,
    )


class Keeper(nn.Module):
    """A gated cell by hand, whose one gate tells how much of the state is kept."""

    def __init__(self, keep: float, width: int = 40) -> None:
        super().__init__()
        self.from_input = nn.Linear(1, 2 * width)
        self.from_state = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, 1)
        self.width = width
        with torch.no_grad():
            self.from_input.bias[:width] = keep

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), self.width)
        said = []
        for now in x.unbind(1):
            gate_in, new_in = self.from_input(now).chunk(2, -1)
            gate_state, new_state = self.from_state(state).chunk(2, -1)
            keep = torch.sigmoid(gate_in + gate_state)
            state = keep * state + (1 - keep) * F.softsign(new_in + new_state)
            said.append(self.out(state))
        return torch.stack(said, 1)


def keeper(keep: float = 1.0) -> Training:
    """Waves, the next value told at every step.

    `keep` is the first bias of the gate, meant to help long memory.
    """
    torch.manual_seed(12)
    model = Keeper(keep)

    def loss(net: nn.Module, past: Tensor, coming: Tensor) -> Tensor:
        return F.mse_loss(net(past), torch.cat([past[:, 1:], coming[:, None]], 1))

    return Training(
        model,
        waves(32, 12),
        loss,
        torch.optim.Adam(model.parameters(), lr=5e-3),
        steps=250,
        every=10,
    )


class CellReader(nn.Module):
    """An LSTM cell that reads word by word and predicts the next one."""

    def __init__(self, std: float | None) -> None:
        super().__init__()
        self.words = nn.Embedding(24, 32)
        self.cell = nn.LSTMCell(32, 64)
        self.out = nn.Linear(64, 24)
        if std is not None:
            for p in self.cell.parameters():
                nn.init.normal_(p, std=std)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        h = c = x.new_zeros(len(x), 64)
        said = []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            said.append(self.out(h))
        return torch.stack(said, 1)


def cell_reader(std: float | None = None) -> Training:
    """Words of a made-up language; all of the cell's numbers drawn with `std`."""
    torch.manual_seed(13)
    model = CellReader(std)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x).flatten(0, 1), y.flatten())

    return Training(
        model,
        sentences(16, 16),
        loss,
        torch.optim.Adam(model.parameters(), lr=3e-3),
        steps=200,
    )


class Painter(nn.Module):
    """Encoder and decoder of convolutions whose output is a sigmoid's."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, width, 4, stride=2, padding=1)
        self.code = nn.Conv2d(width, width, 4, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)
        self.last = nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        code = F.gelu(self.code(F.gelu(self.down(x))))
        return {"code": code, "picture": torch.sigmoid(self.last(F.gelu(self.up(code))))}


def painter(top: float = 1.0) -> Training:
    """Stripes painted again; with `top` 255 the target is bytes, which no sigmoid reaches."""
    torch.manual_seed(14)
    model = Painter()

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(net(x)["picture"], y)

    return Training(
        model,
        gratings(16, 16, top=top),
        loss,
        torch.optim.Adam(model.parameters(), lr=3e-3),
        steps=200,
    )


class SetNet(nn.Module):
    """Every point by itself, pooled, then the whole."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Linear(2, 64), nn.GELU(), nn.Linear(64, 64))
        self.whole = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.out = nn.Linear(64, 3)
        self.pool = pool

    def forward(self, points: Tensor) -> Tensor:
        each = self.point(points)
        return self.out(
            self.whole(each.sum(1) / each.shape[1] ** 0.5 if self.pool == "root" else each.sum(1))
        )


def point_sets(pool: str = "root") -> Training:
    """What was a set of 48 points drawn from? Pooled by a sum, over √48 or not."""
    torch.manual_seed(15)
    model = SetNet(pool)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y)

    return Training(
        model,
        clouds(32, 48),
        loss,
        torch.optim.Adam(model.parameters(), lr=3e-3),
        steps=300,
        every=10,
    )


class Hasher(nn.Module):
    """Pictures to short codes of nearly ±1, squashed with a slope."""

    def __init__(self, slope: float, bits: int = 16) -> None:
        super().__init__()
        self.see = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.LeakyReLU(0.1),
            nn.AvgPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.LeakyReLU(0.1),
            nn.Flatten(),
        )
        self.code = nn.Linear(512, bits)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.slope * self.code(self.see(x)))


def hasher(slope: float = 1.0) -> Training:
    """Codes of digits that agree where the digits do; the slope is raised at once, not slowly."""
    torch.manual_seed(16)
    model = Hasher(slope)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        codes = net(x)
        agree = codes @ codes.T / codes.shape[1]
        same = (y[:, None] == y[None, :]).float()
        wanted = same * 2 - 1
        weight = torch.where(same.bool(), 1.0, 0.15)
        return (weight * (agree - wanted.clamp(min=-0.1)) ** 2).mean()

    return Training(
        model,
        digits(32),
        loss,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        steps=200,
    )


def imitation(gain: float = 0.01) -> Training:
    """A policy that imitates actions in (−1, 1); `gain` of its last layer, 0.01 or 100."""
    torch.manual_seed(17)
    last = nn.Linear(64, 1)
    nn.init.orthogonal_(last.weight, gain=gain)
    model = nn.Sequential(
        nn.Linear(8, 64),
        nn.LayerNorm(64),
        nn.SiLU(),
        nn.Linear(64, 64),
        nn.SiLU(),
        last,
        nn.Tanh(),
    )
    source = table(64)

    def batch(step: int) -> Batch:
        seen, action = source(step)
        return seen, 0.8 * torch.sin(action)

    def loss(net: nn.Module, seen: Tensor, action: Tensor) -> Tensor:
        return F.smooth_l1_loss(net(seen), action)

    return Training(
        model, batch, loss, torch.optim.Adam(model.parameters(), lr=1e-3), steps=400, every=10
    )


SATURATED = Fault(
    "ind6-units-saturated",
    must=[["saturated-activation"]],
    symptom=saturated(0.7),
    variants=[
        Variant(
            "tanh-unit-weights",
            healthy=tanh_regression,
            broken=partial(tanh_regression, std=1.0),
            may=[],
        ),
        Variant(
            "keeping-gate",
            healthy=keeper,
            broken=partial(keeper, keep=10.0),
            may=["vanishing-gradient", "starved-pathway"],  # what the state passes on is × 4e-5
        ),
        Variant(
            "cell-unit-weights",
            healthy=cell_reader,
            broken=partial(cell_reader, std=2.0),
            may=["exploding-gradient"],  # backwards through time, by the same large weights
        ),
        Variant(
            "painter-bytes",
            healthy=painter,
            broken=partial(painter, top=255.0),
            may=[],
        ),
        Variant(
            "set-sum",
            healthy=point_sets,
            broken=partial(point_sets, pool="sum"),
            may=["vanishing-gradient"],  # what is before the flat layer
        ),
        Variant(
            "hash-slope",
            healthy=hasher,
            broken=partial(hasher, slope=100.0),
            may=[],
        ),
        Variant(
            "policy-gain",
            healthy=imitation,
            broken=partial(imitation, gain=100.0),
            may=[],
        ),
    ],
)

FAULTS = [DEAD, SATURATED]
