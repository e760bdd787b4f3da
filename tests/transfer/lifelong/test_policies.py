"""What each policy promises, on networks of two hidden layers and small streams."""

import json
import math

import pytest
import torch

from etude.data.kinds import Examples
from etude.transfer.lifelong import (
    EWC,
    FREE,
    BackwardTransfer,
    Compose,
    ConfusionReduction,
    ConsolidatedNet,
    FewShot,
    FineTune,
    ForwardTransfer,
    GracefulForgetting,
    Joint,
    LifelongLearner,
    NonForgetting,
    Policy,
    Prune,
    RainMan,
    Refinement,
    Scripted,
    SleepDeprivation,
    Task,
    Uniform,
    learn_stream,
    policy_from_dict,
    shared_latent_tasks,
)

OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.5),
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=0.1),
}
ALL = [
    NonForgetting(), ForwardTransfer(), ForwardTransfer("correlation"), FewShot(), BackwardTransfer(steps=3, folds=2),
    ConfusionReduction(3), Refinement(3), GracefulForgetting(0.5), RainMan(9), SleepDeprivation(0.5), FineTune(),
    Joint(), EWC(10.0), Uniform(0.3), Scripted({"*[old->old]": "inf", "*[new->old]": "masked"}, recruit=2),
    ForwardTransfer() + GracefulForgetting(0.2), NonForgetting() + Prune(0.1),
]  # fmt: skip


def stream(tasks=3, n=40, features=6):
    return shared_latent_tasks(
        tasks, n, features=features, latent=2, val=5, test=30, generator=torch.Generator().manual_seed(0)
    )


def net(pool=None, layers=2, units=4, **options):
    return ConsolidatedNet(6, layers, units, pool=pool, seed=0, **options)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("policy", [NonForgetting(), ForwardTransfer(), FewShot(n_units=2), RainMan(6)])
def test_old_outputs_are_bit_identical_after_further_tasks(policy, optimizer):
    tasks = stream()
    learner = LifelongLearner(
        net(pool=20, norm=True), policy, steps=5, lr=0.05, optimizer=OPTIMIZERS[optimizer], clip=0.3
    )
    x, before = tasks[0].test.inputs, {}
    for task in tasks:
        learner.learn(task.id, *task.train[:], test=task.test[:])
        for old, outputs in before.items():
            assert torch.equal(learner.net(x, old), outputs)
        before[task.id] = learner.net(x, task.id).detach()
    assert learner.metrics()["forgetting"] <= 0.0
    assert torch.equal(learner.accuracies.diagonal()[:-1], learner.accuracies[-1, :-1])


def test_fine_tuning_changes_old_outputs():
    tasks = stream()
    learner = learn_stream(tasks[:1], FineTune(), net=net(), steps=5)
    before = learner.net(tasks[0].test.inputs, 1).detach()
    learner.learn(2, *tasks[1].train[:], steps=5)
    assert not torch.equal(learner.net(tasks[0].test.inputs, 1), before)


