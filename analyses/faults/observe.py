"""What a training run does, measured without gradscope: the evidence that a fault is one.

The run is trained bare. At a few steps its loss is computed once more with `torch.autograd.grad`,
hooks on modules, and a `TorchFunctionMode` that looks at activations and softmaxes as they are
called; the random state is put back, so that training is the same.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from analyses.faults.training import Training

PROBED_AT = (0.0, 0.25, 0.5, 0.75)  # shares of the run, beside its last step
END = 0.01  # distance from a saturating function's limit, over its range, that counts as its end


@dataclass
class Checkpoint:
    """One step looked at.

    Attributes:
        ladder: (module, RMS of the gradient at its output), leaf modules in the order called;
            of a fused recurrence, its inputs by time.
        norms: parameter → norm of its gradient.
        zero_share: of the elements of trainable parameters: gradient exactly 0, or none.
        dead: rectifier by its place in the forward pass → share of units that are 0 throughout.
        saturated: likewise, share of values at the ends of tanh, sigmoid, hardtanh.
        entropies: mean normalised entropy of every softmax called in the model.
        agreement: of every tensor that several modules are called with, ‖Σ g_e‖/√Σ‖g_e‖².
        edge_shares: of every such tensor, the smallest ‖g_e‖/√Σ‖g_e‖² that is not 0.
        lost_in_half: share of the elements whose float32 gradient isn't 0 that are 0.
    """

    step: int
    loss: float
    ladder: list[tuple[str, float]] = field(default_factory=list)
    norms: dict[str, float] = field(default_factory=dict)
    zero_share: float = 0.0
    dead: dict[str, float] = field(default_factory=dict)
    saturated: dict[str, float] = field(default_factory=dict)
    entropies: list[float] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)
    edge_shares: list[float] = field(default_factory=list)
    lost_in_half: float = 0.0

    def smallest_share(self) -> float:
        """Smallest norm of a matrix's gradient over the largest."""
        found = [n for n in self.norms.values() if math.isfinite(n) and n > 0]
        return min(found) / max(found) if found else 1.0


@dataclass
class Observed:
    """A whole run."""

    checkpoints: list[Checkpoint]
    loss_first: float
    loss_last: float
    moved: dict[str, float]
    without_gradient: list[str]
    leaves_not_held: int
    finite: bool
    first_non_finite: str

    @property
    def last(self) -> Checkpoint:
        return self.checkpoints[-1]

    def decades(self, like: str = "") -> list[float]:
        """log₁₀(gradient nearest the output / nearest the input), at each checkpoint."""
        return [_decades([g for name, g in c.ladder if like in name]) for c in self.checkpoints]


