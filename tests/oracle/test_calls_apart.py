"""Training code that calls the parts of a model one by one is measured like one forward pass."""

import copy

import pytest
import torch
from torch import nn

from tests.oracle.test_forks import assert_fork, assert_invariants
from tests.reference.gradients import fork_terms, fork_values
from tests.reference.networks import data, weighted
from tests.reference.recording import fork_at, record, train_steps

LOOP = "parts of the model called one by one"


class Parts(nn.Module):
    """Runs `steps(model, x)`, the same code that a training loop may run by itself."""

    def __init__(self, steps, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.steps = steps

    def forward(self, x):
        return self.steps(self, x)


def linear(n):
    return nn.ModuleList([nn.Linear(4, 4) for _ in range(n)])


def sigmoids(m, x):
    for layer in m.layers:
        x = torch.sigmoid(layer(x))
    return m.head(x)


def two_heads(m, x):
    h = m.trunk(x)
    return m.head(m.a(h).tanh() * m.b(h))


def skips(m, x):
    for layer in m.layers:
        x = x + layer(x).relu()
    return m.head(torch.cat([x, x * 2], -1)[..., :4])


def attention(m, x):
    memory = m.embed(x)
    h = memory.mean(-2, keepdim=True)
    for query in m.queries:
        p = torch.softmax(query(h) @ memory.transpose(-1, -2), -1)
        h = p @ memory
    return m.head(h)


def reads_a_shape(m, x):
    h = m.trunk(x).flatten(1)
    return m.head(m.a(h.view(-1, 4)) + m.b(h.view(-1, 4)))


def heads():
    sizes = {"trunk": (4, 4), "a": (4, 2), "b": (4, 2), "head": (2, 2)}
    return {name: nn.Linear(*size) for name, size in sizes.items()}


BUILT = {
    "sigmoids": lambda: Parts(sigmoids, layers=linear(5), head=nn.Linear(4, 2)),
    "two heads": lambda: Parts(two_heads, **heads()),
    "skips": lambda: Parts(skips, layers=linear(3), head=nn.Linear(4, 2)),
    "attention": lambda: Parts(
        attention, embed=nn.Linear(4, 4), queries=linear(3), head=nn.Linear(4, 2)
    ),
    "a shape": lambda: Parts(reads_a_shape, **heads()),
}


def pair(name):
    torch.manual_seed(0)
    model = BUILT[name]()
    return model, copy.deepcopy(model)


def whole(model, step):
    return weighted(model(data(step, 2, 3, 4)))


def apart(model, step):
    return weighted(model.steps(model, data(step, 2, 3, 4)))


def numbers(run):
    """All that was measured, but for the root's own output, which only its call hands out."""
    table = run.frame()
    table = table[(table["kind"] != "scalar") & (table["site"] != "(output)")]
    # What the root's forward pass computes is nobody's where the root is not called.
    for column in ("site", "edge"):
        table[column] = table[column].str.replace(r"\(output\)(?=:)", "(outside)", regex=True)
    return table.set_index(["step", "kind", "site", "edge", "metric"])["value"].to_dict()


@pytest.mark.supports(
    loop=LOOP, shows=["module gradients", "forks", "softmaxes", "parameters", "updates"]
)
@pytest.mark.parametrize("name", BUILT)
def test_every_number_as_in_one_forward_pass(name):
    model, twin = pair(name)
    one = record(twin, lambda o: train_steps(twin, whole, o, 3))
    parts = record(model, lambda o: train_steps(model, apart, o, 3))
    assert parts.meta["errors"] == one.meta["errors"] == []
    assert numbers(parts) == pytest.approx(numbers(one), rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", BUILT)
def test_sites_lie_as_deep_as_in_one_forward_pass(name):
    model, twin = pair(name)
    one = record(twin, lambda o: train_steps(twin, whole, o, 1))
    parts = record(model, lambda o: train_steps(model, apart, o, 1))
    below = [
        site.depth - one.sites[key].depth
        for key, site in parts.sites.items()
        if key in one.sites and site.depth >= 0
    ]
    assert len(below) > 4
    # All by the nodes between the last call's output and the loss.
    assert len(set(below)) == 1
    assert below[0] > 0


@pytest.mark.parametrize(("name", "site"), [("two heads", "trunk"), ("attention", "embed")])
def test_forks_between_calls(name, site):
    """Against separate copies of the tensor, one for every reader."""
    model, twin = pair(name)
    run = record(model, lambda o: train_steps(model, apart, o, 1))
    assert_invariants(run)
    torch.manual_seed(0)
    terms = fork_terms(twin, lambda: apart(twin, 0), site=site)
    assert_fork(fork_at(run, site), fork_values(terms))


class Hidden(nn.Module):
    """Returns what it reads itself, too."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        h = self.a(x)
        return h, self.b(h)


def test_a_tensor_read_inside_and_beyond():
    """Every reader is an edge: in the call, in another call, and two in the loss."""
    torch.manual_seed(0)
    model = Hidden()
    twin = copy.deepcopy(model)

    def loss_of(m, step):
        h, y = m(data(step, 3, 4))
        return weighted(m.c(h) + y) + h.square().sum() + h.exp().mean()

    run = record(model, lambda o: train_steps(model, loss_of, o, 2))
    assert_invariants(run)
    torch.manual_seed(0)
    terms = fork_terms(twin, lambda: loss_of(twin, 0), site="a")
    assert {reader: len(parts) for reader, parts in terms.items()} == {
        "b": 1,
        "c": 1,
        "(outside)": 2,
    }
    assert_fork(fork_at(run, "a"), fork_values(terms))


def test_two_passes_of_one_trunk_add_up():
    """Two views, two heads each: the forks are one site, whose gradients are all of theirs."""
    torch.manual_seed(0)
    model = BUILT["two heads"]()
    twin = copy.deepcopy(model)

    def views(m, step):
        one, two = (two_heads(m, data(view, 3, 4)) for view in (0, 1))
        return (one - two).square().sum() + weighted(one)

    run = record(model, lambda o: train_steps(model, views, o, 1))
    assert_invariants(run)
    kept = []
    for view in (0, 1):
        h = twin.trunk(data(view, 3, 4))
        copies = h.clone(), h.clone()
        kept.append((copies, twin.head(twin.a(copies[0]).tanh() * twin.b(copies[1]))))
    ((a1, b1), one), ((a2, b2), two) = kept
    loss = (one - two).square().sum() + weighted(one)
    a1, b1, a2, b2 = torch.autograd.grad(loss, (a1, b1, a2, b2))
    terms = {"a": [torch.cat([a1, a2])], "b": [torch.cat([b1, b2])]}
    assert_fork(fork_at(run, "trunk"), fork_values(terms))


def test_a_loss_that_autograd_grad_differentiates_has_its_readers_in_one_edge():
    """No backward pass announces itself: what reads a tensor beyond its call is their sum."""
    torch.manual_seed(0)
    model = Hidden()

    def train(optimizer):
        h, y = model(data(0, 3, 4))
        loss = weighted(y) + h.square().sum() + h.exp().mean()
        parameters = [p for p in model.parameters() if p is not model.c.weight]
        for p, g in zip(
            parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
        ):
            p.grad = g
        optimizer.step()

    run = record(model, train)
    assert set(fork_at(run, "a")["norms"]) == {"b", "(outside)"}
    assert len(fork_at(run, "a")["norms"]["(outside)"]) == 1


def test_structures_that_vary_from_step_to_step():
    """One head or two, in turns: every step says what it read."""
    torch.manual_seed(0)
    model = BUILT["two heads"]()

    def loss_of(m, step):
        h = m.trunk(data(step, 3, 4))
        return weighted(m.a(h)) if step % 2 else weighted(m.a(h)) + weighted(m.b(h))

    run = record(model, lambda o: train_steps(model, loss_of, o, 6))
    assert run.frame("fork").query("site == 'trunk'")["step"].unique().tolist() == [0, 2, 4]
    assert_invariants(run)


def test_training_is_the_same():
    for name in BUILT:
        model, twin = pair(name)
        record(model, lambda o, m=model: train_steps(m, apart, o, 4))
        train_steps(twin, apart, torch.optim.SGD(twin.parameters(), lr=0.01), 4)
        assert all(map(torch.equal, model.parameters(), twin.parameters()))
