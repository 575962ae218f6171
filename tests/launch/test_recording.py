"""`Recording`: what it finds in training loops that know nothing of it."""

import copy
import gc
import os
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

import gradscope
from gradscope.launch.recording import OPTIMIZER_MADE, SCOPE_MADE, Recording

STEPS = 7


class Net(nn.Module):
    def __init__(self, width=6, out=2):
        super().__init__()
        self.first = nn.Linear(4, width)
        self.middle = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.last = nn.Linear(width, out)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last(h + self.middle(h))


class Generator(Net):
    pass


class Discriminator(Net):
    pass


def batch(step):
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))


def loss_of(model, step):
    return model(batch(step)).square().mean()


def train(model, optimizer, steps=STEPS, loss_of=loss_of):
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def recorded(tmp_path):
    """Runs a function under a recording; gives what is said, and the runs by file name."""
    open_ones = []

    def record(script, every=1):
        recording = Recording("run.pt", str(tmp_path), every)
        open_ones.append(recording)
        recording.begin()
        try:
            script()
        finally:
            recording.end("")
        runs = {p.name: gradscope.load(p) for p in sorted(tmp_path.glob("*.pt"))}
        assert all(run.meta["status"] == "complete" for run in runs.values())
        assert all(run.meta["errors"] == [] for run in runs.values())
        return recording.summary(), runs

    hooks = global_hooks()
    yield record
    for recording in open_ones:
        recording.end("")
    assert global_hooks() == hooks


def global_hooks():
    from torch.nn.modules import module
    from torch.optim import optimizer

    return (
        len(module._global_forward_pre_hooks),
        len(module._global_forward_hooks),
        len(optimizer._global_optimizer_pre_hooks),
        len(optimizer._global_optimizer_post_hooks),
        torch.optim.Optimizer.__init__ is OPTIMIZER_MADE.original,
        gradscope.Scope.__init__ is SCOPE_MADE.original,
        torch.autograd.backward.__module__,
    )


def numbers(run, leave=("step_seconds",)):
    """(step, kind, site, edge, metric) → value, but for what no two runs share."""
    table = run.frame()
    table = table[~table["site"].isin(leave)]
    keys = table[["step", "kind", "site", "edge", "metric"]].itertuples(index=False, name=None)
    return dict(zip(keys, table["value"], strict=True))


def with_attach(model, optimizer, loop, tmp_path, every=1):
    """What the same loop tells `gradscope.attach`; the loop returns the losses."""
    path = tmp_path / "attached" / "run.pt"
    with gradscope.attach(model, optimizer=optimizer, out=path, every=every):
        losses = loop()
    return numbers(gradscope.load(path)), losses


def without_loss(found):
    return {key: value for key, value in found.items() if key[2] != "loss"}


def losses_in(run):
    return run.scalars()["loss"].dropna().to_dict()


