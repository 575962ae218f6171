"""NaN and infinity, and the operation that made the first of them.

`operation`: accepted names of the first operation whose result (or, where all results are finite,
whose gradient) is not finite.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults import data, nets, setups
from analyses.faults.case import Fault, Variant
from analyses.faults.causes.underflow import autocast
from analyses.faults.symptoms import not_finite
from analyses.faults.training import Batch, Training

Function = Callable[[Tensor], Tensor]
WHEN = 60  # step at which the batch holds the value that breaks it


def classify(of: Callable[[nn.Module, Tensor, Tensor], Tensor], **knobs: object) -> Training:
    """An MLP on digits whose loss is written by hand."""
    training = setups.mlp(depth=2, optimizer="sgd", lr=0.05, steps=120, **knobs)  # type: ignore[arg-type]
    training.loss = of
    return training


def log_probability(eps: float) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """−log(softmax) by hand: a probability that rounds to 0 has no logarithm."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        p = torch.softmax(40 * model(x), dim=1).gather(1, y.unsqueeze(1))
        return -torch.log(p + eps).mean()

    return loss


def at_step(change: Callable[[Batch], Batch], when: int = WHEN) -> Callable[[Training], None]:
    """One batch is different."""

    def apply(training: Training) -> None:
        usual = training.batch
        training.batch = lambda step: change(usual(step)) if step == when else usual(step)

    return apply


def first_row(value: float) -> Callable[[Batch], Batch]:
    def change(batch: Batch) -> Batch:
        x = batch[0].clone()
        x[0] = value
        return (x, *batch[1:])

    return change


class Features(nn.Module):
    """An MLP behind a function of its inputs, written as a module."""

    def __init__(self, function: Function, inputs: int = 64, outputs: int = 10) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, 32)
        self.function = function
        self.net = nets.mlp([32, 32, outputs])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.function(self.stem(x)))


def features(function: Function, steps: int = 120, lr: float = 0.3) -> Training:
    torch.manual_seed(0)
    model = Features(function)
    nn.init.zeros_(model.stem.bias)
    model.stem.bias.requires_grad_(False)
    return setups.assemble(model, data.digits(), optimizer="sgd", lr=lr, steps=steps)


def norm_by_hand(eps: float) -> Function:
    """x / √Σx²: 0/0 for a row of zeros; with eps inside the root, 0."""
    return lambda h: h / torch.sqrt((h * h).sum(1, keepdim=True) + eps)


def root_of_squares(eps: float) -> Function:
    """√(h²): at 0 the derivative of the root is infinite, and 0 · ∞ is NaN."""
    return lambda h: torch.sqrt(h * h + eps)


class MaskedAttention(nn.Module):
    """A transformer that is given a mask of padding; `safe`: never all of a row."""

    def __init__(self, safe: bool) -> None:
        super().__init__()
        self.net = nets.Transformer(9, 8, dim=24, depth=2)
        self.safe = safe

    def forward(self, x: Tensor) -> Tensor:
        mask = x.abs().sum(2) == 0  # (B, T): positions of padding
        if self.safe:
            mask = mask & ~mask.all(1, keepdim=True)
        return self.net(x, mask)


def padded(safe: bool) -> Training:
    torch.manual_seed(0)
    training = setups.assemble(MaskedAttention(safe), data.marked(), lr=1e-3, steps=100)
    at_step(first_row(0.0))(training)
    return training


def heavy(scale: float, dtype: torch.dtype) -> Training:
    """A wide sum in float16: beyond 65504 there is infinity."""
    training = setups.mlp(depth=3, width=64, optimizer="sgd", lr=1e-5, steps=60)
    with torch.no_grad():
        for layer in training.model.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(scale)
    return autocast(training, dtype)


