import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.transfer.d2nwg import (
    ModelZoo,
    WeightCodec,
    batched_accuracy,
    batched_logits,
    batched_loss,
    best_on_support,
    initial_weights,
    nearest_by_features,
    nearest_by_support,
    recalibrate_bn,
    support_losses,
    train_networks,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def many(module, nets=4, rows=6, features=5, seed=0):
    g = generator(seed)
    codec = WeightCodec(module)
    vectors = 0.3 * torch.randn(nets, codec.num_params, generator=g)
    x = torch.randn(nets, rows, features, generator=g)
    y = torch.randint(3, (nets, rows), generator=g)
    return codec, vectors, x, y


def test_networks_trained_together_equal_networks_trained_alone():
    module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    codec, start, x, y = many(module)
    together = train_networks(module, codec, start, x, y, steps=12, lr=0.05, l2=1e-2)
    for index in range(len(start)):
        net = codec.load(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), start[index])
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        for _ in range(12):
            optimizer.zero_grad()
            penalty = sum(weight.square().sum() for weight in net.parameters())
            (F.cross_entropy(net(x[index]), y[index]) + 1e-2 * penalty).backward()
            optimizer.step()
        torch.testing.assert_close(together[index], codec.flatten(net), rtol=1e-4, atol=1e-5)
    assert torch.equal(train_networks(module, codec, start, x, y, steps=0, lr=1.0), start)


def test_weights_are_shown_after_the_steps_that_were_asked_for():
    module = nn.Linear(5, 3)
    codec, start, x, y = many(module)
    seen = {}
    at = {step: lambda weights, step=step: seen.update({step: weights.clone()}) for step in (0, 1, 3)}
    end = train_networks(module, codec, start, x, y, steps=3, lr=0.1, at=at)
    assert torch.equal(seen[0], start)
    assert torch.equal(seen[3], end)
    assert torch.equal(seen[1], train_networks(module, codec, start, x, y, steps=1, lr=0.1))


def test_batched_evaluation_equals_a_loop_over_networks():
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Dropout(0.9), nn.Linear(4, 3))
    codec, vectors, x, y = many(module)
    logits, accuracy, loss = (call(module, codec, vectors, x, *more) for call, more in
                              ((batched_logits, ()), (batched_accuracy, (y,)), (batched_loss, (y,))))  # fmt: skip
    for index, vector in enumerate(vectors):
        net = codec.load(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Dropout(0.9), nn.Linear(4, 3)), vector).eval()
        torch.testing.assert_close(logits[index], net(x[index]))
        torch.testing.assert_close(accuracy[index], (net(x[index]).argmax(1) == y[index]).float().mean())
        torch.testing.assert_close(loss[index], F.cross_entropy(net(x[index]), y[index]))


def test_unseen_labels_and_bad_budgets_are_refused():
    module = nn.Linear(5, 3)
    codec, vectors, x, y = many(module)
    with pytest.raises(ValueError, match=r"labels must lie in 0..2.*got 0..7"):
        batched_accuracy(module, codec, vectors, x, torch.where(y == 0, 0, 7))
    with pytest.raises(ValueError, match=r"labels must lie in 0..2"):
        train_networks(module, codec, vectors, x, y + 1, steps=1, lr=0.1)
    with pytest.raises(ValueError, match="steps >= 0"):
        train_networks(module, codec, vectors, x, y, steps=-1, lr=0.1)


def test_starts_are_zero_or_shared_or_random_and_repeat():
    module = nn.Linear(5, 3)
    codec = WeightCodec(module)
    assert not initial_weights(module, codec, 3, kind="zero", generator=generator()).any()
    shared = initial_weights(module, codec, 3, generator=generator())
    assert torch.equal(shared[0], shared[2])
    random = initial_weights(module, codec, 3, kind="random", generator=generator())
    assert not torch.equal(random[0], random[1])
    assert torch.equal(random, initial_weights(module, codec, 3, kind="random", generator=generator()))
    assert random.abs().max() <= 5**-0.5
    deep = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="stay equal"):
        initial_weights(deep, WeightCodec(deep), 2, kind="zero", generator=generator())
    with pytest.raises(ValueError, match="kind must be"):
        initial_weights(module, codec, 2, kind="ones", generator=generator())


