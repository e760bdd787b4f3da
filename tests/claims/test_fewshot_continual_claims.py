"""What the claims of few-shot continual learning do to their data, streams and arms before anything is trained."""

import pytest
import torch

from etude.claims.transfer import fewshot_continual as claims
from etude.data import images
from etude.data.kinds import Examples, ImageData
from etude.lab import Trial


def trial(claim="slow_weights_generalise", arm="frozen", seed=0, **tuned):
    setup = claims.PAPER.claims[claim].setups["smoke"].replace(base_episodes=1, iters=1)
    return Trial(f"fewshot_continual/{claim}", arm, seed, "smoke", setup, tuned)


@pytest.fixture(scope="module")
def few():
    """Eight alphabets of eight characters, small and quick."""
    drawn = claims.characters.strokes(8, 12, 20, 8, strokes=(3, 5), anchors=4)
    return claims.as_images(drawn, 8)


def test_training_validation_and_test_are_drawings_of_different_people(few):
    assert [len(part) for part in (few.train, few.val, few.test)] == [8 * 96, 5 * 96, 7 * 96]
    drawn = claims.characters.strokes(8, 12, 20, 8, strokes=(3, 5), anchors=4)
    for part, drawers in ((few.train, range(8)), (few.val, range(8, 13)), (few.test, range(13, 20))):
        rows = torch.isin(drawn.drawers, torch.tensor(list(drawers)))
        assert torch.equal(part.inputs, drawn.images[rows])
    assert few.classes[0] == "strokes 0/0"


def test_alphabets_stay_together_and_the_unseen_pool_is_never_trained_on(few):
    setup = claims.SMALL.replace(tasks=4)
    for seed in range(5):
        stream = claims.draw_stream(setup, few, seed)
        alphabets = [{few.classes[c].partition("/")[0] for c in part.tolist()} for part in
                     (stream.base, stream.seen, stream.unseen)]  # fmt: skip
        assert len(alphabets[0]) == len(alphabets[2]) == 2
        assert len(set.union(*alphabets)) == sum(len(part) for part in alphabets)
        trained = torch.cat([stream.base_rows, *stream.support_rows])
        assert not bool(torch.isin(few.train.targets[trained], stream.unseen).any())


def test_arms_of_a_seed_share_stream_base_and_episodes_and_seeds_do_not(few):
    one, same, other = (claims.Course(trial(arm=arm, seed=seed), few) for arm, seed in
                        (("frozen", 0), ("fast_slow", 0), ("frozen", 1)))  # fmt: skip
    assert torch.equal(one.stream.seen, same.stream.seen)
    assert torch.equal(one.episodes.episodes(), same.episodes.episodes())
    for a, b in zip(one.base.parameters(), same.base.parameters()):
        assert torch.equal(a, b)
    assert not torch.equal(one.stream.seen, other.stream.seen)


def test_a_course_changes_the_shared_base_in_no_arm(few):
    course = claims.Course(trial(arm="fast_slow"), few)
    before = [weight.detach().clone() for weight in course.base.parameters()]
    for learner in (course.learner(eta=0.5), course.baseline("finetune"), claims.JointLearner(
        course.base, **course.options()
    )):  # fmt: skip
        course.run(learner)
    assert all(torch.equal(a, b) for a, b in zip(before, course.base.parameters()))


def test_tuning_looks_at_validation_rows_and_nothing_else(few):
    tuning = Trial("c", "frozen", 1000, "smoke", trial().setup, tuning=True)
    course = claims.Course(tuning, few)
    assert course.test[0] is few.val.inputs
    assert set(course.run(course.baseline("frozen"))) == {"val_both"}
    assert claims.Course(trial(), few).test[0] is few.test.inputs


def test_all_arms_of_the_comparison_with_joint_training_make_equal_steps(few):
    function = claims.PAPER.claims["better_than_joint"].function
    steps = {}
    for arm in claims.PAPER.claims["better_than_joint"].arms:
        one = trial("better_than_joint", arm, lr=1e-3, strength=1.0)
        one.setup = one.setup.replace(iters=3)
        steps[arm] = function(one, few)["steps"]
    # Two tasks of three updates; joint training makes 3 after the first and 6 after the second, where it is measured.
    assert steps == {
        "frozen": 0, "finetune": 6, "ewc": 6, "er": 6, "two_step": 6, "two_step_meta": 6, "joint": 9,
        "joint_linear": 24,
    }  # fmt: skip


def test_curves_run_from_before_the_first_task_to_after_the_last(few):
    one = trial()
    metrics = claims.slow_weights_generalise(one, few)
    assert [step for step, _ in one.series["few_shot"]] == [0, 1, 2]
    assert [step for step, _ in one.series["seen"]] == [1, 2]
    assert metrics["few_shot"] == one.series["few_shot"][-1][1] == one.series["few_shot"][0][1]
    assert metrics["both"] == metrics["seen"] + metrics["few_shot"]
    joint = trial("no_replay_interference", "joint")
    joint.setup = joint.setup.replace(tasks=3)
    claims.no_replay_interference(joint, few)
    assert [step for step, _ in joint.series["seen"]] == [1, 2, 3]


def test_a_users_images_need_no_alphabets_and_few_classes_give_small_tasks():
    data = images.digits()
    stream = claims.draw_stream(claims.SMALL, data, 0)
    assert (len(stream.base), [len(task) for task in stream.tasks], len(stream.unseen)) == (2, [3, 3], 2)
    one = trial()
    assert 0 <= claims.slow_weights_generalise(one, data)["both"] <= 2


def test_too_few_classes_are_refused():
    part = Examples(torch.rand(14, 1, 8, 8), torch.arange(7).repeat(2))
    data = ImageData(part, part, part, tuple("abcdefg"), "seven")
    with pytest.raises(ValueError, match="take 8 classes or more, got 7"):
        claims.draw_stream(claims.SMALL, data, 0)


def test_absent_sets_say_what_to_place_where(monkeypatch, tmp_path):
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="data set cub200 is not here: place its images as CLASS/FILE"):
        claims.placed("cub200")
