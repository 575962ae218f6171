"""Deep and recurrent networks whose gradient fades, blows up or ceases to be a number."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_seventh_depth import (
    dice,
    digit_batch,
    normal_weights,
    recall_batch,
    regression_batch,
    shapes_batch,
    wave_batch,
)
from analyses.faults.observe import Observed
from analyses.faults.symptoms import decays, grows, not_finite
from analyses.faults.training import Training


def climbs(decades: float, like: str) -> Symptom:
    """At the start the gradient is that much larger at the first of these modules or times."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, float | bool]:
        found = -run.decades(like)[0]
        theirs = -twin.decades(like)[0] if twin else 0.0
        return {"is": found >= max(decades, theirs + 2), "decades": found, "twin": theirs}

    return symptom


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def squared(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


# --- the gradient fades on its way down ---


def mlp(act: Callable[[], nn.Module] = nn.ReLU, depth: int = 9) -> Training:
    """A plain classifier of digits with one activation everywhere."""
    torch.manual_seed(11)
    layers: list[nn.Module] = [nn.Linear(64, 48), act()]
    for _ in range(depth):
        layers += [nn.Linear(48, 48), act()]
    model = nn.Sequential(*layers, nn.Linear(48, 10))
    if act is nn.ReLU:
        for m in model:
            if isinstance(m, nn.Linear):
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
                nn.init.zeros_(m.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return Training(model, digit_batch(), cross_entropy, optimizer, steps=200)


class LastState(nn.Module):
    """Reads a sequence, answers from the last state."""

    def __init__(self, rnn: nn.RNNBase, outputs: int) -> None:
        super().__init__()
        self.rnn = rnn
        self.out = nn.Linear(rnn.hidden_size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        return self.out(states[:, -1])


def elman(scale: float = 1.0) -> Training:
    """Remembering the first token with a tanh network whose recurrent matrix is orthogonal."""
    torch.manual_seed(12)
    model = LastState(nn.RNN(6, 40, batch_first=True), 4)
    nn.init.orthogonal_(model.rnn.weight_hh_l0)  # type: ignore[arg-type]
    with torch.no_grad():
        model.rnn.weight_hh_l0.mul_(scale)  # type: ignore[operator]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, recall_batch(30), cross_entropy, optimizer, steps=150)


class Stacked(nn.Module):
    """Convolutions one after the other, pooled at the end."""

    def __init__(self, depth: int, width: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.head = nn.Linear(width, 4)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        for conv in self.convs:
            x = self.act(conv(x))
        return self.head(x.amax((2, 3)))


def vgg(std: float | None = None) -> Training:
    """A stack of ReLU convolutions; a std means normal weights of that size in each."""
    torch.manual_seed(13)
    model = Stacked(8, 12, F.relu)
    if std is not None:
        normal_weights(model, std)
    else:
        for m in model.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
                nn.init.zeros_(m.bias)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, shapes_batch(), cross_entropy, optimizer, steps=120)


class Coder(nn.Module):
    """An autoencoder of digits with many tanh layers each way."""

    def __init__(self, depth: int, gain: float) -> None:
        super().__init__()
        widths = [64, *[40] * depth, 12]
        down = [nn.Linear(a, b) for a, b in pairwise(widths)]
        up = [nn.Linear(b, a) for a, b in pairwise(widths)][::-1]
        self.encoder, self.decoder = nn.ModuleList(down), nn.ModuleList(up)
        for m in [*down, *up]:
            nn.init.xavier_uniform_(m.weight, gain=gain)
            nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.encoder:
            x = torch.tanh(layer(x))
        code = x
        for layer in self.decoder[:-1]:
            x = torch.tanh(layer(x))
        return self.decoder[-1](x), code


def autoencode(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    return (model(x)[0] - x).pow(2).mean()


def deep_coder(gain: float = 1.1) -> Training:
    """Reconstructing digits through twelve tanh layers."""
    torch.manual_seed(14)
    model = Coder(5, gain)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    return Training(model, digit_batch(), autoencode, optimizer, steps=200)


def gru(bias: float = 2.0) -> Training:
    """A gated network that is to keep the first token; the bias is that of the gate that keeps."""
    torch.manual_seed(15)
    model = LastState(nn.GRU(6, 32, batch_first=True), 4)
    with torch.no_grad():
        model.rnn.bias_ih_l0[32:64] = bias  # type: ignore[operator]
        model.rnn.bias_hh_l0[32:64] = 0.0  # type: ignore[operator]
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, recall_batch(24), cross_entropy, optimizer, steps=150)


class Highway(nn.Module):
    """Layers that mix a transform of their input with the input itself by a gate."""

    def __init__(self, depth: int, width: int, bias: float) -> None:
        super().__init__()
        self.embed = nn.Linear(16, width)
        self.transforms = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for gate in self.gates:
            nn.init.constant_(gate.bias, bias)  # type: ignore[arg-type]
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for transform, gate in zip(self.transforms, self.gates, strict=True):
            open_ = gate(x).sigmoid()
            x = open_ * transform(x).tanh() + (1 - open_) * x
        return self.out(x)


def highway(bias: float = -2.0) -> Training:
    """Regression with a highway network, whose gates should begin closed."""
    torch.manual_seed(16)
    model = Highway(14, 32, bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, regression_batch(), squared, optimizer, steps=200)


class Blocks(nn.Module):
    """Residual blocks whose skip and branch have factors."""

    def __init__(self, depth: int, width: int, skip: float, branch: float) -> None:
        super().__init__()
        self.embed = nn.Linear(64, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.skip, self.branch = skip, branch
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = self.skip * x + self.branch * block(x)
        return self.head(x)


def residual(skip: float = 1.0) -> Training:
    """Digits through residual blocks; the skip should have the factor 1."""
    torch.manual_seed(17)
    model = Blocks(12, 48, skip, 0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    return Training(model, digit_batch(), cross_entropy, optimizer, steps=150)


class Cells(nn.Module):
    """A loop over LSTM cells."""

    def __init__(self, forget: float) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(6, 32)
        self.out = nn.Linear(32, 4)
        with torch.no_grad():
            self.cell.bias_ih[32:64] = forget
            self.cell.bias_hh[32:64] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 32)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.out(h)


def lstm_cells(forget: float = 3.0) -> Training:
    """Keeping the first token with LSTM cells, whose forget gates get a bias."""
    torch.manual_seed(18)
    model = Cells(forget)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, recall_batch(16), cross_entropy, optimizer, steps=150)


class Relaxation(nn.Module):
    """One layer applied over and over; the input sets the state that it starts from."""

    def __init__(self, times: int, keep: float, push: float) -> None:
        super().__init__()
        self.enter = nn.Linear(16, 32)
        self.step = nn.Linear(32, 32)
        self.leave = nn.Linear(32, 1)
        self.times, self.keep, self.push = times, keep, push

    def forward(self, x: Tensor) -> Tensor:
        z = self.enter(x)
        for _ in range(self.times):
            z = self.keep * z + self.push * torch.tanh(self.step(z))
        return self.leave(z)


def relaxation(keep: float = 1.0, push: float = 0.1) -> Training:
    """A tied layer unrolled for 25 steps, as one does for a differential equation."""
    torch.manual_seed(19)
    model = Relaxation(25, keep, push)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return Training(model, regression_batch(), squared, optimizer, steps=150)


class Lenet(nn.Module):
    """An old-fashioned convolutional network, then dense layers, with a chosen squashing."""

    def __init__(self, squash: str) -> None:
        super().__init__()
        self.squash = getattr(torch, squash)
        self.c1, self.c2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.c3, self.c4 = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.f1, self.f2, self.f3 = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squash(self.c2(self.squash(self.c1(x))))
        x = self.squash(self.c4(self.squash(self.c3(F.avg_pool2d(x, 2)))))
        x = F.avg_pool2d(x, 2).flatten(1)
        return self.f3(self.squash(self.f2(self.squash(self.f1(x)))))


def lenet(squash: str = "tanh") -> Training:
    """Digits as images."""
    torch.manual_seed(20)
    model = Lenet(squash)
    if squash == "tanh":
        for p in model.parameters():
            if p.ndim > 1:
                nn.init.xavier_uniform_(p, gain=5 / 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    batch = digit_batch(48, image=True)
    return Training(model, batch, cross_entropy, optimizer, steps=150)


class Speaker(nn.Module):
    """Embeds waves with stacked recurrent layers; two of a kind should be near."""

    def __init__(self, depth: int, act: str) -> None:
        super().__init__()
        self.lift = nn.Linear(20, 32)
        self.hidden = nn.ModuleDict({f"h{i}": nn.Linear(32, 32) for i in range(depth)})
        self.act = act
        self.last = nn.Linear(32, 8)

    def embed(self, x: Tensor) -> Tensor:
        x = self.lift(x.squeeze(-1))
        for layer in self.hidden.values():
            x = F.silu(layer(x)) + x if self.act == "silu" else torch.sigmoid(layer(x)) - 0.5
        return self.last(x)


def pairs_apart(model: Speaker, x: Tensor, f: Tensor) -> Tensor:
    """Distances of embeddings should be those of the frequencies."""
    half = len(x) // 2
    left, right = model.embed(x[:half]), model.embed(x[half:])
    distance = (left - right).abs().sum(1)
    return F.smooth_l1_loss(distance, (f[:half] - f[half:]).abs().squeeze(1))


def siamese(act: str = "silu") -> Training:
    """A siamese regression of distances."""
    torch.manual_seed(21)
    model = Speaker(7, act)
    optimizer = torch.optim.SGD(model.parameters(), lr=5e-3, momentum=0.9)
    return Training(model, wave_batch(20, 64), pairs_apart, optimizer, steps=150)


# --- the gradient grows on its way down ---


class Plain(nn.Module):
    """Dense layers with one activation, without any normalisation."""

    def __init__(self, depth: int, width: int, gain: float) -> None:
        super().__init__()
        widths = [64, *[width] * depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(width, 10)
        for layer in self.layers:
            nn.init.orthogonal_(layer.weight, gain=gain)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.1)
        return self.head(x)


def leaky(gain: float = 1.4) -> Training:
    """Digits through fourteen leaky layers."""
    torch.manual_seed(31)
    model = Plain(14, 56, gain)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    return Training(model, digit_batch(), cross_entropy, optimizer, steps=150)


class Irnn(nn.Module):
    """A rectified recurrent network that starts from a multiple of the identity."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, 32, nonlinearity="relu", batch_first=True)
        self.out = nn.Linear(32, 1)
        nn.init.eye_(self.rnn.weight_hh_l0)  # type: ignore[arg-type]
        with torch.no_grad():
            self.rnn.weight_hh_l0.mul_(scale)  # type: ignore[operator]
            self.rnn.bias_hh_l0.zero_()  # type: ignore[operator]
            self.rnn.bias_ih_l0.zero_()  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[1][0] / x.shape[1])


def irnn(scale: float = 1.0) -> Training:
    """The frequency of a wave, read by a rectified recurrent network."""
    torch.manual_seed(32)
    model = Irnn(scale)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, wave_batch(40), squared, optimizer, steps=150)


class Tower(nn.Module):
    """Residual convolutions that are added up, with or without normalisation."""

    def __init__(self, depth: int, normalised: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1, stride=2)
        self.convs = nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1) for _ in range(depth))
        self.norms = nn.ModuleList(
            nn.GroupNorm(3, 12) if normalised else nn.Identity() for _ in range(depth)
        )
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # type: ignore[arg-type]
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + 2 * F.relu(conv(norm(x)))
        return self.head(x.mean((-1, -2)))


def tower(normalised: bool = True) -> Training:
    """Shapes, through residual blocks; without norms every block doubles what passes."""
    torch.manual_seed(33)
    model = Tower(14, normalised)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    batch = shapes_batch(size=24)
    return Training(model, batch, cross_entropy, optimizer, steps=100, clip=1.0)


class StateSpace(nn.Module):
    """A linear recurrence with a diagonal matrix, then a readout of its last state."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.enter = nn.Linear(1, 24)
        self.decay = nn.Parameter(torch.full((24,), decay) + 0.01 * torch.randn(24))
        self.read = nn.Sequential(nn.Linear(24, 24), nn.SiLU(), nn.Linear(24, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 24)
        for u in self.enter(x).unbind(1):
            h = self.decay * h + u
        return self.read(h)


def state_space(decay: float = 0.97) -> Training:
    """The frequency of a wave from a linear recurrence."""
    torch.manual_seed(34)
    model = StateSpace(decay)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, wave_batch(60), squared, optimizer, steps=120)


class Normed(nn.Module):
    """Very many dense layers with batch normalisation after each."""

    def __init__(self, depth: int, skip: bool) -> None:
        super().__init__()
        self.enter = nn.Linear(64, 40)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(40, 40), nn.BatchNorm1d(40)) for _ in range(depth)
        )
        self.head = nn.Linear(40, 10)
        self.skip = skip
        if skip:
            for layer in self.layers:
                nn.init.constant_(layer[1].weight, 0.2)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for layer in self.layers:
            x = x + layer(x.relu()) if self.skip else layer(x.relu())
        return self.head(x)


def many_norms(skip: bool = True) -> Training:
    """Digits through 70 layers with batch normalisation; without skips it makes gradients grow."""
    torch.manual_seed(35)
    model = Normed(70, skip)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return Training(model, digit_batch(48), cross_entropy, optimizer, steps=100, clip=0.5)


class Flow(nn.Module):
    """Euler steps of a learned field."""

    def __init__(self, width: int, times: int, dt: float) -> None:
        super().__init__()
        self.enter = nn.Linear(16, width)
        self.field = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ELU(), nn.Linear(2 * width, width)
        )
        self.leave = nn.Linear(width, 1)
        self.times, self.dt = times, dt

    def forward(self, x: Tensor) -> Tensor:
        z = self.enter(x)
        for _ in range(self.times):
            z = torch.add(z, self.field(z), alpha=self.dt)
        return self.leave(z)


def flow(dt: float = 0.05) -> Training:
    """A learned differential equation; a large step is one for which it isn't stable."""
    torch.manual_seed(36)
    model = Flow(20, 20, dt)
    for p in model.field.parameters():
        if p.ndim > 1:
            nn.init.xavier_normal_(p, gain=1.2)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, regression_batch(), squared, optimizer, steps=150)


