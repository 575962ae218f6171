"""The score's arithmetic, by examples counted by hand."""

import math

import pandas as pd
import pytest

from analyses.faults.case import Case
from analyses.faults.scoring import Report, interval, judge, plain, rate_interval, summary, tally


def case(name, must=(), may=(), at_info=(), operation=()):
    return Case(
        name=name,
        fault="made-up" if must else "",
        make=lambda: None,
        split="tune",
        must=tuple(frozenset(group) for group in must),
        may=frozenset(may),
        at_info=frozenset(at_info),
        operation=frozenset(operation),
    )


def warned(*rules):
    return [Report(rule, "warning") for rule in rules]


def test_a_report_that_must_be_is_a_hit_and_one_that_may_be_is_nothing():
    found = judge(case("a/b", must=[["x"]], may=["y"]), warned("x", "y", "z"))
    assert (found.hits, found.misses, found.false_alarms) == (("x",), (), ("z",))


def test_any_rule_of_a_group_is_enough_and_none_is_a_miss_under_the_first_name():
    either = case("a/b", must=[["x", "y"], ["z"]])
    assert judge(either, warned("y")).hits == ("y",)
    assert judge(either, warned("y")).misses == ("z",)
    assert judge(either, []).misses == ("x", "z")
    assert judge(either, warned("x", "y", "z")).false_alarms == ()


def test_info_counts_only_where_the_label_says_so():
    info = [Report("x", "info")]
    assert judge(case("a/b", must=[["x"]]), info).misses == ("x",)
    assert judge(case("a/b", must=[["x"]], at_info=["x"]), info).hits == ("x",)
    assert judge(case("a/b"), info).false_alarms == ()
    assert judge(case("a/b"), [Report("x", "critical")]).false_alarms == ("x",)


def test_the_root_cause_is_right_if_the_first_counted_finding_must_be_reported():
    label = case("a/b", must=[["x"]], may=["y"])
    assert judge(label, warned("x", "y")).root_right is True
    assert judge(label, warned("y", "x")).root_right is False
    assert judge(label, [Report("y", "info"), *warned("x")]).root_right is True
    assert judge(label, []).root_right is False
    assert judge(case("a/b"), []).root_right is None


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("LogBackward0", "log"),
        ("aten::_softmax", "softmax"),
        ("MseLossBackward0", "mseloss"),
        ("mse_loss", "mseloss"),
        ("aten.div.Tensor", "div"),
        ("AddmmBackward0", "addmm"),
        ("softmax", "softmax"),
        ("", ""),
    ],
)
def test_an_operation_is_compared_by_its_plain_name(written, name):
    assert plain(written) == name


def test_an_operation_is_right_or_wrong_only_where_the_label_has_one():
    label = case("a/b", must=[["non-finite"]], operation=["log"])
    right = Report("non-finite", "critical", operation="LogBackward0")
    assert judge(label, [right]).operation_right is True
    assert judge(label, warned("non-finite")).operation_right is False
    assert judge(case("a/b", must=[["x"]]), [right]).operation_right is None


def test_the_tally_of_four_runs():
    judged = [
        judge(case("f/1", must=[["x"]]), warned("x")),
        judge(case("f/2", must=[["x"]]), warned("y")),
        judge(case("f/3", must=[["y"]], may=["x"]), warned("y", "x")),
        judge(case("h/1"), warned("x")),
        judge(case("h/2"), []),
    ]
    table = tally(judged).set_index("rule")
    counts = table[["hits", "misses", "false_alarms", "false_alarms_on_healthy"]]
    expected = pd.DataFrame(
        {"all": [2, 1, 2, 1], "x": [1, 1, 1, 1], "y": [1, 0, 1, 0]}, index=counts.columns
    ).T
    pd.testing.assert_frame_equal(counts, expected, check_names=False, check_dtype=False)
    assert table.loc["x", "precision"] == table.loc["x", "recall"] == 1 / 2
    assert table.loc["y", "recall"] == 1
    assert table.loc["all", "recall"] == pytest.approx(2 / 3)
    assert table.loc["x", "per_healthy_run"] == 1 / 2
    assert list(summary(judged).values()) == [(2, 3), (2, 3), (0, 0), (1, 2)]


def test_intervals_are_wilsons_and_garwoods():
    # Wilson by its formula, z = 1.959964: (p + z²/2n ± z√(p(1 − p)/n + z²/4n²)) / (1 + z²/n)
    z, n, p = 1.959964, 10, 0.8
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    middle, scale = p + z * z / (2 * n), 1 + z * z / n
    assert interval(8, 10) == pytest.approx(((middle - half) / scale, (middle + half) / scale))
    # No event in n runs: P(0 events) = exp(−λn) = 0.025
    assert rate_interval(0, 50) == pytest.approx((0.0, -math.log(0.025) / 50))
    low, _ = rate_interval(1, 1)  # P(at least one event) = 1 − exp(−λ) = 0.025
    assert low == pytest.approx(-math.log(0.975))
    assert all(math.isnan(v) for v in (*interval(0, 0), *rate_interval(0, 0)))
