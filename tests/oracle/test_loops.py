"""Training loops that are not the textbook's: what belongs to which step, and what doesn't."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradscope
from tests.reference.gradients import fork_terms, fork_values, norm, watched_outputs
from tests.reference.loops import ALL, Net, answer
from tests.reference.networks import CASES, data, encoder, weighted
from tests.reference.observer import Observer
from tests.reference.recording import assert_numbers, fork_at, record, train_steps, values


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def batch(step, size=5):
    return data(step, size, 3)


def norms_of(model, *losses):
    """grad_norm by site over the backward passes of some losses, each () -> loss."""
    with watched_outputs(model) as watch:
        for loss in losses:
            loss().backward()
        return watch.norms()


def recorded(run, step=0):
    return values(run, "module", "grad_norm", step)


def close(expected):
    return pytest.approx(expected, rel=1e-5)


@pytest.mark.supports(loop="other sizes at every step", shows=["module gradients"])
def test_other_sizes_at_every_step():
    shapes = [(2, 5), (3, 7), (1, 2), (4, 4)]
    torch.manual_seed(0)
    model = encoder(0.0)
    twin = copy.deepcopy(model)

    def loss_of(m, step):
        return weighted(m(data(step, *shapes[step], 8)))

    run = record(model, lambda optimizer: train_steps(model, loss_of, optimizer, len(shapes)))
    with watched_outputs(twin) as watch:

        def check(step):
            assert recorded(run, step) == close(watch.norms())
            assert values(run, "module", "grad_rms", step) == close(watch.rms())
            watch.clear()

        optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
        train_steps(twin, loss_of, optimizer, len(shapes), after_backward=check)


@pytest.mark.supports(
    loop="several losses, a backward pass each, retain_graph",
    shows=["module gradients", "parameters"],
)
def test_two_losses_through_one_graph():
    """Each backward pass counts: root-sum-square, as for micro-batches."""
    model = mlp()
    twin = copy.deepcopy(model)

    def train(optimizer):
        y = model(batch(0))
        weighted(y).backward(retain_graph=True)
        y.square().sum().backward()
        optimizer.step()

    run = record(model, train)
    one = norms_of(twin, lambda: weighted(twin(batch(0))))
    two = norms_of(twin, lambda: twin(batch(0)).square().sum())
    assert recorded(run) == close({site: math.hypot(one[site], two[site]) for site in one})
    parameters = {n: norm(p.grad) for n, p in twin.named_parameters()}
    assert values(run, "parameter", "grad_norm") == close(parameters)


class Pieces(nn.Module):
    """Never called itself."""

    def __init__(self):
        super().__init__()
        self.encoder = mlp(1)
        self.decoder = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))


@pytest.mark.supports(
    loop="a model whose parts are called, never itself", shows=["module gradients"]
)
def test_a_model_used_by_pieces():
    model = Pieces()
    twin = copy.deepcopy(model)

    def loss_of(m, step):
        return weighted(m.decoder(m.encoder(batch(step)).tanh()))

    run = record(model, lambda optimizer: train_steps(model, loss_of, optimizer, 3))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
    for step in range(3):
        with watched_outputs(twin) as watch:
            watch.new_forward()
            loss_of(twin, step).backward()
            assert recorded(run, step) == close(watch.norms())
        optimizer.step()
        optimizer.zero_grad()


def test_a_piece_used_twice_before_one_backward():
    """Both calls are measured, whatever their names: root-sum-square over `path`, `path#1`."""
    model = Pieces()
    twin = copy.deepcopy(model)

    def loss_of(m, step):
        return weighted(m.encoder(batch(step)), m.encoder(batch(step + 1)))

    run = record(model, lambda optimizer: train_steps(model, loss_of, optimizer, 2))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
    for step in range(2):
        with watched_outputs(twin) as watch:
            watch.new_forward()
            loss_of(twin, step).backward()
            assert by_path(recorded(run, step)) == close(by_path(watch.norms()))
        optimizer.step()
        optimizer.zero_grad()


def by_path(norms):
    """Root-sum-square over the calls of each module."""
    paths = {site.split("#")[0] for site in norms}
    return {
        path: math.hypot(*(v for site, v in norms.items() if site.split("#")[0] == path))
        for path in paths
    }


@pytest.mark.supports(loop="several forward passes, one backward", shows=["module gradients"])
def test_two_forward_passes_and_one_backward():
    """A siamese network: both branches are measured."""
    model = mlp()
    twin = copy.deepcopy(model)

    def loss_of(m, step):
        return (m(batch(step)) - m(batch(step + 1))).square().sum() + m(batch(step)).sum()

    run = record(model, lambda optimizer: train_steps(model, loss_of, optimizer, 2))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
    for step in range(2):
        found = by_path(recorded(run, step))
        assert found == close(norms_of(twin, lambda s=step: loss_of(twin, s)))
        optimizer.step()
        optimizer.zero_grad()


def numbers(run, parameters):
    """All that a run measured of activations, by (step, kind, site, edge, metric).

    Without the forks of parameters: one gradient arrives there for both passes at once.
    """
    table = run.frame()
    table = table[(table["kind"] != "scalar") & ~table["site"].isin(parameters)]
    return table.set_index(["step", "kind", "site", "edge", "metric"])["value"].to_dict()


@pytest.mark.supports(
    loop="several forward passes, one backward", shows=["forks", "softmaxes", "parameters"]
)
@pytest.mark.parametrize(
    "name",
    ["transformer encoder", "transformer decoder", "functional forks", "unet", "tied weights"],
)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_one_backward_through_two_passes_equals_two_backwards(name, order):
    """Contrastive learning: one model, two views, one loss. Forks and softmaxes included."""
    case = CASES[name]
    model, _ = case.pair()
    twin = copy.deepcopy(model)

    def together(optimizer):
        losses = [case.loss(model, view) for view in (0, 1)]
        (losses[order[0]] + losses[order[1]]).backward()
        optimizer.step()

    def apart(optimizer):
        for view in (0, 1):
            case.loss(twin, view).backward()
        optimizer.step()

    one, two = record(model, together), record(twin, apart)
    assert one.meta["errors"] == []
    names = dict(model.named_parameters())
    assert numbers(one, names) == pytest.approx(numbers(two, names), rel=2e-4, abs=1e-6)
    projections = one.frame("fork", "projection").groupby("site")["value"].sum()
    assert projections.to_list() == pytest.approx([1] * len(projections), abs=1e-4)
    of_parameters = {n: norm(p.grad) for n, p in model.named_parameters()}
    assert values(one, "parameter", "grad_norm") == pytest.approx(of_parameters, rel=1e-5)


def evaluate(model):
    model.eval()
    with torch.no_grad():
        model(batch(99, 7))
    model.train()


def predict_and_forget(model):
    """A forward pass with a graph that nobody runs back through."""
    model(batch(98, 4))


def inference(model):
    with torch.inference_mode():
        model(batch(97, 2))


@pytest.mark.parametrize("other", [evaluate, predict_and_forget, inference])
@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_other_forward_passes_leave_no_trace(other, when):
    model = mlp()
    twin = copy.deepcopy(model)

    def train(optimizer):
        for step in range(3):
            if when == "before":
                other(model)
            loss = weighted(model(batch(step)))
            if when == "between":
                other(model)
            loss.backward()
            if when == "after":
                other(model)
            optimizer.step()
            optimizer.zero_grad()

    run = record(model, train)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
    for step in range(3):
        expected = norms_of(twin, lambda s=step: weighted(twin(batch(s))))
        assert recorded(run, step) == close(expected)
        sizes = {site: recorded(run, step)[site] / v for site, v in expected.items()}
        assert sizes == close(dict.fromkeys(expected, 1.0))
        rms = values(run, "module", "grad_rms", step)
        assert rms["(output)"] == close(expected["(output)"] / math.sqrt(10))
        optimizer.step()
        optimizer.zero_grad()


class Fragile(nn.Module):
    """Raises in its middle, forward or backward, when told to."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.mix = nn.Linear(4, 4)
        self.middle = Middle()
        self.b = nn.Linear(4, 2)

    def forward(self, x):
        x = torch.tanh(self.mix(self.a(x)))
        fork = self.mix(x)
        return self.b(self.middle(fork) + 2 * fork.tanh() + self.mix(fork))


