"""LNet and the cascade."""

import pytest
import torch
import torch.nn.functional as F

from etude.data.faces import FaceScenes
from etude.vision.face_attributes import CascadedLocalizer, LNet, sobel_magnitude, train_tags


def small(attributes=3, **options):
    torch.manual_seed(0)
    return LNet(attributes, 0.25, "small", in_channels=1, **options).double().eval()


def test_maps_move_with_the_image():
    lnet = small()
    image = torch.zeros(1, 1, 96, 96, dtype=torch.float64)
    image[..., 40:52, 36:50] = torch.rand(12, 14, dtype=torch.float64)
    moved = image.roll((8, 4), (2, 3))
    one, other = lnet.response_map(image), lnet.response_map(moved)
    torch.testing.assert_close(one[:, 24:64, 24:64], other[:, 32:72, 28:68], rtol=0, atol=1e-12)


def test_maps_of_alexnet_move_with_the_image():
    torch.manual_seed(0)
    lnet = LNet(2, 0.03).double().eval()
    image = torch.zeros(1, 3, 420, 420, dtype=torch.float64)
    image[..., 200:216, 190:220] = torch.rand(3, 16, 30, dtype=torch.float64)
    one, other = lnet.response_map(image), lnet.response_map(image.roll((16, 16), (2, 3)))
    torch.testing.assert_close(one[:, 180:240, 180:240], other[:, 196:256, 196:256], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "slack"),
    [({"width": 0.25, "backbone": "small", "in_channels": 3}, 0), ({"width": 0.03}, 4)],  # maxima pass one gradient on
)
def test_a_place_stands_on_the_pixel_on_which_its_receptive_field_is_centred(options, slack):
    torch.manual_seed(0)
    lnet = LNet(2, **options).double().eval()
    x = torch.rand(1, 3, 421, 421, dtype=torch.float64, requires_grad=True)
    maps = lnet.maps(x)
    middle = maps.shape[2] // 2
    seen = torch.autograd.grad(maps[0, :, middle, middle].sum(), x)[0].abs().sum((0, 1)) > 0
    rows, columns = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
    for extent in (rows, columns):
        assert (int(extent.min()) + int(extent.max())) / 2 == pytest.approx(
            lnet.offset + middle * lnet.stride, abs=slack
        )
    assert int(rows.max() - rows.min()) + 1 <= (lnet.least_size if lnet.backbone == "small" else 195)


def test_alexnet_at_its_nominal_size_is_the_network_with_connected_layers():
    torch.manual_seed(0)
    lnet = LNet(5, 0.02).double().eval()
    x = torch.rand(2, 3, 227, 227, dtype=torch.float64)
    pool, fc6, _, _, fc7 = lnet.head[:5]
    maps = pool(lnet.maps(x))
    assert maps.shape[2:] == (6, 6)
    hidden = F.relu(F.linear(maps.flatten(1), fc6.weight.flatten(1), fc6.bias))
    hidden = F.relu(F.linear(hidden, fc7.weight.flatten(1), fc7.bias))
    torch.testing.assert_close(lnet(x), F.linear(hidden, lnet.top.weight.flatten(1), lnet.top.bias), rtol=0, atol=1e-12)


def test_alexnet_has_the_published_layers():
    with torch.device("meta"):
        lnet = LNet(1000)
    shapes = [tuple(p.shape) for name, p in lnet.named_parameters() if name.endswith("weight")]
    assert shapes == [
        (96, 3, 11, 11), (256, 96, 5, 5), (384, 256, 3, 3), (384, 384, 3, 3), (256, 384, 3, 3),
        (4096, 256, 6, 6), (4096, 4096, 1, 1), (1000, 4096, 1, 1),
    ]  # fmt: skip


def test_a_pyramid_is_the_mean_of_its_scales():
    lnet, x = small(), torch.rand(2, 1, 64, 48, dtype=torch.float64)
    apart = [lnet.response_map(x, (scale,)) for scale in (1.0, 1.5)]
    torch.testing.assert_close(lnet.response_map(x, (1.0, 1.5)), sum(apart) / 2)
    assert apart[1].shape == (2, 64, 48)


