"""Gradients that shrink or grow with depth or time, and deep models in which they don't."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from analyses.faults.case import Fault, Healthy, Variant
from analyses.faults.independent.kit_fifth_depth import (
    classify,
    digits,
    pictures,
    rebuild,
    recall,
    regress,
    run,
    surface,
    waves,
)
from analyses.faults.symptoms import decays, grows
from analyses.faults.training import Training

Adam, AdamW, SGD = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD


def _mlp(sizes: list[int], act: type[nn.Module], scale: float | None = None) -> nn.Sequential:
    """Plain layers; weights of standard deviation `scale`/√inputs, or PyTorch's own."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        if i:
            layers.append(act())
        layers.append(nn.Linear(a, b))
        if scale is not None:
            nn.init.normal_(layers[-1].weight, 0.0, scale / a**0.5)  # type: ignore[arg-type]
            nn.init.zeros_(layers[-1].bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


def sigmoid_classifier(act: type[nn.Module]) -> Training:
    """Eight hidden layers on digits."""
    return run(
        partial(_mlp, [64, *[48] * 8, 10], act), digits, classify, partial(Adam, lr=1e-3), 200
    )


def small_convolutions(scale: float) -> Training:
    """A plain stack of convolutions without norm, whose initial scale is chosen by hand."""

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for i in range(8):
            conv = nn.Conv2d(1 if i == 0 else 16, 16, 3, padding=1)
            nn.init.normal_(conv.weight, 0.0, scale / (conv.weight[0].numel()) ** 0.5)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            layers += [conv, nn.LeakyReLU(0.1)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))

    return run(build, pictures, classify, partial(SGD, lr=0.01, momentum=0.9), 200)


class Recurrent(nn.Module):
    """A fused recurrence whose last state is read."""

    def __init__(self, cell: nn.RNNBase, inputs: int = 6, outputs: int = 4) -> None:
        super().__init__()
        self.cell = cell
        self.head = nn.Linear(cell.hidden_size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def elman(scale: float) -> Training:
    """A tanh recurrence; its recurrent matrix is orthogonal times a factor."""

    def build() -> nn.Module:
        model = Recurrent(nn.RNN(6, 48, batch_first=True))
        nn.init.orthogonal_(model.cell.weight_hh_l0, scale)  # type: ignore[arg-type]
        return model

    return run(build, recall, classify, partial(Adam, lr=1e-3), 200)


def forgetful_lstm(bias: float) -> Training:
    """An LSTM whose forget gates start with a bias."""

    def build() -> nn.Module:
        model = Recurrent(nn.LSTM(6, 32, batch_first=True))
        with torch.no_grad():
            model.cell.bias_ih_l0[32:64] = bias  # type: ignore[operator]
            model.cell.bias_hh_l0[32:64] = 0.0  # type: ignore[operator]
        return model

    return run(build, recall, classify, partial(Adam, lr=2e-3), 160)


def deep_autoencoder(scale: float) -> Training:
    """Tanh encoder and decoder of seven layers each."""
    sizes = [64, 56, 48, 40, 32, 28, 24, 16, 24, 28, 32, 40, 48, 56, 64]
    return run(partial(_mlp, sizes, nn.Tanh, scale), digits, rebuild, partial(AdamW, lr=5e-4), 240)


class Mixing(nn.Module):
    """One block of an MLP-mixer over 16 patches, with or without its skips."""

    def __init__(self, width: int, skip: bool) -> None:
        super().__init__()
        self.tokens = nn.Linear(16, 16)
        self.channels = nn.Linear(width, width)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        mixed = nn.functional.gelu(self.tokens(x.transpose(1, 2))).transpose(1, 2)
        x = x + 0.5 * mixed if self.skip else mixed
        mixed = nn.functional.gelu(self.channels(x))
        return x + 0.5 * mixed if self.skip else mixed


class Mixer(nn.Module):
    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 32)
        self.blocks = nn.Sequential(*(Mixing(32, skip) for _ in range(8)))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        return self.head(self.blocks(self.embed(patches)).mean(1))


def mixer(skip: bool) -> Training:
    """A mixer without norms, on digits cut into 16 patches."""
    return run(partial(Mixer, skip), digits, classify, partial(Adam, lr=2e-3), 160)


