"""Rules of other tools, applied to the same recordings.

They look at single tensors or at the first and the last layer, with absolute limits. The mean of
|g|, which some ask for, is not recorded; its root mean square stands in, which is never smaller,
and at most a small factor larger unless a gradient is mostly zeros.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

import gradscope
from analyses.faults.scoring import Report

Baseline = Callable[[gradscope.Run], list[Report]]


def debugger(run: gradscope.Run) -> list[Report]:
    """SageMaker Debugger: VanishingGradient (mean |g| < 1e-7), ExplodingTensor (not finite).

    At any step, of any parameter.
    """
    rms = run.wide("parameter", "grad_rms")
    reports = []
    if bool((rms < 1e-7).any(axis=None)):
        reports.append(Report("vanishing-gradient", "warning"))
    if not bool(np.isfinite(rms.to_numpy()[rms.notna().to_numpy()]).all()) or _non_finite(run):
        reports.append(Report("non-finite", "warning"))
    return reports


def torchlens(run: gradscope.Run) -> list[Report]:
    """torchlens's audit: a module's gradient norm under 1e-7 or above 1e4, at any step."""
    norm = run.wide("module", "grad_norm")
    reports = []
    if bool((norm < 1e-7).any(axis=None)):
        reports.append(Report("vanishing-gradient", "warning"))
    if bool((norm > 1e4).any(axis=None)):
        reports.append(Report("exploding-gradient", "warning"))
    if _non_finite(run):
        reports.append(Report("non-finite", "warning"))
    return reports


def autotrainer(run: gradscope.Run) -> list[Report]:
    """AutoTrainer (Zhang et al., ICSE 2021), at most recorded steps.

    Vanishing: first layer's gradient < 1e-3 of the last's, and < 1e-4. Exploding: ratio > 70.
    Dying ReLU: at least 0.7 of a layer's gradient exactly 0.
    """
    matrices = [s.name for s in run.sites_of("parameter") if len(s.shape) > 1]
    rms = run.wide("parameter", "grad_rms")
    rms = rms[[c for c in rms.columns if c in matrices]]
    reports = []
    if rms.shape[1] > 1:
        first, last = rms.iloc[:, 0], rms.iloc[:, -1]
        with np.errstate(all="ignore"):
            ratio = first / last
        if _mostly((ratio < 1e-3) & (first < 1e-4)):
            reports.append(Report("vanishing-gradient", "warning"))
        if _mostly(ratio > 70):
            reports.append(Report("exploding-gradient", "warning"))
    zeros = run.wide("parameter", "zero_fraction")
    zeros = zeros[[c for c in zeros.columns if c in matrices]]
    if any(_mostly(zeros[c] >= 0.7) for c in zeros.columns):
        reports.append(Report("dead-units", "warning"))
    return reports


BASELINES: dict[str, Baseline] = {
    "debugger": debugger,
    "torchlens": torchlens,
    "autotrainer": autotrainer,
}


def _mostly(held: pd.Series) -> bool:
    return bool(len(held) and held.mean() >= 0.5)


def _non_finite(run: gradscope.Run) -> bool:
    table = run.frame(metric="nonfinite")
    return bool((table["value"] > 0).any())
