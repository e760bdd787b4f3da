import pytest
import torch

from etude.nn.mixers import build_mixer, mixer_names
from etude.sequence import load_mixers
from etude.sequence.after_transformers.token_mixing import GMLP, FNet, MLPMixer
from etude.testing import check_mixer


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "options"),
    [("fnet", {}), ("mlp_mixer", {}), ("mlp_mixer", {"causal": True}), ("gmlp", {}), ("gmlp", {"causal": True})],
)
def test_each_keeps_the_promises_of_a_mixer(name, options):
    torch.manual_seed(0)
    mixer = build_mixer(name, 6, max_len=16, **options)
    assert mixer.causal == options.get("causal", False)
    assert not mixer.has_step
    if name == "gmlp":
        torch.nn.init.normal_(mixer.spatial)
    check_mixer(mixer, 6)


def test_fnet_is_the_real_part_of_the_sums():
    x = draw(2, 5, 4)
    n, d = torch.arange(5.0).double(), torch.arange(4.0).double()
    turn = n[:, None, None, None] * n[:, None] / 5 + d[:, None, None] * d / 4  # (n, d, m, e)
    close = torch.einsum("bme,ndme->bnd", x, torch.cos(2 * torch.pi * turn))
    torch.testing.assert_close(FNet(4)(x), close)


def test_fnet_twice_is_the_even_half_and_no_flip():
    x, layer = draw(2, 5, 4), FNet(4)
    negated = x[:, -torch.arange(5) % 5][:, :, -torch.arange(4) % 4]
    torch.testing.assert_close(layer(layer(x)), 20 * (x + negated) / 2)


def test_mlp_mixer_is_a_network_along_the_tokens():
    torch.manual_seed(0)
    layer, x = MLPMixer(3, 7).double(), draw(2, 5, 3)
    hidden = torch.nn.functional.gelu(torch.einsum("hl,bld->bhd", layer.first[:5, :5], x))
    torch.testing.assert_close(layer(x), torch.einsum("lh,bhd->bld", layer.second[:5, :5], hidden))


def test_gmlp_starts_near_its_gate_open():
    torch.manual_seed(0)
    layer, x = GMLP(4, 6).double(), draw(2, 6, 4)
    u = torch.nn.functional.gelu(layer.enter(x)).chunk(2, -1)[0]
    assert float((layer(x) - layer.out(u)).detach().abs().max()) < 0.02


def test_what_does_not_fit_is_refused():
    for kind in (MLPMixer, GMLP):
        with pytest.raises(ValueError, match="takes at most 4 tokens, got 5"):
            kind(3, 4)(torch.zeros(1, 5, 3))
        with pytest.raises(ValueError, match="max_len must be at least 1"):
            kind(3, 0)
    with pytest.raises(ValueError, match=r"unknown mixer 'mambo'; known are .*mamba"):
        build_mixer("mambo", 4, max_len=4)


def test_all_mixers_of_the_survey_are_known_by_name():
    load_mixers()
    assert {
        "attention", "window", "linear_attention", "retention", "rwkv", "s4d", "mamba", "mamba2", "hyena", "long_conv",
        "base_conv", "mlstm", "slstm", "gru", "lstm", "min_gated", "fnet", "mlp_mixer", "gmlp",
    } <= set(mixer_names())  # fmt: skip