class Faded(nn.Module):
    """Residual blocks whose skip is multiplied by a factor."""

    def __init__(self, keep: float, depth: int = 14, width: int = 40) -> None:
        super().__init__()
        self.inputs = nn.Linear(8, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outputs = nn.Linear(width, 1)
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        for block in self.blocks:
            x = self.keep * x + 0.1 * torch.tanh(block(x))
        return self.outputs(x)


def faded_residual(keep: float) -> Training:
    """A residual regressor."""
    return run(partial(Faded, keep), surface, regress, partial(AdamW, lr=2e-3), 200)


VANISHING = Fault(
    "ind5-depth-vanishing",
    must=[["vanishing-gradient"]],
    symptom=decays(2.0),
    variants=[
        Variant(
            "sigmoid-mlp",
            partial(sigmoid_classifier, nn.SiLU),
            broken=partial(sigmoid_classifier, nn.Sigmoid),
        ),
        Variant(
            "small-convolutions",
            partial(small_convolutions, 1.41),
            broken=partial(small_convolutions, 0.3),
            # SGD hardly moves what has next to no gradient: cause and effect.
            must=[["vanishing-gradient", "no-update"]],
        ),
        Variant("elman-small-recurrence", partial(elman, 1.0), broken=partial(elman, 0.3)),
        Variant("lstm-forgets", partial(forgetful_lstm, 2.0), broken=partial(forgetful_lstm, -2.5)),
        Variant(
            "deep-autoencoder",
            partial(deep_autoencoder, 1.2),
            broken=partial(deep_autoencoder, 0.4),
        ),
        Variant(
            "mixer-no-skips",
            partial(mixer, True),
            broken=partial(mixer, False),
            # The first layers' gradient is below Adam's epsilon: they move by 0.3 % in all.
            may=("no-update",),
        ),
        Variant("faded-skips", partial(faded_residual, 1.0), broken=partial(faded_residual, 0.25)),
    ],
)


def wide_gelu(scale: float) -> Training:
    """Ten hidden layers with an initial scale."""
    return run(
        partial(_mlp, [64, *[64] * 10, 10], nn.GELU, scale),
        digits,
        classify,
        partial(Adam, lr=1e-3),
        160,
    )


class Growing(nn.Module):
    """Residual blocks of full scale, without norm."""

    def __init__(self, gain: float, depth: int = 16, width: int = 32) -> None:
        super().__init__()
        self.inputs = nn.Conv2d(1, width, 3, padding=1, stride=2)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        for block in self.blocks:
            nn.init.normal_(block.weight, 0.0, gain / (9 * width) ** 0.5)  # type: ignore[arg-type]
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        for block in self.blocks:
            x = x + nn.functional.leaky_relu(block(x), 0.1)
        return self.head(x.mean((2, 3)))


def growing_residual(gain: float) -> Training:
    """A convolutional residual net without norm."""
    return run(partial(Growing, gain), pictures, classify, partial(Adam, lr=1e-3), 120)


def rectified_recurrence(scale: float) -> Training:
    """A ReLU recurrence that starts from a multiple of the identity, with clipping."""

    def build() -> nn.Module:
        model = Recurrent(nn.RNN(1, 40, nonlinearity="relu", batch_first=True))
        with torch.no_grad():
            model.cell.weight_hh_l0.copy_(scale * torch.eye(40))  # type: ignore[operator]
        return model

    return run(build, waves, classify, partial(Adam, lr=1e-3), 200, clip=1.0)


class Linear(nn.Module):
    """h ← a·h + B·x, each channel with a decay of its own; then a small classifier."""

    def __init__(self, decay: float, width: int = 32) -> None:
        super().__init__()
        self.decay = nn.Parameter(decay + 0.01 * torch.randn(width))
        self.inputs = nn.Linear(6, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.decay.numel())
        for t in range(x.shape[1]):
            h = self.decay * h + self.inputs(x[:, t])
        return self.head(h)


def linear_recurrence(decay: float) -> Training:
    """A linear recurrence over 40 steps."""
    return run(
        partial(Linear, decay),
        partial(recall, length=40),
        classify,
        partial(AdamW, lr=2e-3),
        160,
    )


EXPLODING = Fault(
    "ind5-depth-exploding",
    must=[["exploding-gradient"]],
    symptom=grows(2.0),
    variants=[
        Variant("gelu-large-weights", partial(wide_gelu, 1.41), broken=partial(wide_gelu, 4.0)),
        Variant(
            "unscaled-residuals",
            partial(growing_residual, 0.2),
            broken=partial(growing_residual, 3),
        ),
        Variant(
            "relu-recurrence",
            partial(rectified_recurrence, 1.0),
            broken=partial(rectified_recurrence, 1.5),
        ),
        Variant(
            "linear-recurrence",
            partial(linear_recurrence, 0.97),
            broken=partial(linear_recurrence, 1.22),
        ),
    ],
)


class Highway(nn.Module):
    """Twenty layers with gates that start at carrying."""

    def __init__(self, depth: int = 20, width: int = 32) -> None:
        super().__init__()
        self.inputs = nn.Linear(64, width)
        self.layers = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        for layer in self.layers:
            nn.init.constant_(layer.bias[width:], -3.0)  # type: ignore[index]
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        for layer in self.layers:
            new, gate = layer(x).chunk(2, -1)
            x = x + torch.sigmoid(gate) * (torch.tanh(new) - x)
        return self.head(x)


def highway() -> Training:
    """Nesterov's momentum with a cosine schedule."""
    return run(
        Highway,
        digits,
        classify,
        partial(SGD, lr=0.05, momentum=0.9, nesterov=True),
        200,
        partial(lr_scheduler.CosineAnnealingLR, T_max=200),
    )


def _orthogonal() -> nn.Module:
    model = _mlp([64, *[48] * 14, 10], nn.Tanh)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, 1.1)
            nn.init.zeros_(layer.bias)
    return model


