"""A script of Hugging Face's Trainer: the optimizer is wrapped, the loop is a library's."""

import ast

import pytest

import gradscope
from tests.launch.running import SCRIPTS, by_gradscope, by_python

pytest.importorskip("transformers")
pytest.importorskip("accelerate")


@pytest.mark.supports(process="`gradscope run`, Hugging Face Trainer", shows="identical training")
def test_a_trainer_is_recorded_and_trains_the_same(tmp_path):
    plain = by_python(SCRIPTS / "trainer.py", cwd=tmp_path)
    recorded = by_gradscope(SCRIPTS / "trainer.py", every=2, cwd=tmp_path)
    assert plain.code == recorded.code == 0, plain.err + recorded.err
    last = slice(-3, None)  # the lines before tell times
    assert recorded.out.splitlines()[last] == plain.out.splitlines()[last]
    assert recorded.told == [
        "gradscope: recorded 6 steps of GPT2LMHeadModel in run.pt; next: gradscope analyze run.pt"
    ]
    run = gradscope.load(tmp_path / "run.pt")
    assert run.meta["errors"] == [] and run.steps.tolist() == [0, 2, 4]
    assert "transformer.h.1.mlp" in run.wide("module", "grad_norm")
    logged = ast.literal_eval(plain.out.splitlines()[-3])
    totals = run.scalars()["clip_norm"]
    for step, _, total in logged:
        if step - 1 in run.steps:
            assert totals[step - 1] == pytest.approx(float(total), rel=1e-3)
