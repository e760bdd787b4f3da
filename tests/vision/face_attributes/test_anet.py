"""ANet, its losses and its pre-training."""

import pytest
import torch

from etude.vision.face_attributes import ANet, LocallySharedConv2d, contrastive_loss, pretrain_identities, train_tags


def test_the_loss_of_pairs_by_hand():
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]], dtype=torch.float64)
    ids = torch.tensor([0, 0, 1])
    # same: d = 5; different: d = 1 and sqrt(18)
    expected = 25 / 2 + (0.5 * 2.0**2 + 0) / 2
    assert contrastive_loss(features, ids, 3.0).item() == pytest.approx(expected, abs=1e-12)


def test_the_loss_vanishes_for_coincident_same_and_for_far_different_pairs():
    features = torch.tensor([[1.0, 2.0], [1.0, 2.0], [9.0, 2.0]])
    assert contrastive_loss(features, torch.tensor([0, 0, 1]), 8.0).item() == 0
    assert contrastive_loss(features[:1], torch.tensor([0]), 1.0).item() == 0


def test_the_loss_has_finite_gradients_where_two_people_coincide():
    features = torch.ones(2, 3, requires_grad=True)
    contrastive_loss(features, torch.tensor([0, 1]), 1.0).backward()
    assert torch.isfinite(features.grad).all()


def test_gradients_of_the_loss_match_finite_differences():
    torch.manual_seed(0)
    features = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 0, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda x: contrastive_loss(x, ids, 2.0), (features,))


def test_c3_and_c4_are_locally_shared_and_c4_is_finer():
    anet = ANet(40)
    local = [module for module in anet.modules() if isinstance(module, LocallySharedConv2d)]
    assert [module.grid for module in local] == [(3, 3), (6, 6)]
    assert anet(torch.zeros(2, 3, 48, 48)).shape == (2, 40)
    assert anet.features(torch.zeros(2, 3, 48, 48)).shape == (2, 160)
    assert anet.features(torch.zeros(2, 3, 48, 48), joined=True).shape == (2, 160 + 80 * 36)
    assert not any(isinstance(m, LocallySharedConv2d) for m in ANet(40, local=False).modules())


def test_the_size_of_the_paper_runs():
    anet = ANet(40, size=227, stem_stride=2)
    assert anet(torch.zeros(1, 3, 227, 227)).shape == (1, 40)


def test_a_third_layer_as_wide_as_all_banks_has_their_parameters():
    def count(anet):
        return sum(p.numel() for p in anet.conv3.parameters())

    options = {"in_channels": 1, "size": 24, "shared_pools": 1}
    local = ANet(10, widths=(20, 32, 40), **options)
    assert count(local) == count(ANet(10, widths=(20, 32, 360), local=False, **options)) == 9 * (32 * 40 * 9 + 40)


def test_a_new_head_leaves_the_features():
    anet = ANet(7, size=24, shared_pools=1, widths=(4, 4, 4), in_channels=1).eval()
    x = torch.randn(2, 1, 24, 24)
    before = anet.features(x)
    assert anet.replace_head(3)(x).shape == (2, 3)
    assert torch.equal(anet.features(x), before)


def test_saved_networks_come_back(tmp_path):
    anet = ANet(3, in_channels=1, size=24, shared_pools=1, widths=(2, 2, 2)).eval()
    anet.save_pretrained(tmp_path)
    x = torch.randn(1, 1, 24, 24)
    assert torch.equal(ANet.from_pretrained(tmp_path).eval()(x), anet(x))


def faces(n=24):
    torch.manual_seed(0)
    return torch.rand(n, 1, 24, 24), torch.arange(n) % 4


def tiny(outputs):
    torch.manual_seed(1)
    return ANet(outputs, in_channels=1, size=24, widths=(3, 3, 3), shared_pools=1, feature_dim=5)


def test_pretraining_has_two_phases_of_which_either_can_be_left_out():
    crops, ids = faces()
    lengths = []
    for epochs, similarity in ((2, 0), (0, 1), (2, 1)):
        losses = pretrain_identities(tiny(4), crops, ids, epochs=epochs, similarity_epochs=similarity, batch_size=8)
        lengths.append(len(losses))
    assert lengths == [6, 3, 9]


def test_the_second_phase_adds_the_similarity():
    crops, ids = faces()
    plain, both = (
        pretrain_identities(tiny(4), crops, ids, epochs=0, similarity_epochs=1, weight=w, margin=50.0, batch_size=24)[0]
        for w in (0.0, 0.1)
    )
    anet = tiny(4).train()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    extra = contrastive_loss(anet.features(crops[order]), ids[order], 50.0).item()
    assert both - plain == pytest.approx(0.1 * extra, rel=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ANet(0), "must be positive"),
        (lambda: ANet(2, widths=(1, 2)), "widths are those"),
        (lambda: ANet(2, size=8), "leave a map of 2 for the grid"),
        (lambda: ANet(2, size=20), "leave a map of 2 for the grid .* of C4"),
        (lambda: ANet(2)(torch.zeros(1, 1, 48, 48)), r"\(batch, 3, 48, 48\), got \(1, 1, 48, 48\)"),
        (lambda: ANet(2).replace_head(0), "positive, got 0"),
        (lambda: contrastive_loss(torch.zeros(2, 2), torch.tensor([0, 1]), 0.0), "margin must be positive"),
        (lambda: contrastive_loss(torch.zeros(2, 2), torch.tensor([0]), 1.0), "one entry a row"),
        (lambda: pretrain_identities(tiny(4), *[faces()[0], torch.zeros(24).long()]), "at least two people"),
        (lambda: pretrain_identities(tiny(3), *faces()), r"0..2, the outputs of the network, got 0..3"),
        (lambda: train_tags(tiny(3), (faces()[0], torch.ones(24, 2).long()), epochs=1), "3 outputs"),
        (lambda: train_tags(tiny(1), (faces()[0], torch.full((24, 1), 3)), epochs=1), "tags must be 0 and 1"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
