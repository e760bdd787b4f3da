"""Losses against loops, limits and known gradients; masks and groups that say nothing."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from etude.ranking.neural_ranking import (
    OBJECTIVES,
    CalibratedPointwise,
    hinge_pair_loss,
    lambda_loss,
    listmle_loss,
    listnet_loss,
    pointwise_loss,
    ranknet_loss,
    softmax_loss,
)


def groups(seed=0, batch=3, size=5):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, size, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (batch, size), generator=generator).double()
    labels[:, 0], labels[:, 1] = 2, 0  # every group says something
    return scores, labels


@pytest.mark.parametrize("name", OBJECTIVES)
def test_masked_candidates_change_nothing(name):
    scores, labels = groups()
    loss = OBJECTIVES[name](scores, labels)
    more = torch.cat([scores, torch.full((3, 2), 7.0, dtype=torch.float64)], dim=1).requires_grad_()
    mask = torch.arange(7) < 5
    padded = OBJECTIVES[name](more, F.pad(labels, (0, 2), value=2.0), mask.expand(3, 7))
    torch.testing.assert_close(padded, loss)
    padded.backward()
    assert (more.grad[:, 5:] == 0).all()
    assert (more.grad[:, :5] != 0).any()


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ("pointwise", "mse")])
@pytest.mark.parametrize("label", [0.0, 2.0])
def test_groups_of_equal_labels_have_no_gradient_and_do_not_count(name, label):
    scores, labels = groups()
    with_silent = torch.cat([scores, torch.randn(1, 5, dtype=torch.float64)]).requires_grad_()
    loss = OBJECTIVES[name](with_silent, torch.cat([labels, torch.full((1, 5), label, dtype=torch.float64)]))
    torch.testing.assert_close(loss, OBJECTIVES[name](scores, labels))
    loss.backward()
    assert (with_silent.grad[3] == 0).all()
    alone = torch.randn(1, 5, requires_grad=True)
    OBJECTIVES[name](alone, torch.full((1, 5), label)).backward()
    assert (alone.grad == 0).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_match_finite_differences(name):
    scores, labels = groups(seed=2)
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: OBJECTIVES[name](s, labels), (scores,))


def test_the_hinge_is_zero_exactly_when_all_margins_are_one():
    labels = torch.tensor([[2.0, 1.0, 0.0]])
    assert hinge_pair_loss(torch.tensor([[3.0, 2.0, 1.0]]), labels) == 0
    assert hinge_pair_loss(torch.tensor([[3.0, 2.1, 1.0]]), labels) > 0
    assert hinge_pair_loss(torch.tensor([[3.0, 2.0, 1.1]]), labels).item() == pytest.approx(0.1 / 3, abs=1e-6)


def naive_pairs(scores, labels):
    for row, (s, y) in enumerate(zip(scores.tolist(), labels.tolist())):
        for i, j in itertools.product(range(len(s)), repeat=2):
            if y[i] > y[j]:
                yield row, i, j, s[i] - s[j]


def test_pairwise_losses_equal_loops():
    scores, labels = groups()
    gaps = [gap for *_, gap in naive_pairs(scores, labels)]
    assert hinge_pair_loss(scores, labels).item() == pytest.approx(sum(max(0, 1 - gap) for gap in gaps) / len(gaps))
    expected = sum(math.log(1 + math.exp(-gap)) for gap in gaps) / len(gaps)
    assert ranknet_loss(scores, labels).item() == pytest.approx(expected)


def test_the_gradient_of_a_ranknet_pair_is_the_sigmoid_of_minus_the_gap():
    scores = torch.tensor([[0.3, -0.9]], dtype=torch.float64, requires_grad=True)
    ranknet_loss(scores, torch.tensor([[1.0, 0.0]], dtype=torch.float64)).backward()
    expected = -1 / (1 + math.exp(1.2))
    assert scores.grad[0].tolist() == pytest.approx([expected, -expected], abs=1e-12)


def test_listnet_is_the_cross_entropy_of_two_softmaxes():
    scores, labels = groups()
    expected = -(labels.softmax(dim=1) * scores.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(listnet_loss(scores, labels), expected)


def test_listnet_with_one_relevant_candidate_is_the_softmax_cross_entropy():
    scores, _ = groups()
    labels = F.one_hot(torch.tensor([1, 4, 0]), 5).double()
    expected = F.cross_entropy(scores, torch.tensor([1, 4, 0]))
    torch.testing.assert_close(listnet_loss(scores, labels, target="share"), expected)
    torch.testing.assert_close(softmax_loss(scores, labels), expected)
    # With softmax targets it becomes that as the grade grows.
    torch.testing.assert_close(listnet_loss(scores, 100 * labels), expected)


def test_listmle_of_a_sorted_list_is_the_plackett_luce_likelihood():
    scores = torch.tensor([[1.2, 0.3, -0.5, 0.4]], dtype=torch.float64)
    labels = torch.tensor([[3.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    likelihood, rest = 1.0, scores[0].exp().tolist()
    for place in range(4):
        likelihood *= rest[place] / sum(rest[place:])
    assert listmle_loss(scores, labels).item() == pytest.approx(-math.log(likelihood), abs=1e-12)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(listmle_loss(scores[:, order], labels[:, order]), listmle_loss(scores, labels))


@pytest.mark.parametrize("gain", ["exponential", "linear"])
def test_lambda_loss_weighs_pairs_by_their_change_of_ndcg(gain):
    scores, labels = groups()
    total = 0.0
    for row, i, j, gap in naive_pairs(scores, labels):
        y = [2**v - 1 if gain == "exponential" else v for v in labels[row].tolist()]
        ranks = [1 + sum(other > s for other in scores[row].tolist()) for s in scores[row].tolist()]
        best = sum(v / math.log2(place + 2) for place, v in enumerate(sorted(y, reverse=True)))
        change = abs(y[i] - y[j]) * abs(1 / math.log2(1 + ranks[i]) - 1 / math.log2(1 + ranks[j])) / best
        total += change * math.log(1 + math.exp(-gap))
    assert lambda_loss(scores, labels, gain=gain).item() == pytest.approx(total / 3, abs=1e-12)


def test_lambda_loss_gives_pairs_of_equal_label_no_weight():
    scores = torch.tensor([[0.5, 0.1, -0.3]], dtype=torch.float64, requires_grad=True)
    lambda_loss(scores, torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)).backward()
    apart = scores.detach().clone().requires_grad_()
    pairs = []
    for i in (0, 1):
        rank = (1 / math.log2(2), 1 / math.log2(3))[i]
        best = 1 + 1 / math.log2(3)
        pairs.append(abs(rank - 0.5) / best * F.softplus(-(apart[0, i] - apart[0, 2])))
    sum(pairs).backward()
    torch.testing.assert_close(scores.grad, apart.grad)


def test_pointwise_losses_equal_loops():
    scores, labels = groups()
    shares = torch.sigmoid(scores)
    expected = -torch.where(labels > 0, shares.log(), (1 - shares).log()).mean()
    torch.testing.assert_close(pointwise_loss(scores, labels), expected)
    torch.testing.assert_close(pointwise_loss(scores, labels, kind="mse"), ((scores - labels) ** 2).mean())


def test_the_calibrated_pointwise_loss_starts_as_the_plain_one_and_learns_two_numbers():
    scores, labels = groups()
    loss = CalibratedPointwise().double()
    torch.testing.assert_close(loss(scores, labels), pointwise_loss(scores, labels))
    loss(scores, labels).backward()
    assert sum(parameter.numel() for parameter in loss.parameters()) == 2
    assert all(parameter.grad != 0 for parameter in loss.parameters())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_other_shapes_of_labels_are_refused(name):
    with pytest.raises((ValueError, TypeError), match=r"shape|type-check|Type-check"):
        OBJECTIVES[name](torch.zeros(2, 3), torch.zeros(2, 4))
