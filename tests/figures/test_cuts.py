import numpy as np
import pytest

from gradscope import Run
from gradscope.figures import Mark, cuts
from gradscope.figures._cuts import CUTS, Neck, Place, _ribbon, layout, narrowest, necks
from tests.reference.made_up_pathways import stack_of_cuts


def stack(**more):
    rows, sites, entries = stack_of_cuts(**more)
    return Run.from_records(rows, sites, {"cuts": entries, "name": "stack"})


def texts(figure):
    return [t.get_text() for axes in figure.axes for t in axes.texts]


def test_numbers_and_names_of_every_cut_and_place():
    shown = texts(cuts(stack(layers=3)))
    assert shown.count("16") == 2
    assert {"l.0.content", "l.1.content", "answer", "10"} <= set(shown)
    assert {"(input) · 368", "l.0 · 512", "l.1 · 512", "l.2 · 512"} <= set(shown)


def test_parts_that_do_not_hang_together_are_drawn_below_one_another():
    places = layout(necks(stack(layers=3)))
    assert [round(p.y) for p in places.values()] == [0, 1, 2, 3, 4]
    assert {p.x for p in places.values()} == {0.0}


def test_branches_stand_side_by_side():
    def neck(a, b):
        return Neck(a, b, 1.0, 8.0, 8.0, ())

    places = layout([neck("a", "b"), neck("a", "c"), neck("b", "d"), neck("c", "d")])
    assert places["b"].y == places["c"].y == 1
    assert places["b"].x == -places["c"].x != 0
    assert (places["a"].x, places["d"].x, places["d"].y) == (0, 0, 2)


def test_a_loop_of_cuts_is_drawn_all_the_same():
    loop = [Neck("a", "b", 1, 8, 8, ()), Neck("b", "a", 1, 8, 8, ()), Neck("c", "c", 1, 8, 8, ())]
    assert set(layout(loop)) == {"a", "b", "c"}


def test_a_ribbon_is_as_wide_as_its_ends_and_its_neck():
    outline = _ribbon(Place(0, 0, 1), Place(0, 1, 1), 0.8, 0.2, 0.5)
    left, right = np.split(outline, 2)
    width = right[::-1, 0] - left[:, 0]
    assert width[[0, 20, 40]] == pytest.approx([1.6, 0.4, 1.0])
    assert width.min() == pytest.approx(0.4)


def test_findings_colour_their_necks():
    mark = Mark("F3", "warning", "l.0", 0, 0, kind="cut", sites=("l.0 → l.1",))
    shown = texts(cuts(stack(layers=3), [mark]))
    assert shown.count("F3  16") == 1 and shown.count("16") == 1


def test_only_the_narrowest_of_very_many_and_it_says_so():
    found = [Neck(str(i), str(i + 1), i, 100, 100, ()) for i in range(CUTS + 5)]
    assert narrowest(found) == found[:CUTS]
    figure = cuts(stack(layers=CUTS + 3))
    assert figure.axes[0].get_xlabel().endswith("3 more cuts, no narrower")


def test_runs_share_a_scale():
    figure = cuts([stack(layers=3, latent=512), stack(layers=3, width=4, latent=64)])
    large, small = (max(np.ptp(line.get_xdata()) for line in a.lines) for a in figure.axes)
    assert small / large == pytest.approx(np.log10(369) / np.log10(513))


def test_recordings_without_the_names_of_tensors():
    rows, sites, _ = stack_of_cuts(3)
    assert "16" in texts(cuts(Run.from_records(rows, sites)))
