"""The network: what it mixes, what it costs, and the blocks it is compared with."""

from functools import partial

import pytest
import torch
from torch import nn

from etude.vision.activator import (
    Activator,
    PatchClassifier,
    count_macs,
    count_parameters,
    mixer_block,
    shuffle_patches,
    vit_block,
)

SMALL = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 3, "dim": 8, "depth": 2}


def activator(seed=0, **options):
    torch.manual_seed(seed)
    return Activator(**SMALL | {"hidden_dim": 12} | options).double().eval()


def frame(factory, seed=0, **options):
    torch.manual_seed(seed)
    return PatchClassifier(factory(hidden_dim=12), **SMALL | options).double().eval()


def images(size=8, chans=1, dtype=torch.float64):
    return torch.randn(4, chans, size, size, dtype=dtype, generator=torch.Generator().manual_seed(1))


def moved(model):
    x = images()
    shuffled = shuffle_patches(x, 2, torch.Generator().manual_seed(2))
    return (model(shuffled) - model(x)).abs().max().item()


@pytest.mark.parametrize("use_mlp", [True, False])
def test_the_channel_version_and_vit_without_positions_do_not_see_the_arrangement(use_mlp):
    assert moved(activator(use_mlp=use_mlp)) < 1e-6
    assert moved(frame(vit_block)) < 1e-6


def test_token_gates_mixer_and_positions_see_it():
    for model in (
        activator(mixing="token"),
        activator(pos_embed=True),
        frame(mixer_block),
        frame(vit_block, pos_embed=True),
    ):
        if model.positions is not None:
            nn.init.normal_(model.positions)
        assert moved(model) > 1e-4


@pytest.mark.parametrize("use_mlp", [True, False])
def test_it_is_a_function_of_each_patch_then_a_mean(use_mlp):
    model, x = activator(use_mlp=use_mlp), images()
    features = []
    for row in range(0, 8, 2):
        for column in range(0, 8, 2):
            patch = x[:, :, row : row + 2, column : column + 2]
            features.append(model.blocks(model.patches(patch))[:, 0])
    torch.testing.assert_close(model(x), model.classifier(torch.stack(features).mean(0)))


def test_tokens_then_classes_is_the_network():
    model, x = activator(pos_embed=True), images()
    assert torch.equal(model(x), model.classify(model.tokens(x)))
    torch.testing.assert_close(model.tokens(x), model.patches(x) + model.positions)


@pytest.mark.parametrize(("use_mlp", "count"), [(True, 2_650_890), (False, 1_599_242)])
def test_parameters_of_the_published_networks(use_mlp, count):
    with torch.device("meta"):
        model = Activator(use_mlp=use_mlp)
    assert count_parameters(model) == count
    assert count_parameters(model.blocks[0].glu) == 395_520
    assert count_parameters(model.patches) == 12_544
    assert count_parameters(model.classifier) == 2_570
    assert model.blocks[0].mlp is None or count_parameters(model.blocks[0].mlp) == 262_912


@pytest.mark.parametrize(
    ("build", "of_a_token"),
    [
        (partial(Activator, use_mlp=False), 3 * 256 * 512),
        (Activator, 5 * 256 * 512),
        (partial(PatchClassifier, vit_block(hidden_dim=512)), 4 * 256**2 + 2 * 64 * 256 + 2 * 256 * 512),
        (partial(PatchClassifier, mixer_block(hidden_dim=512)), 2 * 256 * 512 + 2 * 512 * 256),
    ],
)
def test_multiply_accumulates_of_the_blocks_follow_the_formulas(build, of_a_token):
    model = build(depth=1)
    embedding, classifier = 64 * 48 * 256, 2560
    assert count_macs(model, (1, 3, 32, 32)) == 64 * of_a_token + embedding + classifier
    assert count_macs(model, (2, 3, 32, 32)) == 2 * count_macs(model, (1, 3, 32, 32))


def test_the_cost_is_linear_in_the_number_of_patches():
    small, large = (count_macs(Activator(dim=16, hidden_dim=32), (1, 3, side, side)) - 160 for side in (32, 64))
    assert large == 4 * small
    vit = PatchClassifier(vit_block(hidden_dim=32), dim=16)
    small, large = (count_macs(vit, (1, 3, side, side)) - 160 for side in (32, 64))
    assert large > 4 * small


def test_images_of_other_sizes_pass_where_tokens_are_treated_alike():
    assert activator()(images(12)).shape == (4, 3)
    assert frame(vit_block)(images(12)).shape == (4, 3)
    for model, message in (
        (activator(mixing="token"), "mixing='token' is tied to 16 tokens, got 36"),
        (activator(pos_embed=True), "positions are of 16 patches, got 36"),
        (frame(mixer_block), "tied to 16 tokens, got 36"),
    ):
        with pytest.raises(ValueError, match=message):
            model(images(12))


def test_a_rectangle_of_patches_has_as_many_tokens():
    model = activator(img_size=(8, 12), mixing="token")
    assert model.num_tokens == 24
    assert model(torch.zeros(1, 1, 8, 12, dtype=torch.float64)).shape == (1, 3)


def test_the_gated_network_alone_has_no_dropout():
    def drops(**options):
        return [module.p for module in Activator(**options).modules() if isinstance(module, nn.Dropout)]

    assert drops(use_mlp=False) == []
    assert set(drops()) == {0.5}


def test_a_final_norm_is_off_unless_asked_for():
    assert isinstance(activator().norm, nn.Identity)
    assert isinstance(activator(final_norm=True).norm, nn.LayerNorm)


def test_shuffling_permutes_whole_patches_of_each_image():
    x = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).float()
    shuffled = shuffle_patches(x, 2, torch.Generator().manual_seed(0))

    def patches(image):
        return sorted(image[:, r : r + 2, c : c + 2].flatten().tolist() for r in (0, 2) for c in (0, 2, 4))

    assert not torch.equal(shuffled, x)
    assert all(patches(a) == patches(b) for a, b in zip(x, shuffled))
    assert torch.equal(shuffle_patches(x[..., :4], 4), x[..., :4])
    with pytest.raises(ValueError, match="sides must be multiples of the patch, 4, got 4 x 6"):
        shuffle_patches(x, 4)


def test_half_precision_stays_finite():
    model = activator(depth=4).bfloat16()
    assert torch.isfinite(model(100 * images(dtype=torch.bfloat16))).all()


def test_the_network_is_saved_and_loaded(tmp_path):
    model = activator(use_mlp=False, img_size=(8, 8)).float()
    model.save_pretrained(tmp_path)
    x = images(dtype=torch.float32)
    assert torch.equal(Activator.from_pretrained(tmp_path).eval()(x), model(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: activator(img_size=9), "sides must be multiples of the patch, 2, got 9 x 9"),
        (lambda: activator()(images(9)), "sides must be multiples of the patch, 2, got 9 x 9"),
        (lambda: activator()(images(chans=3)), r"expected 1 channels, got images of shape \(4, 3, 8, 8\)"),
        (lambda: activator(depth=0), "img_size, num_classes and depth must be positive, got 8, 3, 0"),
        (lambda: activator(in_chans=0), "in_chans, dim and patch_size must be positive, got 0, 8, 2"),
        (lambda: frame(partial(vit_block, num_heads=3)), "dim must be a multiple of num_heads, got 8 and 3"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_integer_pixels_are_refused():
    with pytest.raises(TypeError, match=r"must be floating point, got torch.uint8: divide bytes by 255"):
        Activator()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
