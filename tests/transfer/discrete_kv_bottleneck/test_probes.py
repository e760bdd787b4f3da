"""What the bottleneck is compared with."""

import pytest
import torch
import torch.nn.functional as F

from etude.transfer.discrete_kv_bottleneck import NearestMean, Reservoir, learn_probe, probe


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_nearest_mean_is_that_of_the_rows_however_they_come():
    z, labels = torch.randn(60, 4, generator=gen()), torch.randint(3, (60,), generator=gen(1))
    whole, parts = NearestMean(4, 3).update(z, labels), NearestMean(4, 3)
    for rows in torch.randperm(60, generator=gen(2)).split(7):
        parts.update(z[rows], labels[rows])
    means = torch.stack([z[labels == label].mean(dim=0) for label in range(3)])
    expected = -torch.stack([(z - mean).norm(dim=1) for mean in means], dim=1)
    torch.testing.assert_close(whole(z), expected)
    torch.testing.assert_close(parts(z), expected)


def test_a_class_that_has_not_come_is_never_the_nearest():
    learner = NearestMean(4, 3)
    with pytest.raises(ValueError, match="no class has come yet"):
        learner(torch.zeros(1, 4))
    learner.update(torch.ones(5, 4), torch.full((5,), 2))
    assert learner(torch.zeros(3, 4)).argmax(dim=1).tolist() == [2, 2, 2]


def test_the_reservoir_is_an_even_sample_of_what_has_been_seen():
    reservoir = Reservoir(30, gen())
    for phase in range(3):
        reservoir.take(torch.arange(100) + 100 * phase)
        assert len(reservoir.rows.unique()) == 30
    assert torch.bincount(reservoir.rows // 100).tolist() == pytest.approx([10, 10, 10], abs=4)
    assert set(reservoir.draw(200).tolist()) <= set(reservoir.rows.tolist())
    with pytest.raises(ValueError, match="nothing has been taken in"):
        Reservoir(3).draw(1)
    with pytest.raises(ValueError, match="size must be positive, got 0"):
        Reservoir(0)


def test_a_probe_learns_by_plain_clipped_descent_in_the_drawn_order():
    z, labels = torch.randn(32, 4, generator=gen()), torch.randint(3, (32,), generator=gen(1))
    torch.manual_seed(0)
    ours, naive = probe(4, 3), probe(4, 3)
    naive.load_state_dict(ours.state_dict())
    options = {"epochs": 2, "lr": 0.5, "batch_size": 8, "clip": 0.1, "generator": gen(5)}
    assert learn_probe(ours, z, labels, [torch.arange(32)], after=lambda phase: phase, **options) == [0]
    order = gen(5)
    for _ in range(2):
        for rows in torch.randperm(32, generator=order).split(8):
            naive.zero_grad()
            F.cross_entropy(naive(z[rows]), labels[rows], label_smoothing=0.1).backward()
            torch.nn.utils.clip_grad_norm_(naive.parameters(), 0.1)
            with torch.no_grad():
                for parameter in naive.parameters():
                    parameter -= 0.5 * parameter.grad
    for one, other in zip(ours.parameters(), naive.parameters()):
        torch.testing.assert_close(one, other)


def test_replay_keeps_an_old_class_that_plain_training_forgets():
    labels = torch.arange(200) // 100
    z = torch.randn(200, 4, generator=gen()) + 3 * torch.eye(4)[labels]
    kept = []
    for replay in (None, Reservoir(20, gen())):
        torch.manual_seed(0)
        model = probe(4, 2)
        learn_probe(model, z, labels, [torch.arange(100), torch.arange(100, 200)], epochs=10, lr=0.5, batch_size=20,
                    generator=gen(1), replay=replay)  # fmt: skip
        kept.append((model(z[:100]).argmax(dim=1) == 0).double().mean().item())
    assert kept[0] < 0.5 < 0.9 < kept[1]


def test_the_hidden_layer_has_as_many_units_as_asked():
    assert [layer.out_features for layer in probe(4, 3, 128)[::2]] == [128, 3]
