"""Attention maps, non-locality and their pictures."""

import pytest
import torch

from etude.vision.convit import (
    ConViT,
    attention_maps,
    locality_profile,
    non_locality,
    plot_attention,
    plot_locality,
    relative_coordinates,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ConViT(
        img_size=(8, 12), patch_size=4, in_chans=1, num_classes=3, dim=8, depth=3, num_heads=4, local_up_to_layer=2
    )


def test_maps_are_those_of_every_layer_in_order(model):
    x = torch.randn(2, 1, 8, 12)
    maps = attention_maps(model.train(), x)
    assert [tuple(weights.shape) for weights in maps] == [(2, 4, 6, 6), (2, 4, 6, 6), (2, 4, 7, 7)]
    block, tokens = model.blocks[0], model.patch_embed(x) + model.pos_embed
    assert torch.equal(maps[0], block.attn.attention(block.norm1(tokens)))
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    for weights in maps:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_non_locality_is_the_mean_distance_of_a_naive_loop():
    torch.manual_seed(0)
    attention = torch.softmax(torch.randn(3, 2, 6, 6), dim=-1)
    found = non_locality(attention, relative_coordinates(2, 3))
    for head in range(2):
        total = 0.0
        for image in range(3):
            for i in range(6):
                for j in range(6):
                    distance = ((i % 3 - j % 3) ** 2 + (i // 3 - j // 3) ** 2) ** 0.5
                    total += attention[image, head, i, j].item() * distance
        assert found[head].item() == pytest.approx(total / 6 / 3, abs=1e-6)
    torch.testing.assert_close(non_locality(attention[0], relative_coordinates(2, 3)).shape, torch.Size([2]))


def test_the_class_token_is_dropped_before_distances_are_taken():
    torch.manual_seed(0)
    attention = torch.softmax(torch.randn(2, 4, 5, 5), dim=-1)
    found = non_locality(attention, relative_coordinates(2, 2), has_cls=True)
    torch.testing.assert_close(found, non_locality(attention[..., 1:, 1:], relative_coordinates(2, 2)))
    with pytest.raises(ValueError, match=r"5 x 5 tokens \(has_cls=False\) does not fit the coordinates of 4"):
        non_locality(attention, relative_coordinates(2, 2))


def test_a_token_that_looks_at_itself_is_local():
    assert non_locality(torch.eye(6).expand(2, 6, 6), relative_coordinates(2, 3)).tolist() == [0.0, 0.0]


def test_the_profile_is_the_average_of_the_maps_whatever_the_batch(model):
    x = torch.randn(5, 1, 8, 12)
    profile = locality_profile(model, x, batch_size=2)
    coordinates = relative_coordinates(2, 3)
    wanted = [non_locality(weights, coordinates, weights.shape[-1] == 7) for weights in attention_maps(model, x)]
    torch.testing.assert_close(profile.non_locality, torch.stack(wanted))
    torch.testing.assert_close(profile.gates, torch.sigmoid(torch.ones(2, 4)))
    assert profile.uniform == pytest.approx(coordinates[..., 2].sqrt().mean().item())
    with pytest.raises(ValueError, match="need images and a positive batch_size, got 0 and 64"):
        locality_profile(model, x[:0])


def test_pictures_show_every_head_of_every_layer(model):
    x = torch.randn(1, 1, 8, 12)
    figure = plot_locality(locality_profile(model, x))
    assert [len(axis.lines) for axis in figure.axes] == [2 + 1, 3 + 1 + 1]
    maps = [weights[0] for weights in attention_maps(model, x)]
    figure = plot_attention(maps, (2, 3), query=(1, 2))
    assert len(figure.axes) == 3 * 4
    shown = figure.axes[8].images[0].get_array()
    torch.testing.assert_close(torch.from_numpy(shown.data), maps[2][0, 1 + 1 * 3 + 2, 1:].unflatten(0, (2, 3)))
    assert len(plot_attention(maps, (2, 3), layers=[1]).axes) == 4


def test_queries_and_grids_that_do_not_fit_are_refused(model):
    maps = [weights[0] for weights in attention_maps(model, torch.randn(1, 1, 8, 12))]
    with pytest.raises(ValueError, match=r"query must lie on a grid of 2 x 3, got \(2, 0\)"):
        plot_attention(maps, (2, 3), query=(2, 0))
    with pytest.raises(ValueError, match="over 6 tokens does not fit a grid of 2 x 2"):
        plot_attention(maps, (2, 2))
    with pytest.raises(ValueError, match="no layers"):
        plot_attention([], (2, 2))