def test_responses_come_in_evaluation_mode_whatever_the_batch():
    lnet, x = small(), torch.rand(5, 1, 40, 40, dtype=torch.float64)
    lnet.train()
    found = lnet.responses(x, batch=2)
    assert lnet.training
    torch.testing.assert_close(found, lnet.eval().response_map(x).detach(), rtol=0, atol=1e-12)


def test_a_new_head_leaves_the_responses():
    for lnet, side in ((small(), 40), (LNet(1000, 0.02, in_channels=1).double().eval(), 227)):
        x = torch.rand(1, 1, side, side, dtype=torch.float64)
        before = lnet.response_map(x)
        assert lnet.replace_head(7)(x).shape == (1, 7)
        assert torch.equal(lnet.response_map(x), before)


def test_sobel_of_a_ramp_is_its_slope():
    ramp = (0.02 * torch.arange(20.0)).expand(1, 1, 20, 20)
    torch.testing.assert_close(sobel_magnitude(ramp)[0, 5:15, 5:15], torch.full((10, 10), 0.02))


def test_boxes_never_enter_training():
    """Deleting the boxes from the data gives identical weights."""
    world, generator = FaceScenes(), torch.Generator().manual_seed(0)
    faces = world.scenes(world.people(6, generator), 2, generator)
    weights = []
    for data in (faces, faces.without_boxes()):
        torch.manual_seed(0)
        lnet = LNet(10, 0.25, "small", in_channels=1)
        train_tags(lnet, (data.images, data.tags), epochs=1, batch_size=4)
        weights.append(lnet.state_dict())
    assert faces.without_boxes().boxes is None
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class Bright(LNet):
    """Responds to brightness, so that what a cascade should find is known."""

    def response_map(self, x, scales=(1.0,)):
        return x.mean(1)


def bright():
    return Bright(1, 0.25, "small", in_channels=1)


def scene():
    image = torch.zeros(1, 1, 80, 100)
    image[..., 20:50, 55:85] = 0.5
    image[..., 28:44, 62:78] = 1.0
    return image


def test_the_second_network_refines_the_box_of_the_first():
    first = CascadedLocalizer(bright(), sigma=0.0)
    torch.testing.assert_close(first(scene())[0], torch.tensor([[55.0, 20.0, 85.0, 50.0]]))
    both = CascadedLocalizer(bright(), bright(), sigma=0.0, tau=(0.35, 0.75), crop_size=90)
    boxes, scores = both(scene())
    torch.testing.assert_close(boxes, torch.tensor([[62.0, 28.0, 78.0, 44.0]]), rtol=0, atol=0.6)
    assert 0 < scores.item() <= 1


def test_the_second_network_sees_a_square_that_lies_in_the_image():
    cascade = CascadedLocalizer(bright(), crop_size=48)
    squares = cascade.widened(torch.tensor([[0.0, 2.0, 10.0, 22.0], [20.0, 0.0, 90.0, 80.0]]), (80, 100))
    assert squares.tolist() == [[0.0, 0.0, 30.0, 30.0], [15.0, 0.0, 95.0, 80.0]]
    assert cascade.crops(scene())[0].shape == (1, 1, 48, 48)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LNet(0), "positive, got 0"),
        (lambda: LNet(2, backbone="vgg"), "'alexnet' or 'small', got 'vgg'"),
        (lambda: small()(torch.zeros(1, 3, 64, 64).double()), "1 channels, got shape"),
        (lambda: small()(torch.zeros(1, 1, 28, 64).double()), "at least 29 x 29 pixels, got"),
        (lambda: LNet(2, 0.02)(torch.zeros(1, 3, 226, 227)), "at least 227 x 227"),
        (lambda: small().response_map(torch.zeros(1, 1, 64, 64).double(), ()), "at least one"),
        (lambda: small().replace_head(0), "positive, got 0"),
        (lambda: CascadedLocalizer(small(), margin=0), "margin must be positive"),
        (lambda: CascadedLocalizer(small(), small(), crop_size=20), "at least 29, what lnet_s takes, got 20"),
        (lambda: CascadedLocalizer(small()).crops(torch.zeros(1, 1, 64, 64).double()), "needs crop_size"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
