"""Arguments, a data loader with workers, mixed precision with a scaler, accumulation."""

import argparse
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from .model import Classifier


class Points(Dataset):
    def __init__(self, n):
        g = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(n, 5, 8, generator=g), torch.randint(3, (n,), generator=g)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + 0.01 * torch.randn(5, 8), self.y[i]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--start", choices=["fork", "spawn"], default="fork")
    parser.add_argument("--out", help="has the name of an option of gradscope run")
    args = parser.parse_args()
    print(__name__, __package__, __spec__.name, sys.argv[0], sys.path[0])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Classifier(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    loader = DataLoader(
        Points(64), 8, shuffle=True, num_workers=args.workers, multiprocessing_context=args.start
    )
    for i, (x, y) in enumerate(loader):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x).float(), y) / args.accumulate
        scaler.scale(loss).backward()
        if (i + 1) % args.accumulate == 0:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        print(i, loss.item())
    print("weights:", [p.double().sum().item() for p in model.parameters()])


if __name__ == "__main__":
    main()
