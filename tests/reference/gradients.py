"""What `gradscope.attach` must record, computed the slow and obvious way.

Nothing here walks an autograd graph or hooks a node: module outputs, found by plain forward
hooks, tell their gradient to plain tensor hooks; the terms of a fork come from running the model
again with a separate copy of the tensor for every reader; softmax quantities are loops over
rows with a dense Jacobian, in float64.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import contextmanager

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map


def norm(tensor):
    """‖tensor‖₂ in float64, right where the squares of its elements would not be."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    values = tensor.detach().double().flatten()
    if not values.isfinite().all():
        return math.nan
    largest = values.abs().max().item() if len(values) else 0.0
    return largest * (values / largest).square().sum().sqrt().item() if largest else 0.0


def dot(a, b):
    """⟨a, b⟩ in float64; the real part, for complex tensors."""
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    return (a.detach().double() * b.detach().double()).sum().item()


def tensors_in(value, path):
    """(name, tensor) of all tensors in an output: fields by name, elements by index."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for field in value._fields:
            yield from tensors_in(getattr(value, field), f"{path}.{field}")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_in(item, f"{path}.{key}")
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from tensors_in(item, f"{path}[{index}]")


class ModuleCalls:
    """Follows a model's forward passes: which module is running, and what each returned.

    Args:
        model: the model; hooks stay on it until `remove()`.
        on_output: called with (name, tensor) for each tensor that a module returns.
        on_forward: called when a forward pass of the whole model begins.

    Attributes:
        stack: names of the running calls, outermost first.
    """

    def __init__(self, model, on_output, on_forward=lambda: None):
        self.stack = []
        self._on_output = on_output
        self._on_forward = on_forward
        self._calls = Counter()
        self._hooks = []
        for path, module in model.named_modules():
            path = path or "(output)"
            self._hooks += [
                module.register_forward_pre_hook(self._enter(path)),
                module.register_forward_hook(self._leave),
            ]

    def restart(self):
        """A new forward pass begins: calls are counted from 0."""
        self._calls.clear()
        self.stack.clear()

    def remove(self):
        for hook in self._hooks:
            hook.remove()

    def _enter(self, path):
        def enter(_module, _args):
            if path == "(output)":
                self.restart()
                self._on_forward()
            number = self._calls[path]
            self._calls[path] += 1
            self.stack.append(f"{path}#{number}" if number else path)

        return enter

    def _leave(self, _module, _args, output):
        name = self.stack.pop()
        for site, tensor in tensors_in(output, name):
            self._on_output(site, tensor)


class OutputGradients:
    """Gradients at all module outputs, by `Tensor.register_hook`, over a step's backward passes.

    A tensor that is changed in place later on still tells the gradient of what the module
    returned. A module that hands out a parameter, or an input that requires a gradient, made
    no tensor: leaves are left out.

    A model that is used by pieces never calls its root: call `new_forward()` before each of
    its forward passes. While `paused` is set, gradients don't count.
    """

    def __init__(self, model):
        self.paused = False
        self._gradients = {}
        self._calls = ModuleCalls(model, self._keep)

    def _keep(self, site, tensor):
        found = self._gradients.setdefault(site, [])

        def note(g):
            # None comes where another output of the same operation alone was read.
            if g is not None and not self.paused:
                found.append(g)

        if tensor.requires_grad and not tensor.is_leaf:
            tensor.register_hook(note)

    def new_forward(self):
        self._calls.restart()

    def clear(self):
        """A new optimizer step begins."""
        self._gradients = {}
        self._calls.restart()

    def gradients(self):
        """site -> list of gradients, one per backward pass in which the site got one."""
        return {site: grads for site, grads in self._gradients.items() if grads}

    def norms(self):
        """site -> grad_norm: root-sum-square over the step's backward passes."""
        return {
            site: math.sqrt(sum(norm(g) ** 2 for g in grads)) if len(grads) > 1 else norm(grads[0])
            for site, grads in self.gradients().items()
        }

    def rms(self):
        """site -> grad_rms: over all elements of the step's backward passes."""
        norms = self.norms()
        return {
            site: norms[site] / math.sqrt(sum(g.numel() for g in grads))
            for site, grads in self.gradients().items()
        }

    def remove(self):
        self._calls.remove()


class SeparateReaders(TorchFunctionMode):
    """Gives every call that reads one watched tensor a copy of its own.

    After `backward`, a copy's gradient is what flows back along that one edge. A tensor that
    is read twice by one call (x * x) is copied twice; only `F.multi_head_attention_forward`,
    which asks whether its arguments are the same object, gets one copy. What a custom
    `autograd.Function` reads is not seen: let it read an ordinary operation's result.
    """

    def __init__(self, where):
        super().__init__()
        self.watched = None
        self.copies = []  # (name of the running module, copy)
        self._where = where

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        mine = []

        def copy(value):
            if value is not self.watched or value is None:
                return value
            if mine and func is F.multi_head_attention_forward:
                return mine[0]
            mine.append(value.clone())
            return mine[-1]

        result = func(*tree_map(copy, args), **tree_map(copy, kwargs))
        if any(result is made for made in mine):  # x.to(x.dtype) reads nothing
            return self.watched
        outputs = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        if any(t.requires_grad for t in outputs):
            for made in mine:
                if made.requires_grad:
                    made.retain_grad()
                    self.copies.append((self._where(), made))
        return result


