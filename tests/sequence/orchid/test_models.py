import numpy as np
import pytest
import torch

from etude.data.kinds import Examples
from etude.loop import fit
from etude.sequence.orchid import (
    BlockDiagonalLinear,
    Encoder,
    OrchidEncoder,
    OrchidForMaskedLM,
    OrchidViT,
    associative_recall,
    mask_tokens,
    masked_lm_loss,
    parameter_groups,
    shift_errors,
)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_a_block_diagonal_matrix_is_one():
    layer = BlockDiagonalLinear(6, 9, 3).double()
    x = draw(2, 5, 6)
    expected = x @ torch.block_diag(*layer.weight).T + layer.bias
    torch.testing.assert_close(layer(x), expected)
    assert layer.weight.numel() == 6 * 9 / 3
    with pytest.raises(ValueError, match="multiples of the blocks, got 6, 9 and 2"):
        BlockDiagonalLinear(6, 9, 2)


def test_an_encoder_without_positions_is_equivariant_to_shifts():
    encoder = OrchidEncoder(8, depth=2, max_len=16, mlp_blocks=4, kind="type2").double()
    assert float(shift_errors(encoder, draw(2, 9, 8)).max()) < 1e-12


def test_padding_does_not_reach_real_tokens():
    encoder = OrchidEncoder(8, depth=2, max_len=16).double()
    mask = (torch.arange(12) < torch.tensor([[9], [12]])).expand(2, -1)
    x = draw(2, 12, 8)
    other = torch.where(mask[..., None], x, torch.tensor(7.0, dtype=x.dtype))
    torch.testing.assert_close(encoder(other, mask=mask)[mask], encoder(x, mask=mask)[mask])


def test_encoders_refuse_what_they_cannot_be():
    with pytest.raises(ValueError, match="at least one mixer"):
        Encoder([], 8)
    with pytest.raises(ValueError, match="at least one mixer"):
        OrchidEncoder(8, depth=0, max_len=4)
    with pytest.raises(ValueError, match="must be positive, got 0"):
        OrchidEncoder(8, depth=1, max_len=4, mlp_ratio=0)
    with pytest.raises(ValueError, match="cannot be causal"):
        OrchidEncoder(8, depth=1, max_len=4, causal=True)


def test_a_language_model_survives_saving_and_learns_from_masked_places_alone(tmp_path):
    model = OrchidForMaskedLM(vocab_size=20, dim=8, depth=1, max_len=12, kind="type2", filter_dim=8).eval()
    ids = torch.randint(5, 20, (2, 12))
    logits = model(ids).detach()
    assert logits.shape == (2, 12, 20)
    model.save_pretrained(tmp_path)
    assert torch.equal(OrchidForMaskedLM.from_pretrained(tmp_path).eval()(ids), logits)
    targets = torch.full((2, 12), -100)
    assert float(masked_lm_loss(logits, targets)) == 0
    targets[0, 3] = ids[0, 3]
    expected = -logits[0, 3].log_softmax(-1)[ids[0, 3]]
    torch.testing.assert_close(masked_lm_loss(logits, targets), expected)
    with pytest.raises(ValueError, match="12 positions, got 13 tokens"):
        model(torch.zeros(1, 13, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least 2, got 1"):
        OrchidForMaskedLM(vocab_size=1)


def test_a_language_model_without_positions_is_equivariant_to_shifts():
    model = OrchidForMaskedLM(vocab_size=20, dim=8, depth=1, max_len=12, positions=False).double().eval()
    ids = torch.randint(20, (2, 12))
    torch.testing.assert_close(model(ids.roll(5, dims=1)), model(ids).roll(5, dims=1))


@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_tokens_are_masked_at_the_rate_and_in_berts_shares(rate):
    ids = torch.randint(5, 1000, (200, 500))
    ids[:, 0] = 2
    inputs, targets = mask_tokens(ids, mask_id=1, vocab_size=1000, rate=rate, special=(2,))
    chosen = targets != -100
    assert torch.equal(targets[chosen], ids[chosen])
    assert torch.equal(inputs[~chosen], ids[~chosen])
    assert not chosen[:, 0].any()
    assert float(chosen[:, 1:].double().mean()) == pytest.approx(rate, abs=0.01)
    assert float((inputs[chosen] == 1).double().mean()) == pytest.approx(0.8, abs=0.02)
    assert float((inputs[chosen] == ids[chosen]).double().mean()) == pytest.approx(0.1, abs=0.02)
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        mask_tokens(ids, mask_id=1, vocab_size=1000, rate=1)


def test_a_language_model_trains_with_the_plain_loop():
    model = OrchidForMaskedLM(vocab_size=20, dim=8, depth=1, max_len=12, filter_dim=8)
    ids = torch.randint(5, 20, (16, 12))
    before = model.embedding.weight.detach().clone()
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=1e-3))
    result = fit(
        model, Examples(ids, ids), optimizer, loss=masked_lm_loss, epochs=2, batch_size=8,
        transform=lambda batch: mask_tokens(batch[0], mask_id=1, vocab_size=20, rate=0.3),
    )  # fmt: skip
    assert len(result.losses) == 4
    assert not torch.equal(model.embedding.weight, before)


