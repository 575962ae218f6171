"""`gradscope run -m`: a package's training, with workers that are no part of the recording."""

import shutil

import pytest

import gradscope
from tests.launch.running import SCRIPTS, assert_same, by_gradscope, by_python

WORDS = ("package.train", "--accumulate", 2, "--out", "mine")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    path = tmp_path_factory.mktemp("room")
    shutil.copytree(SCRIPTS / "package", path / "package")
    return path


@pytest.fixture(scope="module")
def plain(room):
    return by_python("-m", *WORDS, cwd=room)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_arguments_workers_a_scaler_and_accumulation(room, plain, start):
    recorded = by_gradscope(*WORDS, "--start", start, module=True, every=2, cwd=room)
    assert plain.code == 0 and "weights: " in plain.out
    assert_same(plain, recorded)
    assert recorded.told == [
        "gradscope: recorded 4 steps of Classifier in run.pt; next: gradscope analyze run.pt"
    ]
    run = gradscope.load(room / "run.pt")
    assert run.steps.tolist() == [0, 2] and run.meta["errors"] == []
    assert 0.2 < run.scalars()["loss"][0] < 2  # not multiplied by the scale of 256


def test_a_module_that_is_not_there(room):
    recorded = by_gradscope("package.nothing", module=True, cwd=room)
    assert (recorded.code, recorded.out, recorded.err) == (2, "", "")
    assert "there is no module package.nothing" in recorded.told[0]
