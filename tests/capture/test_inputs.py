"""Scale of the data that the first layer reads."""

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from gradscope.quantities.scale import SAMPLE_ELEMENTS, data_scale


@pytest.mark.parametrize("shape", [(64, 10), (8, 7, 10), (4, 10, 6, 5)])
def test_scale_equals_numpys(shape):
    torch.manual_seed(0)
    x = torch.randn(shape) + 3
    features = x.movedim(1, -1) if x.dim() == 4 else x
    features = features.reshape(-1, 10)
    features[:, 2] *= 50  # a view: changes x too, except of the permuted copy
    x = features.reshape(4, 6, 5, 10).movedim(-1, 1) if x.dim() == 4 else features.reshape(shape)
    a = features.double().numpy()
    rms = np.sqrt((a**2).mean(0))
    expected = [np.sqrt((a**2).mean()), abs(a.mean()) / a.std(), rms.max()]
    assert data_scale(x).tolist() == pytest.approx(expected)


def test_a_large_batch_is_sampled():
    torch.manual_seed(0)
    x = torch.randn(SAMPLE_ELEMENTS, 10) * 7
    assert data_scale(x)[0].item() == pytest.approx(7, rel=0.02)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.body = nn.Sequential(nn.Dropout(0.0), nn.Linear(4, 4), nn.Linear(4, 1))

    def forward(self, x):
        return self.body(self.embed(x) if x.dtype is torch.long else x)


def trained(x, steps=3):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1, update_every=1) as scope:
        for _ in range(steps):
            with torch.no_grad():
                model(torch.full((2, 4), 1e9))  # an evaluation is not looked at
            model(x).sum().backward()
            optimizer.step()
    assert not scope.run().meta["errors"]
    return scope.run()


def test_the_first_layer_with_parameters_that_reads_data_is_named():
    run = trained(torch.full((2, 4), 1000.0))
    table = run.wide("input", "input_rms")
    assert list(table.columns) == ["body.1"]
    assert table["body.1"].tolist() == [1000.0] * 3
    assert run.sites[("input", "body.1")].type == "Linear"


def test_token_ids_are_no_numbers():
    assert len(trained(torch.tensor([1, 2])).frame("input")) == 0


class Towers(nn.Module):
    """Raw columns join an embedding, and another branch reads data by itself."""

    def __init__(self):
        super().__init__()
        self.embed, self.side = nn.Embedding(5, 4), nn.Linear(2, 4)
        self.frozen, self.after = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 1)
        self.joined = nn.Linear(6, 1)

    def forward(self, ids, columns):
        x = self.joined(torch.cat([self.embed(ids), columns], -1))
        y = self.side(columns)
        return x + self.after(self.frozen(columns.repeat(1, 2))) + y.sum(-1, keepdim=True)


def test_every_trainable_module_that_reads_data_and_concatenations_with_data():
    torch.manual_seed(0)
    model = Towers()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.0)
    columns = torch.tensor([[1.0, 3000.0], [-1.0, -3000.0]])
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1, update_every=1) as scope:
        model(torch.tensor([0, 1]), columns).sum().backward()
        optimizer.step()
    run = scope.run()
    assert not run.meta["errors"]
    peaks = run.frame("input", "input_peak").set_index("site")["value"]
    # What the frozen layer hands on is what the trainable one behind it reads first.
    assert set(peaks.index) == {"joined", "side", "after"}
    assert peaks["joined"] == peaks["side"] == 3000


class Functional(nn.Module):
    """Keeps its weights in a list, and uses them in functions."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(4, 4)) for _ in range(2))

    def forward(self, x):
        for weight in self.weights:
            x = torch.tanh(x @ weight)
        return x


def test_a_model_whose_parameters_are_in_a_list_reads_data():
    model = Functional()
    with gradscope.attach(model, out=None, every=1) as scope:
        model(torch.full((3, 4), 30.0)).sum().backward()
        scope.step()
    table = scope.run().frame(kind="input", metric="input_rms")
    assert table["site"].tolist() == ["(root)"]
    assert table["value"].tolist() == pytest.approx([30.0])
