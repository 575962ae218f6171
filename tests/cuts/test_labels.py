"""Names of tensors."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradscope.cuts import Labels, bottlenecks, cut_between, tensor_graph
from gradscope.cuts.sites import softmax_sites
from gradscope.graph.walk import walk

B = 3


def graph_of(x, output):
    graph = walk([output.grad_fn])
    return tensor_graph(graph, {(graph.index[x.grad_fn], 0)})


def place_of(tensors, tensor):
    return tensors.graph.index[tensor.grad_fn], tensor.output_nr


def test_operations_are_numbered_in_forward_order():
    x = torch.randn(B, 4, requires_grad=True).clone()
    first = x.tanh()
    second = first.tanh()
    third = (second + first).tanh()
    tensors = graph_of(x, third)
    labels = Labels(tensors, {})
    names = [labels[tensors.at[place_of(tensors, t)]] for t in (x, first, second, third)]
    assert names == ["clone", "tanh", "tanh#1", "tanh#2"]


def test_names_that_are_given_win():
    x = torch.randn(B, 4, requires_grad=True).clone()
    hidden = x.tanh()
    flat = hidden.reshape(-1)
    tensors = graph_of(x, flat.sigmoid())
    at = tensors.at[place_of(tensors, hidden)]
    assert Labels(tensors, {place_of(tensors, hidden): "hidden"})[at] == "hidden"
    # a view's name serves, too, and the tensor's own goes before it
    assert Labels(tensors, {place_of(tensors, flat): "flat"})[at] == "flat"
    assert Labels(tensors, {place_of(tensors, flat): "flat"}).shape(at) == (B * 4,)
    both = Labels(tensors, {place_of(tensors, flat): "flat", place_of(tensors, hidden): "hidden"})
    assert both[at] == "hidden"
    assert both.shape(at) == (B, 4)
    made = Labels(tensors, {}, lambda place: f"made:{place[1]}")
    assert made[at] == "made:0#1"  # made:0 is the source


def test_a_broadcast_lends_its_name_but_not_its_shape():
    x = torch.randn(B, 4, requires_grad=True).clone()
    wide = x.tanh()[:, None].expand(-1, 9, -1)
    tensors = graph_of(x, wide.sigmoid())
    labels = Labels(tensors, {place_of(tensors, wide): "wide"})
    (at,) = [t for t in range(len(tensors.places)) if labels[t] == "wide"]
    assert labels.shape(at) == (B, 4)


def test_softmaxes_without_modules():
    q = torch.randn(B, 2, 5, 4, requires_grad=True).clone()
    z = F.scaled_dot_product_attention(q, q, q)
    z = F.scaled_dot_product_attention(z, z, z)
    tensors = graph_of(q, z)
    labels, sites = Labels(tensors, {}), softmax_sites(tensors)
    assert labels.sites(sites) == ["(outside):softmax", "(outside):softmax#1"]
    assert [labels[s.probabilities] for s in sites] == ["softmax", "softmax#1"]
    found = cut_between(
        tensors, labels, ("a", sites[0].latents * 2), ("b", sites[1].latents), "softmax", B
    )
    assert found.tensors == ("clone",)  # all of q passes by the values
    assert found.width == found.source_width == 2 * 5 * 4


def test_equally_narrow_places():
    """Few tensors rather than many, a module's output rather than another, the source's side."""

    class Model(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.start, self.end, self.inner = nn.Linear(9, 4), nn.Linear(4, 9), inner

        def forward(self, x):
            x = self.inner(self.start(x))
            return self.end(x)

    class Inner(nn.Module):
        def __init__(self, f):
            super().__init__()
            self.f = f

        def forward(self, x):
            return self.f(x)

    def name(f):
        model, x = Model(Inner(f)), torch.randn(B, 9)
        return bottlenecks(model, lambda: model(x))[0].tensors

    assert name(lambda x: x.tanh().exp()) == ("start",)
    assert name(lambda x: x.repeat(1, 2)[:, :4]) == ("start",)
    model = nn.Sequential(nn.Linear(9, 4), nn.Linear(4, 9))
    x = torch.randn(B, 9)
    (found,) = bottlenecks(model, lambda: model(x), "0")
    assert found.tensors == ("0",)

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.end = nn.Linear(9, 2), nn.Linear(9, 2), nn.Linear(4, 9)

        def forward(self, x):
            return self.end(torch.cat([self.left(x), self.right(x)], 1))

    model = Halves()
    (found,) = bottlenecks(model, lambda: model(x))
    assert found.tensors == ("(output):cat",)


@pytest.mark.parametrize("inputs", [1, 2])
def test_inputs_have_names(inputs):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(2, 9)

        def forward(self, image, question=None):
            return self.f(image) + (0 if question is None else self.f(question))

    model = Sum()
    given = [torch.randn(B, 2) for _ in range(inputs)]
    (found,) = bottlenecks(model, lambda: model(*given))
    expected = ("(input)",) if inputs == 1 else ("(input).image", "(input).question")
    assert found.tensors == expected
