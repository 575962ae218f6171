"""All models of the oracle suite, and the cells of the support matrix that a test of each fills."""

import pytest

from tests.reference import huggingface, networks

CASES = networks.CASES | huggingface.CASES


def every_case(*columns):
    """Parameters for a test that proves these columns of the support matrix, model by model.

    The test must find that nothing is recorded for a model that lacks what a column is about.
    """
    return [pytest.param(name, marks=_marker(name, case, columns)) for name, case in CASES.items()]


def _marker(name, case, columns):
    shows = [c for c in columns if c not in case.lacks]
    lacks = [c for c in columns if c in case.lacks]
    claims = {k: v for k, v in (("shows", shows), ("lacks", lacks)) if v}
    return pytest.mark.supports(model=name, **claims)
