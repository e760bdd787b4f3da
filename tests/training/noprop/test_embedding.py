"""Class embeddings, prototypes, the divergence from the prior, and the radial head."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from etude.training.noprop import LabelEmbedding, RadialHead, aligned_head, prior_kl, prototypes


def test_one_hot_is_the_identity_and_not_trained():
    embedding = LabelEmbedding(4)
    assert torch.equal(embedding(torch.tensor([2, 0])), torch.eye(4)[[2, 0]])
    assert not list(embedding.parameters())
    assert not embedding.learned


def test_learned_rows_start_orthonormal_where_the_dimensions_suffice():
    embedding = LabelEmbedding(10, kind="learned")
    assert embedding.dim == 20
    torch.testing.assert_close(embedding.weight @ embedding.weight.T, torch.eye(10), atol=1e-5, rtol=0)
    many = LabelEmbedding(100, kind="learned")
    assert many.weight.square().sum(1).mean().item() == pytest.approx(1.0, rel=0.1)


def naive_prototype(images):
    """The image whose median distance to the others is smallest."""
    best, best_median = None, float("inf")
    for index, image in enumerate(images):
        distances = sorted((image - other).norm().item() for place, other in enumerate(images) if place != index)
        median = distances[(len(distances) - 1) // 2]
        if median < best_median:
            best, best_median = image, median
    return best


def test_prototypes_are_the_most_central_images_of_their_classes():
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(45, 2, 3, 3, generator=g), torch.randint(3, (45,), generator=g)
    found = prototypes(x, y, 3)
    for label in range(3):
        assert torch.equal(found[label], naive_prototype(list(x[y == label].flatten(1))))


def test_prototypes_must_be_set_and_survive_saving():
    x, y = torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 0, 1, 0, 1])
    embedding = LabelEmbedding(2, 16, "prototype")
    with pytest.raises(RuntimeError, match=r"call init_prototypes\(x, y\)"):
        embedding(y)
    embedding.init_prototypes(x, y)
    restored = LabelEmbedding(2, 16, "prototype")
    restored.load_state_dict(embedding.state_dict())
    assert torch.equal(restored(y), embedding(y))
    assert embedding.weight.requires_grad


def test_a_class_with_one_image_has_it_for_a_prototype_and_one_with_none_is_refused():
    x = torch.rand(3, 1, 2, 2)
    assert torch.equal(prototypes(x, torch.tensor([0, 0, 1]), 2)[1], x[2].flatten())
    with pytest.raises(ValueError, match="class 1 has no image"):
        prototypes(x, torch.tensor([0, 0, 2]), 3)


@pytest.mark.parametrize("abar", [1e-4, 0.3])
def test_the_divergence_from_the_prior_equals_torch_distributions(abar):
    u = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = Independent(Normal(abar**0.5 * u, torch.full_like(u, (1 - abar) ** 0.5)), 1)
    p = Independent(Normal(torch.zeros_like(u), torch.ones_like(u)), 1)
    torch.testing.assert_close(prior_kl(u, abar), kl_divergence(q, p).mean(), rtol=1e-6, atol=1e-12)


def test_the_radial_head_weighs_classes_by_distance_and_shares_the_embedding():
    embedding = LabelEmbedding(3, 5, "learned")
    head = RadialHead(embedding, sigma=2.0)
    z = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    v = head.linear(z).softmax(1) @ embedding.weight
    expected = torch.empty(4, 3)
    for row in range(4):
        for label in range(3):
            expected[row, label] = -(v[row] - embedding.weight[label]).square().sum() / 8
    torch.testing.assert_close(head(z), expected, atol=1e-5, rtol=1e-5)
    assert head.embedding.weight is embedding.weight


@pytest.mark.parametrize("kind", ["one_hot", "learned"])
def test_an_aligned_head_prefers_every_class_at_its_own_embedding(kind):
    embedding = LabelEmbedding(4, None if kind == "one_hot" else 7, kind)
    logits = aligned_head(embedding, scale=3.0)(embedding.weight)
    torch.testing.assert_close(logits, 3.0 * torch.eye(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LabelEmbedding(10, 20, "one_hot"), "one-hot embeddings of 10 classes have dim 10, got 20"),
        (lambda: LabelEmbedding(10, kind="random"), "kind must be one of one_hot, learned, prototype, got 'random'"),
        (lambda: LabelEmbedding(0), "num_classes must be at least 1, got 0"),
        (lambda: LabelEmbedding(3, 0, "learned"), "dim must be at least 1, got 0"),
        (lambda: LabelEmbedding(3, kind="prototype"), "dim of prototypes must be given"),
        (lambda: LabelEmbedding(3)(torch.tensor([0, 3])), r"y must lie in 0\.\.2 \(3 classes\), got 0\.\.3"),
        (lambda: LabelEmbedding(3)(torch.tensor([-1])), r"y must lie in 0\.\.2 \(3 classes\), got -1\.\.-1"),
        (lambda: LabelEmbedding(3).check_labels(torch.tensor([0.0])), "y must be int64 of shape"),
        (
            lambda: LabelEmbedding(2, 9, "prototype").init_prototypes(torch.rand(2, 1, 2, 2), torch.tensor([0, 1])),
            r"images must have 9 values, the embedding's dim, got shape \(1, 2, 2\)",
        ),
        (
            lambda: LabelEmbedding(2).init_prototypes(torch.rand(2, 1, 2, 2), torch.tensor([0, 1])),
            "only prototype embeddings start from images, this one is one_hot",
        ),
        (lambda: aligned_head(LabelEmbedding(2), scale=0.0), "scale must be positive, got 0.0"),
        (lambda: RadialHead(LabelEmbedding(2), sigma=0.0), "sigma must be positive, got 0.0"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
