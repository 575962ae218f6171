import numpy as np
import pytest

from gradscope.findings import vanishing_gradient as rule
from gradscope.findings._rule import Skipped, apply
from gradscope.findings._signals import Signals
from gradscope.run import Site
from tests.reference import synthetic as made

NAMES = [f"layers.{k}.out.weight" for k in range(6)]


def find(rows, sites=None):
    return apply(
        rule.RULE, Signals(made.run(rows, made.ladder_sites() if sites is None else sites))
    )


def test_decay_along_depth():
    (finding,) = find(made.ladder(0.8))
    assert finding.severity == "warning"
    assert finding.site == "layers.0.out"
    assert (finding.first_step, finding.last_step) == (0, 39)
    assert finding.evidence["decades_per_layer"] == pytest.approx(0.8, rel=0.1)
    assert finding.evidence["ratio_first_to_last"] == pytest.approx(1e-4, rel=0.5)
    assert finding.view.sites == tuple(f"layers.{k}.out" for k in range(6))
    assert finding.view.relative_to == "layers.5.out"


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e10])
def test_size_does_not_matter(scale):
    assert find(made.ladder(0.8, scale=scale))
    assert find(made.ladder(0.2, scale=scale)) == []
    assert find(made.ladder(-0.8, scale=scale)) == []


def test_a_converged_run_whose_whole_gradient_fades():
    rows = [(s, *r, v * 10 ** (-s / 4)) for s, *r, v in made.ladder(0.1)]
    assert find(rows) == []


def test_an_isolated_step():
    assert find(made.ladder(lambda step: 2.0 if step == 20 else 0.1)) == []


def test_a_start_that_passes_is_worth_a_word_if_it_takes_long_enough():
    assert find(made.ladder(lambda step: 1.0 if step < 3 else 0.0)) == []
    (finding,) = find(made.ladder(lambda step: 1.0 if step < 10 else 0.0))
    assert finding.severity == "info"
    assert finding.last_step == 9
    assert "over after step 9" in finding.message


def test_more_than_half_of_the_run_was_lost():
    (finding,) = find(made.ladder(lambda step: 1.0 if step < 25 else 0.0))
    assert finding.severity == "warning"


def test_where_the_largest_drop_is():
    rows = [
        (step, site, kind, edge, metric, value * (1e-5 if site < "layers.3" else 1.0))
        for step, site, kind, edge, metric, value in made.ladder(0.1)
    ]
    (finding,) = find(rows)
    assert finding.evidence["largest_drop_from"] == "layers.3.out"
    assert finding.evidence["largest_drop_to"] == "layers.2.out"
    assert finding.evidence["largest_drop_decades"] == pytest.approx(5.1, abs=0.2)


def test_an_optimizer_that_passes_the_decay_on_is_critical():
    ratio = {n: 1e-3 * 10 ** (-0.8 * (5 - k)) for k, n in enumerate(NAMES)}
    rows = made.ladder(0.8) + made.parameters(NAMES, ratio=ratio)
    (finding,) = find(rows, made.ladder_sites() + made.parameter_sites(NAMES))
    assert finding.severity == "critical"
    assert not finding.evidence["hidden_by_optimizer"]


def test_an_optimizer_that_hides_it():
    rows = made.ladder(0.8) + made.parameters(NAMES, ratio=1e-3)
    sites = made.ladder_sites() + made.parameter_sites(NAMES)
    (finding,) = find(rows, sites)
    assert (finding.severity, finding.evidence["hidden_by_optimizer"]) == ("warning", True)
    assert "optimizer hides it" in finding.message

    late = made.ladder(lambda step: 0.8 if step > 25 else 0.0) + made.parameters(NAMES)
    assert find(late + made.loss(2.0, 1.9), sites)[0].severity == "warning"
    assert find(late + made.loss(2.0, 0.1), sites)[0].severity == "info"


def test_no_gradient_at_all():
    rows = [
        (step, site, kind, edge, metric, 0.0 if site < "layers.3" else value)
        for step, site, kind, edge, metric, value in made.ladder(0.1)
    ]
    (finding,) = find(rows)
    assert finding.severity == "critical"
    assert finding.evidence["ratio_first_to_last"] == 0
    assert finding.evidence["decades"] is None
    assert "ends between layers.3.out and layers.2.out" in finding.message


def test_one_step_is_judged_with_less_severity_and_says_so():
    (finding,) = find(made.ladder(0.8, steps=1))
    assert finding.severity == "info"
    assert "only 1 recorded step" in finding.message


def test_shared_calls_are_info_while_the_loss_falls():
    names = ["cell", *(f"cell#{k}" for k in range(1, 6))]
    rename = dict(zip([f"layers.{k}.out" for k in range(6)], names, strict=True))
    rows = [(s, rename[site], *rest) for s, site, *rest in made.ladder(0.8)]
    sites = [type(s)(**{**s.__dict__, "name": rename[s.name]}) for s in made.ladder_sites()]
    assert find(rows + made.loss(2.0, 0.1), sites)[0].severity == "info"
    assert find(rows + made.loss(2.0, 2.0), sites)[0].severity == "warning"


