"""Parts that no gradient reaches: cut from the graph, or not wanted by the loss."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_parts import (
    Residual,
    classify,
    conv,
    digits,
    fit,
    flat_digits,
    graphs,
    idle,
    mlp,
    rebuild,
    seeded,
    shapes,
    waves,
)
from analyses.faults.symptoms import no_gradient_before
from analyses.faults.training import Batch, Training


class Features(nn.Module):
    """A convolutional backbone and a head; the backbone's features may be left detached."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.backbone = nn.Sequential(
            conv(1, 16), conv(16, 32, 2), conv(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = mlp(32, 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.backbone(x)
        return self.head(found.detach() if self.cut else found)


def backbone(cut: bool = False) -> Training:
    """Shapes told apart; the detach() of an experiment with fixed features was forgotten."""
    torch.manual_seed(1)
    return fit(Features(cut), shapes, classify, lr=2e-3)


class Spectrum(nn.Module):
    """Learned filters, the log power spectrum of what they let through, a regressor."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.filters = nn.Sequential(
            nn.Conv1d(1, 8, 7, padding=3), nn.Tanh(), nn.Conv1d(8, 8, 5, padding=2)
        )
        self.norm = nn.LayerNorm(25)
        self.read = mlp(8 * 25, 64, 2, act=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.filters(x)
        if self.cut:
            import numpy as np

            power = np.abs(np.fft.rfft(kept.detach().numpy(), axis=-1)) ** 2
            levels = torch.from_numpy(np.log(power + 1e-3).astype("float32"))
        else:
            levels = (torch.fft.rfft(kept).abs().square() + 1e-3).log()
        return self.read(self.norm(levels).flatten(1))


def _mse(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


def spectrum(cut: bool = False) -> Training:
    """Frequency and amplitude of a wave; the spectrum is taken by numpy."""
    torch.manual_seed(2)
    return fit(Spectrum(cut), waves, _mse, how=torch.optim.RMSprop)


class Messages(nn.Module):
    """Two rounds of messages among a graph's nodes, then a classifier of nodes."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.embed = nn.Linear(4, 32)
        self.rounds = nn.ModuleList([nn.Linear(64, 32) for _ in range(2)])
        self.read = mlp(32, 32, 2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = torch.tanh(self.embed(x))
        for layer in self.rounds:
            h = torch.tanh(layer(torch.cat([h, adjacency @ h], -1)))
        if self.cut:
            h = torch.tensor([graph.tolist() for graph in h])
        return self.read(h)


def _nodes(model: nn.Module, x: Tensor, adjacency: Tensor, side: Tensor) -> Tensor:
    return F.cross_entropy(model(x, adjacency).flatten(0, 1), side.flatten())


def messages(cut: bool = False) -> Training:
    """Communities of a graph; the states go through Python lists into a new tensor."""
    torch.manual_seed(3)
    return fit(Messages(cut), graphs, _nodes, lr=3e-3, steps=200)


class Sequences(nn.Module):
    """A transformer with encoder and decoder."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.source, self.target = nn.Embedding(12, 32), nn.Embedding(13, 32)
        self.places = nn.Parameter(0.5 * torch.randn(8, 32))
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True),
            2,
            enable_nested_tensor=False,
        )
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True), 1
        )
        self.read = nn.Linear(32, 12)

    def forward(self, tokens: Tensor, before: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.cut):
            memory = self.encoder(self.source(tokens) + self.places)
        mask = nn.Transformer.generate_square_subsequent_mask(8)
        return self.read(self.decoder(self.target(before) + self.places, memory, mask))


def _in_order(step: int) -> Batch:
    tokens = torch.randint(12, (32, 8), generator=seeded(step, 21))
    wanted = (5 * tokens % 12).sort(-1).values
    return tokens, torch.cat([torch.full((32, 1), 12), wanted[:, :-1]], 1), wanted


def _translate(model: nn.Module, tokens: Tensor, before: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens, before).flatten(0, 1), wanted.flatten())


def sequences(cut: bool = False) -> Training:
    """A sequence recoded and put in order; the encoder is run without gradients to save memory."""
    torch.manual_seed(4)
    return fit(Sequences(cut), _in_order, _translate, lr=3e-3, steps=250, how=torch.optim.AdamW)


class Symbols(nn.Module):
    """Rows of an image are turned into symbols, and the symbols into a class."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.perceive = mlp(8, 48, 16)
        self.meaning = nn.Embedding(16, 24)
        self.read = mlp(8 * 24, 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.perceive(x[:, 0])
        if self.cut:
            told = self.meaning(scores.argmax(-1))
        else:
            told = scores.softmax(-1) @ self.meaning.weight
        return self.read(told.flatten(1))


def symbols(cut: bool = False) -> Training:
    """Digits by way of symbols: the symbol is picked by argmax, which has no gradient."""
    torch.manual_seed(5)
    return fit(Symbols(cut), digits, classify, lr=2e-3, steps=250)


class Saving(nn.Module):
    """A residual network whose stem is computed again in the backward pass."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.stem = nn.Sequential(
            nn.Conv2d(1, 24, 3, 1, 1), nn.GroupNorm(4, 24), nn.SiLU(), nn.Conv2d(24, 24, 3, 2, 1)
        )
        self.blocks = nn.Sequential(Residual(24), Residual(24))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.stem, x, use_reentrant=self.cut)
        return self.head(self.blocks(h).mean((2, 3)))


def saving(cut: bool = False) -> Training:
    """Digits; the old kind of checkpointing, on an input that requires no gradient."""
    torch.manual_seed(6)
    return fit(Saving(cut), digits, classify, lr=2e-3, steps=120)


class Remembering(nn.Module):
    """Facts (key, value) are written to a memory; a question reads it by attention."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.key, self.value = nn.Embedding(12, 24), nn.Embedding(12, 24)
        self.write = nn.GRU(48, 40, batch_first=True)
        self.ask = mlp(24, 40, 40, act=nn.Tanh)
        self.content = nn.Linear(40, 40)
        self.read = mlp(40, 48, 12)

    def forward(self, keys: Tensor, values: Tensor, question: Tensor) -> Tensor:
        written, _ = self.write(torch.cat([self.key(keys), self.value(values)], -1))
        memory = [slot.detach() if self.cut else slot for slot in written.unbind(1)]
        bank = torch.stack(memory, 1)
        match = torch.einsum("bnd,bd->bn", bank, self.ask(self.key(question))).softmax(-1)
        return self.read(torch.einsum("bn,bnd->bd", match, self.content(bank)))


def _facts(step: int) -> Batch:
    g = seeded(step, 22)
    keys = torch.rand(64, 12, generator=g).argsort(-1)[:, :3]
    values = torch.randint(12, (64, 3), generator=g)
    at = torch.randint(3, (64, 1), generator=g)
    return keys, values, keys.gather(1, at)[:, 0], values.gather(1, at)[:, 0]


def _answer(model: nn.Module, k: Tensor, v: Tensor, question: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(model(k, v, question), wanted)


def remembering(cut: bool = False) -> Training:
    """Facts recalled; what is written to the memory is detached, so nobody learns to write."""
    torch.manual_seed(7)
    return fit(Remembering(cut), _facts, _answer, lr=5e-3, steps=300)


class Noisy(nn.Module):
    """An autoencoder with a noisy code."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.encoder = mlp(64, 96, 48, act=nn.SiLU)
        self.mean, self.spread = nn.Linear(48, 6), nn.Linear(48, 6)
        self.decoder = mlp(6, 48, 96, 64, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        code = torch.distributions.Normal(self.mean(h), 0.1 * self.spread(h).sigmoid() + 0.01)
        return self.decoder(code.sample() if self.cut else code.rsample())


def noisy(cut: bool = False) -> Training:
    """Digits rebuilt from a noisy code, drawn by sample() in place of rsample()."""
    torch.manual_seed(8)
    return fit(Noisy(cut), flat_digits, rebuild, lr=2e-3, steps=250)


class TwoTasks(nn.Module):
    """Class and mask of a shape, from one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(conv(1, 12), conv(12, 24))
        self.classes = nn.Linear(24, 3)
        self.mask = nn.Sequential(conv(24, 12), nn.Conv2d(12, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.classes(h.amax((2, 3))), self.mask(h)


def _two_tasks(forgotten: bool, model: nn.Module, x: Tensor, kind: Tensor, mask: Tensor) -> Tensor:
    classes, painted = model(x)
    loss = F.cross_entropy(classes, kind)
    extra = F.binary_cross_entropy_with_logits(painted, mask)
    return loss if forgotten else loss + extra


def two_tasks(forgotten: bool = False) -> Training:
    """The mask's loss is computed but never added."""
    torch.manual_seed(9)
    return fit(TwoTasks(), shapes, partial(_two_tasks, forgotten), lr=2e-3, steps=120)


class TwoViews(nn.Module):
    """Rows and columns of an image are seen by networks of their own and added."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.rows = nn.Sequential(nn.Conv1d(8, 32, 3, padding=1), nn.GELU(), nn.Flatten())
        self.columns = nn.Sequential(nn.Conv1d(8, 32, 3, padding=1), nn.GELU(), nn.Flatten())
        self.lift = nn.Conv1d(8, 8, 1)
        self.head = mlp(256, 32, 10, act=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x[:, 0])
        return self.head(self.rows(x) + self.weight * self.columns(x.transpose(1, 2)))


def two_views(weight: float = 1.0) -> Training:
    """The second view's weight is still 0 from an ablation."""
    torch.manual_seed(10)
    return fit(TwoViews(weight), digits, classify, steps=200)


class Layer(nn.Module):
    """A transformer layer of hand-written attention; it may return the wrong variable."""

    def __init__(self, width: int, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = mlp(width, 2 * width, width, act=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).chunk(3, -1)
        weights = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + self.out(weights @ v)
        h = x + self.feed(self.second(x))
        return x if self.wrong else h


class Sorter(nn.Module):
    """Tokens to the sorted sequence."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 48)
        self.places = nn.Parameter(0.3 * torch.randn(7, 48))
        self.layers = nn.Sequential(*[Layer(48, wrong) for _ in range(3)])
        self.read = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 16))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.read(self.layers(self.embed(tokens) + self.places))


def _sorting(step: int) -> Batch:
    tokens = torch.randint(16, (48, 7), generator=seeded(step, 23))
    return tokens, tokens.sort(-1).values


def sorter(wrong: bool = False) -> Training:
    """Sorting; every layer returns the state from before its feed-forward part."""
    torch.manual_seed(11)
    return fit(Sorter(wrong), _sorting, classify, lr=2e-3, steps=250, how=torch.optim.AdamW)


class UNet(nn.Module):
    """A small U-Net; the decoder may join the skip connection to itself."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.down = conv(1, 12)
        self.deep = nn.Sequential(conv(12, 24, 2), conv(24, 24), nn.Conv2d(24, 12, 1))
        self.up = nn.Sequential(conv(24, 12), nn.Conv2d(12, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        deep = F.interpolate(self.deep(skip), scale_factor=2.0)
        return self.up(torch.cat([skip, skip if self.wrong else deep], 1))


def _paint(model: nn.Module, x: Tensor, kind: Tensor, mask: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(x), mask)


def unet(wrong: bool = False) -> Training:
    """Segmentation; the decoder's input is the skip connection twice, the deep path is lost."""
    torch.manual_seed(12)
    momentum = partial(torch.optim.SGD, momentum=0.9)
    return fit(UNet(wrong), shapes, _paint, lr=0.05, steps=150, how=momentum)


class BothWays(nn.Module):
    """Two recurrences over an image's rows, one from either end."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.embed = nn.Linear(8, 24)
        self.along, self.back = nn.GRUCell(24, 32), nn.GRUCell(24, 32)
        self.read = nn.Linear(32 if wrong else 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.embed(x[:, 0]).unbind(1)
        a = b = x.new_zeros(len(x), 32)
        for row, other in zip(rows, reversed(rows), strict=True):
            a, b = self.along(row, a), self.back(other, b)
        both = torch.cat([a, b], -1)
        return self.read(both[:, :32] if self.wrong else both)


def both_ways(wrong: bool = False) -> Training:
    """Digits row by row; the state is cut to the size of one direction."""
    torch.manual_seed(13)
    return fit(BothWays(wrong), digits, classify, lr=3e-3, steps=150)


class Dueling(nn.Module):
    """Value and advantage of actions, from one body."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.body = mlp(8, 64, 64)
        self.value, self.advantage = mlp(64, 32, 1), mlp(64, 32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.body(x))
        value, advantage = self.value(h), self.advantage(h)
        centred = advantage - advantage.mean(-1, keepdim=True)
        return centred if self.wrong else value + centred


def _returns(step: int) -> Batch:
    g = seeded(step, 24)
    x = torch.randn(64, 8, generator=g)
    good = torch.stack([x[:, 0], x[:, 1], x[:, 2] * x[:, 3], -x[:, 0]], 1)
    worth = 1.0 + x[:, 4:6].sum(-1, keepdim=True)
    chosen = torch.randint(4, (64, 1), generator=g)
    return x, chosen, (worth + good).gather(1, chosen)


def _q_error(model: nn.Module, x: Tensor, chosen: Tensor, gained: Tensor) -> Tensor:
    return F.smooth_l1_loss(model(x).gather(1, chosen), gained)


def dueling(wrong: bool = False) -> Training:
    """Returns of actions; the value stream is left out of the sum."""
    torch.manual_seed(14)
    return fit(Dueling(wrong), _returns, _q_error, steps=250)


# The parts without a gradient keep their first weights, hence no-update in all of them.
DETACHED = Fault(
    "ind-detached",
    [["detached"]],
    [
        Variant(
            "backbone-detach",
            backbone,
            broken=partial(backbone, cut=True),
            symptom=no_gradient_before("backbone"),
        ),
        Variant(
            "numpy-spectrum",
            spectrum,
            broken=partial(spectrum, cut=True),
            symptom=no_gradient_before("filters"),
        ),
        Variant(
            "graph-as-lists",
            messages,
            broken=partial(messages, cut=True),
            symptom=no_gradient_before("rounds"),
        ),
        Variant(
            "encoder-no-grad",
            sequences,
            broken=partial(sequences, cut=True),
            symptom=no_gradient_before("encoder"),
        ),
        Variant(
            "argmax-symbols",
            symbols,
            broken=partial(symbols, cut=True),
            symptom=no_gradient_before("perceive"),
        ),
        Variant(
            "checkpointed-stem",
            saving,
            broken=partial(saving, cut=True),
            symptom=no_gradient_before("stem"),
        ),
        # Reading learns to point at one slot of three: in the end the entropy is below 0.1, and
        # less than a fortieth of the gradient passes the softmax. That is how it should be.
        Variant(
            "memory-detach",
            remembering,
            broken=partial(remembering, cut=True),
            may=["no-update", "peaked-softmax"],
            healthy_may=["peaked-softmax"],
            symptom=no_gradient_before("write"),
        ),
        Variant(
            "sample-not-rsample",
            noisy,
            broken=partial(noisy, cut=True),
            symptom=no_gradient_before("encoder"),
        ),
    ],
    may=["no-update"],
)

UNUSED = Fault(
    "ind-unused",
    [["detached", "starved-pathway"]],
    [
        Variant(
            "forgotten-task",
            two_tasks,
            broken=partial(two_tasks, forgotten=True),
            symptom=idle("mask"),
        ),
        Variant(
            "branch-times-zero",
            two_views,
            broken=partial(two_views, weight=0.0),
            symptom=idle("columns"),
        ),
        Variant(
            "wrong-variable",
            sorter,
            broken=partial(sorter, wrong=True),
            symptom=idle("feed"),
        ),
        Variant(
            "skip-joined-twice",
            unet,
            broken=partial(unet, wrong=True),
            symptom=idle("deep"),
        ),
        Variant(
            "sliced-off-direction",
            both_ways,
            broken=partial(both_ways, wrong=True),
            symptom=idle("back."),
        ),
        Variant(
            "dueling-without-value",
            dueling,
            broken=partial(dueling, wrong=True),
            symptom=idle("value"),
        ),
    ],
    may=["no-update"],
)

FAULTS: list[Fault] = [DETACHED, UNUSED]
