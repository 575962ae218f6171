"""A pathway is there and carries next to nothing."""

from functools import partial

import torch
from torch import Tensor, nn

from analyses.faults import data, nets, setups
from analyses.faults.case import Change, Fault, Variant
from analyses.faults.symptoms import branch_starved
from analyses.faults.training import Training


class TwoBranches(nn.Module):
    """h = stem(x); y = head(f(h) + g(h)), or of their concatenation; g's share is `factor`."""

    def __init__(self, width: int, factor: float, *, concat: bool, conv: bool = False) -> None:
        super().__init__()
        self.factor, self.concat = factor, concat
        out = 2 * width if concat else width
        if conv:
            self.stem: nn.Module = nn.Conv2d(1, width, 3, padding=1, stride=2)
            self.first: nn.Module = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
            self.second: nn.Module = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
            self.head: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(out * 16, 10))
        else:
            self.stem = nn.Sequential(nn.Linear(64, width), nn.ReLU())
            self.first = nets.mlp([width, width, width])
            self.second = nets.mlp([width, width, width])
            self.head = nn.Linear(out, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        first, second = self.first(h), self.factor * self.second(h)
        return self.head(torch.cat([first, second], 1) if self.concat else first + second)


def branches(factor: float, *, concat: bool, conv: bool = False, width: int = 32) -> Training:
    torch.manual_seed(0)
    model = TwoBranches(width, factor, concat=concat, conv=conv)
    return setups.assemble(model, data.digits(image=conv), optimizer="sgd", lr=0.1)


class GatedResidual(nn.Module):
    """x + σ(b) · f(x): a gate with a learned bias, in every block."""

    def __init__(self, width: int, blocks: int, bias: float) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.blocks = nn.ModuleList(nets.mlp([width, width, width]) for _ in range(blocks))
        self.gates = nn.ParameterList(torch.full((width,), bias) for _ in range(blocks))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for gate, block in zip(self.gates, self.blocks, strict=True):
            x = x + torch.sigmoid(gate) * block(x)
        return self.head(x)


def gated(bias: float, blocks: int = 3, width: int = 32) -> Training:
    torch.manual_seed(0)
    return setups.assemble(
        GatedResidual(width, blocks, bias), data.digits(), optimizer="momentum", lr=0.02
    )


def residual_times(factor: float) -> Change:
    def change(training: Training) -> None:
        training.model.scale = factor  # type: ignore[assignment]

    return change


def attention_out_times(factor: float) -> Change:
    """Attention's output is multiplied by a constant, a unit conversion gone wrong."""

    def change(training: Training) -> None:
        for module in training.model.modules():
            if isinstance(module, nets.SelfAttention):
                module.register_forward_hook(lambda m, x, y: y * factor)

    return change


FAULT = Fault(
    "starved",
    must=[["starved-pathway"]],
    # Parameters on the starved branch hardly move.
    may=["no-update"],
    symptom=branch_starved(1e-4),
    variants=[
        Variant("residual-mlp-times-1e-6", setups.residual_mlp, residual_times(1e-6)),
        Variant(
            "two-branches-sum-1e-6",
            partial(branches, 1.0, concat=False),
            broken=partial(branches, 1e-6, concat=False),
        ),
        Variant(
            "closed-gate-3",
            partial(gated, 0.0),
            broken=partial(gated, -15.0),
            # A closed gate is a sigmoid at its end.
            may=["no-update", "saturated-activation"],
        ),
        Variant(
            "two-branches-concat-conv",
            partial(branches, 1.0, concat=True, conv=True, width=8),
            broken=partial(branches, 1e-6, concat=True, conv=True, width=8),
        ),
        Variant(
            "transformer-attention-times-1e-6",
            partial(setups.transformer, optimizer="momentum", lr=0.05),
            attention_out_times(1e-6),
            # Attention that nothing depends on never leaves its initial state.
            may=["no-update", "diffuse-softmax"],
        ),
        Variant(
            "closed-gate-8",
            partial(gated, 0.0, blocks=8, width=24),
            broken=partial(gated, -18.0, blocks=8, width=24),
            may=["no-update", "saturated-activation"],
        ),
        Variant(
            "two-branches-concat-1e-7",
            partial(branches, 1.0, concat=True, width=48),
            broken=partial(branches, 1e-7, concat=True, width=48),
        ),
        Variant(
            "residual-mlp-norm-times-1e-7",
            partial(setups.residual_mlp, blocks=8, norm=True),
            residual_times(1e-7),
        ),
    ],
)