class Mixer(nn.Module):
    """Mixes rows, then columns, of a digit again and again; no norm anywhere."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.rows = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))
        self.columns = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for row, column in zip(self.rows, self.columns, strict=True):
            x = F.gelu(row(x))
            x = F.gelu(column(x.mT)).mT
        return self.head(x.flatten(1))


def mixer(std: float = 0.5) -> Training:
    """Digits through a mixer without norms; the std of its weights decides how it scales."""
    torch.manual_seed(37)
    model = Mixer(7)
    for m in [*model.rows, *model.columns]:
        nn.init.normal_(m.weight, std=std)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=5e-4)
    return Training(model, digit_batch(), mixed, optimizer, steps=150)


def mixed(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return -model(x.view(-1, 8, 8)).log_softmax(-1).gather(1, y[:, None]).mean()


class Upscaler(nn.Module):
    """A convolutional autoencoder of digits, many layers at each of two sizes."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        same = [nn.Conv2d(10, 10, 3, padding=1) for _ in range(8)]
        self.down = nn.Sequential(nn.Conv2d(1, 10, 3, padding=1), nn.AvgPool2d(2))
        self.same = nn.ModuleList(same)
        self.up = nn.ConvTranspose2d(10, 1, 2, stride=2)
        for conv in same:
            nn.init.dirac_(conv.weight)
            with torch.no_grad():
                conv.weight.mul_(gain).add_(0.05 * torch.randn_like(conv.weight))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        for conv in self.same:
            x = F.hardswish(conv(x))
        return self.up(x)


