"""Forks equal what separate copies of the tensor, one for every reader, receive."""

import copy

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.reference.cases import CASES
from tests.reference.gradients import fork_terms, fork_values, output_identities
from tests.reference.networks import data, weighted
from tests.reference.recording import fork_at, record, train_steps

# Inside recurrent networks and checkpoints, readers of a copy are not the graph's edges.
FORKING = [
    "transformer encoder",
    "transformer encoder, dropout",
    "transformer encoder, norm first",
    "transformer decoder",
    "transformer decoder, dropout",
    "resnet",
    "unet",
    "dict",
    "dataclass",
    "namedtuple",
    "nested tuple",
    "chunks",
    "functional forks",
    "complex",
    "low-rank adapters",
    "GPT-2, eager",
    "Llama, grouped queries, sdpa",
    "BERT, padded, eager",
    "ViT, sdpa",
]


def assert_fork(found, expected):
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
    assert found["projection"] == pytest.approx(expected["projection"], rel=1e-4, abs=1e-6)
    assert found["norms"].keys() == expected["norms"].keys()
    for consumer, norms in expected["norms"].items():
        assert found["norms"][consumer] == pytest.approx(norms, rel=1e-5), consumer
    for consumer, cosines in expected["cosines"].items():
        assert found["cosines"][consumer] == pytest.approx(cosines, rel=1e-4, abs=1e-6), consumer
    assert found["cancellation"] == pytest.approx(expected["cancellation"], abs=1e-5)


def assert_invariants(run):
    """Projections sum to 1, |cosine| ≤ 1, cancellation in [0, 1]; the triangle inequality."""
    table = run.frame("fork")
    for (_step, _site), fork in table.groupby(["step", "site"]):
        by = fork.set_index(["edge", "metric"])["value"]
        edges = [e for e in fork["edge"].unique() if e]
        total = by["", "grad_norm"]
        norms = [by[e, "grad_norm"] for e in edges]
        assert len(edges) >= 2
        assert total <= sum(norms) * (1 + 1e-5)
        assert 0 <= by["", "cancellation"] <= 1
        assert by["", "cancellation"] == pytest.approx(1 - total / sum(norms), abs=1e-5)
        if total == 0:
            continue
        # A nearly cancelled sum leaves few digits of the projections.
        loss_of_digits = sum(norms) / total
        projections = [by[e, "projection"] for e in edges]
        assert sum(projections) == pytest.approx(1, abs=1e-5 * loss_of_digits**2)
        for e in edges:
            if (e, "cosine") in by.index:
                assert -1 - 1e-6 <= by[e, "cosine"] <= 1 + 1e-6
                expected = by[e, "cosine"] * by[e, "grad_norm"] / total
                assert by[e, "projection"] == pytest.approx(
                    expected, rel=1e-4, abs=1e-5 * loss_of_digits
                )


@pytest.mark.parametrize("name", FORKING)
def test_every_fork_of_a_module_output(name):
    case = CASES[name]
    model, _ = case.pair()
    twin = copy.deepcopy(model)

    def loss_of():
        torch.manual_seed(0)
        return case.loss(twin, 0)

    run = record(model, lambda optimizer: train_steps(model, case.loss, optimizer, 1))
    recorded = set(run.frame("fork")["site"])
    identities = output_identities(twin, loss_of)
    checked = 0
    for tensor in set(identities.values()):
        names = [name for name, identity in identities.items() if identity == tensor]
        terms = fork_terms(twin, loss_of, site=names[0])  # the first to return it
        edges = sum(len(grads) for grads in terms.values())
        found = recorded & set(names)
        assert len(found) == (1 if edges > 1 else 0), (names, terms.keys())
        if found:
            checked += 1
            assert_fork(fork_at(run, found.pop()), fork_values(terms))
    assert checked


