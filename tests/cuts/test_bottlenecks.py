"""Models whose narrowest place is known, and the rank of the Jacobian as an independent bound."""

import dataclasses
import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradscope.cuts import Cut, bottlenecks
from gradscope.errors import GradscopeError
from tests.reference.attention_stacks import Stacked

B = 3


def cut(model, *inputs, source=None, sink=None, **options):
    found = bottlenecks(model, lambda: model(*inputs), source, sink, **options)
    return found[0]


def mlp(*sizes):
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*layers)


# -- known answers ------------------------------------------------------------------------


def test_chain():
    found = cut(mlp(8, 6, 4, 10), torch.randn(B, 8))
    assert found == Cut("(input)", "(output)", "module", 4, ("1",), ((B, 4),), 8, 10)
    assert found.ratio == 0.5


def test_source_and_sink_are_places_too():
    assert cut(mlp(3, 6, 9), torch.randn(B, 3)).tensors == ("(input)",)
    assert cut(mlp(9, 6, 3), torch.randn(B, 9)).tensors == ("1",)


def test_autoencoder():
    code = nn.Sequential(
        nn.Linear(20, 12),
        nn.ReLU(),
        nn.Linear(12, 3),
        nn.ReLU(),
        nn.Linear(3, 12),
        nn.Linear(12, 20),
    )
    found = cut(code, torch.randn(B, 20))
    assert (found.width, found.tensors) == (3, ("2",))
    assert found.ratio == 3 / 20


class Diamond(nn.Module):
    def __init__(self, top, left, right, bottom):
        super().__init__()
        self.left, self.right = mlp(top, left, bottom), mlp(top, right, bottom)

    def forward(self, x):
        return self.left(x) + self.right(x)


@pytest.mark.parametrize(
    ("sizes", "width", "tensors"),
    [
        ((9, 2, 3, 9), 5, ("left.0", "right.0")),
        ((4, 2, 3, 9), 4, ("(input)",)),
        ((9, 2, 3, 4), 4, ("(output)",)),
        ((9, 9, 1, 9), 9, ("(input)",)),
    ],
)
def test_diamond(sizes, width, tensors):
    found = cut(Diamond(*sizes), torch.randn(B, sizes[0]))
    assert (found.width, found.tensors) == (width, tensors)


class UNet(nn.Module):
    """8² → 4² → 2² and back, with concatenated skips."""

    def __init__(self, skips, width=2, deepest=1):
        super().__init__()
        self.skips = skips
        self.down1, self.down2 = (
            nn.Conv2d(3, width, 3, padding=1),
            nn.Conv2d(width, 8, 3, padding=1),
        )
        self.bottom = nn.Conv2d(8, deepest, 3, padding=1)
        self.up2 = nn.Conv2d(deepest + 8 * skips, 8, 3, padding=1)
        self.up1 = nn.Conv2d(8 + width * skips, 3, 3, padding=1)

    def forward(self, x):  # (B, 3, 8, 8)
        one = self.down1(x).relu()
        two = self.down2(F.max_pool2d(one, 2)).relu()
        deep = self.bottom(F.max_pool2d(two, 2)).relu()
        deep = F.interpolate(deep, scale_factor=2)
        deep = self.up2(torch.cat([deep, two], 1) if self.skips else deep).relu()
        deep = F.interpolate(deep, scale_factor=2)
        return self.up1(torch.cat([deep, one], 1) if self.skips else deep)


def test_unet():
    x = torch.randn(B, 3, 8, 8)
    plain = cut(UNet(skips=False), x)
    assert (plain.width, plain.tensors) == (2 * 2, ("bottom",))
    # the first skip (2 · 8²) alone holds what all else comes from
    skipping = cut(UNet(skips=True), x)
    assert (skipping.width, skipping.tensors) == (2 * 8 * 8, ("down1",))
    # with less to begin with than the skip: the input itself
    assert cut(UNet(skips=True, width=4), x).tensors == ("(input)",)


class ResidualBlock(nn.Module):
    def __init__(self, channels, inside, skip):
        super().__init__()
        self.skip = skip
        self.reduce, self.bn1 = nn.Conv2d(channels, inside, 1, bias=False), nn.BatchNorm2d(inside)
        self.conv, self.bn2 = nn.Conv2d(inside, inside, 3, padding=1), nn.BatchNorm2d(inside)
        self.expand = nn.Conv2d(inside, channels, 1)

    def forward(self, x):
        inside = F.relu(self.bn1(self.reduce(x)), inplace=True)
        inside = self.expand(F.relu(self.bn2(self.conv(inside))))
        return F.relu(x + inside if self.skip else inside)


