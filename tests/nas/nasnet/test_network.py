"""Networks: exact counts, shapes, the peer's outputs, gradients, checkpoints."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.nas.nasnet import (
    NASNET_A,
    Block,
    Genotype,
    NASNet,
    NASNetCell,
    auxiliary_loss,
    nasnet_a_cifar,
    nasnet_a_large,
    nasnet_a_mobile,
)


def tiny(genotype=NASNET_A, **options):
    return NASNet(genotype, **{"cells_per_stage": 1, "filters": 2, "in_chans": 1, "num_classes": 3, **options})


@pytest.mark.parametrize(("make", "count"), [(nasnet_a_cifar, 3_346_538), (nasnet_a_large, 88_753_150)])
def test_nasnet_a_has_its_number_of_parameters(make, count):
    with torch.device("meta"):
        model = make()
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert {cell.out_dim / cell.entry[1].out_channels for cell in model.cells} == {4, 6}


def test_nasnet_a_mobile_has_its_parameters_and_multiply_adds():
    with torch.device("meta"):
        model = nasnet_a_mobile(aux_head=True, image_size=224).eval()
        count = []

        def add(layer, inputs, output):
            count.append(layer.weight[0].numel() * output[0].numel())

        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(add)
        assert model(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
        assert sum(count) / 1e6 == pytest.approx(563.6, abs=0.05)
        assert model.train()(torch.empty(2, 3, 224, 224))[1].shape == (2, 1000)
    body = sum(parameter.numel() for name, parameter in model.named_parameters() if not name.startswith("aux_head"))
    assert body == 5_289_978


def test_cells_have_six_and_four_widths_and_halve_odd_sizes():
    h, h_prev = torch.randn(2, 5, 7, 7), torch.randn(2, 3, 14, 14)
    assert NASNetCell(reduction=False, dim=5, filters=2)(h).shape == (2, 12, 7, 7)
    assert NASNetCell(reduction=True, dim=5, filters=2)(h).shape == (2, 8, 4, 4)
    cell = NASNetCell(reduction=True, dim=5, filters=2, prev_dim=3, prev_larger=True)
    assert cell(h, h_prev).shape == (2, 8, 4, 4)
    assert NASNetCell(reduction=False, dim=5, filters=2, prev_dim=5)(h, h).shape == (2, 12, 7, 7)
    model = tiny()
    sizes = []
    for one in model.cells:
        one.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    model(torch.randn(2, 1, 7, 9))
    assert sizes == [(12, 7, 9), (16, 4, 5), (24, 4, 5), (32, 2, 3), (48, 2, 3)]


def test_state_0_is_the_present_input_and_the_first_cells_state_1_is_raw():
    block = (Block(1, 1, "identity", "max_3x3"),)
    genotype = Genotype(block, block, normal_concat=(2,), reduction_concat=(2,))
    h, h_prev = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    first = NASNetCell(genotype, reduction=False, dim=4, filters=4)
    expected = h + F.max_pool2d(h, 3, 1, 1)
    torch.testing.assert_close(first(h), expected)
    later = NASNetCell(genotype, reduction=False, dim=4, filters=4, prev_dim=4)
    torch.testing.assert_close(later(h, h_prev), h_prev + F.max_pool2d(h_prev, 3, 1, 1))
    assert not list(later.parameters())  # h is not read, so nothing is built for it


def test_only_the_cell_inputs_are_strided():
    block = (Block(0, 1, "max_3x3", "max_3x3"), Block(2, 2, "max_3x3", "identity"))
    cell = NASNetCell(Genotype(block, block), reduction=True, dim=4, filters=4)
    assert [op.stride for op in (*cell.blocks[0].ops, cell.blocks[1].ops[0])] == [2, 2, 1]
    assert isinstance(cell.blocks[1].ops[1], nn.Identity)


def test_where_h_prev_comes_from():
    plain, skipping = tiny(cells_per_stage=2), tiny(cells_per_stage=2, skip_reduction=True)
    assert plain.inputs == [(0, None), (1, 0), (2, 1), (3, 2), (4, 3), (5, 4), (6, 5), (7, 6)]
    assert skipping.inputs == [(0, None), (1, 0), (2, 1), (3, 1), (4, 3), (5, 4), (6, 4), (7, 6)]
    assert plain.aux_place == 4
    imagenet = tiny(stem="imagenet", filters=8, stem_multiplier=1)
    assert [cell.blocks[0].ops[0][2].out_channels for cell in imagenet.cells] == [2, 4, 8, 16, 16, 32, 32]
    assert imagenet.stem[0].stride == (2, 2)
    assert imagenet.stem[0].padding == (0, 0)


def test_a_large_network_equals_timms(monkeypatch):
    peer_module = pytest.importorskip("timm.models.nasnet")
    pooling = pytest.importorskip("timm.layers.pool2d_same")

    def counting_pixels(self, x):
        padded, ones = (pooling.pad_same(part, self.kernel_size, self.stride) for part in (x, torch.ones_like(x)))
        return F.avg_pool2d(padded, self.kernel_size, self.stride) / F.avg_pool2d(ones, self.kernel_size, self.stride)

    # timm counts the padding of strided averages, the official code does not.
    monkeypatch.setattr(pooling.AvgPool2dSame, "forward", counting_pixels)
    peer = peer_module.NASNetALarge(num_classes=5, stem_size=12, num_features=192).eval()
    ours = NASNet(num_classes=5, filters=8, stem="imagenet", stem_multiplier=12 / 32, skip_reduction=True, bn_eps=1e-3)
    ours.eval()
    parts = [(peer.conv0, ours.stem)]
    names = [name for name in peer.layer_names if name != "conv0"]
    parts += [(getattr(peer, name), cell) for name, cell in zip(names, ours.cells, strict=True)]
    parts.append((peer.last_linear, ours.head))
    for theirs, mine in parts:
        state = sorted(theirs.state_dict().items(), key=lambda item: not item[0].startswith("conv_1x1"))
        generator = torch.Generator().manual_seed(len(state))
        for (name, source), target in zip(state, mine.state_dict().values(), strict=True):
            assert source.shape == target.shape, name
            if source.is_floating_point():
                source.copy_(torch.rand(source.shape, generator=generator) * 0.5 + (0.2 if source.ndim < 2 else -0.25))
            target.copy_(source)
    x = torch.randn(2, 3, 99, 99)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), peer(x), rtol=1e-4, atol=1e-4)


def check_random(seed, size, filters=2):
    torch.manual_seed(seed)
    model = tiny(Genotype.random(seed), filters=filters)
    model(torch.randn(2, 1, size, size)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, (seed, name)
        assert bool(parameter.grad.isfinite().all()), (seed, name)


@pytest.mark.parametrize("seed", range(3))
def test_random_genotypes_run_and_every_parameter_gets_a_gradient(seed):
    check_random(seed, 8)


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 32])
def test_two_hundred_random_genotypes_run(size):
    for seed in range(200):
        check_random(seed, size)


def test_the_second_head_sits_before_the_second_reduction_and_is_for_training():
    model = nasnet_a_cifar(cells_per_stage=1, filters=4, aux_head=True, image_size=32)
    assert model.aux_head.layers[2].in_channels == 6 * 8
    assert model.aux_head.layers[5].kernel_size == (4, 4)
    x, targets = torch.randn(2, 3, 32, 32), torch.tensor([1, 7])
    logits, other = model(x)
    assert logits.shape == other.shape == (2, 10)
    expected = F.cross_entropy(logits, targets) + 0.4 * F.cross_entropy(other, targets)
    torch.testing.assert_close(auxiliary_loss((logits, other), targets), expected)
    torch.testing.assert_close(auxiliary_loss(logits, targets), F.cross_entropy(logits, targets))
    assert model.eval()(x).shape == (2, 10)


def test_activation_checkpointing_changes_nothing():
    torch.manual_seed(0)
    plain = tiny(drop_path_keep=0.5)
    spare = tiny(drop_path_keep=0.5, activation_checkpointing=True)
    spare.load_state_dict(plain.state_dict())
    x = torch.randn(4, 1, 8, 8)
    for model in (plain, spare):
        model.set_progress(1.0)
        torch.manual_seed(1)
        model(x).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), spare.parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(plain.named_buffers(), spare.buffers()):
        if "tracked" not in name:
            torch.testing.assert_close(a, b, msg=name)
    assert all(layer.momentum == 0.1 for layer in spare.modules() if isinstance(layer, nn.BatchNorm2d))


def test_weights_come_back_and_those_of_another_architecture_are_refused(tmp_path):
    block = Block(0, 1, "sep_3x3", "max_3x3")
    other = Block(0, 1, "sep_3x3", "avg_3x3")
    model = tiny(Genotype((block,), (block,)), drop_path_keep=0.5)
    model.set_progress(0.25)
    model.save_pretrained(tmp_path)
    back = NASNet.from_pretrained(tmp_path)
    assert (back.genotype, back.progress) == (model.genotype, 0.25)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(back.eval()(x), model.eval()(x))
    with pytest.raises(ValueError, match="another architecture"):  # whose weights have the same names and shapes
        tiny(Genotype((other,), (block,))).load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="another architecture"):
        tiny(Genotype((block,), (block,)), filters=4).load_state_dict(model.state_dict())


def test_bad_arguments_and_images_are_refused():
    for options, message in (
        ({"filters": 0}, "positive"),
        ({"filters": 6, "stem": "imagenet"}, "multiple of 4"),
        ({"stem": "mnist"}, "'mnist'"),
        ({"cells_per_stage": 0}, "got 0"),
        ({"aux_head": True}, "image_size"),
        ({"aux_head": True, "image_size": 8}, "5 x 5"),
        ({"drop_path_keep": 0.0}, r"got 0\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny(**options)
    with pytest.raises(ValueError, match="at least 4 pixels a side"):
        tiny()(torch.zeros(1, 1, 3, 8))
    assert tiny()(torch.zeros(2, 1, 4, 4)).shape == (2, 3)  # 7 x 7 windows on 1 x 1 maps are padding
    with pytest.raises(ValueError, match="prev_dim"):
        NASNetCell(reduction=False, dim=4, filters=4, prev_larger=True)