@pytest.mark.parametrize("every", [1, 3])
def test_the_numbers_are_those_of_attach_from_step_0_on(recorded, tmp_path, every):
    torch.manual_seed(0)
    model = Net()
    twin = copy.deepcopy(model)

    def script():
        optimizer = torch.optim.Adam(model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        train(model, optimizer)

    said, runs = recorded(script, every)
    assert said == "recorded 7 steps of Net in run.pt; next: gradscope analyze run.pt"
    optimizer = torch.optim.Adam(twin.parameters())
    expected, losses = with_attach(twin, optimizer, lambda: train(twin, optimizer), tmp_path, every)
    assert list(runs) == ["run.pt"]
    assert without_loss(numbers(runs["run.pt"])) == expected
    assert runs["run.pt"].steps.tolist() == list(range(0, STEPS, every))
    assert losses_in(runs["run.pt"]) == pytest.approx(dict(enumerate(losses)))


def test_the_loss_is_the_mean_over_micro_batches(recorded):
    losses = []

    def script():
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(4):
            parts = [loss_of(model, 2 * step + i) for i in range(2)]
            for part in parts:
                part.backward()
            losses.append(sum(part.item() for part in parts) / 2)
            optimizer.step()
            optimizer.zero_grad()

    _, runs = recorded(script)
    assert losses_in(runs["run.pt"]) == pytest.approx(dict(enumerate(losses)))


def test_a_gradient_scaler_is_divided_out_and_its_skipped_steps_leave_no_loss(recorded):
    losses = []

    def script():
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(6):
            loss = loss_of(model, step)
            scaler.scale(loss).backward()
            if step in (0, 3):
                model.first.weight.grad[0, 0] = float("inf")
            else:
                losses.append(loss.item())
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

    _, runs = recorded(script)
    assert losses_in(runs["run.pt"]) == pytest.approx(dict(enumerate(losses)))
    assert len(losses) == 4


def test_backward_from_given_gradients_has_no_loss(recorded):
    def script():
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(3):
            model(batch(step)).backward(torch.ones(8, 2))
            optimizer.step()

    _, runs = recorded(script)
    assert "loss" not in runs["run.pt"].scalars() and len(runs["run.pt"].steps) == 3


def gan(generator, discriminator, for_g, for_d):
    losses = {"g": [], "d": []}
    for step in range(STEPS):
        noise, real = batch(step), batch(100 + step)
        for_d.zero_grad()
        on_real = (discriminator(real) - 1).square().mean()
        on_real.backward()
        on_fake = discriminator(generator(noise).detach()).square().mean()
        on_fake.backward()
        for_d.step()
        losses["d"].append((on_real.item() + on_fake.item()) / 2)
        for_g.zero_grad()
        loss = (discriminator(generator(noise)) - 1).square().mean()
        loss.backward()
        for_g.step()
        losses["g"].append(loss.item())
    return losses


def test_the_models_of_a_gan_have_a_run_each(recorded, tmp_path):
    torch.manual_seed(0)
    models = Generator(out=4), Discriminator(out=1)
    twins = copy.deepcopy(models)
    losses = {}

    def script():
        optimizers = [torch.optim.Adam(m.parameters(), 0.01) for m in models]
        losses.update(gan(*models, *optimizers))

    said, runs = recorded(script)
    assert said == (
        "recorded 7 steps of Discriminator in run.pt, 7 steps of Generator in run-Generator.pt; "
        "next: gradscope analyze run.pt run-Generator.pt"
    )
    optimizers = [torch.optim.Adam(m.parameters(), 0.01) for m in twins]
    attached = [
        gradscope.attach(m, optimizer=o, out=tmp_path / "attached" / f"{i}.pt", every=1)
        for i, (m, o) in enumerate(zip(twins, optimizers, strict=True))
    ]
    gan(*twins, *optimizers)
    for scope in attached:
        scope.close()
    for name, i, key in (("run-Generator.pt", 0, "g"), ("run.pt", 1, "d")):
        expected = numbers(gradscope.load(tmp_path / "attached" / f"{i}.pt"))
        assert without_loss(numbers(runs[name])) == expected
        assert losses_in(runs[name]) == pytest.approx(dict(enumerate(losses[key])))


@pytest.mark.parametrize("stepped", ["in the order made", "the other way round"])
def test_two_optimizers_of_one_model_make_one_run(recorded, tmp_path, stepped):
    torch.manual_seed(0)
    model = Net()
    twin = copy.deepcopy(model)

    def optimizers_of(m):
        body = [*m.first.parameters(), *m.middle.parameters()]
        made = [torch.optim.SGD(body, 0.1), torch.optim.Adam(m.last.parameters())]
        return made if stepped == "in the order made" else made[::-1]

    def loop(m, optimizers):
        losses = []
        for step in range(STEPS):
            loss = loss_of(m, step)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            for optimizer in optimizers:
                optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    said, runs = recorded(lambda: loop(model, optimizers_of(model)))
    optimizers = optimizers_of(twin)
    expected, losses = with_attach(twin, optimizers, lambda: loop(twin, optimizers), tmp_path)
    assert said.startswith("recorded 7 steps of Net in run.pt;")
    assert without_loss(numbers(runs["run.pt"])) == expected
    assert losses_in(runs["run.pt"]) == pytest.approx(dict(enumerate(losses)))


def test_a_new_optimizer_for_the_same_model_goes_on_with_its_run(recorded):
    def script():
        model = Net()
        train(model, torch.optim.SGD(model.last.parameters(), 0.1), 3)
        train(model, torch.optim.Adam(model.parameters()), 4)

    said, runs = recorded(script)
    assert said.startswith("recorded 7 steps of Net in run.pt;")
    run = runs["run.pt"]
    assert run.steps.tolist() == list(range(7))
    assert run.wide("parameter", "grad_norm").loc[3:].notna().all().all()


def test_an_optimizer_made_late_is_recorded_from_its_first_forward_pass_on(recorded):
    def script():
        model = Net()
        for step in range(3):  # by hand
            loss_of(model, step).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
                    p.grad = None
        train(model, torch.optim.SGD(model.parameters(), 0.1), 4)

    _, runs = recorded(script)
    assert runs["run.pt"].steps.tolist() == [0, 1, 2, 3]
    assert runs["run.pt"].wide("module", "grad_norm").notna().all().all()


def test_folds_have_a_run_each_and_a_model_that_was_dropped_is_let_go(recorded):
    gone = []

    def script():
        known = []
        for _ in range(3):
            model = Net()
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            gone.append([w() is None for w in known])
            train(model, optimizer, 4)
            known.append(weakref.ref(model.first.weight))
            del optimizer, model
            gc.collect()

    said, runs = recorded(script)
    # A model's weights are let go when the next optimizer is made, or sooner.
    assert gone == [[], [True], [True, True]]
    assert sorted(runs) == ["run-Net-2.pt", "run-Net.pt", "run.pt"]
    assert all(run.steps.tolist() == [0, 1, 2, 3] for run in runs.values())
    assert "run.pt run-Net.pt run-Net-2.pt" in said


def test_a_model_is_free_to_go_while_it_is_recorded(recorded):
    def script():
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        train(model, optimizer)
        known = weakref.ref(model)
        del model, optimizer
        gc.collect()
        assert known() is None

    recorded(script)


def test_lbfgs_is_recorded_from_its_first_closure_on(recorded, tmp_path):
    torch.manual_seed(0)
    model = Net()
    twin = copy.deepcopy(model)

    def loop(m, optimizer):
        for step in range(3):

            def closure(step=step):
                optimizer.zero_grad()
                loss = loss_of(m, step)
                loss.backward()
                return loss

            optimizer.step(closure)

    def script():
        loop(model, torch.optim.LBFGS(model.parameters(), max_iter=3))

    _, runs = recorded(script)
    optimizer = torch.optim.LBFGS(twin.parameters(), max_iter=3)
    expected, _ = with_attach(twin, optimizer, lambda: loop(twin, optimizer), tmp_path)
    assert without_loss(numbers(runs["run.pt"])) == expected
    assert list(losses_in(runs["run.pt"])) == [0, 1, 2]


def test_an_optimizer_that_holds_a_part_only_has_the_whole_model_recorded(recorded):
    def script():
        model = Net()
        train(model, torch.optim.SGD(model.last.parameters(), 0.1))

    said, runs = recorded(script)
    assert "of Net in run.pt" in said
    run = runs["run.pt"]
    assert "first" in run.wide("module", "grad_norm")
    assert run.sites["parameter", "first.weight"].note == "not in the optimizer"
    assert run.sites["parameter", "last.weight"].note == ""


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.actor, self.critic = Net(), Net(out=1)

    def value(self, x):
        return self.critic(x)

    def policy(self, x):
        return self.actor(x)


def test_a_model_whose_own_forward_never_runs_is_recorded_as_one(recorded):
    def script():
        agent = Agent()
        optimizer = torch.optim.Adam(agent.parameters())
        train(
            agent, optimizer, loss_of=lambda m, s: (m.value(batch(s)) + m.policy(batch(s))).mean()
        )

    said, runs = recorded(script)
    assert said.startswith("recorded 7 steps of Agent in run.pt;")
    seen = runs["run.pt"].wide("module", "grad_norm")
    assert {"actor.first", "critic.first"} <= set(seen) and seen.notna().all().all()


def test_two_models_of_one_optimizer_have_a_run_each(recorded):
    def script():
        encoder, decoder = Net(out=4), Net()
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()])
        train(nn.Identity(), optimizer, loss_of=lambda _, s: decoder(encoder(batch(s))).mean())

    _, runs = recorded(script)
    assert sorted(runs) == ["run-Net.pt", "run.pt"]
    for run in runs.values():
        assert run.steps.tolist() == list(range(STEPS))
        assert list(losses_in(run)) == list(range(STEPS))


