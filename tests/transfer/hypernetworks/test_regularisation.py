"""The regulariser: zero at the snapshot, a gradient to Phi alone, and what learning a stream leaves in place."""

import pytest
import torch
from torch import nn

from etude.data.kinds import Examples
from etude.transfer.hypernetworks import (
    HypernetDesign,
    HypernetSnapshot,
    Hypernetwork,
    Task,
    learn_condition,
    learn_jointly,
    learn_stream,
    learn_task,
    lookahead_step,
    output_regularizer,
    row_mask,
)


def made(generation="chunk", **options):
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    options = {"num_conditions": 3, "cond_dim": 4, "hidden": (8, 8), "chunk_size": 9} | options
    return Hypernetwork(target, HypernetDesign("task", generation), **options)


def number_of(value):
    return float(value.detach())


def moved(net):
    """Every weight of the hypernetwork a little elsewhere, embeddings too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def by_hand(net, snapshot, conditions):
    """Eq. (2) as a loop, with the snapshot's embeddings."""
    total = 0.0
    for number in conditions:
        embedding = snapshot.hypernet.conditions.learned[number]
        total += number_of((net.flat(embedding)[0] - snapshot.hypernet.flat(number)[0]).square().sum())
    return total / len(conditions)


def test_it_is_zero_at_the_snapshot_and_the_mean_of_squared_norms_elsewhere():
    net = made()
    snapshot = HypernetSnapshot(net)
    assert number_of(output_regularizer(net, snapshot, [0, 1])) == pytest.approx(0.0, abs=1e-10)
    moved(net)
    assert number_of(output_regularizer(net, snapshot, [0, 1])) == pytest.approx(
        by_hand(net, snapshot, [0, 1]), rel=1e-5
    )
    assert number_of(output_regularizer(net, snapshot, [])) == 0.0


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("embedding", ["shared", "per_condition"])
def test_the_gradient_reaches_phi_and_no_old_embedding(ahead, embedding):
    net = made(component_embedding=embedding)
    snapshot = HypernetSnapshot(net)
    moved(net)
    step = lookahead_step(net, net.call(torch.randn(6, 4), 2).square().mean(), 0.1) if ahead else None
    output_regularizer(net, snapshot, [0, 1], lookahead=step).backward()
    for number in range(3):
        assert all(p.grad is None or not p.grad.any() for p in net.condition_parameters(number))
    assert all(p.grad is not None and p.grad.any() for p in net.head.parameters())


def test_lookahead_regularises_where_the_step_would_lead():
    net = made()
    snapshot = HypernetSnapshot(net)
    moved(net)
    loss = net.call(torch.randn(6, 4), 2).square().mean()
    step = lookahead_step(net, loss, 0.5)
    assert set(step) == {
        name for name, p in net.named_parameters() if p.requires_grad and not name.startswith("conditions.")
    }
    ahead = number_of(output_regularizer(net, snapshot, [0, 1], lookahead=step))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name in step:
                parameter.add_(step[name])
    assert ahead == pytest.approx(by_hand(net, snapshot, [0, 1]), rel=1e-4)


def test_weights_masks_and_subsamples():
    net = made()
    snapshot = HypernetSnapshot(net)
    moved(net)
    each = [number_of(output_regularizer(net, snapshot, [number])) for number in range(2)]
    weighted = output_regularizer(net, snapshot, [0, 1], weights=torch.tensor([2.0, 0.0]))
    assert number_of(weighted) == pytest.approx(each[0], rel=1e-5)
    rows = torch.zeros(2, net.spec.numel, dtype=torch.bool)
    assert number_of(output_regularizer(net, snapshot, [0, 1], masks=rows)) == 0.0
    generator = torch.Generator().manual_seed(0)
    drawn = {round(number_of(output_regularizer(net, snapshot, [0, 1], subsample=1, generator=generator)), 4)
             for _ in range(20)}  # fmt: skip
    assert drawn == {round(value, 4) for value in each}
    with pytest.raises(ValueError, match="subsample must be positive, got 0"):
        output_regularizer(net, snapshot, [0], subsample=0)
    with pytest.raises(ValueError, match=r"masks must have shape \(1, 37\), got \(2, 37\)"):
        output_regularizer(net, snapshot, [0], masks=rows)


def test_a_mask_keeps_the_rows_that_a_task_uses():
    net = made()
    mask = row_mask(net.spec, "2", [1])
    used = net.spec.split(mask.float())
    assert bool(used["0.weight"].all())
    assert bool(used["0.bias"].all())
    assert used["2.weight"].sum(dim=1).tolist() == [0.0, 5.0]
    assert used["2.bias"].tolist() == [0.0, 1.0]
    snapshot = HypernetSnapshot(net)
    moved(net)
    masked = number_of(output_regularizer(net, snapshot, [0], masks=mask[None]))
    embedding = snapshot.hypernet.conditions.learned[0]
    change = (net.flat(embedding) - snapshot.hypernet.flat(0)).square()[0]
    assert masked == pytest.approx(number_of(change[mask].sum()), rel=1e-5)
    with pytest.raises(ValueError, match="no generated layer is called 'head'; there are 0, 2"):
        row_mask(net.spec, "head", [0])
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1, got \[2\]"):
        row_mask(net.spec, "2", [2])


def examples(n=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    return Examples(x, (x[:, seed % 4] > 0).long())


def test_a_later_task_moves_no_earlier_embedding_and_a_large_beta_holds_the_outputs():
    held = {}
    for beta in (0.0, 1e4):
        net = made()
        learn_task(net, 0, examples(), beta=beta, steps=5)
        before, embedding = net.flat(0).detach(), net.conditions.learned[0].detach().clone()
        learn_task(net, 1, examples(seed=1), beta=beta, steps=20, lr=1e-3)
        assert torch.equal(net.conditions.learned[0], embedding)
        held[beta] = number_of((net.flat(0) - before).square().sum())
    assert 0 < held[1e4] < held[0.0]


def test_few_shot_learning_moves_its_embedding_alone():
    net = made()
    before = {name: value.clone() for name, value in net.named_parameters()}
    number = learn_condition(net, examples(10), steps=5)
    assert number == 3
    assert net.num_conditions == 4
    changed = [name for name, value in net.named_parameters() if name not in before or not value.equal(before[name])]
    assert changed == ["conditions.learned.3"]
    mean = torch.stack([before[f"conditions.learned.{each}"] for each in range(3)]).mean(dim=0)
    assert not torch.equal(net.conditions.learned[3], mean)


def test_a_stream_gives_the_matrix_of_accuracies():
    tasks = [Task(str(seed), *(examples(seed=seed),) * 3, ("no", "yes")) for seed in range(3)]
    net = made()
    matrix = learn_stream(net, tasks, steps=2, lookahead=True, subsample=1)
    assert matrix.shape == (3, 3)
    assert matrix.dtype == torch.float64
    assert bool(((matrix >= 0) & (matrix <= 1)).all())
    with pytest.raises(ValueError, match="4 tasks need as many conditions, the hypernetwork has 3"):
        learn_stream(net, [*tasks, tasks[0]], steps=1)


def test_joint_training_takes_the_tasks_in_turn():
    tasks = [Task(str(seed), *(examples(seed=seed),) * 3, ("no", "yes")) for seed in range(3)]
    net = made()
    before = [embedding.detach().clone() for embedding in net.conditions.learned]
    learn_jointly(net, tasks, steps=2)
    changed = [not torch.equal(old, new) for old, new in zip(before, net.conditions.learned)]
    assert changed == [True, True, False]
