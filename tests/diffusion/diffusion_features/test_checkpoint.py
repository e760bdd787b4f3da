"""Weights of guided-diffusion, and features kept on disk."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from etude.diffusion.diffusion_features import (
    DiffusionFeatures,
    UNet,
    adm_256,
    cached_features,
    from_guided_diffusion_state,
    load_guided_diffusion_state,
)


def network(seed=0, **changes):
    torch.manual_seed(seed)
    arguments = {"base_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": (1,)}
    unet = UNet(1, 2, **arguments | {"head_channels": 8, "norm_groups": 4} | changes)
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.3)
    return unet.eval()


def official(unet):
    """The state dict under the official names: layers in sequences, attention's convolutions one-dimensional."""
    names = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "emb": "emb_layers.1", "norm2": "out_layers.0",
        "conv2": "out_layers.3", "skip": "skip_connection", "proj": "proj_out",
    }  # fmt: skip
    state = {}
    for name, value in unet.state_dict().items():
        *path, layer, kind = name.split(".")
        if name.startswith(("input_blocks", "middle_block", "output_blocks")):
            if layer in ("qkv", "proj") and kind == "weight":
                value = value[..., 0]
            layer = names.get(layer, layer)
        state[".".join([*path, layer, kind])] = value.clone()
    return state


def test_a_file_of_the_official_format_is_loaded_by_name(tmp_path):
    trained, fresh = network(1), network(2)
    state = official(trained)
    assert "output_blocks.1.0.skip_connection.weight" in state
    assert state["middle_block.1.qkv.weight"].ndim == 3
    assert "input_blocks.1.0.emb_layers.1.bias" in state
    torch.save(state, tmp_path / "unet.pt")
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 900])
    with torch.no_grad():
        expected = trained(x, t)
        assert not torch.equal(fresh(x, t), expected)
        assert torch.equal(load_guided_diffusion_state(fresh, tmp_path / "unet.pt")(x, t), expected)
        assert torch.equal(load_guided_diffusion_state(network(3), state)(x, t), expected)


def test_resampling_convolutions_have_their_official_names_too():
    trained = network(1, resample_in_block=False)
    state = official(trained)
    state = {name.replace("input_blocks.2.0.conv", "input_blocks.2.0.op"): value for name, value in state.items()}
    assert "input_blocks.2.0.op.weight" in state
    loaded = load_guided_diffusion_state(network(2, resample_in_block=False), state)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in trained.state_dict().items())


def test_the_published_network_takes_its_published_names():
    with torch.device("meta"):
        unet = adm_256()
    own = from_guided_diffusion_state(official(unet))
    assert own.keys() == unet.state_dict().keys()
    assert sum(value.numel() for value in own.values()) == 552_814_086


def test_weights_of_another_architecture_are_refused_with_the_difference(tmp_path):
    state = official(network())
    with pytest.raises(ValueError, match=r"another architecture: time_embed.0.weight has shape \(32, 8\).*\(64, 16\)"):
        load_guided_diffusion_state(network(base_channels=16), state)
    with pytest.raises(ValueError, match=r"another architecture: missing \['input_blocks.4"):
        load_guided_diffusion_state(network(num_res_blocks=2), state)
    with pytest.raises(ValueError, match="no weights of a guided-diffusion U-Net here; the names begin with"):
        load_guided_diffusion_state(network(), {"conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="with classes"):
        load_guided_diffusion_state(network(), state | {"label_emb.weight": torch.zeros(1)})
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_guided_diffusion_state(network(), tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("not weights")
    with pytest.raises(ValueError, match="does not hold plain tensors"):
        load_guided_diffusion_state(network(), tmp_path / "text.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="must hold a mapping of weights, got list"):
        load_guided_diffusion_state(network(), tmp_path / "list.pt")


def extractor(unet, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    arguments = {"blocks": [2, 4], "timesteps": [20], "pool": 2, "generator": generator}
    return DiffusionFeatures(unet, DDPMScheduler(), **arguments | changes)


def test_kept_features_are_those_of_the_model_and_are_not_computed_twice(tmp_path):
    unet, x = network(), torch.rand(5, 1, 8, 8) * 2 - 1
    progress = []
    found = cached_features(
        extractor(unet), x, tmp_path, noise_samples=2, batch_size=2, dtype="float32",
        progress=lambda done, total: progress.append((done, total)),
    )  # fmt: skip
    assert progress == [(2, 10), (4, 10), (5, 10), (7, 10), (9, 10), (10, 10)]
    assert found[20, 4].shape == (2, 5, 16, 2, 2)
    again = extractor(unet)
    parts = [torch.cat([again(batch)[20, 4] for batch in x.split(2)]) for _ in range(2)]
    np.testing.assert_array_equal(found[20, 4], torch.stack(parts).numpy())
    assert isinstance(found[20, 2], np.memmap)
    calls = []
    unet.input_blocks[0].register_forward_hook(lambda *_: calls.append(1))
    stored = cached_features(extractor(unet, seed=9), x, tmp_path, noise_samples=2, dtype="float32")
    assert not calls
    np.testing.assert_array_equal(stored[20, 4], found[20, 4])


@pytest.mark.parametrize("what", ["weights", "images", "blocks", "draws", "dtype", "interrupted"])
def test_anything_else_is_computed_anew(tmp_path, what):
    unet, x = network(), torch.rand(3, 1, 8, 8) * 2 - 1
    cached_features(extractor(unet), x, tmp_path)
    changes, options = {}, {}
    if what == "weights":
        with torch.no_grad():
            unet.input_blocks[0][0].bias.add_(1)
    elif what == "images":
        x = -x
    elif what == "blocks":
        changes = {"blocks": [4]}
    elif what == "draws":
        options = {"noise_samples": 2}
    elif what == "dtype":
        options = {"dtype": "float32"}
    else:
        (tmp_path / "features.json").unlink()
    calls = []
    unet.input_blocks[0].register_forward_hook(lambda *_: calls.append(1))
    found = cached_features(extractor(unet, **changes), x, tmp_path, **options)
    assert calls
    assert found[20, 4].dtype == options.get("dtype", "float16")


def test_a_cache_refuses_unknown_numbers(tmp_path):
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    with pytest.raises(ValueError, match="dtype must be float16 or float32, got 'int8'"):
        cached_features(extractor(network()), x, tmp_path, dtype="int8")
    with pytest.raises(ValueError, match="must be positive, got 0 and 256"):
        cached_features(extractor(network()), x, tmp_path, noise_samples=0)
