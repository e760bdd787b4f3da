"""The family: exact parameter counts, work, shapes, stochastic depth, frozen norms, saving, the pyramid."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import etude.vision.moat as moat
from etude.nn.transformer import DropPath
from etude.vision.moat import MOAT, MBConv, MOATBlock, MOATPyramid

COUNTS = {
    "moat_0": (27_846_892, 27_777_544),
    "moat_1": (41_598_448, 41_467_864),
    "moat_2": (73_422_408, 73_248_296),
    "moat_3": (189_958_040, 189_536_280),
    "moat_4": (483_214_184, 482_539_368),
    "tiny_moat_0": (3_355_348, 3_332_232),
    "tiny_moat_1": (5_122_895, 5_094_000),
    "tiny_moat_2": (9_772_741, 9_732_288),
    "tiny_moat_3": (19_534_390, 19_476_600),
}


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def small(**changes):
    torch.manual_seed(0)
    arguments = {
        "num_classes": 3, "stem_dim": 8, "depths": (1, 1, 2), "dims": (8, 16, 16), "head_dim": 8, "in_chans": 1,
        "block_types": ("mbconv", "moat", "moat"),
    }  # fmt: skip
    return MOAT(**(arguments | changes))


@pytest.mark.parametrize("name", COUNTS)
def test_the_family_has_the_official_sizes(name):
    with torch.device("meta"):
        found = tuple(parameters(getattr(moat, name)(rel_pos=rel_pos)) for rel_pos in (True, False))
    assert found == COUNTS[name]


@pytest.mark.parametrize(("name", "work"), [("moat_0", 5.64), ("moat_1", 9.00)])
def test_the_work_of_one_image_is_the_published_one(name, work):
    with torch.device("meta"):
        model = getattr(moat, name)().eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, 224, 224))
    assert round(counter.get_total_flops() / 2e9, 2) == work


def test_maps_have_the_shapes_of_the_published_network():
    with torch.device("meta"):
        maps = moat.moat_0(features_only=True)(torch.empty(1, 3, 224, 224))
    assert {name: tuple(value.shape[1:]) for name, value in maps.items()} == {
        "stem": (64, 112, 112), "stage1": (96, 56, 56), "stage2": (192, 28, 28), "stage3": (384, 14, 14),
        "stage4": (768, 7, 7),
    }  # fmt: skip


def test_tables_are_of_the_size_of_the_training_maps_and_each_block_has_its_own():
    with torch.device("meta"):
        model = moat.tiny_moat_0()
    tables = [[block.attention.rel_pos for block in stage] for stage in list(model.stages)[2:]]
    assert {tuple(table.shape) for table in tables[0]} == {(4, 27, 27)}
    assert {tuple(table.shape) for table in tables[1]} == {(8, 13, 13)}
    assert len({id(table) for stage in tables for table in stage}) == 9


def test_stages_are_mobile_convolutions_with_se_then_moat_blocks_without():
    with torch.device("meta"):
        model = moat.tiny_moat_0()
    kinds = [{type(block) for block in stage} for stage in model.stages]
    assert kinds == [{MBConv}, {MBConv}, {MOATBlock}, {MOATBlock}]
    assert all(hasattr(block.se, "reduce") for stage in model.stages[:2] for block in stage)
    assert all(isinstance(block.conv.se, nn.Identity) for stage in model.stages[2:] for block in stage)
    assert isinstance(model.stem[-1], nn.Conv2d)


def test_stochastic_depth_grows_linearly_to_one_block_before_the_rate():
    with torch.device("meta"):
        model = moat.moat_0()
    rates = [
        sorted({part.rate for part in block.modules() if isinstance(part, DropPath)})
        for stage in model.stages
        for block in stage
    ]  # fmt: skip
    assert rates == [[pytest.approx(0.2 * index / 14)] for index in range(14)]


def test_kernels_start_at_a_fiftieth_and_biases_at_zero():
    model = small(dims=(32, 64, 64), stem_dim=32, depths=(2, 2, 2))
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            assert not value.any(), name
        elif value.ndim > 1 and value.numel() > 500:
            assert 0.017 < float(value.detach().std()) < 0.023, name


@pytest.mark.parametrize("size", [(32, 32), (37, 51), (5, 9)])
def test_images_of_any_size_are_taken(size):
    model = small().eval()
    maps = model.features(torch.randn(2, 1, *size))
    for (name, channels, stride), (key, value) in zip(model.feature_info, maps.items(), strict=True):
        assert key == name
        assert value.shape == (2, channels, *(-(-side // stride) for side in size))
    assert model(torch.randn(2, 1, *size)).shape == (2, 3)


def test_logits_are_the_heads_of_the_last_map_and_activated_maps_their_gelu():
    model = small().eval()
    x = torch.randn(2, 1, 32, 32)
    maps = model.features(x)
    torch.testing.assert_close(model(x), model.head(model.norm(maps["stage3"].mean((2, 3)))))
    activated = model.features(x, activated=True)
    assert all(torch.equal(activated[name], nn.functional.gelu(maps[name])) for name in maps)


def test_a_stage_may_keep_the_size_of_its_map_and_its_table_follows():
    model = small(strides=(1, 2, 1))
    assert [stride for _, _, stride in model.feature_info] == [2, 2, 4, 4]
    assert [stage[0].attention.rel_pos_size for stage in list(model.stages)[1:]] == [56, 56]


def test_the_last_block_alone_can_attend_globally():
    model = small(window=(None, 4, (2, 4)), global_last=True)
    assert [[block.attention.window for block in stage] for stage in list(model.stages)[1:]] == [[None], [(2, 4), None]]


def test_every_parameter_receives_a_gradient():
    model = small()
    model(torch.randn(4, 1, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_frozen_batch_norm_takes_a_single_image_and_stays_as_it_is():
    model = small().freeze_batch_norm().train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    model(torch.randn(1, 1, 16, 16)).sum().backward()
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before))
    assert all(norm.weight.grad is None for norm in norms)
    assert model.head.weight.grad is not None
    model.freeze_batch_norm(False)
    assert all(norm.training and norm.weight.requires_grad for norm in norms)
    with pytest.raises(ValueError, match="one value per channel"):
        model(torch.randn(1, 1, 16, 16))


def test_synchronised_batch_norm_replaces_every_norm():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(small())
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in model.modules()) == 13
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    frozen = model.freeze_batch_norm()
    assert not any(module.training for module in frozen.modules() if isinstance(module, nn.SyncBatchNorm))


def test_half_precision_runs_and_stays_near():
    model = small().eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        wanted = model(x)
        found = model.bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=0.05, atol=0.05)


def test_a_saved_network_comes_back(tmp_path):
    model = small(window=(None, 4, (2, 2)), drop_path_rate=0.1).eval()
    model.save_pretrained(tmp_path)
    again = MOAT.from_pretrained(tmp_path).eval()
    x = torch.randn(1, 1, 32, 32)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": (8, 16)}, r"each stage needs one entry in every list, got depths \(1, 1, 2\), dims \(8, 16\)"),
        ({"window": (7,)}, "each stage needs one entry in every list"),
        ({"depths": (), "dims": (), "block_types": ()}, "each stage needs one entry"),
        ({"depths": (1, 0, 1)}, r"every stage needs at least one block, got depths \(1, 0, 1\)"),
        ({"block_types": ("mbconv", "moat", "swin")}, r"block_types must be 'mbconv' or 'moat', got \['swin'\]"),
        ({"in_chans": 0}, "in_chans must be at least 1, got 0"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\), got 1.0"),
        ({"strides": (2, 4, 2)}, "stride must be 1 or 2, got 4"),
        ({"dims": (8, 16, 20)}, "dim must be a multiple of head_dim, got 20 and 8"),
    ],
)
def test_networks_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_images_that_do_not_fit_are_refused_with_what_would():
    model = small(window=(None, 4, None)).eval()
    message = "windows of 4 x 4 must divide the maps of stage 2, which are 5 x 4 for images of 40 x 32; "
    with pytest.raises(ValueError, match=message + "images of multiples of 32 x 32 pixels fit"):
        model(torch.randn(1, 1, 40, 32))
    with pytest.raises(ValueError, match=r"images must have shape \(batch, 1, height, width\), got \(2, 3, 32, 32\)"):
        model(torch.randn(2, 3, 32, 32))
    with pytest.raises(TypeError, match="images must be floating point, got uint8"):
        model(torch.zeros(2, 1, 32, 32, dtype=torch.uint8))


def test_pyramid_levels_have_one_width_and_halve():
    backbone = small(features_only=True)
    pyramid = MOATPyramid(backbone, dim=12, levels=("stage1", "stage2", "stage3"), extra=2)
    maps = pyramid(torch.randn(2, 1, 66, 80))
    assert pyramid.strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert {name: tuple(value.shape[1:]) for name, value in maps.items()} == {
        "p2": (12, 17, 20), "p3": (12, 9, 10), "p4": (12, 5, 5), "p5": (12, 3, 3), "p6": (12, 2, 2),
    }  # fmt: skip


def test_the_pyramid_adds_the_coarser_level_to_the_finer():
    pyramid = MOATPyramid(small(features_only=True), dim=4, levels=("stage1", "stage2"), extra=0).eval()
    x = torch.randn(1, 1, 32, 32)
    maps = pyramid.backbone.features(x)
    coarse = pyramid.lateral[1](maps["stage2"])
    fine = pyramid.lateral[0](maps["stage1"]) + coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    found = pyramid(x)
    torch.testing.assert_close(found["p2"], pyramid.smooth[0](fine))
    torch.testing.assert_close(found["p3"], pyramid.smooth[1](coarse))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": ("stage9",)}, r"levels must be some of \['stem', 'stage1', 'stage2', 'stage3'\]"),
        ({"levels": ("stage2", "stage1")}, "finest first"),
        ({"dim": 0, "levels": ("stage1",)}, "dim must be positive"),
    ],
)
def test_pyramids_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MOATPyramid(small(features_only=True), **options)
