"""Prototype logits and the memory of the prototypes."""

import pytest
import torch
from torch import nn

from etude.transfer.fewshot_continual import PrototypeClassifier, PrototypeMemory

GENERATOR = torch.Generator().manual_seed(0)
Z = torch.randn(7, 5, generator=GENERATOR, dtype=torch.float64)
P = torch.randn(4, 5, generator=GENERATOR, dtype=torch.float64)


@pytest.mark.parametrize("scale", [None, 0.25])
def test_logits_equal_a_naive_loop_over_squared_distances(scale):
    logits = PrototypeClassifier(scale=scale)(Z, P)
    for i in range(len(Z)):
        for c in range(len(P)):
            distance = sum((Z[i, d].item() - P[c, d].item()) ** 2 for d in range(5))
            # tau = 1 by default, tau = 4 in the small protocol
            assert logits[i, c].item() == pytest.approx(-distance / (1 if scale is None else 4), abs=1e-12)


def test_cosine_logits_equal_ten_cosines():
    logits = PrototypeClassifier("cosine")(Z, P)
    expected = 10 * torch.stack([torch.cosine_similarity(Z, p[None]) for p in P], dim=1)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("distance", ["sqeuclidean", "cosine"])
def test_a_further_class_changes_no_other_logit_and_a_permutation_permutes_them(distance):
    classifier = PrototypeClassifier(distance)
    logits = classifier(Z, P)
    torch.testing.assert_close(classifier(Z, torch.cat([P, P[:1] + 1]))[:, :4], logits, rtol=0, atol=1e-13)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(classifier(Z, P[order]), logits[:, order], rtol=0, atol=1e-13)


def test_batches_of_episodes_are_classified_at_once():
    classifier = PrototypeClassifier()
    z, p = torch.randn(3, 6, 5, generator=GENERATOR), torch.randn(3, 2, 5, generator=GENERATOR)
    together = classifier(z, p)
    for episode in range(3):
        torch.testing.assert_close(together[episode], classifier(z[episode], p[episode]))


def test_prototypes_are_class_means_in_the_order_of_arrival():
    memory = PrototypeMemory(5)
    memory.add(torch.tensor([9, 4, 9]), Z[:3])
    memory.add(torch.tensor([6]), Z[3:4])
    assert memory.classes.tolist() == [4, 9, 6]
    assert memory.counts.tolist() == [1, 2, 1]
    torch.testing.assert_close(memory.prototypes, torch.stack([Z[1], (Z[0] + Z[2]) / 2, Z[3]]))


def test_a_refresh_makes_prototypes_the_mean_under_the_present_weights():
    torch.manual_seed(0)
    encoder = nn.Linear(3, 5)
    x, labels = torch.randn(6, 3), torch.tensor([7, 7, 2, 2, 2, 7])
    memory = PrototypeMemory(5, store_support=3)
    memory.add(labels, encoder(x), x)
    stale = memory.prototypes
    with torch.no_grad():
        encoder.weight.add_(1.0)
    assert torch.equal(memory.prototypes, stale)
    memory.refresh(encoder)
    for label, prototype in zip(memory.classes.tolist(), memory.prototypes):
        torch.testing.assert_close(prototype, encoder(x[labels == label]).mean(dim=0).detach())


def test_the_first_examples_of_each_class_are_stored():
    x, labels = torch.arange(6.0)[:, None], torch.tensor([1, 0, 1, 1, 0, 1])
    memory = PrototypeMemory(5, store_support=2, repeated="merge")
    memory.add(labels, torch.zeros(6, 5), x)
    memory.add(torch.tensor([1, 2]), torch.zeros(2, 5), torch.tensor([[6.0], [7.0]]))
    inputs, stored = memory.support
    assert (inputs[:, 0].tolist(), stored.tolist()) == ([0.0, 1.0, 2.0, 4.0, 7.0], [1, 0, 1, 0, 2])
    assert len(PrototypeMemory(5, store_support=None)) == 0


def test_a_class_that_comes_again_is_merged_into_its_mean_or_refused():
    memory = PrototypeMemory(5, repeated="merge")
    memory.add(torch.tensor([3, 3, 1]), Z[:3])
    memory.add(torch.tensor([3, 8]), Z[3:5])
    assert memory.classes.tolist() == [1, 3, 8]
    torch.testing.assert_close(memory.prototypes[1], (Z[0] + Z[1] + Z[3]) / 3)
    strict = PrototypeMemory(5)
    strict.add(torch.tensor([3]), Z[:1])
    with pytest.raises(ValueError, match="class 3 was learned before"):
        strict.add(torch.tensor([3]), Z[:1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrototypeClassifier("manhattan"), "distance must be one of sqeuclidean, cosine, got 'manhattan'"),
        (lambda: PrototypeClassifier(scale=0.0), "scale must be positive, got 0.0"),
        (lambda: PrototypeClassifier()(Z, P[:, :4]), "embeddings have 5 dimensions and prototypes 4"),
        (lambda: PrototypeMemory(0), "dim must be positive"),
        (lambda: PrototypeMemory(4).add(torch.tensor([0]), Z[:1]), "4-dimensional prototypes, got embeddings of 5"),
        (lambda: PrototypeMemory(5, 2).add(torch.tensor([0]), Z[:1]), "needs the 1 examples themselves"),
        (lambda: PrototypeMemory(5).support, "no support examples are stored"),
        (lambda: PrototypeMemory(5).refresh(nn.Identity()), "no support examples are stored"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
