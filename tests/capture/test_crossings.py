"""Pathways through a model's own names, once and over a training run."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradscope
from gradscope.capture.crossings import crossings
from gradscope.capture.listening import BACKWARD
from gradscope.models import build
from gradscope.tasks import Arrows


def case(name: str, layers: int = 3):
    """A reasoner on 16 scenes of arrows, in float64, and its closure."""
    torch.manual_seed(0)
    task = Arrows()
    model = build(name, task, layers=layers, hidden=16).double()
    scenes = task.scenes(16, 0)
    inputs = [x.double() if x.is_floating_point() else x for x in task.inputs(scenes)]

    def closure():
        return F.cross_entropy(model(*inputs), scenes.answer)

    return model, closure


def assert_near(found, expected):
    """To 1e-9 of its own size: single elements can be all rounding."""
    assert (found - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("name", ["san-residual", "san-anchored", "san-chain", "sla"])
def test_parts_of_parameters_add_up_to_autograd(name):
    model, closure = case(name)
    split = crossings(model, closure)
    gradients = torch.autograd.grad(closure(), list(model.parameters()))
    for (parameter, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        total = sum(split.component(parameter, k) for k in range(split.orders + 1))
        assert_near(total, gradient)


def test_parts_of_a_module_output_add_up_to_autograd():
    model, closure = case("sla")
    kept = {}
    handle = model.stack.layers[0].register_forward_hook(
        lambda module, args, output: kept.update(latent=output.latent)
    )
    loss = closure()
    handle.remove()
    (gradient,) = torch.autograd.grad(loss, [kept["latent"]])
    split = crossings(model, closure)
    total = sum(split.component("stack.layers.0.latent", k) for k in range(split.orders + 1))
    assert_near(total, gradient)


def test_what_can_cross_how_many():
    """The chain's first latent state reaches the answer over every softmax and no other way."""
    model, closure = case("san-chain")
    table = crossings(model, closure).frame().set_index(["site", "crossings"])["grad_norm"]
    first = table["stack.layers.0.latent"]
    assert first[3] > 0
    assert (first[:2] == 0).all()
    model, closure = case("sla")
    table = crossings(model, closure).frame().set_index(["site", "crossings"])["grad_norm"]
    assert (table["stack.layers.0.latent"] > 0).all()


def test_projections_sum_to_one():
    model, closure = case("sla")
    table = crossings(model, closure).frame()
    assert table.groupby("site")["projection"].sum().between(1 - 1e-9, 1 + 1e-9).all()


def test_the_limit_gathers_the_rest():
    model, closure = case("sla", layers=4)
    whole, cut = crossings(model, closure), crossings(model, closure, max_order=2)
    assert cut.open_ended and not whole.open_ended
    site = "stack.layers.0.latent"
    rest = sum(whole.component(site, k) for k in range(2, whole.orders + 1))
    assert_near(cut.component(site, 2), rest)


def test_a_closure_may_call_backward_and_nothing_is_left():
    model, closure = case("sla")
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()

    def with_backward():
        loss = closure()
        loss.backward()
        return loss

    crossings(model, with_backward)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.autograd.backward is BACKWARD.original


@pytest.mark.parametrize(
    ("closure", "words"),
    [
        (lambda model: None, "must return the loss"),
        (lambda model: torch.zeros(()), "no graph"),
        (lambda model: torch.ones((), requires_grad=True) * 2, "does not depend"),
    ],
)
def test_a_closure_without_a_loss_is_told(closure, words):
    model, _ = case("sla")
    with pytest.raises(gradscope.GradscopeError, match=words):
        crossings(model, lambda: closure(model))


def test_unknown_sites_are_named():
    model, closure = case("sla")
    with pytest.raises(gradscope.GradscopeError, match="matches no module"):
        crossings(model, closure, sites="nowhere.*")
    split = crossings(model, closure)
    with pytest.raises(gradscope.GradscopeError, match="no site 'nowhere'"):
        split.component("nowhere", 0)
    with pytest.raises(gradscope.GradscopeError, match="orders are 0 to 3"):
        split.component("answer", 9)


# -- over a training run ---------------------------------------------------------------


def trained(model, closure, watch=None, steps=7):
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    scope = None
    if watch is not None:
        scope = gradscope.attach(model, optimizer=optimizer, out=None, every=3)
        watch(scope)
    losses = []
    for _ in range(steps):
        loss = closure()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    if scope is None:
        return losses, None
    scope.close()
    return losses, scope.run()


def watch_everything(scope):
    scope.crossings(every=2)
    scope.pathway("latent", "stack.layers.0.latent", "stack.layers.*.from_previous", every=2)
    scope.pathway("softmax", "stack.layers.0.latent", "*:softmax", every=3)
    scope.effective_rank("stack.layers.*.content", every=2)


def test_training_is_the_same_bit_for_bit():
    bare, bare_closure = case("sla")
    watched, watched_closure = case("sla")
    losses, _ = trained(bare, bare_closure)
    same, run = trained(watched, watched_closure, watch_everything)
    assert all(torch.equal(a, b) for a, b in zip(losses, same, strict=True))
    for a, b in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)
    assert run.meta["unseen"] == [] and run.meta["errors"] == []