def rebuild(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    return F.mse_loss(model(x), x)


def upscaler(gain: float = 1.2) -> Training:
    """Reconstruction of digits by convolutions that start near a multiple of the identity."""
    torch.manual_seed(38)
    model = Upscaler(gain)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, digit_batch(32, image=True), rebuild, optimizer, steps=120)


# --- what is no number any more ---

LATE = 64  # the step from which the data holds what the code can't take


class Counting(nn.Module):
    """Embeds tokens, runs over them, and averages the states of those that are there."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 16)
        self.rnn = nn.GRU(16, 24, batch_first=True)
        self.head = nn.Linear(24, 3)
        self.least = least

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        states, _ = self.rnn(self.embed(tokens))
        total = (states * mask[..., None]).sum(1)
        return self.head(total / mask.sum(1, keepdim=True).clamp(min=self.least))


def sentences(step: int) -> tuple[Tensor, ...]:
    """Tokens whose largest one decides the class; some sentence is empty late in the epoch."""
    g = dice(step, 21)
    tokens = torch.randint(1, 12, (32, 10), generator=g)
    lengths = torch.randint(3, 11, (32,), generator=g)
    if step >= LATE:
        lengths[step % 32] = 0
    mask = (torch.arange(10) < lengths[:, None]).float()
    y = (tokens[:, 0] - 1) // 4
    return tokens, mask, y


def masked_mean(least: int = 1) -> Training:
    """The mean over a padded sentence."""
    torch.manual_seed(51)
    model = Counting(least)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss(model: nn.Module, tokens: Tensor, mask: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens, mask), y)

    return Training(model, sentences, loss, optimizer, steps=110)


class Gem(nn.Module):
    """Convolutions without biases and a generalised mean as pooling."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=s, padding=1, bias=False)
            for a, b, s in [(1, 12, 2), (12, 12, 1), (12, 16, 2), (16, 16, 1)]
        )
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # type: ignore[arg-type]
        self.p = nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(16, 4)
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
        x = x.square()
        return self.head(x.clamp(min=self.floor).pow(self.p).mean((2, 3)).pow(1 / self.p))


