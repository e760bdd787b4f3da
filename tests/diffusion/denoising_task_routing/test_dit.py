"""The transformer: published sizes, its zero start, routing that is exact, and equality with the official layout."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.diffusion.denoising_task_routing import (
    DiT,
    RoutedDiTBlock,
    Routing,
    TaskRouter,
    dit_b_2,
    dit_l_2,
    dit_s_2,
    dit_xl_2,
)

SIZES = {"input_size": 8, "in_channels": 2, "dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3, "sinusoids": 8}


def awake(module):
    """Random weights everywhere, so that gates are open."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def inputs(n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 8, 8, generator=generator)
    return x, torch.randint(1000, (n,), generator=generator), torch.randint(4, (n,), generator=generator)


@pytest.mark.parametrize(
    ("build", "millions"), [(dit_s_2, 32.96), (dit_b_2, 130.51), (dit_l_2, 458.10), (dit_xl_2, 675.13)]
)
def test_published_sizes(build, millions):
    with torch.device("meta"):
        model = build(input_size=32, learn_sigma=True)
    count = sum(parameter.numel() for parameter in model.parameters()) + model.positions.numel()
    assert count / 1e6 == pytest.approx(millions, abs=0.006)


def test_a_fresh_network_gives_zero_and_its_blocks_are_identities():
    model = DiT(**SIZES, routing=Routing())
    x, t, y = inputs()
    assert torch.equal(model(x, t, y), torch.zeros(4, 2, 8, 8))
    tokens, c = torch.randn(4, 16, 16), torch.randn(4, 16)
    for block in model.blocks:
        assert torch.equal(block(tokens, t, c), tokens)


def test_a_share_of_one_is_the_plain_network_bit_for_bit():
    x, t, y = inputs()
    results = []
    for routing in (None, Routing(beta=1), Routing(method="none"), Routing(method="random", beta=1)):
        model = awake(DiT(**SIZES, routing=routing))
        out = model(x, t, y)
        out.square().mean().backward()
        results.append([out, *(parameter.grad for parameter in model.parameters())])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def test_routing_adds_no_parameters_and_no_entries_to_the_state():
    plain = DiT(**SIZES)
    for beta in (0.2, 0.8, 1.0):
        routed = DiT(**SIZES, routing=Routing(beta=beta))
        assert list(routed.state_dict()) == list(plain.state_dict())
        assert sum(p.numel() for p in routed.parameters()) == sum(p.numel() for p in plain.parameters())
        routed.load_state_dict(plain.state_dict())
    drawn = DiT(**SIZES, routing=Routing(method="random"))
    assert set(drawn.state_dict()) - set(plain.state_dict()) == {f"blocks.{index}.router.mask" for index in range(2)}


def routed_block(dim=10):
    torch.manual_seed(0)
    router = TaskRouter(num_tasks=7, dim=dim, alpha=2, beta=0.6)
    return awake(RoutedDiTBlock(dim, 2, router=router)).double()


def test_what_is_added_depends_on_the_active_channels_alone():
    block = routed_block()
    generator = torch.Generator().manual_seed(0)
    x, c = (torch.randn(3, *shape, 10, generator=generator).double() for shape in ((4,), ()))
    t = torch.tensor([0, 4, 6])
    mask = block.router.mask[t][:, None].double()
    delta = block.block(x * mask, c) - x * mask
    torch.testing.assert_close(block(x, t, c) - x, delta, rtol=0, atol=1e-6)


def test_the_jacobian_of_inactive_channels_is_the_identity_and_active_ones_reach_all():
    block = routed_block()
    generator = torch.Generator().manual_seed(0)
    x, c = torch.randn(1, 2, 10, generator=generator).double(), torch.randn(1, 10, generator=generator).double()
    t = torch.tensor([4])
    jacobian = torch.autograd.functional.jacobian(lambda z: block(z, t, c), x).reshape(20, 20)
    active = block.router.mask[4].repeat(2)
    assert torch.equal(jacobian[:, ~active], torch.eye(20).double()[:, ~active])
    assert float(jacobian[:, active].abs().min()) > 0


