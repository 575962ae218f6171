"""The Trainer of transformers, really trained: numbers, metrics, and the same weights."""

import copy
import gc
import importlib
import inspect
import math
import sys

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import gradscope
from gradscope.integrations import huggingface
from gradscope.integrations.huggingface import GradscopeCallback
from tests.integrations.twins import assert_identical, outcome, update_ratios, weight_norms
from tests.reference.gradients import norm
from tests.reference.recording import values

STEPS = 6


def model():
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2,
        n_head=2,
        n_embd=16,
        vocab_size=32,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=1,
    )
    return GPT2LMHeadModel(config)


def sentences(number=64):
    draw = torch.Generator().manual_seed(1)
    drawn = torch.randint(0, 32, (number, 8), generator=draw)
    return [{"input_ids": ids, "labels": ids} for ids in drawn]


class Oracle(TrainerCallback):
    """Gradient norms that the Trainer shows before its optimizer steps, and weights around it."""

    def __init__(self):
        self.gradients, self.weights = [], []

    def _copy(self, model):
        return {n: p.detach().clone() for n, p in model.named_parameters()}

    def on_train_begin(self, args, state, control, model=None, **_):
        self.weights.append(self._copy(model))

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        grads = {n: p.grad for n, p in model.named_parameters()}
        self.gradients.append({n: norm(g) for n, g in grads.items() if g is not None})

    def on_optimizer_step(self, args, state, control, model=None, **_):
        self.weights.append(self._copy(model))


def trainer(tmp_path, net, callbacks, **arguments):
    defaults = {
        "output_dir": str(tmp_path / "trainer"),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "seed": 3,
    }
    settings = TrainingArguments(**{**defaults, **arguments})
    made = Trainer(
        net,
        settings,
        train_dataset=sentences(),
        eval_dataset=sentences(4),
        callbacks=callbacks,
    )
    made.remove_callback(importlib.import_module("transformers.trainer_callback").PrinterCallback)
    return made


def assert_metrics_found(run, history):
    """What the Trainer logged at its step k is a scalar of step k − 1."""
    table = run.frame("scalar")
    assert not table.duplicated(["site", "step"]).any()
    found = {(r.site, r.step): r.value for r in table.itertuples()}
    logged = 0
    for entry in history:
        for name, value in entry.items():
            if name != "step":
                assert found[name, max(entry["step"] - 1, 0)] == value, (name, entry["step"])
                logged += 1
    assert logged > 3 * len(history)


def nothing_left(optimizer):
    from torch.nn.modules import module

    return not (
        module._global_forward_hooks
        or module._global_forward_pre_hooks
        or optimizer.optimizer._optimizer_step_pre_hooks
        or optimizer.optimizer._optimizer_step_post_hooks
    )


def losses_of(made):
    return [e["loss"] for e in made.state.log_history if "loss" in e]


CASES = {
    "plain": {},
    "accumulation, clipping": {"gradient_accumulation_steps": 2, "max_grad_norm": 0.05},
    "bf16": {"bf16": True},
    "checkpointing": {"activation_checkpointing": True},
    "SGD, evaluation between": {
        "optim": "sgd",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "lr_scheduler_type": "cosine",
    },
}
COLUMNS = ["parameters", "updates", "scalars", "identical training"]
ROWS = [
    pytest.param(
        n, id=n, marks=pytest.mark.supports(process=f"transformers.Trainer, {n}", shows=COLUMNS)
    )
    for n in CASES
]


