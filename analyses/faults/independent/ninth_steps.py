"""Steps of the optimizer that are far too large."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_ninth_c import blobs, digits, grammar, marked, table, waves
from analyses.faults.symptoms import learns_less, overshoots
from analyses.faults.training import Training


def digit_convnet(lr: float = 2e-3) -> Training:
    """Two convolutions and two linear layers with leaky rectifiers, Adam."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.AvgPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(24 * 16, 48),
        nn.LeakyReLU(0.1),
        nn.Linear(48, 10),
    )
    return Training(
        model,
        digits(48),
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.Adam(model.parameters(), lr=lr),
        steps=160,
    )


class WaveReader(nn.Module):
    """A GRU over samples of a wave; its mean state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, 24, batch_first=True)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        return self.out(states.mean(1))


def wave_gru(lr: float = 3e-3) -> Training:
    """A recurrent classifier of waves, RMSprop."""
    torch.manual_seed(2)
    model = WaveReader()
    return Training(
        model,
        waves(32, 32),
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.RMSprop(model.parameters(), lr=lr),
        steps=160,
    )


class ResidualRegressor(nn.Module):
    """Residual blocks of two linear layers, for a table."""

    def __init__(self, columns: int, width: int, blocks: int) -> None:
        super().__init__()
        self.lift = nn.Linear(columns, width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.back = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        for inner, back in zip(self.inner, self.back, strict=True):
            h = h + 0.3 * back(F.elu(inner(h)))
        return self.head(h).squeeze(-1)


def keep_gradients(training: Training, step: int) -> dict[str, Any]:
    """A loop without zero_grad: every gradient is added to all before."""
    loss = training.loss_at(step)
    loss.backward()
    training.optimizer.step()
    return {"loss": loss.detach()}


def table_residual(*, kept: bool = False) -> Training:
    """Regression on twelve columns by residual blocks, SGD."""
    torch.manual_seed(3)
    model = ResidualRegressor(12, 48, 3)
    training = Training(
        model,
        table(64, 12),
        lambda net, x, y: F.smooth_l1_loss(net(x), y),
        torch.optim.SGD(model.parameters(), lr=0.03),
        steps=300,
    )
    if kept:
        training.step = keep_gradients
    return training


def digit_autoencoder(reduction: str = "mean") -> Training:
    """An autoencoder of digits; squared errors are averaged, or added up."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Linear(64, 40),
        nn.Tanh(),
        nn.Linear(40, 10),
        nn.Linear(10, 40),
        nn.Tanh(),
        nn.Linear(40, 64),
    )

    def loss(net: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        return F.mse_loss(net(x), x, reduction=reduction)

    return Training(
        model,
        digits(64, flat=True),
        loss,
        torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9),
        steps=120,
        every=2,
    )


class CharModel(nn.Module):
    """Embedding, LSTM and a linear layer that tells the next symbol."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 24)
        self.lstm = nn.LSTM(24, 48, batch_first=True)
        self.head = nn.Linear(48, 16)

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(text))[0])


def next_symbol(net: nn.Module, text: Tensor) -> Tensor:
    """Mean cross entropy of the next symbol."""
    logits = net(text[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())


def char_lstm(lr: float = 4e-3) -> Training:
    """A language model with groups of parameters that have learning rates of their own."""
    torch.manual_seed(5)
    model = CharModel()
    groups = [
        {"params": model.embed.parameters(), "lr": 5e-3, "weight_decay": 0.0},
        {"params": model.lstm.parameters(), "lr": lr},
        {"params": model.head.parameters(), "lr": lr},
    ]
    return Training(
        model, grammar(24, 16), next_symbol, torch.optim.AdamW(groups, lr=4e-3), steps=200
    )


class Voter(nn.Module):
    """A one-dimensional convolutional classifier with group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv1d(1, 16, 5, stride=2)
        self.c2 = nn.Conv1d(16, 24, 5, stride=2)
        self.fc = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.c1(x.transpose(1, 2)), 0.2)
        h = F.leaky_relu(self.c2(h), 0.2)
        return self.fc(h.mean(-1))


def accumulate(training: Training, step: int, *, parts: int, divide: bool) -> dict[str, Any]:
    """Add up the gradients of several small batches before a step."""
    total = 0.0
    for i in range(parts):
        loss = training.loss_at(step * parts + i)
        (loss / parts if divide else loss).backward()
        total += loss.item() / parts
    training.optimizer.step()
    training.optimizer.zero_grad()
    return {"loss": total}


