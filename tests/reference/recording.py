"""Short training runs under `gradscope.attach`, and what they recorded, as dictionaries."""

import math

import pytest
import torch

import gradscope
from tests.reference.observer import nameless


def record(model, train, *, optimizer=None, every=1, update_every=1, **options):
    """The `Run` of `train(optimizer)`, recorded into memory.

    Args:
        model: the model.
        train: called with the optimizer, inside the scope.
        optimizer: by default plain SGD with a small learning rate.
    """
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
    scope = gradscope.attach(
        model, optimizer=optimizer, out=None, every=every, update_every=update_every, **options
    )
    with scope:
        train(optimizer)
    return scope.run()


def train_steps(model, loss_of, optimizer, steps, after_backward=lambda step: None):
    """`steps` ordinary training steps; returns the losses."""
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        loss = loss_of(model, step)
        loss.backward()
        after_backward(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def values(run, kind, metric, step=0):
    """site -> value at one step, of rows without an edge."""
    table = run.frame(kind, metric)
    table = table[(table["step"] == step) & (table["edge"] == "")]
    assert not table["site"].duplicated().any(), "a site has two values of one metric"
    return dict(zip(table["site"], table["value"], strict=True))


def fork_at(run, site, step=0):
    """What a run says about one fork.

    Returns:
        dict with grad_norm, cancellation, projections (a sorted list), and by consumer (the edge
        without its operation): projection (summed), norms and cosines (sorted lists).
    """
    table = run.frame("fork")
    return _fork(table[(table["step"] == step) & (table["site"] == site)])


def _fork(table):
    """`fork_at` of the rows of one fork at one step."""
    whole = table[table["edge"] == ""].set_index("metric")["value"]
    by = {"projection": {}, "norms": {}, "cosines": {}}
    for edge, metric, value in table[["edge", "metric", "value"]].itertuples(index=False):
        consumer = edge.rsplit(":", 1)[0]
        if not edge:
            continue
        if metric == "projection":
            by["projection"][consumer] = by["projection"].get(consumer, 0.0) + value
        elif metric == "grad_norm":
            by["norms"].setdefault(consumer, []).append(value)
        elif metric == "cosine":
            by["cosines"].setdefault(consumer, []).append(value)
    for metric in ("norms", "cosines"):
        by[metric] = {c: sorted(v) for c, v in by[metric].items()}
    edges = table[(table["metric"] == "projection") & (table["edge"] != "")]
    return {
        "grad_norm": whole["grad_norm"],
        "cancellation": whole["cancellation"],
        "projections": sorted(edges["value"]),
        **by,
    }


# What `assert_numbers` compares. Anything else that a run records has an oracle elsewhere.
COMPARED = {
    "module": {"grad_norm", "grad_rms", "numel", "zero_fraction", "subnormal_fraction"},
    "fork": {"grad_norm", "cancellation", "projection", "cosine"},
    "softmax": {"entropy", "max_prob", "jacobian_norm", "evenness", "uniform_gain", "gain"},
    "parameter": {"grad_norm", "grad_rms", "weight_norm", "update_ratio"},
}
ELSEWHERE = {
    "activation",  # tests/capture/test_activations.py
    "cut",  # tests/capture/test_training_cuts.py
    "input",  # tests/capture/test_inputs.py
    "scalar",  # tests/oracle/test_loops.py
    "zero_fraction",  # of forks: they are measured as modules' are
    "subnormal_fraction",
}


def assert_numbers(run, steps, columns, rel=1e-5, at=None):
    """A run says of every step what an `Observer` saw, and nothing else.

    Args:
        steps: of the observer.
        columns: of the support matrix, which are compared.
        rel: relative tolerance, that of cosines apart.
        at: their numbers in the run; 0, 1, … by default.
    """
    at = list(range(len(steps))) if at is None else at
    assert run.meta["errors"] == []
    assert run.steps.tolist() == at
    table = run.frame()
    _assert_all_compared(table)
    told = {}
    by_time = table["site"].str.contains(".time#", regex=False)  # tests/capture/test_times.py
    for row in table[(table["edge"] == "") & ~by_time].itertuples():
        sites = told.setdefault((row.step, row.kind, row.metric), {})
        assert row.site not in sites, "a site has two values of one metric"
        sites[row.site] = row.value
    for number, step in zip(at, steps, strict=True):
        for site, count in told.get((number, "module", "numel"), {}).items():
            assert count == step.numel[site], site
        compared = {
            "module gradients": {
                ("module", "grad_norm"): step.norms,
                ("module", "grad_rms"): step.rms,
                ("module", "zero_fraction"): step.zeros,
                ("module", "subnormal_fraction"): step.subnormals,
            },
            "softmaxes": {
                ("softmax", metric): {site: v[metric] for site, v in step.softmaxes.items()}
                for metric in sorted(COMPARED["softmax"])
            },
            "parameters": {
                ("parameter", "grad_norm"): step.grads,
                ("parameter", "grad_rms"): step.grad_rms,
            },
            "updates": {
                ("parameter", "weight_norm"): step.weights,
                ("parameter", "update_ratio"): step.ratios,
            },
        }
        for column in columns:
            if column == "forks":
                assert_forks(run, step.forks, number, rel)
                continue
            for (kind, metric), expected in compared[column].items():
                found = told.get((number, kind, metric), {})
                where = f"step {number}, {kind} {metric}"
                assert found.keys() == expected.keys(), where
                defined = {site: v for site, v in expected.items() if v is not None}
                found = {site: found[site] for site in defined}
                near_zero = 1e-6 if kind == "softmax" else 0.0
                assert found == pytest.approx(defined, rel=rel, abs=near_zero), where


def _assert_all_compared(table):
    for kind, metric in table[["kind", "metric"]].drop_duplicates().itertuples(index=False):
        known = {kind, metric} & ELSEWHERE or metric in COMPARED[kind]
        assert known, f"{kind} {metric} has no oracle"


def assert_forks(run, expected, step=0, rel=1e-5):
    """The forks of a step are these, each once. `expected`: as `nameless` puts them."""
    table = run.frame("fork").query(f"step == {step}")
    found = [nameless(_fork(rows)) for _, rows in table.groupby("site", sort=False)]
    for fork in expected:
        same = [f for f in found if near(f, fork, rel)]
        assert same, f"step {step}: not recorded: {fork}"
        found.remove(same[0])
    assert not found, f"step {step}: recorded, but not in the graph"


def near(found, expected, rel=1e-5):
    """Whether a recorded fork is this one."""
    # A nearly cancelled sum leaves few digits of itself, of the cosines and of the projections.
    digits = min(1e6, sum(expected["norms"]) / (expected["grad_norm"] or 1))
    tolerances = {
        "norms": (10 * rel, 1e-12),
        "cosines": (10 * rel, 10 * rel * digits),
        "projections": (10 * rel, 10 * rel * digits**2),
    }
    return (
        math.isclose(found["grad_norm"], expected["grad_norm"], rel_tol=rel * digits, abs_tol=1e-12)
        and math.isclose(found["cancellation"], expected["cancellation"], abs_tol=rel)
        and all(len(found[key]) == len(expected[key]) for key in tolerances)
        and all(
            math.isclose(a, b, rel_tol=relative, abs_tol=absolute)
            for key, (relative, absolute) in tolerances.items()
            for a, b in zip(found[key], expected[key], strict=True)
        )
    )