@pytest.mark.parametrize("name", ROWS)
def test_numbers_metrics_and_weights(name, tmp_path):
    arguments = CASES[name]
    plain, watched = model(), model()
    oracle = Oracle()
    bare = trainer(tmp_path, plain, [oracle], **arguments)
    bare.train()
    without = outcome(plain, [bare.optimizer], losses_of(bare))
    callback = GradscopeCallback(out=tmp_path / "run.pt", every=1, update_every=1)
    watching = trainer(tmp_path, watched, [callback], **arguments)
    watching.train()
    assert_identical(without, outcome(watched, [watching.optimizer], losses_of(watching)))
    run = gradscope.load(tmp_path / "run.pt")
    assert (run.meta["status"], run.meta["errors"]) == ("complete", [])
    assert run.steps.tolist() == list(range(STEPS)) and run.meta["steps"] == STEPS
    for step in range(STEPS):
        found = values(run, "parameter", "grad_norm", step)
        assert found == pytest.approx(oracle.gradients[step], rel=1e-5)
        before, after = oracle.weights[step : step + 2]
        weights = values(run, "parameter", "weight_norm", step)
        assert weights == pytest.approx(weight_norms(before), rel=1e-5)
        ratios = values(run, "parameter", "update_ratio", step)
        expected = update_ratios(before, after)
        assert {n: ratios[n] for n in expected} == pytest.approx(expected, rel=1e-4)
    assert_metrics_found(run, watching.state.log_history)
    assert callback.scope is None and nothing_left(watching.optimizer)
    assert values(run, "module", "grad_norm", 0), "modules' gradients are there too"


@pytest.mark.supports(
    process="transformers.Trainer, gradient scaler", shows=["parameters", "scalars"]
)
def test_steps_that_a_gradient_scaler_skips_are_no_steps(tmp_path):
    """As with fp16=True, which needs an accelerator: the scaler is put in by hand."""

    def scaled(callbacks):
        made = trainer(tmp_path, model(), callbacks, max_grad_norm=0)
        made.accelerator.scaler = torch.amp.GradScaler(
            "cpu", init_scale=2.0**127, backoff_factor=2.0**-100
        )
        return made

    class Scales(Oracle):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            scale = made.accelerator.scaler.get_scale()
            super().on_pre_optimizer_step(args, state, control, model)
            self.gradients[-1] = {n: g / scale for n, g in self.gradients[-1].items()}

    oracle = Scales()
    made = scaled([GradscopeCallback(out=tmp_path / "run.pt", every=1), oracle])
    made.train()
    finite = [all(map(math.isfinite, g.values())) for g in oracle.gradients]
    skipped = finite.index(True)
    assert 0 < skipped < STEPS - 1 and all(finite[skipped:])

    run = gradscope.load(tmp_path / "run.pt")
    assert run.steps.tolist() == list(range(STEPS - skipped))
    for step in range(STEPS - skipped):
        found = values(run, "parameter", "grad_norm", step)
        assert found == pytest.approx(oracle.gradients[skipped + step], rel=1e-5)
    table = run.frame("scalar").query("site == 'loss'")
    losses = [e["loss"] for e in made.state.log_history if "loss" in e]
    assert table["step"].tolist() == list(range(STEPS - skipped))
    assert table["value"].tolist() == losses[skipped:]


def test_evaluation_before_the_first_step(tmp_path):
    callback = GradscopeCallback(out=tmp_path / "run.pt", every=2)
    trainer(tmp_path, model(), [callback], eval_on_start=True).train()
    run = gradscope.load(tmp_path / "run.pt")
    assert run.steps.tolist() == [0, 2, 4]
    assert run.frame("scalar").query("site == 'eval_loss'")["step"].tolist() == [0]