@pytest.mark.parametrize("training", [True, False])
def test_residual_block(training):
    x = torch.randn(B, 16, 4, 4)
    narrow = cut(ResidualBlock(16, 2, skip=False).train(training), x)
    assert (narrow.width, narrow.tensors) == (2 * 16, ("reduce",))
    around = cut(ResidualBlock(16, 2, skip=True).train(training), x)
    assert (around.width, around.ratio) == (16 * 16, 1)


def test_convolutional_classifier():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 10),
    )
    x = torch.randn(B, 3, 8, 8)
    assert cut(model, x).tensors == ("5",)
    assert cut(model, x).width == 6
    assert cut(model, x, sink="3").width == min(3 * 64, 8 * 16)
    assert cut(model, x, source="0", sink="4").width == 6 * 4


class Recurrent(nn.Module):
    def __init__(self, kind, last):
        super().__init__()
        self.rnn = getattr(nn, kind)(6, 5, batch_first=True)
        self.last, self.head = last, nn.Linear(5, 20)

    def forward(self, x):
        out, _ = self.rnn(x)
        return self.head(out[:, -1] if self.last else out)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent(kind):
    x = torch.randn(B, 7, 6)
    assert cut(Recurrent(kind, last=True), x).width == 5
    whole = cut(Recurrent(kind, last=False), x)
    assert (whole.width, whole.source_width) == (7 * 5, 7 * 6)


class Translator(nn.Module):
    """Only the last state of the encoder starts the decoder."""

    def __init__(self):
        super().__init__()
        self.words, self.targets = nn.Embedding(30, 8), nn.Embedding(30, 8)
        self.encode, self.decode = (nn.LSTM(8, 5, batch_first=True) for _ in range(2))
        self.head = nn.Linear(5, 30)

    def forward(self, source, target):
        _, state = self.encode(self.words(source))
        return self.head(self.decode(self.targets(target), state)[0])


def test_encoder_and_decoder_are_linked_by_the_last_state():
    words, targets = torch.randint(0, 30, (B, 11)), torch.randint(0, 30, (B, 9))
    found = cut(Translator(), words, targets, source="words", sink="head")
    assert found.width == 5 + 5  # h and c
    assert found.tensors == ("encode[1][0]", "encode[1][1]")
    assert found.source_width == 11 * 8