def observe(make: Callable[[], Training], *, half: bool = False) -> Observed:
    """Train bare and look.

    Args:
        half: also compute gradients in float32, to count what float16 lost.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training = make()
    model = training.model
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    at = {round(share * training.steps) for share in PROBED_AT} | {training.steps - 1}
    checkpoints, losses, without = [], [], set(before)
    not_held, culprit, finite = 0, "", True
    for step in range(training.steps):
        if step in at:
            with _undisturbed():
                found, none, leaves = _probe(training, step, half)
            checkpoints.append(found)
            without &= none
            not_held = max(not_held, leaves)
        saved = copy.deepcopy(model.state_dict()) if finite else None
        logged = training.step(training, step)
        losses.append(float(logged["loss"]))
        finite_now = math.isfinite(losses[-1]) and all(
            bool(p.isfinite().all()) for p in model.parameters()
        )
        if finite and not finite_now:
            finite = False
            now = copy.deepcopy(model.state_dict())
            model.load_state_dict(saved or {})
            with _undisturbed():
                culprit = first_non_finite(training, step)
            model.load_state_dict(now)
    tail = max(1, len(losses) // 10)
    return Observed(
        checkpoints=checkpoints,
        loss_first=sum(losses[:3]) / 3,
        loss_last=sum(losses[-tail:]) / tail,
        moved={
            n: _ratio(
                (p.detach() - before[n]).float().norm().item(), before[n].float().norm().item()
            )
            for n, p in model.named_parameters()
            if p.ndim > 1 and p.requires_grad and n in before and before[n].shape == p.shape
        },
        without_gradient=sorted(
            n for n in without if dict(model.named_parameters())[n].requires_grad
        ),
        leaves_not_held=not_held,
        finite=finite,
        first_non_finite=culprit,
    )


def _ratio(a: float, b: float) -> float:
    return a / b if b else (math.inf if a else 0.0)


def _decades(ladder: list[float]) -> float:
    if len(ladder) < 2 or not ladder[-1]:
        return 0.0
    return math.log10(ladder[-1] / max(ladder[0], 1e-45)) if math.isfinite(ladder[0]) else -math.inf


@contextmanager
def _undisturbed() -> Iterator[None]:
    state = torch.random.get_rng_state()
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


def _probe(training: Training, step: int, half: bool) -> tuple[Checkpoint, set[str], int]:
    model = training.model
    calls: list[tuple[str, Tensor]] = []
    shared: dict[int, list[Tensor]] = {}
    kept: list[Tensor] = []  # so that no id is given twice
    watch = _Watch()
    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(_alias(shared, kept)))
        if isinstance(module, nn.MultiheadAttention):
            handles.append(module.register_forward_pre_hook(_attends(watch), with_kwargs=True))
        if isinstance(module, nn.LSTMCell):
            handles.append(module.register_forward_pre_hook(_gates(watch, name)))
        if isinstance(module, nn.RNNBase):
            handles.append(module.register_forward_pre_hook(_by_time(calls, name)))
        elif name and not list(module.children()):
            handles.append(module.register_forward_hook(_output(calls, name)))
    try:
        with watch:
            loss = training.loss_at(step)
    finally:
        for handle in handles:
            handle.remove()
    found = Checkpoint(step, float(loss.detach()), entropies=watch.entropies)
    found.dead, found.saturated = watch.dead, watch.saturated
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    aliases = [alias for group in shared.values() if len(group) > 1 for alias in group]
    wanted = [*named.values(), *(t for _, t in calls), *aliases]
    given = torch.autograd.grad(loss, wanted, allow_unused=True) if loss.requires_grad else ()
    own = [g.to_dense() if g is not None and g.is_sparse else g for g in given[: len(named)]]
    gradients: dict[str, Tensor | None] = dict.fromkeys(named)
    gradients.update(zip(named, own, strict=False))
    for (name, _), g in zip(calls, given[len(named) :], strict=False):
        if g is not None:
            found.ladder.append((name, g.float().square().mean().sqrt().item()))
    edges = iter(given[len(named) + len(calls) :])
    for group in (g for g in shared.values() if len(g) > 1):
        there = [e.flatten() for e in (next(edges, None) for _ in group) if e is not None]
        norms = [float(e.norm()) for e in there if bool((e != 0).any())]
        if len(norms) > 1:
            together = math.hypot(*norms)
            found.agreement.append(float(torch.stack(there).sum(0).norm()) / together)
            found.edge_shares.append(min(norms) / together)
    elements = sum(p.numel() for p in named.values())
    zeros = 0
    for n, p in named.items():
        gradient = gradients[n]
        zeros += p.numel() if gradient is None else int((gradient == 0).sum())
    found.zero_share = zeros / max(elements, 1)
    found.norms = {
        n: g.float().norm().item() for n, g in gradients.items() if g is not None and g.ndim > 1
    }
    if half:
        found.lost_in_half = _lost(training, step, gradients)
    none = {n for n, g in gradients.items() if g is None}
    return found, none, _leaves_not_held(loss, training)


def _alias(shared: dict[int, list[Tensor]], kept: list[Tensor]) -> Callable[..., Any]:
    """Give each module its own alias of its input: gradients by consumer."""

    def hook(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not given or not isinstance(given[0], Tensor) or not given[0].requires_grad:
            return None
        alias = given[0].view_as(given[0])
        kept.append(given[0])
        shared.setdefault(id(given[0]), []).append(alias)
        return (alias, *given[1:])

    return hook


def _output(calls: list[tuple[str, Tensor]], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, given: Any, out: Any) -> None:
        first = out[0] if isinstance(out, tuple) else out
        if isinstance(first, Tensor) and first.requires_grad and list(module.parameters()):
            calls.append((name, first))

    return hook


def _by_time(calls: list[tuple[str, Tensor]], name: str) -> Callable[..., Any]:
    def hook(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        steps = [x.detach().requires_grad_() for x in given[0].unbind(1)]
        calls.extend((f"{name}[{t}]", x) for t, x in enumerate(steps))
        return (torch.stack(steps, 1), *given[1:])

    return hook


def _attends(watch: _Watch) -> Callable[..., None]:
    """Fused attention of nn.MultiheadAttention, computed again by hand."""

    def hook(module: nn.MultiheadAttention, given: tuple[Tensor, ...], _: Any) -> None:
        with torch.no_grad():
            x = given[0]
            q, k, _v = (x @ module.in_proj_weight.T + module.in_proj_bias).chunk(3, dim=-1)
            split = (*x.shape[:2], module.num_heads, module.head_dim)
            q, k = q.view(split).transpose(1, 2), k.view(split).transpose(1, 2)
            watch.softmax((q @ k.transpose(-2, -1) * module.head_dim**-0.5).softmax(-1))

    return hook


def _gates(watch: _Watch, name: str) -> Callable[..., None]:
    def hook(module: nn.LSTMCell, given: tuple[Any, ...]) -> None:
        with torch.no_grad():
            x, (h, _) = given
            sums = x @ module.weight_ih.T + h @ module.weight_hh.T + module.bias_ih + module.bias_hh
            watch.ends(name, sums.sigmoid(), 0.0, 1.0)

    return hook


class _Watch(TorchFunctionMode):
    """Looks at what activations and softmaxes return."""

    def __init__(self) -> None:
        super().__init__()
        self.dead: dict[str, float] = {}
        self.saturated: dict[str, float] = {}
        self.entropies: list[float] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if not isinstance(out, Tensor) or out.dtype == torch.int64:
            return out
        values = out.detach()
        if name in ("relu", "relu_"):
            units = values.transpose(0, 1) if values.ndim == 4 else values.movedim(-1, 0)
            self.dead[f"{name}{len(self.dead)}"] = float(
                (units.flatten(1).amax(1) == 0).float().mean()
            )
        elif name in ("tanh", "sigmoid", "hardtanh"):
            self.ends(name, values, 0.0 if name == "sigmoid" else -1.0, 1.0)
        elif name == "softmax":
            self.softmax(values)
        return out

    def ends(self, name: str, values: Tensor, low: float, high: float) -> None:
        margin = END * (high - low)
        at_end = (values <= low + margin) | (values >= high - margin)
        self.saturated[f"{name}{len(self.saturated)}"] = float(at_end.float().mean())

    def softmax(self, p: Tensor) -> None:
        n = (p > 0).sum(-1).clamp(min=2) if (p == 0).any() else torch.tensor(p.shape[-1])
        rows = torch.special.entr(p.float()).sum(-1) / math.log(max(p.shape[-1], 2))
        if bool((n < p.shape[-1]).any()) and p.ndim == 4 and p.shape[-1] == p.shape[-2]:
            rows = rows[..., p.shape[-1] // 2 :]  # causal: early rows are short
        self.entropies.append(float(rows.mean()))


def _lost(training: Training, step: int, gradients: dict[str, Tensor | None]) -> float:
    exact = copy.deepcopy(training.model).float()
    batch = [t.float() if t.is_floating_point() else t for t in training.batch(step)]
    with mock.patch("torch.autocast", lambda *a, **k: nullcontext()):
        loss = training.loss(exact, *batch)
    named = {n: p for n, p in exact.named_parameters() if p.requires_grad}
    there = lost = 0
    for (name, _), g in zip(
        named.items(), torch.autograd.grad(loss, list(named.values())), strict=True
    ):
        mine = gradients[name]
        there += int((g != 0).sum())
        lost += int(((g != 0) & (mine == 0)).sum()) if mine is not None else int((g != 0).sum())
    return lost / max(there, 1)


def _leaves_not_held(loss: Tensor, training: Training) -> int:
    """Leaves of the loss's graph that no optimizer holds."""
    optimizers = [training.optimizer, *training.others]
    held = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}
    seen: set[Any] = set()
    todo = [loss.grad_fn]
    missing = 0
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and isinstance(variable, nn.Parameter):
            missing += id(variable) not in held
        todo += [n for n, _ in node.next_functions]
    return missing


