"""Targets of a doubled batch stay aligned with its rows, and its loss keeps the scale of the plain one."""

import pytest
import torch
import torch.nn.functional as F

from etude.training.batchformer import BatchFormer, repeat_targets, split_streams, two_stream_loss


def test_a_tensor_is_repeated_row_after_row():
    y = torch.arange(6).view(3, 2)
    assert torch.equal(repeat_targets(y), torch.cat([y, y]))
    assert torch.equal(repeat_targets(y, 3), torch.cat([y, y, y]))


def test_dicts_tuples_and_lists_of_dicts_are_repeated_inside():
    boxes = [{"boxes": torch.zeros(2, 4)}, {"boxes": torch.ones(1, 4)}]
    out = repeat_targets({"labels": torch.tensor([1, 2]), "boxes": boxes, "weight": 0.3, "name": "a", "none": None})
    assert out["labels"].tolist() == [1, 2, 1, 2]
    assert [len(entry["boxes"]) for entry in out["boxes"]] == [2, 1, 2, 1]
    assert (out["weight"], out["name"], out["none"]) == (0.3, "a", None)
    first, second, share = repeat_targets((torch.tensor([1]), torch.tensor([2]), torch.tensor(0.4)))
    assert (first.tolist(), second.tolist(), share.ndim) == ([1, 1], [2, 2], 0)


def test_soft_labels_of_mixup_stay_aligned_with_their_features():
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    y = x.softmax(dim=1)
    features, soft = BatchFormer(8)(x, y)
    assert torch.equal(soft[:4], features[:4].softmax(dim=1))
    assert torch.equal(soft[4:], y)


def test_mean_keeps_the_scale_of_the_plain_loss_and_sum_doubles_it():
    logits, y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    first, second = F.cross_entropy(logits[:4], y), F.cross_entropy(logits[4:], y)
    torch.testing.assert_close(two_stream_loss(logits, y), (first + second) / 2)
    torch.testing.assert_close(two_stream_loss(logits, y, reduction="sum"), first + second)
    torch.testing.assert_close(two_stream_loss(logits[:4], y), first)
    torch.testing.assert_close(two_stream_loss(logits[:4], y, reduction="sum"), first)


def test_the_halves_are_plain_and_mixed():
    plain, mixed = split_streams(torch.arange(6).float().view(6, 1))
    assert plain.flatten().tolist() == [0, 1, 2]
    assert mixed.flatten().tolist() == [3, 4, 5]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"even number of rows, got shape \(3, 2\)"):
        split_streams(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        repeat_targets(torch.zeros(3), 0)
    with pytest.raises(TypeError, match="got set"):
        repeat_targets({1, 2})
    with pytest.raises(ValueError, match="6 rows and 4 targets"):
        two_stream_loss(torch.zeros(6, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="'mean' or 'sum', got 'none'"):
        two_stream_loss(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), reduction="none")
    with pytest.raises(ValueError, match=r"equally many samples, got \[3, 4\]"):
        BatchFormer(8)(torch.zeros(4, 8), (torch.zeros(4), torch.zeros(3)))
