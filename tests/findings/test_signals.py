import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradscope.findings._signals import Signals
from gradscope.run import Block, Column, Run, Site
from gradscope.scalars import is_training_loss

VALUES = st.one_of(st.floats(0, 1e6), st.sampled_from([float("nan"), float("inf"), 0.0]))
CELLS = st.tuples(
    st.integers(0, 8),
    st.sampled_from("abc"),
    st.sampled_from(["", "e", "f"]),
    st.integers(0, 1),
    VALUES,
)


def tidy_twin(rows, edges):
    """Means over ranks by a loop over rows; a NaN among them stays one."""
    cells = {}
    for step, site, edge, rank, value in rows:
        if bool(edge) == edges:
            cells.setdefault((step, site, edge), {})[rank] = value  # the last one counts
    return {key: np.mean(list(by_rank.values())) for key, by_rank in cells.items()}


@given(st.lists(CELLS, max_size=30), st.booleans())
def test_matrix_against_a_loop_over_rows(cells, edges):
    rows = [(s, site, "fork", e, "grad_norm", v, rank) for s, site, e, rank, v in cells]
    matrix = Signals(Run.from_records(rows)).matrix("fork", "grad_norm", edges=edges)
    expected = tidy_twin(cells, edges)
    steps = sorted({step for step, _, _ in expected})
    assert matrix.steps.tolist() == steps
    assert set(matrix.keys) == {(site, edge) for _, site, edge in expected}
    for i, step in enumerate(steps):
        for j, (site, edge) in enumerate(matrix.keys):
            assert matrix.present[i, j] == ((step, site, edge) in expected)
            value = expected.get((step, site, edge), np.nan)
            np.testing.assert_equal(matrix.values[i, j], value)


def test_grad_rms_agrees_with_the_tidy_table_where_shapes_vary():
    rows = [(0, "a", "module", "", "grad_norm", 6.0), (1, "a", "module", "", "grad_norm", 8.0)]
    rows += [(1, "a", "module", "", "numel", 16.0), (1, "b", "module", "", "grad_norm", 5.0)]
    run = Run.from_records(rows, [Site("a", "module", numel=4), Site("b", "module")])
    matrix = Signals(run).matrix("module", "grad_rms")
    wide = run.wide("module", "grad_rms")
    assert matrix.column("a").tolist() == [3.0, 2.0] == wide["a"].tolist()
    assert np.isnan(matrix.column("b")).all()  # its size is unknown


def test_several_blocks_and_forward_order():
    columns = [
        Column("late", "module", "", "grad_norm"),
        Column("early", "module", "", "grad_norm"),
    ]
    sites = {("module", "late"): Site("late", "module", order=2)}
    sites["module", "early"] = Site("early", "module", order=1)
    blocks = [
        Block(np.array([s]), np.array([0, 1]), np.array([[s, -s]], float), np.ones((1, 2), bool))
        for s in (3, 1, 2)
    ]
    matrix = Signals(Run({}, sites, columns, blocks)).matrix("module", "grad_norm")
    assert matrix.sites == ["early", "late"]
    assert matrix.steps.tolist() == [1, 2, 3]
    assert matrix.values.tolist() == [[-1, 1], [-2, 2], [-3, 3]]


def test_on_other_steps():
    run = Run.from_records([(s, "a", "module", "", "grad_norm", float(s)) for s in (0, 2, 4)])
    moved = Signals(run).matrix("module", "grad_norm").on(np.array([1, 2, 4, 5]))
    np.testing.assert_equal(moved.column("a"), [np.nan, 2.0, 4.0, np.nan])
    assert moved.present[:, 0].tolist() == [False, True, True, False]


def test_no_rows():
    matrix = Signals(Run()).matrix("softmax", "entropy")
    assert matrix.values.shape == (0, 0)
    assert matrix.on(np.array([3])).values.shape == (1, 0)


@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("loss", True),
        ("train/loss", True),
        ("train_loss", True),
        ("val_loss", False),
        ("loss_test", False),
        ("closs", False),
        ("accuracy", False),
        ("Loss", True),
    ],
)
def test_which_scalar_is_the_training_loss(name, training):
    assert is_training_loss(name) == training


def test_loss_prefers_its_plain_name_and_keeps_its_own_steps():
    rows = [(s, "aux_loss", "scalar", "", "value", 9.0) for s in range(4)]
    rows += [(s, "loss", "scalar", "", "value", float(s)) for s in (1, 3)]
    loss = Signals(Run.from_records(rows)).loss
    assert loss.steps.tolist() == [1, 3]
    assert loss.values[:, 0].tolist() == [1.0, 3.0]
    assert Signals(Run()).loss is None