def wave_convnet(*, divide: bool = True) -> Training:
    """Waves classified from sixteen accumulated batches a step, SGD with momentum."""
    torch.manual_seed(6)
    model = Voter()
    return Training(
        model,
        waves(4, 48),
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.8),
        steps=120,
        every=2,
        step=partial(accumulate, parts=16, divide=divide),
    )


class MixerBlock(nn.Module):
    """Mixes tokens, then channels."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 24), nn.GELU(), nn.Linear(24, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.n1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.n2(x))


class Mixer(nn.Module):
    """An MLP-mixer over patches of 2 × 2 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 32, 2, stride=2)
        self.blocks = nn.Sequential(MixerBlock(16, 32), MixerBlock(16, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def digit_mixer(gamma: float = 0.99) -> Training:
    """A mixer on digits whose learning rate is multiplied by gamma after every step."""
    torch.manual_seed(7)
    model = Mixer()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(
        model,
        digits(48),
        lambda net, x, y: F.cross_entropy(net(x), y),
        optimizer,
        steps=180,
        schedule=torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma),
    )


class Segmenter(nn.Module):
    """A U of convolutions: down once, up once, one skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Conv2d(1, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.mid = nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.out = nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.leaky_relu(self.enc(x), 0.1)
        b = F.leaky_relu(self.mid(F.leaky_relu(self.down(a), 0.1)), 0.1)
        return self.out(torch.cat([a, F.leaky_relu(self.up(b), 0.1)], 1))


def blob_unet(lr: float = 0.03) -> Training:
    """Rectangles segmented by a small U-Net, Adagrad."""
    torch.manual_seed(8)
    model = Segmenter()
    return Training(
        model,
        blobs(16),
        lambda net, x, mask: F.binary_cross_entropy_with_logits(net(x), mask),
        torch.optim.Adagrad(model.parameters(), lr=lr),
        steps=150,
    )


class WordBag(nn.Module):
    """Embedded words with learned positions, two encoder layers, mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 32)
        self.place = nn.Parameter(torch.randn(1, 14, 32) * 0.1)
        layer = nn.TransformerEncoderLayer(
            32, 2, 64, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 2)

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(text) + self.place).mean(1))


def word_transformer(lr: float = 2e-3) -> Training:
    """A pre-norm encoder that compares counts of words, AdamW."""
    torch.manual_seed(9)
    model = WordBag()
    return Training(
        model,
        marked(32, 14),
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.AdamW(model.parameters(), lr=lr),
        steps=140,
    )


TOO_LARGE = Fault(
    "ind9-steps-toolarge",
    must=[["update-too-large"]],
    symptom=overshoots(),
    variants=[
        Variant(
            "convnet-adam",
            healthy=digit_convnet,
            broken=partial(digit_convnet, lr=0.5),
            # the first gradients grow ten-thousandfold
            may=["exploding-gradient"],
        ),
        Variant(
            "gru-rmsprop",
            healthy=wave_gru,
            broken=partial(wave_gru, lr=1.0),
            # weights a hundred times too large close the gates and multiply gradients
            may=["exploding-gradient", "saturated-activation"],
        ),
        Variant(
            "kept-gradients",
            healthy=table_residual,
            broken=partial(table_residual, kept=True),
        ),
        Variant(
            "summed-errors",
            healthy=digit_autoencoder,
            broken=partial(digit_autoencoder, reduction="sum"),
            # it diverges within ten steps
            may=["exploding-gradient", "non-finite"],
        ),
        Variant(
            "copied-group",
            healthy=char_lstm,
            broken=partial(char_lstm, lr=10.0),
            # as of any recurrence whose weights are that large
            may=["exploding-gradient", "saturated-activation"],
            symptom=learns_less(0.3),
        ),
        Variant(
            "undivided-accumulation",
            healthy=wave_convnet,
            broken=partial(wave_convnet, divide=False),
            # it diverges within ten steps
            may=["exploding-gradient", "non-finite"],
        ),
        Variant(
            "growing-lr",
            healthy=digit_mixer,
            broken=partial(digit_mixer, gamma=1.03),
            # gradients grow with the weights at the end
            may=["exploding-gradient"],
        ),
        Variant(
            "unet-adagrad",
            healthy=blob_unet,
            broken=partial(blob_unet, lr=2.0),
            # large weights above multiply the gradients below
            may=["exploding-gradient"],
        ),
        Variant(
            "transformer-adamw",
            healthy=word_transformer,
            broken=partial(word_transformer, lr=0.1),
            # scores of hundreds: one entry has it all
            may=["peaked-softmax", "exploding-gradient"],
        ),
    ],
)

FAULTS = [TOO_LARGE]
