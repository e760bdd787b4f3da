"""The logic of the bottleneck's claims that is not training: streams, placements, what a user's data become."""

import inspect

import pytest
import torch

from etude.claims.transfer import discrete_kv_bottleneck as claims
from etude.data import images
from etude.data.kinds import Examples, ImageData, TableData
from etude.lab import Trial

CLAIMS = claims.PAPER.claims


@pytest.fixture(scope="module")
def data():
    return images.digits()


def trial(arm, name="kv_resists_forgetting", seed=0, tuning=False, **changes):
    setup = CLAIMS[name].setups["smoke"].replace(**changes)
    return Trial(f"discrete_kv_bottleneck/{name}", arm, seed, "smoke", setup, tuning=tuning)


def run(arm, data, name="kv_resists_forgetting", **changes):
    return inspect.unwrap(CLAIMS[name].function)(trial(arm, name, **changes), data)


def test_arms_of_a_seed_meet_the_same_classes_in_the_same_order(data):
    one, other, later = (
        claims.Stream(trial(arm, seed=seed), data) for arm, seed in (("dkvb", 0), ("ncm", 0), ("ncm", 1))
    )
    assert all(torch.equal(a, b) for a, b in zip(one.phases, other.phases))
    orders = [[stream.y[rows].unique().tolist() for rows in stream.phases] for stream in (one, later)]
    assert orders[0] != orders[1]
    assert sorted(label for phase in orders[0] for label in phase) == list(range(10))


def test_tuning_judges_by_a_fifth_of_the_stream_and_never_by_test_rows(data):
    tuning, counting = claims.Stream(trial("dkvb", tuning=True), data), claims.Stream(trial("dkvb"), data)
    pool = {tuple(row) for row in counting.z.tolist()}
    held, kept = ({tuple(row) for row in z.tolist()} for z in (tuning.held_z, tuning.z))
    assert (len(held), len(kept)) == (40, 160)
    assert held | kept == pool
    assert not held & kept
    assert not held & {tuple(row) for row in counting.held_z.tolist()}
    assert set(run("dkvb", data, tuning=True)) == {"val_accuracy"}


def test_an_iid_run_is_one_phase_of_the_same_rows(data):
    stream = claims.Stream(trial("dkvb"), data, iid=True)
    assert [len(rows) for rows in stream.phases] == [200]
    assert len(stream.groups) == 5


def test_encoders_are_the_same_whenever_they_are_made(data):
    first = claims.features(trial("dkvb"), data)
    claims._KEPT.clear()
    claims.encoder_of.cache_clear()
    again = claims.features(trial("linear", seed=3), data)
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_placements_differ_in_keys_only_and_never_in_projections(data):
    models = {}
    for placement in ("other", "target", "first", "never"):
        one = trial("other_domain", "keys_need_no_target_data")
        models[placement] = claims.bottleneck_of(one, claims.Stream(one, data), placement).bottleneck
    keys = [model.codebook.keys for model in models.values()]
    assert all(not torch.equal(a, b) for i, a in enumerate(keys) for b in keys[:i])
    first = models["other"].splitter.projection
    assert all(torch.equal(model.splitter.projection, first) for model in models.values())
    assert [bool(model.placed) for model in models.values()] == [True, True, True, False]


def test_the_mask_changes_nothing_in_training(data):
    values = []
    for arm in ("mask", "no_mask"):
        one = trial(arm, "usage_mask")
        stream = claims.Stream(one, data)
        model = claims.bottleneck_of(one, stream, pairs=32, mask_unused=arm == "mask")
        claims.learn(one, stream, model, 10.0)
        values.append(model.bottleneck.values.detach().clone())
    assert torch.equal(*values)


def test_the_accuracy_matrix_ends_at_the_accuracy(data):
    for arm in ("dkvb", "linear", "ncm"):
        found = run(arm, data)
        assert found["average_accuracy"] == pytest.approx(found["accuracy"], abs=0.05)
        assert found["forgetting"] >= -found["backward_transfer"] - 1e-9


def test_updates_are_local_to_the_bit_in_the_claim_too(data):
    found = run("dkvb", data, "updates_are_local")
    assert (found["moved_unfetched"], found["moved_frozen"], found["vote_change_apart"]) == (0, 0, 0)
    assert 0 < found["moved_share"] < 1
    assert 0 < found["apart"] < 1


def test_colour_images_of_another_size_are_taken(data):
    shapes = images.shapes(n=120, size=20)
    colour = ImageData(
        *(Examples(part.inputs.repeat(1, 3, 1, 1), part.targets) for part in (shapes.train, shapes.val, shapes.test)),
        classes=shapes.classes, name="colour",
    )  # fmt: skip
    stream = claims.Stream(trial("dkvb"), colour)
    assert stream.z.shape[1] == stream.other.shape[1] == 3 * 576
    assert [len(stream.y[rows].unique()) for rows in stream.phases] == [2, 2, 1]
    assert run("dkvb", colour)["accuracy"] >= 0


def test_rows_of_a_table_are_their_own_embeddings():
    draw = torch.Generator().manual_seed(0)
    parts = [Examples(torch.randn(n, 7, generator=draw), torch.arange(n) % 4) for n in (80, 20, 20)]
    table = TableData(*parts, columns=tuple("abcdefg"), classes=tuple("wxyz"), name="table").as_images()
    stream = claims.Stream(trial("dkvb"), table)
    assert torch.equal(stream.z[:80], parts[0].inputs)
    assert stream.other.shape[1] == 7
    assert set(run("dkvb", table)) >= {"accuracy", "forgetting"}


def test_the_picture_of_the_pairs_is_kept_with_the_first_seed(data):
    pytest.importorskip("matplotlib")
    one = trial("dkvb")
    one.scale = "small"
    inspect.unwrap(CLAIMS["kv_resists_forgetting"].function)(one, data)
    assert one.figures["pairs"].startswith("<svg")
    assert [step for step, _ in one.series["accuracy"]] == [1, 2, 3, 4, 5]


def test_the_full_setup_is_the_papers():
    setup = CLAIMS["kv_resists_forgetting"].setups["full"]
    assert (setup.codebooks, setup.pairs, setup.dim_key, setup.epochs, setup.batch) == (256, 4096, 14, 2000, 256)
    assert 10.0 * setup.lr_scale == pytest.approx(0.3)