def test_a_module_around_the_model_that_makes_the_loss_is_the_root(recorded):
    class WithLoss(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x).square().mean()

    def script():
        model = Net()
        whole = WithLoss(model)
        optimizer = torch.optim.Adam(model.parameters())
        train(whole, optimizer, loss_of=lambda m, s: m(batch(s)))

    said, _ = recorded(script)
    assert "of WithLoss in run.pt" in said


def test_data_parallel_wrappers_are_looked_through(recorded):
    def script():
        model = Net()
        wrapped = nn.DataParallel(model)
        train(wrapped, torch.optim.SGD(wrapped.parameters(), 0.1))

    said, runs = recorded(script)
    assert "of Net in run.pt" in said
    seen = runs["run.pt"].wide("module", "grad_norm")
    assert "first" in seen and seen.notna().all().all()


def test_evaluation_beforehand_is_no_training(recorded):
    def script():
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with torch.no_grad():
            loss_of(model, 99)
        train(model, optimizer)

    _, runs = recorded(script)
    assert runs["run.pt"].steps.tolist() == list(range(STEPS))


def test_a_script_that_attaches_itself_keeps_its_own_recording_alone(recorded, tmp_path):
    def script():
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        train(model, optimizer, 2)  # recorded so far, into the file that the script wants
        with gradscope.attach(model, optimizer=optimizer, out=tmp_path / "run.pt", every=1):
            train(model, optimizer, 3)

    said, runs = recorded(script)
    assert "records itself" in said
    assert list(runs) == ["run.pt"] and runs["run.pt"].steps.tolist() == [0, 1, 2]
    assert "loss" not in runs["run.pt"].scalars()


