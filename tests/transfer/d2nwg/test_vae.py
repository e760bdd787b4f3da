import pytest
import torch
from torch import nn

from etude.transfer.d2nwg import WeightVAE, kl_to_standard, soft_contrastive_loss


def test_kl_is_its_closed_form_and_zero_at_the_prior():
    assert kl_to_standard(torch.zeros(3, 4), torch.zeros(3, 4)).tolist() == [0, 0, 0]
    mean, logvar = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    ours = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(ours, torch.distributions.Normal(0.0, 1.0)).sum(dim=(1, 2))
    torch.testing.assert_close(kl_to_standard(mean, logvar), expected)


def test_loss_is_its_equation():
    torch.manual_seed(0)
    x, noise = torch.randn(4, 7), torch.randn(4, 3)
    vae = WeightVAE(7, (3,), hidden=8, kl_weight=0.1, l1_weight=2.0, mse_weight=30.0)
    mean, logvar = vae.encode(x)
    again = vae.decode(mean + logvar.exp().sqrt() * noise)
    expected = (
        2.0 * (x - again).abs().sum() / 4
        + 0.1 * kl_to_standard(mean, logvar).sum() / 4
        + 30.0 * ((x - again) ** 2).mean()
    )
    torch.testing.assert_close(vae.loss(x, lambda like: noise), expected)
    defaults = WeightVAE(7, (3,))
    assert (defaults.l1_weight, defaults.kl_weight, defaults.mse_weight) == (1.0, 1e-6, 1000.0)


def test_a_linear_autoencoder_without_kl_and_with_room_reconstructs():
    torch.manual_seed(0)
    vae = WeightVAE(4, (5,), depth=0, kl_weight=0.0, l1_weight=0.0, mse_weight=1.0)
    x = torch.randn(64, 4)
    with torch.no_grad():  # the least noise that the clamp allows
        vae.net.encoder[0].weight[5:] = 0
        vae.net.encoder[0].bias[5:] = -30.0
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        vae.loss(x, torch.zeros_like).backward()
        optimizer.step()
    assert (vae(x) - x).square().mean() < 1e-6


def test_log_variances_are_clamped():
    vae = WeightVAE(4, (2,), depth=0)
    with torch.no_grad():
        vae.net.encoder[0].bias[2:] = torch.tensor([-100.0, 100.0])
    logvar = vae.encode(torch.zeros(1, 4))[1]
    assert logvar.tolist() == [[-30.0, 20.0]]


def test_the_published_convolutional_layout():
    with torch.device("meta"):
        vae = WeightVAE(2864, (4, 16, 16), arch="conv")
    assert sum(p.numel() for p in vae.net.fc_in.parameters()) == 2864 * 4096 + 4096 == 11_735_040
    core = vae.net.core
    assert core.encoder.conv_in.weight.shape == (128, 1, 3, 3)
    assert [len(block.resnets) for block in core.encoder.down_blocks] == [2, 2, 2]
    assert [block.resnets[-1].conv2.out_channels for block in core.encoder.down_blocks] == [128, 128, 256]
    assert core.encoder.conv_out.weight.shape[:2] == (8, 256)
    assert core.quant_conv.weight.shape == (8, 8, 1, 1)
    assert core.post_quant_conv.weight.shape == (4, 4, 1, 1)
    assert len(core.encoder.mid_block.resnets) == 2
    assert len(core.encoder.mid_block.attentions) == 1
    assert 4 * 16 * 16 == 32 * 32 == 1024


def test_the_convolutional_form_runs():
    torch.manual_seed(0)
    vae = WeightVAE(50, (2, 4, 4), arch="conv", channels=(8, 8, 16))
    x = torch.randn(3, 50)
    mean, logvar = vae.encode(x)
    assert mean.shape == logvar.shape == (3, 2, 4, 4)
    assert vae(x).shape == x.shape
    vae.loss(x).backward()
    assert all(weight.grad is not None for weight in vae.parameters())


def test_bad_sizes_are_refused():
    for arguments, message in (
        (((0, (3,)), {}), "must be positive"),
        (((4, (3, 2)), {}), "one dimension"),
        (((4, (3,)), {"arch": "conv"}), "three dimensions"),
        (((4, (3,)), {"arch": "tree"}), "arch must be"),
        (((4, (3,)), {"kl_weight": -1.0}), "kl_weight must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            WeightVAE(*arguments[0], **arguments[1])
    with pytest.raises(ValueError, match="vectors of 4 entries"):
        WeightVAE(4, (3,)).encode(torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"latents of shape \(3,\)"):
        WeightVAE(4, (3,)).decode(torch.zeros(1, 5))


def orthogonal(n=5, norm=1.0, seed=0):
    q = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    return norm * q


def test_dominant_diagonals_give_the_plain_contrastive_loss():
    w, d = orthogonal(norm=10.0), orthogonal(norm=10.0, seed=1)
    d = 0.3 * w + d * 0.95
    logits = w @ d.T
    hard = torch.arange(5)
    plain = (nn.functional.cross_entropy(logits, hard) + nn.functional.cross_entropy(logits.T, hard)) / 2
    torch.testing.assert_close(soft_contrastive_loss(w, orthogonal(norm=10.0), 1.0),
                               torch.zeros((), dtype=torch.float64), atol=1e-9, rtol=0)  # fmt: skip
    torch.testing.assert_close(soft_contrastive_loss(w, d, 1.0), plain, rtol=1e-6, atol=1e-9)


def test_gradient_vanishes_at_agreement_only_with_detached_targets():
    w = orthogonal()
    for detach, zero in ((True, True), (False, False)):
        d = w.clone().requires_grad_()
        soft_contrastive_loss(w, d, detach_targets=detach).backward()
        assert (d.grad.abs().max() < 1e-14) == zero
    general = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    d = general.clone().requires_grad_()
    soft_contrastive_loss(general, d).backward()
    assert d.grad.abs().max() > 1e-3


def test_the_loss_knows_pairs_but_no_order_and_is_not_symmetric():
    g = torch.Generator().manual_seed(0)
    w, d = (torch.randn(6, 4, generator=g, dtype=torch.float64) for _ in range(2))
    order = torch.randperm(6, generator=g)
    loss = soft_contrastive_loss(w, d, 0.7)
    torch.testing.assert_close(soft_contrastive_loss(w[order], d[order], 0.7), loss)
    assert abs(soft_contrastive_loss(d, w, 0.7) - loss) > 1e-3
    targets = torch.softmax((w @ w.T + d @ d.T) / 2 * 0.7, dim=1)
    logits = w @ d.T / 0.7
    naive = 0.0
    for i in range(6):
        naive -= sum(targets[i, j] * logits[i].log_softmax(0)[j] for j in range(6)) / 12
        naive -= sum(targets[j, i] * logits[:, i].log_softmax(0)[j] for j in range(6)) / 12
    torch.testing.assert_close(loss, naive)
    torch.testing.assert_close(
        soft_contrastive_loss(3 * w, 5 * d, normalize=True), soft_contrastive_loss(w, d, normalize=True)
    )


def test_bad_alignments_are_refused():
    with pytest.raises(ValueError, match="temperature"):
        soft_contrastive_loss(torch.zeros(3, 2), torch.zeros(3, 2), 0.0)
    with pytest.raises(ValueError, match="two pairs"):
        soft_contrastive_loss(torch.zeros(1, 2), torch.zeros(1, 2))