@pytest.mark.supports(process="transformers.Trainer, resumed", shows=["parameters", "scalars"])
def test_a_resumed_training_goes_on_counting_in_a_file_of_its_own(tmp_path):
    callback = GradscopeCallback(out=tmp_path / "run.pt", every=2)
    saving = {"save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path, model(), [callback], **saving).train()
    first = (tmp_path / "run.pt").read_bytes()

    oracle = Oracle()
    again = trainer(tmp_path, model(), [callback, oracle], **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-3"))
    assert (tmp_path / "run.pt").read_bytes() == first
    run = gradscope.load(tmp_path / "run-from-3.pt")
    assert run.steps.tolist() == [4] and run.meta["steps"] == STEPS
    found = values(run, "parameter", "grad_norm", 4)
    assert found == pytest.approx(oracle.gradients[1], rel=1e-5)
    assert_metrics_found(run, [e for e in again.state.log_history if e["step"] > 3])


class Stop(TrainerCallback):
    def __init__(self, error):
        self.error = error

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 3:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_an_exception_closes_the_recording(error, tmp_path):
    callback = GradscopeCallback(out=tmp_path / "run.pt", every=1)
    stopped = trainer(tmp_path, model(), [callback, Stop(error)])
    with pytest.raises(type(error)):
        stopped.train()
    run = gradscope.load(tmp_path / "run.pt")
    assert run.meta["status"] == "complete" and run.steps.tolist() == [0, 1, 2]
    assert run.meta["ended"].startswith(type(error).__name__)
    assert callback.scope is None and nothing_left(stopped.optimizer)

    stopped.remove_callback(Stop)
    stopped.train()
    assert gradscope.load(tmp_path / "run.pt").meta["steps"] == STEPS


def test_the_trainer_class_is_as_before_when_no_callback_is_left(monkeypatch):
    before = inspect.unwrap(Trainer.train)  # callbacks of other tests may be alive still
    monkeypatch.setattr(Trainer, "train", before)
    monkeypatch.setattr(huggingface, "_watchers", 0)
    first, second = GradscopeCallback(), GradscopeCallback()
    assert Trainer.train.__wrapped__ is before
    del first
    gc.collect()
    assert Trainer.train.__wrapped__ is before
    del second
    gc.collect()
    assert Trainer.train is before


def test_a_trainer_without_the_callback_is_not_recorded(tmp_path):
    callback = GradscopeCallback(out=tmp_path / "run.pt")
    with pytest.raises(RuntimeError, match="mine"):
        trainer(tmp_path, model(), [Stop(RuntimeError("mine"))]).train()
    assert callback.scope is None and not (tmp_path / "run.pt").exists()


def test_configure_asks_the_scope_for_more(tmp_path):
    callback = GradscopeCallback(
        out=tmp_path / "run.pt", every=3, configure=lambda scope: scope.crossings(every=3)
    )
    trainer(tmp_path, model(), [callback]).train()
    run = gradscope.load(tmp_path / "run.pt")
    assert set(run.frame("crossing")["step"]) == {0, 3}


def test_unusable_arguments_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"unexpected argument 'evry'; .* takes out, every"):
        GradscopeCallback(evry=3)
    with pytest.raises(TypeError, match="unexpected argument 'optimizer'"):
        GradscopeCallback(optimizer=None)
    refused = trainer(tmp_path, model(), [GradscopeCallback(out=tmp_path / "run.pt", every=0)])
    with pytest.raises(gradscope.GradscopeError, match="every="):
        refused.train()

    def broken(scope):
        raise RuntimeError("configured wrongly")

    callback = GradscopeCallback(out=tmp_path / "run.pt", configure=broken)
    with pytest.raises(RuntimeError, match="configured wrongly"):
        trainer(tmp_path, model(), [callback]).train()
    assert gradscope.load(tmp_path / "run.pt").meta["status"] == "complete"


def test_metrics_that_are_no_numbers_are_left_out(tmp_path):
    class Texts(Trainer):
        def log(self, logs, *args, **kwargs):
            super().log({**logs, "note": "fine", "self": 1.5, "many": [1, 2]}, *args, **kwargs)

    watched = trainer(tmp_path, model(), [GradscopeCallback(out=tmp_path / "run.pt")], max_steps=1)
    watched.__class__ = Texts
    watched.train()
    names = set(gradscope.load(tmp_path / "run.pt").frame("scalar")["site"])
    assert {"loss", "self"} <= names and not {"note", "many"} & names


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    name = "gradscope.integrations.huggingface"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(gradscope.GradscopeError) as error:
        importlib.import_module(name)
    expected = "GradscopeCallback needs transformers with accelerate: "
    assert str(error.value) == expected + "pip install 'gradscope[huggingface]'"


def test_a_copy_of_a_watched_model_is_a_model(tmp_path):
    class Copies(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            self.copied = copy.deepcopy(model)

    copies = Copies()
    watched = model()
    callbacks = [GradscopeCallback(out=tmp_path / "run.pt", every=1), copies]
    trainer(tmp_path, watched, callbacks).train()
    for a, b in zip(watched.parameters(), copies.copied.parameters(), strict=True):
        assert torch.equal(a, b)
