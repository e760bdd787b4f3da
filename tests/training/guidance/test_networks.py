"""Targets and guides: their sizes, their skips, and the tasks of the sequence experiments."""

import pytest
import torch

from etude.nn.resnet import ResNet
from etude.training.guidance import (
    IGNORED,
    PARITY_PAD,
    DeepFCN,
    DeepMLP,
    ParityRNN,
    ParityTransformer,
    PlainResNet,
    TransformerLM,
    VanillaRNNLM,
    WideFCN,
    copy_batch,
    parity_batch,
)


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_plain_resnet_lacks_the_skips_and_what_adapts_them():
    with torch.device("meta"):
        adapting = sum(a * b + 2 * b for a, b in ((64, 256), (256, 512), (512, 1024), (1024, 2048)))
        assert parameters(PlainResNet(50)) == 25_557_032 - adapting
    torch.manual_seed(0)
    options = {"blocks": [2], "widths": [3], "in_channels": 1, "num_classes": 2, "small_images": True}
    residual, plain = ResNet(**options), PlainResNet(**options)
    plain.load_state_dict(residual.state_dict())
    x = torch.rand(4, 1, 6, 6, generator=seeded())
    block, bare = residual.eval().layer1[0], plain.eval().layer1[0]
    inner = bare.bn2(bare.conv2(bare.bn1(bare.conv1(x.expand(4, 3, 6, 6))).relu()))
    torch.testing.assert_close(bare(x.expand(4, 3, 6, 6)), inner.relu())
    torch.testing.assert_close(block(x.expand(4, 3, 6, 6)), (inner + x).relu())


def test_the_deep_fcn_is_the_paper_s():
    with torch.device("meta"):
        first = 150_528 * 2048 + 2048 + 2 * 2048
        second, others = 2048 * 1024 + 1024 + 2 * 1024, 46 * (1024 * 1024 + 1024 + 2 * 1024)
        assert parameters(DeepFCN(3 * 224 * 224, 1000)) == first + second + others + 1024 * 1000 + 1000
        wide = [layer for layer in WideFCN(10, 2).modules() if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in wide] == [8192, 8192, 8192, 2]


def test_mlp_layers_add_their_input_where_they_have_skips():
    torch.manual_seed(0)
    plain, residual = DeepMLP(5, 2, depth=3, width=4), DeepMLP(5, 2, depth=3, width=4, skips=True)
    residual.load_state_dict(plain.state_dict())
    x = torch.rand(6, 5, generator=seeded())
    states = [x.clone(), x.clone()]
    for index in range(3):
        weights = plain.layers[index].linear
        states[0] = weights(states[0]).relu()
        states[1] = weights(states[1]).relu() + (states[1] if index > 0 else 0)
    torch.testing.assert_close(plain(x), plain.classifier(states[0]))
    torch.testing.assert_close(residual(x), plain.classifier(states[1]))


def test_mlp_weights_are_he_initialised():
    torch.manual_seed(0)
    layer = DeepMLP(400, 2, depth=2, width=400).layers[1].linear
    assert layer.weight.var().item() == pytest.approx(2 / 400, rel=0.05)
    assert layer.bias.abs().max() == 0


def test_copies_follow_the_sign_and_nothing_else_is_asked():
    inputs, targets = copy_batch(200, shortest=2, longest=5, symbols=3, generator=seeded())
    assert inputs.shape == targets.shape == (200, 12)
    lengths = set()
    for row, answers in zip(inputs.tolist(), targets.tolist()):
        length = row.index(4)
        lengths.add(length)
        symbols = row[:length]
        assert set(symbols) <= {0, 1, 2}
        assert row == [*symbols, 4, *[3] * length, 5, *[3] * (12 - 2 * length - 2)]
        rest = [IGNORED] * (12 - 2 * length - 2)
        assert answers == [*[IGNORED] * (length + 1), *symbols, 5, *rest]
    assert lengths == {2, 3, 4, 5}


def test_parity_is_that_of_the_ones():
    tokens, labels = parity_batch(200, shortest=2, longest=6, generator=seeded())
    lengths = set()
    for row, label in zip(tokens.tolist(), labels.tolist()):
        length = row.index(PARITY_PAD) if PARITY_PAD in row else 6
        lengths.add(length)
        assert row[length:] == [PARITY_PAD] * (6 - length)
        assert label == sum(row[:length]) % 2
    assert lengths == {2, 3, 4, 5, 6}
    assert set(labels.tolist()) == {0, 1}


def test_generated_batches_are_reproducible():
    for make in (copy_batch, parity_batch):
        first, second = make(5, generator=seeded()), make(5, generator=seeded())
        assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize(
    "make", [lambda: ParityRNN(dim=4, layers=2), lambda: ParityTransformer(dim=4, heads=2, layers=2, hidden=4)]
)
def test_parity_networks_do_not_see_the_padding(make):
    torch.manual_seed(0)
    model = make().eval()
    tokens, _ = parity_batch(6, longest=7, generator=seeded())
    longer = torch.cat([tokens, torch.full((6, 4), PARITY_PAD)], dim=1)
    torch.testing.assert_close(model(longer), model(tokens), rtol=1e-4, atol=1e-5)
    assert model(tokens).shape == (6, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TransformerLM(6, dim=8, heads=2, layers=2, hidden=8, longest=9),
        lambda: VanillaRNNLM(6, embedding_dim=3, dim=5, layers=2),
    ],
)
def test_language_models_do_not_look_ahead(make):
    torch.manual_seed(0)
    model = make().eval()
    tokens = torch.randint(6, (4, 9), generator=seeded())
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 6
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(dim=(0, 2)).min() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeepFCN(4, 2, depth=0), "depth must be at least 1, got 0"),
        (lambda: DeepFCN(4, 2, dropout=1.0), r"dropout must lie in \[0, 1\), got 1.0"),
        (lambda: DeepMLP(0, 2), "in_dim must be at least 1, got 0"),
        (lambda: TransformerLM(5, dim=10, heads=4), "multiple of heads, got 10 and 4"),
        (lambda: ParityTransformer(dim=5, heads=5), "dim must be even"),
        (lambda: copy_batch(3, shortest=5, longest=4), "1 <= shortest <= longest, got 5 and 4"),
        (lambda: parity_batch(3, shortest=0, longest=4), "got 0 and 4"),
    ],
)
def test_bad_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_too_long_a_sequence_is_refused():
    model = TransformerLM(5, dim=4, heads=2, layers=1, hidden=4, longest=3)
    with pytest.raises(ValueError, match="3 positions, the sequence 4"):
        model(torch.zeros(2, 4, dtype=torch.int64))