def test_the_zoo_is_stored_split_by_data_set_and_refuses_bad_networks(tmp_path):
    module = nn.Linear(5, 3)
    codec, vectors, _, _ = many(module)
    zoo = ModelZoo(codec)
    zoo.add(vectors, torch.tensor([0, 0, 1, 2]), accuracy=torch.tensor([0.1, 0.2, 0.3, 0.4]))
    zoo.add(module, 7, accuracy=0.5)
    assert len(zoo) == 5
    assert zoo.scale == pytest.approx(float(zoo.vectors.std(correction=0)))
    torch.testing.assert_close(zoo.mean, zoo.vectors.mean(dim=0))
    zoo.save(tmp_path / "zoo.safetensors")
    again = ModelZoo.load(tmp_path / "zoo.safetensors", codec)
    assert torch.equal(again.vectors, zoo.vectors)
    assert torch.equal(again.keys, zoo.keys)
    assert torch.equal(again.metrics["accuracy"], zoo.metrics["accuracy"])
    train, held = zoo.split(torch.tensor([0]))
    assert held.keys.tolist() == [0, 0]
    assert train.keys.tolist() == [1, 2, 7]
    with pytest.raises(ValueError, match="both sides"):
        zoo.split(torch.tensor([99]))
    with pytest.raises(ValueError, match="tensors"):
        ModelZoo.load(tmp_path / "zoo.safetensors", WeightCodec(nn.Linear(4, 3)))
    with pytest.raises(ValueError, match="1 of 2 networks have NaN"):
        zoo.add(torch.stack([vectors[0], vectors[0] * float("nan")]), torch.tensor([1, 2]), accuracy=torch.ones(2))
    with pytest.raises(ValueError, match="keeps the metrics"):
        zoo.add(module, 3)
    with pytest.raises(ValueError, match="accuracy must have one entry"):
        zoo.add(vectors, torch.arange(4), accuracy=1.0)
    with pytest.raises(ValueError, match="empty"):
        _ = ModelZoo(codec).scale


def test_the_nearest_network_is_the_one_of_least_loss_on_the_support():
    module = nn.Linear(5, 3)
    codec, vectors, _, _ = many(module, nets=30)
    support = torch.randn(6, 3, 2, 5, generator=generator(1))
    targets = torch.arange(3).repeat_interleave(2)
    naive = torch.stack(
        [torch.stack([F.cross_entropy(F.linear(s.flatten(0, 1), v[:15].view(3, 5), v[15:]), targets) for s in support])
         for v in vectors]
    )  # fmt: skip
    torch.testing.assert_close(support_losses(module, codec, vectors, support, chunk=7), naive)
    assert torch.equal(nearest_by_support(module, codec, vectors, support), naive.argmin(dim=0))
    own = vectors.view(6, 5, -1)
    best = best_on_support(module, codec, own, support)
    for index in range(6):
        assert torch.equal(best[index], own[index, naive[index * 5 : index * 5 + 5, index].argmin()])


def test_masked_rows_of_a_support_do_not_count():
    module = nn.Linear(5, 3)
    codec, vectors, _, _ = many(module)
    support = torch.randn(2, 3, 4, 5, generator=generator(1))
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[:, :, 3] = False
    expected = support_losses(module, codec, vectors, support[:, :, :3])
    torch.testing.assert_close(support_losses(module, codec, vectors, support, mask), expected)


def test_the_nearest_data_set_has_the_nearest_class_means_in_their_order():
    means = torch.randn(10, 2, 4, generator=generator())
    support = means[[3, 8], :, None] + 1e-3 * torch.randn(2, 2, 5, 4, generator=generator(1))
    assert nearest_by_features(means, support).tolist() == [3, 8]
    assert nearest_by_features(torch.cat([means, means.flip(1)]), support.flip(1)).tolist() == [13, 18]


def test_recalibrated_statistics_are_those_of_the_inputs():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).eval()
    x = torch.randn(64, 4)
    recalibrate_bn(net, x)
    hidden = net[0](x)
    torch.testing.assert_close(net[1].running_mean, hidden.mean(dim=0))
    torch.testing.assert_close(net[1].running_var, hidden.var(dim=0))
    assert not any(part.training for part in net.modules())
    assert net[1].momentum == 0.1
    with pytest.raises(ValueError, match="no batch norm"):
        recalibrate_bn(nn.Linear(2, 2), torch.zeros(4, 2))
