import pytest
from matplotlib.figure import Figure

from gradscope.figures._axes import plain_ticks


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([0.9955, 0.997, 0.9985, 1.0], ["0.9955", "0.997", "0.9985", "1"]),
        ([0, 40, 80], ["0", "40", "80"]),
        ([0.25, 0.5, 0.75], ["0.25", "0.5", "0.75"]),
        ([3.01e-8, 3.015e-8, 3.02e-8], ["3.01×10⁻⁸", "3.015×10⁻⁸", "3.02×10⁻⁸"]),
    ],
)
def test_ticks_tell_themselves_apart(ticks, labels):
    axes = Figure().subplots()
    axes.set_ylim(ticks[0], ticks[-1])
    axes.set_yticks(ticks)
    plain_ticks(axes)
    found = [axes.yaxis.get_major_formatter()(tick, None) for tick in ticks]
    assert found == labels
