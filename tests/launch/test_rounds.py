"""The order of several optimizers of one model, found while they step."""

from gradscope.launch.rounds import Round

HELD = {"a": frozenset({1, 2}), "b": frozenset({3}), "ab": frozenset({1, 2, 3})}


def steps(expected, text):
    """Which steps of `text` ended a step of the model, and which found a round missed."""
    round_ = Round(expected, HELD.__getitem__)
    ended, missed = [], []
    for i, optimizer in enumerate(text):
        order, late = round_.begins(optimizer)
        if late:
            missed.append(i)
        if optimizer == order[-1]:
            ended.append(i)
        round_.ends(order, optimizer)
    return ended, missed


def test_one_optimizer_ends_every_step():
    assert steps(["a"], ["a", "a", "a"]) == ([0, 1, 2], [])


def test_the_last_of_two_ends_a_step_in_whatever_order_they_were_made():
    assert steps(["a", "b"], ["a", "b", "a", "b"]) == ([1, 3], [])
    assert steps(["b", "a"], ["a", "b", "a", "b"]) == ([1, 3], [])


def test_one_that_never_steps_is_waited_for_once():
    assert steps(["a", "b"], ["a", "a", "a"]) == ([1, 2], [1])


def test_one_whose_parameters_have_all_been_stepped_is_not_waited_for():
    assert steps(["a", "b", "ab"], ["ab", "ab"]) == ([0, 1], [])
    assert steps(["ab", "a", "b"], ["a", "b", "a", "b"]) == ([1, 3], [])


def test_the_optimizer_of_a_later_phase_takes_over_at_once_if_it_holds_everything():
    assert steps(["a"], ["a", "a", "ab", "ab"]) == ([0, 1, 2, 3], [])


def test_several_steps_of_one_for_each_of_the_other_are_steps_of_the_model():
    ended, missed = steps(["a", "b"], ["a", "a", "a", "b", "a", "a", "a", "b"])
    assert len(ended) + len(missed) >= 5  # nothing is stuck
    assert missed[0] == 1
