"""unscaled-input: the model reads numbers of another size than its layers are initialised for.

Definition. The data that a trainable module reads has a root mean square of `LARGE` or more, or a
feature with `PEAK` or more, or none with more than `SMALL`, at most of the measured steps. Common
initialisations keep the variance of what passes through only for inputs of unit variance; the
gradient of the first weights grows in proportion.

Source: LeCun et al., "Efficient BackProp", 1998, section 4.3.

Severity. Warning; critical where the loss ends non-finite or has not fallen.

Silent where that module is a normalisation, which takes the scale away, about token ids, and about
data that are all 0, such as a first state.
"""

from __future__ import annotations

import math

from gradscope.findings._finding import Finding, View
from gradscope.findings._groups import named
from gradscope.findings._rule import Rule
from gradscope.findings._signals import Signals, quiet_median
from gradscope.findings._training import progress

LARGE = 20.0  # standardised data has 1; pixels from 0 to 255 have about 130
PEAK = 100.0  # of one feature among others: years, prices, counts
SMALL = 0.01  # of the largest feature: volts, metres; sparse data have 0.05 and more


def find(signals: Signals) -> list[Finding]:
    rms = signals.matrix("input", "input_rms")
    findings = []
    for site in rms.sites:
        kind = signals.site("input", site).type
        size = float(quiet_median(rms.column(site)))
        peak = _median(signals, "input_peak", site)
        small = size > 0 and 0 < peak <= SMALL
        if not (size >= LARGE or peak >= PEAK or small) or "Norm" in kind:
            continue
        went = progress(signals)
        if not (math.isfinite(size) and not math.isinf(peak)):  # non-finite tells of them
            continue
        by_peak = size < LARGE and not math.isnan(peak)
        limit = {"small": SMALL} if small else {"large": PEAK if by_peak else LARGE}
        findings.append(
            Finding(
                rule="unscaled-input",
                severity="critical" if went is not None and went.stuck else "warning",
                site=site,
                first_step=int(rms.steps[0]),
                last_step=int(rms.steps[-1]),
                evidence={
                    "input_rms": size,
                    "input_peak": peak,
                    "input_offset": _median(signals, "input_offset", site),
                },
                message=(
                    f"{named(site)} ({kind}) reads data with a root mean square of {size:.3g} "
                    f"({peak:.3g} in the largest feature), and weights are initialised for 1."
                ),
                remedy=(
                    "Standardise the data (subtract the mean and divide by the standard deviation "
                    "of each feature over the training set), or begin with a normalisation layer."
                ),
                view=View(
                    "input",
                    "input_peak" if by_peak else "input_rms",
                    (site,),
                    thresholds={**limit, "unit": 1.0},
                ),
            )
        )
    return findings


def _median(signals: Signals, metric: str, site: str) -> float:
    matrix = signals.matrix("input", metric)
    return float(quiet_median(matrix.column(site))) if site in matrix else float("nan")


RULE = Rule("unscaled-input", (("input", "input_rms"),), find)