def with_blank(step: int) -> tuple[Tensor, ...]:
    x, y = shapes_batch(12, 24)(step)
    if step >= LATE:
        x[:2] = 0.0
    return x, y


def gem(floor: float = 1e-4) -> Training:
    """Shapes by generalised-mean pooling; late, some images are blank."""
    torch.manual_seed(52)
    model = Gem(floor)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, with_blank, cross_entropy, optimizer, steps=110)


def annealed(step: int) -> tuple[Tensor, ...]:
    """Digits and a temperature that falls from 1 to a hundredth."""
    return *digit_batch(40)(step), torch.tensor(max(0.97**step, 0.01))


def by_hand(model: nn.Module, x: Tensor, y: Tensor, heat: Tensor) -> Tensor:
    """A softmax as in the textbook."""
    e = torch.exp(model(x) / heat)
    p = e / e.sum(1, keepdim=True)
    return F.nll_loss(torch.log(p + 1e-8), y)


def by_library(model: nn.Module, x: Tensor, y: Tensor, heat: Tensor) -> Tensor:
    return F.cross_entropy(model(x) / heat, y)


def cooled(loss: Callable[..., Tensor] = by_library) -> Training:
    """A residual classifier whose temperature is annealed."""
    torch.manual_seed(53)
    model = Blocks(5, 32, 1.0, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.5)
    return Training(model, annealed, loss, optimizer, steps=150, clip=1.0)


