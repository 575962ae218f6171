"""After a scope is closed nothing of it is left; while it is open, nothing is in the way."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

import gradscope
from tests.reference.cases import CASES, every_case
from tests.reference.loops import LOOPS, Net
from tests.reference.networks import data, encoder, on, weighted

MODULE_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def hooks_of(model, *optimizers):
    """Every hook that anyone could have left, by where it sits."""
    found = {}
    for path, module in model.named_modules():
        for name in MODULE_HOOKS:
            found[path, name] = dict(getattr(module, name))
        found[path, "attributes"] = set(module.__dict__)
        found[path, "class"] = type(module)
        found[path, "forward"] = module.forward.__func__
    for name, parameter in model.named_parameters():
        found[name] = dict(parameter._backward_hooks or {})
        found[name, "post"] = dict(parameter._post_accumulate_grad_hooks or {})
        found[name, "attributes"] = set(parameter.__dict__)
    for source in (torch_module, torch_optimizer):
        for name, value in vars(source).items():
            if name.startswith("_global") and isinstance(value, dict):
                found[name] = dict(value)
    for i, optimizer in enumerate(optimizers):
        for name, value in vars(optimizer).items():
            if name.endswith("_hooks"):
                found[i, name] = dict(value)
        found[i, "attributes"] = set(vars(optimizer))
        found[i, "step"] = getattr(optimizer.step, "__func__", optimizer.step)
    found["class"] = torch_optimizer.Optimizer.__dict__.get("step")
    found["call"] = nn.Module.__call__, nn.Module._call_impl, torch.Tensor.backward
    found["functions"] = torch.autograd.backward, torch.autograd.grad, torch.amp.GradScaler.step
    found["saved tensor hooks"] = torch._C._autograd._top_saved_tensors_default_hooks(True)
    found["modes"] = torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()
    return found


def training(case, model, optimizer, steps=2):
    for step in range(steps):
        case.loss(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()


def prepared(name):
    case = CASES[name]
    model, _ = case.pair()
    # The first step gives an optimizer its profiling wrapper and its state.
    optimizer = torch.optim.Adam(model.parameters())
    training(case, model, optimizer, 1)
    return case, model, optimizer


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("name", every_case("nothing left"))
def test_no_hook_after_close(name, every):
    case, model, optimizer = prepared(name)
    before = hooks_of(model, optimizer)
    with gradscope.attach(model, optimizer=optimizer, out=None, every=every):
        training(case, model, optimizer, 3)
    assert hooks_of(model, optimizer) == before


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.supports(loop=name, shows="nothing left"))
        for name in LOOPS
    ],
)
def test_no_hook_after_any_loop(name):
    loop = LOOPS[name]
    model = Net()
    optimizer = loop.optimizer(model.parameters())
    loop.train(model, optimizer)
    before = hooks_of(model, optimizer)
    with gradscope.attach(model, optimizer=optimizer, out=None, every=2):
        loop.train(model, optimizer)
    assert hooks_of(model, optimizer) == before


@pytest.mark.parametrize("where", ["forward", "after forward", "backward", "after backward"])
def test_no_hook_after_an_exception(where, tmp_path):
    case, model, optimizer = prepared("transformer encoder")
    before = hooks_of(model, optimizer)

    def fail(*_):
        raise ZeroDivisionError

    hook = None
    with (
        pytest.raises(ZeroDivisionError),
        gradscope.attach(model, optimizer=optimizer, out=tmp_path / "run.pt", every=1),
    ):
        training(case, model, optimizer, 2)
        if where == "forward":
            hook = model.layers[1].norm1.register_forward_hook(fail)
        loss = case.loss(model, 2)
        if where == "after forward":
            fail()
        if where == "backward":
            hook = model.layers[0].linear1.weight.register_hook(fail)
        loss.backward()
        if where == "after backward":
            fail()
    if hook:
        hook.remove()
    assert _without_empty(hooks_of(model, optimizer)) == _without_empty(before)
    run = gradscope.load(tmp_path / "run.pt")
    assert run.steps.tolist()[:2] == [0, 1]
    training(case, model, optimizer, 1)


def _without_empty(hooks):
    return {k: v for k, v in hooks.items() if v != {}}


def test_close_may_come_at_any_time_and_twice():
    case, model, optimizer = prepared("lstm")
    before = hooks_of(model, optimizer)
    scope = gradscope.attach(model, optimizer=optimizer, out=None, every=1)
    loss = case.loss(model, 0)
    scope.close()
    scope.close()
    assert hooks_of(model, optimizer) == before
    loss.backward()
    optimizer.step()


def test_nothing_happens_to_a_model_that_is_never_run():
    _, model, optimizer = prepared("unet")
    before = hooks_of(model, optimizer)
    with gradscope.attach(model, optimizer=optimizer, out=None) as scope:
        pass
    assert hooks_of(model, optimizer) == before
    assert scope.run().steps.tolist() == []


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_the_users_own_hooks_stay():
    case, model, optimizer = prepared("transformer encoder")
    seen = []
    hooks = [
        model.layers[0].register_forward_hook(lambda *_: seen.append("forward")),
        model.layers[0].register_full_backward_hook(lambda *_: seen.append("backward")),
        model.layers[0].linear1.weight.register_hook(lambda g: seen.append("weight")),
        optimizer.register_step_post_hook(lambda *_: seen.append("step")),
    ]
    before = hooks_of(model, optimizer)
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1) as scope:
        training(case, model, optimizer, 2)
    assert hooks_of(model, optimizer) == before
    assert scope.run().meta["errors"] == []
    training(case, model, optimizer, 1)
    assert sorted(seen) == sorted(["forward", "backward", "weight", "step"] * 3)
    for hook in hooks:
        hook.remove()


def test_copied_and_pickled_while_attached():
    """Copies compute the same, carry no hooks, and what they do is not recorded."""
    case, model, optimizer = prepared("transformer encoder")
    before = hooks_of(copy.deepcopy(model))
    keys = list(model.state_dict())
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1) as scope:
        training(case, model, optimizer, 1)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), _saved(model)):
            assert hooks_of(copied).keys() == before.keys()
            for where, hooks in hooks_of(copied).items():
                if isinstance(where, tuple) and where[1] in MODULE_HOOKS:
                    assert hooks == {}, where
            assert torch.equal(case.loss(copied, 5), case.loss(model, 5))
            case.loss(copied, 5).backward()
        assert list(model.state_dict()) == keys
        pickle.loads(pickle.dumps(optimizer.state_dict()))
        copied = copy.deepcopy(optimizer)
        copied.step()
        training(case, model, optimizer, 1)
    run = scope.run()
    assert run.meta["errors"] == []
    assert run.steps.tolist() == [0, 1]


def _saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_a_copy_beside_the_model_changes_no_number():
    """An exponential moving average, evaluated in every step."""

    def run_with(average):
        case = CASES["transformer encoder"]
        model, _ = case.pair()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gradscope.attach(model, optimizer=optimizer, out=None, every=1) as scope:
            shadow = torch.optim.swa_utils.AveragedModel(model) if average else None
            for step in range(3):
                loss = case.loss(model, step)
                if shadow:
                    shadow.update_parameters(model)
                    case.loss(shadow, step).backward()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return scope.run().frame()

    plain, averaged = run_with(False), run_with(True)
    plain, averaged = (
        t[t["site"] != "step_seconds"].reset_index(drop=True) for t in (plain, averaged)
    )
    assert plain.equals(averaged)


@pytest.mark.parametrize("out", [None, "run.pt"])
def test_the_model_is_let_go(out, tmp_path):
    case, model, optimizer = prepared("transformer encoder")
    scope = gradscope.attach(
        model, optimizer=optimizer, out=out and tmp_path / out, every=1, update_every=1
    )
    training(case, model, optimizer, 2)
    scope.close()
    watching = [weakref.ref(model), weakref.ref(model.layers[0].linear1), weakref.ref(optimizer)]
    watching += [weakref.ref(p) for p in model.parameters()]
    del model, optimizer
    gc.collect()
    assert [ref() for ref in watching] == [None] * len(watching)
    assert scope is not None


class Token:
    """Something that a weak reference can watch."""


class Holder(nn.Module):
    """Attention over its own features; a test sees what is alive of it without keeping it.

    Attributes:
        memory: activations that autograd keeps for the backward pass.
        nodes: tokens that live as long as a node of the graph.
        early: whether an activation that nobody needs any more was gone within the forward.
    """

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.softmax = nn.Softmax(-1)
        self.memory, self.nodes, self.early = [], [], []

    def forward(self, x):
        h = self.a(x)
        gone = StorageWeakRef(h.untyped_storage())
        h = h + 1
        self.early.append(gone.expired())
        h = torch.tanh(h)
        p = self.softmax(self.b(h))
        q = torch.softmax(h.t(), 0)
        z = F.scaled_dot_product_attention(h[None, None], p[None, None], (h * q.t())[None, None])
        y = self.c(z[0, 0])
        self.memory = [StorageWeakRef(t.untyped_storage()) for t in (h, p, q, z)]
        self.nodes = []
        for tensor in (h, p, q, z, y):
            if tensor.grad_fn is not None:
                token = Token()
                tensor.grad_fn.metadata["token"] = token
                self.nodes.append(weakref.ref(token))
        return y

    def alive(self):
        """What is alive of the last forward pass."""
        memory = [not ref.expired() for ref in self.memory]
        return memory, [ref() is not None for ref in self.nodes]


@pytest.fixture
def counting():
    """Without the garbage collector: what goes, goes by reference counting."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(params=[False, True], ids=["plain", "attached"])
