"""Cuts between softmaxes, recorded in ordinary training without being asked for."""

import itertools

import pytest
import torch
from torch import nn

import gradscope
from tests.reference.attention_stacks import LOGITS, Stacked

B, N = 3, 20


def trained(model, *inputs):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1) as scope:
        for _ in range(2):
            model(*inputs).float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return scope.run()


def recorded(run):
    return {
        (c["source"], c["sink"]): (c["width"], c["source_width"], c["sink_width"], c["separate"])
        for c in run.meta["cuts"]
    }


def asked_for(model, *inputs):
    cuts = gradscope.bottlenecks(model, lambda: model(*inputs).float().sum())
    return {
        (c.source, c.sink): (c.width, c.source_width, c.sink_width, c.separate)
        for c in cuts
        if c.kind == "softmax"
    }


def findings(run):
    return [f for f in gradscope.analyze(run) if f.rule == "information-bottleneck"]


@pytest.mark.parametrize(("latents", "logits"), list(itertools.product([False, True], LOGITS)))
def test_a_stack_is_cut_as_when_asked_for(latents, logits):
    inputs = torch.randn(B, N, 6), torch.randn(B, 6)
    model = Stacked(3, 6, 9, latents=latents, logits=logits)
    run = trained(model, *inputs)
    assert recorded(run) == asked_for(model, *inputs)
    widths = run.frame(kind="cut", metric="width")
    assert len(widths) == 2
    assert set(widths["step"]) == {0}


class Decoder(nn.Module):
    """Asks a memory anew for every symbol that it writes."""

    def __init__(self, answers):
        super().__init__()
        self.ask, self.score = nn.Linear(12, 6), nn.Linear(6, 1)
        self.cell, self.write = nn.GRUCell(6, 6), nn.Linear(6, 5)
        self.answers = answers

    def forward(self, memory):
        state, written = memory.mean(1), []
        for _ in range(3):
            asked = state[:, None].expand_as(memory)
            latent = torch.tanh(self.ask(torch.cat([memory, asked], -1)))
            p = self.score(latent).softmax(1)
            state = self.cell((p * memory).sum(1), state)
            written.append(self.write(state))
        return torch.stack(written[-self.answers :], 1)


class Hops(nn.Module):
    """A memory network: every hop asks with all that was read so far."""

    def __init__(self):
        super().__init__()
        self.hops, self.answer = (
            nn.ModuleList(nn.Linear(40, 40) for _ in range(3)),
            nn.Linear(40, 60),
        )

    def forward(self, memory, asked):
        for hop in self.hops:
            p = torch.einsum("bnd,bd->bn", hop(memory), asked).softmax(1)
            asked = asked + torch.einsum("bn,bnd->bd", p, memory)
        return self.answer(asked)


def test_a_decoder_that_answers_at_each_step_is_no_stack():
    every_step = trained(Decoder(3), torch.randn(B, N, 6))
    assert [c["separate"] for c in every_step.meta["cuts"]] == [True, True]
    assert [f.severity for f in findings(every_step)] == ["info"]
    last_step = trained(Decoder(1), torch.randn(B, N, 6))
    assert [c["separate"] for c in last_step.meta["cuts"]] == [False, False]
    assert [f.severity for f in findings(last_step)] == ["warning"]


def test_hops_are_a_stack_though_a_residual_passes_each():
    run = trained(Hops(), torch.randn(B, N, 40), torch.randn(B, 40))
    assert [(c["width"], c["separate"]) for c in run.meta["cuts"]] == [(40, False)] * 2
    assert [f.severity for f in findings(run)] == ["warning"]


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_transformer_hands_on_all_positions(batch_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
    x = torch.randn(B, N, 8)
    run = trained(
        nn.TransformerEncoder(layer, 3, enable_nested_tensor=False),
        x if batch_first else x.transpose(0, 1),
    )
    assert [c["width"] for c in run.meta["cuts"]] == [N * 8] * 2
    assert findings(run) == []


def test_asking_adds_the_cut_from_input_to_output():
    model, inputs = Stacked(3, 6, 9), (torch.randn(B, N, 6), torch.randn(B, 6))
    with gradscope.attach(model, optimizer=None, out=None, every=1) as scope:
        model(*inputs).sum().backward()
        scope.step()
        scope.bottlenecks(lambda: model(*inputs).sum())
    kinds = [c["kind"] for c in scope.run().meta["cuts"]]
    assert kinds == ["module", "softmax", "softmax"]
    assert len(scope.run().frame(kind="cut", metric="width")["site"].unique()) == 3


def test_a_model_without_softmax_has_no_cuts():
    run = trained(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(B, 4))
    assert "cuts" not in run.meta
