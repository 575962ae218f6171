"""Every format, read back with its own reader, holds exactly the rows of `run.frame()`."""

import json
import os
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import gradscope
from gradscope import Run, Site
from gradscope.cli import main
from gradscope.integrations.exporters import FORMATS, export
from gradscope.integrations.exporters.tags import tag

NAN, INF = float("nan"), float("inf")


def strange():
    """Names and numbers that formats lose: NA, quotes, commas, line ends, NaN, ±inf, subnormals."""
    rows = [
        (0, "null", "module", "", "grad_norm", 0.1),
        (0, "NA", "module", "", "grad_norm", NAN),
        (0, 'a "quoted", name', "module", "", "grad_norm", -0.0),
        (0, "two\nlines", "module", "", "grad_norm", 5e-324),
        (0, "add", "fork", "left, mostly", "projection", 1 / 3),
        (0, "add", "fork", "right", "projection", 2 / 3),
        (7, "null", "module", "", "grad_norm", INF),
        (7, "add", "fork", "right", "projection", -INF),
        (7, "add", "fork", "right", "projection", 1e308, 1),
        (7, "loss/validation", "scalar", "", "value", 0.30000000000000004),
        (2_000_000_000_000, "loss/validation", "scalar", "", "value", NAN),
    ]
    sites = [Site("null", "module", numel=3), Site("alias", "module", alias_of="null")]
    return Run.from_records(rows, sites)


def recorded():
    """A real recording: parameters take turns, so that steps hold different columns."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters())
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1) as scope:
        for step in range(4):
            loss = model(torch.randn(2, 5, 8)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 2:
                scope.log(loss=loss)
    return scope.run()


RUNS = {"strange": strange, "recorded": recorded}


@pytest.fixture(params=RUNS)
def run(request, tmp_path):
    path = tmp_path / "run.pt"
    gradscope.save(RUNS[request.param](), path)
    return gradscope.load(path)


def tagged(run):
    """{(scalar's name, step): value} of `run.frame()`, by the names that users are told."""
    expected = {}
    for row in run.frame().itertuples(index=False):
        name = tag(row.kind, row.metric, row.site, row.edge, row.rank)
        assert (name, row.step) not in expected, "two columns of one name"
        expected[name, row.step] = row.value
    return expected


def assert_same_numbers(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == value or (np.isnan(found[key]) and np.isnan(value)), key


def test_csv_holds_the_frame(run):
    path = export(run, "csv")
    assert path == run.path.with_name("run.csv")
    found = pd.read_csv(path, keep_default_na=False, na_values={"value": ["nan"]})
    pd.testing.assert_frame_equal(found, run.frame(), check_exact=True)


def test_parquet_holds_the_frame(run):
    import pyarrow.parquet as pq

    path = export(run, "parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(path), run.frame(), check_exact=True)
    table = pq.read_table(path)
    assert all(column.null_count == 0 for column in table.columns), "NaN is a number, not missing"


def test_tensorboard_holds_the_frame(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    accumulator = EventAccumulator(str(export(run, "tensorboard")), {"tensors": 0})
    accumulator.Reload()
    found = {}
    for name in accumulator.Tags()["tensors"]:
        metadata = accumulator.SummaryMetadata(name)
        assert metadata.plugin_data.plugin_name == "scalars"
        assert metadata.summary_description
        for event in accumulator.Tensors(name):
            array = tensor_util.make_ndarray(event.tensor_proto)
            assert array.dtype == np.float64
            found[name, event.step] = array.item()
    assert_same_numbers(found, tagged(run))


def test_wandb_holds_the_frame(run):
    directory = export(run, "wandb")
    (path,) = directory.glob("wandb/offline-run-*/*.wandb")
    found = {}
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            row = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
            numbers = {k: json.loads(v) for k, v in row.items()}
            step = numbers["_step"]
            found |= {(k, step): v for k, v in numbers.items() if not k.startswith("_")}
    assert_same_numbers(found, tagged(run))


def wandb_records(path):
    """Records of a .wandb file: LevelDB's log format, blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    raw, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        left = 32768 - at % 32768
        length, kind = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6]
        if left < 7 or kind == 0:  # the rest of the block is filled up
            at += left
            continue
        whole += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


@pytest.mark.parametrize("to", FORMATS)
def test_a_run_without_numbers_can_be_exported(to, tmp_path):
    assert export(Run(), to, tmp_path / "out").exists()


@pytest.mark.parametrize("to", FORMATS)
def test_what_exists_is_left_alone(to, tmp_path):
    there = tmp_path / "out"
    there.write_text("mine")
    with pytest.raises(gradscope.GradscopeError, match="exists and is left alone"):
        export(strange(), to, there)
    (tmp_path / "directory").mkdir()
    with pytest.raises(gradscope.GradscopeError, match="exists and is left alone"):
        export(strange(), to, tmp_path / "directory")
    assert there.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["directory", "out"]


@pytest.mark.parametrize("to", FORMATS)
def test_a_failure_leaves_nothing_half_written(to, tmp_path, monkeypatch):
    def broken(self):
        raise RuntimeError("no table")

    monkeypatch.setattr(Run, "frame", broken)
    with pytest.raises(RuntimeError, match="no table"):
        export(strange(), to, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("to", "package"), [("parquet", "pyarrow"), ("tensorboard", "tensorboard"), ("wandb", "wandb")]
)
def test_a_missing_package_is_named_with_its_extra(to, package, tmp_path, monkeypatch):
    for name in list(sys.modules):
        if name.split(".")[0] == package or name.startswith("torch.utils.tensorboard"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(gradscope.GradscopeError) as error:
        export(strange(), to, tmp_path / "out")
    expected = f"export to {to} needs {package}: pip install 'gradscope[{to}]'"
    assert str(error.value) == expected
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats_and_places_are_refused(tmp_path):
    with pytest.raises(gradscope.GradscopeError, match="csv, parquet, tensorboard, wandb"):
        export(strange(), "excel", tmp_path / "out")
    with pytest.raises(gradscope.GradscopeError, match="say where"):
        export(strange(), "csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(gradscope.GradscopeError, match="can't write"):
        export(strange(), "csv", tmp_path / "file" / "run.csv")


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["gradscope", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    return stop.value.code or 0, out, err


def test_command_line(tmp_path, monkeypatch, capsys):
    path = tmp_path / "run.pt"
    gradscope.save(strange(), path)
    code, out, err = command(monkeypatch, capsys, "export", path, "--to", "csv")
    assert (code, out, err) == (0, f"{tmp_path / 'run.csv'}\n", "")
    assert (tmp_path / "run.csv").is_file()

    code, out, err = command(monkeypatch, capsys, "export", path, "--to", "csv")
    assert (code, out) == (2, "")
    assert err.count(os.linesep) == 1 and "exists and is left alone" in err

    chosen = tmp_path / "deep" / "table.parquet"
    code, out, _ = command(monkeypatch, capsys, "export", path, "--to", "parquet", "--out", chosen)
    assert (code, out) == (0, f"{chosen}\n")
    assert chosen.is_file()

    assert command(monkeypatch, capsys, "export", path, "--to", "excel")[0] == 2
    assert command(monkeypatch, capsys, "export", tmp_path / "none.pt", "--to", "csv")[0] == 2
