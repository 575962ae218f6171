"""How often are gradscope's rules right? Training runs with known causes, and the score.

    python -m analyses.faults                               # record what is missing, score, print
    python -m analyses.faults --only 'vanishing/*'          # some cases
    python -m analyses.faults --split tune                  # what rules may be tuned on
    python -m analyses.faults --out reports/faults          # write the report
    python -m analyses.faults.verify                        # is every fault one? without gradscope

`causes/` has a file for each kind of fault and `healthy/` the runs in which nothing is wrong;
`independent/` has both, by authors who knew neither these cases nor the rules. A
case says which rules must be reported and which others may be; whatever else is reported is a
false alarm. `nets.py`, `data.py` and `setups.py` are what the cases are built from.

Labels come from how a case was made, and from `verify`, which measures the fault by itself; never
from what the rules find. The score is that of the "test" cases: the modules of `independent/` with
`SPLITS = ("test",)`. All others are "tune".
"""