def test_fine_tuning_is_plain_training_and_joint_is_training_on_all_tasks():
    tasks = stream(2)
    learner = learn_stream(tasks, FineTune(), net=net(), steps=6, lr=0.01, batch_size=40)
    plain = net()
    for number, task in enumerate(tasks, start=1):
        plain.recruit(task.id, 4 if number == 1 else 0, 2)
        optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
        for _ in range(6):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(plain(task.train.inputs, task.id), task.train.targets).backward()
            optimizer.step()
    for a, b in zip(learner.net.parameters(), plain.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)

    joint = learn_stream(tasks, Joint(), net=net(), steps=1, lr=0.01, batch_size=80)
    plain = net()
    for number, task in enumerate(tasks, start=1):
        plain.recruit(task.id, 4 if number == 1 else 0, 2)
        optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
        losses = [
            torch.nn.functional.cross_entropy(plain(old.train.inputs, old.id), old.train.targets)
            for old in tasks[:number]
        ]
        torch.stack(losses).mean().backward()
        optimizer.step()
    for a, b in zip(joint.net.parameters(), plain.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_policies_are_data():
    for policy in ALL:
        again = policy_from_dict(json.loads(json.dumps(policy.as_dict())))
        assert again == policy
        assert again.complete().schedule(3) == policy.complete().schedule(3)
        assert all(isinstance(step["rules"], dict) for step in policy.schedule(3))
    assert NonForgetting().rules(2) == {
        "*[old->old]": math.inf, "*[new->old]": "masked", "*[old->new]": 0.0, "*[new->new]": 0.0
    }  # fmt: skip
    with pytest.raises(ValueError, match="no policy 'Magic'"):
        policy_from_dict({"policy": "Magic"})
    with pytest.raises(ValueError, match="EWC has no mu; it has lam, mode, decay"):
        policy_from_dict({"policy": "EWC", "mu": 1})


@pytest.mark.parametrize("policy", ALL, ids=lambda policy: "+".join(type(p).__name__ for p in policy.parts()))
@pytest.mark.parametrize("layers", [1, 2])
def test_every_policy_learns_a_stream_and_notes_what_it_sets(policy, layers):
    learner = learn_stream(stream(), policy, net=net(layers=layers), steps=3)
    assert learner.accuracies.shape == (3, 3)
    assert {step["task"] for step in learner.schedule} == {1, 2, 3}
    assert json.loads(learner.save_schedule())
    assert all(bool(torch.isfinite(p).all()) for p in learner.net.parameters())


def test_a_schedule_can_be_saved_and_compared():
    one, two = (learn_stream(stream(), policy, net=net(), steps=1) for policy in (NonForgetting(), RainMan(4)))
    assert one.save_schedule() != two.save_schedule()
    assert one.save_schedule() == learn_stream(stream(), NonForgetting(), net=net(), steps=1).save_schedule()


def test_added_policies_override_the_earlier_ones():
    both = ForwardTransfer() + GracefulForgetting(0.5, b0=8.0)
    rules = both.rules(3)
    assert list(rules)[-1] == "G[2->2]"
    assert rules["G[1->1]"] == 2.0
    assert rules["G[1->2]"] == rules["G[2->2]"] == 4.0
    assert rules["*[new->old]"] == "masked"
    assert isinstance(both, Compose)
    assert len((both + RainMan()).policies) == 3


def test_memory_fades_by_gamma_and_use_restores_it():
    policy = GracefulForgetting(0.5, b0=100.0)
    assert policy.rules(4)["G[1->1]"] == 100.0 / 8
    assert GracefulForgetting(0.0).rules(2)["G[1->1]"] == 0.0
    assert GracefulForgetting(1.0, b0=math.inf).rules(4)["G[1->1]"] == math.inf
    learner = learn_stream(stream(), policy, net=net(), steps=1)
    learner.use(1)
    assert policy.rules(4, learner.state)["G[1->1]"] == 50.0
    assert policy.rules(4, learner.state)["G[2->2]"] == 25.0
    with pytest.raises(ValueError, match="finite unless gamma is 1"):
        GracefulForgetting(0.5, b0=math.inf)
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\], got 2"):
        GracefulForgetting(2)


def test_the_oldest_task_gives_up_its_units_where_room_is_needed():
    learner = learn_stream(stream(3), GracefulForgetting(0.5, release=True), net=net(pool=8), steps=1)
    assert [int((learner.net.unit_owner(0) == number).sum()) for number in (1, 2, 3)] == [0, 4, 4]
    with pytest.raises(ValueError, match="release units of an older task"):
        learn_stream(stream(3), GracefulForgetting(0.5), net=net(pool=8), steps=1)


@pytest.mark.parametrize(("p", "still"), [(0.0, True), (1.0, False)])
def test_without_sleep_the_old_task_is_not_held(p, still):
    tasks = stream(2)
    learner = LifelongLearner(net(), SleepDeprivation(p), steps=5)
    learner.learn(1, *tasks[0].train[:])
    before = [layer.weight.detach()[:4, :4].clone() for layer in learner.net.layers]
    learner.learn(2, *tasks[1].train[:])
    for old, layer in zip(before, learner.net.layers):
        assert torch.equal(layer.weight[:4, :4], old) == still
    assert not bool(learner.net.layers[1].weight[:4, 4:].any()), "new units still feed no old ones"


def test_a_rain_man_reads_nothing_of_others():
    learner = learn_stream(stream(), RainMan(5), net=net(), steps=3)
    for i in range(1, 4):
        for j in range(1, 4):
            if i != j:
                owner = learner.net.unit_owner(0) == i
                assert not bool(learner.net.layers[1].weight[learner.net.unit_owner(1) == j][:, owner].any())
                head = learner.net.head.weight[learner.net.output_owner == j]
                assert not bool(head[:, learner.net.unit_owner(1) == i].any())
    assert int((learner.net.unit_owner(0) == 2).sum()) == 5


