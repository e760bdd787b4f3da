"""Rewards: what they depend on, what they do not see, what is remembered."""

import copy

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from sklearn.linear_model import Ridge

from etude.data.kinds import Examples, ImageData
from etude.nas.nasnet import NASNET_A, CachedEvaluator, Genotype, RandomFeatureEvaluator, TrainEvaluator
from etude.nas.nasnet import evaluators as module


@pytest.fixture(scope="module")
def data():
    """Three classes of 8 x 8 images: a bright row, column or corner, in noise."""
    generator = torch.Generator().manual_seed(0)

    def split(n):
        targets = torch.arange(n) % 3
        x = 0.5 * torch.rand(n, 1, 8, 8, generator=generator)
        x[targets == 0, :, 3] += 0.4
        x[targets == 1, :, :, 3] += 0.4
        x[targets == 2, :, :3, :3] += 0.4
        return Examples(x, targets)

    return ImageData(split(60), split(45), split(30), classes=("row", "column", "corner"), name="bars")


def test_random_features_are_read_by_a_ridge_regression(data, monkeypatch):
    kept = []
    original = module._Features.forward
    monkeypatch.setattr(module._Features, "forward", lambda self, x: kept.append(original(self, x)) or kept[-1])
    evaluator = RandomFeatureEvaluator(data, ridge=2.0)
    reward = evaluator(Genotype.random(1), 0)
    train, val = (part.double().numpy() for part in kept)
    assert train.shape == (60, evaluator.num_features(Genotype.random(1)))
    mean, std = train.mean(axis=0), np.maximum(train.std(axis=0), 1e-12)
    peer = Ridge(alpha=2.0).fit((train - mean) / std, np.eye(3)[data.train.targets.numpy()])
    predicted = peer.predict((val - mean) / std).argmax(axis=1)
    assert reward == pytest.approx(np.mean(predicted == data.val.targets.numpy()))


def test_the_cheap_reward_depends_on_architecture_and_seed_alone(data):
    evaluator = RandomFeatureEvaluator(data)
    genotypes = [Genotype.random(seed) for seed in range(4)]
    before = torch.get_rng_state()
    first = [evaluator(genotype, 0) for genotype in genotypes]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert [evaluator(genotype, 0) for genotype in genotypes] == first
    assert len(set(first)) > 1
    assert genotypes[0].canonical() != genotypes[0]
    assert evaluator(genotypes[0].canonical(), 0) == first[0]
    spoilt = ImageData(
        data.train, data.val, Examples(data.test.inputs.flip(3), data.test.targets.roll(1)), data.classes, "bars"
    )
    assert RandomFeatureEvaluator(spoilt)(genotypes[0], 0) == first[0]
    assert evaluator.score(genotypes[0], 0, data.val) == first[0]
    assert RandomFeatureEvaluator(data, project=2)(NASNET_A, 0) <= 1
    assert evaluator.num_features(NASNET_A) == 4 * 8


def test_the_papers_reward_is_the_accuracy_of_a_trained_child(data):
    options = {"cells_per_stage": 1, "filters": 2, "epochs": 2}
    evaluator = TrainEvaluator(data, **options, training={"optimizer": "adamw", "lr": 1e-2, "batch_size": 20})
    genotype = Genotype.random(3, blocks=1)
    child = evaluator.train(genotype, 5).eval()
    with torch.no_grad():
        expected = (child(data.val.inputs).argmax(dim=1) == data.val.targets).double().mean().item()
    assert evaluator(genotype, 5) == pytest.approx(expected)
    assert "epochs=2" in repr(evaluator)


def test_rewards_are_remembered_by_canonical_genotype_and_seed(tmp_path):
    calls = []

    def reward(genotype, seed):
        calls.append(seed)
        return None if seed == 9 else 0.25 + seed

    file = tmp_path / "cache" / "rewards.jsonl"
    cached = CachedEvaluator(reward, file)
    genotype = Genotype.random(0)
    swapped = Genotype(tuple(block.swapped() for block in genotype.normal), genotype.reduction)
    assert [cached(genotype, 0), cached(swapped, 0), cached(genotype, 1), cached(genotype, 9)] == [
        0.25,
        0.25,
        1.25,
        None,
    ]
    assert (calls, cached.hits, cached.misses) == ([0, 1, 9], 1, 3)
    with file.open("a") as handle:
        handle.write('{"evaluator": "torn')
    again = CachedEvaluator(reward, file)
    assert [again(genotype, seed) for seed in (0, 1, 9, 2)] == [0.25, 1.25, None, 2.25]
    assert calls == [0, 1, 9, 2]
    assert len(CachedEvaluator(reward, file).rewards) == 4
    assert CachedEvaluator(copy.copy, file).rewards == {}  # another evaluator's are not its own


def test_bad_arguments_are_refused(data):
    for options in ({"ridge": 0}, {"widths": (0, 8)}, {"project": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            RandomFeatureEvaluator(data, **options)
    lazy = ImageData(
        torch.utils.data.TensorDataset(data.train.inputs, data.train.targets), data.val, data.test, data.classes, "lazy"
    )
    with pytest.raises(TypeError, match="in memory, got TensorDataset"):
        RandomFeatureEvaluator(lazy)
    with pytest.raises(ValueError, match="'lion'"):
        TrainEvaluator(data, filters=2, training={"optimizer": "lion"})(NASNET_A, 0)