def test_recorded_sizes_are_those_of_the_single_pass():
    model, closure = case("sla")
    first = crossings(model, closure).frame()
    _, run = trained(model, closure, lambda scope: scope.crossings(every=2))
    table = run.frame("crossing")
    assert set(table["step"]) == {0, 2, 4, 6}
    recorded = table[(table["step"] == 0) & (table["edge"] != "")].set_index(
        ["site", "edge", "metric"]
    )["value"]
    for row in first.itertuples():
        for metric in ("grad_norm", "projection"):
            value = recorded[row.site, str(row.crossings), metric]
            assert value == pytest.approx(getattr(row, metric), rel=1e-9, abs=1e-25)


def test_mean_crossings_is_that_of_the_projections_even_past_the_limit():
    model, closure = case("sla", layers=4)
    site = "stack.layers.0.latent"
    means = []
    for limit in (8, 1):
        _, run = trained(
            model,
            closure,
            lambda scope, limit=limit: scope.crossings(every=100, max_order=limit),
            steps=1,
        )
        table = run.frame("crossing").set_index(["site", "metric", "edge"])["value"].sort_index()
        means.append(table[site, "mean_crossings", ""])
        if limit == 8:
            shares = table[site, "projection"]
            assert means[0] == pytest.approx(sum(int(k) * v for k, v in shares.items()))
        model, closure = case("sla", layers=4)
    assert means[1] == pytest.approx(means[0], rel=1e-9)


def test_a_pathway_and_the_rest_are_the_whole():
    model, closure = case("sla")
    _, run = trained(model, closure, watch_everything)
    shares = run.wide("pathway", "projection", edge=None)["stack.layers.0.latent"]
    together = shares["latent"] + shares["(rest) latent"]
    assert together.dropna().between(1 - 1e-9, 1 + 1e-9).all()
    # What crosses no softmax is the order 0 of the split by crossings.
    order0 = run.wide("crossing", "projection", edge="0")["stack.layers.0.latent"]
    both = shares["(rest) softmax"].dropna().index.intersection(order0.dropna().index)
    assert len(both) == 2  # steps 0 and 6
    assert shares["(rest) softmax"][both].tolist() == pytest.approx(order0[both].tolist())


def test_skip_or_branch_in_a_residual_block():
    """By hand: y = x + f(x), so the gradient at x through the skip is that at y."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.branch, self.skip = nn.Linear(3, 3), nn.Linear(3, 3), nn.Identity()

        def forward(self, x):
            x = self.stem(x)
            return x + self.branch(x)

    torch.manual_seed(0)
    model = Residual().double()
    x = torch.randn(4, 3, dtype=torch.float64)
    kept = {}
    handle = model.stem.register_forward_hook(lambda m, a, out: kept.update(x=out))
    y = model(x)
    handle.remove()
    y.retain_grad()
    y.square().sum().backward(inputs=[y])
    expected = (y.grad @ model.branch.weight).norm().item()
    model.zero_grad()
    _, run = trained(
        model,
        lambda: model(x).square().sum(),
        lambda scope: scope.pathway("branch", "stem", "branch", every=1),
        steps=1,
    )
    norms = run.wide("pathway", "grad_norm", edge=None)["stem"].loc[0]
    assert norms["branch"] == pytest.approx(expected)
    assert norms["(rest) branch"] == pytest.approx(y.grad.norm().item())


def test_a_pathway_that_matches_nothing_is_told_in_the_run():
    model, closure = case("sla")
    _, run = trained(model, closure, lambda s: s.pathway("x", "stack.*.latent", "nowhere", every=1))
    assert [u["what"] for u in run.meta["unseen"]] == ["x"]
    assert "names no module output" in run.meta["unseen"][0]["why"]
    assert run.steps.tolist() == [0, 3, 6]


def test_effective_rank_is_that_of_the_covariance():
    model, closure = case("sla")
    kept = {}
    handle = model.stack.layers[1].register_forward_hook(
        lambda module, args, output: kept.update(content=output.content)
    )
    closure()
    handle.remove()
    eigenvalues = torch.linalg.eigvalsh(torch.cov(kept["content"].detach().T))
    expected = float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())
    _, run = trained(model, closure, watch_everything)
    table = run.wide("module", "effective_rank")
    assert table["stack.layers.1.content"][0] == pytest.approx(expected)
    assert table.index.tolist() == [0, 2, 4, 6]


def test_backward_is_put_back_after_close_and_after_an_exception():
    model, _ = case("sla")
    with pytest.raises(RuntimeError, match="boom"), gradscope.attach(model, out=None) as scope:
        scope.crossings(every=1)
        assert torch.autograd.backward is not BACKWARD.original
        raise RuntimeError("boom")
    assert torch.autograd.backward is BACKWARD.original


@pytest.mark.parametrize(
    "sites", ["stack.layers.*.content", "stack.layers.0#1", "*", "stack.layers.1[0]", "(output)"]
)
def test_a_rank_of_what_may_be_there(sites):
    model, _ = case("sla")
    with gradscope.attach(model, out=None) as scope:
        scope.effective_rank(sites)


@pytest.mark.parametrize(("model", "named"), [("sla", "stack"), ("linear", "(output)")])
def test_a_rank_of_what_is_not_there_is_refused(model, named):
    module = nn.Linear(2, 2) if model == "linear" else case(model)[0]
    with (
        gradscope.attach(module, out=None) as scope,
        pytest.raises(gradscope.GradscopeError) as refused,
    ):
        scope.effective_rank("stakc.layer*.contents")
    assert named in str(refused.value)
