import json

import numpy as np
import pytest

from gradscope.findings import Finding, View

VIEW = View("module", "grad_rms", ("a", "b"), thresholds={"limit": 1e-3}, relative_to="b")


def finding(**changes):
    given = {
        "rule": "vanishing-gradient",
        "severity": "warning",
        "site": "a",
        "first_step": np.int64(0),
        "last_step": np.int64(40),
        "evidence": {"ratio": np.float64(1e-4), "layers": np.int64(6), "lost": np.nan},
        "message": "The gradient vanishes.",
        "remedy": "Add residual connections.",
        "view": VIEW,
    }
    return Finding(**(given | changes))


def test_to_dict_is_strict_json_with_every_field():
    data = json.loads(json.dumps(finding().to_dict(), allow_nan=False))
    assert data["evidence"] == {"ratio": 1e-4, "layers": 6, "lost": None}
    assert (data["first_step"], data["last_step"]) == (0, 40)
    assert data["view"]["sites"] == ["a", "b"]
    assert data["view"]["thresholds"] == {"limit": 1e-3}
    assert set(data) == set(Finding.__dataclass_fields__)


def test_infinity_becomes_none():
    assert finding(evidence={"factor": float("inf")}).evidence == {"factor": None}


def test_unknown_severity_is_refused():
    with pytest.raises(ValueError, match="'fatal'; one of info, warning, critical"):
        finding(severity="fatal")


def test_steps_in_order():
    with pytest.raises(ValueError, match="41 to 40"):
        finding(first_step=41)


def test_evidence_of_objects_is_refused():
    with pytest.raises(TypeError, match="primitives, not set"):
        finding(evidence={"sites": {"a"}})


def test_frozen():
    with pytest.raises(AttributeError):
        finding().site = "b"
