"""What the bottleneck returns, counts and refuses."""

import pytest
import torch
from torch import nn

from etude.transfer.discrete_kv_bottleneck import KeyValueBottleneck, fetched_pairs, fetched_together


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def placed(in_dim=6, books=3, pairs=5, dim_key=2, dim_value=4, **options):
    bottleneck = KeyValueBottleneck(in_dim, books, pairs, dim_key, dim_value, generator=gen(), **options)
    return bottleneck.place_keys(torch.randn(60, in_dim, generator=gen(1)), epochs=3, batch_size=20)


def test_values_are_those_beside_the_nearest_keys():
    bottleneck = placed(value_init="normal", topk=2)
    z = torch.randn(7, 6, generator=gen(2))
    values = bottleneck(z)
    assert values.shape == (7, 3, 2, 1, 4)
    for i in range(7):
        for c in range(3):
            head = z[i] @ bottleneck.splitter.projection[c]
            nearest = ((bottleneck.codebook.keys[c] - head) ** 2).sum(dim=1).argsort()
            for rank in range(2):
                assert torch.equal(values[i, c, rank, 0], bottleneck.values[c, nearest[rank]])


def test_the_values_are_the_only_parameter_and_have_the_stated_size():
    with torch.device("meta"):
        bottleneck = KeyValueBottleneck(16, 256, 4096, 14, 10)
    assert [p.numel() for p in bottleneck.parameters()] == [10_485_760]
    assert [name for name, _ in placed().named_parameters()] == ["values"]


def test_values_start_at_zero():
    assert bool((placed().values == 0).all())
    assert bool((placed(value_init="normal").values != 0).all())


def test_places_of_a_map_are_tokens_row_by_row():
    bottleneck = placed(value_init="normal")
    maps = torch.randn(2, 6, 3, 4, generator=gen(2))
    values = bottleneck(maps)
    assert values.shape == (2, 3, 1, 12, 4)
    for row in range(3):
        for column in range(4):
            alone = bottleneck(maps[:, :, row, column])
            assert torch.equal(values[:, :, :, 4 * row + column], alone[:, :, :, 0])
    assert torch.equal(bottleneck(maps.flatten(2).transpose(1, 2)), values)


def test_with_one_codebook_the_output_depends_on_the_cell_only():
    bottleneck = placed(books=1, value_init="normal")
    z = torch.randn(40, 6, generator=gen(2))
    indices, values = bottleneck.indices(z).flatten(), bottleneck(z).flatten(1)
    for cell in indices.unique():
        mine = values[indices == cell]
        assert torch.equal(mine, mine[:1].expand_as(mine))


def test_fetching_all_keys_gives_every_input_the_same_votes():
    bottleneck = placed(topk=5, value_init="normal")
    votes = bottleneck(torch.randn(9, 6, generator=gen(2))).sum(dim=2)
    torch.testing.assert_close(votes, votes[:1].expand_as(votes))


def test_fetches_are_counted_in_training_only():
    bottleneck = placed()
    z = torch.randn(20, 6, generator=gen(2))
    indices = bottleneck.train().indices(z)
    assert int(bottleneck.usage.sum()) == 0
    bottleneck(z)
    for book in range(3):
        assert torch.equal(bottleneck.usage[book], torch.bincount(indices[:, book].flatten(), minlength=5))
    used = bottleneck.usage.clone()
    bottleneck.eval()(z)
    assert torch.equal(bottleneck.usage, used)
    assert bottleneck.fraction_unused == pytest.approx((used == 0).double().mean().item())
    assert bottleneck.reset_usage().fraction_unused == 1.0


def test_evaluation_passes_over_keys_that_training_never_fetched():
    bottleneck = placed(value_init="normal")
    bottleneck.train()(torch.randn(2, 6, generator=gen(2)))
    z = torch.randn(50, 6, generator=gen(3))
    free = bottleneck.indices(z)
    masked = bottleneck.eval().indices(z)
    used = bottleneck.usage > 0
    assert bool((~used.gather(1, free[:, :, 0, 0].T)).any())
    assert bool(used.gather(1, masked[:, :, 0, 0].T).all())
    assert torch.equal(masked, bottleneck.codebook.assign(bottleneck.heads(z), 1, used))
    bottleneck.mask_unused = False
    assert torch.equal(bottleneck.indices(z), free)


def test_evaluation_before_any_training_is_refused():
    with pytest.raises(ValueError, match="codebook 0 allows 0 of its 5 keys"):
        placed().eval()(torch.zeros(1, 6))


def test_placement_fetches_one_key_whatever_topk_is():
    one, several = placed(), placed(topk=3)
    assert torch.equal(one.codebook.keys, several.codebook.keys)


def test_placement_takes_loaders_of_batches_and_of_pairs():
    z = torch.randn(30, 6, generator=gen(1))
    found = []
    for loader in ([z[:15], z[15:]], [(z[:15], torch.zeros(15)), (z[15:], torch.zeros(15))]):
        bottleneck = KeyValueBottleneck(6, 3, 5, 2, 4, generator=gen())
        found.append(bottleneck.place_keys(loader, epochs=2, batch_size=15).codebook.keys)
    assert torch.equal(*found)