def test_masks_are_repeatable():
    ids = torch.randint(5, 100, (3, 20))
    one, two = (
        mask_tokens(ids, mask_id=1, vocab_size=100, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_an_image_model_ignores_shifts_of_its_patches_unless_it_has_positions(tmp_path):
    options = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 3, "dim": 8, "depth": 1, "filter_dim": 8}
    model, placed = OrchidViT(**options).eval(), OrchidViT(**options, pos_embed=True).eval()
    images = draw(2, 1, 8, 8, dtype=torch.float32)
    rows = images.roll(2, dims=2)  # by one row of patches: a circular shift of the sequence by four
    torch.testing.assert_close(model(rows), model(images), atol=1e-5, rtol=0)
    with torch.no_grad():
        placed.positions.mul_(50)
    assert float((placed(rows) - placed(images)).detach().abs().max()) > 1e-3
    model.save_pretrained(tmp_path)
    assert torch.equal(OrchidViT.from_pretrained(tmp_path).eval()(images), model(images))
    with pytest.raises(ValueError, match="positions are of 16 patches, got 8"):
        placed(draw(1, 1, 4, 8, dtype=torch.float32))
    with pytest.raises(ValueError, match="multiples of the patch, 2, got 7 x 8"):
        OrchidViT(**options | {"img_size": (7, 8)})
    with pytest.raises(ValueError, match="num_classes must be positive, got 0"):
        OrchidViT(**options | {"num_classes": 0})


def test_recall_asks_for_the_value_of_a_pair_that_was_there():
    data = associative_recall(500, vocab=8, num_pairs=5, seed=3)
    assert data.inputs.shape == (500, 11)
    for ids, target in zip(data.inputs.tolist(), data.targets.tolist()):
        pairs = dict(zip(ids[0:10:2], ids[1:10:2]))
        assert all(pairs[key] == value for key, value in zip(ids[0:10:2], ids[1:10:2]))
        assert len(set(pairs.values())) == len(pairs)
        assert pairs[ids[10]] == target
        assert max(pairs) < 4 <= min(pairs.values())
    again, other = associative_recall(500, 8, 5, seed=3), associative_recall(500, 8, 5, seed=4)
    assert torch.equal(again.inputs, data.inputs)
    assert not torch.equal(other.inputs, data.inputs)
    assert data.targets.bincount()[4:].min() > 80


def test_bad_recall_is_refused():
    with pytest.raises(ValueError, match="even and at least 4, got 7"):
        associative_recall(10, vocab=7)
    with pytest.raises(ValueError, match="must be positive, got 10 and 0"):
        associative_recall(10, num_pairs=0)


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_estimator_keeps_scikit_learns_contract(adaptive):
    from sklearn.base import clone

    from etude.sequence.orchid import OrchidClassifier

    images = np.random.default_rng(0).random((24, 8, 8), dtype=np.float32)
    labels = np.array(["a", "b", "c"] * 8)
    made = OrchidClassifier("type2", adaptive=adaptive, dim=8, depth=1, epochs=1, batch_size=8, random_state=0)
    model = made.fit(images, labels)
    probabilities = model.predict_proba(images)
    assert probabilities.shape == (24, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    again = clone(made).fit(images, labels)
    assert np.array_equal(again.predict_proba(images), probabilities)
    assert set(model.predict(images)) <= {"a", "b", "c"}