def holder(request, counting):
    """A model, without a scope (which shows that the test asks for the usual) and with one."""
    model = Holder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if not request.param:
        yield model, optimizer
        return
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1) as scope:
        yield model, optimizer
    assert scope.run().meta["errors"] == []


def test_a_step_leaves_nothing_alive(holder):
    model, optimizer = holder
    for step in range(3):
        loss = weighted(model(data(step, 5, 3)))
        memory, nodes = model.alive()
        assert all(memory) and all(nodes)
        loss.backward()
        assert not any(model.alive()[0]), "backward frees what it has used, the loss alive or not"
        optimizer.step()
        del loss
        assert not any(model.alive()[1])


def test_a_pass_that_nobody_ran_back_is_dropped_at_once(holder):
    model, _ = holder
    model(data(0, 5, 3))
    memory, nodes = model.alive()
    assert not any(memory) and not any(nodes)


@pytest.mark.parametrize("grad", [True, False])
def test_a_forward_pass_holds_no_more_than_usual(holder, grad):
    """What nobody needs is freed while the forward pass is still running."""
    model, _ = holder
    with torch.set_grad_enabled(grad):
        model(data(0, 5, 3))
    assert model.early == [True]


def test_saved_tensors_are_freed_by_backward():
    """During backward, each activation goes as soon as autograd has used it."""

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, alive):
            ctx.alive = alive
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            ctx.alive.append([ref() is not None for ref in ctx.alive[0]])
            return grad, None

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)
            self.alive = [[]]

        def forward(self, x):
            x = Probe.apply(self.a(x), self.alive)
            for _ in range(2):
                x = torch.exp(self.b(x) * 0.1)
                self.alive[0].append(weakref.ref(x))
            return x.sum(-1)

    def lives(attached):
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scope = (
            gradscope.attach(model, optimizer=optimizer, out=None, every=1) if attached else None
        )
        model(data(0, 2, 3)).sum().backward()
        if scope:
            scope.close()
        return model.alive[1]

    assert lives(attached=True) == lives(attached=False)


def test_a_bad_argument_touches_nothing():
    model = encoder(0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = hooks_of(model, optimizer)
    for bad in (
        {"every": 0},
        {"every": -3},
        {"update_every": 0},
        {"flush_every": -1.0},
        {"optimizer": "adam"},
    ):
        options = {"optimizer": optimizer, "out": None, **bad}
        with pytest.raises(ValueError, match=next(iter(bad))):
            gradscope.attach(model, **options)
    with pytest.raises(ValueError):
        gradscope.attach("model", optimizer=optimizer, out=None)
    assert hooks_of(model, optimizer) == before
    on(2, 5, 8)(model, 0).backward()