def test_transfer_finds_the_task_that_comes_again_and_starts_from_its_head():
    tasks = stream(2, n=200)
    again = Task("again", Examples(tasks[1].train.inputs, 1 - tasks[1].train.targets), tasks[1].test)
    for source in ("accuracy", "correlation"):
        seen = {}

        class Probe(ForwardTransfer):
            def before_task(self, context, seen=seen):
                super().before_task(context)
                seen["best"] = self._best(context)
                seen["new"] = context.net(context.inputs, "again").detach()
                seen["old"] = context.net(context.inputs, 2).detach()
                seen["units"] = int((context.net.unit_owner(0) == 3).sum())

        trial = LifelongLearner(net(units=12), NonForgetting(), steps=60, lr=0.03)
        for task in tasks:
            trial.learn(task.id, *task.train[:])
        trial.learn("again", *again.train[:], policy=Probe(source), steps=1)
        number, similarity = seen["best"]
        assert number == 2
        assert similarity.match == (1, 0), "the labels are swapped"
        torch.testing.assert_close(seen["new"], seen["old"].flip(1), rtol=0, atol=1e-5)
        assert 4 <= seen["units"] < 12


def test_few_shots_train_the_links_alone_and_the_pull_holds_them():
    tasks = stream(2)
    sizes = {}
    for pull in (0.0, 1e4):
        learner = LifelongLearner(net(), NonForgetting(), steps=5)
        learner.learn(1, *tasks[0].train[:])
        learner.learn(2, *tasks[1].train[:], policy=FewShot(pull=pull))
        assert not bool((learner.net.unit_owner(0) == 2).any())
        sizes[pull] = float(learner.net.head.weight[2:].detach().abs().max())
    assert sizes[0.0] > 1e-3
    assert sizes[1e4] <= 1 / (2 * 1e4) * 1.01


def test_free_random_units_are_read_if_asked_for():
    task = stream(1)[0]
    learner = LifelongLearner(net(pool=9, layers=1), FewShot(pull=0.0, use_free=True), steps=5)
    before = learner.net.layers[0].weight.detach().clone()
    learner.learn(1, *task.train[:])
    assert torch.equal(learner.net.layers[0].weight, before)
    assert bool(learner.net.head.weight.any())


def test_confusion_reduction_moves_heads_and_only_heads():
    tasks = stream(2)
    plain, policy = NonForgetting(), NonForgetting() + ConfusionReduction(5, after=2)
    one, two = (learn_stream(tasks, p, net=net(), steps=5, memory=3) for p in (plain, policy))
    for a, b in zip(one.net.layers.parameters(), two.net.layers.parameters()):
        assert torch.equal(a, b)
    crossed = two.net.head.weight[:2, 4:]
    assert bool(crossed.any()), "H[2->1] is open"
    assert len(two.memory) == 2 * 2 * 3


