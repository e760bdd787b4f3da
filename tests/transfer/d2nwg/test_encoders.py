import pytest
import torch
from torch import nn

from etude.transfer.d2nwg import ISAB, MAB, PMA, SAB, DatasetEncoder, MLPDatasetEncoder, SetTransformer

SMALL = {"dim": 16, "depth": 2, "num_inducing": 4, "depth_after": 1, "class_dim": 12, "num_classes": 4}


def naive_mab(mab, queries, keys):
    """One query, one head at a time."""
    q, k, v = mab.query(queries), mab.key(keys), mab.value(keys)
    width = q.shape[-1] // mab.num_heads
    out = torch.empty_like(q)
    for b in range(len(q)):
        for i in range(q.shape[1]):
            for h in range(mab.num_heads):
                part = slice(h * width, (h + 1) * width)
                scores = torch.stack([q[b, i, part] @ k[b, j, part] for j in range(k.shape[1])]) / q.shape[-1] ** 0.5
                weights = scores.exp() / scores.exp().sum()
                out[b, i, part] = q[b, i, part] + sum(w * v[b, j, part] for j, w in enumerate(weights))
    return out + (out @ mab.out.weight.T + mab.out.bias).clamp_min(0)


def test_mab_equals_its_equation_with_the_root_of_the_full_width():
    torch.manual_seed(0)
    mab = MAB(5, 7, 8, num_heads=2)
    queries, keys = torch.randn(2, 3, 5), torch.randn(2, 4, 7)
    torch.testing.assert_close(mab(queries, keys), naive_mab(mab, queries, keys))


@pytest.mark.parametrize("block", [SAB(6, 8), ISAB(6, 8, num_inducing=3)], ids=["sab", "isab"])
def test_blocks_follow_the_order_of_the_elements(block):
    x, order = torch.randn(2, 5, 6), torch.randperm(5)
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order], rtol=1e-5, atol=1e-5)
    assert block(x).shape == (2, 5, 8)


def test_pooling_has_a_row_for_each_seed():
    assert PMA(8, num_seeds=3)(torch.randn(2, 5, 8)).shape == (2, 3, 8)


@pytest.mark.parametrize("num_inducing", [None, 4])
def test_a_set_transformer_sees_neither_order_nor_masked_elements(num_inducing):
    torch.manual_seed(0)
    model = SetTransformer(6, 9, dim=16, num_inducing=num_inducing, depth_after=1)
    x = torch.randn(3, 7, 6)
    torch.testing.assert_close(model(x[:, torch.randperm(7)]), model(x), rtol=1e-5, atol=1e-5)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[:, 4:] = False
    torch.testing.assert_close(model(x, mask), model(x[:, :4]), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="1 of 3 sets are empty"):
        model(x, mask & torch.tensor([True, False, True])[:, None])


@pytest.mark.parametrize("class_order", ["position", "none"])
def test_samples_have_no_order_and_classes_only_by_position(class_order):
    torch.manual_seed(0)
    encoder = DatasetEncoder(6, 10, class_order=class_order, **SMALL)
    x = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(encoder(x[:, :, torch.randperm(5)]), encoder(x), rtol=1e-5, atol=1e-5)
    change = (encoder(x.flip(1)) - encoder(x)).abs().max()
    assert change < 1e-5 if class_order == "none" else change > 1e-3
    mask = torch.ones(2, 4, 5, dtype=torch.bool)
    mask[:, :, 3:] = False
    torch.testing.assert_close(encoder(x, mask), encoder(x[:, :, :3]), rtol=1e-5, atol=1e-5)
    assert encoder(x[:, :3]).shape == (2, 10)


def test_published_sizes():
    encoder = DatasetEncoder(512, 1024)
    assert encoder(torch.randn(1, 5, 5, 512)).shape == (1, 1024)
    assert encoder.intra.encoder[0].inducing.shape == (1, 32, 128)
    assert len(encoder.intra.encoder) == len(encoder.intra.decoder) == 2
    assert encoder.intra.encoder[0].gather.num_heads == 2
    assert isinstance(encoder.intra.pool.mab.norm0, nn.Identity)
    assert MLPDatasetEncoder(512, 1024).head.weight.shape == (1024, 5 * 5 * 4)


def test_the_linear_encoder_keeps_the_order():
    torch.manual_seed(0)
    encoder = MLPDatasetEncoder(6, 10, num_classes=3, num_samples=2)
    x = torch.randn(2, 3, 2, 6)
    assert encoder(x).shape == (2, 10)
    assert not torch.allclose(encoder(x), encoder(x.flip(1)))
    with pytest.raises(ValueError, match="expected 3 classes of 2 samples"):
        encoder(x[:, :2])


def test_bad_data_sets_are_refused():
    encoder = DatasetEncoder(6, 10, **SMALL)
    with pytest.raises(ValueError, match="positions for 4 classes, got 5"):
        encoder(torch.randn(1, 5, 2, 6))
    with pytest.raises(ValueError, match=r"expected \(batch, classes, samples, 6\)"):
        encoder(torch.randn(1, 2, 2, 7))
    with pytest.raises(ValueError, match="no sample"):
        encoder(torch.randn(1, 2, 2, 6), torch.tensor([[[True, True], [False, False]]]))
    with pytest.raises(ValueError, match="class_order"):
        DatasetEncoder(6, 10, class_order="sorted")
    with pytest.raises(ValueError, match="multiple of num_heads"):
        MAB(4, 4, 7)