class Gaussian(nn.Module):
    """Predicts mean and log-variance; `limit` bounds the latter."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.net = nets.mlp([8, 32, 2])
        self.limit = limit

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.net(x).chunk(2, dim=1)
        return mean, log_variance.clamp(max=self.limit)


def likelihood(limit: float) -> Training:
    """Inverse variance exp(−s): overflows if s was driven far down, as on data without noise."""
    torch.manual_seed(0)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        mean, s = model(x)
        return (torch.exp(-100 * s) * (mean - y) ** 2 + s).mean()

    model = Gaussian(limit)
    last = model.net[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias[1] = 0.0 if limit > 0 else -1.0
    return setups.assemble(model, data.regression(), loss, lr=1e-3, steps=100)


def standardised(eps: float) -> Function:
    """(h − mean) / std over a sample's features: 0/0 where they are all alike."""
    return lambda h: (h - h.mean(1, keepdim=True)) / (h.std(1, keepdim=True) + eps)


def angle(limit: float) -> Function:
    """acos of a cosine: its derivative is infinite at 1."""

    def function(h: Tensor) -> Tensor:
        cosine = F.cosine_similarity(h.unsqueeze(1), h.unsqueeze(2).expand(-1, -1, 4), dim=2)
        return torch.acos(cosine.clamp(-limit, limit)).repeat(1, 1)

    return function


def blank(batch: Batch) -> Batch:
    return first_row(0.0)(batch)


FAULT = Fault(
    "non-finite",
    must=[["non-finite"]],
    symptom=not_finite(),
    # The step that ends in NaN is no step any more.
    may=["update-too-large"],
    variants=[
        Variant(
            "log-of-0",
            lambda: classify(log_probability(1e-6)),
            broken=lambda: classify(log_probability(0.0)),
            operation=["log"],
            may=["update-too-large", "exploding-gradient"],
            # Logits times 40: the healthy twin only avoids the NaN.
            twin=False,
        ),
        Variant(
            "norm-0-over-0",
            lambda: _blank(features(norm_by_hand(1e-6))),
            broken=lambda: _blank(features(norm_by_hand(0.0))),
            operation=["div"],
        ),
        Variant(
            "sqrt-at-0",
            lambda: _blank(features(root_of_squares(1e-6))),
            broken=lambda: _blank(features(root_of_squares(0.0))),
            operation=["sqrt"],
        ),
        Variant(
            "softmax-fully-masked",
            partial(padded, True),
            broken=partial(padded, False),
            operation=["softmax"],
        ),
        Variant(
            "exp-overflow",
            lambda: _spike(features(lambda h: torch.exp(h.clamp(max=5.0))), 1.0),
            broken=lambda: _spike(features(torch.exp, lr=0.02), 3000.0),
            operation=["exp"],
            may=["update-too-large", "unscaled-input"],
            twin=False,
        ),
        Variant(
            "fp16-overflow",
            partial(heavy, 1.0, torch.float16),
            broken=partial(heavy, 40.0, torch.float16),
            operation=["addmm", "linear", "mm"],
            # Weights 40 times too large do the same to the gradient.
            may=["update-too-large", "exploding-gradient"],
            twin=False,
        ),
        Variant(
            "std-of-equal-features",
            lambda: _blank(features(standardised(1e-6))),
            broken=lambda: _blank(features(standardised(0.0))),
            operation=["div"],
        ),
        Variant(
            "power-of-0",
            lambda: _blank(features(lambda h: (h * h + 1e-6) ** 0.25)),
            broken=lambda: _blank(features(lambda h: (h * h) ** 0.25)),
            operation=["pow"],
        ),
        Variant(
            "diverged-regression",
            partial(setups.mlp, depth=3, on="regression", lr=0.02),
            broken=lambda: _diverging(),
            # A step that is far too large is where it comes from: squares overflow.
            operation=["addmm", "linear", "mm", "mse_loss", "sum", "mul", "pow"],
            may=["update-too-large", "exploding-gradient", "unscaled-input"],
        ),
        Variant(
            "input-nan",
            partial(setups.conv, norm=True),
            at_step(first_row(float("nan"))),
            # The data bring it: the first operation on them is the first to show it.
            operation=["convolution", "conv2d", "input"],
        ),
    ],
)


def _blank(training: Training) -> Training:
    at_step(blank)(training)
    return training


def _spike(training: Training, value: float) -> Training:
    at_step(first_row(value))(training)
    return training


def _diverging() -> Training:
    """Linear regression on a learning rate beyond its limit of stability."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 1))
    return setups.assemble(
        model, data.regression(), setups.squared_error, optimizer="sgd", lr=3.0, steps=120
    )
