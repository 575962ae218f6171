import ast
from pathlib import Path

import pytest
import torch

from gradscope import models
from gradscope.models import MODELS, StackedAttention, StackedLatentAttention, build
from gradscope.tasks import Arrows

TASK = Arrows(size=3, hops=2)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layers", [1, 3])
def test_scores_every_answer_and_uses_every_parameter(name, layers):
    torch.manual_seed(0)
    model = build(name, TASK, layers=layers, hidden=16)
    scenes = TASK.scenes(32, seed=0)
    logits = model(*TASK.inputs(scenes))
    assert logits.shape == (32, TASK.answers)
    assert len(model.stack.layers) == layers
    torch.nn.functional.cross_entropy(logits, scenes.answer).backward()
    assert all((p.grad != 0).any() for p in model.parameters())


def test_names_stand_for_stacks_and_queries():
    made = {name: build(name, TASK, layers=2, hidden=8).stack for name in MODELS}
    assert {n: (type(s), s.query) for n, s in made.items()} == {
        "san-residual": (StackedAttention, "residual"),
        "san-anchored": (StackedAttention, "anchored"),
        "san-chain": (StackedAttention, "chain"),
        "sla": (StackedLatentAttention, "residual"),
        "sla-anchored": (StackedLatentAttention, "anchored"),
        "sla-chain": (StackedLatentAttention, "chain"),
    }


def test_the_models_that_are_compared_start_from_equal_attention_layers():
    """SLA's first layer has nothing more than SAN's: differences are the latent pathway's."""
    shapes = [
        {k: v.shape for k, v in build(name, TASK, layers=3).stack.layers[0].state_dict().items()}
        for name in ("san-residual", "sla")
    ]
    assert shapes[0] == shapes[1]


def test_unknown_model_is_refused():
    with pytest.raises(ValueError, match=r"unknown model 'sna'; one of san-residual, "):
        build("sna", TASK, layers=2)


def test_models_know_nothing_of_the_rest_of_gradscope():
    """They are what any user's model is."""
    for path in Path(models.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                assert not name.startswith("gradscope") or name.startswith("gradscope.models.")
