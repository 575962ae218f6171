"""The rules about exact pathways on real recordings of small models, trained for a second."""

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import gradscope
from gradscope.findings import check
from gradscope.models import build
from gradscope.tasks import Arrows

LAYERS, STEPS, EVERY = 3, 24, 4


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def judged(name):
    """What every rule says about a stack trained on arrows, with everything recorded."""
    torch.manual_seed(0)
    task = Arrows(size=4, hops=2)
    model = build(name, task, layers=LAYERS, hidden=16)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    scenes = task.scenes(16 * STEPS, 0)
    inputs = task.inputs(scenes)

    def loss(i):
        batch = slice(16 * i, 16 * i + 16)
        return cross_entropy(model(*(x[batch] for x in inputs)), scenes.answer[batch])

    with gradscope.attach(model, optimizer=optimizer, out=None, every=EVERY) as scope:
        scope.crossings(every=EVERY)
        scope.pathway("softmax", "stack.layers.0.latent", "*:softmax", every=EVERY)
        if "sla" in name:
            through = "stack.layers.*.from_previous"
            scope.pathway("latent", "stack.layers.0.latent", through, every=EVERY)
        scope.effective_rank("stack.layers.*.content", every=EVERY)
        scope.bottlenecks(lambda: loss(0))
        for i in range(STEPS):
            value = loss(i)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            scope.log(loss=value)
        content = model.stack.layers[0](torch.randn(64, 16, 16), torch.randn(64, 16)).content
        scope.probe("attended position", content, torch.arange(64) % 4)
    run = scope.run()
    assert not run.meta["errors"] and not run.meta["unseen"]
    return check(run)


def found(name, rule):
    return next(o for o in judged(name).outcomes if o.rule == rule).findings


def test_the_plain_chain_is_softmax_borne():
    (finding,) = found("san-chain", "softmax-borne")
    assert finding.severity in ("warning", "critical")
    assert finding.evidence["crossed_first"] == pytest.approx(LAYERS, abs=0.01)
    assert finding.evidence["crossed_last"] == pytest.approx(1, abs=0.01)
    assert finding.evidence["decades"] > 4
    (vanishing,) = found("san-chain", "vanishing-gradient")
    assert vanishing.cause == "softmax-borne"


@pytest.mark.parametrize("name", ["san-residual", "san-anchored", "sla"])
def test_a_way_past_the_softmaxes_is_seen(name):
    # The anchored query has none; but for the residual and the latent one there must be.
    expected = 1 if name == "san-anchored" else 0
    assert len(found(name, "softmax-borne")) == expected


@pytest.mark.parametrize("name", ["san-chain", "san-residual"])
def test_only_a_vector_goes_from_layer_to_layer(name):
    (finding,) = found(name, "information-bottleneck")
    assert finding.severity == "warning"
    assert (finding.evidence["width"], finding.evidence["source_width"]) == (16, 256)
    assert finding.evidence["places"] == LAYERS - 1
    assert 1 <= finding.evidence["effective_rank"] <= finding.evidence["rank_capacity"] == 15
    assert finding.evidence["weakest_probe"] == "attended position"


def test_the_latent_stack_has_no_bottleneck_and_uses_both_pathways():
    assert found("sla", "information-bottleneck") == ()
    assert found("sla", "dominant-pathway") == ()


def test_all_of_a_plain_latents_gradient_crosses_its_softmax():
    (finding,) = found("san-chain", "dominant-pathway")
    assert (finding.severity, finding.evidence["share_of_rest"]) == ("info", 0)


def test_without_attention_there_is_nothing_to_cross():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x = torch.randn(16, 8)
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1) as scope:
        scope.crossings(every=1)
        scope.bottlenecks(lambda: model(x).square().mean())
        for _ in range(4):
            model(x).square().mean().backward()
            optimizer.step()
    outcomes = {o.rule: o for o in check(scope.run()).outcomes}
    assert outcomes["softmax-borne"].skipped == "fewer than 2 softmaxes to cross, or orders kept"
    assert outcomes["dominant-pathway"].skipped == "no pathway"
    assert outcomes["information-bottleneck"].ran
    assert outcomes["information-bottleneck"].findings == ()
