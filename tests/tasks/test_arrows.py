import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.errors import GradscopeError
from gradscope.tasks import Arrows, Scenes


def walk(size, directions, start, hops):
    """One scene, arrow by arrow, on a grid with rows and columns."""
    row, column = divmod(start, size)
    for _ in range(hops):
        match directions[row * size + column]:
            case 0:
                row -= 1
            case 1:
                column += 1
            case 2:
                row += 1
            case 3:
                column -= 1
        row, column = row % size, column % size
    return row * size + column


TASKS = st.builds(
    Arrows,
    size=st.integers(2, 6),
    hops=st.integers(1, 9),
    answer=st.sampled_from(["cell", "colour"]),
    colours=st.integers(2, 5),
)


@settings(max_examples=30)
@given(TASKS, st.integers(0, 2**63 - 1), st.sampled_from(["train", "validation"]))
def test_answers_are_where_a_walk_ends(task, seed, split):
    scenes = task.scenes(20, seed, split)
    for directions, colours, start, hops, answer in zip(
        *(part.tolist() for part in scenes), strict=True
    ):
        assert 1 <= hops <= task.hops
        end = walk(task.size, directions, start, hops)
        assert answer == (end if task.answer == "cell" else colours[end])


@settings(max_examples=30)
@given(TASKS, st.integers(0, 1000))
def test_inputs_tell_the_whole_scene_and_nothing_else(task, seed):
    scenes = task.scenes(10, seed)
    cells, question = task.inputs(scenes)
    assert cells.shape == (10, task.cells, task.features)
    assert cells.dtype == torch.float32
    torch.testing.assert_close(question, scenes.hops - 1)
    assert question.max() < task.questions
    direction, mark, place, colour = cells.split(
        [4, 1, task.cells, task.features - 5 - task.cells], 2
    )
    torch.testing.assert_close(direction.argmax(2), scenes.directions)
    torch.testing.assert_close(mark.squeeze(2).argmax(1), scenes.start)
    torch.testing.assert_close(place, torch.eye(task.cells).expand_as(place))
    if task.answer == "colour":
        torch.testing.assert_close(colour.argmax(2), scenes.colours)
    else:
        assert colour.numel() == 0
    ones = 10 * (2 * task.cells + 1 + (task.cells if task.answer == "colour" else 0))
    assert cells.sum() == ones
    assert ((cells == 0) | (cells == 1)).all()


def test_same_seed_same_scenes():
    task = Arrows()
    for one, other in zip(task.scenes(100, 7), task.scenes(100, 7), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(task.scenes(100, 7).directions, task.scenes(100, 8).directions)


def test_drawing_scenes_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    Arrows().scenes(10, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_training_and_validation_share_no_grid(size):
    """For size 2 there are but 256 grids: all are drawn, each on one side only."""
    task = Arrows(size=size)
    sides = [
        {
            tuple(grid)
            for seed in range(3)
            for grid in task.scenes(4000, seed, split).directions.tolist()
        }
        for split in ("train", "validation")
    ]
    assert not sides[0] & sides[1]
    if size == 2:
        assert (len(sides[0]), len(sides[1])) == (192, 64)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_everything_is_drawn_evenly(split):
    """Frequencies within six standard deviations of a uniform draw, cell 0 included."""
    task, n = Arrows(), 40_000
    scenes = task.scenes(n, 0, split)

    def assert_even(values, size):
        expected = n / size
        counts = torch.bincount(values, minlength=size)
        assert len(counts) == size
        assert (counts - expected).abs().max() < 6 * math.sqrt(expected)

    for cell in range(task.cells):
        assert_even(scenes.directions[:, cell], 4)
    pair = 4 * scenes.directions[:, 0] + scenes.directions[:, 5]
    assert_even(pair, 16)
    assert_even(scenes.start, 16)
    assert_even(scenes.hops - 1, 4)
    assert_even(scenes.answer, 16)  # the walk is as likely to end anywhere


def test_one_arrow_says_where_one_hop_ends_and_little_beyond():
    """What a look at the marked cell is worth: 1, 1/4, 7/16 of the questions of 1, 2, 3 hops.

    After three hops the walk is back at the first stop if the second arrow turns round
    (1/4), or the third does (3/4 · 1/4).
    """
    task = Arrows()
    scenes = task.scenes(200_000, 0)
    arrow = scenes.directions.gather(1, scenes.start.unsqueeze(1)).squeeze(1)
    seen = 4 * scenes.start + arrow
    best = torch.zeros(4, 64, 16).index_put_(
        (scenes.hops - 1, seen, scenes.answer), torch.ones(()), accumulate=True
    )
    known = best.amax(dim=2).sum(dim=1) / best.sum(dim=(1, 2))
    torch.testing.assert_close(known[:3], torch.tensor([1, 1 / 4, 7 / 16]), atol=0.03, rtol=0)
    assert known[3] < 0.35


def test_guessing_scores_at_chance():
    task = Arrows()
    scenes = task.scenes(40_000, 3)
    guesses = torch.randint(16, (40_000,), generator=torch.Generator().manual_seed(0))
    by_hops = task.accuracy_by_hops(guesses, scenes)
    torch.testing.assert_close(by_hops, torch.full((4,), 1 / 16), atol=0.015, rtol=0)


def test_accuracy_is_counted_for_each_number_of_hops():
    none = torch.zeros(5, 4, dtype=torch.long)
    answer = torch.tensor([0, 1, 2, 3, 0])
    scenes = Scenes(none, none, none[:, 0], torch.tensor([1, 1, 1, 2, 2]), answer)
    by_hops = Arrows(size=2, hops=3).accuracy_by_hops(torch.tensor([0, 1, 0, 0, 0]), scenes)
    torch.testing.assert_close(by_hops, torch.tensor([2 / 3, 1 / 2, torch.nan]), equal_nan=True)


def test_pick_takes_the_same_scenes_from_every_part():
    scenes = Arrows().scenes(10, 0)
    picked = scenes.pick(torch.tensor([3, 1]))
    for part, whole in zip(picked, scenes, strict=True):
        assert torch.equal(part, torch.stack([whole[3], whole[1]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 1}, "size must be at least 2, not 1"),
        ({"hops": 0}, "hops must be at least 1, not 0"),
        ({"colours": 1}, "colours must be at least 2, not 1"),
        ({"answer": "shape"}, "unknown answer 'shape'; one of cell, colour"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(GradscopeError, match=message):
        Arrows(**options)


def test_unknown_split_is_refused():
    with pytest.raises(GradscopeError, match="unknown split 'test'; one of train, validation"):
        Arrows().scenes(1, 0, "test")
