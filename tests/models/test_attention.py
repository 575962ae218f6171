import pytest
import torch

from gradscope.models import Attention
from tests.reference.attention import attend

B, N, D, U, H = 3, 5, 4, 2, 6


@pytest.mark.parametrize("previous_dim", [0, 3])
def test_matches_loops(previous_dim):
    torch.manual_seed(0)
    layer = Attention(D, U, H, previous_dim).double()
    v, u = torch.randn(B, N, D).double(), torch.randn(B, U).double()
    before = torch.randn(B, N, previous_dim).double() if previous_dim else None
    got = layer(v, u, before)
    for b in range(B):
        want = attend(
            layer, v[b].tolist(), u[b].tolist(), before[b].tolist() if previous_dim else None
        )
        for name, field, expected in zip(got._fields, got, want, strict=True):
            torch.testing.assert_close(field[b], torch.tensor(expected).double(), msg=name)


def test_previous_latent_is_a_concatenation():
    """The sum of linear maps is one linear map of [v_i; u; s'_i], as the paper writes it."""
    torch.manual_seed(1)
    layer = Attention(D, U, H, previous_dim=3).double()
    v, u = torch.randn(B, N, D).double(), torch.randn(B, U).double()
    before = torch.randn(B, N, 3).double()
    joined = torch.cat([v, u.unsqueeze(1).expand(-1, N, -1), before], dim=2)
    parts = (layer.from_features, layer.from_query, layer.from_previous)
    weight = torch.cat([part.weight for part in parts], dim=1)
    convolved = torch.conv1d(joined.transpose(1, 2), weight.unsqueeze(2), layer.from_query.bias)
    torch.testing.assert_close(layer(v, u, before).latent, convolved.transpose(1, 2).tanh())


def test_gradients_are_right():
    torch.manual_seed(2)
    layer = Attention(D, U, H, previous_dim=3).double()
    inputs = [torch.randn(*s).double().requires_grad_() for s in ((B, N, D), (B, U), (B, N, 3))]
    assert torch.autograd.gradcheck(lambda *x: tuple(layer(*x)), inputs)


def test_weights_are_a_distribution_and_content_lies_among_the_features():
    torch.manual_seed(3)
    v = 10 * torch.randn(B, N, D)
    content, weights, _ = Attention(D, U, H)(v, 10 * torch.randn(B, U))
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(B))
    assert (content <= v.amax(dim=1)).all()
    assert (content >= v.amin(dim=1)).all()


def test_order_of_positions_does_not_matter():
    torch.manual_seed(4)
    layer, order = Attention(D, U, H).double(), torch.randperm(N)
    v, u = torch.randn(B, N, D).double(), torch.randn(B, U).double()
    there, shuffled = layer(v, u), layer(v[:, order], u)
    torch.testing.assert_close(shuffled.content, there.content)
    torch.testing.assert_close(shuffled.weights, there.weights[:, order])
    torch.testing.assert_close(shuffled.latent, there.latent[:, order])


def test_a_previous_latent_state_goes_with_a_layer_made_for_it():
    v, u, before = torch.randn(B, N, D), torch.randn(B, U), torch.randn(B, N, 3)
    with pytest.raises(ValueError, match="pass `previous`"):
        Attention(D, U, H, previous_dim=3)(v, u)
    with pytest.raises(ValueError, match="previous_dim"):
        Attention(D, U, H)(v, u, before)


def test_a_query_steers_by_the_curvature_of_tanh_alone(monkeypatch):
    torch.manual_seed(5)
    layer = Attention(D, U, H).double()
    v, u = torch.randn(B, N, D).double(), torch.randn(B, U).double().requires_grad_()

    def steering():
        return torch.autograd.grad(layer(v, u).weights.square().sum(), u)[0].norm()

    assert steering() > 1e-3
    monkeypatch.setattr(torch, "tanh", lambda x: x)
    assert steering() < 1e-15
