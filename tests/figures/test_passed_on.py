import numpy as np
import pytest

from gradscope import Run, Site
from gradscope.figures import passed_on
from gradscope.figures._passed_on import NAMED, PROBES, capacity, readings
from tests.reference.made_up_pathways import probes, ranks


def run_of(*several):
    rows = [row for rows, _ in several for row in rows]
    return Run.from_records(rows, [s for _, sites in several for s in sites])


def test_capacity_is_limited_by_size_and_by_the_batch():
    assert capacity(Site("s", "module", shape=(32, 4, 8))) == 31
    assert capacity(Site("s", "module", shape=(32, 8))) == 8
    assert np.isnan(capacity(Site("s", "module")))


def test_ranks_and_the_most_they_could_be():
    (axes,) = passed_on(run_of(ranks(2, value=2.0, steps=(0, 400), shape=(32, 64)))).axes
    first, second, limit = axes.lines
    assert first.get_ydata() == pytest.approx([2.0, 4.0])
    assert second.get_ydata() == pytest.approx([2.4, 4.8])
    assert set(limit.get_ydata()) == {31.0} and limit.get_linestyle() == ":"


def test_a_probe_beside_its_baselines():
    run = run_of(probes(["place"], [0.4, 0.7], 0.3, steps=(0, 100)))
    (reading,) = readings(run)
    assert reading[1:] == pytest.approx((0.4, 0.7, 0.3, 0.24))
    (axes,) = passed_on(run).axes
    assert [line.get_xdata()[-1] for line in axes.lines] == pytest.approx(
        [0.7, 0.4, 0.7, 0.3, 0.24]
    )
    assert [t.get_text() for t in axes.get_yticklabels()] == ["place"]


def test_many_probes_and_many_sites():
    names = [f"probe {i}" for i in range(PROBES + 4)]
    run = run_of(probes(names, 0.5, 0.3), ranks(NAMED + 3))
    assert [r.name for r in readings(run)] == names[:PROBES]
    texts = [t.get_text() for t in passed_on(run).legends[0].get_texts()]
    assert texts[:2] == ["first site", "last site"]


def test_runs_share_their_axes():
    both = [run_of(ranks(2, value=2.0)), run_of(ranks(2, value=20.0), probes(["p"], 0.5, 0.3))]
    figure = passed_on(both)
    left = figure.axes[::2]
    assert left[0].get_ylim() == left[1].get_ylim()