def test_placement_moves_keys_towards_the_data():
    z = 5 + 0.1 * torch.randn(500, 6, generator=gen(1))
    bottleneck = KeyValueBottleneck(6, 3, 5, 2, 4, generator=gen())

    def distance():
        heads = bottleneck.heads(z)
        return torch.cdist(heads[:, :, 0].transpose(0, 1), bottleneck.codebook.keys).amin(dim=2).mean().item()

    before = distance()
    bottleneck.place_keys(z, epochs=10, batch_size=50)
    assert distance() < 0.05 * before


def test_frozen_keys_stay_and_unfrozen_ones_may_be_placed_again():
    bottleneck = placed()
    keys = bottleneck.codebook.keys.clone()
    assert bottleneck.keys_frozen
    with pytest.raises(ValueError, match="the keys are frozen"):
        bottleneck.place_keys(torch.randn(10, 6))
    bottleneck.train()(torch.randn(10, 6))
    assert torch.equal(bottleneck.codebook.keys, keys)
    bottleneck.unfreeze_keys()
    with pytest.raises(ValueError, match="must be frozen"):
        bottleneck(torch.randn(10, 6))
    bottleneck.place_keys(3 + torch.randn(10, 6, generator=gen(4)), epochs=1)
    assert not torch.equal(bottleneck.codebook.keys, keys)


def test_values_under_keys_that_were_not_placed_are_refused():
    with pytest.raises(ValueError, match="have not been placed"):
        KeyValueBottleneck(6, 3, 5, 2, 4)(torch.randn(2, 6))
    assert KeyValueBottleneck(6, 3, 5, 2, 4, allow_unplaced=True)(torch.randn(2, 6)).shape == (2, 3, 1, 1, 4)


def test_the_state_travels_whole():
    bottleneck = placed(value_init="normal")
    bottleneck.train()(torch.randn(20, 6, generator=gen(2)))
    other = KeyValueBottleneck(6, 3, 5, 2, 4, generator=gen(9))
    other.load_state_dict(bottleneck.state_dict())
    assert torch.equal(other.usage, bottleneck.usage)
    assert other.keys_frozen
    z = torch.randn(30, 6, generator=gen(3))
    assert torch.equal(other.eval()(z), bottleneck.eval()(z))


def test_a_bottleneck_is_saved_and_loaded_by_name(tmp_path):
    bottleneck = KeyValueBottleneck(6, 3, 5, 2, 4, decay=0.9, topk=2)
    bottleneck.place_keys(torch.randn(60, 6), epochs=1).train()(torch.randn(20, 6))
    bottleneck.save_pretrained(tmp_path)
    other = KeyValueBottleneck.from_pretrained(tmp_path)
    assert (other.topk, other.codebook.decay) == (2, 0.9)
    z = torch.randn(30, 6)
    assert torch.equal(other.eval()(z), bottleneck.eval()(z))


def test_shared_pairs_are_those_fetched_by_both():
    one = torch.tensor([[0, 1], [2, 3]]).view(2, 2, 1, 1)
    other = torch.tensor([[0, 3], [5, 5], [2, 3]]).view(3, 2, 1, 1)
    assert fetched_together(one, other).tolist() == [[0.5, 0.0, 0.0], [0.5, 0.0, 1.0]]


def test_fetched_pairs_are_those_of_any_input():
    indices = torch.tensor([[0, 1], [2, 1]]).view(2, 2, 1, 1)
    assert fetched_pairs(indices, 3).tolist() == [[True, False, True], [False, True, False]]


def test_bad_input_is_refused():
    bottleneck = placed()
    with pytest.raises(ValueError, match=r"embeddings must have shape \(n, 6\).*got \(2, 7\)"):
        bottleneck(torch.zeros(2, 7))
    with pytest.raises(ValueError, match="NaN or infinite values, 2 of them"):
        bottleneck(torch.tensor([[0.0, float("nan"), 0.0, 0.0, 0.0, float("inf")]]))
    with pytest.raises(ValueError, match="no embeddings"):
        KeyValueBottleneck(6, 3, 5, 2, 4).place_keys([])
    with pytest.raises(ValueError, match="epochs and batch_size must be positive, got 0"):
        KeyValueBottleneck(6, 3, 5, 2, 4).place_keys(torch.zeros(3, 6), epochs=0)
    for options, message in (
        ({"splitter": "sparse"}, "random, chunk or learned, got 'sparse'"), ({"value_init": "ones"}, "got 'ones'"),
        ({"topk": 6}, r"topk must lie in 1\.\.5"), ({"temperature": -1}, "temperature"),
        ({"splitter": "chunk", "dim_key": 3}, "have dim_key 2, got 3"), ({"dim_value": 0}, "dim_value"),
        ({"dim_key": None}, "dim_key is needed"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            KeyValueBottleneck(
                **{"in_dim": 6, "num_codebooks": 3, "num_pairs": 5, "dim_key": 2, "dim_value": 4} | options
            )


@pytest.mark.parametrize("splitter", ["chunk", "learned"])
def test_other_splitters_serve_too(splitter):
    bottleneck = placed(splitter=splitter)
    assert bottleneck(torch.randn(2, 6)).shape == (2, 3, 1, 1, 4)
    assert isinstance(bottleneck.values, nn.Parameter)