class Middle(nn.Module):
    fail = ""

    def forward(self, x):
        if self.fail == "forward":
            raise RuntimeError("out of luck")
        return Fails.apply(1.5 * x, self)


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, module):
        ctx.module = module
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if ctx.module.fail == "backward":
            raise RuntimeError("out of luck")
        return grad, None


@pytest.mark.supports(
    loop="exception in a forward or backward pass, and again", shows=["module gradients", "forks"]
)
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("retry", [True, False])
def test_an_exception_and_training_goes_on(where, retry):
    """After a failed pass, the next steps are recorded as if nothing had happened.

    A backward pass that broke off and is tried again in the same step did send gradients
    through the last layers twice: there, that step says so.
    """
    model = Fragile()
    twin = copy.deepcopy(model)

    def attempt(m, step):
        weighted(m(batch(step))).backward()

    def train(optimizer):
        for step in range(4):
            if step == 1:
                model.middle.fail = where
                with pytest.raises(RuntimeError, match="out of luck"):
                    attempt(model, step)
                model.middle.fail = ""
                optimizer.zero_grad()
                if not retry:
                    optimizer.step()
                    continue
            attempt(model, step)
            optimizer.step()
            optimizer.zero_grad()

    run = record(model, train)
    assert run.meta["errors"] == []
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
    for step in range(4):
        if step == 1 and not retry:
            continue
        for site in ("mix#1", "mix.weight"):
            tensor = twin.mix.weight if site == "mix.weight" else None
            terms = fork_terms(twin, lambda s=step: weighted(twin(batch(s))), site, tensor)
            fork, whole = fork_at(run, site, step), fork_values(terms)
            assert fork["projection"] == pytest.approx(whole["projection"], rel=1e-4), site
            assert fork["norms"] == {s: close(norms) for s, norms in whole["norms"].items()}
        optimizer.zero_grad()
        expected = norms_of(twin, lambda s=step: weighted(twin(batch(s))))
        found = recorded(run, step)
        assert found.keys() == expected.keys()
        if step == 1 and where == "backward":
            reached_once = ("a", "mix", "mix#1")
            expected = {site: expected[site] for site in reached_once}
            found = {site: found[site] for site in reached_once}
        assert found == close(expected)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.supports(loop="several optimizers for one model", shows=["parameters", "updates"])
