import numpy as np
import pytest

from gradscope.findings import peaked_softmax as rule
from gradscope.findings._rule import apply
from gradscope.findings._signals import Signals
from tests.reference import synthetic as made

SITES = [f"layers.{k}.attn" for k in range(3)]


def find(rows, n=16):
    return apply(rule.RULE, Signals(made.run(rows, made.softmax_sites(SITES, n))))


def collapse(at, steps=40):
    return np.where(np.arange(steps) < at, 0.9, 0.01)


def test_peaked_from_the_start():
    rows = [r for site in SITES for r in made.softmax(site, [0.003] * 40)]
    (finding,) = find(rows)
    assert (finding.severity, finding.site) == ("warning", SITES[0])
    assert finding.view.sites == tuple(SITES)
    assert finding.evidence["from_start"]
    assert "from the start" in finding.message


def test_at_the_start_nearly_peaked_is_enough():
    def rows(steps_peaked):
        values = {"entropy": 0.08, "max_prob": 0.9, "jacobian_norm": 0.15, "gain": 0.02}
        rows = made.softmax(SITES[0], [0.7] * 40)
        return [
            (s, n, k, e, m, values[m] if s in steps_peaked and m in values else v)
            for s, n, k, e, m, v in rows
        ]

    (finding,) = find(rows(range(40)))
    assert finding.severity == "warning" and finding.evidence["from_start"]
    assert find(rows(range(10, 40)) + made.loss(2.0, 1.9)) == []


def test_peaked_from_the_start_matters_though_the_loss_falls():
    rows = made.softmax(SITES[0], [0.003] * 40) + made.loss(2.0, 0.1)
    assert find(rows)[0].severity == "warning"


def test_nothing_passes():
    assert find(made.softmax(SITES[0], [1e-6] * 40))[0].severity == "critical"


def test_attention_that_learned_where_to_look():
    rows = made.softmax(SITES[0], collapse(15))
    assert find(rows + made.loss(2.0, 0.1)) == []


def test_a_collapse_while_the_loss_stands_still():
    (finding,) = find(made.softmax(SITES[0], collapse(15)) + made.loss(2.0, 1.9))
    assert (finding.severity, finding.first_step) == ("warning", 15)
    assert find(made.softmax(SITES[0], collapse(15)))[0].severity == "info"  # no loss to tell


def falls(at, steps=40):
    return made.series("scalar", "loss", "value", [2.0 if i < at else 0.2 for i in range(steps)])


@pytest.mark.parametrize(("loss_falls_at", "found"), [(30, True), (10, False), (9, False)])
def test_a_collapse_of_all_before_anything_was_learned(loss_falls_at, found):
    rows = [r for site in SITES for r in made.softmax(site, collapse(10))]
    assert bool(find(rows + falls(loss_falls_at))) == found


def test_one_of_several_may_be_early():
    rows = made.softmax(SITES[0], collapse(10)) + falls(30)
    rows += [r for site in SITES[1:] for r in made.softmax(site, [0.9] * 40)]
    assert find(rows) == []


def test_a_collapse_that_undid_what_was_learned():
    losses = [*np.geomspace(3.0, 0.5, 20), *np.full(20, 1.5)]
    rows = made.softmax(SITES[0], collapse(20)) + made.series("scalar", "loss", "value", losses)
    assert find(rows)[0].severity == "warning"


@pytest.mark.parametrize("entropy", [0.2, 0.6, 1.0])
def test_ordinary_attention(entropy):
    assert find(made.softmax(SITES[0], [entropy] * 40)) == []


def test_a_gain_that_passes_enough_is_no_finding():
    assert find(made.softmax(SITES[0], [0.003] * 40, gain=0.3)) == []


def test_a_short_spell_and_a_single_step():
    assert find(made.softmax(SITES[0], np.where(np.arange(40) < 5, 0.003, 0.5))) == []
    assert find(made.softmax(SITES[0], [0.003]))[0].severity == "info"


def test_a_softmax_over_one_element():
    rows = [
        (s, SITES[0], "softmax", "", m, v)
        for s in range(9)
        for m, v in (("entropy", 0.0), ("max_prob", 1.0), ("gain", 0.0))
    ]
    (finding,) = find(rows, n=1)
    assert "over one element" in finding.message
    assert "dim" in finding.remedy


def test_unknown_entropy():
    assert find(made.softmax(SITES[0], [np.nan] * 9)) == []


def test_certain_and_learned_at_about_the_same_time():
    rows = [r for site in SITES for r in made.softmax(site, collapse(10))]
    assert find(rows + falls(12)) == []
    assert find(rows + falls(20)) != []


@pytest.mark.parametrize(("gain", "found"), [(1e-6, True), (0.05, False)])
def test_ties_at_the_start(gain, found):
    """Three of sixteen entries share the first place."""
    rows = [
        (*r[:5], {"entropy": 0.25, "max_prob": 0.4, "gain": gain}.get(r[4], r[5]))
        for r in made.softmax(SITES[0], [0.25] * 40)
    ]
    assert bool(find(rows)) == found


@pytest.mark.parametrize(
    ("entropy", "max_prob", "gain", "limit", "says"),
    [
        (0.01, 0.99, 0.01, rule.ENTROPY, "nearly one-hot"),
        (0.15, 0.8, 0.05, rule.FIRST_ENTROPY, "nearly one-hot"),
        (0.3, 0.4, 0.005, rule.TIED_ENTROPY, "a few entries, equal among themselves"),
    ],
)
def test_the_limit_in_the_figure_is_the_one_that_was_met(entropy, max_prob, gain, limit, says):
    values = {"entropy": entropy, "max_prob": max_prob, "gain": gain, "jacobian_norm": 0.05}
    rows = [r for m, v in values.items() for r in made.series("softmax", SITES[0], m, [v] * 40)]
    (finding,) = find(rows)
    assert finding.view.thresholds == {"peaked": limit}
    assert says in finding.message


def test_a_loss_below_zero_is_judged_like_any_other():
    rows = made.softmax(SITES[0], collapse(20))
    for shift in (0.0, 1.0):
        curve = 1 - 0.95 * (1 - np.exp(-np.arange(40) / 6)) - shift
        assert find(rows + made.series("scalar", "loss", "value", curve)) == []
