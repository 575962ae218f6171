import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope import Run, Site
from gradscope.figures._grid import grid

NAMES = ("b", "a", "c")
SITES = [Site(n, "module", order=i, numel=4 * (i + 1)) for i, n in enumerate(NAMES)]


def slow_grid(run, kind, metric, edges=False):
    """The tidy table, cell by cell."""
    table = run.frame(kind, metric, aliases=False)
    table = table[(table["edge"] != "") == edges]
    order = [s.name for s in run.sites_of(kind)]
    keys = sorted(
        set(zip(table["site"], table["edge"], strict=True)), key=lambda k: order.index(k[0])
    )
    cells = {}
    for row in table.itertuples():
        cells.setdefault((row.step, row.site, row.edge), []).append(row.value)
    steps = sorted({s for s, _, _ in cells})
    values = np.array(
        [[sum(v) / len(v) if (v := cells.get((s, *k))) else np.nan for k in keys] for s in steps]
    )
    present = np.array([[(s, *k) in cells for k in keys] for s in steps])
    return steps, keys, values, present


rows = st.dictionaries(
    st.tuples(st.integers(0, 5), st.sampled_from(NAMES), st.sampled_from((0, 1))),
    st.floats(width=32),
    min_size=1,
    max_size=20,
)


@settings(max_examples=40)
@given(rows, st.sampled_from(("grad_norm", "grad_rms")))
def test_grid_is_the_tidy_table(cells, metric):
    run = Run.from_records(
        [(s, n, "module", "", "grad_norm", v, r) for (s, n, r), v in cells.items()], SITES
    )
    steps, keys, values, present = slow_grid(run, "module", metric)
    g = grid(run, "module", metric)
    assert list(g.steps) == steps
    columns = [g.names.index(site) for site, _ in keys]
    np.testing.assert_array_equal(g.present[:, columns], present)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(g.values[:, columns], values, rtol=1e-12)


def test_edges_are_columns_of_their_fork():
    run = Run.from_records(
        [
            (0, "f", "fork", "x:add", "projection", 0.75),
            (0, "f", "fork", "y:mul", "projection", 0.25),
            (0, "f", "fork", "", "cancellation", 0.1),
            (1, "g", "fork", "x:add", "projection", 1.0),
        ]
    )
    g = grid(run, "fork", "projection", edges=True)
    assert list(zip(g.names, g.edges, strict=True)) == [
        ("f", "x:add"),
        ("f", "y:mul"),
        ("g", "x:add"),
    ]
    assert g.of_site("f").values[0].tolist() == [0.75, 0.25]
    assert grid(run, "fork", "cancellation").values.tolist() == [[0.1]]


def test_a_nan_on_one_rank_is_not_averaged_away():
    run = Run.from_records(
        [(0, "a", "module", "", "grad_norm", v, r) for r, v in enumerate((1.0, np.nan))]
    )
    assert grid(run, "module", "grad_norm").nonfinite.all()


def test_absent_is_not_nan_and_zero_is_not_absent():
    run = Run.from_records(
        [
            (0, "a", "module", "", "grad_norm", 0.0),
            (0, "b", "module", "", "grad_norm", np.nan),
            (1, "b", "module", "", "grad_norm", np.inf),
        ]
    )
    g = grid(run, "module", "grad_norm")
    assert g.zero.tolist() == [[True, False], [False, False]]
    assert g.nonfinite.tolist() == [[False, True], [False, True]]
    assert g.present.tolist() == [[True, True], [False, True]]
    assert np.isnan(g.positive).all()


def test_rms_uses_the_count_of_the_step_where_shapes_vary():
    run = Run.from_records(
        [
            (0, "a", "module", "", "grad_norm", 6.0),
            (1, "a", "module", "", "grad_norm", 6.0),
            (1, "a", "module", "", "numel", 9.0),
        ],
        [Site("a", "module", numel=4)],
    )
    assert grid(run, "module", "grad_rms").values[:, 0] == pytest.approx([3.0, 2.0])


def test_nothing_recorded_is_an_empty_grid():
    g = grid(Run(), "softmax", "entropy")
    assert not len(g)
    assert g.values.shape == (0, 0)