class _Scan(TorchDispatchMode):
    """The first operation with a result that is not finite."""

    # An infinity that is written on purpose: a mask.
    MASKS = ("masked_fill", "where", "full", "fill", "scalar_tensor", "_to_copy", "lift_fresh")

    def __init__(self) -> None:
        super().__init__()
        self.found = ""
        self.masked: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if self.found or any(mask in name for mask in self.MASKS):
            return out
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, Tensor) and t.is_floating_point() and not bool(t.isfinite().all()):
                masked = bool((t == -torch.inf).any()) and not bool(t.isnan().any())
                if not (masked and name in ("view", "expand", "_unsafe_view", "detach", "alias")):
                    self.found = name
        return out


def first_non_finite(training: Training, step: int) -> str:
    """Name of the first operation whose result, else whose gradient, is not finite."""
    batch = training.batch(step)
    if any(t.is_floating_point() and not bool(t.isfinite().all()) for t in batch):
        return "input"
    scan = _Scan()
    with scan:
        loss = training.loss(training.model, *batch)
    if scan.found:
        return scan.found
    found: list[str] = []

    def hook(node: Any) -> Callable[..., None]:
        def look(grad_inputs: Any, grad_outputs: Any) -> None:
            bad = any(g is not None and not bool(g.isfinite().all()) for g in grad_inputs)
            if bad and not found:
                found.append(node.name())

        return look

    seen: set[Any] = set()
    todo = [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.next_functions:
            node.register_hook(hook(node))
        todo += [n for n, _ in node.next_functions]
    torch.autograd.grad(loss, [p for p in training.model.parameters() if p.requires_grad],
                        allow_unused=True)  # fmt: skip
    return found[0] if found else "update"
