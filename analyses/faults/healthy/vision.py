"""Convolutional networks, ViT, U-Net, autoencoders."""

from functools import partial

import torch
from torch import Tensor, nn

from analyses.faults import data, nets, setups
from analyses.faults.case import Healthy
from analyses.faults.training import Training


class UNet(nn.Module):
    """Down and up again, with concatenated skips: (B, 1, 8, 8) → (B, 1, 8, 8)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(4 * width, width, 4, 2, 1)
        self.leave = nn.Conv2d(2 * width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.enter(x)
        second = self.down(first)
        third = torch.cat([second, self.middle(second)], 1)
        return self.leave(torch.cat([first, torch.relu(self.up(third))], 1))


def unet() -> Training:
    """Noise is to be taken off."""
    torch.manual_seed(0)

    def loss(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        return nn.functional.mse_loss(model(x + 0.5 * torch.randn_like(x)), x)

    return setups.assemble(UNet(), data.digits(32, image=True), loss, lr=3e-3)


class PatchTransformer(nn.Module):
    """ViT: 2 × 2 patches, a class token."""

    def __init__(self, dim: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, 2, stride=2)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(0.02 * torch.randn(17, dim))
        self.blocks = nn.ModuleList(nets.Block(dim, 2) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)  # (B, 16, dim)
        h = torch.cat([self.token.expand(len(h), -1, -1), h], 1) + self.position
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h[:, 0]))


def vit(depth: int = 2) -> Training:
    torch.manual_seed(0)
    model = PatchTransformer(depth=depth)
    return setups.assemble(model, data.digits(32, image=True), optimizer="adamw", lr=1e-3)


def autoencoder(code: int) -> Training:
    """Narrow on purpose."""
    torch.manual_seed(0)
    model = nets.mlp([64, 48, code, 48, 64], nn.GELU)
    training = setups.assemble(model, data.digits(), setups.reconstruction, lr=3e-3)
    return setups.with_bottlenecks(training)


RUNS = Healthy(
    "vision",
    {
        "resnet": partial(setups.conv, depth=6, norm=True, skip=True),
        "conv-3": partial(setups.conv, depth=3),
        "unet": unet,
        "vit": vit,
        "resnet-10-adam": partial(
            setups.conv, depth=10, norm=True, skip=True, optimizer="adam", lr=1e-3
        ),
        "conv-batch-norm-6": partial(setups.conv, depth=6, norm=True),
        "autoencoder-code-12": partial(autoencoder, 12),
        "autoencoder-code-20": partial(autoencoder, 20),
        "vit-4": partial(vit, 4),
        "conv-he-init-8": partial(setups.conv, depth=8, gain=1.4, lr=0.01),
    },
)
