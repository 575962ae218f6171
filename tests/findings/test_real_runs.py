"""The rules on real runs: small models trained for a second, healthy and with a known fault."""

import math

import pytest
import torch
from torch import nn

import gradscope
from gradscope.findings import analyze
from tests.reference import zoo


def adam(lr=1e-3):
    return lambda model: torch.optim.Adam(model.parameters(), lr)


def sgd(lr=0.1, momentum=0.9):
    return lambda model: torch.optim.SGD(model.parameters(), lr, momentum)


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(model, optimizer, loss_of, steps=150, every=4, scheduler=None):
    with gradscope.attach(model, optimizer=optimizer, out=None, every=every) as scope:
        for step in range(steps):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            optimizer.step()
            scope.log(loss=loss)
            if scheduler is not None:
                scheduler.step()
    assert not scope.run().meta["errors"]
    return scope.run()


def findings(make, optimizer, loss_of, steps=150, every=4):
    torch.manual_seed(0)
    model = make()
    return analyze(train(model, optimizer(model), loss_of, steps, every))


he = math.sqrt(2)
images = {"inputs": 256, "shape": (1, 16, 16), "batch": 32}

HEALTHY = {
    "MLP, Adam": (lambda: zoo.mlp(4, gain=he), adam(), zoo.clusters()),
    "MLP at torch's default init": (lambda: zoo.mlp(6), adam(), zoo.clusters()),
    "MLP, SGD": (lambda: zoo.mlp(4, gain=he), sgd(), zoo.clusters()),
    "tanh MLP": (lambda: zoo.mlp(4, activation=nn.Tanh), sgd(), zoo.clusters()),
    "two sigmoid layers": (lambda: zoo.mlp(2, activation=nn.Sigmoid), adam(), zoo.clusters()),
    # Biases before batch norm have no gradient but rounding.
    "batch norm": (lambda: zoo.mlp(6, norm=True), sgd(), zoo.clusters()),
    "residual MLP": (lambda: zoo.ResidualMLP(8), adam(), zoo.clusters()),
    "zero-initialised residual branches": (
        lambda: zoo.ResidualMLP(8, zero=True),
        adam(),
        zoo.clusters(),
    ),
    "residual conv net": (lambda: zoo.ConvNet(stages=2), sgd(), zoo.clusters(**images), 40, 2),
    "plain conv net": (
        lambda: zoo.ConvNet(stages=2, residual=False),
        sgd(),
        zoo.clusters(**images),
        40,
        2,
    ),
    "transformer, pre-norm": (lambda: zoo.Transformer(), adam(3e-3), zoo.reverse(), 100, 5),
    "transformer, post-norm": (
        lambda: zoo.Transformer(pre=False),
        adam(1e-3),
        zoo.reverse(),
        100,
        5,
    ),
    "transformer at std 0.02, causal": (
        lambda: zoo.Transformer(std=0.02, causal=True),
        adam(3e-3),
        zoo.reverse(),
        100,
        5,
    ),
    "stacked latent attention": (
        lambda: zoo.StackedAttention(4, query="plain", latent=True),
        adam(3e-3),
        zoo.lookup(),
        150,
        6,
    ),
    "stacked attention with a residual query": (
        lambda: zoo.StackedAttention(4, query="residual"),
        adam(3e-3),
        zoo.lookup(),
        150,
        6,
    ),
    # Converged to a loss of 1e-4: every gradient small, attention and logits saturated.
    "learned by heart": (lambda: zoo.mlp(4), adam(3e-3), zoo.fixed(), 500, 10),
    "GRU cell": (lambda: zoo.CellLoop(nn.GRUCell), adam(1e-2), zoo.recall(), 150, 5),
}


# It learns, and yet a vector is all that one layer tells the next.
NARROW = {"stacked attention with a residual query": ["information-bottleneck"]}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_raises_no_alarm(name):
    alarms = [f.rule for f in findings(*HEALTHY[name]) if f.severity != "info"]
    assert alarms == NARROW.get(name, [])


def test_warm_up_from_zero_raises_no_alarm():
    make, optimizer, task = HEALTHY["MLP, Adam"]
    made = []

    def scheduled(model):
        made.append(optimizer(model))
        return made[0]

    class WarmUp:
        def step(self):
            self.at = getattr(self, "at", 0) + 1
            for group in made[0].param_groups:
                group["lr"] = 1e-3 * min(1, self.at / 50)

    torch.manual_seed(0)
    model = make()
    chosen = scheduled(model)
    chosen.param_groups[0]["lr"] = 0.0
    run = train(model, chosen, task, 150, scheduler=WarmUp())
    assert run.scalars()["lr"].iloc[0] == 0
    assert [f for f in analyze(run) if f.severity != "info"] == []


def set_weights(model, part, value):
    for name, p in model.named_parameters():
        if part in name:
            nn.init.normal_(p, std=value) if value else nn.init.zeros_(p)
    return model


