"""What the claims of weight generation do to their data, systems and arms before anything is trained for long."""

import pytest
import torch

from etude.claims.transfer import d2nwg as claims
from etude.data.kinds import Examples, ImageData
from etude.lab import Trial

SMOKE = claims.SMOKE


def trial(arm="generated", seed=0, claim="conditional_generation_transfers", tuning=False):
    return Trial(f"d2nwg/{claim}", arm, seed, "smoke", SMOKE, {"lr": 0.02}, tuning=tuning)


@pytest.fixture(scope="module")
def few():
    return claims.few_strokes()


def test_parts_are_drawings_of_different_people(few):
    assert [len(part) for part in (few.train, few.val, few.test)] == [32 * 13, 32 * 2, 32 * 5]
    assert few.size == (14, 14)


def test_unseen_alphabets_are_in_no_network_and_in_no_feature(few):
    for seed in range(5):
        seen, unseen = claims.parted(few, SMOKE, seed)
        assert sorted(seen + unseen) == list(range(32))
        alphabets = [{few.classes[label].partition("/")[0] for label in part} for part in (seen, unseen)]
        assert len(alphabets[1]) == 1
        assert not alphabets[0] & alphabets[1]
    bench = claims.Bench(trial(), few)
    seen, unseen = claims.parted(few, SMOKE, bench.seed)
    assert bench.zoo.sampler.classes == sorted(seen)
    rows = torch.isin(few.train.targets, torch.tensor(seen))
    torch.testing.assert_close(bench.zoo.features.mean, few.train.inputs[rows].flatten(1).mean(dim=0))


def test_supports_come_from_training_rows_and_queries_from_test_rows(few):
    for tuning, part in ((False, few.test), (True, few.val)):
        bench = claims.Bench(trial(tuning=tuning), few)
        known = {tuple(row) for row in bench.zoo.features(part.inputs).round(decimals=4).tolist()}
        trained = {tuple(row) for row in bench.zoo.features(few.train.inputs).round(decimals=4).tolist()}
        for name in ("seen", "unseen"):
            assert {tuple(r) for r in bench.queries[name].flatten(0, 2).round(decimals=4).tolist()} <= known
            assert {tuple(r) for r in bench.supports[name].flatten(0, 2).round(decimals=4).tolist()} <= trained
    assert set(claims.judged(bench, lambda part: bench.control("zoo_mean", part))) == {"val_accuracy"}


def test_arms_of_a_seed_share_system_and_tasks_and_seeds_do_not(few):
    one, same, other = (claims.Bench(trial(arm, seed), few) for arm, seed in
                        (("generated", 0), ("zoo_mean", 0), ("generated", 1)))  # fmt: skip
    assert one.zoo is same.zoo
    assert torch.equal(one.supports["unseen"], same.supports["unseen"])
    assert one.seed != other.seed
    assert one.system("all") is same.system("all")


def test_branches_share_zoo_and_autoencoder_and_differ_in_the_encoder(few):
    bench = claims.Bench(trial(), few)
    before = [weight.clone() for weight in bench.system("vae").model.parameters()]
    systems = [bench.system("all"), bench.system("all", order="none"), bench.system("all", align=True, train=False)]
    assert all(torch.equal(a, b) for a, b in zip(before, bench.system("vae").model.parameters()))
    for made in systems:
        assert made.zoo is bench.zoo.zoo
        for a, b in zip(made.model.vae.parameters(), systems[0].model.vae.parameters()):
            assert torch.equal(a, b)
    assert systems[1].model.dataset_encoder.positions is None
    frozen = bench.system("all", train=False)
    for a, b in zip(frozen.model.dataset_encoder.parameters(), bench.system("vae").model.dataset_encoder.parameters()):
        assert torch.equal(a, b)  # never trained


def test_a_shuffled_condition_is_that_of_another_task_with_the_same_noise(few):
    made = claims.Bench(trial(), few).system("all")
    plain, shuffled = (claims.Bench(trial(), few) for _ in range(2))
    drawn, other = plain.drawn(made, "unseen"), shuffled.drawn(made, "unseen", shuffled=True)
    assert not torch.equal(drawn, other)
    again = claims.Bench(trial(), few)
    again.supports["unseen"] = again.supports["unseen"].roll(1, dims=0)
    assert torch.equal(again.drawn(made, "unseen"), other)


def test_nearest_class_mean_equals_a_loop(few):
    bench = claims.Bench(trial(), few)
    right = []
    for support, query in zip(bench.supports["unseen"], bench.queries["unseen"]):
        for label, rows in enumerate(query):
            for row in rows:
                right.append(float((support.mean(dim=1) - row).norm(dim=1).argmin()) == label)
    assert bench.nearest_class_mean("unseen") == pytest.approx(sum(right) / len(right))


def test_too_few_classes_are_refused():
    part = Examples(torch.rand(20, 1, 4, 4), torch.arange(5).repeat(4))
    data = ImageData(part, part, part, tuple("abcde"), "five")
    with pytest.raises(ValueError, match=r"2 classes take 6 classes or more, got 5"):
        claims.Bench(trial(), data)