def test_two_optimizers_for_two_parts():
    model = Pieces()
    twin = copy.deepcopy(model)

    def optimizers(m):
        return [
            torch.optim.Adam(m.encoder.parameters(), lr=0.01),
            torch.optim.SGD(m.decoder.parameters(), lr=0.1, momentum=0.9),
        ]

    def train(m, opts, check=lambda step: None):
        for step in range(3):
            weighted(m.decoder(m.encoder(batch(step)))).backward()
            check(step)
            for optimizer in opts:
                optimizer.step()
            for optimizer in opts:
                optimizer.zero_grad()

    opts = optimizers(model)
    run = record(model, lambda _: train(model, opts), optimizer=opts)
    assert run.steps.tolist() == [0, 1, 2]

    def check(step):
        parameters = {n: norm(p.grad) for n, p in twin.named_parameters()}
        assert values(run, "parameter", "grad_norm", step) == close(parameters)
        before.update({n: p.detach().clone() for n, p in twin.named_parameters()})

    before = {}
    train(twin, optimizers(twin), check)
    last = {n: norm(p.detach() - before[n]) / norm(before[n]) for n, p in twin.named_parameters()}
    assert values(run, "parameter", "update_ratio", 2) == pytest.approx(last, rel=1e-4)


@pytest.mark.supports(
    loop="two adversaries, each with a recording of its own",
    shows=("module gradients", "parameters", "updates", "identical training"),
)
def test_adversaries_that_step_in_turns():
    """The other's passes through a model are part of its step."""
    generator, critic = mlp(1), nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))

    def train(g, c, g_opt, c_opt):
        for step in range(3):
            c_opt.zero_grad()
            (c(g(batch(step)).detach()).mean() - c(data(step, 5, 2)).mean()).backward()
            c_opt.step()
            g_opt.zero_grad()
            (-c(g(batch(step))).mean()).backward()
            g_opt.step()

    twins = copy.deepcopy((generator, critic))
    opts = [torch.optim.Adam(m.parameters()) for m in (generator, critic)]
    twin_opts = [torch.optim.Adam(m.parameters()) for m in twins]
    with (
        gradscope.attach(generator, optimizer=opts[0], out=None, every=1, update_every=1) as one,
        gradscope.attach(critic, optimizer=opts[1], out=None, every=1, update_every=1) as two,
    ):
        train(generator, critic, *opts)
    observers = [Observer(m, o, graphs=False) for m, o in zip(twins, twin_opts, strict=True)]
    with observers[0], observers[1]:
        train(*twins, *twin_opts)
    for a, b in zip((generator, critic), twins, strict=True):
        assert all(map(torch.equal, a.parameters(), b.parameters()))
    for scope, observer in zip((one, two), observers, strict=True):
        assert_numbers(scope.run(), observer.steps, ("module gradients", "parameters", "updates"))


