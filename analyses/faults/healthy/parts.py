"""Parts frozen, tied, sparse or zero on purpose."""

from functools import partial

import torch
from torch import Tensor, nn

from analyses.faults import setups
from analyses.faults.case import Healthy
from analyses.faults.training import Training


def frozen(make_training: Training, like: tuple[str, ...]) -> Training:
    """`requires_grad_(False)` for some, and the optimizer holds the others."""
    model = make_training.model
    for name, p in model.named_parameters():
        if name.startswith(like):
            p.requires_grad_(False)
    old = make_training.optimizer
    trainable = [p for p in model.parameters() if p.requires_grad]
    make_training.optimizer = type(old)(trainable, **old.defaults)
    return make_training


class LowRank(nn.Module):
    """W x + B A x with W frozen, B starting at 0 (LoRA)."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def low_rank() -> Training:
    """Adapters on a network that was trained for other labels."""
    training = setups.mlp(depth=2, optimizer="adam", lr=2e-3)
    for step in range(150):
        training.step(training, 10_000 + step)
    model = training.model
    for k, layer in enumerate(model):  # type: ignore[arg-type, var-annotated]
        if isinstance(layer, nn.Linear):
            model[k] = LowRank(layer)  # type: ignore[operator]
    trainable = [p for p in model.parameters() if p.requires_grad]
    training.optimizer = torch.optim.Adam(trainable, lr=3e-3)
    usual = training.batch
    training.batch = lambda step: (usual(step)[0], 9 - usual(step)[1])  # another task
    return training


class Bag(nn.Module):
    """Mean of embeddings of words, of which most are rare."""

    def __init__(self, words: int = 500, dim: int = 16, *, sparse: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, dim, sparse=sparse)
        self.head = nn.Linear(dim, 4)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.embed(words).mean(1))


def bag(sparse: bool) -> Training:
    """Zipf's law: most words are seen once in a hundred steps, or never."""
    torch.manual_seed(0)
    weights = 1 / torch.arange(1, 501).float()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(step)
        words = torch.multinomial(weights, 32 * 10, replacement=True, generator=random)
        words = words.view(32, 10)
        return words, words.amin(1) % 4

    model = Bag(sparse=sparse)
    optimizer = (
        torch.optim.SparseAdam([model.embed.weight], lr=1e-2)
        if sparse
        else torch.optim.Adam(model.parameters(), lr=1e-2)
    )
    training = Training(model, batch, setups.cross_entropy, optimizer)
    if sparse:
        training.others = [torch.optim.Adam(model.head.parameters(), lr=1e-2)]

        def step(training: Training, number: int) -> dict[str, Tensor]:
            loss = training.loss_at(number)
            loss.backward()
            for each in (training.optimizer, *training.others):
                each.step()
            for each in (training.optimizer, *training.others):
                each.zero_grad()
            return {"loss": loss.detach()}

        training.step = step
    return training


def rezero(blocks: int = 6) -> Training:
    """Residual branches times a learned scale that starts at 0."""
    training = setups.residual_mlp(blocks=blocks, optimizer="adam", lr=3e-3)
    model = training.model
    model.scale = nn.ParameterList(torch.zeros(1) for _ in range(blocks))
    training.optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return training


def zero_last(training: Training) -> Training:
    """The output layer starts at 0."""
    last = [m for m in training.model.modules() if isinstance(m, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return training


def zero_branches(depth: int = 3) -> Training:
    """Every branch of a transformer ends in a layer that starts at 0."""
    training = setups.transformer(depth=depth)
    for block in training.model.blocks:  # type: ignore[union-attr]
        nn.init.zeros_(block.attention.out.weight)
        nn.init.zeros_(block.ff[-1].weight)
    return training


def small_early_gradients() -> Training:
    """Inputs a hundred times too small for their weights' taste: tiny gradients, and Adam."""
    training = setups.mlp(depth=5, gain=1.0, optimizer="adam", lr=1e-3)
    usual = training.loss
    training.loss = lambda model, *batch: 1e-4 * usual(model, *batch)
    return training


RUNS = Healthy(
    "parts",
    {
        "frozen-first-layers": lambda: frozen(
            setups.mlp(depth=4, optimizer="adam", lr=2e-3), ("0", "2")
        ),
        "frozen-blocks": lambda: frozen(setups.transformer(depth=3), ("blocks.0",)),
        "low-rank-adapters": low_rank,
        "embeddings-rarely-used": partial(bag, False),
        "sparse-embeddings": partial(bag, True),
        "rezero": rezero,
        "zero-last-layer": lambda: zero_last(setups.mlp(depth=3)),
        "zero-last-layer-conv": lambda: zero_last(setups.conv(optimizer="adam", lr=2e-3)),
        "zero-branches": zero_branches,
        "small-loss-adam": small_early_gradients,
        "frozen-conv-stem": lambda: frozen(setups.conv(depth=3), ("stem",)),
        "rezero-10": partial(rezero, 10),
    },
)
