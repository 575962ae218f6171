"""Softmaxes inside activation checkpointing equal those of the same model without it."""

import contextlib
import copy
import gc
from functools import partial

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import (
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

import gradscope
from tests.reference.networks import data, weighted
from tests.reference.recording import record, train_steps, values
from tests.reference.softmax_watch import SoftmaxWatch

METRICS = ("entropy", "max_prob", "jacobian_norm", "evenness", "uniform_gain", "gain")
KEPT = [
    torch.ops.aten._softmax.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]
PRODUCTS = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
again = partial(checkpoint, use_reentrant=False)


class Attention(nn.Module):
    """Self-attention behind a residual.

    Args:
        how: "fused" calls F.scaled_dot_product_attention, "plain" writes the softmax out, and
            "alone" checkpoints nothing but the fused attention, if it is to checkpoint.
    """

    def __init__(self, how, dropout=0.0):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.how, self.dropout, self.inside = how, dropout, False

    def forward(self, x):
        B, N, _ = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, 2, 4).permute(2, 0, 3, 1, 4)  # (B, H, N, D)
        if self.how == "plain":
            p = torch.softmax(q @ k.mT, -1)
            z = F.dropout(p, self.dropout, self.training) @ v
        else:
            run = again if self.how == "alone" and self.inside else lambda f, *args: f(*args)
            z = run(self.attend, q, k, v)
        return x + self.out(torch.tanh(z.transpose(1, 2).reshape(B, N, 8)))

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout, is_causal=not self.dropout
        )


class Stack(nn.Module):
    """Layers, each run by `run(layer, x)`."""

    def __init__(self, layers, run=lambda layer, x: layer(x)):
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 2)
        self.layers = nn.ModuleList(layers)
        self.run = run

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = self.run(layer, x)
        return self.head(x)


def early_stop_off(layer, x):
    with set_checkpoint_early_stop(False):
        return again(layer, x)


def offloaded(layer, x):
    with torch.autograd.graph.save_on_cpu():
        return layer(x)


def offloaded_inputs(layer, x):
    with torch.autograd.graph.save_on_cpu():
        return again(layer, x)


def selective(kept):
    return partial(again, context_fn=partial(create_selective_checkpoint_contexts, kept))


def alone(layer, x):
    """Nothing but the fused attention is checkpointed."""
    layer.inside = True
    return layer(x)


RUNS = {
    "each layer": again,
    "one in another": lambda layer, x: again(lambda y: again(layer, y), x),
    "sequential": lambda layer, x: checkpoint_sequential([layer], 1, x, use_reentrant=False),
    "without early stop": early_stop_off,
    "unchecked": partial(again, determinism_check="none"),
    "selective, softmaxes kept": selective(KEPT),
    "selective, products kept": selective(PRODUCTS),
    "offloaded": offloaded,
    "offloaded inputs": offloaded_inputs,
}
LAYERS = {
    "fused": lambda: Attention("fused"),
    "plain": lambda: Attention("plain"),
    "fused, dropout": lambda: Attention("fused", 0.3),
    "plain, dropout": lambda: Attention("plain", 0.3),
    "encoder layer": lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.2, batch_first=True),
}


def pair(layer, run, layers=2):
    """A model that checkpoints, and its twin that doesn't."""
    torch.manual_seed(0)
    model = Stack([layer() for _ in range(layers)], run)
    twin = Stack([layer() for _ in range(layers)])
    twin.load_state_dict(model.state_dict())
    return model, twin


def loss_of(model, step):
    return weighted(model(data(step, 2, 5, 8)))


def recorded(run, step=0):
    """site -> metric -> value."""
    found = {}
    for metric in METRICS:
        for site, value in values(run, "softmax", metric, step).items():
            found.setdefault(site, {})[metric] = value
    return found