def orthogonal_tanh() -> Training:
    """Fourteen tanh layers, orthogonal at the start, with RAdam."""
    return run(_orthogonal, digits, classify, partial(torch.optim.RAdam, lr=5e-4), 200)


def _self_normalising() -> nn.Module:
    model = _mlp([8, *[40] * 10, 1], nn.SELU)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
    return model


def self_normalising() -> Training:
    """Ten SELU layers with warm restarts."""
    return run(
        _self_normalising,
        surface,
        regress,
        partial(AdamW, lr=2e-3),
        200,
        partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=50),
    )


class Stacked(nn.Module):
    """Recurrence, normed mean over time, classes."""

    def __init__(self, cell: nn.RNNBase, outputs: int = 4) -> None:
        super().__init__()
        self.cell = cell
        width = cell.hidden_size * (2 if cell.bidirectional else 1)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.cell(x)[0].mean(1)))


def bidirectional_gru() -> Training:
    """Three bidirectional layers with Adamax and clipping."""
    return run(
        lambda: Stacked(nn.GRU(1, 20, 3, batch_first=True, bidirectional=True)),
        waves,
        classify,
        partial(torch.optim.Adamax, lr=5e-3),
        140,
        clip=1.0,
    )


def stacked_lstm() -> Training:
    """Two LSTM layers with NAdam and one cycle."""
    return run(
        lambda: Stacked(nn.LSTM(6, 32, 2, batch_first=True)),
        recall,
        classify,
        partial(torch.optim.NAdam, lr=1e-3),
        140,
        partial(lr_scheduler.OneCycleLR, max_lr=6e-3, total_steps=140),
    )


class PreNorm(nn.Module):
    """Sixteen gated pre-norm residual blocks."""

    def __init__(self, depth: int = 16, width: int = 32) -> None:
        super().__init__()
        self.inputs = nn.Linear(64, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GLU(), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.head(x)


def _warm_then_root(step: int) -> float:
    return min((step + 1) / 20, (20 / (step + 1)) ** 0.5)


def pre_norm() -> Training:
    """Warm-up and the inverse root of the step."""
    return run(
        PreNorm,
        digits,
        classify,
        partial(AdamW, lr=3e-3, weight_decay=0.05),
        140,
        partial(lr_scheduler.LambdaLR, lr_lambda=_warm_then_root),
    )


class BatchNormed(nn.Module):
    """A residual convolutional net with batch norm, ten blocks deep."""

    def __init__(self, depth: int = 10, width: int = 16) -> None:
        super().__init__()
        self.inputs = nn.Conv2d(1, width, 3, padding=1, stride=2, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def batch_normed() -> Training:
    """SGD with milestones."""
    return run(
        BatchNormed,
        pictures,
        classify,
        partial(SGD, lr=0.02, momentum=0.9, weight_decay=5e-4),
        140,
        partial(lr_scheduler.MultiStepLR, milestones=[80, 120], gamma=0.2),
    )


def short_autoencoder() -> Training:
    """An autoencoder of PReLUs with a triangular cycle for RMSprop."""
    return run(
        partial(_mlp, [64, 48, 32, 16, 32, 48, 64], nn.PReLU, 1.3),
        digits,
        rebuild,
        partial(torch.optim.RMSprop, lr=1e-3),
        200,
        partial(
            lr_scheduler.CyclicLR, base_lr=2e-4, max_lr=2e-3, step_size_up=25, cycle_momentum=False
        ),
    )


def adagrad_regressor() -> Training:
    """Adagrad, with five ELU layers."""
    return run(
        partial(_mlp, [8, 64, 64, 48, 32, 1], nn.ELU, 1.1),
        surface,
        regress,
        partial(torch.optim.Adagrad, lr=2e-2),
        200,
    )


HEALTHY = Healthy(
    "ind5-depth-healthy",
    {
        "highway-nesterov-cosine": highway,
        "orthogonal-tanh-radam": orthogonal_tanh,
        "selu-warm-restarts": self_normalising,
        "bidirectional-gru-adamax": bidirectional_gru,
        "stacked-lstm-one-cycle": stacked_lstm,
        "pre-norm-glu-warm-up": pre_norm,
        "batch-norm-milestones": batch_normed,
        "autoencoder-cyclic": short_autoencoder,
        "elu-adagrad": adagrad_regressor,
    },
)

FAULTS = [VANISHING, EXPLODING]
THEMES = [HEALTHY]
