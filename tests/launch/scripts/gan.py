"""A GAN, in the shape that most of them have."""

import helper
import torch
from torch import nn


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, z):
        return self.main(z)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(32, 1)
        )

    def forward(self, x):
        return self.main(x).squeeze(1)


torch.set_num_threads(1)
torch.manual_seed(1)
netG, netD = Generator(), Discriminator()  # noqa: N816
criterion = nn.BCEWithLogitsLoss()
optimizerD = torch.optim.Adam(netD.parameters(), lr=2e-3, betas=(0.5, 0.999))  # noqa: N816
optimizerG = torch.optim.Adam(netG.parameters(), lr=2e-3, betas=(0.5, 0.999))  # noqa: N816
for i in range(12):
    netD.zero_grad()
    real = torch.randn(16, 2) + 3
    errD_real = criterion(netD(real), torch.ones(16))  # noqa: N816
    errD_real.backward()
    fake = netG(torch.randn(16, 8))
    errD_fake = criterion(netD(fake.detach()), torch.zeros(16))  # noqa: N816
    errD_fake.backward()
    optimizerD.step()
    netG.zero_grad()
    errG = criterion(netD(fake), torch.ones(16))  # noqa: N816
    errG.backward()
    optimizerG.step()
    print(i, (errD_real + errD_fake).item(), errG.item())
helper.show(netG, netD)
