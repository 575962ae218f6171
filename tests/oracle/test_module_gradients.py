"""Sites of module outputs: their names, shapes and places in the model."""

import pytest
import torch

from tests.reference.cases import CASES
from tests.reference.gradients import watched_outputs
from tests.reference.recording import record, train_steps, values

STEPS = 3


def twin_steps(model, loss_of, steps=STEPS):
    """grad_norm and grad_rms by site, step for step, of the same training."""
    norms, rms = [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watched_outputs(model) as watch:

        def read(_step):
            norms.append(watch.norms())
            rms.append(watch.rms())
            watch.clear()

        train_steps(model, loss_of, optimizer, steps, after_backward=read)
    return norms, rms


@pytest.mark.parametrize("name", ["transformer decoder", "unet", "chunks", "nested tuple"])
def test_sites_say_shape_and_size(name):
    case = CASES[name]
    model, twin = case.pair()
    run = record(model, lambda optimizer: train_steps(model, case.loss, optimizer, 1))
    with watched_outputs(twin) as watch:
        case.loss(twin, 0).backward()
        for site, (gradient,) in watch.gradients().items():
            recorded = run.sites[("module", site)]
            assert recorded.shape == tuple(gradient.shape), site
            assert recorded.numel == gradient.numel(), site
    modules = dict(twin.named_modules())
    for site in run.sites_of("module", aliases=True):
        path = site.name.split("#")[0].split("[")[0]
        module = modules.get(path, twin)
        assert site.type == type(module).__name__
        assert site.parameters == bool(module._parameters)


def test_aliases_name_the_very_same_tensor():
    case = CASES["transformer encoder"]
    model, _ = case.pair()
    run = record(model, lambda optimizer: train_steps(model, case.loss, optimizer, 1))
    table = run.frame("module", "grad_norm", aliases=False)
    names = set(table["site"])
    assert len(names) == len(table)
    for same in (
        {"(output)", "layers.1", "layers.1.norm2"},
        {"layers.0", "layers.0.norm2"},
        {"layers.0.linear2", "layers.0.dropout2"},
    ):
        assert len(same & names) == 1, same
    everywhere = values(run, "module", "grad_norm")
    assert everywhere["layers.1"] == everywhere["(output)"] == everywhere["layers.1.norm2"]


def test_forward_order_and_depth():
    case = CASES["transformer encoder"]
    model, _ = case.pair()
    run = record(model, lambda optimizer: train_steps(model, case.loss, optimizer, 1))
    chain = ["layers.0.norm1", "layers.0.linear1", "layers.0", "layers.1.norm1", "layers.1"]
    sites = [run.sites[("module", name)] for name in chain]
    assert [s.order for s in sites] == sorted({s.order for s in sites})
    assert [s.depth for s in sites] == sorted({s.depth for s in sites}, reverse=True)
    assert run.sites[("module", "(output)")].depth == 0


def test_every_counts_optimizer_steps_from_0():
    case = CASES["unet"]
    model, twin = case.pair()
    norms, _ = twin_steps(twin, case.loss, 8)
    run = record(model, lambda optimizer: train_steps(model, case.loss, optimizer, 8), every=3)
    assert run.steps.tolist() == [0, 3, 6]
    for step in (0, 3, 6):
        assert values(run, "module", "grad_norm", step) == pytest.approx(norms[step], rel=1e-5)
