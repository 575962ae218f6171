"""A slow, obvious recorder of a training run: every number read from retained gradients.

Rules are tested on real gradients with it, without the capture code. A module's output tensors
keep their gradient (`retain_grad`); the terms of every fork are what each backward node hands
to the tensor; softmaxes are the `nn.Softmax` modules. One backward pass a step, no AMP.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import nn

from gradscope.run import Run, Site


def train(model, optimizer, loss_of, steps, *, every=1, scheduler=None, scalars=()):
    """Train for `steps` optimizer steps and return the `Run` of every `every`-th of them.

    `loss_of(model, step)` runs the forward pass and returns the loss. `scalars` is a set of
    names out of {"lr"} to log beside the loss.
    """
    recorder = Recorder(model)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        if step % every == 0:
            with recorder.watching():
                loss = loss_of(model, step)
            with recorder.measuring(step, loss):
                loss.backward()
            with recorder.updating(step):
                optimizer.step()
        else:
            loss = loss_of(model, step)
            loss.backward()
            optimizer.step()
        recorder.scalar(step, "loss", loss.item())
        if "lr" in scalars:
            recorder.scalar(step, "lr", optimizer.param_groups[0]["lr"])
        if scheduler is not None:
            scheduler.step()
    return recorder.run()


class Recorder:
    def __init__(self, model):
        self.model = model
        self.records = []
        self.sites = {}

    def run(self):
        return Run.from_records(self.records, self.sites.values(), {"name": "test"})

    def scalar(self, step, name, value):
        self.records.append((step, name, "scalar", "", "value", value))

    # -- forward: which tensor, which span of graph nodes belongs to which module ----------

    def watching(self):
        return _Watch(self)

    def measuring(self, step, loss):
        return _Measure(self, step, loss)

    def updating(self, step):
        return _Update(self, step)

    def add(self, step, kind, name, edge, metric, value):
        self.records.append((step, name, kind, edge, metric, float(value)))

    def gradient(self, step, kind, name, grad, edge=""):
        self.add(step, kind, name, edge, "grad_norm", grad.double().norm())
        bad = int((~torch.isfinite(grad)).sum())
        if bad and not edge:
            self.add(step, kind, name, "", "nonfinite", bad)


class _Watch:
    def __init__(self, recorder):
        self.recorder = recorder

    def __enter__(self):
        r = self.recorder
        r.outputs, r.softmaxes, r.spans, r.calls = {}, {}, [], defaultdict(int)
        self.handles = []
        for path, module in r.model.named_modules():
            self.handles.append(module.register_forward_pre_hook(self._before(path)))
            self.handles.append(module.register_forward_hook(self._after(path)))

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def _before(self, path):
        def hook(module, args):
            self.recorder.spans.append([path, _sequence(), None])
            if isinstance(module, nn.Softmax) and args[0].requires_grad:
                args[0].retain_grad()

        return hook

    def _after(self, path):
        def hook(module, args, output):
            r = self.recorder
            span = next(s for s in reversed(r.spans) if s[0] == path and s[2] is None)
            span[2] = _sequence()
            call = r.calls[path]
            r.calls[path] += 1
            base = (path or "(output)") + (f"#{call}" if call else "")
            for suffix, tensor in _tensors(output):
                if tensor.grad_fn is not None:
                    tensor.retain_grad()
                    r.outputs[base + suffix] = (tensor, type(module).__name__)
            if isinstance(module, nn.Softmax) and args[0].requires_grad:
                r.softmaxes[base] = (args[0], output, module.dim)

        return hook


class _Measure:
    def __init__(self, recorder, step, loss):
        self.recorder, self.step, self.loss = recorder, step, loss

    def __enter__(self):
        r = self.recorder
        r.terms = defaultdict(dict)
        depth = _depths(self.loss)
        seen = {}
        for order, (name, (tensor, type_)) in enumerate(r.outputs.items()):
            alias = seen.setdefault(id(tensor), name)
            site = Site(
                name,
                "module",
                type_,
                order,
                depth.get(tensor.grad_fn, -1),
                tuple(tensor.shape),
                tensor.numel(),
                alias if alias != name else "",
            )
            r.sites.setdefault(("module", name), site)
        self.handles = []
        names = {t.grad_fn: n for n, (t, _) in reversed(list(r.outputs.items()))}
        parameters = {id(p): n for n, p in r.model.named_parameters()}
        consumers = defaultdict(int)
        for node in depth:
            for child, at in node.next_functions:
                if child is not None:
                    consumers[child, at] += 1
        for node in depth:
            for j, (child, at) in enumerate(node.next_functions):
                if child is not None and consumers[child, at] > 1 and at == 0:
                    variable = getattr(child, "variable", None)
                    if variable is not None:
                        fork = parameters.get(id(variable), "(input)")
                    else:
                        fork = names.get(child) or f"{self._owner(child)}:{_op(child)}"
                    edge = f"{self._owner(node)}:{_op(node)}"
                    self.handles.append(node.register_hook(self._collect(fork, edge, j)))

    def _owner(self, node):
        number = node._sequence_nr()
        inside = [s for s in self.recorder.spans if s[1] < number < s[2]]
        return min(inside, key=lambda s: s[2] - s[1])[0] if inside else "(loss)"

    def _collect(self, fork, edge, j):
        def hook(grad_inputs, grad_outputs):
            terms, name, k = self.recorder.terms[fork], edge, 0
            while name in terms:
                k += 1
                name = f"{edge}#{k}"
            if grad_inputs[j] is not None:
                terms[name] = grad_inputs[j].detach().clone()

        return hook

    def __exit__(self, *_):
        r, step = self.recorder, self.step
        for handle in self.handles:
            handle.remove()
        for name, (tensor, _) in r.outputs.items():
            if not r.sites["module", name].alias_of and tensor.grad is not None:
                r.gradient(step, "module", name, tensor.grad)
        for name, p in r.model.named_parameters():
            if p.requires_grad:
                site = Site(name, "parameter", "", len(r.sites), -1, tuple(p.shape), p.numel())
                r.sites.setdefault(("parameter", name), site)
                if p.grad is not None:
                    r.gradient(step, "parameter", name, p.grad)
        for name, terms in r.terms.items():
            if len(terms) > 1:
                self._fork(name, terms)
        for name, (logits, p, dim) in r.softmaxes.items():
            if logits.grad is not None and p.grad is not None:
                self._softmax(name, logits.grad, p, dim)

    def _fork(self, name, terms):
        r, step = self.recorder, self.step
        total = sum(t.double() for t in terms.values())
        norms = {edge: t.double().norm() for edge, t in terms.items()}
        for edge, t in terms.items():
            r.gradient(step, "fork", name, t, edge)
            inner = (t.double() * total).sum()
            r.add(step, "fork", name, edge, "projection", inner / total.norm() ** 2)
            r.add(step, "fork", name, edge, "cosine", inner / (norms[edge] * total.norm()))
        r.add(step, "fork", name, "", "grad_norm", total.norm())
        r.add(step, "fork", name, "", "cancellation", 1 - total.norm() / sum(norms.values()))

    def _softmax(self, name, logits_grad, p, dim):
        r, step = self.recorder, self.step
        n = p.shape[dim]
        r.sites.setdefault(
            ("softmax", name), Site(name, "softmax", "softmax", len(r.sites), -1, tuple(p.shape))
        )
        q = p.detach().double().movedim(dim, -1)
        entropy = -torch.special.xlogy(q, q).sum(-1) / math.log(n) if n > 1 else torch.zeros(1)
        squares, cubes = (q**2).sum(-1), (q**3).sum(-1)
        jacobian = (squares - 2 * cubes + squares**2).clamp_min(0).sqrt()
        r.add(step, "softmax", name, "", "entropy", entropy.mean())
        r.add(step, "softmax", name, "", "max_prob", q.amax(-1).mean())
        r.add(step, "softmax", name, "", "jacobian_norm", jacobian.mean())
        r.add(step, "softmax", name, "", "gain", logits_grad.norm() / p.grad.norm())


class _Update:
    def __init__(self, recorder, step):
        self.recorder, self.step = recorder, step

    def __enter__(self):
        named = self.recorder.model.named_parameters()
        self.before = {n: p.detach().clone() for n, p in named if p.requires_grad}

    def __exit__(self, *_):
        r, now = self.recorder, dict(self.recorder.model.named_parameters())
        for name, before in self.before.items():
            norm, moved = before.double().norm(), (now[name].detach() - before).double().norm()
            r.add(self.step, "parameter", name, "", "weight_norm", norm)
            if norm > 0:
                r.add(self.step, "parameter", name, "", "update_ratio", moved / norm)


def _tensors(output):
    if isinstance(output, torch.Tensor):
        yield "", output
    elif hasattr(output, "_fields"):
        for field in output._fields:
            if isinstance(getattr(output, field), torch.Tensor):
                yield f".{field}", getattr(output, field)
    elif isinstance(output, tuple | list):
        for i, item in enumerate(output):
            if isinstance(item, torch.Tensor):
                yield f"[{i}]", item


def _depths(loss):
    """Longest path from the loss to every node of the graph, in nodes."""
    order, state, stack = [], {}, [loss.grad_fn]
    while stack:
        node = stack[-1]
        if state.get(node):
            stack.pop()
            if state[node] == 1:
                state[node] = 2
                order.append(node)
            continue
        state[node] = 1
        stack.extend(c for c, _ in node.next_functions if c is not None and not state.get(c))
    depth = {loss.grad_fn: 0}
    for node in reversed(order):
        for child, _ in node.next_functions:
            if child is not None:
                depth[child] = max(depth.get(child, 0), depth[node] + 1)
    return depth


def _op(node):
    name = node.name().removesuffix("0").removesuffix("1").removesuffix("Backward")
    return {"Addmm": "linear", "ThAdd": "add"}.get(name, name.lower())


def _sequence():
    return (torch.zeros((), requires_grad=True) * 1).grad_fn._sequence_nr()