class NormedCell(nn.Module):
    """A recurrent cell without biases whose state is normalised by hand."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.w = nn.Linear(6, 28, bias=False)
        self.u = nn.Linear(28, 28, bias=False)
        self.head = nn.Linear(28, 4)
        nn.init.orthogonal_(self.u.weight)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 28)
        for t in range(x.shape[1]):
            a = self.w(x[:, t]) + self.u(h)
            centred = a - a.mean(-1, keepdim=True)
            h = torch.tanh(centred * torch.rsqrt(a.var(-1, keepdim=True) + self.eps))
        return self.head(h)


def partly_silent(step: int) -> tuple[Tensor, ...]:
    x, y = recall_batch(8)(step)
    if step >= LATE:
        x[-1] = 0.0
    return x, y


def normed_cell(eps: float = 2.0) -> Training:
    """Recall with a normalised cell; late, some sequence is all padding."""
    torch.manual_seed(54)
    model = NormedCell(eps)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, partly_silent, cross_entropy, optimizer, steps=110)


class Compass(nn.Module):
    """Residual layers to a direction on the sphere."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(16, 32)
        self.body = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 32))
            for _ in range(6)
        )
        self.leave = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.body:
            x = x + block(x)
        return self.leave(x)


def angles(step: int) -> tuple[Tensor, ...]:
    """Two views and the angle that their directions should have; late, some views are the same."""
    g = dice(step, 25)
    a = torch.randn(40, 16, generator=g)
    b = a + (0.2 + torch.rand(40, 1, generator=g)) * torch.randn(40, 16, generator=g)
    if step >= LATE:
        b[:8] = a[:8]
    return a, b, (a - b).norm(dim=1) / 4


