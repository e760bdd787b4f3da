"""Training changes the fetched values and nothing else."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.transfer.discrete_kv_bottleneck import (
    BottleneckClassifier,
    KeyValueBottleneck,
    LinearDecoder,
    VotingDecoder,
    fetched_together,
    learn_in_phases,
    make_decoder,
    train_model,
    train_values,
    value_step,
)

CLASSES, DIM = 4, 6


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def model(books=3, pairs=8, encoder=None, decoder=None, **options):
    bottleneck = KeyValueBottleneck(DIM, books, pairs, 2, CLASSES, generator=gen(), **options)
    whole = BottleneckClassifier(encoder, bottleneck, decoder)
    bottleneck.place_keys(torch.randn(60, DIM, generator=gen(1)), epochs=3, batch_size=20)
    return whole


def batch(n=12, seed=2):
    return torch.randn(n, DIM, generator=gen(seed)), torch.randint(CLASSES, (n,), generator=gen(seed + 50))


def smoothed(labels, share=0.1):
    return (1 - share) * F.one_hot(labels, CLASSES) + share / CLASSES


def test_the_gradient_of_a_value_is_the_error_of_those_that_fetched_it_over_codebooks_and_batch():
    net = model(value_init="normal")
    z, labels = batch()
    logits = net(z)
    F.cross_entropy(logits, labels, label_smoothing=0.1).backward()
    error = logits.detach().softmax(dim=1) - smoothed(labels)
    indices = net.bottleneck.indices(z)
    for book in range(3):
        for key in range(8):
            mine = error[indices[:, book, 0, 0] == key].sum(dim=0) / (3 * len(z))
            torch.testing.assert_close(net.bottleneck.values.grad[book, key], mine, atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize(("clip", "topk", "tokens"), [(1.0, 1, 1), (0.01, 1, 1), (None, 2, 3), (0.05, 2, 3)])
def test_a_step_on_fetched_rows_is_plain_sgd_on_the_whole_table(clip, topk, tokens):
    ours, theirs = (model(value_init="normal", topk=topk) for _ in range(2))
    z = torch.randn(12, tokens, DIM, generator=gen(2))
    labels = torch.randint(CLASSES, (12,), generator=gen(3))
    optimizer = torch.optim.SGD(theirs.trainable(), lr=5.0)
    loss = F.cross_entropy(theirs(z), labels, label_smoothing=0.1)
    loss.backward()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(theirs.trainable(), clip)
    optimizer.step()
    rows = ours.bottleneck.rows(ours.bottleneck.indices(z)).flatten(1)
    mine = value_step(ours.bottleneck, rows, labels, 5.0, 0.1, clip)
    torch.testing.assert_close(mine, loss.detach())
    torch.testing.assert_close(ours.bottleneck.values, theirs.bottleneck.values)
    assert torch.equal(ours.bottleneck.usage, theirs.bottleneck.usage)


def test_both_trainers_agree():
    ours, theirs = model(), model()
    z, labels = batch(50)
    indices = ours.bottleneck.train().indices(z)
    options = {"epochs": 3, "batch_size": 16}
    one = train_values(ours.bottleneck, indices, labels, lr=2.0, generator=gen(5), **options)
    sgd = torch.optim.SGD(theirs.trainable(), lr=2.0)
    other = train_model(theirs, indices, labels, sgd, generator=gen(5), **options)
    assert one == pytest.approx(other, rel=1e-5)
    torch.testing.assert_close(ours.bottleneck.values, theirs.bottleneck.values, atol=1e-6, rtol=1e-5)
    assert one[-1] < one[0]


@pytest.mark.parametrize("fast", [True, False])
def test_values_that_a_batch_does_not_fetch_are_unchanged_to_the_bit(fast):
    net = model(value_init="normal", pairs=16)
    z, labels = batch(4)
    indices = net.bottleneck.train().indices(z)
    before = net.bottleneck.values.detach().clone()
    if fast:
        train_values(net.bottleneck, indices, labels, epochs=2, lr=10.0, generator=gen())
    else:
        train_model(net, indices, labels, torch.optim.SGD(net.trainable(), lr=10.0), epochs=2, generator=gen())
    fetched = torch.zeros(3, 16, dtype=torch.bool)
    fetched[torch.arange(3)[:, None], indices[:, :, 0, 0].T] = True
    assert torch.equal(net.bottleneck.values[~fetched], before[~fetched])
    assert bool((net.bottleneck.values[fetched] != before[fetched]).any(dim=-1).all())


def test_another_prediction_changes_by_what_shared_pairs_changed_and_by_no_more():
    net = model(value_init="normal", pairs=16)
    z, labels = batch(2)
    others = torch.randn(200, DIM, generator=gen(9))
    indices, theirs = net.bottleneck.indices(z), net.bottleneck.indices(others)
    values = net.bottleneck.values.detach().clone()
    before = net.from_indices(theirs).detach()
    train_values(net.bottleneck, indices, labels, epochs=1, lr=10.0, generator=gen())
    delta = net.bottleneck.values.detach() - values
    change = net.from_indices(theirs).detach() - before
    expected = torch.stack([delta[c, theirs[:, c, 0, 0]] for c in range(3)]).mean(dim=0)
    torch.testing.assert_close(change, expected, atol=1e-6, rtol=1e-5)
    apart = (fetched_together(theirs, indices) == 0).all(dim=1)
    assert 0 < int(apart.sum()) < 200
    assert bool((change[apart] == 0).all())


def test_encoder_projections_keys_and_batch_norm_never_move():
    encoder = nn.Sequential(nn.Linear(5, DIM), nn.BatchNorm1d(DIM))
    net = model(encoder=encoder, decoder=LinearDecoder((3, 1, 1, CLASSES), CLASSES), value_init="normal")
    inputs = 3 + torch.randn(40, 5, generator=gen(2))
    labels = torch.randint(CLASSES, (40,), generator=gen(3))
    net.train()
    moving = ("bottleneck.values", "bottleneck.usage", "decoder.")
    before = {k: v.clone() for k, v in net.state_dict().items() if not k.startswith(moving)}
    optimizer = torch.optim.SGD(net.trainable(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
    after = net.state_dict()
    assert any(name.endswith("running_mean") for name in before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(p.requires_grad for p in net.encoder.parameters())


def test_classes_that_share_no_pair_do_not_notice_in_which_order_they_come():
    net = model(pairs=8)
    # Class 0 fetches pairs 0..3 of each codebook, class 1 pairs 4..7.
    labels = torch.tensor([0] * 6 + [1] * 6)
    indices = torch.randint(4, (12, 3, 1, 1), generator=gen(4)) + 4 * labels.view(-1, 1, 1, 1)
    tables = []
    for order in (range(12), [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11], [6, 7, 8, 0, 1, 9, 10, 2, 3, 4, 11, 5]):
        net.bottleneck.values.data.zero_()
        rows = net.bottleneck.rows(indices).flatten(1)
        for row in order:
            value_step(net.bottleneck, rows[row : row + 1], labels[row : row + 1], 3.0, 0.1, clip=None)
        tables.append(net.bottleneck.values.detach().clone())
    assert torch.equal(tables[0], tables[1])
    assert torch.equal(tables[0], tables[2])
    assert bool((tables[0] != 0).any())


def test_training_knows_no_boundary_between_phases():
    whole, parts = model(), model()
    z, labels = batch(32)
    indices = whole.bottleneck.train().indices(z)
    rows = whole.bottleneck.rows(indices).flatten(1)
    for part in torch.arange(32).split(8):  # one stream of batches
        value_step(whole.bottleneck, rows[part], labels[part], 2.0)
    for phase in (slice(0, 16), slice(16, 32)):  # two calls
        for part in torch.arange(16).split(8):
            value_step(parts.bottleneck, rows[phase][part], labels[phase][part], 2.0)
    assert torch.equal(whole.bottleneck.values, parts.bottleneck.values)


def test_phases_are_learned_one_after_the_other_and_reported():
    net = model()
    z, labels = batch(40)
    phases = [torch.nonzero(labels < 2).squeeze(1), torch.nonzero(labels >= 2).squeeze(1)]
    seen = []

    def after(phase):
        assert not net.training
        seen.append(net.bottleneck.usage.sum().item())
        return phase

    assert learn_in_phases(net, z, labels, phases, epochs=2, lr=3.0, generator=gen(), after=after) == [0, 1]
    assert seen == [2 * 3 * len(phases[0]), 2 * 3 * 40]


@pytest.mark.parametrize("kind", ["linear", "linear_no_bias", "mlp"])
def test_a_parametric_decoder_learns_in_the_first_phase_and_then_stays(kind):
    decoder = make_decoder(kind, (3, 1, 1, CLASSES), CLASSES)
    net = model(decoder=decoder, value_init="normal")
    z, labels = batch(40)
    start = [p.detach().clone() for p in decoder.parameters()]
    states, tables = [], []

    def after(phase):
        states.append([p.detach().clone() for p in decoder.parameters()])
        tables.append(net.bottleneck.values.detach().clone())

    learn_in_phases(net, z, labels, [torch.arange(20), torch.arange(20, 40)], epochs=1, lr=0.5, after=after)
    assert all(not torch.equal(a, b) for a, b in zip(start, states[0]))
    assert all(torch.equal(a, b) for a, b in zip(*states))
    assert not torch.equal(*tables)
    assert [p is net.bottleneck.values for p in net.trainable()] == [True]


def test_the_mode_is_given_back():
    net = model().eval()
    z, labels = batch()
    indices = net.bottleneck.train().indices(z)
    net.eval()
    train_values(net.bottleneck, indices, labels, epochs=1)
    assert not net.bottleneck.training
    train_model(net, indices, labels, torch.optim.SGD(net.trainable(), lr=1.0), epochs=1)
    assert not net.training


def test_momentum_would_move_values_that_were_not_fetched():
    # The pitfall that plain SGD avoids.
    net = model(value_init="normal", pairs=16)
    (first, one), (second, other) = batch(3, seed=2), batch(3, seed=3)
    optimizer = torch.optim.SGD(net.trainable(), lr=1.0, momentum=0.9)
    train_model(net, net.bottleneck.train().indices(first), one, optimizer, epochs=1, batch_size=3)
    before = net.bottleneck.values.detach().clone()
    indices = net.bottleneck.indices(second)
    train_model(net, indices, other, optimizer, epochs=1, batch_size=3)
    fetched = torch.zeros(3, 16, dtype=torch.bool)
    fetched[torch.arange(3)[:, None], indices[:, :, 0, 0].T] = True
    assert not torch.equal(net.bottleneck.values[~fetched], before[~fetched])


def test_bad_input_is_refused():
    net = model()
    z, labels = batch()
    indices = net.bottleneck.train().indices(z)
    for wrong, low, high in ((labels + 1, 1, CLASSES), (labels - 1, -1, 2)):
        with pytest.raises(
            ValueError, match=rf"labels must lie in 0\.\.{CLASSES - 1}, got .*a new class needs a value"
        ):
            train_values(net.bottleneck, indices, wrong.clamp(low, high), epochs=1)
    with pytest.raises(ValueError, match=r"labels must have shape \(12,\)"):
        train_values(net.bottleneck, indices, labels[:5], epochs=1)
    for options, message in (
        ({"epochs": 0}, "epochs must be positive, got 0"), ({"lr": 0.0}, "lr"), ({"clip": -1.0}, "clip"),
        ({"label_smoothing": 1.0}, "label_smoothing must lie"), ({"batch_size": 0}, "batch_size"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            train_values(net.bottleneck, indices, labels, **{"epochs": 1} | options)
    with pytest.raises(ValueError, match="phases must hold rows"):
        learn_in_phases(net, z, labels, [torch.arange(3), torch.arange(0)], epochs=1)
    unplaced = KeyValueBottleneck(DIM, 3, 8, 2, CLASSES)
    with pytest.raises(ValueError, match="have not been placed"):
        train_values(unplaced, indices, labels, epochs=1)
    assert isinstance(net.decoder, VotingDecoder)
