"""Self-attention over features, the gate, the autoencoders."""

import logging

import pytest
import torch
import torch.nn.functional as F

from etude.science.blackbox_rules import (
    AutoencoderClassifier,
    ConvAutoencoder,
    DenseAutoencoder,
    Perceptron,
    SelfAttentionNet,
)


def rows(n=6, d=9):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def network(d=9, **options):
    torch.manual_seed(1)
    return SelfAttentionNet(d, 3, hidden=5, **options).eval()


@pytest.mark.parametrize("rank", [None, 4, 0])
def test_zero_weights_and_biases_make_the_attention_the_identity(rank):
    net = network(rank=rank)
    with torch.no_grad():
        for name in {"weight", "left", "bias"} & set(dict(net.named_parameters())):
            getattr(net, name).zero_()
    x = rows()
    torch.testing.assert_close(net.attend(x), x, rtol=1e-6, atol=1e-6)


def test_the_network_equals_equations_1_and_2_head_by_head():
    net = network()
    with torch.no_grad():
        net.weight.mul_(20)
        net.bias.normal_()
    x = rows()
    omega = 0
    for head in range(2):
        omega = omega + x * torch.softmax(x @ net.weight[head].T + net.bias[head], dim=1)
    hidden = F.selu(9 / 2 * omega @ net.encode.weight.T + net.encode.bias)
    expected = hidden @ net.decode.weight.T + net.decode.bias
    torch.testing.assert_close(net(x), expected)


def test_the_low_rank_form_equals_the_full_matrix():
    low, full = network(rank=4), network()
    full.load_state_dict(low.state_dict() | {"weight": low.left @ low.right.mT}, strict=False)
    with torch.no_grad():
        low.bias.normal_()
        full.bias.copy_(low.bias)
    torch.testing.assert_close(low(rows()), full(rows()))
    torch.testing.assert_close(low.global_attention(), full.global_attention())


def test_permuting_columns_with_their_weights_changes_nothing():
    net, other = network(), network()
    order = torch.randperm(9)
    with torch.no_grad():
        net.weight.mul_(20)
        net.bias.normal_()
        other.weight.copy_(net.weight[:, order][:, :, order])
        other.bias.copy_(net.bias[:, order])
        other.encode.weight.copy_(net.encode.weight[:, order])
    x = rows()
    torch.testing.assert_close(other(x[:, order]), net(x))


def test_attention_sums_to_one_over_the_features():
    net = network()
    torch.testing.assert_close(net.attention(rows()).sum(-1), torch.ones(6, 2))
    torch.testing.assert_close(net.global_attention().sum(), torch.tensor(1.0))


def test_global_attention_is_the_mean_softmax_of_the_diagonals():
    net = network()
    expected = torch.stack([torch.softmax(net.weight[head].diag(), 0) for head in range(2)]).mean(0)
    torch.testing.assert_close(net.global_attention(), expected)


@pytest.mark.parametrize("net", [network(rank=0), Perceptron(9, 3, 5).eval()], ids=["gated", "mlp"])
def test_front_and_back_together_are_the_network(net):
    weight, bias = net.front()
    torch.testing.assert_close(net.back(F.linear(rows(), weight, bias)), net(rows()))


def test_attention_that_depends_on_the_row_has_no_linear_front():
    assert network().front() is None
    assert network(rank=3).front() is None


def test_above_4096_features_the_rank_is_64_and_that_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        net = SelfAttentionNet(4_097, 2, hidden=2)
    assert net.left.shape == (2, 4_097, 64)
    assert not hasattr(net, "weight")
    assert "rank 64" in caplog.text


@pytest.mark.parametrize("dim", [4, 7, 8, 9, 10, 33])
def test_the_convolutional_autoencoder_gives_back_as_many_columns(dim):
    autoencoder = ConvAutoencoder(dim, latent=3, channels=(4, 6)).eval()
    x = rows(5, dim)
    assert autoencoder.encoder(x).shape == (5, 3)
    assert autoencoder(x).shape == (5, dim)


def test_the_convolutional_autoencoder_has_the_layers_of_its_text():
    autoencoder = ConvAutoencoder(1_000)
    count = sum(value.numel() for value in autoencoder.encoder.parameters())
    flat = 64 * 250
    assert count == (32 * 5 + 32) + 2 * 32 + (64 * 32 * 5 + 64) + 2 * 64 + flat * 64 + 64
    assert DenseAutoencoder(1_000).latent == autoencoder.latent == 64


def test_an_autoencoder_classifier_reads_the_code():
    torch.manual_seed(0)
    net = AutoencoderClassifier(DenseAutoencoder(9, 4, 6), 3).eval()
    logits, reconstruction = net.reconstruct(rows())
    torch.testing.assert_close(logits, net(rows()))
    torch.testing.assert_close(logits, net.head(net.autoencoder.encoder(rows())))
    torch.testing.assert_close(reconstruction, net.autoencoder(rows()))
    assert net.embed(rows()).shape == (6, 4)


def test_gradients_agree_with_finite_differences():
    torch.manual_seed(0)
    for rank in (None, 2, 0):
        net = SelfAttentionNet(4, 3, hidden=3, rank=rank).double().eval()
        x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(net, (x,))


def test_weights_come_back_from_disk(tmp_path):
    net = network(rank=3)
    net.save_pretrained(tmp_path)
    again = SelfAttentionNet.from_pretrained(tmp_path).eval()
    assert torch.equal(again(rows()), net(rows()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelfAttentionNet(0, 2), "dim must be positive, got 0"),
        (lambda: SelfAttentionNet(5, 2, num_heads=0), "num_heads must be positive"),
        (lambda: SelfAttentionNet(5, 2, rank=6), r"rank must lie in 0\.\.5"),
        (lambda: Perceptron(5, 2, dropout=1.0), r"dropout must lie in \[0, 1\), got 1.0"),
        (lambda: ConvAutoencoder(3), "at least 4 features, got 3"),
        (lambda: ConvAutoencoder(30, kernel=4), "kernel must be odd, got 4"),
        (lambda: DenseAutoencoder(30, latent=0), "latent must be positive"),
    ],
)
def test_sizes_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
