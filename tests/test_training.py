import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

import gradscope
from gradscope import cli
from gradscope.errors import GradscopeError
from gradscope.models import MODELS
from gradscope.training import TrainConfig, evaluate, train

TINY = {"layers": 2, "steps": 12, "hidden": 8, "size": 2, "hops": 2, "scenes": 256, "batch": 16}


def tiny(**options):
    return TrainConfig(**{**TINY, **options})


def weights(result):
    return torch.cat([p.detach().flatten() for p in result.model.parameters()])


@pytest.mark.parametrize("model", MODELS)
def test_every_model_learns_one_hop(model):
    """Two cells a side, one hop: an easy lookup, which all of them must get right."""
    result = train(
        TrainConfig(
            model=model, layers=1, hidden=32, size=2, hops=1, steps=400, scenes=4000, lr=1e-2
        )
    )
    assert result.scores.accuracy > 0.95  # guessing: 0.25
    assert result.scores.by_hops == (pytest.approx(result.scores.accuracy),)


def test_sgd_learns_too():
    config = TrainConfig(
        layers=1, hidden=32, size=2, hops=1, steps=600, scenes=4000, optimizer="sgd", lr=0.1
    )
    assert train(config).scores.accuracy > 0.9


def test_same_configuration_gives_the_same_weights():
    assert torch.equal(weights(train(tiny())), weights(train(tiny())))
    assert not torch.equal(weights(train(tiny())), weights(train(tiny(seed=1))))


def test_recording_changes_nothing(tmp_path):
    recorded = train(tiny(out=tmp_path / "run.pt", every=1))
    assert torch.equal(weights(recorded), weights(train(tiny())))


def test_global_state_is_left_alone(tmp_path):
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    train(tiny(threads=2, out=tmp_path / "run.pt"))
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads


def test_what_is_recorded(tmp_path):
    out = tmp_path / "deep" / "run.pt"
    config = tiny(model="sla", out=out, every=5, eval_every=6)
    result = train(config)
    run = gradscope.load(out)
    assert run.meta["status"] == "complete"
    assert run.meta["unseen"] == run.meta["errors"] == []
    assert run.meta["args"] == {**vars(config), "out": str(out)}
    assert list(run.steps) == [0, 5, 10]

    scalars = run.scalars()
    for name in ("loss", "accuracy"):
        assert list(scalars[name].dropna().index) == list(range(12))
    validated = ["val_loss", "val_accuracy", "val_accuracy_hop1", "val_accuracy_hop2"]
    assert list(scalars["val_loss"].dropna().index) == [0, 6, 11]
    last = [result.scores.loss, result.scores.accuracy, *result.scores.by_hops]
    assert scalars.loc[11, validated].to_list() == pytest.approx(last)

    sites = {s.name for s in run.sites_of("module")}
    for k in range(2):
        layer = f"stack.layers.{k}"
        assert {f"{layer}.content", f"{layer}.weights", f"{layer}.latent"} <= sites
    assert not [s for s in sites if "#" in s]  # validation is not taken for training
    assert len(run.sites_of("softmax")) == 2


def test_validation_is_told_apart_from_training():
    """The same validation scenes whatever the seed: an untouched model scores the same."""
    config = tiny(steps=1, lr=1e-12)
    task = config.make_task()
    result = train(config)
    scenes = task.scenes(4096, 0, "validation")
    assert evaluate(result.model, task, scenes) == result.scores
    logits = result.model(*task.inputs(scenes))
    loss = torch.nn.functional.cross_entropy(logits, scenes.answer)
    assert result.scores.loss == pytest.approx(loss.item(), rel=1e-5)
    right = logits.argmax(dim=1) == scenes.answer
    assert result.scores.accuracy == pytest.approx(right.float().mean().item())
    for k, accuracy in enumerate(result.scores.by_hops, 1):
        assert accuracy == pytest.approx(right[scenes.hops == k].float().mean().item())


def test_progress_is_reported():
    seen = []
    result = train(tiny(steps=45, eval_every=30), seen.append)
    assert [now.step for now in seen] == [20, 40, 45]
    assert seen[-1].val_accuracy == result.scores.accuracy
    assert all(0 <= now.accuracy <= 1 and now.loss > 0 for now in seen)


def test_steps_may_be_less_or_more_than_an_epoch():
    for steps in (1, 16, 17, 40):
        seen = []
        train(tiny(steps=steps), seen.append)
        assert seen[-1].step == steps


def test_an_interrupted_run_is_whole_so_far(tmp_path):
    def stop(now):
        if now.step == 40:
            raise KeyboardInterrupt

    out = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train(tiny(steps=100, out=out, every=10), stop)
    run = gradscope.load(out)
    assert run.meta["status"] == "complete"
    assert run.meta["steps"] == 40
    assert list(run.steps) == [0, 10, 20, 30]
    assert len(run.scalars()["loss"].dropna()) == 40


