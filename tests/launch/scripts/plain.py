"""A plain loop; also tells what a script can see of how it is run."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # counts only before torch is imported

import pickle
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

print("before torch:", sorted(m for m in ("torch", "gradscope", "numpy") if m in sys.modules))

import helper  # noqa: E402  (beside this script)
import torch  # noqa: E402
from torch import nn  # noqa: E402


@dataclass
class Config:
    lr: float = 0.01


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 16)
        self.last = nn.Linear(16, 1)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


def main():
    print(__name__, __file__, sys.argv, sys.path[0], __spec__, __package__, __doc__)
    print(sorted(name for name in globals() if name.startswith("__")), type(__loader__).__name__)
    print(
        "threads:", torch.get_num_threads(), "warn:", sys.warnoptions, "flags:", sys.flags.optimize
    )
    config = pickle.loads(pickle.dumps(Config(lr=0.02)))
    print(type(config) is Config, sys.modules["__main__"].Config is Config)
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=config.lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    for step in range(21):
        x = torch.randn(32, 4)
        loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if step % 5 == 0:
            print(step, loss.item())
    try:
        torch.zeros(1).backward()
    except RuntimeError:
        print(traceback.format_exc().splitlines()[0], file=sys.stderr)
    helper.show(net, optimizer=optimizer)
    Path("losses.txt").write_text(repr(loss.item()))


if __name__ == "__main__":
    main()
