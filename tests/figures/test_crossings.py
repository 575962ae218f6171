import numpy as np
import pytest

from gradscope import Run, Site
from gradscope.figures import Mark, crossings
from gradscope.figures._crossings import ORDERS, ladders, parts, shades, spread
from gradscope.figures._style import LIGHT
from tests.reference.made_up_pathways import crossings as made

STEPS = (0, 10, 20)


def run_of(*several, name="run"):
    rows = [row for rows, _ in several for row in rows]
    return Run.from_records(rows, [s for _, sites in several for s in sites], {"name": name})


def drawn_shares(axes):
    """Height of each band at the first step, from the fills above and below 0."""
    heights = [c.get_paths()[0].vertices[:, 1] for c in axes.collections if c.get_paths()]
    return [round(float(np.ptp(h)), 6) for h in heights if np.ptp(h) > 0]


def test_bands_are_the_shares_also_below_zero():
    axes = crossings(run_of(made(3, plain=False, steps=STEPS))).axes[0]
    assert sorted(drawn_shares(axes)) == [0.1, 0.3, 0.8]
    low, high = axes.get_ylim()
    assert low < -0.09 and high > 1.09


def test_profiles_are_the_lengths_at_the_first_and_the_last_step():
    rows, sites = made(4, decades=2.0, steps=STEPS)
    rows = [(*r[:5], 10 * r[5]) if r[4] == "grad_norm" and r[0] == 20 else r for r in rows]
    figure = crossings(run_of((rows, sites)))
    first, last = figure.axes[-2:]
    assert (first.get_title(loc="left"), last.get_title(loc="left")) == ("step 0", "step 20")
    # Layer 0 of 4 crossed four softmaxes, each of which took two decades.
    y = first.lines[0].get_ydata()
    assert np.isnan(y[:4]).all() and y[4] == pytest.approx(1e-8)
    assert last.lines[0].get_ydata()[4] == pytest.approx(1e-7)
    assert first.get_ylim() == last.get_ylim()


def test_a_finding_decides_the_ladder():
    latents, contents = (
        made(3, steps=STEPS, role="l.{}.latent"),
        made(4, steps=STEPS, role="m.{}.content"),
    )
    found = [parts(run_of(latents, contents))]
    assert ladders(found)[0][0].site.name == "m.0.content"
    mark = Mark("F1", "warning", "l.0.latent", 0, 20, kind="crossing", sites=("l.0.latent",))
    assert ladders(found, [mark])[0][0].site.name == "l.0.latent"


def test_the_role_with_several_ways_is_more_telling_than_one_with_a_single_way():
    logits, latents = (
        made(3, steps=STEPS, role="l.{}.score"),
        made(3, plain=False, steps=STEPS, role="l.{}.latent"),
    )
    assert ladders([parts(run_of(logits, latents))])[0][0].site.name == "l.0.latent"


def test_compared_runs_show_one_role_and_common_axes():
    both = [
        run_of(made(3, steps=STEPS), name="plain"),
        run_of(made(3, plain=False, steps=STEPS), made(3, plain=False, steps=STEPS, role="x.{}.y")),
    ]
    assert {p.site.name for found in ladders([parts(r) for r in both]) for p in found} == {
        "l.0.s",
        "l.1.s",
        "l.2.s",
    }
    figure = crossings(both)
    assert len({a.get_ylim() for a in figure.axes[:3]}) == 1


def test_parameters_and_the_sum_check_are_no_layers():
    rows, sites = made(3, steps=STEPS)
    weight = [(s, "w.0", "crossing", "0", "projection", 1.0) for s in STEPS]
    run = run_of((rows + weight, sites))
    run.sites["crossing", "w.0"] = Site("w.0", "crossing", "parameter")
    assert [p.site.name for p in parts(run)] == ["l.0.s", "l.1.s", "l.2.s"]


def test_many_crossings_are_one_band():
    run = run_of(made(12, steps=STEPS))
    figure = crossings(run)
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert texts[0] == "0 crossed" and f"{ORDERS} or more" in texts
    assert drawn_shares(figure.axes[0]) == [1.0]


def test_an_open_last_order_is_told():
    rows, sites = made(3, steps=STEPS)
    rows = [(*r[:3], "3+", *r[4:]) if r[3] == "3" else r for r in rows]
    run = run_of((rows, sites))
    assert parts(run)[0].orders == [0, 1, 2, 3]
    texts = [t.get_text() for t in crossings(run).legends[0].get_texts()]
    assert "3 or more" in texts


def test_layers_are_spread_from_first_to_last():
    found = parts(run_of(made(12, steps=STEPS)))
    assert [p.site.name for p in spread(found, 4)] == ["l.0.s", "l.4.s", "l.7.s", "l.11.s"]
    assert spread(found[:3], 4) == found[:3]


def test_colours_differ():
    assert len(set(shades(ORDERS + 1, LIGHT))) == ORDERS + 1
