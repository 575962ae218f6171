"""Trains a few steps and then ends in the way that it is told."""

import os
import signal
import sys
import time

import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)


class Bad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise KeyError("no gradient today")


def step(bad=False):
    optimizer.zero_grad()
    out = net(torch.randn(8, 4))
    (Bad.apply(out) if bad else out).square().mean().backward()
    optimizer.step()


for _ in range(12):
    step()
print("trained", flush=True)
how = sys.argv[1]
if how == "raise":
    try:
        step(bad=True)
    except KeyError as error:
        raise RuntimeError("training failed") from error
elif how.isdigit():
    sys.exit(int(how))
elif how == "message":
    sys.exit("a message")
elif how == "os._exit":
    os._exit(4)
elif how == "interrupt":
    signal.raise_signal(signal.SIGINT)
elif how == "wait":
    while True:
        time.sleep(0.05)
        step()