@pytest.mark.parametrize("overflows", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.01),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    ],
    ids=["sgd", "adam", "fused adam"],
)
def test_a_scaled_loss_is_divided_out(make_optimizer, unscale, overflows):
    """torch.amp.GradScaler: everything recorded is in units of the unscaled loss.

    A scale that is too large makes gradients overflow: those passes are no steps.
    """
    case = CASES["transformer encoder"]
    model, twin = case.pair()
    optimizer = make_optimizer(model.parameters())

    def scaled(_):
        scale = 2.0**126 if overflows else 2.0**16
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=2.0**-80)
        for step in [0] * (2 * overflows) + [0, 0, 1, 1, 2, 2]:
            # two micro-batches a step
            scaler.scale(case.loss(model, step)).backward()
            micro.append(step)
            if len(micro) % 2 == 0:
                if unscale:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()

    def plain(optimizer):
        for step in range(3):
            for _ in range(2):
                case.loss(twin, step).backward()
            optimizer.step()
            optimizer.zero_grad()

    micro = []
    run = record(model, scaled, optimizer=optimizer)
    expected = record(twin, plain, optimizer=make_optimizer(twin.parameters()))
    assert run.meta["errors"] == []
    assert run.steps.tolist() == [0, 1, 2]
    assert numbers(run, ()) == pytest.approx(numbers(expected, ()), rel=1e-3, abs=1e-7)


def test_gradients_of_gradients():
    """A gradient penalty runs backward twice, once with a graph of its own."""
    model = mlp()
    twin = copy.deepcopy(model)

    def loss_of(m, step):
        x = batch(step).requires_grad_()
        y = m(x).square().sum()
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
        return y + slope.square().sum()

    losses, twin_losses = [], []
    run = record(model, lambda o: losses.extend(train_steps(model, loss_of, o, 3)))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
    parameters = []

    def read(_step):
        parameters.append({n: norm(p.grad) for n, p in twin.named_parameters()})

    twin_losses = train_steps(twin, loss_of, optimizer, 3, after_backward=read)
    assert all(map(torch.equal, losses, twin_losses))
    assert run.meta["errors"] == []
    for step in range(3):
        assert values(run, "parameter", "grad_norm", step) == close(parameters[step])