def test_why_nothing_was_recorded(recorded):
    def bare_tensor():
        x = torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.SGD([x], 0.1)
        x.sum().backward()
        optimizer.step()

    def no_step():
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loss_of(model, 0).backward()
        del optimizer

    for script, why in (
        (lambda: None, "the script made no torch optimizer"),
        (bare_tensor, "no torch module that holds what the optimizer trains was called"),
        (no_step, "no optimizer of Net made a step"),
    ):
        said, _ = recorded(script)
        assert said.startswith(f"nothing was recorded: {why}"), said


def test_a_file_that_is_no_run_is_left_alone(recorded, tmp_path):
    (tmp_path / "run-Generator.pt").write_text("mine")

    def script():
        models = Generator(out=4), Discriminator(out=1)
        gan(*models, *(torch.optim.Adam(m.parameters()) for m in models))

    with pytest.raises(gradscope.RunError):  # the fixture opens every .pt file
        recorded(script)
    assert (tmp_path / "run-Generator.pt").read_text() == "mine"
    assert gradscope.load(tmp_path / "run.pt").steps.tolist() == list(range(STEPS))


def test_module_calls_are_watched_no_longer_than_needed(recorded):
    from torch.nn.modules import module

    counts = []

    def script():
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        counts.append(len(module._global_forward_pre_hooks))
        train(model, optimizer, 2)
        counts.append(len(module._global_forward_pre_hooks))

    before = len(module._global_forward_pre_hooks)
    recorded(script, every=10)
    assert counts == [before + 1, before]


def test_a_failure_inside_is_told_and_leaves_the_script_alone(recorded, monkeypatch):
    def broken(*_args):
        raise ZeroDivisionError("broken")

    monkeypatch.setattr(Recording, "_root", broken)
    losses = []

    def script():
        model = Net()
        losses.extend(train(model, torch.optim.SGD(model.parameters(), 0.1)))

    said, _ = recorded(script)
    assert "ZeroDivisionError: broken" in said and len(losses) == STEPS


