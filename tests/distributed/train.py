"""What a launcher starts in each process: trains every set-up with and without gradscope.

python -m torch.distributed.run … train.py DIRECTORY two|lost|four
"""

import contextlib
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gradscope
from tests.distributed import setups
from tests.distributed.setups import CLIP, STEPS, build, loss_of, make_optimizer, part


def spread(setup):
    """The model, as its processes share it."""
    model = build(setup)
    if setup.kind == "ddp":
        return DistributedDataParallel(model, **dict.fromkeys(setup.options, True))
    shape = (setup.replicas, dist.get_world_size() // setup.replicas)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards"))
    mesh = mesh if setup.replicas > 1 else mesh["shards"]
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def alone(setup, model, last):
    """Without talking to the others, but for a step's last micro-batch."""
    if setup.kind == "fsdp":
        model.set_requires_gradient_sync(last)
    elif not last:
        return model.no_sync()
    return contextlib.nullcontext()


def train(setup, scope_of):
    """Losses, weights and optimizer state of this process; collectives that it took part in."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = spread(setup)
    optimizer = make_optimizer(model.parameters())
    losses = []
    before = collectives()
    with scope_of(model, optimizer) as scope:
        for step in range(STEPS):
            for which in range(setup.micro):
                tokens, targets = part(step, rank, world_size, setup.micro, which)
                with alone(setup, model, which == setup.micro - 1):
                    loss = loss_of(model, tokens, targets) / setup.micro
                    if step == setup.nan_at and rank == 1:
                        loss = loss * float("nan")
                    loss.backward()
                losses.append(loss.detach())
            if not setup.options:
                torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            if scope is not None:
                scope.log(loss=loss * setup.micro)
    state = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    return {
        "tensors": [local(t.detach()) for t in (*losses, *model.parameters(), *state)],
        "collectives": collectives() - before,
    }


def local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def collectives():
    """How many collectives were begun so far, in all process groups."""
    groups = dist.distributed_c10d._world.pg_map
    return sum(group._get_sequence_number_for_group() for group in groups)


def main(directory, which):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for name, setup in getattr(setups, which.upper()).items():

        def recorded(model, optimizer, name=name, setup=setup):
            out = directory / f"{name}.pt"
            scope = gradscope.attach(model, optimizer=optimizer, out=out, every=1, update_every=1)
            if setup.crossings:
                scope.crossings(every=2)
            return scope

        results = {
            "bare": train(setup, lambda *_: contextlib.nullcontext()),
            "recorded": train(setup, recorded),
        }
        torch.save(results, directory / f"{name}.results{rank}")
    dist.barrier()  # who leaves first would cut the other off
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
