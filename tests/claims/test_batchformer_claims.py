"""The parts of the claims: the split, the controls, the published network, and the whole path at a tiny scale."""

import pytest
import torch

from etude.claims.training import batchformer as claims
from etude.data.kinds import Examples, ImageData
from etude.lab.trial import Trial


def pictures(per_class: int = 12, num_classes: int = 4, size: int = 12, channels: int = 3) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    splits = []
    for _ in range(3):
        y = torch.arange(num_classes).repeat(per_class)
        splits.append(Examples(torch.rand(len(y), channels, size, size, generator=generator), y))
    return ImageData(*splits, classes=tuple("abcdefgh"[:num_classes]), name="pictures")


def trial(arm: str = "batchformer", *, tuning: bool = False, seed: int = 500, **changes) -> Trial:
    setup = claims.CIFAR.replace(blocks=1, steps=2, batch=8, warmup=1, val_per_class=4, **changes)
    return Trial("batchformer/long_tail@pictures", arm, seed, "full", setup, {"lr": 0.1}, tuning=tuning)


def rows_of(part: Examples, pool: Examples) -> set[int]:
    """Positions in the pool, told by the first pixel."""
    return {int((pool.inputs[:, 0, 0, 0] == image[0, 0, 0]).nonzero()[0, 0]) for image in part.inputs}


def test_the_validation_part_is_balanced_and_apart_from_the_training_set():
    pool, _ = claims.joined(pictures(), 32)
    train, val = claims.long_tailed(trial(tuning=True), pool, 4)
    assert torch.bincount(val.targets).tolist() == [4, 4, 4, 4]
    assert not rows_of(train, pool) & rows_of(val, pool)
    assert sorted(torch.bincount(train.targets).tolist(), reverse=True) == [20, 7, 2, 1]


def test_the_verdicts_training_set_may_use_the_whole_pool_in_a_class_order_of_the_seed():
    pool, _ = claims.joined(pictures(), 32)
    orders = set()
    for seed in range(500, 506):
        train, val = claims.long_tailed(trial(seed=seed), pool, 4)
        counts = torch.bincount(train.targets)
        assert val is None
        assert sorted(counts.tolist(), reverse=True) == [24, 8, 2, 1]
        orders.add(tuple(counts.argsort().tolist()))
    assert len(orders) > 1


def test_small_images_are_not_enlarged_and_digits_are_halved():
    pool, test = claims.joined(pictures(size=12), 32)
    assert pool.inputs.shape[2:] == test.inputs.shape[2:] == (12, 12)
    data = pictures(size=28, channels=1)
    pool, _ = claims.joined(data, 14)
    expected = torch.nn.functional.avg_pool2d(data.train.inputs, 2)
    torch.testing.assert_close(pool.inputs[: len(expected)], expected)


def test_the_published_network_is_resnet_32():
    model = torch.nn.Sequential(claims.resnet(3, 5), torch.nn.Linear(64, 10))
    assert sum(p.numel() for p in model.parameters()) == 464_154
    assert sum(isinstance(module, torch.nn.Conv2d) for module in model.modules()) == 31
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("arm", claims.PAPER.claims["long_tail"].arms)
def test_every_arm_runs_the_published_recipe_and_leaves_nothing_at_test(arm):
    metrics = claims.long_tail(trial(arm), pictures())
    assert metrics["test_difference"] == 0
    assert {"balanced_accuracy", "few", "few_less_rest"} <= metrics.keys()
    assert set(claims.long_tail(trial(arm, tuning=True), pictures())) == {"val_accuracy"}


def test_a_pool_without_enough_images_of_each_class_is_refused():
    data = pictures(per_class=12)
    pool = Examples(data.train.inputs, data.train.targets)
    with pytest.raises(ValueError, match="needs 20 images of each class outside the test part, a class has 12"):
        claims.long_tailed(trial(), pool, 4)


def test_the_control_without_attention_couples_no_samples():
    branch = claims.WithoutAttention(64, dropout=0.0)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (gradient,) = torch.autograd.grad(branch(x)[4].square().sum(), x)
    assert gradient[0].any()
    assert not gradient[1:].any()


def test_the_unshared_control_has_a_classifier_for_each_half_and_is_tested_by_the_plain_one():
    plain, mixed = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
    head, x = claims.Unshared(plain, mixed), torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(head(x), torch.cat([plain(x[:3]), mixed(x[3:])]))
    assert torch.equal(head.eval()(x), plain(x))


def test_rolled_moves_the_batch_by_a_pixel_at_most():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    generator = torch.Generator().manual_seed(0)
    seen = {tuple(claims.rolled(x, generator).flatten().tolist()) for _ in range(100)}
    expected = {tuple(x.roll((i, j), (2, 3)).flatten().tolist()) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    assert seen == expected
