import numpy as np
import pytest

from gradscope.findings import starved_pathway as rule
from gradscope.findings._rule import Skipped, apply
from gradscope.findings._signals import Signals
from gradscope.run import Site
from tests.reference import synthetic as made


def find(rows, sites=()):
    return apply(rule.RULE, Signals(made.run(rows, sites)))


def test_a_negligible_edge():
    (finding,) = find(made.fork("h", {"branch:linear": 1e-5, "main:linear": 2.0}, 2.0))
    assert (finding.severity, finding.site) == ("warning", "h")
    assert finding.evidence["share"] == pytest.approx(5e-6)
    assert (finding.evidence["edge"], finding.evidence["largest_edge"]) == (
        "branch:linear",
        "main:linear",
    )


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_only_the_share_counts(scale):
    assert find(made.fork("h", {"a:linear": 1e-5 * scale, "b:linear": scale}, scale))
    assert find(made.fork("h", {"a:linear": 0.01 * scale, "b:linear": scale}, scale)) == []


def test_small_but_not_negligible_takes_time_to_matter():
    rows = made.fork("h", {"q:linear": 5e-4, "v:linear": 1.0}, 1.0)
    assert find(rows)[0].severity == "info"
    assert find([(step * 50, *rest) for step, *rest in rows])[0].severity == "warning"


def test_a_branch_that_starts_small_and_grows():
    growing = np.geomspace(1e-6, 9e-4, 40)
    growing[35] = 1.1e-3
    rows = made.fork("h", {"branch:linear": growing, "main:linear": 1.0}, 1.0)
    (finding,) = find(rows)
    assert (finding.severity, finding.evidence["rising"]) == ("info", True)
    creeping = np.geomspace(1e-7, 2e-4, 40)
    rows = made.fork("h", {"branch:linear": creeping, "main:linear": 1.0}, 1.0)
    (finding,) = find(rows)
    assert (finding.severity, finding.evidence["rising"]) == ("warning", False)
    grown = np.geomspace(1e-5, 0.5, 40)
    assert find(made.fork("h", {"branch:linear": grown, "main:linear": 1.0}, 1.0)) == []


def test_an_auxiliary_loss_is_info():
    for edge in ("(outside)", "(outside):abs"):
        rows = made.fork("h", {edge: 1e-5, "main:linear": 1.0}, 1.0)
        assert find(rows)[0].severity == "info"


def test_what_a_slice_leaves_out():
    assert find(made.fork("h", {"rnn:stack": 0.0, "main:linear": 1.0}, 1.0)) == []


def test_layers_and_calls_in_one_finding():
    rows = [
        r
        for k in range(4)
        for r in made.fork(f"layers.{k}", {f"layers.{k + 1}.q:linear": 1e-6, "x:add#2": 1.0}, 1.0)
    ]
    (finding,) = find(rows)
    assert finding.evidence["forks"] == 4
    assert "layers.0 … layers.3 (4 sites)" in finding.message


def test_parameters_are_left_out():
    rows = made.fork("w", {"a:linear": 1e-6, "a:linear#1": 1.0}, 1.0)
    assert isinstance(find(rows, [Site("w", "parameter")]), Skipped)


def test_one_step_is_info():
    rows = made.fork("h", {"a:linear": 1e-6, "b:linear": 1.0}, 1.0, steps=1)
    assert find(rows)[0].severity == "info"


def test_a_share_that_rises_because_the_rest_falls():
    falling = np.geomspace(1.0, 1e-2, 40)
    (finding,) = find(made.fork("h", {"aux:linear": 1e-8, "main:linear": falling}, falling))
    assert (finding.severity, finding.evidence["rising"]) == ("warning", False)


def test_pooling_by_mean_and_by_maximum_normalises_nothing():
    pooled = made.fork("points", {"max:amax": 1.0, "mean:mean": 1e-6}, 1.0)
    assert [f.evidence["edge"] for f in find(pooled)] == ["mean:mean"]
    assert isinstance(find(made.fork("points", {"x:div": 1.0, "x:mean": 1e-6}, 1.0)), Skipped)


@pytest.mark.parametrize(
    ("evenness", "every", "severity"),
    [(0.9999, 5, "info"), (0.9, 5, "warning"), (0.9999, 10, "warning")],
)
def test_what_leads_into_attention_that_is_still_uniform_may_wait(evenness, every, severity):
    edges = {"layer.0.attention.query:addmm": 1e-4, "layer.0.attention.value:addmm": 1.0}
    rows = made.fork("embeddings", edges, 1.0) + made.softmax("layer.0.attention", [evenness] * 40)
    rows = [(step * every, *rest) for step, *rest in rows]
    (finding,) = find(rows, made.softmax_sites(["layer.0.attention"]))
    assert finding.severity == severity


def test_another_modules_attention_is_no_excuse():
    rows = made.fork("h", {"adapter.down:addmm": 1e-4, "value:addmm": 1.0}, 1.0)
    rows += made.softmax("layer.0.attention", [0.9999] * 40)
    assert find(rows, made.softmax_sites(["layer.0.attention"]))[0].severity == "warning"


def test_next_to_nothing_is_too_little_for_young_attention_too():
    edges = {"layer.0.attention.query:addmm": 1e-7, "layer.0.attention.value:addmm": 1.0}
    rows = made.fork("embeddings", edges, 1.0) + made.softmax("layer.0.attention", [0.9999] * 40)
    assert find(rows, made.softmax_sites(["layer.0.attention"]))[0].severity == "warning"


def test_a_running_maximum_is_a_shift_and_no_branch():
    kept = {"block:maximum": 1e-7, "block:sub": 1.0, "block:add": 0.5}
    assert isinstance(find(made.fork("block:maximum#1", kept, 1.0)), Skipped)
    assert isinstance(find(made.fork("block:select", kept, 1.0)), Skipped)
    assert find(made.fork("block:linear", {"block:sub": 1e-7, "block:add": 1.0}, 1.0))