@pytest.mark.supports(
    loop="checkpoint, reentrant",
    hides=["module gradients"],
    because="reentrant checkpointing hides the graph inside",
    shows=["parameters"],
)
def test_inside_a_reentrant_checkpoint_nothing_is_seen():
    """Around it, all is; and the run says what is missing."""

    class Net(nn.Module):
        def __init__(self, use):
            super().__init__()
            self.stem, self.inner, self.head = nn.Linear(3, 3), mlp(), nn.Linear(2, 2)
            self.use = use

        def forward(self, x):
            x = self.stem(x)
            x = checkpoint(self.inner, x, use_reentrant=True) if self.use else self.inner(x)
            return self.head(x)

    torch.manual_seed(0)
    model = Net(True)
    twin = Net(False)
    twin.load_state_dict(model.state_dict())
    run = record(model, lambda o: train_steps(model, lambda m, s: weighted(m(batch(s))), o, 1))
    expected = norms_of(twin, lambda: weighted(twin(batch(0))))
    outside = {site: v for site, v in expected.items() if not site.startswith("inner")}
    assert recorded(run) == close(outside)
    assert any("reentrant" in entry["why"] for entry in run.meta["unseen"])
    parameters = {n: norm(p.grad) for n, p in twin.named_parameters()}
    assert values(run, "parameter", "grad_norm") == close(parameters)


@pytest.mark.supports(
    loop="a step without a backward pass", lacks=["module gradients", "parameters"]
)
def test_a_step_without_a_backward_pass_has_no_gradients():
    model = mlp()

    def train(optimizer):
        optimizer.step()
        weighted(model(batch(1))).backward()
        optimizer.step()

    run = record(model, train)
    twin = mlp()
    assert recorded(run, 0) == {}
    assert values(run, "parameter", "grad_norm", 0) == {}
    assert recorded(run, 1) == close(norms_of(twin, lambda: weighted(twin(batch(1)))))


def test_parts_that_take_turns():
    """A module that a step did not use has no row at that step."""

    class Turns(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x, which):
            return getattr(self, which)(x)

    model = Turns()
    run = record(
        model,
        lambda o: train_steps(model, lambda m, s: weighted(m(batch(s), which="ab"[s % 2])), o, 4),
    )
    for step in range(4):
        used = "ab"[step % 2]
        assert recorded(run, step).keys() == {"(output)", used}
        found = values(run, "parameter", "grad_norm", step)
        assert found.keys() == {f"{used}.weight", f"{used}.bias"}


@pytest.mark.supports(loop="the model computes its loss", shows=["module gradients"])
def test_the_model_computes_its_loss_itself():
    """The output is (loss, logits), as in many libraries."""

    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp(2)

        def forward(self, x):
            logits = self.body(x)
            return {"loss": weighted(logits), "logits": logits}

    model = WithLoss()
    twin = copy.deepcopy(model)
    run = record(model, lambda o: train_steps(model, lambda m, s: m(batch(s))["loss"], o, 1))
    expected = norms_of(twin, lambda: twin(batch(0))["loss"])
    assert expected["(output).loss"] == 1
    assert recorded(run) == close(expected)


@pytest.mark.supports(loop="an auxiliary loss kept on a module", shows=["module gradients"])
def test_an_auxiliary_loss_that_is_kept_on_the_module():
    """As mixtures of experts do: what the loss reads was never returned."""

    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 4)
            self.b = nn.Linear(4, 2)

        def forward(self, x):
            hidden = self.a(x)
            self.kept = hidden
            return self.b(hidden)

    torch.manual_seed(0)
    model = Kept()
    twin = copy.deepcopy(model)

    def loss_of(m, step):
        return weighted(m(batch(step))) + m.kept.square().sum()

    run = record(model, lambda o: train_steps(model, loss_of, o, 2))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
    for step in range(2):
        expected = norms_of(twin, lambda s=step: loss_of(twin, s))
        assert recorded(run, step) == close(expected)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.supports(
    loop="no torch optimizer: scope.step()", shows=["module gradients", "parameters"]
)
def test_steps_counted_by_hand():
    model = mlp()
    twin = copy.deepcopy(model)

    def descend(m):
        with torch.no_grad():
            for p in m.parameters():
                p -= 0.1 * p.grad
                p.grad = None

    with gradscope.attach(model, out=None, every=2) as scope:
        for step in range(5):
            weighted(model(batch(step))).backward()
            scope.step()
            descend(model)
    run = scope.run()
    assert run.steps.tolist() == [0, 2, 4]
    for step in range(5):
        expected = norms_of(twin, lambda s=step: weighted(twin(batch(s))))
        if step % 2 == 0:
            assert recorded(run, step) == close(expected)
            parameters = {n: norm(p.grad) for n, p in twin.named_parameters()}
            assert values(run, "parameter", "grad_norm", step) == close(parameters)
        descend(twin)


