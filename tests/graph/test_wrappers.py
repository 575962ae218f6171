"""What wraps a module leaves no trace in names, and names are still those of its own tensors."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DataParallel, DistributedDataParallel

import gradscope
from gradscope.graph.wrappers import class_name, module_paths, named_parameters, unwrapped


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.module = nn.Sequential(nn.Linear(4, 4), nn.Tanh())  # a name that wrappers use too
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.module(self.embed(x)))


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def compiled(module):
    return torch.compile(module, backend="eager")


def inside(wrap):
    """A model with a wrapped part."""

    def wrapped(net):
        net.module = wrap(net.module)
        return net

    return wrapped


WRAPPERS = {
    "DistributedDataParallel": DistributedDataParallel,
    "compiled": compiled,
    "compiled DistributedDataParallel": lambda net: compiled(DistributedDataParallel(net)),
    "DistributedDataParallel of a compiled model": lambda n: DistributedDataParallel(compiled(n)),
    "DataParallel": DataParallel,
    "a compiled part": inside(compiled),
    "a checkpointed part": inside(checkpoint_wrapper),
    "a compiled part, in DistributedDataParallel": lambda net: DistributedDataParallel(
        inside(compiled)(net)
    ),
}


def run_of(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1) as scope:
        for _ in range(2):
            model(torch.arange(4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    run = scope.run()
    assert run.meta["errors"] == []
    return run


def values(run, kind):
    return run.frame(kind).set_index(["step", "site", "edge", "metric"])["value"].to_dict()


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
def test_a_recording_is_that_of_the_model_inside(wrapper, group):
    torch.manual_seed(0)
    net = Net()
    plain = Net()
    plain.load_state_dict(net.state_dict())
    found, expected = run_of(WRAPPERS[wrapper](net)), run_of(plain)
    assert found.sites.keys() == expected.sites.keys()
    for key, site in expected.sites.items():
        assert (found.sites[key].type, found.sites[key].shape) == (site.type, site.shape)
    for kind in ("module", "parameter", "fork"):
        assert values(found, kind) == pytest.approx(values(expected, kind), rel=1e-6)
    assert found.meta["model"]["class"] == "Net"


def test_names_are_those_of_the_plain_model(group):
    net = Net()
    names = [n for n, _ in net.named_parameters()]
    paths = [p for p, _ in net.named_modules()]
    every = [n for n, _ in net.named_parameters(remove_duplicate=False)]
    net.module[0] = compiled(net.module[0])
    wrapped = compiled(DistributedDataParallel(net))
    assert unwrapped(wrapped) is net and unwrapped(net) is net
    assert list(named_parameters(unwrapped(wrapped))) == names
    assert list(named_parameters(wrapped)) == names
    assert sorted(named_parameters(wrapped, duplicates=True)) == sorted(every)
    assert list(module_paths(wrapped).values()) == paths


def test_fully_shard_leaves_the_class_its_name(group):
    net = fully_shard(Net())
    assert type(net).__name__ != "Net"
    assert class_name(net) == "Net"
    assert class_name(nn.Linear(1, 1)) == "Linear"


def test_pathways_are_refused_where_weights_are_on_other_processes(group):
    net = Net()
    fully_shard(net)
    with pytest.raises(gradscope.GradscopeError, match="fully_shard"):
        gradscope.crossings(net, lambda: net(torch.arange(4)).sum())
    scope = gradscope.attach(net, out=None)
    with pytest.raises(gradscope.GradscopeError, match="fully_shard"):
        scope.crossings()
    scope.close()


def test_a_model_in_flat_shards_has_no_parameters_to_tell_of(group):
    flat = FullyShardedDataParallel(nn.Linear(3, 3), device_id=torch.device("cpu"))
    net = nn.Sequential(nn.Linear(3, 3), flat)
    with gradscope.attach(net, out=None) as scope:
        pass
    assert not scope.run().sites_of("parameter")
    (entry,) = scope.run().meta["unseen"]
    assert "FullyShardedDataParallel" in entry["why"]


def test_shards_are_found_also_where_an_evaluation_left_whole_weights(group):
    net = fully_shard(Net())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with torch.no_grad():
        net(torch.arange(4))
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert not any(id(p) in held for p in net.parameters())  # what is left are whole ones
    with gradscope.attach(net, optimizer=optimizer, out=None, every=1) as scope:
        net(torch.arange(4)).square().mean().backward()
        optimizer.step()
    run = scope.run()
    assert {s.name for s in run.sites_of("parameter")} == {
        "embed.weight",
        "module.0.weight",
        "module.0.bias",
    }
    assert {s.note for s in run.sites_of("parameter")} == {""}
    assert len(run.frame("parameter", "update_ratio").query("value > 0")) == 3
    assert {"embed.weight"} <= set(run.frame("fork")["site"])


@pytest.mark.filterwarnings("ignore:Full backward hook:UserWarning")
def test_tensor_parallel_models_are_recorded_but_for_what_is_spread(group):
    mesh = init_device_mesh("cpu", (1,))
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    parallelize_module(
        net, mesh, {"0": ColwiseParallel(use_local_output=False), "2": RowwiseParallel()}
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with CommDebugMode() as bare:
        net(torch.ones(3, 4)).square().mean().backward()
    optimizer.zero_grad()
    scope = gradscope.attach(net, optimizer=optimizer, out=None, every=1)
    with scope, CommDebugMode() as recorded:
        loss = net(torch.ones(3, 4)).square().mean()
        (loss * torch.tensor(float("nan"))).backward()
        optimizer.step()
    run = scope.run()
    assert run.meta["errors"] == []
    assert recorded.get_total_counts() == bare.get_total_counts()
    assert "0" not in {s.name for s in run.sites_of("module")}
    assert len(run.sites_of("parameter")) == 4
    assert any("tensor parallelism" in entry["why"] for entry in run.meta["unseen"])
