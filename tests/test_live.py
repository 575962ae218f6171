"""Findings during training, and before it."""

import warnings

import pytest
import torch
from torch import nn

import gradscope
from gradscope import live
from gradscope.findings import Finding, View


def sigmoid_net(depth=10):
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8)]
    for _ in range(depth):
        layers += [nn.Sigmoid(), nn.Linear(8, 8)]
    return nn.Sequential(*layers)


def healthy_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))


def steps(model, scope, count, optimizer):
    for _ in range(count):
        x = torch.randn(16, 8)
        loss = (model(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scope.log(loss=loss)


def trained(model, count=40, out=None, **options):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.attach(model, optimizer=optimizer, out=out, every=1, **options) as scope:
        steps(model, scope, count, optimizer)
    return scope


@pytest.mark.parametrize("to_file", [False, True])
def test_findings_so_far_are_those_of_the_run_so_far(tmp_path, to_file):
    model = sigmoid_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    out = tmp_path / "run.pt" if to_file else None
    with gradscope.attach(model, optimizer=optimizer, out=out, every=1) as scope:
        steps(model, scope, 10, optimizer)
        first = scope.findings()
        steps(model, scope, 10, optimizer)
    assert first[0].rule == "vanishing-gradient" and first[0].last_step == 9
    run = gradscope.load(out) if to_file else scope.run()
    assert scope.findings() == gradscope.analyze(run)


@pytest.mark.parametrize("to_file", [False, True])
def test_a_function_is_called_with_what_is_new(tmp_path, to_file, monkeypatch):
    monkeypatch.setattr(live, "BUDGET", 1e9)  # look after every step
    told = []
    trained(sigmoid_net(), out=tmp_path / "r.pt" if to_file else None, on_finding=told.append)
    keys = [(f.rule, f.site, f.severity) for f in told]
    assert "vanishing-gradient" in {f.rule for f in told}
    assert len(keys) == len(set(keys))  # each once, or again when it has become worse
    assert told[0].last_step < 39  # during training


def test_looking_is_rationed():
    looks = []
    watch = live.Watch(lambda: looks.append(1) or gradscope.Run(), print)
    for _ in range(live.EARLIEST + 50):
        if watch.due():
            watch.look()
    assert len(looks) == 1  # a hundred times as long as it took has to pass before the next


def test_a_short_run_is_looked_at_when_it_ends():
    told = []
    trained(sigmoid_net(), count=3, on_finding=told.append)
    assert {f.rule for f in told} >= {"vanishing-gradient"}


def test_a_healthy_run_calls_for_nothing_worse_than_info():
    told = []
    trained(healthy_net(), on_finding=told.append)
    assert [f for f in told if f.severity != "info"] == []


def test_what_the_function_raises_stops_training_and_the_run_is_whole(tmp_path):
    class StopError(Exception):
        pass

    def stop(finding):
        raise StopError(finding.rule)

    with pytest.raises(StopError):
        trained(sigmoid_net(), out=tmp_path / "run.pt", on_finding=stop)
    run = gradscope.load(tmp_path / "run.pt")
    assert run.meta["status"] == "complete" and "StopError" in run.meta["ended"]
    assert len(run.steps) >= live.EARLIEST


def test_rules_that_fail_are_told_once_and_recording_goes_on(monkeypatch):
    def broken(run):
        raise ArithmeticError("on purpose")

    monkeypatch.setattr(live, "analyze", broken)
    with pytest.warns(RuntimeWarning, match="stopped recording findings"):
        scope = trained(sigmoid_net(), on_finding=print)
    assert len(scope.run().steps) == 40


def test_training_is_the_same_with_and_without(tmp_path):
    def weights(**options):
        model = sigmoid_net()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trained(model, **options)
        return [p.detach().clone() for p in model.parameters()]

    with_it, without = weights(on_finding=lambda f: None), weights()
    assert all(torch.equal(a, b) for a, b in zip(with_it, without, strict=True))


def state_of(model):
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return grads, {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()


@pytest.mark.parametrize("backward", [False, True])
def test_diagnosis_of_one_batch_leaves_no_trace(backward):
    model = sigmoid_net(16)
    model.append(nn.BatchNorm1d(8))
    model.append(nn.Dropout(0.5))
    model(torch.randn(4, 8)).sum().backward()
    grads, state, random = state_of(model)

    def closure():
        loss = model(torch.randn(16, 8)).square().mean()
        if backward:
            loss.backward()
        return loss

    found = gradscope.diagnose(model, closure)
    assert found[0].rule == "vanishing-gradient" and found[0].severity != "info"
    after, state_after, random_after = state_of(model)
    assert all(torch.equal(a, b) for a, b in zip(grads, after, strict=True))
    assert all(torch.equal(state[k], state_after[k]) for k in state)
    assert torch.equal(random, random_after)


def test_diagnosis_of_a_healthy_model():
    model = healthy_net()
    assert gradscope.diagnose(model, lambda: model(torch.randn(64, 8)).square().mean()) == []


def test_what_can_not_be_used_is_refused_at_once(tmp_path):
    model, other = healthy_net(), healthy_net()
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    with pytest.raises(gradscope.GradscopeError, match="no parameter of the Sequential"):
        gradscope.attach(model, optimizer=optimizer, out=tmp_path / "run.pt")
    with pytest.raises(gradscope.GradscopeError, match="on_finding= takes a function"):
        gradscope.attach(model, out=tmp_path / "run.pt", on_finding=3)
    assert not (tmp_path / "run.pt").exists()
    with pytest.raises(gradscope.GradscopeError, match=r"gradscope\.load"):
        gradscope.analyze("run.pt")


class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.head(self.encoder(x).detach())


def test_diagnosis_sees_detached_parts_and_dead_units_and_the_data():
    torch.manual_seed(0)
    model = Cut()
    rules = {f.rule for f in gradscope.diagnose(model, lambda: model(torch.ones(4, 8)).sum())}
    assert "detached" in rules
    model = healthy_net()
    with torch.no_grad():
        model[0].bias.fill_(-1e4)
    found = gradscope.diagnose(model, lambda: model(torch.randn(64, 8) * 1000).sum())
    assert {"dead-units", "unscaled-input"} <= {f.rule for f in found}


def test_diagnosis_names_the_first_operation_that_is_not_finite():
    model = healthy_net()
    (finding,) = [
        f
        for f in gradscope.diagnose(model, lambda: (model(torch.randn(4, 8)) * 0).log().mean())
        if f.rule == "non-finite"
    ]
    assert finding.evidence["operation"] == "log"


@pytest.mark.parametrize(
    ("closure", "words"),
    [
        (lambda: 3.0, "returned float"),
        (lambda: torch.ones(2, requires_grad=True), "one number"),
        (lambda: torch.tensor(1.0), "does not depend on the model"),
        (None, "closure must be a function"),
    ],
)
def test_closures_that_can_not_be_used(closure, words):
    with pytest.raises(gradscope.GradscopeError, match=words):
        gradscope.diagnose(healthy_net(), closure)


def finding(severity, **evidence):
    view = View("module", "grad_norm", ())
    return Finding("dominant-pathway", severity, "source", 0, 1, evidence, "message", "do", view)


def told_of(looks):
    """What is told where each look finds the given findings."""
    told = []
    watch = live.Watch(gradscope.Run, told.append)
    for found in looks:
        watch.tell(found)
    return told


def test_two_findings_of_one_rule_and_site_are_each_told_once():
    a, b = finding("warning", pathway="A"), finding("info", pathway="B")
    assert told_of([[a, b]] * 4) == [a, b]
    assert told_of([[a], [a, b], [a]]) == [a, b]
    alike = finding("warning"), finding("info")
    assert told_of([[*alike]] * 3) == [*alike]
    assert told_of([[alike[1]], [*alike], [alike[0]]]) == [alike[1], *alike]


def test_what_has_become_worse_is_told_again_and_what_has_become_better_is_not():
    mild, worse = finding("info"), finding("critical")
    assert told_of([[mild], [worse], [mild], [worse]]) == [mild, worse]


def test_a_function_that_closes_the_scope_is_told_of_everything_once():
    told = []

    def tell(finding):
        told.append((finding.rule, finding.site, finding.severity))
        scope.close()

    model = sigmoid_net()
    optimizer = torch.optim.SGD(model[:-1].parameters(), 0.1)
    scope = gradscope.attach(model, optimizer=optimizer, out=None, every=1, on_finding=tell)
    steps(model, scope, live.EARLIEST + 3, optimizer)
    assert len(told) > 1 and len(told) == len(set(told))


def test_what_ends_training_does_not_keep_findings_from_being_told():
    told = []
    model = sigmoid_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    given = {"optimizer": optimizer, "out": None, "every": 1}
    with (
        pytest.raises(KeyboardInterrupt),
        gradscope.attach(model, on_finding=told.append, **given) as scope,
    ):
        steps(model, scope, 3, optimizer)
        raise KeyboardInterrupt
    assert told[0].rule == "vanishing-gradient"

    def stop(finding):
        raise ArithmeticError("of the function, not of the training")

    with (
        pytest.raises(MemoryError),
        gradscope.attach(model, on_finding=stop, **given) as scope,
    ):
        steps(model, scope, 3, optimizer)
        raise MemoryError


@pytest.mark.parametrize("when", ["before the step", "before backward", "after backward"])
def test_diagnosis_in_the_middle_of_a_recording_leaves_it_as_it_is(when):
    def recorded(look):
        model = healthy_net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with gradscope.attach(model, optimizer=optimizer, out=None, every=1) as scope:
            for step in range(3):
                look(model, step, "before the step")
                x = torch.full((4, 8), step + 1.0)
                loss = (model(x) - x).square().mean()
                look(model, step, "before backward")
                loss.backward()
                look(model, step, "after backward")
                optimizer.step()
                optimizer.zero_grad()
        frame = scope.run().frame()
        return frame[frame["site"] != "step_seconds"].reset_index(drop=True)

    def look(model, step, at):
        if step == 1 and at == when:
            gradscope.diagnose(model, lambda: model(torch.ones(4, 8)).square().mean())

    assert recorded(look).equals(recorded(lambda *at: None))


def test_diagnosis_steps_no_optimizer_that_waits_for_gradients():
    def step(parameter):
        parameter.data -= parameter.grad

    model = healthy_net()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    before = [p.detach().clone() for p in model.parameters()]

    def closure():
        return model(torch.ones(4, 8)).square().mean()

    gradscope.diagnose(model, closure)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    closure().backward()  # the hooks are there again
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_diagnosis_removes_buffers_that_its_pass_registered():
    class Lazy(nn.Linear):
        def forward(self, x):
            self.register_buffer("seen", x.detach())
            return super().forward(x)

    model = Lazy(8, 8)
    gradscope.diagnose(model, lambda: model(torch.ones(4, 8)).square().mean())
    assert list(model.state_dict()) == ["weight", "bias"]


def test_lazy_modules_are_refused_in_one_line():
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d())
    for use in (
        gradscope.attach,
        lambda m: gradscope.diagnose(m, lambda: m(torch.ones(4, 8)).sum()),
    ):
        with pytest.raises(gradscope.GradscopeError, match="run one forward pass first"):
            use(model)


def test_a_finding_is_printed_in_a_sentence():
    said = str(finding("warning"))
    assert said == "warning dominant-pathway (steps 0 to 1): message do"


def test_two_open_scopes_do_not_share_a_file(tmp_path):
    out = tmp_path / "run.pt"
    one, other = healthy_net(), sigmoid_net()
    optimizer = torch.optim.SGD(one.parameters(), 0.1)
    scope = gradscope.attach(one, optimizer=optimizer, out=out, every=1)
    with pytest.raises(gradscope.GradscopeError, match="recorded already, of Sequential"):
        gradscope.attach(other, out=out)
    steps(one, scope, 3, optimizer)
    scope.close()
    assert len(gradscope.load(out).steps) == 3
    gradscope.attach(other, out=out).discard()  # a finished run is replaced


def test_a_file_whose_model_is_gone_is_free(tmp_path):
    """A notebook's cell that is run again: model, optimizer and scope are made anew."""
    out = tmp_path / "run.pt"
    first = gradscope.attach(healthy_net(), out=out)
    second = gradscope.attach(healthy_net(), out=out)
    assert first.recorder.closed and not second.recorder.closed
    second.discard()


def test_backward_passes_without_a_step_are_told(tmp_path):
    model = healthy_net()
    with (
        pytest.warns(UserWarning, match="3 backward passes and no step"),
        gradscope.attach(model, out=tmp_path / "run.pt"),
    ):
        for _ in range(3):
            model(torch.randn(4, 8)).sum().backward()
    with pytest.raises(gradscope.GradscopeError, match=r"call scope\.step\(\)"):
        gradscope.report(gradscope.load(tmp_path / "run.pt"), tmp_path / "report")


@pytest.mark.parametrize("given", [3.0, torch.optim.lr_scheduler.StepLR])
def test_what_is_no_optimizer_is_refused(given):
    if isinstance(given, type):
        given = given(torch.optim.SGD(healthy_net().parameters(), 0.1), 1)
    with pytest.raises(gradscope.GradscopeError, match=r"optimizer= takes a torch\.optim\.Optim"):
        gradscope.attach(healthy_net(), optimizer=given, out=None)