def test_input_that_requires_grad():
    case = CASES["functional forks"]
    model, _ = case.pair()
    twin = copy.deepcopy(model)

    class Residual(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.skip = nn.Linear(4, 12)

        def forward(self, x):
            return self.inner(x) + self.skip(x) * x.mean()

    torch.manual_seed(3)
    model = Residual(model)
    twin = Residual(twin)
    twin.load_state_dict(model.state_dict())
    x = data(0, 2, 3, 4).requires_grad_()
    y = x.detach().clone().requires_grad_()
    run = record(model, lambda opt: train_steps(model, lambda m, _: weighted(m(y)), opt, 1))
    expected = fork_values(fork_terms(twin, lambda: weighted(twin(x)), tensor=x))
    assert set(expected["projection"]) == {"inner.a", "skip", "(output)"}
    assert_fork(fork_at(run, "(input)"), expected)


@pytest.mark.parametrize("site", ["embed.weight", "mix.weight"])
def test_parameters_read_several_times(site):
    """Tied weights, and a weight of a module that is called twice."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.mix = nn.Linear(4, 4)
            self.out = nn.Linear(4, 7, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, tokens):
            x = self.embed(tokens)
            return self.out(torch.tanh(self.mix(torch.tanh(self.mix(x)))))

    torch.manual_seed(0)
    model = Net()
    twin = copy.deepcopy(model)
    tokens = torch.tensor([[1, 2, 3, 1]])
    run = record(model, lambda o: train_steps(model, lambda m, _: weighted(m(tokens)), o, 1))
    parameter = dict(twin.named_parameters())[site]
    terms = fork_terms(twin, lambda: weighted(twin(tokens)), tensor=parameter)
    readers = {"embed.weight": {"embed", "out"}, "mix.weight": {"mix", "mix#1"}}
    assert terms.keys() == readers[site]
    assert_fork(fork_at(run, site), fork_values(terms))


class Square(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x):
        y = self.a(x)
        return y * y


def test_a_square_reads_its_tensor_twice():
    torch.manual_seed(0)
    model = Square()
    run = record(
        model, lambda o: train_steps(model, lambda m, s: m(data(s, 2, 3)).square().sum(), o, 1)
    )
    table = run.frame("fork", "projection")
    assert table["value"].tolist() == pytest.approx([0.5, 0.5])
    assert set(table["site"]) == {"a"}
    assert table["edge"].nunique() == 2
    assert fork_at(run, "a")["cancellation"] == pytest.approx(0, abs=1e-6)


def test_terms_that_cancel():
    """x − tanh(x) near 0, and exactly x − x: nothing is left, and nothing is divided by 0."""

    class Net(nn.Module):
        def __init__(self, f):
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.f = f

        def forward(self, x):
            y = self.a(x)
            return self.f(y)

    torch.manual_seed(0)
    near = Net(lambda y: 1.5 * y - (y + 0.5 * y.tanh()))
    run = record(near, lambda o: train_steps(near, lambda m, s: weighted(m(data(s, 2, 3))), o, 1))
    assert_invariants(run)
    exact = Net(lambda y: (y * 2.0) - (y * 2.0) + 0.0 * y.detach())
    run = record(exact, lambda o: train_steps(exact, lambda m, s: m(data(s, 2, 3)).sum(), o, 1))
    fork = fork_at(run, "a")
    assert fork["grad_norm"] == 0
    assert fork["cancellation"] == 1
    assert run.frame("fork")["value"].isin([float("inf"), float("-inf")]).sum() == 0


def test_terms_work_against_each_other():
    """A negative projection: the small term points the other way. All numbers by hand."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)

        def forward(self, x):
            y = self.a(x)
            return 3 * y - y.clone()

    model = Net()
    run = record(model, lambda o: train_steps(model, lambda m, s: m(data(s, 1, 2)).sum(), o, 1))
    fork = fork_at(run, "a")
    table = run.frame("fork")
    projections = table[table["metric"] == "projection"]["value"]
    assert sorted(projections) == pytest.approx([-0.5, 1.5])
    assert sorted(fork["cosines"]["(output)"]) == pytest.approx([-1, 1])
    assert sorted(fork["norms"]["(output)"]) == pytest.approx([2**0.5, 3 * 2**0.5])
    assert fork["grad_norm"] == pytest.approx(2 * 2**0.5)
    assert fork["cancellation"] == pytest.approx(0.5)


class Weighted(nn.Module):
    """One tensor read by a list of functions, whose results are added."""

    FUNCTIONS = (
        lambda y: y * 2,
        lambda y: -y,
        torch.tanh,
        torch.relu,
        lambda y: y * y,
        lambda y: y.t() @ y @ torch.ones(3, 3),
        lambda y: torch.cat([y, y], 1).view(2, 3, 3).sum(0),
        lambda y: y.softmax(-1),
        lambda y: y[:2].sum() * torch.ones(3, 3),
    )

    def __init__(self, which):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.which = which

    def forward(self, x):
        y = self.a(x)
        return torch.stack([Weighted.FUNCTIONS[i](y) for i in self.which]).sum(0)


# Without the shrinking phase, which would cost minutes: the examples are small as they are.
@settings(max_examples=30, derandomize=True, phases=[Phase.generate])
@given(
    which=st.lists(st.integers(0, len(Weighted.FUNCTIONS) - 1), min_size=2, max_size=5),
    outside=st.booleans(),
)
def test_any_set_of_readers(which, outside):
    torch.manual_seed(0)
    model = Weighted(which)
    twin = copy.deepcopy(model)
    x = data(0, 3, 3)

    def loss_of(m):
        kept = []
        hook = m.a.register_forward_hook(lambda _m, _i, out: kept.append(out))
        loss = weighted(m(x))
        hook.remove()
        return loss + kept[0].square().sum() if outside else loss

    run = record(model, lambda o: train_steps(model, lambda m, _: loss_of(m), o, 1))
    assert_invariants(run)
    terms = fork_terms(twin, lambda: loss_of(twin), site="a")
    assert ("(outside)" in terms) == outside
    expected = fork_values(terms)
    if expected["cancellation"] < 1 - 1e-6:  # else nothing is left to project on
        assert_fork(fork_at(run, "a"), expected)


class Varying(nn.Module):
    """Other modules read the tensor in other steps; in some of them, only one does."""

    READERS = ("bc", "bd", "b", "bcd", "cd", "bc")

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(3, 3) for _ in range(4))

    def forward(self, x, step):
        y = self.a(x)
        return sum(getattr(self, name)(y).tanh() for name in self.READERS[step])


