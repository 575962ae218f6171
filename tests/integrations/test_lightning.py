"""Lightning's Trainer, really trained: numbers, metrics, and the same weights."""

import copy
import importlib
import sys
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import nn

import gradscope
from gradscope.integrations.lightning import GradscopeCallback
from tests.integrations.twins import assert_identical, outcome, update_ratios, weight_norms
from tests.reference.gradients import norm
from tests.reference.recording import values

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")
BATCHES = 6
COLUMNS = ["parameters", "updates", "scalars", "identical training"]


def loader():
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(4 * BATCHES, 5, generator=draw)
    data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True).sin())
    return torch.utils.data.DataLoader(data, batch_size=4)


class Regression(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, index):
        loss = (self(batch[0]) - batch[1]).abs().mean()
        self.log("val_loss", loss, on_step=True, on_epoch=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class GAN(pl.LightningModule):
    """Two optimizers by hand; the generator's loss leaves gradients in the discriminator too."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5))
        self.discriminator = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1))

    def training_step(self, batch, index):
        first, second = self.optimizers()
        fake = self.generator(batch[0][:, :3])
        loss = nn.functional.softplus(-self.discriminator(fake)).mean()
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        self.log("generator_loss", loss)
        good, bad = self.discriminator(batch[0]), self.discriminator(fake.detach())
        loss = nn.functional.softplus(-good).mean() + nn.functional.softplus(bad).mean()
        second.zero_grad()
        self.manual_backward(loss)
        second.step()
        self.log("discriminator_loss", loss)

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.generator.parameters(), lr=0.01),
            torch.optim.SGD(self.discriminator.parameters(), lr=0.1),
        ]


class Ledger(Logger):
    """What Lightning hands to a logger, by name and by its own count of steps."""

    name = version = "ledger"

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows += [(name, step, value) for name, value in metrics.items()]


class Oracle(pl.Callback):
    """Gradients that Lightning shows before an optimizer steps, and the weights of every batch."""

    def __init__(self):
        self.gradients, self.weights, self._step = [], [], {}

    def on_train_start(self, trainer, module):
        self.weights.append({n: p.detach().clone() for n, p in module.named_parameters()})

    def on_before_optimizer_step(self, trainer, module, optimizer):
        mine = {id(p) for g in optimizer.param_groups for p in g["params"]}
        for name, p in module.named_parameters():
            if id(p) in mine:
                self._step[name] = p.grad  # clipped afterwards, in place, before it is used

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if self._step:
            self.gradients.append({n: norm(g) for n, g in self._step.items()})
            self.weights.append({n: p.detach().clone() for n, p in module.named_parameters()})
            self._step = {}


def trainer(tmp_path, callbacks, logger=False, package=pl, **arguments):
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": str(tmp_path / "lightning"),
    }
    return package.Trainer(**{**defaults, **arguments}, callbacks=callbacks, logger=logger)


def module(kind=Regression):
    torch.manual_seed(0)
    return kind()


def fit(tmp_path, watched, callbacks, logger=False, validate=False, **arguments):
    torch.manual_seed(2)
    made = trainer(tmp_path, callbacks, logger, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on numbers of workers
        made.fit(watched, loader(), loader() if validate else None)
    return made


def scalars(run):
    table = run.frame("scalar")
    assert not table.duplicated(["site", "step"]).any()
    return {(r.site, r.step): r.value for r in table.itertuples()}


def losses_of(logger):
    return [value for name, _, value in logger.rows if "loss" in name]


CASES = {
    "plain": (Regression, {}),
    "accumulation, clipping": (
        Regression,
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05},
    ),
    "bf16": (Regression, {"precision": "bf16-mixed"}),
    "two optimizers by hand": (GAN, {}),
}
ROWS = [
    pytest.param(
        n, id=n, marks=pytest.mark.supports(process=f"lightning.Trainer, {n}", shows=COLUMNS)
    )
    for n in CASES
]


@pytest.mark.parametrize("name", ROWS)
def test_numbers_metrics_and_weights(name, tmp_path):
    kind, arguments = CASES[name]
    plain, watched = module(kind), module(kind)
    oracle = Oracle()
    logger = Ledger()
    bare = fit(tmp_path, plain, [oracle], logger, **arguments)
    without = outcome(plain, bare.optimizers, losses_of(logger))
    logger = Ledger()
    callback = GradscopeCallback(out=tmp_path / "run.pt", every=1, update_every=1)
    made = fit(tmp_path, watched, [callback], logger, **arguments)
    assert_identical(without, outcome(watched, made.optimizers, losses_of(logger)))
    run = gradscope.load(tmp_path / "run.pt")
    assert (run.meta["status"], run.meta["errors"]) == ("complete", [])
    steps = 2 * BATCHES // arguments.get("accumulate_grad_batches", 1)
    assert len(oracle.gradients) == steps
    assert run.steps.tolist() == list(range(steps)) and run.meta["steps"] == steps
    for step in range(steps):
        found = values(run, "parameter", "grad_norm", step)
        assert found == pytest.approx(oracle.gradients[step], rel=1e-5)
        before, after = oracle.weights[step : step + 2]
        weights = values(run, "parameter", "weight_norm", step)
        assert weights == pytest.approx(weight_norms(before), rel=1e-5)
        ratios = values(run, "parameter", "update_ratio", step)
        expected = update_ratios(before, after)
        assert {n: ratios[n] for n in expected} == pytest.approx(expected, rel=1e-4)
    found = scalars(run)
    assert len(logger.rows) > steps
    for key, step, value in logger.rows:
        assert found[key, step] == value, (key, step)
    assert made.loggers == [logger] and callback.scope is None
    assert nothing_left(made)


def nothing_left(made):
    from torch.nn.modules import module

    hooks = [module._global_forward_hooks, module._global_forward_pre_hooks]
    for optimizer in made.optimizers:
        hooks += [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    return not any(hooks)


def test_validation_and_other_metrics_without_a_logger(tmp_path):
    seen = []

    class Looks(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            module.logger.experiment.add_histogram("w", module.net[0].weight)
            seen.append((trainer.log_dir, len(trainer.loggers)))

    callback = GradscopeCallback(out=tmp_path / "run.pt", every=4)
    made = fit(tmp_path, module(), [callback, Looks()], validate=True)
    assert set(seen) == {(made.default_root_dir, 1)} and made.loggers == []
    run = gradscope.load(tmp_path / "run.pt")
    assert run.steps.tolist() == [0, 4, 8]
    found = scalars(run)
    assert [s for n, s in found if n == "loss_step"] == list(range(2 * BATCHES))
    assert [s for n, s in found if n == "loss_epoch"] == [5, 11]
    assert [s for n, s in found if n == "val_loss_epoch"] == [5, 11]
    assert not [s for n, s in found if n == "val_loss_step"]
    assert found["loss_epoch", 5] == pytest.approx(
        sum(found["loss_step", s] for s in range(6)) / 6, rel=1e-5
    )
    assert found["val_loss_epoch", 11] == made.callback_metrics["val_loss_epoch"].item()


@pytest.mark.supports(process="lightning.Trainer, resumed", shows=["parameters", "scalars"])
def test_a_resumed_training_goes_on_counting_in_a_file_of_its_own(tmp_path):
    callback = GradscopeCallback(out=tmp_path / "run.pt", every=4)
    first = fit(tmp_path, module(), [callback], max_epochs=1)
    first.save_checkpoint(tmp_path / "half.ckpt")
    before = (tmp_path / "run.pt").read_bytes()

    oracle, logger = Oracle(), Ledger()
    again = trainer(tmp_path, [callback, oracle], logger)
    again.fit(module(), loader(), ckpt_path=tmp_path / "half.ckpt")
    assert (tmp_path / "run.pt").read_bytes() == before
    run = gradscope.load(tmp_path / "run-from-6.pt")
    assert run.steps.tolist() == [8] and run.meta["steps"] == 12
    found = values(run, "parameter", "grad_norm", 8)
    assert found == pytest.approx(oracle.gradients[2], rel=1e-5)
    logged = scalars(run)
    assert logger.rows and all(logged[n, s] == v for n, s, v in logger.rows)


class Stop(pl.Callback):
    def __init__(self, error):
        self.error = error

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if index == 2:
            raise self.error


@pytest.mark.parametrize(
    ("error", "raised"), [(KeyboardInterrupt(), SystemExit), (RuntimeError("boom"), RuntimeError)]
)
def test_an_exception_closes_the_recording(error, raised, tmp_path):
    import signal

    before = signal.getsignal(signal.SIGINT)
    callback = GradscopeCallback(out=tmp_path / "run.pt", every=1)
    made = trainer(tmp_path, [callback, Stop(error)])
    try:
        with pytest.raises(raised):
            made.fit(module(), loader())
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning leaves it ignored
    run = gradscope.load(tmp_path / "run.pt")
    assert run.meta["status"] == "complete" and run.steps.tolist() == [0, 1, 2]
    assert run.meta["ended"].startswith(type(error).__name__)
    assert callback.scope is None and made.loggers == [] and nothing_left(made)


def test_checkpoints_go_where_they_went(tmp_path):
    def files(where, callbacks):
        fit(where, module(), callbacks, enable_checkpointing=True, max_epochs=1)
        return sorted(str(p.relative_to(where)) for p in (where / "lightning").rglob("*.ckpt"))

    with_it = files(tmp_path / "a", [GradscopeCallback(out=tmp_path / "run.pt")])
    assert with_it == files(tmp_path / "b", []) and len(with_it) == 1


def test_other_loggers_are_left_alone(tmp_path):
    logger = CSVLogger(tmp_path / "csv")
    callback = GradscopeCallback(out=tmp_path / "run.pt")
    made = fit(tmp_path, module(), [callback], logger)
    assert made.loggers == [logger] and (tmp_path / "csv").is_dir()


def test_a_module_that_was_trained_can_be_copied_and_trained_again(tmp_path):
    callback = GradscopeCallback(
        out=tmp_path / "run.pt", configure=lambda scope: scope.effective_rank("net.1", every=5)
    )
    trained = module()
    fit(tmp_path, trained, [callback])
    fit(tmp_path, copy.deepcopy(trained), [callback])
    run = gradscope.load(tmp_path / "run.pt")
    assert set(run.frame(metric="effective_rank")["step"]) == {0, 5, 10}


def test_the_other_name_of_lightning(tmp_path):
    """A module of pytorch_lightning, with the callback on either base class."""
    import pytorch_lightning

    class Other(pytorch_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(5, 1)

        def training_step(self, batch, index):
            loss = (self.net(batch[0]) - batch[1]).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = GradscopeCallback(out=tmp_path / "run.pt", every=1)
    trainer(tmp_path, [callback], package=pytorch_lightning).fit(Other(), loader())
    run = gradscope.load(tmp_path / "run.pt")
    assert run.steps.tolist() == list(range(2 * BATCHES))
    assert len(run.frame("scalar").query("site == 'loss'")) == 2 * BATCHES


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    name = "gradscope.integrations.lightning"
    monkeypatch.delitem(sys.modules, name)
    for package in ("lightning", "pytorch_lightning"):
        for loaded in list(sys.modules):
            if loaded.split(".")[0] == package:
                monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(gradscope.GradscopeError) as error:
        importlib.import_module(name)
    expected = "GradscopeCallback needs lightning (or pytorch-lightning): "
    assert str(error.value) == expected + "pip install 'gradscope[lightning]'"
