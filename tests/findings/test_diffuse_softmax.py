import numpy as np
import pytest

from gradscope.findings import diffuse_softmax as rule
from gradscope.findings._rule import Skipped, apply
from gradscope.findings._signals import Signals
from gradscope.run import Site
from tests.reference import synthetic as made

SITES = [f"layers.{k}.attn" for k in range(4)]


def find(rows, n=16, every=30, sites=()):
    rows = [(step * every, *rest) for step, *rest in rows]
    return apply(rule.RULE, Signals(made.run(rows, [*made.softmax_sites(SITES, n), *sites])))


def all_of(entropy, sites=SITES):
    return [r for site in sites for r in made.softmax(site, entropy)]


def test_uniform_for_the_whole_run():
    (finding,) = find(all_of([0.998] * 40))
    assert (finding.severity, finding.site, finding.evidence["sites"]) == ("warning", SITES[0], 4)
    assert finding.evidence["gain_times_n"] == pytest.approx(1.0, rel=0.01)


def under_a_mask(alike, entropy=0.72):
    """Uniform over the entries that are left: 1/m of each step in `alike`."""
    rows = all_of([entropy] * len(alike))
    values = {"evenness": [1.0] * len(alike), "uniform_gain": alike, "gain": alike}
    kept = [r for r in rows if r[4] not in values]
    return kept + [
        r for s in SITES for m, v in values.items() for r in made.series("softmax", s, m, v)
    ]


def test_uniform_under_a_causal_mask():
    (finding,) = find(under_a_mask([0.21] * 40))
    assert finding.severity == "warning"


def test_uniform_under_padding_that_varies():
    rows = under_a_mask(list(np.random.default_rng(0).uniform(0.07, 0.15, 40)))
    assert find(rows)[0].severity == "warning"


def test_a_few_ties_among_peaked_logits_are_not_uniform():
    assert find(under_a_mask(list(np.random.default_rng(0).uniform(0.4, 0.9, 40)))) == []


def test_most_softmaxes_uniform_matters_though_the_loss_falls():
    assert find(all_of([0.998] * 40) + made.loss(2.0, 0.1))[0].severity == "warning"


def test_one_layer_that_averages_among_others_that_select():
    rows = all_of([0.998] * 40, SITES[:1]) + all_of([0.5] * 40, SITES[1:])
    assert find(rows + made.loss(2.0, 0.1))[0].severity == "info"
    assert find(rows + made.loss(2.0, 2.0))[0].severity == "warning"


def test_a_short_run_has_to_be_exactly_uniform():
    assert find(all_of([0.998] * 40), every=8)[0].severity == "info"
    assert find(all_of([0.99995] * 40), every=8)[0].severity == "warning"
    assert find(all_of([0.99995] * 40), every=4)[0].severity == "info"


def test_attention_that_is_about_to_break_out():
    deficit = np.where(np.arange(40) < 36, 2e-5, 6e-5)
    assert find(all_of(1 - deficit), every=8)[0].severity == "info"
    assert find(all_of(1 - np.geomspace(1e-6, 6e-5, 40)), every=8)[0].severity == "warning"


@pytest.mark.parametrize("end", [0.98, 0.6])
def test_attention_that_leaves_initialisation(end):
    assert find(all_of(np.linspace(0.9999, end, 40))) == []


def test_initialisation_alone():
    assert isinstance(find(all_of([1.0] * 8)), Skipped)
    assert isinstance(find(all_of([1.0] * 40), every=1), Skipped)


def test_a_gain_above_uniform_is_no_finding():
    rows = [r for s in SITES for r in made.softmax(s, [0.9999] * 40, gain=0.5)]
    assert find(rows) == []


def test_rows_of_two():
    assert find(all_of([0.9999] * 40), n=2) == []


def test_training_made_it_uniform():
    """At 300 steps, time alone is no evidence."""
    settled = 1 - np.concatenate([[0.02], np.geomspace(2e-3, 4e-4, 39)])
    lasting = 1 - np.concatenate([[2e-3], np.geomspace(2e-3, 4e-4, 39)])
    assert find(all_of(settled), every=8)[0].severity == "warning"
    assert find(all_of(lasting), every=8)[0].severity == "info"


@pytest.mark.parametrize(("deficit", "found"), [(1e-7, True), (1e-4, False)])
def test_uniform_for_most_of_the_run_and_left_late(deficit, found):
    rows = all_of([1 - deficit] * 30 + list(np.linspace(0.999, 0.3, 10)))
    findings = find(rows + made.loss(2.0, 1.9), every=8)
    assert [f.severity for f in findings] == ["warning"] * found
    assert not found or "is uniform at step 2" in findings[0].message


