"""The networks and data that the claims of ConViT compare."""

import pytest
import torch

from etude.claims.vision import convit as claims
from etude.data.kinds import Examples, ImageData
from etude.lab import Trial
from etude.nn.transformer import SelfAttention

CLAIM = claims.PAPER.claims["sample_efficiency"]


def trial(arm="convit", scale="small", claim=CLAIM):
    return Trial(claim.id, arm, 500, scale, claim.setups[scale])


def image_data(channels=1, height=8, width=8, classes=10):
    generator = torch.Generator().manual_seed(0)
    split = Examples(
        torch.rand(20, channels, height, width, generator=generator), torch.arange(20, dtype=torch.int64) % classes
    )
    return ImageData(split, split, split, tuple(str(k) for k in range(classes)), "made")


@pytest.mark.parametrize(("plain", "count"), [(True, 64_882), (False, 65_017)])
def test_the_compared_networks_are_of_equal_size(plain, count):
    model = claims._network(trial(), image_data(), plain)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    kinds = [isinstance(block.attn, SelfAttention) for block in model.blocks]
    assert kinds == ([True] * 4 if plain else [False] * 3 + [True])


def test_both_kinds_start_from_the_same_patches_and_positions():
    one, other = (claims._network(trial(), image_data(), plain) for plain in (True, False))
    assert torch.equal(one.patch_embed.proj.weight, other.patch_embed.proj.weight)
    assert torch.equal(one.pos_embed, other.pos_embed)


def test_controls_change_what_their_names_say():
    def started(arm, plain, local_init=True):
        current = trial(arm)
        model = claims._network(current, image_data(), plain, local_init)
        with current.stream("method"):
            claims._start_otherwise(model, arm)
        return model.blocks

    def changed(one, other):
        after = dict(other.named_parameters())
        return {name for name, value in one.named_parameters() if not torch.equal(value, after[name])}

    vit, convit = started("vit", True), started("convit", False)
    identity = started("vit_identity_v", True)
    assert changed(vit, identity) == {f"{block}.attn.qkv.weight" for block in range(4)}
    assert all(torch.equal(block.attn.qkv.weight[72:], torch.eye(36)) for block in identity)
    assert torch.equal(identity[0].attn.qkv.weight[:72], vit[0].attn.qkv.weight[:72])
    assert changed(convit, started("random_v", False)) == {f"{block}.attn.v.weight" for block in range(3)}
    xavier = started("vit_xavier", True)
    assert all(name.endswith("weight") and "norm" not in name for name in changed(vit, xavier))
    assert xavier[0].mlp.fc1.weight.std() > 3 * vit[0].mlp.fc1.weight.std()
    scattered = started("no_local_init", False, local_init=False)
    assert scattered[0].attn.pos_proj.weight.abs().max() < 0.2
    assert not torch.equal(scattered[0].attn.v.weight, torch.eye(36))


@pytest.mark.parametrize(
    ("size", "grid"), [((8, 8), (4, 4)), ((28, 28), (7, 7)), ((20, 50), (4, 9)), ((1, 30), (1, 15))]
)
def test_images_of_any_size_are_fitted(size, grid):
    data = image_data(3, *size)
    model = claims._network(trial(), data, plain=False)
    assert model.grid_size == grid
    fitted = claims._Fitted(model, *claims._statistics(data.train)).eval()
    assert fitted(data.train.inputs).shape == (20, 10)
    whole = fitted.fitted(data.train.inputs)[:, :, : size[0], : size[1]]
    torch.testing.assert_close(whole.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)


def test_parts_of_the_data_are_drawn_by_number_or_fraction():
    split = Examples(torch.arange(20.0), torch.arange(20))
    drawn = [claims._drawn(split, n, torch.Generator().manual_seed(0)) for n in (5, 0.25)]
    assert len(drawn[0]) == 5
    assert torch.equal(drawn[0].targets, drawn[1].targets)
    assert claims._drawn(split, 30, torch.Generator()) is claims._drawn(split, 1.0, torch.Generator()) is split
    rows = torch.utils.data.TensorDataset(torch.arange(20))
    assert len(claims._drawn(rows, 0.1, torch.Generator())) == 2


def test_the_full_setup_is_the_published_small_network_and_schedule():
    claim = claims.PAPER.claims["gap_shrinks"]
    setup = claim.setups["full"]
    data = image_data(3, 224, 224, 20)
    with torch.device("meta"):
        model = claims._network(trial("convit_5", "full", claim), data, plain=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == 27_777_322 - 433 * 980
    assert (setup.steps, setup.warmup) == (375_341, 6_255)
    assert [block.drop_path.rate for block in model.blocks][-1] == pytest.approx(0.1)
    assert len(claim.arms) == 10
    assert claim.tuned_like["vit_5"] == "vit_10"
    assert claim.tuned_like["convit_50"] == "convit_100"
