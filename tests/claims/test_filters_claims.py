"""What the claims on filters compare."""

import inspect

import pytest
import torch

from etude.claims.vision import filters as claims
from etude.data.kinds import Examples, ImageData
from etude.lab import Trial
from etude.vision.filters import conv_block, conv_parameters


def claim(name):
    return claims.PAPER.claims[name]


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)

    def part(n):
        return Examples(torch.rand(n, 1, 28, 28, generator=generator), torch.arange(n) % 3)

    return ImageData(train=part(60), val=part(20), test=part(20), classes=("a", "b", "c"), name="noise")


def test_arms_of_one_variance_start_alike_but_for_the_scheme(data):
    """The stream of initial weights is shared: orthogonal and LSUV draw the same matrices."""
    networks = {}
    for arm in ("orthogonal", "lsuv", "normal", "he"):
        trial = Trial("filters/init_depth", arm, 500, "smoke", claim("init_depth").setups["smoke"])
        networks[arm] = claims._plain_network(trial, data, 3, arm, "none")
    ratio = networks["orthogonal"].features[2].weight / networks["lsuv"].features[2].weight
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2**0.5))
    ratio = networks["he"].features[2].weight / networks["normal"].features[2].weight
    torch.testing.assert_close(ratio, torch.full_like(ratio, (2 / 36) ** 0.5 / 0.01), rtol=1e-4, atol=0)


def test_the_deep_arms_are_twice_as_deep(data):
    setup = claim("init_depth").setups["small"]
    assert (setup.depth, setup.deep) == (12, 24)
    trial = Trial("filters/init_depth", "he_deep", 500, "small", setup)
    network = claims._plain_network(trial, data, setup.deep, "he", "none")
    convs = [layer for layer in network.features if isinstance(layer, torch.nn.Conv2d)]
    assert [conv.stride for conv in convs] == [(2, 2)] + [(1, 1)] * 24
    assert all(conv.out_channels == 16 for conv in convs)


def test_images_are_shrunk_and_standardised(data):
    small = claims._shrunk(data, 2)
    assert small.size == (14, 14)
    assert small.train.inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert claims._shrunk(data, 8).size == (28, 28)  # fewer than four cells would be left


def test_labelled_and_unlabelled_rows_are_apart_and_equal_in_every_arm(data):
    found = []
    for arm in ("random", "kmeans"):
        setup = claim("designed_vs_random").setups["smoke"]
        trial = Trial("filters/designed_vs_random", arm, 500, "smoke", setup)
        found.append(claims._rows(trial, data, 10, 40))
    assert torch.equal(found[0][0].inputs, found[1][0].inputs)
    assert torch.equal(found[0][1], found[1][1])
    assert (len(found[0][0]), len(found[0][1])) == (10, 30)
    assert not (found[0][0].inputs[:, None] == found[0][1]).all(dim=(2, 3, 4)).any()


@pytest.mark.parametrize(
    ("curve", "target", "expected"),
    [([0.5, 0.7, 0.9], 0.8, 16 * 2**0.5), ([0.5, 0.7, 0.9], 0.4, 8), ([0.5, 0.7, 0.9], 0.95, 32)],
)
def test_the_number_of_filters_needed_is_read_off_the_curve(curve, target, expected):
    assert claims._needed([8, 16, 32], curve, target) == pytest.approx(expected)


def test_dct_and_pca_give_what_there_is(data):
    setup = claim("designed_vs_random").setups["smoke"].replace(size=3, num=20)
    trial = Trial("filters/designed_vs_random", "dct", 500, "smoke", setup)
    train, unlabelled, test = claims._rows(trial, data, 40, 60)
    for bank in ("dct", "pca"):
        model, _ = claims._read_out(trial, bank, train, unlabelled, test, 20, 0.1)
        assert len(model.bank_) == 8
    assert len(claims._read_out(trial, "random", train, unlabelled, test, 20, 0.1)[0].bank_) == 20


def test_the_stack_has_18_weights_where_the_large_kernel_has_25():
    shapes = {name: conv_parameters(conv_block(16, 16, 5, name)) for name in claims._KERNELS}
    assert shapes["stack"] * 25 == shapes["single"] * 18
    assert shapes["pointwise"] == min(shapes.values())


def test_test_images_do_not_choose(data):
    """Other test images change the test's metrics and nothing else."""
    setup = claim("small_kernels").setups["smoke"]
    function = inspect.unwrap(claim("small_kernels").function)
    other = ImageData(
        train=data.train, val=data.val, test=Examples(data.test.inputs.flip(2), data.test.targets),
        classes=data.classes, name="noise",
    )  # fmt: skip
    first, second = (
        function(Trial("filters/small_kernels", "separable", 500, "smoke", setup, {"lr": 1e-3}), each)
        for each in (data, other)
    )
    assert first["val_accuracy"] == second["val_accuracy"]
    assert first["receptive_radius"] == second["receptive_radius"]
