"""What gradscope logs by itself: clipping, the loss's scale, skipped steps, groups that join."""

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_  # imported before anything is attached

import gradscope


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


@pytest.mark.supports(loop="clipping by norm", shows=["parameters", "scalars"])
@pytest.mark.parametrize("limit", [0.01, 1e6])
@pytest.mark.parametrize("norm_type", [2.0, float("inf")])
def test_clipping_norm_before_factor_and_gradients_after(limit, norm_type):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before, after = [], []
    with gradscope.attach(model, optimizer=optimizer, out=None, every=2) as scope:
        for step in range(4):
            model(torch.ones(3, 6) * (step + 1)).square().sum().backward()
            grads = [p.grad.clone() for p in model.parameters()]
            before.append(float(torch.cat([g.flatten() for g in grads]).norm(norm_type)))
            clip_grad_norm_(model.parameters(), limit, norm_type=norm_type)
            after.append([float(p.grad.norm()) for p in model.parameters()])
            optimizer.step()
            optimizer.zero_grad()
    run = scope.run()
    scalars = run.scalars()
    assert scalars.index.tolist() == [0, 2]
    for step in (0, 2):
        assert scalars["clip_norm"][step] == pytest.approx(before[step], rel=1e-6)
        expected = min(1.0, limit / (before[step] + 1e-6))
        assert scalars["clip_scale"][step] == pytest.approx(expected, rel=1e-6)
        norms = run.wide("parameter", "grad_norm").loc[step].tolist()
        assert norms == pytest.approx(after[step], rel=1e-5)


def test_clipping_of_another_model_is_not_ours():
    model, other = net(), net(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1) as scope:
        model(torch.ones(3, 6)).sum().backward()
        other(torch.ones(3, 6)).sum().backward()
        clip_grad_norm_(other.parameters(), 0.01)
        optimizer.step()
    assert "clip_norm" not in scope.run().scalars()


def test_clipping_is_put_back():
    from torch.nn.utils import clip_grad

    original = clip_grad._clip_grads_with_norm_
    scope = gradscope.attach(net(), out=None)
    assert clip_grad._clip_grads_with_norm_ is not original
    scope.close()
    assert clip_grad._clip_grads_with_norm_ is original


@pytest.mark.supports(loop="GradScaler, steps skipped", shows=["parameters", "scalars"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_is_no_step_and_is_marked(fused):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=10**6)
    expected = []
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1) as scope:
        for attempt in range(6):
            loss = model(torch.ones(3, 6)).square().sum()
            if attempt in (2, 3):
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            if attempt not in (2, 3):
                scale = scaler.get_scale()
                expected.append([float(p.grad.norm()) / scale for p in model.parameters()])
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    run = scope.run()
    scalars = run.scalars()
    assert run.steps.tolist() == [0, 1, 2, 3]
    assert scalars["skipped_steps"].dropna().to_dict() == {2: 2.0}
    assert scalars["loss_scale"].tolist() == [4.0, 4.0, 1.0, 1.0]
    norms = run.wide("parameter", "grad_norm").to_numpy()
    assert norms == pytest.approx(torch.tensor(expected).numpy(), rel=1e-5)


def test_steps_skipped_at_the_very_end_are_told_too():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1) as scope:
        for factor in (1.0, float("inf")):
            scaler.scale(model(torch.ones(3, 6)).sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert scope.run().scalars()["skipped_steps"].dropna().to_dict() == {1: 1.0}


def test_parameters_that_join_the_optimizer_later():
    model = net()
    optimizer = torch.optim.SGD(model[0].parameters(), 0.1)
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1) as scope:
        for step in range(4):
            if step == 2:
                optimizer.add_param_group({"params": list(model[2].parameters())})
            model(torch.ones(3, 6)).sum().backward()
            optimizer.step()
            notes = {s.name: s.note for s in scope.run().sites.values() if s.kind == "parameter"}
            outside = {n for n, note in notes.items() if "optimizer" in note}
            assert outside == ({"2.weight", "2.bias"} if step < 2 else set())


class Listed(nn.Module):
    """Keeps its layers in a Python list, so that `parameters()` does not know them."""

    def __init__(self):
        super().__init__()
        self.hidden = [nn.Linear(4, 4) for _ in range(2)]
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        return self.head(x)


def test_parameters_that_the_model_does_not_list_are_found_in_the_graph():
    torch.manual_seed(0)
    model = Listed()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    hidden = [p for layer in model.hidden for p in layer.parameters()]
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1) as scope:
        for _ in range(3):
            model(torch.ones(3, 4)).sum().backward()
            expected = sorted(float(p.grad.norm()) for p in hidden)
            optimizer.step()
            optimizer.zero_grad()
            for p in hidden:
                p.grad = None
    run = scope.run()
    sites = [s for s in run.sites_of("parameter") if s.name.startswith("(unregistered)")]
    assert len(sites) == 4 and {s.note for s in sites} == {"not in the optimizer"}
    norms = run.wide("parameter", "grad_norm")[[s.name for s in sites]].loc[2]
    assert sorted(norms) == pytest.approx(expected, rel=1e-5)
    (finding,) = [f for f in gradscope.analyze(run) if f.rule == "not-in-optimizer"]
    assert finding.severity == "critical" and finding.evidence["parameters"] == 4


def test_unlisted_parameters_that_the_optimizer_has_are_no_fault():
    torch.manual_seed(0)
    model = Listed()
    hidden = [p for layer in model.hidden for p in layer.parameters()]
    optimizer = torch.optim.SGD([*model.parameters(), *hidden], 0.1)
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1, update_every=1) as scope:
        for _ in range(3):
            model(torch.randn(3, 4)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    run = scope.run()
    assert (run.wide("parameter", "update_ratio").filter(like="(unreg").loc[1:] > 0).all(axis=None)
    assert "not-in-optimizer" not in {f.rule for f in gradscope.analyze(run)}