def angle_loss(limit: float, model: nn.Module, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    c = F.cosine_similarity(model(a), model(b))
    return (torch.acos(c.clamp(-limit, limit)) - y).abs().mean()


def compass(limit: float = 0.9999) -> Training:
    """Learning angles by the arc cosine."""
    torch.manual_seed(55)
    model = Compass()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(model, angles, partial(angle_loss, limit), optimizer, steps=110)


def odd_or_even(step: int) -> tuple[Tensor, ...]:
    x, y = digit_batch(64)(step)
    return x, (y == 0).float()


def entropy_by_hand(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(model(x).squeeze(1))
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


def entropy_by_logits(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(x).squeeze(1), y)


def zero_or_not(loss: Callable[..., Tensor] = entropy_by_logits) -> Training:
    """Is it a zero? Soon the network is very sure."""
    torch.manual_seed(56)
    layers: list[nn.Module] = [nn.Linear(64, 40), nn.ELU()]
    for _ in range(5):
        layers += [nn.Linear(40, 40), nn.ELU()]
    model = nn.Sequential(*layers, nn.Linear(40, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, odd_or_even, loss, optimizer, steps=60, every=2)


class Signature(nn.Module):
    """An LSTM that embeds a curve."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 24, num_layers=2, batch_first=True)
        self.out = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0].mean(1))


def curves(step: int) -> tuple[Tensor, ...]:
    x, f = wave_batch(16, 48)(step)
    a, b = x[:24], x[24:].clone()
    gap = 3 * (f[:24] - f[24:]).abs().squeeze(1)
    if step >= LATE:  # a curve is drawn together with itself
        b[3], gap[3] = a[3], 0.0
    return a, b, gap


def distance_loss(eps: float, model: nn.Module, a: Tensor, b: Tensor, gap: Tensor) -> Tensor:
    squares = ((model(a) - model(b)) ** 2).sum(1)
    return F.mse_loss(torch.sqrt(squares + eps), gap)


def signature(eps: float = 1e-6) -> Training:
    """Euclidean distances between curves."""
    torch.manual_seed(57)
    model = Signature()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, curves, partial(distance_loss, eps), optimizer, steps=110)


class Policy(nn.Module):
    """A recurrent policy: mean and log of the deviation before the tanh, for every step."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.GRU(3, 20, batch_first=True)
        self.mean = nn.Linear(20, 2)
        self.spread = nn.Linear(20, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h, _ = self.core(x)
        return {"mean": self.mean(h), "spread": self.spread(h).clamp(-3, 2)}


def demonstrations(step: int) -> tuple[Tensor, ...]:
    """Observations and actions in (-1, 1); late, an action sits at its limit."""
    g = dice(step, 29)
    x = torch.randn(16, 12, 3, generator=g)
    a = torch.tanh(x[..., :2] + 0.5 * x[..., 2:].cumsum(1) / 3)
    a = a + 0.02 * torch.randn(16, 12, 2, generator=g)
    a = a.clamp(-0.99, 0.99)
    if step >= LATE:
        a[0, 5, 0] = 1.0
    return x, a


def likelihood(limit: float, model: nn.Module, x: Tensor, a: Tensor) -> Tensor:
    given = model(x)
    raw = torch.atanh(a.clamp(-limit, limit))
    return (
        -torch.distributions.Normal(given["mean"], given["spread"].exp(), validate_args=False)
        .log_prob(raw)
        .mean()
    )


def policy(limit: float = 0.995) -> Training:
    """Imitation with actions that are squashed by tanh."""
    torch.manual_seed(58)
    model = Policy()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, demonstrations, partial(likelihood, limit), optimizer, steps=110)


class Gates(nn.Module):
    """Convolutions over time, each times a gate of its own."""

    def __init__(self, depth: int, skip: bool) -> None:
        super().__init__()
        self.lift = nn.Conv1d(1, 16, 3, padding=1)
        self.gated = nn.ModuleList(nn.Conv1d(16, 32, 3, padding=1) for _ in range(depth))
        self.out = nn.Linear(16, 1)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x.mT)
        for layer in self.gated:
            y = F.glu(layer(x), dim=1)
            x = x + y if self.skip else y
        return self.out(x.mean(-1))


def gates(skip: bool = True) -> Training:
    """The frequency of a wave by gated convolutions, which halve what passes if nothing skips."""
    torch.manual_seed(22)
    model = Gates(12, skip)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    return Training(model, wave_batch(24), squared, optimizer, steps=150, clip=1.0)


class Loudness(nn.Module):
    """Energies in bands, their logarithm, and residual convolutions over time."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.bands = nn.Conv1d(1, 8, 8, stride=4, bias=False)
        self.body = nn.ModuleList(nn.Conv1d(8, 8, 3, padding=1) for _ in range(4))
        self.out = nn.Linear(8, 1)
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        x = (self.bands(x.mT) ** 2 + self.floor).log()
        for conv in self.body:
            x = x + 0.5 * F.silu(conv(x))
        return self.out(x.mean(-1))


def some_silence(step: int) -> tuple[Tensor, ...]:
    x, f = wave_batch(40, 24)(step)
    if step >= LATE:
        x[5, 12:28] = 0.0
    return x, f


def loudness(floor: float = 1e-2) -> Training:
    """Logarithms of energies; late, a recording falls silent for a while."""
    torch.manual_seed(59)
    model = Loudness(floor)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, some_silence, squared, optimizer, steps=110)


class Bag(nn.Module):
    """The sum of a bag's embeddings, brought to length 1, then residual layers."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 20, padding_idx=0)
        self.layers = nn.ModuleList(nn.Linear(20, 20) for _ in range(6))
        self.head = nn.Linear(20, 2)
        self.least = least

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens).sum(1)
        x = x / x.norm(dim=1, keepdim=True).clamp(min=self.least)
        for layer in self.layers:
            x = x + 0.5 * F.mish(layer(x))
        return self.head(x)


def bags(step: int) -> tuple[Tensor, ...]:
    """Are there more large tokens than small ones? Late, a bag holds only padding."""
    g = dice(step, 31)
    tokens = torch.randint(1, 16, (32, 7), generator=g)
    y = (tokens > 8).sum(1).gt(3).long()
    if step >= LATE:
        tokens[0] = 0
    return tokens, y


def bag(least: float = 1.0) -> Training:
    """Bags of tokens, normalised by hand."""
    torch.manual_seed(60)
    model = Bag(least)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    return Training(model, bags, cross_entropy, optimizer, steps=110)


VANISHING = Fault(
    "ind7-depth-vanishing",
    must=[["vanishing-gradient"]],
    symptom=decays(3),
    variants=[
        Variant("sigmoid-mlp", healthy=mlp, broken=partial(mlp, act=nn.Sigmoid), may=["no-update"]),
        Variant(
            "elman-small-recurrence",
            healthy=elman,
            broken=partial(elman, scale=0.25),
            symptom=decays(4, "rnn"),
        ),
        Variant(
            "conv-small-normal",
            healthy=vgg,
            broken=partial(vgg, std=0.02),
            # Adam moves the biases until whole layers are off and nothing moves any more
            may=["no-update", "dead-units"],
        ),
        Variant(
            "gru-overwrites",
            healthy=gru,
            broken=partial(gru, bias=-5.0),
            may=["saturated-activation"],
        ),
        Variant(
            "tanh-coder-small-gain",
            healthy=deep_coder,
            broken=partial(deep_coder, gain=0.2),
            may=["no-update"],
        ),
        Variant(
            "lstm-cells-forget",
            healthy=lstm_cells,
            broken=partial(lstm_cells, forget=-5.0),
            may=["saturated-activation"],  # the forget gate
            symptom=decays(4, "cell"),
        ),
        Variant(
            "highway-open",
            healthy=highway,
            broken=partial(highway, bias=5.0),
            # the gates are at their end, and what they read passes nearly all by the transform
            may=["no-update", "saturated-activation", "starved-pathway"],
        ),
        Variant(
            "relaxation",
            healthy=relaxation,
            broken=partial(relaxation, keep=0.5, push=0.1),
            may=["no-update"],
        ),
        Variant(
            "residual-scaled-skip",
            healthy=residual,
            broken=partial(residual, skip=0.3),
            may=["no-update"],
        ),
        Variant(
            "lenet-sigmoid",
            healthy=lenet,
            broken=partial(lenet, squash="sigmoid"),
            may=["no-update"],
        ),
        Variant(
            "gates-without-skip",
            healthy=gates,
            broken=partial(gates, skip=False),
            may=["no-update"],
        ),
        Variant(
            "siamese-sigmoid",
            healthy=siamese,
            broken=partial(siamese, act="sigmoid"),
            may=["no-update"],
        ),
    ],
)

EXPLODING = Fault(
    "ind7-depth-exploding",
    must=[["exploding-gradient"]],
    symptom=grows(2.5),
    variants=[
        Variant("leaky-orthogonal-gain", healthy=leaky, broken=partial(leaky, gain=3.0)),
        Variant(
            "relu-recurrence",
            healthy=irnn,
            broken=partial(irnn, scale=1.4),
            symptom=climbs(4.0, "rnn"),
        ),
        Variant("sums-without-norm", healthy=tower, broken=partial(tower, normalised=False)),
        Variant("state-space", healthy=state_space, broken=partial(state_space, decay=1.2)),
        Variant(
            "norms-without-skip",
            healthy=many_norms,
            broken=partial(many_norms, skip=False),
            # clipping to the huge norm leaves the upper layers next to nothing
            may=["no-update"],
        ),
        Variant("large-euler-step", healthy=flow, broken=partial(flow, dt=1.0)),
        Variant("mixer-wide-normal", healthy=mixer, broken=partial(mixer, std=1.5)),
        Variant("dirac-gain", healthy=upscaler, broken=partial(upscaler, gain=3.0)),
    ],
)

NON_FINITE = Fault(
    "ind7-depth-non-finite",
    must=[["non-finite"]],
    symptom=not_finite(),
    variants=[
        Variant(
            "empty-sentence",
            healthy=masked_mean,
            broken=partial(masked_mean, least=0),
            operation=["div"],
        ),
        Variant("gem-blank", healthy=gem, broken=partial(gem, floor=0.0), operation=["pow"]),
        Variant(
            "cooled-softmax",
            healthy=cooled,
            broken=partial(cooled, loss=by_hand),
            operation=["exp"],
        ),
        Variant(
            "cell-norm-of-zeros",
            healthy=normed_cell,
            broken=partial(normed_cell, eps=0.0),
            operation=["rsqrt"],
        ),
        Variant(
            "arc-cosine-same",
            healthy=compass,
            broken=partial(compass, limit=1.0),
            operation=["acos"],
        ),
        Variant(
            "entropy-by-hand",
            healthy=zero_or_not,
            broken=partial(zero_or_not, loss=entropy_by_hand),
            operation=["log"],
            may=["saturated-activation"],  # the last sigmoid, which is what brings the log down
        ),
        Variant(
            "distance-of-same",
            healthy=signature,
            broken=partial(signature, eps=0.0),
            operation=["sqrt"],
        ),
        Variant(
            "log-of-silence",
            healthy=loudness,
            broken=partial(loudness, floor=0.0),
            operation=["log"],
        ),
        Variant("bag-of-padding", healthy=bag, broken=partial(bag, least=0.0), operation=["div"]),
        Variant(
            "action-at-limit",
            healthy=policy,
            broken=partial(policy, limit=1.0),
            operation=["atanh"],
        ),
    ],
)

FAULTS = [VANISHING, EXPLODING, NON_FINITE]
