import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gradscope.findings._persistence import WINDOW, _majority, longest_spell


def spell(text, *, every=1):
    """'.': no, 'x': yes, '?': unknown."""
    marks = np.array(list(text))
    return longest_spell(np.arange(len(text)) * every, marks == "x", marks != "?")


def test_an_isolated_step_is_outvoted():
    assert spell("....x.........") is None


def test_an_isolated_gap_is_outvoted_too():
    found = spell("xxxxx.xxxxxx")
    assert (found.first, found.last, found.ongoing, found.at_once) == (0, 11, True, True)
    assert found.inside.sum() == 11
    assert found.share == 1.0


def test_first_and_last_are_steps_not_positions():
    found = spell("....xxxxxx....", every=50)
    assert (found.first, found.last, found.ongoing) == (200, 450, False)
    assert not found.from_start


def test_the_longest_of_several():
    assert spell("xxxx......xxxxxxx....").first == 10


def test_unknown_steps_do_not_count():
    found = spell("??xxx??xxx??")
    assert (found.share, found.known, found.first, found.last) == (1.0, 6, 2, 9)
    assert spell("????") is None


def test_one_step_is_a_spell_but_not_persistent():
    found = spell("x")
    assert (found.share, found.ongoing, found.persistent) == (1.0, True, False)


def test_two_steps():
    assert not spell("xx").persistent
    assert spell("xxx").persistent


def test_scattered_steps():
    assert spell("x..x.x..x") is None or spell("x..x.x..x").inside.any()
    assert spell("....x.x....") is None


@given(st.text("x.?", max_size=40))
def test_a_spell_is_made_of_steps_at_which_it_held(text):
    found = spell(text)
    if found is None:
        return
    at = np.flatnonzero(found.inside)
    assert {text[i] for i in at} == {"x"}
    assert (found.first, found.last) == (at[0], at[-1])
    assert 0 < found.share <= 1
    assert found.known == len(text) - text.count("?")
    if found.ongoing:
        known = text.replace("?", "")
        assert "x" in known[-max(1, round(0.1 * len(known))) :]


def test_empty():
    assert longest_spell(np.array([], int), np.array([], bool), np.array([], bool)) is None


@given(st.lists(st.booleans(), min_size=3, max_size=40))
def test_majority_against_a_loop(marks):
    half, n = min(WINDOW, len(marks)) // 2, len(marks)
    expected = []
    for i in range(n):
        reach = min(half, i, n - 1 - i)
        window = marks[i - reach : i + reach + 1]
        expected.append(sum(window) > len(window) / 2)
    assert _majority(np.array(marks)).tolist() == expected
