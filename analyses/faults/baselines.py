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
    if _infinite(rms) or _non_finite(run):
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
    """AutoTrainer (Zhang et al., ICSE 2021), at any recorded step, of runs that do not converge.

    Vanishing: the first matrix's gradient norm < 1e-3 of the last's, and < 1e-4. Exploding: the
    ratio > 70. Dying ReLU: at least 0.7 of all elements of the gradient exactly 0. Its test of
    convergence needs an accuracy; in its place, the loss has to end above half of what it was.
    """
    matrices = [s.name for s in run.sites_of("parameter") if len(s.shape) > 1]
    norm = run.wide("parameter", "grad_norm")
    if _infinite(norm) or _non_finite(run):
        return [Report("non-finite", "warning")]
    if _converges(run) or norm.empty:
        return []
    reports = []
    norm = norm[[c for c in norm.columns if c in matrices]]
    if norm.shape[1] > 1:
        first, last = norm.iloc[:, 0], norm.iloc[:, -1]
        ratio = first / last
        if bool(((ratio < 1e-3) & (first < 1e-4)).any()):
            reports.append(Report("vanishing-gradient", "warning"))
        if bool((ratio > 70).any()):
            reports.append(Report("exploding-gradient", "warning"))
    zeros = run.wide("parameter", "zero_fraction")
    size = pd.Series({s.name: s.numel for s in run.sites_of("parameter")}).reindex(zeros.columns)
    if bool(((zeros * size).sum(axis=1) / size.sum() >= 0.7).any()):
        reports.append(Report("dead-units", "warning"))
    return reports


def _converges(run: gradscope.Run) -> bool:
    loss = run.scalars()["loss"].to_numpy()
    tail = max(1, len(loss) // 10)
    return bool(loss[-tail:].mean() <= 0.5 * loss[:3].mean())


BASELINES: dict[str, Baseline] = {
    "debugger": debugger,
    "torchlens": torchlens,
    "autotrainer": autotrainer,
}


def _infinite(frame: pd.DataFrame) -> bool:
    return bool(np.isinf(frame.to_numpy(dtype=float)).any())


def _non_finite(run: gradscope.Run) -> bool:
    table = run.frame(metric="nonfinite")
    return bool((table["value"] > 0).any())