class Language(nn.Module):
    def __init__(self, frozen=False, layers=2, D=16):
        super().__init__()
        self.words, self.positions = nn.Embedding(50, D), nn.Embedding(32, D)
        self.words.requires_grad_(not frozen)
        layer = nn.TransformerEncoderLayer(D, 2, 2 * D, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(D, 50)

    def forward(self, words, attention_mask=None):
        hidden = self.words(words) + self.positions(torch.arange(words.shape[1]))
        padding = None if attention_mask is None else attention_mask == 0
        hidden = self.encoder(hidden, src_key_padding_mask=padding)
        return {"logits": self.head(hidden), "hidden": hidden}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_tokens_come_in_by_their_embedding(frozen, masked):
    words = torch.randint(0, 50, (B, 10))
    given = (words, torch.ones_like(words)) if masked else (words,)
    model = Language(frozen)
    found = bottlenecks(model, lambda: model(*given)["logits"].mean())
    assert found[0].source_width == 10 * 16  # neither positions nor mask
    assert found[0].tensors == ("words",)
    assert [c.source_width for c in found[1:]] == [2 * 10 * 16]
    assert cut(model, *given, sink="(output).logits").sink_width == 10 * 50


def test_an_attention_stack_from_input_to_answer():
    v, h = torch.randn(B, 20, 6), torch.randn(B, 6)
    found = cut(Stacked(2, 6, 9), v, h)
    assert found.source_width == 20 * 6 + 6
    assert found.width == 6  # u² + z², from which the answer is made
    assert cut(Stacked(2, 6, 9), v, h, source="(input).h").source_width == 6
    assert cut(Stacked(2, 6, 9), v, h, source="(input).v").source_width == 20 * 6


# -- an independent bound -----------------------------------------------------------------


class LinearGraph(nn.Module):
    """Vertex i is a linear map of all its parents, to sizes[i] numbers."""

    def __init__(self, sizes, parents):
        super().__init__()
        self.parents = parents
        self.maps = nn.ModuleList(
            nn.Linear(sum(sizes[p] for p in before), size) if before else nn.Identity()
            for size, before in zip(sizes, parents, strict=True)
        )

    def forward(self, x):
        made = [x]
        for linear, before in zip(self.maps[1:], self.parents[1:], strict=True):
            made.append(linear(torch.cat([made[p] for p in before], -1)))
        return made[-1]


@st.composite
def linear_graphs(draw):
    n = draw(st.integers(2, 7))
    parents = [[]] + [
        draw(st.lists(st.integers(0, v - 1), min_size=1, max_size=3, unique=True))
        for v in range(1, n)
    ]
    return draw(st.lists(st.integers(1, 5), min_size=n, max_size=n)), parents


@given(linear_graphs(), st.integers(0, 1000))
@settings(max_examples=60)
def test_the_width_is_the_rank_of_a_generic_linear_network(graph, seed):
    """Linear maps with random weights pass as many numbers as any code could: the cut's width."""
    sizes, parents = graph
    torch.manual_seed(seed)
    model = LinearGraph(sizes, parents).double()
    jacobian = torch.autograd.functional.jacobian(model, torch.randn(sizes[0]).double())
    x = torch.randn(B, sizes[0], dtype=torch.float64)
    assert cut(model, x).width == torch.linalg.matrix_rank(jacobian, rtol=1e-10)


def _jacobian_rank(model, *inputs):
    """Of the model's output in its inputs, for one sample."""
    alone = [x[:1].double() for x in inputs]
    blocks = torch.autograd.functional.jacobian(model.double(), tuple(alone), vectorize=True)
    rows = next(iter(blocks)).shape[: -alone[0].dim()].numel()
    return torch.linalg.matrix_rank(torch.cat([b.reshape(rows, -1) for b in blocks], 1))


@pytest.mark.parametrize(
    ("build", "shapes"),
    [
        (lambda: mlp(8, 6, 4, 10), [(8,)]),
        (lambda: Diamond(9, 2, 3, 9), [(9,)]),
        (lambda: UNet(skips=False), [(3, 8, 8)]),
        (lambda: ResidualBlock(8, 2, skip=False).eval(), [(8, 3, 3)]),
        (lambda: Recurrent("GRU", last=True), [(7, 6)]),
        (lambda: Stacked(2, 6, 9), [(20, 6), (6,)]),
        (lambda: Stacked(2, 6, 9, latents=True), [(20, 6), (6,)]),
    ],
)
def test_no_jacobian_has_a_higher_rank_than_the_width(build, shapes):
    torch.manual_seed(0)
    model, inputs = build(), [torch.randn(B, *shape) for shape in shapes]
    width = cut(model, *inputs).width
    assert 0 < _jacobian_rank(model, *inputs) <= width


# -- batch, names, errors -----------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 7])
def test_widths_do_not_depend_on_the_batch(size):
    v, h = torch.randn(size, 20, 6), torch.randn(size, 6)
    model = Stacked(3, 6, 9)
    widths = [c.width for c in bottlenecks(model, lambda: model(v, h))]
    assert widths == [6, 6, 6]


def test_batch_in_the_second_dimension():
    x = torch.randn(10, B, 16)
    per_token = nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 16))
    assert cut(per_token, x, batch_size=B).width == 10 * 4
    # by itself, only a module that says so can tell
    attends = nn.Sequential(per_token, nn.TransformerEncoderLayer(16, 2, 32))
    assert cut(attends, x).source_width == 10 * 16
    assert cut(nn.GRU(16, 4), x, sink="(output)").source_width == 10 * 16


def test_a_width_need_not_be_whole():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(0, keepdim=True) + 0 * x

    assert cut(Mean(), torch.randn(4, 2), sink="(output)").width == 2

    class Lone(nn.Module):
        def forward(self, x):
            return x.mean(0)

    assert cut(Lone(), torch.randn(4, 2)).width == 0.5


def test_a_module_called_twice():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.narrow = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = self.narrow(self.cell(x))
            return self.cell(F.pad(x, (0, 6)))

    x = torch.randn(B, 8)
    assert cut(Tied(), x, source="cell", sink="cell#1").width == 2
    assert cut(Tied(), x, source="cell#1", sink="cell").width == 0


def test_modules_that_do_not_meet():
    model = Diamond(4, 2, 3, 4)
    found = cut(model, torch.randn(B, 4), source="left.0", sink="right.0")
    assert (found.width, found.tensors, found.ratio) == (0, (), 0)


def test_a_softmax_site_by_name():
    model = Stacked(2, 6, 9)
    v, h = torch.randn(B, 20, 6), torch.randn(B, 6)
    found = cut(model, v, h, source="layers.0:softmax", sink="layers.1:softmax")
    between = bottlenecks(model, lambda: model(v, h))[1]
    named = {"source": "layers.0", "sink": "layers.1", "kind": "softmax", "attended": 20 * 6}
    assert dataclasses.replace(found, **named) == between
    # the module of that path is its output instead: the content vector and the latent
    assert cut(model, v, h, source="layers.0[0]").source_width == 6