@pytest.mark.filterwarnings("error:Using .torch.compile")
def test_compiled_models_are_recorded_at_step_0_and_compiled_afterwards(recorded):
    compiled_at = []

    def script():
        models = Generator(out=4), Discriminator(out=1)
        seen = []

        def backend(graph, _inputs):
            seen.append(graph)
            return graph.forward

        compiled = [torch.compile(m, backend=backend) for m in models]
        optimizers = [torch.optim.Adam(m.parameters()) for m in compiled]
        for _ in range(2):
            gan(*compiled, *optimizers)
            compiled_at.append(len(seen))

    try:
        said, runs = recorded(script, every=10)
    finally:
        torch._dynamo.reset()
    assert "of Discriminator in run.pt, 14 steps of Generator in run-Generator.pt" in said
    for run in runs.values():
        assert run.steps.tolist() == [0, 10]
        assert run.wide("module", "grad_norm")["first"].notna().all()
    assert compiled_at[0] > 0
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_parameters_that_no_module_holds_are_not_looked_for_forever(recorded, monkeypatch):
    from torch.nn.modules import module

    monkeypatch.setattr("gradscope.launch.recording.PATIENCE", 3)
    counts = []

    def script():
        model = Net()
        extra = torch.zeros(4, requires_grad=True)
        optimizer = torch.optim.SGD([*model.parameters(), extra], 0.1)
        for _ in range(5):
            train(model, optimizer, 1, lambda m, s: m(batch(s) + extra).mean())
            counts.append(len(module._global_forward_pre_hooks))

    before = len(module._global_forward_pre_hooks)
    _, runs = recorded(script, every=10)
    assert counts == [before + 1, before + 1, before, before, before]
    assert runs["run.pt"].meta["steps"] == 5


def test_an_optimizer_without_a_model_is_not_waited_for_forever(recorded, monkeypatch):
    from torch.nn.modules import module

    monkeypatch.setattr("gradscope.launch.recording.IDLE", 5)
    counts = []

    def script():
        first, second = Generator(), Discriminator()
        optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (first, second)]
        for steps in (5, 1):
            train(first, optimizers[0], steps)
            counts.append(len(module._global_forward_pre_hooks))
        train(second, optimizers[1], 3)

    before = len(module._global_forward_pre_hooks)
    _, runs = recorded(script, every=100)
    assert counts == [before + 1, before]
    assert {name: run.meta["steps"] for name, run in runs.items()} == {
        "run.pt": 6,
        "run-Discriminator.pt": 2,  # the first step is over when it is noticed
    }


def test_a_model_that_others_have_long_outstepped_is_done_and_may_come_back(recorded, monkeypatch):
    monkeypatch.setattr("gradscope.launch.recording.IDLE", 5)

    def script():
        first, second = Generator(), Discriminator()
        optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (first, second)]
        train(first, optimizers[0], 3)
        train(second, optimizers[1], 6)
        train(first, optimizers[0], 3)  # the first of these is over when it is noticed

    said, runs = recorded(script)
    assert {name: run.meta["steps"] for name, run in runs.items()} == {
        "run.pt": 3,
        "run-Discriminator.pt": 6,
        "run-Generator.pt": 2,
    }
    assert said.count("Generator in") == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_records_nothing_and_touches_no_file(recorded):
    def script():
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        train(model, optimizer, 3)
        child = os.fork()
        if child == 0:
            try:
                train(model, optimizer, 5)
                other = Net()
                train(other, torch.optim.SGD(other.parameters(), 0.1), 2)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        train(model, optimizer, 4)

    _, runs = recorded(script)
    assert list(runs) == ["run.pt"]
    assert runs["run.pt"].steps.tolist() == list(range(7))
    assert list(losses_in(runs["run.pt"])) == list(range(7))


def test_layers_added_while_training_begin_another_run(recorded):
    def script():
        model = Net()
        train(model, torch.optim.SGD(model.parameters(), 0.1), 3)
        model.last = nn.Linear(6, 5)
        train(model, torch.optim.SGD(model.parameters(), 0.1), 2)

    _, runs = recorded(script)
    assert {name: run.meta["steps"] for name, run in runs.items()} == {"run.pt": 3, "run-Net.pt": 2}
    assert runs["run-Net.pt"].sites["parameter", "last.weight"].shape == (5, 6)


def test_importing_gradscope_draws_no_random_numbers():
    code = (
        "import random, numpy as np, torch\n"
        "def state():\n"
        "    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()\n"
        "random.seed(0); np.random.seed(0); torch.manual_seed(0); before = state()\n"
        "import gradscope.launch.recording\n"
        "after = state()\n"
        "assert before[:2] == after[:2] and torch.equal(before[2], after[2])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
