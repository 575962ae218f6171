"""Parts of one launch → one run: whole norms from shards, each process's own numbers apart."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradscope
from gradscope.errors import RunError
from gradscope.merging import merge
from gradscope.run import Run, Site
from gradscope.store import Journal, journal_path, load, part_path, save

STEPS = (0, 10)


def part(rank, rows, sites=(), *, world_size=2, launch="a", **meta):
    """A part as its process would have written it: `rows` are (step, site, kind, metric, value)."""
    process = {"rank": rank, "world_size": world_size, "launch": launch}
    meta = {"status": "complete", "process": process, "unseen": [], "errors": [], **meta}
    records = [(step, site, kind, "", metric, v, rank) for step, site, kind, metric, v in rows]
    return Run.from_records(records, sites, meta)


def split(name, shard, of, shape=(4,)):
    return Site(name, "parameter", shape=shape, numel=math.prod(shape), shards=of, shard=shard)


def shard_rows(name, gradient, weight=1.0, update=0.1, steps=STEPS):
    values = {"shard_grad_norm": gradient, "shard_weight_norm": weight, "shard_update_norm": update}
    return [(s, name, "parameter", metric, v) for s in steps for metric, v in values.items()]


def told(run, metric, site="w"):
    """Step → value."""
    table = run.frame("parameter", metric)
    table = table[table["site"] == site]
    assert not table["step"].duplicated().any()
    return dict(zip(table["step"], table["value"], strict=True))


@settings(max_examples=40)
@given(
    tensor=st.lists(st.floats(-1e3, 1e3), max_size=12),
    cuts=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    replicas=st.integers(1, 3),
)
def test_the_whole_is_that_of_the_tensor_however_it_was_split(tensor, cuts, replicas):
    pieces = np.split(np.array(tensor), sorted(min(c, len(tensor)) for c in cuts))
    of = len(pieces)
    parts = []
    for rank in range(of * replicas):
        g = float(np.linalg.norm(pieces[rank % of]))
        rows = shard_rows("w", g, weight=2 * g, update=3 * g)
        parts.append(part(rank, rows, [split("w", rank % of, of)], world_size=of * replicas))
    run = merge(parts)
    whole = np.linalg.norm(tensor)
    assert told(run, "grad_norm") == pytest.approx(dict.fromkeys(STEPS, whole), abs=1e-12)
    assert told(run, "weight_norm") == pytest.approx(dict.fromkeys(STEPS, 2 * whole), abs=1e-12)
    ratio = 1.5 if whole else 0.0
    assert told(run, "update_ratio") == pytest.approx(dict.fromkeys(STEPS, ratio))
    assert not any(c.metric.startswith("shard_") for c in run.columns)


def test_grad_rms_is_over_the_elements_of_the_whole():
    sites = [split("w", k, 2, shape=(3, 3)) for k in range(2)]
    run = merge([part(r, shard_rows("w", [3.0, 4.0][r]), [sites[r]]) for r in range(2)])
    assert told(run, "grad_rms") == pytest.approx({0: 5 / 3, 10: 5 / 3})


def test_without_one_of_the_shards_the_whole_is_not_told():
    dead = part(1, shard_rows("w", 4.0, steps=(0,)), [split("w", 1, 2)])
    run = merge([part(0, shard_rows("w", 3.0), [split("w", 0, 2)]), dead])
    for metric in ("grad_norm", "weight_norm", "update_ratio"):
        assert list(told(run, metric)) == [0]
    assert told(run, "grad_norm")[0] == 5.0


def test_another_copy_of_the_shard_tells_for_a_process_that_died():
    first = part(0, shard_rows("w", 3.0, steps=(0,)), [split("w", 0, 2)], world_size=4)
    others = [
        part(r, shard_rows("w", [3.0, 4.0][r % 2]), [split("w", r % 2, 2)], world_size=4)
        for r in (1, 2, 3)
    ]
    assert told(merge([first, *others]), "grad_norm") == {0: 5.0, 10: 5.0}


def test_without_a_part_its_shards_are_listed_as_unseen():
    run = merge([part(0, shard_rows("w", 3.0), [split("w", 0, 2)])])
    assert not len(run.frame("parameter"))
    (entry,) = run.meta["unseen"]
    assert "rank 1" in entry["why"]
    gradscope.analyze(run)


def test_elements_that_are_not_finite_are_counted_over_the_shards():
    rows = [*shard_rows("w", math.nan), (10, "w", "parameter", "shard_nonfinite", 2.0)]
    more = [*shard_rows("w", math.inf), (10, "w", "parameter", "shard_nonfinite", 1.0)]
    run = merge([part(0, rows, [split("w", 0, 2)]), part(1, more, [split("w", 1, 2)])])
    assert told(run, "nonfinite") == {10: 3.0}
    assert not any(map(math.isfinite, told(run, "grad_norm").values()))


def test_an_update_of_weights_that_are_all_zero_has_no_finite_ratio():
    parts = [
        part(r, shard_rows("w", 1.0, weight=0.0, update=u), [split("w", r, 2)])
        for r, u in ((0, 0.0), (1, 1.0))
    ]
    assert told(merge(parts), "update_ratio") == {0: math.inf, 10: math.inf}


def test_what_processes_measured_of_their_own_stays_apart():
    run = merge([part(r, [(0, "a", "module", "grad_norm", r + 1.0)]) for r in range(2)])
    table = run.frame("module", "grad_norm")
    assert dict(zip(table["rank"], table["value"], strict=True)) == {0: 1.0, 1: 2.0}
    assert run.ranks == [0, 1]
    assert run.of_rank(1).frame("module", "grad_norm")["value"].tolist() == [2.0]
    assert run.wide("module", "grad_norm").loc[0, "a"] == 1.5


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_what_one_process_lost_does_not_vanish_in_an_average(lost):
    run = merge([part(r, [(0, "a", "module", "grad_norm", (1.0, lost)[r])]) for r in range(2)])
    assert not math.isfinite(run.wide("module", "grad_norm").loc[0, "a"])


def test_batches_of_another_size_keep_their_number_of_elements():
    parts = []
    for rank, numel in enumerate((4, 16)):
        site = Site("a", "module", shape=(numel,), numel=numel)
        rows = [(step, "a", "module", "grad_norm", 8.0) for step in STEPS]
        rows += [(10, "a", "module", "numel", 64.0)] * (rank == 1)
        parts.append(part(rank, rows, [site]))
    run = merge(parts)
    table = run.frame("module", "grad_rms").set_index(["step", "rank"])["value"]
    assert table.to_dict() == {(0, 0): 4.0, (10, 0): 4.0, (0, 1): 2.0, (10, 1): 1.0}
    assert len(run.columns) == len(set(run.columns))


def test_what_each_part_says_of_itself_is_kept():
    first = part(0, [], ended="ValueError: x", unseen=[{"what": "a", "why": "b"}])
    second = part(1, [(5, "a", "module", "grad_norm", 1.0)], status="recording", errors=["e"])
    second.meta["unseen"] = [{"what": "a", "why": "b"}, {"what": "c", "why": "d"}]
    meta = merge([first, second]).meta
    assert meta["status"] == "recording"
    assert meta["ended"] == "rank 0: ValueError: x"
    assert meta["errors"] == ["rank 1: e"]
    assert [e["what"] for e in meta["unseen"]] == ["a", "c"]
    assert meta["processes"]["world_size"] == 2
    assert [(p["rank"], p["status"], p["last_step"]) for p in meta["processes"]["parts"]] == [
        (0, "complete", None),
        (1, "recording", 5),
    ]


# -- as files --------------------------------------------------------------------------


def write(path, rank, value, **options):
    save(part(rank, [(0, "a", "module", "grad_norm", value)], **options), part_path(path, rank))


def norms(run):
    table = run.frame("module", "grad_norm")
    return dict(zip(table["rank"], table["value"], strict=True))


def test_parts_beside_a_run_are_loaded_with_it(tmp_path):
    path = tmp_path / "a.b.pt"
    for rank in (0, 1, 10):
        write(path, rank, float(rank), world_size=11)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.b.pt",
        "a.b.rank1.pt",
        "a.b.rank10.pt",
    ]
    run = load(path)
    assert norms(run) == {0: 0.0, 1: 1.0, 10: 10.0}
    assert run.path == path
    assert norms(load(tmp_path / "a.b.rank10.pt")) == {10: 10.0}


def test_parts_of_an_earlier_launch_are_left_out(tmp_path):
    path = tmp_path / "run.pt"
    for rank in range(4):
        write(path, rank, 1.0, world_size=4, launch="earlier")
    for rank in range(2):
        write(path, rank, 2.0, launch="now")
    assert norms(load(path)) == {0: 2.0, 1: 2.0}
    save(Run.from_records([(0, "a", "module", "", "grad_norm", 3.0)]), path)
    assert norms(load(path)) == {0: 3.0}


def test_the_parts_stand_for_a_first_process_that_left_nothing(tmp_path):
    path = tmp_path / "run.pt"
    write(path, 1, 1.0, launch="earlier", created="2026-01-01T00:00:00")
    write(path, 2, 2.0, world_size=3, created="2026-01-02T00:00:00")
    assert norms(load(path)) == {2: 2.0}


def test_a_part_that_can_not_be_read_is_told(tmp_path):
    path = tmp_path / "run.pt"
    write(path, 0, 1.0)
    part_path(path, 1).write_bytes(b"nothing")
    run = load(path)
    assert norms(run) == {0: 1.0}
    assert "rank 1" in run.meta["unseen"][-1]["what"]
    with pytest.raises(RunError, match="not a gradscope run"):
        load(part_path(path, 1))
    path.unlink()
    with pytest.raises(RunError, match="does not exist"):
        load(path)


def test_a_merged_run_that_is_saved_is_whole_by_itself(tmp_path):
    path = tmp_path / "run.pt"
    for rank in range(2):
        write(path, rank, float(rank))
    save(load(path), tmp_path / "all.pt")
    again = load(tmp_path / "all.pt")
    assert norms(again) == {0: 0.0, 1: 1.0}
    assert again.meta["processes"]["world_size"] == 2


def test_closing_one_part_leaves_the_others_alone(tmp_path):
    path = tmp_path / "run.pt"
    for rank in range(2):
        empty = part(rank, [])
        Journal(part_path(path, rank), replace(empty, columns=[], blocks=[])).finish()
    assert not journal_path(path).exists()
    state = load(part_path(path, 1)).meta
    assert state["process"]["rank"] == 1
    assert load(path).meta["processes"]["parts"][1]["status"] == "complete"


@pytest.mark.parametrize(
    "process",
    [{"rank": 2, "world_size": 2, "launch": "a"}, {"rank": 0}, "rank 0", {"rank": "x"}],
)
def test_a_part_of_nonsense_is_refused(process, tmp_path):
    save(Run(meta={"process": process}), tmp_path / "run.pt")
    with pytest.raises(RunError, match="damaged"):
        load(tmp_path / "run.pt")