def test_the_softmax_on_the_way_is_named():
    rows, sites = made.ladder(0.8), made.ladder_sites()
    for k in range(6):
        rows += made.softmax(f"layers.{k}.softmax", [0.98] * 40, n=10, gain=0.1)
    (finding,) = find(rows, sites + made.softmax_sites([f"layers.{k}.softmax" for k in range(6)]))
    assert finding.evidence["softmax_gain"] == pytest.approx(0.1)
    assert "around the softmax" in finding.remedy


def test_only_the_outermost_structure():
    rows = made.ladder(0.8) + made.ladder(0.8, role="layers.{}.ffn.0")
    rows += made.ladder(0.8, role="layers.{}.ffn.1")
    sites = made.ladder_sites()
    depth = 100
    for k in range(6):
        for j in range(2):
            depth -= 1
            sites.append(made.Site(f"layers.{k}.ffn.{j}", "module", "Linear", 10 + k, depth))
    assert [f.evidence["role"] for f in find(rows, sites)] == ["layers.*.out"]


def test_sites_missing_at_some_steps():
    random = made.rng(3)
    rows = [r for r in made.ladder(0.8) if random.random() < 0.7]
    assert find(rows)[0].severity == "warning"


def test_nothing_to_compare():
    skipped = find(made.ladder(0.8, layers=2), made.ladder_sites(2))
    assert isinstance(skipped, Skipped)
    assert "no three comparable modules" in skipped.reason


def test_unrecorded_numbers_do_not_warn():
    rows = [*made.ladder(0.8), (41, "layers.0.out", "module", "", "grad_norm", np.nan)]
    assert find(rows)


def test_what_begins_after_the_run_has_learned_is_a_note():
    def late(step):
        return 0.8 if step >= 20 else 0.0

    falls_early = made.series("scalar", "loss", "value", [2.0] * 5 + [0.1] * 35)
    falls_late = made.series("scalar", "loss", "value", [2.0] * 35 + [0.1] * 5)
    assert find(made.ladder(late) + falls_early)[0].severity == "info"
    assert find(made.ladder(late) + falls_late)[0].severity == "warning"
    assert find(made.ladder(0.8) + falls_early)[0].severity == "warning"


@pytest.mark.parametrize(("end", "found"), [(2.0, 1), (0.2, 0)])
def test_less_is_enough_where_the_loss_does_not_fall(end, found):
    assert len(find([*made.ladder(0.45), *made.loss(2.0, end)])) == found


def chain(blocks, ends):
    """Gradients of a body that repeats, between an entry and an exit that do not."""
    names = ["enter", *(f"body.{k}" for k in range(4)), "leave"]
    rows = [
        row
        for k, name in enumerate(names)
        for row in made.series(
            "module",
            name,
            "grad_norm",
            [10.0 ** (-blocks * (4 - k) - ends * (k < 1)) / 10**ends] * 40 if k < 5 else [1.0] * 40,
        )
    ]
    sites = [
        Site(n, "module", "Linear", k, 60 - 10 * k, (8, 8), 64, parameters=True)
        for k, n in enumerate(names)
    ]
    return find(rows, sites)


def test_what_is_lost_before_and_behind_a_body_that_repeats():
    (finding,) = chain(0.6, 1.2)
    assert (finding.site, finding.evidence["role"]) == ("enter", "(chain)")
    assert chain(0.3, 0.4) == []
    (finding,) = chain(1.0, 1.2)
    assert finding.evidence["role"] == "body.*"


def test_where_a_gradient_ends_is_told_and_how_far_it_had_faded():
    def end(rate, nothing):
        rows = [
            (*r[:-1], 0.0 if int(r[1].split(".")[1]) < nothing else r[-1])
            for r in made.ladder(rate, layers=12, noise=0)
        ]
        return find(rows, made.ladder_sites(12))[0]

    cut = end(0.1, nothing=4)
    assert (
        "No gradient at all reaches layers.0.out: it ends between layers.4.out and" in cut.message
    )
    assert "decades" not in cut.message and "detach()" in cut.remedy
    assert (cut.evidence["largest_drop_from"], cut.evidence["largest_drop_to"]) == (
        "layers.4.out",
        "layers.3.out",
    )
    faded = end(2.0, nothing=4)
    assert "having lost 14 decades on its way there" in faded.message
    assert "detach()" not in faded.remedy


def test_a_gradient_that_is_not_zero_is_never_called_so():
    (finding,) = find(made.ladder(3.5, layers=12, noise=0), made.ladder_sites(12))
    assert "No gradient" not in finding.message
    assert finding.evidence["decades"] == pytest.approx(38.5)


def test_the_remedy_is_for_what_lies_between_the_layers():
    def remedy(*others):
        sites = [*made.ladder_sites(), *others]
        rows = made.ladder(0.8)
        rows += [r for s in others for r in made.series("module", s.name, "grad_norm", [1.0] * 40)]
        return find(rows, sites)[0].remedy

    tanh = "saturating activations"
    assert tanh not in remedy()
    assert tanh not in remedy(Site("head.squash", "module", "Tanh", order=50))
    assert tanh in remedy(Site("layers.2.act", "module", "Tanh", order=2))