class Branch(nn.Module):
    """A branch whose output is multiplied by next to nothing."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(16, 32), nn.Linear(32, 4)
        self.branch, self.main = (
            zoo.mlp(1, inputs=32, classes=32),
            zoo.mlp(1, inputs=32, classes=32),
        )

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.head(self.main(x) + 1e-5 * self.branch(x))


class Difference(nn.Module):
    """The same linear head with and without a correction: what comes from the trunk cancels."""

    def __init__(self):
        super().__init__()
        self.trunk, self.side = zoo.mlp(2, classes=32), nn.Linear(16, 32)
        self.head = zoo.mlp(1, inputs=32, activation=nn.Softplus)

    def forward(self, x):
        z = self.trunk(x)
        return self.head(z + 0.1 * self.side(x)) - self.head(z)


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = zoo.mlp(1, classes=32), zoo.mlp(1, inputs=32)

    def forward(self, x):
        return self.decoder(self.encoder(x).detach())


class RootOfZero(nn.Module):
    """√0 from some step on: finite forward, infinite derivative."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.calls = zoo.mlp(2, classes=32), nn.Linear(32, 4), 0

    def forward(self, x):
        self.calls += 1
        z = self.body(x)
        return self.head(z + torch.sqrt((0 * z).abs()) if self.calls > 81 else z)


def spiked(model, step):
    return zoo.clusters()(model, step) * (1e3 if step == 80 else 1.0)


def dead(model):
    model[4].bias.data.fill_(-100)
    return model


FAULTY = {
    "sigmoid MLP, SGD": (
        "vanishing-gradient",
        "critical",
        ("0", "1"),  # the first layer, or its activation
        (lambda: zoo.mlp(8, activation=nn.Sigmoid), sgd(), zoo.clusters()),
    ),
    "sigmoid MLP, Adam": (
        "vanishing-gradient",
        "warning",
        "0",
        (lambda: zoo.mlp(8, activation=nn.Sigmoid), adam(), zoo.clusters()),
    ),
    "16 ReLU layers at torch's default init": (
        "vanishing-gradient",
        "critical",
        ("0", "1"),  # the first layer, or its activation
        (lambda: zoo.mlp(16), sgd(0.03), zoo.clusters()),
    ),
    "plain stack of six attention layers": (
        "vanishing-gradient",
        "critical",
        "layers.0",
        (lambda: zoo.StackedAttention(6), sgd(0.05, 0), zoo.lookup()),
    ),
    "large init": (
        "exploding-gradient",
        "warning",
        ("0", "1"),  # the first layer, or its activation
        (lambda: zoo.mlp(10, gain=5.0), adam(), zoo.clusters()),
    ),
    "one batch with a loss 1000 times as large": (
        "exploding-gradient",
        "critical",
        "",
        (lambda: zoo.mlp(4, gain=he), sgd(0.1, 0), spiked, 120, 2),
    ),
    "√0": (
        "non-finite",
        "critical",
        "body",
        (RootOfZero, sgd(0.05, 0), zoo.clusters(), 120, 3),
    ),
    "attention at temperature 0.001": (
        "peaked-softmax",
        "warning",
        "layers.0.attn.softmax",
        (lambda: zoo.Transformer(2, temperature=1e-3), adam(), zoo.reverse(), 120, 6),
    ),
    "attention at temperature 100,000": (
        "diffuse-softmax",
        "warning",
        "layers.0.attn.softmax",
        (
            lambda: zoo.Transformer(1, temperature=1e5),
            adam(),
            zoo.reverse(batch=8),
            300,
            10,
        ),
    ),
    "a head that subtracts itself": (
        "cancelling-fork",
        "warning",
        "trunk",
        (Difference, adam(), zoo.clusters()),
    ),
    "a branch that hardly counts": (
        "starved-pathway",
        "warning",
        "",
        (Branch, adam(), zoo.clusters()),
    ),
    "half of the model not in the optimizer": (
        "not-in-optimizer",
        "critical",
        "0.weight",
        (
            lambda: zoo.mlp(4),
            lambda m: torch.optim.Adam(m[4:].parameters(), 1e-3),
            zoo.clusters(),
        ),
    ),
    "a learning rate of 1e-12": (
        "no-update",
        "critical",
        "0.weight",
        (lambda: zoo.mlp(4), adam(1e-12), zoo.clusters()),
    ),
    "a detached encoder": (
        "detached",
        "critical",
        "encoder.0.weight",
        (Detached, adam(), zoo.clusters()),
    ),
    "a layer of dead ReLUs": (
        "dead-units",
        "critical",
        "",
        (lambda: dead(zoo.mlp(4)), adam(), zoo.clusters()),
    ),
    "SGD at a learning rate of 10": (
        "update-too-large",
        "critical",
        "",
        (lambda: zoo.mlp(4, gain=he), sgd(10.0, 0), zoo.clusters()),
    ),
    "Adam at a learning rate of 1": (
        "update-too-large",
        "critical",
        "",
        (lambda: zoo.mlp(4), adam(1.0), zoo.clusters()),
    ),
}


STRUCTURE = ["information-bottleneck"]  # holds whatever becomes of the training


@pytest.mark.parametrize("name", FAULTY)
def test_a_known_fault_is_found_where_it_is(name):
    rule, severity, site, setup = FAULTY[name]
    found = findings(*setup)
    mine = [f for f in found if f.rule == rule]
    assert mine, [f.message for f in found]
    assert mine[0].severity == severity
    assert mine[0].site.startswith(site)
    # Whatever else is found at this severity is explained by it, or explains it.
    others = [f for f in found if f.severity != "info" and f.rule not in (rule, *STRUCTURE)]
    explained = {f.rule for f in others if f.cause} | {f.cause for f in found}
    assert {f.rule for f in others} <= explained


def test_divergence_is_one_story():
    found = findings(lambda: zoo.mlp(10, gain=5.0), sgd(0.01), zoo.clusters(), 100, 2)
    assert [(f.rule, f.cause) for f in found] == [
        ("exploding-gradient", ""),
        ("update-too-large", "exploding-gradient"),
        ("non-finite", "exploding-gradient"),
    ]
    assert {f.severity for f in found} == {"critical"}
