import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradscope
from gradscope.findings import SEVERITIES, analyze, check, rules
from gradscope.run import Run, Site
from tests.reference import synthetic as made

RULES = {
    "vanishing-gradient",
    "exploding-gradient",
    "non-finite",
    "peaked-softmax",
    "diffuse-softmax",
    "cancelling-fork",
    "starved-pathway",
    "no-update",
    "update-too-large",
    "information-bottleneck",
    "detached",
    "not-in-optimizer",
    "dead-units",
    "saturated-activation",
    "underflow",
    "unscaled-input",
}
NAMES = [f"layers.{k}.out.weight" for k in range(6)]


def troubled(steps=40):
    """Rows and sites of a run with something for most rules."""
    rows = made.ladder(0.8, steps=steps) + made.parameters(NAMES, steps, ratio={NAMES[0]: 0.0})
    rows += made.loss(2.0, 1.9, steps) + made.softmax("layers.0.attn", [0.003] * steps)
    rows += made.fork("layers.2.out", {"a:linear": 1e-6, "b:linear": 1.0}, 1.0, steps)
    rows += made.fork("layers.3.out", {"a:linear": 1.0, "b:linear": 1.0}, 1e-3, steps)
    sites = (
        made.ladder_sites() + made.parameter_sites(NAMES) + made.softmax_sites(["layers.0.attn"])
    )
    sites += [Site(f"layers.{k}.out", "fork", order=k) for k in (2, 3)]
    return rows, sites


def test_public_names():
    assert gradscope.analyze is analyze
    assert gradscope.Finding is type(analyze(made.run(*troubled()))[0])


def test_every_rule_is_found_by_its_file():
    assert {rule.name for rule in rules()} >= RULES


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_a_rule_says_what_it_is(rule):
    doc = __import__(rule.find.__module__, fromlist=["_"]).__doc__
    assert doc.startswith(f"{rule.name}: ")
    for part in ("Definition.", "Source:", "Severity.", "Silent "):
        assert part in doc


def test_a_run_without_recorded_steps():
    for run in (Run(), made.run(made.loss(2.0, 0.1))):
        found = check(run)
        assert analyze(run) == []
        assert {o.skipped for o in found.outcomes} == {"no recorded steps"}


def test_what_ran_and_what_did_not():
    found = check(made.run(*made_healthy()))
    reasons = {o.rule: o.skipped for o in found.outcomes}
    assert reasons["peaked-softmax"] == reasons["diffuse-softmax"] == "no softmax"
    assert reasons["cancelling-fork"] == reasons["starved-pathway"] == "no fork"
    assert reasons["dead-units"] == "no activation" and reasons["unscaled-input"] == "no input"
    for rule in ("vanishing-gradient", "exploding-gradient", "non-finite", "no-update", "detached"):
        assert not reasons[rule]
    assert [o.rule for o in found.outcomes] == [rule.name for rule in rules()]


def made_healthy(steps=40):
    rows = made.ladder(0.1, steps=steps) + made.parameters(NAMES, steps)
    return rows + made.loss(2.0, 0.1, steps), made.ladder_sites() + made.parameter_sites(NAMES)


def test_worst_first_and_outcomes_share_the_findings():
    found = check(made.run(*troubled()))
    severities = [SEVERITIES.index(f.severity) for f in found.findings]
    assert severities == sorted(severities, reverse=True)
    assert len({f.rule for f in found.findings}) == 5
    assert sum(len(o.findings) for o in found.outcomes) == len(found.findings)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_rows_does_not_matter(seed):
    rows, sites = troubled()
    expected = [f.to_dict() for f in analyze(made.run(rows, sites))]
    shuffled = [rows[i] for i in made.rng(seed).permutation(len(rows))]
    assert [f.to_dict() for f in analyze(made.run(shuffled, sites))] == expected


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_are_judged_with_care(steps):
    rows, sites = troubled(steps)
    for finding in analyze(made.run(rows, sites)):
        assert finding.severity == "info" or steps > 2


@pytest.mark.filterwarnings("error")
def test_nan_scalars_change_nothing():
    rows, sites = troubled()
    expected = [f.to_dict() for f in analyze(made.run(rows, sites))]
    noise = [(s, n, "scalar", "", "value", np.nan) for s in range(0, 40, 3) for n in ("note", "lr")]
    assert [f.to_dict() for f in analyze(made.run(rows + noise, sites))] == expected


VALUES = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True, width=32),
    st.sampled_from([0.0, 1.0, 1e-30, float("nan")]),
)
CELLS = st.one_of(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from([f"layers.{k}" for k in range(5)] + ["head"]),
        st.just("module"),
        st.just(""),
        st.sampled_from(["grad_norm", "nonfinite", "numel"]),
        VALUES,
    ),
    st.tuples(
        st.integers(0, 4),
        st.sampled_from([f"layers.{k}.weight" for k in range(5)] + ["head.bias"]),
        st.just("parameter"),
        st.just(""),
        st.sampled_from(["grad_norm", "weight_norm", "update_ratio"]),
        VALUES,
    ),
    st.tuples(
        st.integers(0, 4),
        st.sampled_from(["layers.0", "layers.1", "layers.0.weight"]),
        st.just("fork"),
        st.sampled_from(["", "layers.1:add", "layers.2:mul", "(outside)"]),
        st.sampled_from(["grad_norm", "cancellation", "projection"]),
        VALUES,
    ),
    st.tuples(
        st.integers(0, 4),
        st.sampled_from(["layers.0.attn", "layers.1.attn"]),
        st.just("softmax"),
        st.just(""),
        st.sampled_from(["entropy", "max_prob", "gain", "jacobian_norm"]),
        VALUES,
    ),
    st.tuples(
        st.integers(0, 9),
        st.sampled_from(["loss", "lr", "accuracy"]),
        st.just("scalar"),
        st.just(""),
        st.just("value"),
        VALUES,
    ),
)


@pytest.mark.filterwarnings("error")
@settings(max_examples=300)
@given(st.lists(CELLS, max_size=60), st.booleans())
def test_whatever_is_in_a_run_it_can_be_judged(rows, spread):
    sites = [
        Site(f"layers.{k}", "module", "Linear", k, 10 * (5 - k), (4,), 4) for k in range(5)
    ] + [Site(f"layers.{k}.weight", "parameter", "", k, -1, (2, 2), 4) for k in range(5)]
    if spread:  # long enough for the rules that want a long run
        rows = [(step * 50 + i, *rest) for step, *rest in rows for i in range(3)]
    found = check(Run.from_records(rows, sites if rows else ()))
    json.dumps(found.to_dict(), allow_nan=False)
    for finding in found.findings:
        assert finding.first_step <= finding.last_step
        assert finding.message.endswith(".")
        assert finding.remedy
