"""The corpus of labelled runs: its form, and a few of its cases from recording to score."""

from collections import Counter

import pytest
import torch

from analyses.faults import recordings
from analyses.faults.baselines import BASELINES
from analyses.faults.case import same
from analyses.faults.corpus import corpus
from analyses.faults.judging import score
from analyses.faults.observe import observe
from analyses.faults.recordings import path_of, record_missing
from analyses.faults.verify import verdict
from gradscope.findings import rules


@pytest.fixture(scope="module")
def cases():
    return corpus()


def test_names_are_unique(cases):
    assert [n for n, k in Counter(c.name for c in cases).items() if k > 1] == []


def test_every_fault_has_three_variants(cases):
    """A fault is a group's, or, in groups of independent authors, what has to be reported."""
    named = Counter(c.fault for c in cases if c.fault and not c.group.startswith("ind"))
    must = Counter(c.must for c in cases if c.fault)
    assert min(named.values()) >= 3
    alone = {m: k for m, k in must.items() if len(m) == 1 and len(next(iter(m))) == 1}
    assert min(alone.values()) >= 3


def test_only_independent_cases_are_the_score(cases):
    for c in cases:
        assert (c.split == "test") == c.group.startswith("ind10-"), c.name
    assert len([c for c in cases if c.split == "test" and c.fault]) >= 40


def test_there_are_enough_cases_of_both_kinds(cases):
    faulty = [c for c in cases if c.fault]
    assert len(faulty) >= 90
    assert len(cases) - len(faulty) >= 90


def test_healthy_cases_must_not_be_reported_and_faulty_ones_must(cases):
    for c in cases:
        assert bool(c.must) == bool(c.fault) == (c.symptom is not None), c.name
        assert not c.expected & c.may, c.name


def test_a_twin_is_a_healthy_case(cases):
    healthy = {c.name for c in cases if not c.fault}
    assert {c.twin for c in cases if c.twin} <= healthy


def test_no_two_healthy_cases_are_the_same_run(cases):
    made = Counter(same(c.make) for c in cases if not c.fault)
    assert [m for m, k in made.items() if k > 1] == []


def test_every_label_names_a_rule_that_exists(cases):
    labels = set().union(*(c.expected | c.may | c.at_info for c in cases))
    assert labels - {rule.name for rule in rules()} == set()


BROKEN = ["no-update/mlp-lr-0", "detached/mlp-detach"]


@pytest.fixture(scope="module")
def broken(cases):
    return next(c for c in cases if c.name == "no-update/mlp-lr-0")


@pytest.fixture(scope="module")
def healthy(cases, broken):
    return next(c for c in cases if c.name == broken.twin)


@pytest.fixture(scope="module")
def few(tmp_path_factory, cases, healthy):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recordings, "FOLDER", tmp_path_factory.mktemp("runs"))
        some = [*(c for c in cases if c.name in BROKEN), healthy]
        yield some, [trouble for _, trouble in record_missing(some)]


def test_cases_are_recorded_once(few):
    some, trouble = few
    assert trouble == ["", "", ""]
    assert all(path_of(c).exists() for c in some)
    assert list(record_missing(some)) == []


def test_recorded_cases_are_judged_by_gradscope_and_the_baselines(few, healthy):
    some, _ = few
    judged = score(some)
    assert set(judged) == {"gradscope", *BASELINES}
    by_name = {j.case.name: j for j in judged["gradscope"]}
    assert by_name["no-update/mlp-lr-0"].hits == ("no-update",)
    assert by_name[healthy.name].false_alarms == ()


def test_a_case_is_the_same_training_each_time(healthy):
    first, second = observe(healthy.make), observe(healthy.make)
    assert first.loss_last == second.loss_last
    assert first.loss_last < 0.7 * first.loss_first


def test_verification_tells_a_fault_from_its_twin(few, broken, healthy):
    assert verdict(broken)["is"]
    assert not broken.symptom(observe(healthy.make), None)["is"]


def test_verification_measures_a_gradient_as_autograd_has_it(healthy):
    found = observe(healthy.make).checkpoints[0]
    torch.manual_seed(0)
    training = healthy.make()
    training.loss_at(0).backward()
    for name, p in training.model.named_parameters():
        if p.ndim > 1:
            assert found.norms[name] == pytest.approx(p.grad.norm().item(), rel=1e-5)