def watched(twin, step=0, loss_of=loss_of):
    """The same of a model without checkpointing, from the softmaxes that Python calls."""
    torch.manual_seed(step)
    with SoftmaxWatch(twin) as watch:
        loss = loss_of(twin, step)
    loss.backward()
    return watch.values()


def close(expected):
    return {site: pytest.approx(row, rel=1e-5, abs=1e-6) for site, row in expected.items()}


def record_steps(model, steps=1, loss_of=loss_of, **options):
    run = record(model, lambda o: train_steps(model, loss_of, o, steps), **options)
    assert run.meta["errors"] == []
    return run


@pytest.mark.supports(loop="checkpoint, non-reentrant", shows=["softmaxes"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("run", [r for r in RUNS if not r.startswith("offloaded")])
def test_a_checkpointed_model_has_the_numbers_of_its_twin(layer, run):
    model, twin = pair(LAYERS[layer], RUNS[run])
    found = record_steps(model)
    assert recorded(found) == close(watched(twin))
    assert found.meta["unseen"] == []
    assert {site.note for site in found.sites_of("softmax")} == {"all rows"}
    assert {site.shape for site in found.sites_of("softmax")} == {(2, 2, 5, 5)}


@pytest.mark.supports(loop="activations offloaded by save_on_cpu", shows=["softmaxes"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("run", ["offloaded", "offloaded inputs"])
def test_an_offloaded_model_has_the_numbers_of_its_twin(layer, run):
    model, twin = pair(LAYERS[layer], RUNS[run])
    found = record_steps(model)
    assert recorded(found) == close(watched(twin))
    assert found.meta["unseen"] == []


def test_a_checkpoint_of_nothing_but_attention():
    """The attention's own node is the first that has the region computed again."""
    model, twin = pair(lambda: Attention("alone"), alone)
    assert recorded(record_steps(model)) == close(watched(twin))


def test_a_region_that_ends_in_a_softmax():
    class Ends(nn.Module):
        def __init__(self, run):
            super().__init__()
            self.logits, self.run = nn.Linear(8, 5), run

        def forward(self, x):
            return self.run(lambda y: torch.softmax(self.logits(y), -1), x) @ x

    torch.manual_seed(0)
    model, twin = Ends(again), Ends(lambda f, x: f(x))
    twin.load_state_dict(model.state_dict())
    assert recorded(record_steps(model)) == close(watched(twin))


def test_micro_batches_autocast_and_passes_without_gradient():
    def several(model, step):
        with torch.no_grad():
            model(data(9, 2, 5, 8))
        model(data(9, 2, 5, 8))  # nobody runs it back
        with torch.autocast("cpu", torch.bfloat16):
            total = loss_of(model, step)
        return total.float() + 0.5 * loss_of(model, step + 1)

    model, plain = pair(LAYERS["plain"], again)
    found = recorded(record_steps(model, loss_of=several))
    assert found == close(recorded(record_steps(plain, loss_of=several)))


@pytest.mark.parametrize("layer", ["fused", "plain"])
def test_two_backward_passes_over_one_graph(layer):
    """What is measured in the first is that of the first; the second goes through unharmed."""
    model, plain = pair(LAYERS[layer], again)
    found = []
    for m in (model, plain):

        def train(optimizer, m=m):
            output = m(data(0, 2, 5, 8))
            weighted(output).backward(retain_graph=True)
            weighted(output.sin()).backward()
            optimizer.step()

        run = record(m, train)
        assert run.meta["errors"] == []
        found.append((recorded(run), [p.grad for p in m.parameters()]))
    assert found[0][0] == close(found[1][0])
    assert all(map(torch.equal, found[0][1], found[1][1]))


@pytest.mark.supports(loop="checkpoint, non-reentrant", shows=["identical training"])
@pytest.mark.supports(loop="activations offloaded by save_on_cpu", shows=["identical training"])
@pytest.mark.parametrize("run", RUNS)
def test_training_is_the_same_bit_for_bit(run):
    """Losses, weights and random numbers, with dropout inside the checkpoint."""
    results = []
    for attached in (False, True):
        model, _ = pair(LAYERS["encoder layer"], RUNS[run])
        optimizer = torch.optim.Adam(model.parameters())
        scope = contextlib.nullcontext()
        if attached:
            scope = gradscope.attach(model, optimizer=optimizer, out=None, every=2)
        torch.manual_seed(1)
        losses = []
        with scope:
            for step in range(5):
                loss = loss_of(model, step)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.detach())
        results.append([*losses, *model.state_dict().values(), torch.get_rng_state()])
    assert all(map(torch.equal, *results))


def test_two_scopes_at_once():
    model, twin = pair(LAYERS["fused"], again)
    first = gradscope.attach(model, optimizer=None, out=None, every=1)
    with first:
        second = record_steps(model)
        first.step()
    expected = close(watched(twin))
    assert recorded(second) == expected
    assert recorded(first.run()) == expected


def handles(output):
    """Class of every holder's handles in the graph of `output`."""
    found, waiting, known = [], [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in known:
            continue
        known.add(node)
        waiting += [after for after, _ in node.next_functions]
        for name in dir(node):
            raw = getattr(node, name) if name.startswith("_raw_saved") else None
            holder = getattr(raw, "data", None)
            if hasattr(holder, "handles"):
                found.append(type(holder.handles))
    return found


@pytest.mark.supports(loop="checkpoint, non-reentrant", shows=["nothing left"])
@pytest.mark.parametrize("end", ["step", "close", "exception"])
def test_nothing_is_left_in_torchs_checkpoints(end):
    from torch.utils import checkpoint as module

    before = dict(vars(module))
    model, _ = pair(LAYERS["plain"], again)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = gradscope.attach(model, optimizer=optimizer, out=None, every=1)
    output = model(data(0, 2, 5, 8))
    assert set(handles(output)) != {dict}, "the test sees what is put there"
    if end == "step":
        weighted(output).backward(retain_graph=True)
        assert set(handles(output)) == {dict}
    elif end == "exception":
        with pytest.raises(ZeroDivisionError), scope:
            output.register_hook(lambda g: 1 / 0)
            weighted(output).backward()
    scope.close()
    assert set(handles(output)) == {dict}
    assert dict(vars(module)) == before


class FailsError(Exception):
    """Of a user's model."""


def test_an_exception_while_computing_again_is_the_users():
    """It arrives as it is, and the next step is recorded."""
    model, twin = pair(LAYERS["fused"], again)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attend, calls = model.layers[1].attend, []

    def fails_in_backward(*args):
        calls.append(1)
        if len(calls) == 2:
            raise FailsError
        return attend(*args)

    with gradscope.attach(model, optimizer=optimizer, out=None, every=1) as scope:
        model.layers[1].attend = fails_in_backward
        with pytest.raises(FailsError):
            loss_of(model, 0).backward()
        model.layers[1].attend = attend
        optimizer.step()
        loss_of(model, 1).backward()
        optimizer.step()
    run = scope.run()
    assert run.meta["errors"] == []
    assert recorded(run, 1) == close(watched(twin, 1))


class Peak(TorchDispatchMode):
    """The most bytes alive at once, of the tensors that operations return."""

    def __init__(self):
        super().__init__()
        self.most, self._alive = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return result


def test_what_checkpointing_frees_is_free():
    """The peak does not grow with the number of layers more than it does without a scope."""

    def peak(layers, attached):
        model, _ = pair(LAYERS["plain"], again, layers)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scope = contextlib.nullcontext()
        if attached:
            scope = gradscope.attach(model, optimizer=optimizer, out=None, every=1)
        with scope, Peak() as memory:
            weighted(model(data(0, 2, 32, 8))).backward()
            optimizer.step()
        return memory.most

    gc.collect()
    plain = [peak(layers, False) for layers in (2, 6)]
    attached = [peak(layers, True) for layers in (2, 6)]
    rows = 4 * 2 * 2 * 32 * 32  # bytes of one layer's softmax
    # Gradients of parameters and the layers' inputs grow with the depth; softmaxes don't.
    assert attached[1] - attached[0] < plain[1] - plain[0] + rows


class Kept:
    """A user's hooks on saved tensors."""

    def __init__(self):
        self.unpacked = 0

    def __enter__(self):
        self._hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: [t], self.unpack)
        return self._hooks.__enter__()

    def __exit__(self, *args):
        return self._hooks.__exit__(*args)

    def unpack(self, box):
        self.unpacked += 1
        return box[0]


@pytest.mark.supports(
    loop="saved-tensor hooks of one's own",
    hides=["softmaxes"],
    because="hooks on saved tensors may not bear being run twice; the gain of a plain softmax "
    "is measured",
)
@pytest.mark.parametrize("layer", ["plain", "fused"])
def test_hooks_of_the_users_own_are_run_as_often_as_without(layer):
    counts = []
    for attached in (False, True):
        kept = Kept()

        def run(layer, x, kept=kept):
            with kept:
                return layer(x)

        model, twin = pair(LAYERS[layer], run)
        if attached:
            found = record_steps(model)
        else:
            loss_of(model, 0).backward()
        counts.append(kept.unpacked)
    assert counts[0] == counts[1] > 0
    gains = {s: {"gain": m["gain"]} for s, m in close_to(watched(twin)).items()}
    assert recorded(found) == (gains if layer == "plain" else {})
    told = {entry["what"] for entry in found.meta["unseen"]}
    more = ", gain" if layer == "fused" else ""
    assert told == {f"layers.{i}: entropy, max_prob, jacobian_norm{more}" for i in (0, 1)}
    assert all("saved tensors" in entry["why"] for entry in found.meta["unseen"])


def close_to(expected):
    return {s: {m: pytest.approx(v, rel=1e-5) for m, v in r.items()} for s, r in expected.items()}


@pytest.mark.supports(
    loop="checkpoint, reentrant",
    hides=["softmaxes"],
    because="reentrant checkpointing hides the graph inside",
)
@pytest.mark.parametrize(
    "run",
    [
        lambda layer, x: checkpoint(layer, x, use_reentrant=True),
        lambda layer, x: checkpoint(layer.__call__, x, use_reentrant=True),
        lambda layer, x: checkpoint(partial(layer.forward), x, use_reentrant=True),
    ],
    ids=["module", "call", "partial"],
)
def test_a_reentrant_checkpoint_is_told_by_its_module(run):
    model, _ = pair(LAYERS["encoder layer"], run)
    found = record_steps(model)
    assert found.sites_of("softmax") == []
    told = {entry["what"] for entry in found.meta["unseen"]}
    assert told == {f"layers.{i} and the modules in it" for i in (0, 1)}
    assert all("use_reentrant=True" in entry["why"] for entry in found.meta["unseen"])


def test_a_reentrant_checkpoint_of_a_function_is_told():
    model, _ = pair(
        LAYERS["plain"], lambda layer, x: checkpoint(lambda y: layer(y), x, use_reentrant=True)
    )
    told = [entry["what"] for entry in record_steps(model).meta["unseen"]]
    assert told == ["the inside of a part of the model"]


@pytest.mark.supports(model="Llama, gradient_checkpointing_enable", shows=["softmaxes"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_hugging_face_model_that_checkpoints(implementation):
    from tests.reference.huggingface import language, llama

    build = llama(attn_implementation=implementation, attention_dropout=0.0)
    torch.manual_seed(0)
    model = build()
    twin = copy.deepcopy(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    run = record_steps(model, loss_of=language)
    assert recorded(run) == close(watched(twin, loss_of=language))
    assert run.meta["unseen"] == []
    assert len(run.sites_of("softmax")) == model.config.num_hidden_layers