def test_rows_of_a_batch_are_routed_by_their_own_timesteps():
    model = awake(DiT(**SIZES, routing=Routing(beta=0.5)))
    x, _, y = inputs()
    t = torch.tensor([0, 300, 700, 999])
    together = model(x, t, y)
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_the_plain_block_is_the_official_one():
    block = awake(RoutedDiTBlock(16, 2))
    z, c = torch.randn(3, 5, 16), torch.randn(3, 16)
    shift1, scale1, gate1, shift2, scale2, gate2 = (
        part[:, None] for part in F.linear(F.silu(c), block.modulation[1].weight, block.modulation[1].bias).chunk(6, 1)
    )
    h = F.layer_norm(z, (16,), eps=1e-6) * (1 + scale1) + shift1
    qkv = block.attn.qkv(h).reshape(3, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(qkv[0] @ qkv[1].transpose(-1, -2) / math.sqrt(8), dim=-1)
    z1 = z + gate1 * block.attn.proj((weights @ qkv[2]).transpose(1, 2).reshape(3, 5, 16))
    h = F.layer_norm(z1, (16,), eps=1e-6) * (1 + scale2) + shift2
    z2 = z1 + gate2 * block.mlp.fc2(F.gelu(block.mlp.fc1(h), approximate="tanh"))
    torch.testing.assert_close(block(z, torch.zeros(3).long(), c), z2, rtol=1e-5, atol=1e-5)


def test_positions_are_sines_and_cosines_of_column_then_row():
    positions = DiT(**SIZES).positions
    row, column = 1, 3
    expected = [
        f(place * 10_000 ** (-i / 4)) for place in (column, row) for f in (math.sin, math.cos) for i in range(4)
    ]
    torch.testing.assert_close(positions[row * 4 + column], torch.tensor(expected), rtol=0, atol=1e-6)


def test_patches_come_back_where_they_were():
    """With the identity for a head, the image that went in comes out."""
    model = DiT(4, 2, 1, dim=4, depth=1, num_heads=1, num_classes=0, sinusoids=2)
    model.positions.zero_()
    with torch.no_grad():
        model.embed.proj.weight.copy_(torch.eye(4).reshape(4, 1, 2, 2))
        model.head.weight.copy_(torch.eye(4))
    model.norm = nn.Identity()
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(model(x, torch.tensor([0])), x)


def test_labels_are_dropped_in_training_only():
    model = awake(DiT(**{**SIZES, "label_dropout": 0.5}))
    t, y = torch.zeros(2000).long(), torch.zeros(2000).long()
    labelled, unlabelled = model.conditioning(t[:1], y[:1]), model.conditioning(t[:1], None)
    torch.testing.assert_close(model.conditioning(t, y), labelled.expand(2000, -1))
    torch.manual_seed(0)
    found = model.train().conditioning(t, y)
    dropped = torch.isclose(found, unlabelled, atol=1e-5).all(dim=1)
    assert dropped.double().mean().item() == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(found[~dropped], labelled.expand(int((~dropped).sum()), -1))


def test_saved_networks_come_back_routed(tmp_path):
    x, t, y = inputs()
    for routing in (Routing(beta=0.5), Routing(method="random", beta=0.5, seed=3)):
        model = awake(DiT(**SIZES, routing=routing))
        model.save_pretrained(tmp_path)
        again = DiT.from_pretrained(tmp_path)
        assert again.routing == routing
        assert torch.equal(again(x, t, y), model(x, t, y))
    late = awake(DiT(**SIZES)).route_(Routing(beta=0.5))
    late.save_pretrained(tmp_path)
    assert DiT.from_pretrained(tmp_path).routing == Routing(beta=0.5)
    with pytest.raises(ValueError, match="routed already"):
        late.route_(Routing())


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    DiT(**{**SIZES, "dim": 32}).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        DiT.from_pretrained(tmp_path, dim=16, strict=True)


def test_a_network_in_half_precision_is_routed_exactly():
    model = awake(DiT(**SIZES, routing=Routing(beta=0.5))).bfloat16()
    x, t, y = inputs()
    read = []
    model.blocks[0].norm1.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    assert model(x.bfloat16(), t, y).dtype == torch.bfloat16
    active = model.blocks[0].router.mask[t][:, None].expand(4, 16, 16)
    tokens = model.embed(x.bfloat16()) + model.positions
    assert torch.equal(read[0], torch.where(active, tokens, 0))


def test_bad_input_is_refused():
    x, t, y = inputs()
    model = DiT(**SIZES, routing=Routing(num_tasks=1000))
    for call, error, text in (
        ((x[..., :6], t, y), ValueError, r"\(2, 8, 8\), got \(2, 8, 6\)"),
        ((x, t + 1000, y), IndexError, r"0\.\.999"),
        ((x, t.float(), y), TypeError, "float32"),
        ((x, t, y + 4), ValueError, r"0\.\.3"),
    ):
        with pytest.raises(error, match=text):
            model(*call)
    with pytest.raises(ValueError, match="no labels"):
        DiT(**{**SIZES, "num_classes": 0})(x, t, y)
    for wrong, text in (
        ({"input_size": 7}, "multiple of patch_size, got 7"),
        ({"dim": 18}, "multiple of 4"),
        ({"depth": 0}, "depth"),
        ({"num_heads": 3}, "multiple of num_heads"),
    ):
        with pytest.raises(ValueError, match=text):
            DiT(**{**SIZES, **wrong})
    with pytest.raises(ValueError, match="for 8 channels, the block has 16"):
        RoutedDiTBlock(16, 2, router=TaskRouter(dim=8))