NONSENSE = {
    "task": ("mazes", "unknown task 'mazes'; one of arrows"),
    "model": ("sna", "unknown model 'sna'; one of san-residual, "),
    "optimizer": ("lion", "unknown optimizer 'lion'; one of adam, sgd"),
    "answer": ("shape", "unknown answer 'shape'; one of cell, colour"),
    "layers": (0, "layers must be at least 1, not 0"),
    "steps": (-5, "steps must be at least 1, not -5"),
    "batch": (257, "batch must be at most the number of scenes (256), not 257"),
    "hidden": (0, "hidden must be at least 1, not 0"),
    "scenes": (0, "scenes must be at least 1, not 0"),
    "every": (0, "every must be at least 1, not 0"),
    "eval_every": (0, "eval_every must be at least 1, not 0"),
    "threads": (0, "threads must be at least 1, not 0"),
    "seed": (-1, "seed must be from 0 to 2^63 - 1, not -1"),
    "lr": (float("nan"), "lr must be a positive number, not nan"),
    "momentum": (1.0, "momentum must be at least 0 and below 1, not 1"),
    "size": (1, "size must be at least 2, not 1"),
    "hops": (0, "hops must be at least 1, not 0"),
    "colours": (1, "colours must be at least 2, not 1"),
    "device": ("teapot", "device 'teapot' can't be used"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_refused(name):
    value, message = NONSENSE[name]
    with pytest.raises(GradscopeError) as error:
        tiny(**{name: value})
    assert str(error.value).startswith(message)


def test_learning_rates_that_are_no_step_forward():
    for lr in (0.0, -1e-3, float("inf")):
        with pytest.raises(GradscopeError, match="lr must be a positive number"):
            tiny(lr=lr)


# -- the command -----------------------------------------------------------------------


def command(monkeypatch, **options):
    """Run `gradscope train` in this process; its exit code."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    monkeypatch.setattr(sys, "argv", ["gradscope", "train", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_command_trains_records_and_says_what_next(monkeypatch, tmp_path, capsys):
    out = tmp_path / "my run.pt"
    assert command(monkeypatch, **TINY, model="sla-chain", seed=3, out=out) == 0
    said = capsys.readouterr().out.splitlines()
    run = gradscope.load(out)
    scalars = run.scalars().iloc[-1]
    assert said[0] == (
        f"validation accuracy {scalars['val_accuracy']:.3f}  (by hops: "
        f"1: {scalars['val_accuracy_hop1']:.3f}  2: {scalars['val_accuracy_hop2']:.3f})"
    )
    assert said[1].startswith("12 steps in ")
    assert said[1].endswith(f" s, recorded in {out}")
    assert said[2:] == [f"next: gradscope analyze {shlex.quote(str(out))}"]
    assert run.meta["args"] == {**vars(tiny(model="sla-chain", seed=3)), "out": str(out)}


def test_help_tells_what_every_option_is_for(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(sys, "argv", ["gradscope", "train", "--help"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    page = capsys.readouterr().out
    for name, meaning in TrainConfig.meanings().items():
        line = next(x for x in page.splitlines() if f"--{name.replace('_', '-')} " in x)
        default = "run.pt" if name == "out" else getattr(TrainConfig(), name)
        assert meaning in line
        assert f"[default: {default}]" in line


@pytest.mark.parametrize("name", NONSENSE)
def test_command_refuses_nonsense_in_one_line(name, monkeypatch, tmp_path, capsys):
    value, message = NONSENSE[name]
    out = tmp_path / "run.pt"
    assert command(monkeypatch, **{**TINY, "out": out, name: value}) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"gradscope: {message}")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not list(tmp_path.iterdir())


def test_command_refuses_what_it_cannot_write(monkeypatch, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("precious")
    for out in (tmp_path, tmp_path / "notes.txt", tmp_path / "notes.txt" / "run.pt"):
        assert command(monkeypatch, **TINY, out=out) == 2
        said = capsys.readouterr().err
        assert str(out) in said
        assert said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_command_refuses_what_is_no_number(monkeypatch, tmp_path, capsys):
    assert command(monkeypatch, layers="many", out=tmp_path / "run.pt") == 2
    assert "--layers" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process")
def test_ctrl_c_leaves_a_valid_run(tmp_path):
    out = tmp_path / "run.pt"
    options = "--steps=1000000 --hidden=8 --size=2 --scenes=256 --every=2".split()
    process = subprocess.Popen(
        [sys.executable, "-m", "gradscope", "train", *options, f"--out={out}"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        journal = out.with_name("run.pt.journal")
        deadline = time.monotonic() + 120
        while not (journal.exists() and journal.stat().st_size > 0):  # the first recorded step
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert said.splitlines()[-1] == f"stopped; what was recorded is in {out}"
    run = gradscope.load(out)
    assert run.meta["status"] == "complete"
    assert len(run.steps) >= 1
    assert not journal.exists()
