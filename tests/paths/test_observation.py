"""Looking changes nothing, and what can't be measured is refused with the reason."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradscope.errors import GradscopeError, PathwayError
from gradscope.paths import (
    find_softmaxes,
    graded_gradients,
    mean_crossings,
    through,
)


def model():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def loss_of(net, x):
    return F.cross_entropy(net(x)[:, 0], torch.tensor([0, 3, 5]))


def look(loss, targets, gate):
    graded_gradients(loss, targets)
    mean_crossings(loss, targets)
    through(loss, targets, [gate])


def test_training_goes_on_bit_for_bit_as_without_a_look():
    histories = []
    for looking in (False, True):
        net = model()
        optimizer = torch.optim.Adam(net.parameters())
        generator = torch.Generator().manual_seed(1)
        losses = []
        for _ in range(3):
            x = torch.randn(3, 5, 8, generator=generator, requires_grad=True)
            h = net.layers[0](x)
            loss = loss_of(net.layers[1], h)
            if looking:
                state = torch.get_rng_state()
                look(loss, [h, *net.parameters()], h)
                assert torch.equal(torch.get_rng_state(), state)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        histories.append((losses, copy.deepcopy(net.state_dict()), x.grad))
    (losses, state, grad), (losses_seen, state_seen, grad_seen) = histories
    assert losses == losses_seen
    assert torch.equal(grad, grad_seen)
    assert all(torch.equal(state[name], state_seen[name]) for name in state)


def test_nothing_that_others_registered_runs_or_is_written():
    net, x = model(), torch.randn(3, 5, 8, requires_grad=True)
    h = net.layers[0](x)
    h.retain_grad()
    loss = loss_of(net.layers[1], h)
    weight = net.layers[0].linear1.weight
    weight.grad = before = torch.ones_like(weight)
    ran = []
    h.register_hook(ran.append)
    weight.register_hook(ran.append)
    weight.register_post_accumulate_grad_hook(ran.append)
    h.grad_fn.register_hook(lambda *g: ran.append(g))
    h.grad_fn.register_prehook(lambda *g: ran.append(g))
    net.layers[1].register_full_backward_hook(lambda *g: ran.append(g))
    look(loss, [x, h, *net.parameters()], h)
    assert ran == []
    assert h.grad is None
    assert weight.grad is before
    assert torch.equal(before, torch.ones_like(weight))
    assert all(p.grad is None for p in net.parameters() if p is not weight)


def test_results_are_plain_tensors_of_their_own():
    x = torch.randn(4, requires_grad=True)
    h = x * 1
    loss = (h + x).sum()
    graded = graded_gradients(loss, [h, x])
    split = through(loss, [h, x], [h])
    for tensor in (*graded.components, *split.through, *split.avoiding):
        assert not tensor.requires_grad
        tensor.zero_()
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.full((4,), 2.0))


def test_looking_within_a_backward_pass():
    """From a hook of the very pass, with the graph retained."""
    x = torch.randn(4, requires_grad=True)
    h = torch.softmax(x, 0)
    loss = (h * x).sum()
    seen = []
    loss.register_hook(lambda g: seen.append(graded_gradients(loss, [x])))
    loss.backward(retain_graph=True)
    assert torch.allclose(seen[0].components[0].sum(0), x.grad)


def test_grad_mode_does_not_matter():
    x = torch.randn(4, requires_grad=True)
    loss = (torch.softmax(x, 0) * x).sum()
    expected = graded_gradients(loss, [x]).components[0]
    with torch.no_grad():
        assert torch.equal(graded_gradients(loss, [x]).components[0], expected)


def test_a_reference_is_taken_at_its_word_only_if_it_fits():
    x = torch.randn(4, requires_grad=True)
    h = torch.tanh(x)
    loss = (torch.softmax(h, 0) * h).sum()
    (right,) = torch.autograd.grad(loss, [x], retain_graph=True)
    assert graded_gradients(loss, [x], reference=[right]).residual < 1e-6
    h.register_hook(lambda g: g.clamp(-1e-3, 1e-3))
    changed = torch.autograd.grad(loss, [x], retain_graph=True)
    with pytest.raises(PathwayError, match=r"reference for target 0.* a hook on a tensor"):
        graded_gradients(loss, [x], reference=changed)


class Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g / g.norm()


class Unsteady(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.calls = 0
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        ctx.calls += 1
        return g * ctx.calls


@pytest.mark.parametrize("function", [Clipped, Unsteady])
def test_a_backward_that_is_not_linear_or_not_repeatable_is_refused(function):
    x = torch.randn(4, requires_grad=True)
    h = function.apply(x * 2)
    p = torch.softmax(h, 0)
    loss = (p.pow(2) * h).sum()
    for refused in (
        lambda: graded_gradients(loss, [x]),
        lambda: through(loss, [x], [p]),
    ):
        with pytest.raises(PathwayError, match="not linear"):
            refused()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_refused(bad):
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = (torch.softmax(x, 0) * torch.tensor([bad, 1.0]) * x).sum()
    for split in (graded_gradients, mean_crossings):
        with pytest.raises(PathwayError, match=r"target 0, of shape \(2,\), is not finite"):
            split(loss, [x])


def test_a_softmax_so_peaked_that_the_kernel_returns_noise_is_still_split():
    """The sum can't agree with autograd's gradient there; it is right nevertheless."""
    logits = torch.tensor([0.0, 18.0, 1.0, -1.0])
    value = torch.tensor([0.3, -1.2, 0.7, 2.0])

    def gradient(dtype):
        x = logits.to(dtype).requires_grad_()
        return graded_gradients((torch.softmax(x, 0) * value.to(dtype)).sum(), [x])

    found, exact = gradient(torch.float32), gradient(torch.float64)
    error = (found.components[0].double() - exact.components[0]).norm()
    assert error / exact.components[0].norm() < 1e-5
    assert found.residual > 1e-2
    assert exact.residual < 1e-7
    # A wrong reference is noticed even so.
    x = logits.clone().requires_grad_()
    loss = (torch.softmax(x, 0) * value).sum()
    with pytest.raises(PathwayError, match="reference for target 0"):
        graded_gradients(loss, [x], reference=[torch.ones(4)])


def test_one_reference_for_each_target():
    x = torch.randn(4, requires_grad=True)
    with pytest.raises(PathwayError, match="0 reference gradients, 1 targets"):
        graded_gradients(x.sum(), [x], reference=[])


def test_softmaxes_of_nothing():
    with pytest.raises(PathwayError, match="no graph"):
        find_softmaxes(torch.ones(()))


def test_an_unknown_attention_kernel_is_named_with_the_way_out():
    class FancyAttention(torch.autograd.Function):
        """softmax(x) · v"""

        @staticmethod
        def forward(ctx, x, v):
            p = torch.softmax(x, 0)
            ctx.save_for_backward(p, v)
            return p @ v

        @staticmethod
        def backward(ctx, g):
            p, v = ctx.saved_tensors
            return p * (v - p @ v) * g, p * g

    x, v = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = FancyAttention.apply(x, v).exp()
    with pytest.raises(PathwayError, match=r"FancyAttentionBackward .*extra=.*its 2 inputs"):
        graded_gradients(loss, [x, v])
    softmaxes = find_softmaxes(loss, extra={"FancyAttentionBackward": [0]})
    graded = graded_gradients(loss, [x, v], softmaxes)
    assert graded.components[0][1].norm() > 0
    assert graded.components[1][1].norm() == 0


def test_selective_checkpointing_that_can_be_run_once_is_refused():
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    def save_all(ctx, op, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE

    x = torch.randn(4, 4, requires_grad=True)
    h = checkpoint(
        lambda y: torch.softmax(y @ y, -1).exp(),
        x,
        use_reentrant=False,
        context_fn=lambda: create_selective_checkpoint_contexts(save_all),
    )
    with pytest.raises(PathwayError, match="can't be run"):
        graded_gradients(h.sum(), [x])


def test_all_refusals_are_of_the_family_that_the_command_line_knows():
    assert issubclass(PathwayError, GradscopeError)
    assert issubclass(PathwayError, ValueError)


def test_a_negative_limit_is_refused():
    x = torch.randn(4, requires_grad=True)
    with pytest.raises(PathwayError, match="max_order"):
        graded_gradients(x.sum(), [x], max_order=-1)