def test_uniform_and_still_while_the_loss_does_not_fall():
    still, moving = [0.99] * 40, list(1 - np.geomspace(1e-3, 9e-3, 40))
    stuck = made.loss(2.0, 1.9)
    assert find(all_of(still) + stuck, every=8)[0].severity == "warning"
    assert find(all_of(moving) + stuck, every=8)[0].severity == "info"
    assert find(all_of(still) + made.loss(2.0, 0.5), every=8) == []
    hardly = list(1 - np.geomspace(1e-3, 5e-3, 40))
    assert find(all_of(hardly) + stuck, every=8)[0].severity == "warning"
    assert find(all_of(hardly) + made.loss(2.0, 0.5), every=8)[0].severity == "info"
    few = all_of(hardly, SITES[:2]) + all_of([0.5] * 40, SITES[2:])
    assert find(few + stuck, every=8)[0].severity == "info"


def test_logits_that_are_what_a_softmax_returned():
    names = ["scores", "twice"]
    rows = all_of([0.3] * 40, names[:1]) + all_of([0.99] * 40, names[1:]) + made.loss(2.0, 0.9)
    for depth, found in ((6, ["warning"]), (9, [])):
        sites = [
            Site("scores", "softmax", "softmax", 10, depth, (4, 16), 64),
            Site("twice", "softmax", "softmax", 11, 5, (4, 16), 64),
        ]
        run = made.run([(step * 8, *rest) for step, *rest in rows], sites)
        findings = apply(rule.RULE, Signals(run))
        assert [(f.site, f.severity) for f in findings] == [("twice", s) for s in found]


@pytest.mark.parametrize(("size", "found"), [(1e-7, 0), (1e-3, 1)])
def test_a_softmax_that_no_gradient_reaches_is_starved_not_uniform(size, found):
    rows = all_of([0.998] * 40, SITES[:1])
    rows += made.series("module", SITES[0], "grad_norm", [size] * 40)
    rows += made.series("module", "head", "grad_norm", [1.0] * 40)
    modules = [Site(name, "module", numel=64) for name in (SITES[0], "head")]
    assert len(find(rows, sites=modules)) == found


def capped(end):
    """1 − entropy that grows fourfold, and returns."""
    late = end * (1 + 0.03 * np.cos(np.arange(30)))
    return np.concatenate([np.linspace(0.004, 0.016, 5), np.linspace(0.016, end, 15), late])


def test_logits_that_met_a_limit():
    met = all_of(1 - capped(0.01))
    assert find(met + made.loss(2.0, 1.8, 50), every=6)[0].severity == "warning"
    assert find(met + made.loss(2.0, 1.3, 50), every=6)[0].severity == "warning"
    assert find(met + made.loss(2.0, 0.5, 50), every=6) == []
    assert find(all_of(1 - capped(0.016)) + made.loss(2.0, 1.8, 50), every=6) == []


@pytest.mark.parametrize("end", [1.8, 0.5])
def test_logits_that_stand_at_a_limit_say_so_whatever_the_loss_does(end):
    grown = np.concatenate([np.linspace(0.001, 0.012, 15), [0.012] * 35])
    assert find(all_of(1 - grown) + made.loss(2.0, end, 50), every=6)[0].severity == "warning"
    moving = grown * (1 + 0.05 * np.cos(np.arange(50)))
    assert find(all_of(1 - moving) + made.loss(2.0, 0.5, 50), every=6) == []


@pytest.mark.parametrize(("n", "end", "found"), [(99, 1.8, 0), (100, 1.8, 1), (100, 0.5, 0)])
def test_over_a_crowd_of_entries(n, end, found):
    rows = all_of(1 - np.linspace(0.016, 0.024, 50)) + made.loss(2.0, end, 50)
    assert [f.severity for f in find(rows, n=n, every=6)] == ["warning"] * found


@pytest.mark.parametrize(
    ("every", "end", "severity"), [(3, 1.9, "info"), (4, 1.9, "warning"), (4, 1.0, "info")]
)
def test_a_loss_that_does_not_fall_is_evidence_sooner(every, end, severity):
    (finding,) = find(all_of([0.99995] * 40) + made.loss(2.0, end), every=every)
    assert finding.severity == severity


def test_made_uniform_while_nothing_is_learned_though_it_leaves_late():
    deficit = np.concatenate([[1e-3], np.full(32, 1e-8), np.geomspace(1e-5, 1e-3, 7)])
    assert find(all_of(1 - deficit) + made.loss(2.0, 1.9), every=4)[0].severity == "warning"
    assert find(all_of(1 - deficit) + made.loss(2.0, 0.5), every=4)[0].severity == "info"