def test_parts_of_a_model_called_from_outside():
    class Auto(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = mlp(20, 5), mlp(5, 3, 20)

    model, x = Auto(), torch.randn(B, 20)
    (found,) = bottlenecks(model, lambda: F.mse_loss(model.decoder(model.encoder(x)), x))
    assert (found.width, found.source_width, found.sink_width) == (3, 20, 20)
    (found,) = bottlenecks(
        model, lambda: model.decoder(model.encoder(x)).sum(), "encoder", "decoder.0"
    )
    assert found.width == 3


def test_what_checkpointing_recomputes_in_backward_is_not_seen_twice():
    class Saves(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g = mlp(8, 3, 8), mlp(8, 2, 8)

        def forward(self, x):
            x = checkpoint(self.f, x, use_reentrant=False)
            return checkpoint(self.g, x, use_reentrant=False)

    model, x = Saves(), torch.randn(B, 8)

    def closure():
        loss = model(x).sum()
        loss.backward()
        return loss

    (found,) = bottlenecks(model, closure)
    assert (found.width, found.tensors, found.source_width) == (2, ("g.0",), 8)
    (found,) = bottlenecks(model, closure, sink="f")
    assert (found.width, found.tensors) == (3, ("f.0",))
    with pytest.raises(GradscopeError, match="'f#1'"):
        bottlenecks(model, closure, sink="f#1")

    def twice():
        return closure() + model(x).sum()

    (found,) = bottlenecks(model, twice)
    assert (found.width, found.tensors) == (2 + 2, ("g.0", "g.0#1"))


def test_a_recurrent_loop_in_the_closure():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(6 + 4, 4)

        def forward(self, x, state):
            return torch.tanh(self.f(torch.cat([x, state], -1)))

    model, x = Cell(), torch.randn(5, B, 6)

    def closure():
        state = torch.zeros(B, 4)
        for step in x:
            state = model(step, state)
        return state.sum()

    (found,) = bottlenecks(model, closure)
    # the state that a call passes to the next is neither an input nor an output
    assert found.source_width == 5 * 6 + 4
    assert found.sink_width == found.width == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "frist"}, "did not call a module 'frist'; did you mean 'first'"),
        ({"sink": "never"}, "did not call a module 'never'"),
        ({"sink": "constant"}, "'constant' returned does not depend on the model's input"),
        ({"batch_size": 0}, "batch_size must be a positive integer, not 0"),
    ],
)
def test_what_cannot_be_answered(options, message):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.constant, self.never = (nn.Linear(2, 2) for _ in range(3))

        def forward(self, x):
            return self.first(x) + self.constant(torch.ones(2))

    with pytest.raises(GradscopeError, match=message):
        cut(Constant(), torch.randn(B, 2), **options)


def test_closures_that_do_not_run_the_model():
    model = mlp(4, 2)
    with pytest.raises(GradscopeError, match="forward pass"):
        bottlenecks(model, lambda: None)
    with pytest.raises(GradscopeError, match=r"torch\.no_grad"):
        bottlenecks(model, torch.no_grad()(lambda: model(torch.randn(B, 4))))
    with pytest.raises(GradscopeError, match="closure must be a function"):
        bottlenecks(model, torch.tensor(1.0))
    with pytest.raises(GradscopeError, match=r"takes a torch\.nn\.Module"):
        bottlenecks(lambda x: x, lambda: None)
    lazy = nn.LazyLinear(3)
    with pytest.raises(GradscopeError, match="lazy"):
        bottlenecks(lazy, lambda: lazy(torch.randn(B, 4)))


def test_inputs_that_cannot_be_seen():
    class Box:
        def __init__(self, x):
            self.x = x

    class Opens(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(4, 2)

        def forward(self, box):
            return self.f(box.x)

    model = Opens()
    with pytest.raises(GradscopeError, match="batch_size="):
        bottlenecks(model, lambda: model(Box(torch.randn(B, 4))))
    with pytest.raises(GradscopeError, match="no input of the model leads to its output"):
        bottlenecks(model, lambda: model(Box(torch.randn(B, 4))), batch_size=B)


def test_a_cut_as_primitives():
    found = cut(mlp(8, 6, 4, 10), torch.randn(B, 8)).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found == {
        "source": "(input)",
        "sink": "(output)",
        "kind": "module",
        "width": 4,
        "tensors": ["1"],
        "shapes": [[B, 4]],
        "source_width": 8,
        "sink_width": 10,
        "separate": False,
        "attended": None,
        "ratio": 0.5,
    }


def test_a_cut_in_words():
    found = cut(mlp(8, 6, 4, 10), torch.randn(B, 8))
    assert str(found) == "(input) → (output): 4 of 8 numbers per sample (0.5), through 1"
    many = dataclasses.replace(found, tensors=tuple("abcdef"))
    assert str(many).endswith("through a + b + c + d + 2 more")
