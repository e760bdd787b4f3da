"""The logic of the claims on face attributes that is not training."""

import inspect

import pytest
import torch

from etude.claims.vision import face_attributes as claims
from etude.data.faces_worlds import FaceWorld, Part
from etude.data.kinds import Examples, ImageData
from etude.lab import Trial

CLAIMS = claims.PAPER.claims


def trial(name, arm, seed=2000, scale="smoke", **changes):
    setup = CLAIMS[name].setups[scale].replace(**changes)
    return Trial(f"face_attributes/{name}", arm, seed, scale, setup, {"lr": 1e-3})


def run(name, arm, *data, **changes):
    return inspect.unwrap(CLAIMS[name].function)(trial(name, arm, **changes), *data)


def without_boxes_in_training(world):
    def draw(sizes, settings, seed):
        parts = world.draw(sizes, settings, seed)
        return {
            name: part if name == "test" else Part(part.examples, None, part.identities) for name, part in parts.items()
        }

    return FaceWorld(draw, world.channels, world.tags)


@pytest.mark.parametrize("arm", ["tags", "cascade"])
def test_no_arm_of_the_method_looks_at_a_training_box(arm):
    world = claims.drawn_world()
    assert run("tags_localise_faces", arm, world) == run("tags_localise_faces", arm, without_boxes_in_training(world))


def test_baselines_choose_their_threshold_by_training_boxes():
    part = claims.drawn_world().draw({"train": [40, 2], "test": [4, 1]}, claims._CLEAN, 0)["train"]
    found = {
        boxes: claims.boxes_from_responses(
            claims.sobel_magnitude(part.examples.inputs), claims._threshold(claims.sobel_magnitude, part, boxes=boxes)
        )[0]
        for boxes in (False, True)
    }
    recalls = {boxes: claims.localization_recall(found[boxes], part.boxes)[0] for boxes in found}
    assert recalls[True] > recalls[False]


def test_crops_of_anet_are_cut_without_a_box():
    world, setup = claims.drawn_world(), CLAIMS["local_sharing_helps"].setups["smoke"]
    with_boxes, without = (
        claims._crops.__wrapped__(data, setup, (1, 2), "cpu") for data in (world, without_boxes_in_training(world))
    )
    assert torch.equal(with_boxes.tagged, without.tagged)
    assert torch.equal(with_boxes.people, without.people)


def test_people_of_tests_are_in_no_other_part():
    setup = CLAIMS["identity_pretraining_helps"].setups["small"]
    sizes = {name: [max(2, people // 20), 1] for name, (people, _) in setup.sizes.items()}
    parts = claims.drawn_world().draw(sizes, setup.world, 0)
    people = [set(part.identities.tolist()) for part in parts.values()]
    assert len(set.union(*people)) == sum(map(len, people))

    def twice(sizes, settings, seed):
        found = claims.drawn_world().draw(sizes, settings, seed)
        return found | {"tagged": found["test"]}

    with pytest.raises(ValueError, match="stands in two parts"):
        claims._crops.__wrapped__(FaceWorld(twice, 1, 10), CLAIMS["local_sharing_helps"].setups["smoke"], (1, 2), "cpu")


def test_the_arms_of_tags_start_from_one_network_but_for_the_head(monkeypatch):
    started = {}

    def keep(lnet, examples, setup, order, **options):
        started[lnet.top.out_features] = {k: v.clone() for k, v in lnet.state_dict().items() if "features" in k}

    monkeypatch.setattr(claims, "_fine_tune", keep)
    for arm in ("all_tags", "two_tags"):
        run("more_attributes_localise_better", arm, claims.drawn_world())
    assert sorted(started) == [2, 10]
    assert all(torch.equal(started[2][name], started[10][name]) for name in started[2])


def test_the_wide_network_has_the_third_layer_of_the_banks():
    found = {
        arm: run("local_sharing_helps", arm, claims.drawn_world())["c3_parameters"]
        for arm in ("local", "global_wide", "global")
    }
    assert found["local"] == found["global_wide"] == 9 * found["global"]


def test_tuning_looks_at_no_test():
    for name in ("identity_pretraining_helps", "local_sharing_helps"):
        arm = CLAIMS[name].arms[0]
        tuning = trial(name, arm)
        tuning.tuning = True
        assert set(inspect.unwrap(CLAIMS[name].function)(tuning, claims.drawn_world())) == {"val_balanced_accuracy"}


def test_interweaving_counts_what_the_sheet_of_the_method_says():
    found = {arm: run("interweaving_is_exact", arm) for arm in CLAIMS["interweaving_is_exact"].arms}
    assert [found[arm]["positions"] for arm in found] == [24_336, 5_184, 2_304, 5_184]
    assert max(one["deviation"] for one in found.values()) < 1e-12


def test_users_images_of_any_kind_are_taken():
    part = Examples(torch.rand(9, 3, 20, 33), torch.arange(9) % 3)
    data = ImageData(part, part, part, ("a", "b", "c"), "users")
    for arm in ("local", "global_wide"):
        assert 0 <= run("parts_of_aligned_images", arm, data)["accuracy"] <= 1


@pytest.fixture
def colour_world(monkeypatch):
    """What `full` reads, small: colour photographs on disk, forty tags, classes to pre-train on."""

    class Lazy(torch.utils.data.Dataset):
        tags = torch.randint(2, (12, 40), generator=torch.Generator().manual_seed(0))

        def __len__(self):
            return 12

        def __getitem__(self, row):
            image = torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(row))
            return image, self.tags[row].float()

    def draw(sizes, settings, seed):
        boxes = torch.tensor([[20.0, 20.0, 90.0, 100.0]]).expand(12, 4)
        rows = claims_rows(Lazy())
        return {name: Part(rows, boxes if name == "test" else None, torch.arange(12) % 3) for name in sizes}

    from etude.data.faces_worlds import _Rows

    def claims_rows(data):
        return _Rows(data, list(range(12)))

    part = Examples(torch.rand(4, 3, 227, 227), torch.arange(4) % 2)
    monkeypatch.setattr(claims, "_imagenet", lambda size: ImageData(part, part, part, ("a", "b"), "imagenet"))
    return FaceWorld(draw, channels=3, tags=40)


FULL_BUT_SMALL = {"width": 0.03, "epochs": 1, "pretrain_epochs": 1, "workers": 0, "batch": 6, "scales": [1.0]}


def test_the_full_setup_of_localisation_runs(colour_world):
    for name, arm in (("tags_localise_faces", "cascade"), ("more_attributes_localise_better", "two_tags")):
        lnet = CLAIMS[name].setups["full"].lnet | FULL_BUT_SMALL
        assert 0 <= run(name, arm, colour_world, scale="full", lnet=lnet)["recall"] <= 1


def test_the_full_setup_of_attributes_runs_and_transfers(colour_world):
    setup = CLAIMS["identity_pretraining_helps"].setups["full"]
    changes = {"lnet": setup.lnet | FULL_BUT_SMALL, "crops": 1, "patch_scales": [1.0], "id_epochs": [1, 1], "epochs": 1}
    claims._crops.cache_clear()
    found = run("identity_pretraining_helps", "identity_tags", colour_world, scale="full", batch=6, **changes)
    claims._crops.cache_clear()
    assert {"balanced_accuracy", "balanced_accuracy_lfwa", "accuracy_lfwa"} <= set(found)


def test_the_full_localiser_is_alexnet():
    setup = CLAIMS["tags_localise_faces"].setups["full"]
    assert (setup.lnet["backbone"], setup.lnet["width"], setup.lnet["pretrain_size"]) == ("alexnet", 1.0, 227)
