"""`Run`: tidy and wide tables from what was recorded."""

import numpy as np
import pandas as pd
import pytest
from torch import nn

import gradscope
from gradscope.run import METRICS, Run, Site

SITES = [
    Site("late", "module", order=2, numel=4),
    Site("early", "module", order=1, numel=16),
    Site("alias", "module", order=2, numel=4, alias_of="late"),
]
ROWS = [
    (0, "late", "module", "", "grad_norm", 2.0),
    (0, "early", "module", "", "grad_norm", 4.0),
    (10, "late", "module", "", "grad_norm", 6.0),
    (10, "late", "module", "", "numel", 36.0),
    (3, "loss", "scalar", "", "value", 0.5),
    (0, "late", "fork", "x:add", "projection", 0.75),
    (0, "late", "fork", "y:mul", "projection", 0.25),
]


def run() -> Run:
    return Run.from_records(ROWS, SITES)


def test_grad_rms_is_norm_over_root_n_with_the_n_of_that_step():
    table = run().frame("module", "grad_rms", aliases=False).set_index(["step", "site"])["value"]
    assert table[0, "late"] == 2 / np.sqrt(4)
    assert table[0, "early"] == 4 / np.sqrt(16)
    assert table[10, "late"] == 6 / np.sqrt(36)


def test_aliases_tell_the_same_numbers_under_their_own_name():
    table = run().frame("module", "grad_norm")
    assert table[table["site"] == "alias"]["value"].tolist() == [2.0, 6.0]
    assert "alias" not in set(run().frame("module", aliases=False)["site"])


def test_wide_puts_sites_in_forward_order_and_leaves_gaps():
    wide = run().wide("module", "grad_norm")
    assert list(wide.columns) == ["early", "late"]
    assert np.isnan(wide.loc[10, "early"])


def test_wide_by_edge():
    wide = run().wide("fork", "projection", edge=None)
    assert list(wide.columns) == [("late", "x:add"), ("late", "y:mul")]
    assert wide.loc[0].sum() == 1


def test_steps_are_those_with_gradients():
    assert run().steps.tolist() == [0, 10]
    assert run().scalars().index.tolist() == [3]


def test_a_run_without_anything_has_empty_tables_of_the_same_shape():
    empty = Run()
    assert list(empty.frame().columns) == list(run().frame().columns)
    assert empty.frame().empty
    assert empty.steps.size == 0
    assert empty.wide("module", "grad_norm").empty
    assert empty.scalars().empty


def test_ranks_are_rows_of_their_own_and_averaged_when_wide():
    rows = [(0, "a", "module", "", "grad_norm", v, r) for r, v in enumerate((1.0, 3.0))]
    both = Run.from_records(rows)
    assert both.frame("module", "grad_norm")["rank"].tolist() == [0, 1]
    assert both.wide("module", "grad_norm").loc[0, "a"] == 2.0


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind 'modul'; one of module"):
        run().frame("modul")


def test_an_unknown_metric_is_refused():
    with pytest.raises(
        gradscope.GradscopeError, match="unknown metric 'grad_nrom'; did you mean grad_norm"
    ):
        run().wide("module", "grad_nrom")
    assert run().frame(metric="effective_rank").empty  # there is one, but not in this run


@pytest.mark.parametrize(
    "call",
    [
        lambda: gradscope.load(3),
        lambda: gradscope.attach(nn.Linear(2, 2), out=3),
        lambda: gradscope.report(run(), 3),
        lambda: gradscope.report("run.pt"),
        lambda: gradscope.report(3),
    ],
)
def test_what_is_no_path_or_run_is_refused_in_one_line(call):
    with pytest.raises(gradscope.GradscopeError, match=r"takes a \w+.*, not .*3|not 'run.pt'"):
        call()


def test_every_metric_in_a_table_is_defined():
    told = set(run().frame()["metric"]) - {"numel"}
    assert told <= set(METRICS)


def test_ten_thousand_steps_are_a_table():
    values = np.arange(10_000, dtype=float)
    long = Run.from_records(
        [
            (s, f"m{i}", "module", "", "grad_norm", values[s])
            for i in range(3)
            for s in range(10_000)
        ]
    )
    frame = long.frame("module", "grad_norm")
    assert len(frame) == 30_000
    pd.testing.assert_series_equal(
        long.wide("module", "grad_norm")["m1"],
        pd.Series(values, frame["step"].unique(), name="m1"),
        check_index=False,
    )


def test_a_run_is_printed_in_a_line():
    assert repr(run()) == "<Run 'run': 2 recorded, steps 0 to 10; 5 sites, 6 columns>"
    assert "0 recorded, no steps" in repr(gradscope.Run())