@pytest.mark.parametrize("call", ["before the update", "after it"])
def test_updates_made_by_hand_are_those_from_call_to_call(call):
    model = mlp()
    ratios = []
    with gradscope.attach(model, out=None, every=2, update_every=1) as scope:
        for step in range(7):
            weighted(model(batch(step))).backward()
            if call == "before the update":
                scope.step()
            now = {n: p.detach().clone() for n, p in model.named_parameters()}
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
            after = {n: p.detach().clone() for n, p in model.named_parameters()}
            ratios.append({n: norm(after[n] - now[n]) / norm(now[n]) for n in now})
            if call == "after it":
                scope.step()
            model.zero_grad()
    run = scope.run()
    lag = 1 if call == "before the update" else 0
    assert values(run, "parameter", "update_ratio", 0) == {}
    for step in (2, 4, 6):
        assert values(run, "parameter", "update_ratio", step) == close(ratios[step - lag])
    assert run.meta["errors"] == []


@pytest.mark.supports(loop="attached to a part of the model", shows=["module gradients"])
def test_a_part_of_a_model():
    """Attached to a part, its output is the last site; the rest is outside."""
    model = mlp()
    part = model[:3]
    twin = copy.deepcopy(model)

    def loss_of(whole, first):
        return weighted(whole[3:](first(batch(0))))

    run = record(part, lambda o: train_steps(part, lambda m, _: loss_of(model, m), o, 1))
    first = twin[:3]
    assert recorded(run) == close(norms_of(first, lambda: loss_of(twin, first)))


@pytest.mark.parametrize("name", ["transformer encoder, dropout", "unet"])
def test_two_scopes_on_one_model_see_the_same(name):
    case = CASES[name]
    model, _ = case.pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with (
        gradscope.attach(model, optimizer=optimizer, out=None, every=1) as first,
        gradscope.attach(model, optimizer=optimizer, out=None, every=1) as second,
    ):
        train_steps(model, case.loss, optimizer, 2)
    a, b = (s.run().frame() for s in (first, second))
    a, b = (t[t["site"] != "step_seconds"].reset_index(drop=True) for t in (a, b))
    assert a.equals(b)


@pytest.mark.supports(loop="plain", shows=["scalars"])
def test_scalars_belong_to_their_step():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    with gradscope.attach(model, optimizer=optimizer, out=None, every=4) as scope:
        for step in range(6):
            loss = weighted(model(batch(step)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scope.log(loss=loss, number=step)
            losses.append(loss.item())
    scalars = scope.run().scalars()
    assert scalars["number"].tolist() == [0, 1, 2, 3, 4, 5]
    assert scalars.index.tolist() == [0, 1, 2, 3, 4, 5]
    assert scalars["loss"].tolist() == pytest.approx(losses, rel=1e-6)


@pytest.mark.supports(
    loop="closed, and attached again",
    shows=(*ALL, "identical training"),
)
def test_closed_and_attached_again():
    """Steps between two recordings leave no trace in either."""
    torch.manual_seed(0)
    model = Net()
    twin = copy.deepcopy(model)
    optimizer, twin_optimizer = (torch.optim.Adam(m.parameters()) for m in (model, twin))

    def train(m, opt, steps):
        train_steps(m, lambda m, s: answer(m, s + steps[0]), opt, len(steps))

    runs = []
    for steps in ((0, 1), (2,), (3, 4, 5)):
        if len(steps) == 1:
            train(model, optimizer, steps)
        else:
            runs.append(record(model, lambda o, s=steps: train(model, o, s), optimizer=optimizer))
    with Observer(twin, twin_optimizer) as observer:
        for steps in ((0, 1), (2,), (3, 4, 5)):
            train(twin, twin_optimizer, steps)
    assert_numbers(runs[0], observer.steps[:2], ALL)
    assert_numbers(runs[1], observer.steps[3:], ALL)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
