"""DistributedDataParallel under torchrun."""

import os

import helper
import torch
import torch.distributed as dist
from torch import nn

torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
model = nn.parallel.DistributedDataParallel(net)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
torch.manual_seed(dist.get_rank())
for _ in range(11):
    optimizer.zero_grad()
    loss = model(torch.randn(8, 4)).square().mean()
    loss.backward()
    optimizer.step()
if os.environ["RANK"] == "0":
    print(loss.item())
    helper.show(net, optimizer=optimizer)
dist.barrier()  # gloo aborts where one is gone before the other is done
dist.destroy_process_group()
