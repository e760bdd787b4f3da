"""Names of timm's and the official weights, there and back."""

import pytest
import torch
from safetensors.torch import save_file

from etude.vision.convit import ConViT, from_timm_state, load_timm, to_timm_state

SMALL = {"img_size": 16, "patch_size": 4, "num_classes": 3, "dim": 8, "depth": 3, "num_heads": 4}


def network(seed=0, **changes):
    torch.manual_seed(seed)
    return ConViT(**(SMALL | {"local_up_to_layer": 2} | changes)).eval()


def their_names():
    """What timm 1.0 and the official code call the parameters of a model of two gated blocks and a plain one."""
    shared = ["norm1.weight", "norm1.bias", "attn.proj.weight", "attn.proj.bias", "norm2.weight", "norm2.bias"]
    shared += [f"mlp.fc{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")]
    gated = ["attn.gating_param", "attn.qk.weight", "attn.v.weight", "attn.pos_proj.weight", "attn.pos_proj.bias"]
    names = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    names |= {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    for block in range(3):
        names |= {f"blocks.{block}.{name}" for name in shared + (gated if block < 2 else ["attn.qkv.weight"])}
    return names


def test_names_go_round():
    state = network().state_dict()
    theirs = to_timm_state(state)
    assert theirs.keys() == their_names()
    back = from_timm_state(theirs)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())


@pytest.mark.parametrize("form", ["plain", "checkpoint", "distributed", "coordinates"])
def test_weights_are_found_in_every_usual_form(form):
    source = network(1)
    theirs = to_timm_state(source.state_dict())
    state = {
        "plain": theirs,
        "checkpoint": {"model": theirs, "epoch": 3},
        "distributed": {"state_dict": {f"module.{name}": value for name, value in theirs.items()}},
        "coordinates": theirs | {"blocks.0.attn.rel_indices": torch.zeros(1, 16, 16, 3)},
    }[form]
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(load_timm(network(), state)(x), source(x))


def test_averaged_weights_are_taken_when_asked_for():
    plain, averaged = network(1), network(2)
    state = {"model": to_timm_state(plain.state_dict()), "model_ema": to_timm_state(averaged.state_dict())}
    assert torch.equal(load_timm(network(), state).head.weight, plain.head.weight)
    assert torch.equal(load_timm(network(), state, ema=True).head.weight, averaged.head.weight)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_weights_are_read_from_files(tmp_path, name):
    theirs = to_timm_state(network(1).state_dict())
    (torch.save if name.endswith("pth") else save_file)(theirs, tmp_path / name)
    assert torch.equal(load_timm(network(), tmp_path / name).pos_embed, theirs["pos_embed"])


def test_files_that_hold_more_than_tensors_are_refused(tmp_path):
    torch.save({"model": {}, "args": print}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="more than plain tensors"):
        load_timm(network(), tmp_path / "weights.pth")
    with pytest.raises(FileNotFoundError, match=r"no weights at .*absent\.pth"):
        load_timm(network(), tmp_path / "absent.pth")


def test_another_resolution_and_other_classes_are_taken():
    theirs = to_timm_state(network(1).state_dict())
    model = network(img_size=(24, 16), num_classes=5)
    head = model.head.weight.detach().clone()
    wanted = network(1).resize((24, 16)).pos_embed
    load_timm(model, theirs, new_head=True)
    assert torch.equal(model.head.weight, head)
    torch.testing.assert_close(model.pos_embed, wanted)
    with pytest.raises(ValueError, match=r"head.*has shape \(3.*the model's has \(5.*new_head=True keeps"):
        load_timm(model, theirs)


def test_weights_of_another_model_are_refused():
    theirs = to_timm_state(network(local_up_to_layer=1).state_dict())
    with pytest.raises(ValueError, match=r"missing \['blocks.1.attn.gate_logit'.*left over \['blocks.1.attn.qkv"):
        load_timm(network(), theirs)
    with pytest.raises(ValueError, match=r"norm1.*has shape \(16,\), the model's has \(8,\)"):
        load_timm(network(), {**to_timm_state(network().state_dict()), "blocks.0.norm1.weight": torch.ones(16)})
    with pytest.raises(ValueError, match=r"no weights of a ConViT here; the names begin with \['a'\]"):
        load_timm(network(), {"a": torch.ones(1)})
    odd = {**to_timm_state(network().state_dict()), "pos_embed": torch.zeros(1, 15, 8)}
    with pytest.raises(ValueError, match="square grid to be interpolated, got 15"):
        load_timm(network(), odd)
