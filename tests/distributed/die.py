"""What a launcher starts in each process: trains until the second process is killed.

python -m torch.distributed.run … die.py DIRECTORY
"""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import gradscope
from tests.distributed.setups import TWO, build, loss_of, make_optimizer, part

LAST = 11  # step at which the second process dies


def main(directory):
    torch.set_num_threads(1)
    # The launcher ends the others when one is gone; that is not what is looked at here.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = DistributedDataParallel(build(TWO["DDP"]))
    optimizer = make_optimizer(model.parameters())
    out = directory / "run.pt"
    with gradscope.attach(model, optimizer=optimizer, out=out, every=2, flush_every=0.0) as scope:
        for step in range(20):
            loss = loss_of(model, *part(step, rank, 2))
            if step == LAST and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scope.log(loss=loss)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
