"""A gradient as a sum over paths: every path of a small graph, one product of Jacobians each.

Slow and obvious on purpose. Jacobians are dense float64 matrices written from the formulas of
the operations; autograd plays no part in them. The same program of operations can also be run
by torch, to get the graph that is to be analysed.

Index legend: n length of every value, read as T tokens × d features where attention needs it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

D = 2  # features of a token
ARITY = {"linear": 1, "tanh": 1, "softmax": 1, "add": 2, "mul": 2, "fused": 3, "unfused": 3}
# The arguments from which a path crosses a softmax.
CROSSING = {"softmax": {0}, "fused": {0, 1}, "unfused": {0, 1}}


@dataclass(frozen=True)
class Op:
    """One operation. Value 0 is the input; the i-th op makes value i + 1.

    "linear" multiplies by weight number `weight` times `scale`, "fused" and "unfused" are
    attention with the inputs (query, key, value).
    """

    kind: str
    inputs: tuple[int, ...]
    weight: int = 0
    scale: float = 1.0


@dataclass(frozen=True)
class Program:
    """Operations, their weights (n, n), the input (n,) and the loss ⟨readout, last value⟩."""

    ops: list[Op]
    weights: list[Tensor]
    x: Tensor
    readout: Tensor


@dataclass
class Graph:
    """A program as torch ran it. `values[0]` and `weights` are leaves."""

    values: list[Tensor]
    weights: list[Tensor]
    loss: Tensor


# -- run by torch -------------------------------------------------------------------------


def run(program: Program, dtype: torch.dtype = torch.float64, gate: float = 1.0) -> Graph:
    """The program in torch; `gate` multiplies the gradient at every softmax crossed."""
    weights = [w.to(dtype, copy=True).requires_grad_() for w in program.weights]
    values = [program.x.to(dtype, copy=True).requires_grad_()]
    for op in program.ops:
        values.append(_torch(op, [values[i] for i in op.inputs], weights, gate))
    loss = program.readout.to(dtype) @ values[-1]
    return Graph(values, weights, loss)


def _torch(op: Op, arguments: list[Tensor], weights: list[Tensor], gate: float) -> Tensor:
    arguments = [
        gate * a + (1 - gate) * a.detach() if gate != 1 and i in CROSSING.get(op.kind, ()) else a
        for i, a in enumerate(arguments)
    ]
    x = arguments[0]
    match op.kind:
        case "linear":
            return op.scale * (weights[op.weight] @ x)
        case "tanh":
            return torch.tanh(x)
        case "softmax":
            return torch.softmax(x, 0)
        case "add":
            return x + arguments[1]
        case "mul":
            return x * arguments[1]
    q, k, v = (a.view(1, 1, -1, D) for a in arguments)
    if op.kind == "fused":
        return F.scaled_dot_product_attention(q, k, v).reshape(-1)
    return (torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(D), -1) @ v).reshape(-1)


# -- path by path -------------------------------------------------------------------------


def paths(ops: list[Op], end: int, start: int) -> Iterator[list[tuple[int, int]]]:
    """Every path from value `end` back to value `start`: (op, argument by which it leaves)."""
    if end == start:
        yield []
    if end <= start:
        return
    op = end - 1
    for argument, before in enumerate(ops[op].inputs):
        for rest in paths(ops, before, start):
            yield [(op, argument), *rest]


def graded(program: Program, value: int, orders: int, noise: float = 0.0, seed: int = 0) -> Tensor:
    """G_0 … G_orders of the loss at a value, (orders + 1, n) float64.

    With `noise`, every value of the forward pass is off by about that much, relative to its size.
    """
    parts = torch.zeros(orders + 1, len(program.x), dtype=torch.float64)
    for path, gradient in _contributions(program, value, noise, seed):
        parts[crossed(program.ops, path)] += gradient
    return parts


def graded_weight(program: Program, weight: int, orders: int) -> Tensor:
    """G_0 … G_orders at a weight, over all operations that use it, (orders + 1, n, n)."""
    n = len(program.x)
    inputs = _values(program)
    parts = torch.zeros(orders + 1, n, n, dtype=torch.float64)
    for i, op in enumerate(program.ops):
        if op.kind == "linear" and op.weight == weight:
            for path, gradient in _contributions(program, i + 1):
                parts[crossed(program.ops, path)] += op.scale * torch.outer(
                    gradient, inputs[op.inputs[0]]
                )
    return parts


def through(program: Program, value: int, gates: Collection[int]) -> tuple[Tensor, Tensor]:
    """(through, avoiding): whether a path to `value` visits one of the values `gates`."""
    parts = torch.zeros(2, len(program.x), dtype=torch.float64)
    for path, gradient in _contributions(program, value):
        visited = {program.ops[op].inputs[argument] for op, argument in path}
        parts[0 if visited & set(gates) else 1] += gradient
    return parts[0], parts[1]


def most_crossed(ops: list[Op], value: int) -> int:
    """The largest number of softmaxes on a path from the last value to `value`; -1 if none."""
    return max((crossed(ops, p) for p in paths(ops, len(ops), value)), default=-1)


def crossed(ops: list[Op], path: list[tuple[int, int]]) -> int:
    return sum(argument in CROSSING.get(ops[op].kind, ()) for op, argument in path)


def rounding(program: Program, value: int, orders: int, epsilon: float) -> float:
    """The error that rounding can leave in an order, relative to its own size; the largest.

    An error in the forward pass moves the Jacobians. An error in the backward pass remains
    where large terms cancel: those of several paths, or those in one Jacobian's sum.
    """
    exact = graded(program, value, orders)
    forward = torch.stack(
        [(graded(program, value, orders, epsilon, seed) - exact).norm(dim=1) for seed in range(8)]
    ).amax(0)
    errors = torch.maximum(forward, epsilon * magnitudes(program, value, orders).norm(dim=1))
    sizes = exact.norm(dim=1)
    return max((errors / sizes)[sizes > 0].tolist(), default=0.0)


def magnitudes(program: Program, value: int, orders: int) -> Tensor:
    """`graded` with the absolute value of every number: what there is before it cancels."""
    parts = torch.zeros(orders + 1, len(program.x), dtype=torch.float64)
    for path, gradient in _contributions(program, value, absolute=True):
        parts[crossed(program.ops, path)] += gradient
    return parts


def _contributions(
    program: Program, value: int, noise: float = 0.0, seed: int = 0, absolute: bool = False
) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
    values = _values(program, noise, seed)
    jacobians = [
        _jacobians(op, [values[i] for i in op.inputs], program.weights, output, absolute)
        for op, output in zip(program.ops, values[1:], strict=True)
    ]
    readout = program.readout.double()
    readout = readout.abs() if absolute else readout
    for path in paths(program.ops, len(program.ops), value):
        gradient = readout
        for op, argument in path:
            gradient = gradient @ jacobians[op][argument]
        yield path, gradient


def _values(program: Program, noise: float = 0.0, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = [w.double() for w in program.weights]
    values = [program.x.double()]
    for op in program.ops:
        plain = Op("unfused", op.inputs) if op.kind == "fused" else op
        value = _torch(plain, [values[i] for i in op.inputs], weights, 1.0)
        error = torch.randn(len(value), generator=generator, dtype=torch.float64)
        values.append(value * (1 + noise * error))
    return values


def _jacobians(
    op: Op, arguments: list[Tensor], weights: list[Tensor], output: Tensor, absolute: bool
) -> list[Tensor]:
    """∂ output / ∂ argument, (n, n) each; with absolute values in every sum, if asked for."""
    if op.kind in ("fused", "unfused"):
        return _attention_jacobians(*(a.view(-1, D) for a in arguments), absolute)
    exact = _plain_jacobians(op, arguments, weights, output)
    return [j.abs() for j in exact] if absolute else exact


def _plain_jacobians(
    op: Op, arguments: list[Tensor], weights: list[Tensor], output: Tensor
) -> list[Tensor]:
    x = arguments[0]
    one = torch.eye(len(x), dtype=torch.float64)
    match op.kind:
        case "linear":
            return [op.scale * weights[op.weight].double()]
        case "tanh":
            # 1 − output², which is all that the graph knows: an error in it shows.
            error = (torch.tanh(x) - output) * (torch.tanh(x) + output)
            return [torch.diag(1 / torch.cosh(x) ** 2 + error)]
        case "softmax":
            return [_softmax_jacobian(torch.softmax(x, 0))]
        case "add":
            return [one, one]
        case "mul":
            return [torch.diag(arguments[1]), torch.diag(x)]
    raise ValueError(op.kind)


def _softmax_jacobian(p: Tensor) -> Tensor:
    """−p_i p_j off the diagonal, which makes every row sum to zero. No 1 − p_i: it cancels."""
    jacobian = -torch.outer(p, p).fill_diagonal_(0)
    return jacobian - torch.diag(jacobian.sum(1))


def _attention_jacobians(q: Tensor, k: Tensor, v: Tensor, absolute: bool) -> list[Tensor]:
    """o_ia = Σ_j p_ij v_ja with p_i = softmax_j(s_ij), s_ij = q_i · k_j / √d.

    ∂o_ia/∂s_ij = p_ij Σ_l p_il (v_ja − v_la), ∂s_ij/∂q_ic = k_jc / √d, ∂s_ij/∂k_jc = q_ic / √d.
    As ∂o_ia/∂s_ij sums to zero over j, the mean of the keys may be left out.
    """
    T = len(q)
    p = torch.softmax(q @ k.T / math.sqrt(D), 1)
    keys = k.abs() if absolute else k - k.mean(0)
    queries = q.abs() if absolute else q
    to_q, to_k, to_v = (torch.zeros(T, D, T, D, dtype=torch.float64) for _ in range(3))
    for i in range(T):
        for a in range(D):
            for j in range(T):
                to_v[i, a, j, a] = p[i, j]
                apart = v[j, a].abs() + v[:, a].abs() if absolute else v[j, a] - v[:, a]
                by_logit = p[i, j] * (p[i] @ apart) / math.sqrt(D)
                for c in range(D):
                    to_q[i, a, i, c] += by_logit * keys[j, c]
                    to_k[i, a, j, c] += by_logit * queries[i, c]
    return [m.reshape(T * D, T * D) for m in (to_q, to_k, to_v)]
