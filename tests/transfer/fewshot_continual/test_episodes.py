"""Episodes: which rows they draw, what their loss is, and how a task without queries makes its own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from etude.transfer.fewshot_continual import (
    EpisodeSampler,
    PrototypeClassifier,
    episode_accuracy,
    episode_loss,
    pseudo_episode,
    random_affine,
)

LABELS = torch.tensor([4, 2, 4, 2, 9, 9, 4, 2, 9, 4, 7, 7, 7])


def test_an_episode_has_distinct_classes_with_distinct_rows():
    for rows in EpisodeSampler(LABELS, 3, 1, 2, 50, seed=3):
        assert len(set(rows)) == len(rows) == 9
        labels = LABELS[torch.tensor(rows)].view(3, 3)
        assert bool((labels == labels[:, :1]).all())
        assert len(labels[:, 0].unique()) == 3


def test_every_pass_and_every_sampler_of_a_seed_yields_the_same_episodes():
    sampler = EpisodeSampler(LABELS, 2, 1, 1, 20, seed=1)
    assert list(sampler) == list(sampler) == list(EpisodeSampler(LABELS, 2, 1, 1, 20, seed=1))
    assert list(sampler) != list(EpisodeSampler(LABELS, 2, 1, 1, 20, seed=2))
    assert torch.equal(sampler.episodes().flatten(1), torch.tensor(list(sampler)))


def test_all_classes_and_rows_are_drawn_in_time():
    episodes = EpisodeSampler(LABELS, 2, 1, 2, 300).episodes()
    assert sorted(episodes.unique().tolist()) == list(range(len(LABELS)))
    first = LABELS[episodes[:, 0, 0]]
    assert all(abs((first == label).float().mean().item() - 0.25) < 0.1 for label in (2, 4, 7, 9))


def test_it_is_the_batch_sampler_of_a_plain_loader():
    x = torch.arange(13.0)
    sampler = EpisodeSampler(LABELS, 2, 1, 2, 4)
    loader = DataLoader(TensorDataset(x, LABELS), batch_sampler=sampler)
    for (values, labels), rows in zip(loader, sampler, strict=True):
        assert values.tolist() == [float(row) for row in rows]
        assert labels.view(2, 3).unique(dim=1).shape == (2, 1)


def test_the_loss_equals_a_naive_loop():
    torch.manual_seed(0)
    encoder, classifier = nn.Linear(3, 4).double(), PrototypeClassifier(scale=0.5)
    episode = torch.randn(2, 5, 3, dtype=torch.float64)
    others = torch.randn(3, 4, dtype=torch.float64)
    prototypes = [encoder(episode[c, :2]).mean(dim=0) for c in range(2)] + list(others)
    losses = []
    for c in range(2):
        for q in range(2, 5):
            z = encoder(episode[c, q])
            logits = torch.stack([-0.5 * (z - p).square().sum() for p in prototypes])
            losses.append(-logits.log_softmax(0)[c])
    ours = episode_loss(encoder, episode, 2, classifier, others)
    torch.testing.assert_close(ours, torch.stack(losses).mean())
    ours.backward()
    assert encoder.weight.grad.abs().sum() > 0


def test_the_accuracy_of_episodes_equals_a_naive_loop():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(13, 3, generator=generator)
    sampler = EpisodeSampler(LABELS, 3, 1, 2, 10)
    ours = episode_accuracy(z, sampler.episodes(), 1, PrototypeClassifier())
    for value, episode in zip(ours, sampler.episodes()):
        right = 0
        for c in range(3):
            for query in episode[c, 1:]:
                right += int((z[episode[:, 0]] - z[query]).square().sum(dim=1).argmin()) == c
        assert value.item() == pytest.approx(right / 6, abs=1e-6)


def test_a_pseudo_episode_parts_the_shots_of_each_class():
    x, labels = torch.arange(15.0)[:, None], torch.arange(3).repeat(5)
    episode = pseudo_episode(x, labels, 3, 2, generator=torch.Generator().manual_seed(0))
    for label in range(3):
        assert sorted(episode[label, :, 0].tolist()) == [float(label + 3 * i) for i in range(5)]
    orders = {tuple(pseudo_episode(x, labels, 3, 2).flatten().tolist()) for _ in range(10)}
    assert len(orders) > 1


def test_a_class_with_few_shots_uses_augmented_copies_of_them():
    x, labels = torch.tensor([[0.0], [10.0], [11.0]]), torch.tensor([0, 1, 1])

    def jitter(inputs, generator):
        return inputs + torch.rand(inputs.shape, generator=generator)

    episode = pseudo_episode(x, labels, 1, 2, augment=jitter, generator=torch.Generator().manual_seed(0))
    assert episode.shape == (2, 3, 1)
    assert len(episode[0].unique()) == 3
    assert bool((episode[0] < 1).all() and (episode[1] >= 10).all())
    with pytest.raises(ValueError, match="a class has 1 shots, fewer than 1 supports and 2 queries: an augmentation"):
        pseudo_episode(x, labels, 1, 2)


def test_affine_views_without_range_are_the_images_and_others_are_drawn_from_the_generator():
    images = torch.rand(4, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    same = random_affine(images, degrees=0, scale=0, shift=0)
    torch.testing.assert_close(same, images, rtol=0, atol=1e-5)
    one, again = (random_affine(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, images)


def test_an_affine_shift_of_a_pixel_moves_the_image_by_a_pixel():
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 3, 4] = 1.0
    moved = torch.stack(
        [random_affine(image, torch.Generator().manual_seed(s), degrees=0, scale=0, shift=1 / 8)[0] for s in range(200)]
    )
    # Never further than a pixel in either direction, and nothing is lost on the way.
    rows, columns = torch.nonzero(moved.sum(dim=(0, 1)), as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 4, 3, 5)
    torch.testing.assert_close(moved.sum(dim=(1, 2, 3)), torch.ones(200))


def test_the_turn_is_at_most_the_given_degrees():
    line = F.pad(torch.ones(1, 1, 1, 31), (0, 0, 15, 15))
    for seed in range(30):
        turned = random_affine(line, torch.Generator().manual_seed(seed), degrees=14, scale=0, shift=0)[0, 0]
        rows = torch.nonzero(turned > 0.3)[:, 0]
        assert (rows - 15).abs().max() <= 15 * torch.tan(torch.tensor(14 * torch.pi / 180)) + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 1, 1, 1), "n_way must be at least 2, got 1"),
        ((2, 0, 1, 1), "k_shot must be at least 1, got 0"),
        ((2, 1, 0, 1), "n_query must be at least 1, got 0"),
        ((5, 1, 1, 1), "episodes of 5 classes need as many, the labels have 4"),
        ((2, 2, 2, 1), "class 2 has 3 examples, fewer than 2 supports and 2 queries"),
    ],
)
def test_episodes_that_cannot_be_drawn_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(LABELS, *arguments)


def test_an_episode_without_queries_is_refused():
    with pytest.raises(ValueError, match="k_shot must leave a query among the 3 examples of a class, got 3"):
        episode_loss(nn.Identity(), torch.zeros(2, 3, 4), 3, PrototypeClassifier())


def test_an_affine_range_below_zero_is_refused():
    with pytest.raises(ValueError, match="shift=-1"):
        random_affine(torch.zeros(1, 1, 4, 4), shift=-1)