def test_readers_that_vary_from_step_to_step():
    torch.manual_seed(0)
    model = Varying()
    twin = copy.deepcopy(model)
    steps = len(Varying.READERS)

    def loss_of(m, step):
        return weighted(m(data(step, 4, 3), step))

    run = record(model, lambda o: train_steps(model, loss_of, o, steps))
    assert_invariants(run)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
    for step, readers in enumerate(Varying.READERS):
        terms = fork_terms(twin, lambda s=step: loss_of(twin, s), site="a")
        assert terms.keys() == set(readers)
        if len(readers) > 1:
            assert_fork(fork_at(run, "a", step), fork_values(terms))
        else:
            assert "a" not in set(run.frame("fork").query(f"step == {step}")["site"])
        optimizer.step()
        optimizer.zero_grad()


def test_micro_batches_add_up():
    """Over the micro-batches of a step a fork is the fork of all their gradients at once."""
    case = CASES["transformer encoder"]
    model, _ = case.pair()
    twin = copy.deepcopy(model)

    def train(optimizer):
        for micro in range(3):
            case.loss(model, micro).backward()
        optimizer.step()

    run = record(model, train)
    assert_invariants(run)
    together = {}
    for micro in range(3):
        terms = fork_terms(twin, lambda m=micro: case.loss(twin, m), site="layers.0")
        for consumer, grads in terms.items():
            together.setdefault(consumer, []).append(grads)
    joined = {
        consumer: [torch.cat(same) for same in zip(*grads, strict=True)]
        for consumer, grads in together.items()
    }
    assert_fork(fork_at(run, "layers.0"), fork_values(joined))