def fork_terms(model, loss_of, site=None, tensor=None):
    """Contributions to the gradient of one tensor, by the module that read it.

    Args:
        model: the model.
        loss_of: () -> loss, runs the forward pass.
        site: name of the module output to watch, or
        tensor: the tensor itself, for an input or a parameter.

    Returns:
        consumer -> list of contributions; "(outside)" is what reads it outside the model.
    """

    def on_output(name, output):
        if name == site:
            mode.watched = output

    calls = ModuleCalls(model, on_output)
    mode = SeparateReaders(lambda: calls.stack[-1] if calls.stack else "(outside)")
    mode.watched = tensor
    try:
        with mode:
            loss = loss_of()
        mode.watched = None
        loss.backward()
    finally:
        calls.remove()
    terms = {}
    for consumer, copy in mode.copies:
        if copy.grad is not None:
            terms.setdefault(consumer, []).append(copy.grad)
    return terms


def output_identities(model, loss_of):
    """site -> id of the tensor it names, for all module outputs that require a gradient."""
    kept = {}

    def on_output(name, tensor):
        if tensor.requires_grad:
            kept[name] = tensor

    calls = ModuleCalls(model, on_output)
    try:
        loss_of()
    finally:
        calls.remove()
    return {name: id(tensor) for name, tensor in kept.items()}


def fork_values(terms, total=None):
    """The fork's quantities from its terms: what `fork` rows of a run must say.

    Args:
        terms: consumer -> list of contributions.
        total: what they add up to, in a precision of its own; by default their exact sum.

    Returns:
        dict with grad_norm, cancellation, the list of projections (none if the sum is 0), and
        by consumer: projection (summed over its edges; 0 if the sum is 0), and the lists of
        norms and cosines.
    """
    every = [
        g.to(torch.promote_types(g.dtype, torch.float64)) for grads in terms.values() for g in grads
    ]
    total = torch.stack(every).sum(0) if total is None else total
    square = dot(total, total) or math.inf
    return {
        "grad_norm": norm(total),
        "cancellation": 1 - norm(total) / sum(norm(g) for g in every),
        "projection": {c: sum(dot(g, total) for g in gs) / square for c, gs in terms.items()},
        "projections": sorted(dot(g, total) / square for g in every) if square < math.inf else [],
        "norms": {c: sorted(norm(g) for g in gs) for c, gs in terms.items()},
        "cosines": {
            c: sorted(dot(g, total) / (norm(g) * norm(total)) for g in gs)
            for c, gs in terms.items()
            if norm(total) and all(norm(g) for g in gs)
        },
    }


def softmax_values(pairs):
    """entropy, max_prob, jacobian_norm and gain over rows, one row after the other.

    Args:
        pairs: (p, g): a softmax row (n,), and the gradient at it (n,).
    """
    entropy, max_prob, jacobian_norm, before, after = [], [], [], 0.0, 0.0
    nats, allowed = [], []
    for p, g in pairs:
        p, g = p.detach().double(), g.detach().double()
        n = len(p)
        jacobian = torch.empty(n, n, dtype=torch.float64)
        for i in range(n):
            for j in range(n):
                jacobian[i, j] = p[i] * ((1.0 if i == j else 0.0) - p[j])
        entropy.append(-sum(x * math.log(x) for x in p.tolist() if x > 0) / math.log(n))
        nats.append(-sum(x * math.log(x) for x in p.tolist() if x > 0))
        allowed.append(sum(x > 1e-30 for x in p.tolist()))
        max_prob.append(p.max().item())
        jacobian_norm.append(jacobian.norm().item())
        before += dot(g, g)
        after += dot(jacobian.T @ g, jacobian.T @ g)
    rows = len(entropy)
    return {
        "entropy": sum(entropy) / rows,
        "max_prob": sum(max_prob) / rows,
        "evenness": sum(nats) / sum(map(math.log, allowed)) if max(allowed) > 1 else 0.0,
        "uniform_gain": sum(1 / m for m in allowed) / rows,
        "jacobian_norm": sum(jacobian_norm) / rows,
        "gain": math.sqrt(after / before),
    }


def rows_along(p, g, dim):
    """(p, g) pairs of the rows of a softmax over `dim`."""
    n = p.shape[dim]
    return zip(p.movedim(dim, -1).reshape(-1, n), g.movedim(dim, -1).reshape(-1, n), strict=True)


def attention_rows(q, k, v, grad_output, scale=None, mask=None, causal=False):
    """(p, g) pairs of materialised attention, row by row in float64.

    Args:
        q: (B, H, L, E); k: (B, G, S, E) and v: (B, G, S, D), each serving H/G heads.
        grad_output: (B, H, L, D), gradient at the attention's output.
        scale: of the logits, 1/√E unless given.
        mask: broadcastable to (B, H, L, S): bool (True takes part) or added to the logits.
        causal: query i sees keys 0 … i.
    """
    q, k, v, grad_output = (t.detach().double() for t in (q, k, v, grad_output))
    B, H, L, E = q.shape
    S, groups = k.shape[2], H // k.shape[1]
    scale = 1 / math.sqrt(E) if scale is None else scale
    if mask is not None:
        mask = mask.detach().expand(B, H, L, S)
    for b in range(B):
        for h in range(H):
            for i in range(L):
                logits = scale * (k[b, h // groups] @ q[b, h, i])
                for j in range(S):
                    if mask is not None and mask.dtype == torch.bool and not mask[b, h, i, j]:
                        logits[j] = -math.inf
                    elif mask is not None and mask.dtype != torch.bool:
                        logits[j] += mask[b, h, i, j]
                    if causal and j > i:
                        logits[j] = -math.inf
                yield torch.softmax(logits, 0), v[b, h // groups] @ grad_output[b, h, i]


@contextmanager
def watched_outputs(model):
    """`OutputGradients` whose hooks are gone afterwards."""
    watch = OutputGradients(model)
    try:
        yield watch
    finally:
        watch.remove()
