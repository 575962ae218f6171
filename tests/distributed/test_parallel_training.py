"""DDP and FSDP2: whole gradients, each process's own losses, and training as without gradscope.

Oracle: one process that trains on the whole batch, and, for what processes measure of their own
losses, plain hooks on a copy of its model that reads one process's part of the batch.
"""

import math
from functools import cache

import pytest
import torch

import gradscope
from gradscope.run import Run
from tests.distributed.launch import launch
from tests.distributed.setups import (
    BATCH,
    CLIP,
    FOUR,
    LOST,
    STEPS,
    TWO,
    batch,
    build,
    loss_of,
    make_optimizer,
    part,
)
from tests.reference.observer import Observer
from tests.reference.recording import assert_forks, values


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return finished("two", 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    return finished("lost", 2, tmp_path_factory.mktemp("lost"))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return finished("four", 4, tmp_path_factory.mktemp("four"))


def finished(which, processes, directory):
    done = launch("train.py", processes, directory, which)
    assert done.returncode == 0, done.stderr
    return directory


def cases(*columns):
    """Every set-up, with what a test proves of it."""
    return [
        pytest.param(
            fixture,
            name,
            setup,
            id=name,
            marks=pytest.mark.supports(process=f"{name}, {processes} processes", shows=columns),
        )
        for fixture, processes, setups in (("two", 2, TWO), ("four", 4, FOUR))
        for name, setup in setups.items()
    ]


@cache
def whole_batch(setup):
    """By step, of one process that reads all of each batch: its `Step`, and a model as it was."""
    model = build(setup)
    optimizer = make_optimizer(model.parameters())
    weights = []
    with Observer(model, optimizer) as observer:
        for step in range(STEPS):
            weights.append({n: t.clone() for n, t in model.state_dict().items()})
            loss_of(model, *batch(step)).backward()
            if not setup.options:
                torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
    models = [build(setup) for _ in range(STEPS)]
    for was, state in zip(models, weights, strict=True):
        was.load_state_dict(state)
    return list(zip(observer.steps, models, strict=True))


def own_loss(model, setup, step, rank, processes):
    """The `Step` of one process's backward passes, with the model's weights as they are."""
    model.zero_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Observer(model, optimizer) as observer:
        for which in range(setup.micro):
            read = part(step, rank, processes, setup.micro, which)
            (loss_of(model, *read) / setup.micro).backward()
        optimizer.step()
    return observer.steps[0]


def of_rank(run, rank):
    """What one process recorded."""
    table = run.frame(aliases=False)
    table = table[(table["rank"] == rank) & (table["metric"] != "grad_rms")]
    columns = ["step", "site", "kind", "edge", "metric", "value"]
    return Run.from_records(table[columns].itertuples(index=False), run.sites.values())


@pytest.mark.parametrize(("fixture", "name", "setup"), cases("parameters", "updates"))
def test_parameters_are_those_of_the_whole_batch(fixture, name, setup, request):
    run = gradscope.load(request.getfixturevalue(fixture) / f"{name}.pt")
    assert run.meta["errors"] == []
    ranks = {"two": 2, "four": 4}[fixture] if setup.kind == "ddp" else 1
    for step, (expected, _) in enumerate(whole_batch(setup)):
        for metric, by_site in (
            ("grad_norm", expected.grads),
            ("weight_norm", expected.weights),
            ("update_ratio", expected.ratios),
        ):
            table = run.frame("parameter", metric).query(f"step == {step}")
            assert len(table) == ranks * len(by_site), metric
            for site, value in zip(table["site"], table["value"], strict=True):
                assert value == pytest.approx(by_site[site], rel=1e-5), (metric, site)


@pytest.mark.parametrize(
    ("fixture", "name", "setup"), cases("module gradients", "forks", "softmaxes", "scalars")
)
def test_each_process_tells_of_its_own_loss(fixture, name, setup, request):
    run = gradscope.load(request.getfixturevalue(fixture) / f"{name}.pt")
    processes = {"two": 2, "four": 4}[fixture]
    assert run.ranks == list(range(processes))
    parts = [of_rank(run, rank) for rank in run.ranks]

    for step, (_, model) in enumerate(whole_batch(setup)):
        for rank, own in enumerate(parts):
            expected = own_loss(model, setup, step, rank, processes)
            norms = values(own, "module", "grad_norm", step)
            assert norms == pytest.approx(expected.norms, rel=1e-5)
            assert values(own, "module", "grad_rms", step) == pytest.approx(expected.rms, rel=1e-5)
            assert_forks(own, expected.forks, step)
            for metric in ("entropy", "max_prob", "jacobian_norm", "gain"):
                found = sorted(values(own, "softmax", metric, step).values())
                assert len(found) == 2
                wanted = sorted(v[metric] for v in expected.softmaxes.values())
                assert found == pytest.approx(wanted, rel=1e-4)
            last = part(step, rank, processes, setup.micro, setup.micro - 1)
            loss = loss_of(model, *last).item()
            assert values(own, "scalar", "value", step)["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(("fixture", "name", "setup"), cases("identical training"))
def test_training_is_the_same_bit_for_bit_and_talks_no_more(fixture, name, setup, request):
    directory = request.getfixturevalue(fixture)
    for rank in range({"two": 2, "four": 4}[fixture]):
        results = torch.load(directory / f"{name}.results{rank}")
        bare, recorded = results["bare"], results["recorded"]
        assert len(bare["tensors"]) == len(recorded["tensors"]) > STEPS
        for a, b in zip(bare["tensors"], recorded["tensors"], strict=True):
            assert torch.equal(a, b)
        assert recorded["collectives"] == bare["collectives"] > STEPS


@pytest.mark.parametrize("name", TWO)
def test_names_are_those_of_the_module_inside(name, two):
    run = gradscope.load(two / f"{name}.pt")
    plain = build(TWO[name])
    assert {s.name for s in run.sites_of("parameter")} == dict(plain.named_parameters()).keys()
    assert "blocks.1.mix" in {s.name for s in run.sites_of("module")}
    assert {s.type for s in run.sites_of("module") if s.name == "blocks.1"} == {"Block"}
    assert run.meta["model"]["class"] == "Net"
    forks = run.frame("fork", "projection")
    tied = forks[(forks["site"] == "embed.weight") & (forks["edge"] != "")]
    assert {e.split(":")[0] for e in tied["edge"]} == {"embed", "head"}
    assert not forks["site"].str.contains("input").any()


def test_shards_say_how_many_they_are(four):
    for name, shards in (("FSDP2", 4), ("HSDP, 2 × 2", 2)):
        run = gradscope.load(four / f"{name}.pt")
        assert {s.shards for s in run.sites_of("parameter")} == {shards}
        assert run.sites["parameter", "embed.weight"].shape == (7, 5)


def test_a_part_alone_tells_of_its_shards_only(four):
    run = gradscope.load(four / "FSDP2.rank3.pt")
    assert run.ranks == [3]
    metrics = set(run.frame("parameter")["metric"])
    assert metrics == {"shard_grad_norm", "shard_weight_norm", "shard_update_norm"}
    assert run.sites["parameter", "gain"].shard == 3
    empty = run.frame("parameter", "shard_grad_norm").query("site == 'gain'")["value"]
    assert empty.tolist() == [0.0] * STEPS


def test_every_process_splits_its_own_gradient_by_crossings(two):
    run = gradscope.load(two / "DDP.pt")
    table = run.frame("crossing", "mean_crossings")
    assert sorted(set(table["step"])) == [0, 2]
    assert set(table["rank"]) == {0, 1}
    assert run.frame("crossing", "residual")["value"].max() < 1e-5


@pytest.mark.parametrize("name", LOST)
def test_the_process_whose_loss_was_lost_is_named(name, lost):
    run = gradscope.load(lost / f"{name}.pt")
    assert run.meta["errors"] == []
    assert math.isnan(run.scalars()["loss"][2])
    (finding,) = [f for f in gradscope.analyze(run) if f.rule == "non-finite"]
    assert finding.first_step == 2
    assert finding.evidence["ranks"] == [1]
    assert "rank 1" in finding.message


def test_halves_of_a_batch_are_unlike():
    """Otherwise nothing here could tell a process's own numbers from another's."""
    halves = [part(0, rank, 2).tolist() for rank in range(2)]
    assert halves[0] != halves[1]
    assert sum(len(h[0]) for h in halves) == BATCH
