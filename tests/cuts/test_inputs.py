"""How inputs of all kinds come into the graph."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from gradscope.cuts import bottlenecks

B, N = 3, 5


def source_width(model, *args, **kwargs):
    return bottlenecks(model, lambda: model(*args, **kwargs))[0].source_width


class Reads(nn.Module):
    """`read` makes floats (B, 4) of whatever the model is given."""

    def __init__(self, read):
        super().__init__()
        self.read, self.f = read, nn.Linear(4, 2)

    def forward(self, x):
        return self.f(self.read(x))


@dataclass
class Batch:
    x: Tensor
    name: str = "batch"


Pair = namedtuple("Pair", "x y")


@pytest.mark.parametrize(
    ("wrap", "read"),
    [
        (lambda x: x, lambda x: x),
        (lambda x: [x, 1], lambda b: b[0]),
        (lambda x: (None, x), lambda b: b[1]),
        (lambda x: {"a": {"b": x}}, lambda b: b["a"]["b"]),
        (lambda x: OrderedDict(x=x), lambda b: b["x"]),
        (lambda x: UserDict(x=x), lambda b: b["x"]),
        (lambda x: Pair(x, 2), lambda b: b.x),
        (Batch, lambda b: b.x),
    ],
)
def test_containers(wrap, read):
    x = torch.randn(B, 4)
    batch = wrap(x)
    assert source_width(Reads(read), batch) == 4
    assert read(batch) is x  # what the caller holds is left alone
    assert not x.requires_grad


@pytest.mark.parametrize(
    ("given", "read", "width"),
    [
        (torch.randint(0, 255, (B, 4), dtype=torch.uint8), lambda x: x.float() / 255, 4),
        (torch.randint(0, 9, (B, 4)), lambda x: x / 9, 4),
        (torch.randint(0, 9, (B, 4)), lambda x: x.to(torch.float64).float().sub_(1), 4),
        (torch.randint(0, 4, (B,)), lambda x: F.one_hot(x, 4).float(), 4),
        (torch.rand(B, 4) > 0.5, lambda x: x.float(), 4),
        (torch.randint(0, 9, (B, 2)), lambda x: torch.cat([x, x], 1) * 0.5, 4),
        (torch.randn(B, 4), lambda x: x.mul_(2), 4),
        (torch.randn(B, 4), lambda x: x * torch.from_numpy(np.sign(x.numpy())), 4),
        (torch.randn(B, 4), lambda x: x + float(np.asarray(x).max()) + x.tolist()[0][0], 4),
        (torch.randn(B, 2, 2), lambda x: x.flatten(1), 4),
        (torch.randn(B, 4, requires_grad=True), lambda x: x, 4),
        (torch.randn(B, 4, dtype=torch.float64), lambda x: x.float(), 4),
        (torch.randn(B, 4, dtype=torch.complex64), lambda x: x.abs(), 4),
    ],
)
def test_kinds_of_numbers(given, read, width):
    before = given.clone()
    assert source_width(Reads(read), given) == width
    if not given.is_complex():
        assert torch.equal(given, before)


def test_inputs_by_keyword():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g = nn.Linear(4, 2), nn.Linear(3, 2)

        def forward(self, image, *, question):
            return self.f(image) + self.g(question)

    model = Two()
    x, y = torch.randn(B, 4), torch.randn(B, 3)
    assert source_width(model, x, question=y) == 7
    assert source_width(model, question=y, image=x) == 7
    (found,) = bottlenecks(model, lambda: model(x, question=y), "(input).question")
    assert (found.source_width, found.tensors) == (3, ("g",))


class Reading(nn.Module):
    """Embeds words and whatever else, and sums."""

    def __init__(self):
        super().__init__()
        self.words, self.places, self.f = nn.Embedding(9, 4), nn.Embedding(N, 4), nn.Linear(4, 2)

    def forward(self, words, positions=None, mask=None, bias=None):
        positions = torch.arange(words.shape[1]) if positions is None else positions
        hidden = self.words(words.clamp(min=1)) + self.places(positions)
        if mask is not None:
            hidden = hidden * mask[..., None]
        if bias is not None:
            hidden = hidden + bias
        return self.f(hidden.mean(1))


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"positions": torch.arange(N)[None]},
        {"mask": torch.ones(B, N)},
        {"mask": torch.ones(B, N, dtype=torch.int64)},
        {"bias": torch.randn(1, N, 4)},
    ],
)
def test_positions_masks_and_constants_are_no_inputs(others):
    assert source_width(Reading(), torch.randint(0, 9, (B, N)), **others) == N * 4


def test_masks_that_the_model_makes_are_no_inputs():
    class Pads(Reading):
        def forward(self, words):
            return super().forward(words, mask=(words != 0).float())

    assert source_width(Pads(), torch.randint(0, 9, (B, N))) == N * 4


def test_look_ups_in_what_came_from_the_input_are_no_inputs():
    class Gathers(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.f = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, words, spans):
            hidden = self.words(words)
            picked = hidden.gather(1, spans[..., None].expand(-1, -1, 4))
            return self.f(picked.mean(1)) + self.f(hidden[:, spans[0]].mean(1))

    words, spans = torch.randint(0, 9, (B, N)), torch.randint(0, N, (B, 2))
    assert source_width(Gathers(), words, spans) == N * 4


def test_a_part_without_gradients_before_the_rest():
    """What autograd first sees of the input is where it comes in."""

    class Frozen(nn.Module):
        def __init__(self, unsee):
            super().__init__()
            self.backbone, self.f, self.unsee = nn.Linear(9, 4), nn.Linear(4, 2), unsee

        def forward(self, x):
            if self.unsee == "no_grad":
                with torch.no_grad():
                    hidden = self.backbone(x)
            else:
                hidden = self.backbone(x)
                hidden = hidden.detach() if self.unsee == "detach" else hidden
            return self.f(hidden) + self.f(hidden * 2)  # one input, read twice

    x = torch.randn(B, 9)
    assert source_width(Frozen("no_grad"), x) == 4
    assert source_width(Frozen("detach"), x) == 4
    assert source_width(Frozen(""), x) == 9


def test_straight_through_estimators():
    class Rounds(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g = nn.Linear(9, 4), nn.Linear(4, 9)

        def forward(self, x):
            z = self.f(x)
            return self.g(z + (z.round() - z).detach())

    (found,) = bottlenecks(model := Rounds(), lambda: model(torch.randn(B, 9)))
    assert (found.source_width, found.width, found.tensors) == (9, 4, ("f",))


def test_packed_sequences():
    class Packs(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(6, 4, batch_first=True)

        def forward(self, x, lengths):
            _, (h, _) = self.rnn(pack_padded_sequence(x, lengths, batch_first=True))
            return h

    found = bottlenecks(model := Packs(), lambda: model(torch.randn(B, N, 6), [5, 4, 2]))[0]
    assert (found.source_width, found.width) == (N * 6, 4)


def test_inside_inference_mode():
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4))
    with torch.inference_mode():
        x = torch.randn(B, 4)
        assert bottlenecks(model, lambda: model(x))[0].width == 2


def test_under_autocast():
    model = nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2), nn.Linear(2, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bottlenecks(model, lambda: model(torch.randn(B, 4)))[0].width == 2


def test_compiled_models_are_seen_inside():
    inner = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4))
    model = torch.compile(inner, backend="eager")
    x = torch.randn(B, 4)
    model(x)
    found = bottlenecks(model, lambda: model(x))[0]
    assert (found.width, found.tensors) == (2, ("0",))
