"""Linear probes: they read what is there, and nothing that is not."""

import numpy as np
import pytest
import torch

import gradscope
from gradscope.probing import probe


def test_a_label_that_is_linear_in_the_features_is_read():
    random = np.random.default_rng(0)
    features = random.normal(size=(600, 20))
    labels = (features @ random.normal(size=(20, 4))).argmax(axis=1)
    found = probe(features, labels)
    assert found.accuracy > 0.8
    assert found.majority < 0.5
    assert found.shuffled < 0.5
    assert found.samples == 300


def test_a_label_that_is_not_there_is_not_read():
    random = np.random.default_rng(0)
    found = probe(random.normal(size=(600, 20)), random.integers(0, 4, 600))
    assert abs(found.accuracy - 0.25) < 0.1


def test_a_parity_is_not_linear():
    random = np.random.default_rng(0)
    features = random.choice([-1.0, 1.0], size=(600, 2))
    found = probe(features, (features.prod(axis=1) > 0).astype(int))
    assert found.accuracy < 0.65


def test_tensors_of_any_shape_and_the_same_answer_twice():
    features = torch.randn(80, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = (features[:, 0, 0] > 0).long()
    assert probe(features, labels) == probe(features.flatten(1).numpy(), labels.tolist())


def test_majority_is_the_commonest_label_of_the_training_half():
    labels = np.array([0] * 90 + [1] * 10)
    features = np.random.default_rng(0).normal(size=(100, 3))
    found = probe(features, labels)
    assert found.majority == pytest.approx(0.9, abs=0.1)


@pytest.mark.parametrize(
    ("features", "labels", "words"),
    [
        (np.zeros((4, 2)), np.zeros(3), "takes features"),
        (np.zeros(4), np.zeros(4), "takes features"),
        (np.zeros((8, 2)), np.zeros(8), "two different labels"),
    ],
)
def test_what_can_not_be_probed_is_told(features, labels, words):
    with pytest.raises(gradscope.GradscopeError, match=words):
        probe(features, labels)
