"""Recurrent networks and plain MLPs with sane initialisation."""

from functools import partial

from torch import nn

from analyses.faults import setups
from analyses.faults.case import Healthy

RUNS = Healthy(
    "recurrent",
    {
        "gru-cell-first-symbol": partial(setups.cell, "gru", length=12, lr=1e-2),
        "lstm-fused": partial(setups.sequence, nn.LSTM, on="majority"),
        "gru-fused-60": partial(setups.sequence, nn.GRU, on="majority", length=60),
        "gru-cell-60-majority": partial(setups.cell, "gru", on="majority", length=60, steps=150),
        "lstm-cell-majority": partial(setups.cell, "lstm", on="majority"),
        "identity-rnn-20": partial(setups.cell, "relu", length=20, on="majority", lr=1e-3),
        "tanh-rnn-orthogonal": partial(setups.cell, "tanh", length=15, on="majority"),
        "gru-fused-2-layers": partial(setups.sequence, nn.GRU, layers=2, on="majority"),
    },
)
