"""What the claims of Cascade R-CNN compare: arms that differ in their heads alone, and the counts of positives."""

import pytest
import torch

from etude.claims.vision import cascade_rcnn as claims
from etude.data import detection
from etude.lab import Trial

ARMS = ("single", "single_07", "iterative", "integral", "cascade", "equal_thresholds", "equal_weights")


@pytest.fixture(scope="module")
def data():
    return detection.shapes(16, 8, 8)


def trial(arm, seed=0, claim="cascade_beats_single", **changes):
    setup = claims.PAPER.claims[claim].setups["smoke"].replace(steps=1, **changes)
    return Trial(f"cascade_rcnn/{claim}", arm, seed, "smoke", setup)


@pytest.fixture(scope="module")
def models(data):
    """The only update is of the proposals, so that heads are as they began."""
    return {arm: claims._trained(trial(arm), data, arm) for arm in ARMS}


def test_arms_of_a_seed_share_all_but_the_later_heads(data, models):
    states = {arm: model.state_dict() for arm, model in models.items()}
    shared = [name for name in states["single"] if not name.startswith("head")]
    assert len(shared) > 20
    for arm in ARMS:
        assert all(torch.equal(states["single"][name], states[arm][name]) for name in shared)
        assert torch.equal(states["single"]["head.stages.0.fc1.weight"], states[arm]["head.stages.0.fc1.weight"])
    other = claims._trained(trial("single", seed=1), data, "single").state_dict()
    assert not torch.equal(other["head.stages.0.fc1.weight"], states["single"]["head.stages.0.fc1.weight"])


def test_arms_are_what_they_are_called(models):
    heads = {arm: model.head for arm, model in models.items()}
    assert heads["cascade"].thresholds == (0.5, 0.6, 0.7)
    assert heads["cascade"].loss_weights == (1, 0.5, 0.25)
    assert [coder.weights[0] for coder in heads["cascade"].coders] == [10, 20, 30]
    assert [coder.weights[0] for coder in heads["equal_weights"].coders] == [10, 10, 10]
    assert heads["equal_thresholds"].thresholds == (0.5, 0.5, 0.5)
    assert (heads["iterative"].iterations, heads["iterative"].thresholds) == (3, (0.5,))
    assert heads["single_07"].thresholds == (0.7,)
    assert len(heads["integral"].stages) == 3
    assert len(heads["integral"].coders) == 1
    sizes = {arm: sum(p.numel() for p in head.parameters()) for arm, head in heads.items()}
    assert sizes["single"] == sizes["iterative"]
    assert sizes["integral"] == pytest.approx(sizes["cascade"], rel=0.02)


def test_the_interaction_is_the_difference_of_the_gains(data):
    found = {arm: claims._detector(trial(arm), data) for arm in ("single", "cascade")}
    gains = [found["cascade"][name] - found["single"][name] for name in ("ap75", "ap50", "ap75_over_ap50")]
    assert gains[2] == pytest.approx(gains[0] - gains[1])
    assert found["single"]["ap_last_head"] == found["single"]["ap"]
    assert {"ap_1_stages", "ap_2_stages", "ap_per_stage_scores"} <= set(found["cascade"])


def test_measuring_leaves_the_head_as_it_was(data, models):
    model = models["cascade"]
    claims._ap(model, data.test, depth=1, score_ensemble="none")
    assert (model.head.depth, model.head.score_ensemble) == (None, "last_rois")


def test_positives_are_counted_at_each_stages_threshold(data):
    given = trial("cascade", claim="resampling_keeps_positives", test=8)
    overlaps = claims._overlaps(claims._trained(given, data, "cascade"), data.test, "cpu")
    assert len(overlaps) == 4
    found = claims.resampling_keeps_positives(trial("cascade", claim="resampling_keeps_positives", test=8), data)
    counts = [int((values >= u).sum()) for values, u in zip(overlaps, (0.5, 0.6, 0.7))]
    assert found["fewest_positives"] == pytest.approx(min(counts[1:]) / max(counts[0], 1))
    assert found["share_1"] == pytest.approx((overlaps[0] >= 0.7).double().mean().item())


def test_setups_name_detectors_that_can_be_built():
    for claim in claims.PAPER.claims.values():
        for setup in claim.setups.values():
            with torch.device("meta"):
                model = claims.CascadeDetector(3, **setup.detector)
            assert len(model.rpn.levels) == len(model.rpn.anchors.sizes)