def test_refinement_holds_everything_alike():
    tasks = stream(2)
    stiff = learn_stream(tasks, NonForgetting() + Refinement(5, b=1e6), net=net(), steps=5)
    plain = learn_stream(tasks, NonForgetting(), net=net(), steps=5)
    for a, b in zip(stiff.net.parameters(), plain.net.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    soft = learn_stream(tasks, NonForgetting() + Refinement(5, b=0.1), net=net(), steps=5)
    assert not torch.equal(soft.net.layers[0].weight, plain.net.layers[0].weight)


def test_backward_transfer_opens_links_of_that_task_alone():
    tasks = stream(3)
    policy = NonForgetting() + BackwardTransfer(5, after=3, tasks=(1,), kinds=("H",), folds=0)
    plain, better = (learn_stream(tasks, p, net=net(), steps=5) for p in (NonForgetting(), policy))
    later = plain.net.unit_owner(-1) > 1
    assert not bool(plain.net.head.weight[:2, later].any())
    assert bool(better.net.head.weight[:2, later].any())
    assert torch.equal(better.net.head.weight[2:], plain.net.head.weight[2:])
    for a, b in zip(plain.net.layers.parameters(), better.net.layers.parameters()):
        assert torch.equal(a, b)
    rules = BackwardTransfer(kinds=("H",)).rules_for(1, 3)
    assert {k: rules[k] for k in ("H[2->1]", "H[3->1]")} == {"H[2->1]": 0.0, "H[3->1]": 0.0}


def test_backward_transfer_that_does_not_help_is_taken_back(monkeypatch):
    tasks = stream(2)
    monkeypatch.setattr(BackwardTransfer, "_validated", lambda *_: (0.5, 0.6))
    refused = learn_stream(tasks, NonForgetting() + BackwardTransfer(5), net=net(), steps=5)
    plain = learn_stream(tasks, NonForgetting(), net=net(), steps=5)
    for a, b in zip(plain.net.parameters(), refused.net.parameters()):
        assert torch.equal(a, b)


def test_pruning_costs_no_more_accuracy_than_the_budget_and_feeds_the_pool():
    task = stream(1, n=60)[0]
    full = learn_stream([task], NonForgetting(), net=net(units=12), steps=40, lr=0.02)
    pruned = learn_stream([task], NonForgetting() + Prune(0.05), net=net(units=12), steps=40, lr=0.02)
    freed = pruned.net.num_free()
    assert 0 < freed < 12
    loss = full.accuracy(1, *task.train[:]) - pruned.accuracy(1, *task.train[:])
    assert loss <= 0.05 + 1e-12
    assert learn_stream([task], NonForgetting() + Prune(1.0), net=net(), steps=1).net.num_free() == 4


def test_pruned_units_of_ewc_stay_away_and_start_anew():
    tasks = stream(3, n=60)
    learner = LifelongLearner(net(pool=12, layers=1), EWC(6.0) + Prune(0.05), steps=40, lr=0.02)
    learner.learn(1, *tasks[0].train[:])
    freed = learner.net.unit_owner(-1) == FREE
    assert 0 < freed.sum() < 12
    learner.learn(2, *tasks[1].train[:])
    assert not learner.net.head.weight[:, freed].any()
    assert learner.net.head.weight[2:, ~freed].any()
    redrawn = torch.nonzero(freed).squeeze(1)
    learner.net.recruit(3, len(redrawn), num_outputs=2)
    learner.consolidation.refresh(learner.net.owners())
    weight = learner.net.layers[0].weight
    assert torch.equal(learner.consolidation.targets()["layers.0.weight"][redrawn], weight[redrawn])
    assert not learner.consolidation.strength("layers.0.weight")[redrawn].any()
    assert learner.consolidation.strength("layers.0.weight")[~freed].any()


def test_ewc_holds_what_matters_by_its_fisher_information():
    tasks = stream(2)
    learner = LifelongLearner(net(), EWC(6.0), steps=5)
    learner.learn(1, *tasks[0].train[:])
    target = learner.consolidation.targets()
    expected = torch.zeros_like(learner.net.layers[0].weight)
    for x, y in zip(tasks[0].train.inputs, tasks[0].train.targets):
        loss = torch.nn.functional.cross_entropy(learner.net(x[None], 1), y[None])
        expected += torch.autograd.grad(loss, learner.net.layers[0].weight)[0].square() / 40
    learner.consolidation.set("*[*->*]", 3.0)
    torch.testing.assert_close(learner.consolidation.strength("layers.0.weight"), 3.0 * expected, rtol=1e-4, atol=1e-7)
    assert torch.equal(target["layers.0.weight"], learner.net.layers[0].weight.detach())
    learner.learn(2, *tasks[1].train[:])
    assert not torch.equal(learner.consolidation.targets()["layers.0.weight"], target["layers.0.weight"])


def test_policies_without_a_table_of_their_own_stand_on_non_forgetting():
    assert ConfusionReduction().complete() == NonForgetting() + ConfusionReduction()
    assert (FineTune() + ConfusionReduction()).complete() == FineTune() + ConfusionReduction()


def test_policies_touch_no_optimizer():
    kinds = [kind for kind in Policy._known.values() if kind.__module__.startswith("etude.")]
    assert len(kinds) >= 15
    for kind in kinds:
        names = {
            name for method in vars(kind).values() if hasattr(method, "__code__") for name in method.__code__.co_names
        }
        assert not {"optimizer", "step", "attach"} & names


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (EWC, {"lam": -1.0}, "lam must be finite and not negative, got -1.0"),
        (EWC, {"mode": "fast"}, "mode must be 'separate' or 'online', got 'fast'"),
        (Uniform, {"b": -2.0}, r"b must lie in \[0, inf\], got -2.0"),
        (SleepDeprivation, {"p": 1.5}, r"p must lie in \[0, 1\], got 1.5"),
        (ForwardTransfer, {"source": "magic"}, "source must be one of accuracy, correlation, none, got 'magic'"),
        (BackwardTransfer, {"folds": 1}, "folds must be 0 or at least 2, got 1"),
        (ConfusionReduction, {"steps": 0}, "steps and after must be positive"),
        (Refinement, {"b": math.inf}, "b must be finite"),
        (Prune, {"budget": 2.0}, r"budget must lie in \[0, 1\], got 2.0"),
    ],
)
def test_senseless_policies_are_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_a_phase_without_exemplars_is_refused():
    with pytest.raises(ValueError, match="ConfusionReduction trains on stored exemplars, of which there are none"):
        learn_stream(stream(2), ConfusionReduction(), net=net(), steps=1, memory=0)
