"""Heads against loops over experts and tasks, their limits, and the refinement below them."""

import pytest
import torch
from torch import nn

from etude.ranking.dtrn import PLE, CrossStitch, MMoE, SharedBottom, SingleTask, TaskRefinement

B, D, K = 6, 10, 3
HEADS = {
    "shared_bottom": lambda: SharedBottom(D, K, (12, 7), (5,)),
    "mmoe": lambda: MMoE(D, K, 4, (7,), (5,)),
    "ple": lambda: PLE(D, K, 2, 2, 2, (7,), (5,)),
    "cross_stitch": lambda: CrossStitch(D, K, (12, 7), (5,)),
}


def made(name, seed=0):
    torch.manual_seed(seed)
    return HEADS[name]().double()


def inputs(seed=1, tasks=None):
    shape = (B, D) if tasks is None else (B, tasks, D)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp(bank, index, x):
    """Perceptron `index` of a bank, one layer after the other."""
    for layer in bank.layers:
        x = (x @ layer.weight[index] + layer.bias[index]).clamp(min=0)
    return x if bank.out is None else x @ bank.out.weight[index] + bank.out.bias[index]


def gated(weights, experts):
    return sum(w[:, None] * e for w, e in zip(weights.unbind(1), experts))


def naive_mmoe(head, task_inputs):
    logits = []
    for task, x in enumerate(task_inputs):
        gate = (x @ head.gates.weight[task]).softmax(-1)
        mixed = gated(gate, [mlp(head.experts, expert, x) for expert in range(len(gate[0]))])
        logits.append(mlp(head.towers, task, mixed)[:, 0])
    return torch.stack(logits, dim=1)


def naive_ple(head, task_inputs, specific, shared):
    common = sum(task_inputs) / len(task_inputs)
    for level in head.levels:
        own = [[mlp(level.own, t * specific + e, x) for e in range(specific)] for t, x in enumerate(task_inputs)]
        every = [mlp(level.shared, e, common) for e in range(shared)]
        mixed = []
        for task, x in enumerate(task_inputs):
            gate = (x @ level.gates.weight[task]).softmax(-1)
            mixed.append(gated(gate, own[task] + every))
        if level.shared_gate is not None:
            common = gated(level.shared_gate(common).softmax(-1), [e for group in own for e in group] + every)
        task_inputs = mixed
    return torch.stack([mlp(head.towers, task, x)[:, 0] for task, x in enumerate(task_inputs)], dim=1)


@pytest.mark.parametrize("shared", [True, False])
def test_mmoe_equals_a_loop_over_experts_and_tasks(shared):
    head = made("mmoe")
    x = inputs() if shared else inputs(tasks=K)
    want = naive_mmoe(head, [x] * K if shared else x.unbind(1))
    torch.testing.assert_close(head(x), want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shared", [True, False])
def test_ple_equals_a_loop_over_levels_experts_and_tasks(shared):
    head = made("ple")
    x = inputs() if shared else inputs(tasks=K)
    want = naive_ple(head, [x] * K if shared else x.unbind(1), 2, 2)
    torch.testing.assert_close(head(x), want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", HEADS)
def test_an_input_for_each_task_equals_a_shared_one_if_they_are_alike(name):
    head, x = made(name), inputs()
    want = head(x)
    assert want.shape == (B, K)
    for form in ([x] * K, x[:, None].expand(-1, K, -1)):
        torch.testing.assert_close(head(form), want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", HEADS)
def test_a_sequence_of_inputs_is_one_tensor_of_them(name):
    head, x = made(name), inputs(tasks=K)
    torch.testing.assert_close(head(x), head(list(x.unbind(1))))


def test_a_single_expert_is_a_shared_bottom():
    head, plain = made("mmoe"), SharedBottom(D, K, (7,), (5,)).double()
    head = MMoE(D, K, 1, (7,), (5,)).double()
    plain.bottom.load_state_dict(head.experts.state_dict())
    plain.towers.load_state_dict(head.towers.state_dict())
    for x in (inputs(), inputs(tasks=K)):
        torch.testing.assert_close(head(x), plain(x), atol=1e-12, rtol=0)


def test_gates_sum_to_one_and_see_the_input_of_their_task():
    head, x = made("mmoe"), inputs(tasks=K)
    weights = head.gate_weights(x)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, K, dtype=torch.float64))
    moved = x.clone()
    moved[:, 1] += 1
    changed = (head.gate_weights(moved) - weights).abs().amax((0, 2)) > 0
    assert changed.tolist() == [False, True, False]


def test_ple_of_one_level_without_specific_experts_is_mmoe():
    ple, mmoe = PLE(D, K, 1, 4, 0, (7,), (5,)).double(), made("mmoe")
    mmoe.experts.load_state_dict(ple.levels[0].shared.state_dict())
    mmoe.gates.load_state_dict(ple.levels[0].gates.state_dict())
    mmoe.towers.load_state_dict(ple.towers.state_dict())
    torch.testing.assert_close(ple(inputs()), mmoe(inputs()), atol=1e-12, rtol=0)


def test_ple_without_shared_experts_keeps_the_tasks_apart():
    head = PLE(D, K, 1, 0, 2, (7,), (5,)).double()
    head(inputs(tasks=K))[:, 0].sum().backward()
    own = head.levels[0].own.layers[0].weight.grad.abs().sum((1, 2)).unflatten(0, (K, 2)).sum(1)
    assert (own > 0).tolist() == [True, False, False]
    assert head.shared_parameters() == []


def test_cross_stitch_mixes_the_layers_of_all_tasks():
    head, x = made("cross_stitch"), inputs()
    hidden = [x] * K
    for layer, stitch in zip(head.layers, head.stitches):
        acts = [(h @ layer.weight[t] + layer.bias[t]).clamp(min=0) for t, h in enumerate(hidden)]
        hidden = [sum(stitch[t, s] * acts[s] for s in range(K)) for t in range(K)]
    want = torch.stack([mlp(head.towers, t, h)[:, 0] for t, h in enumerate(hidden)], dim=1)
    torch.testing.assert_close(head(x), want, atol=1e-12, rtol=0)
    torch.testing.assert_close(head.stitches[0].sum(1), torch.ones(K, dtype=torch.float64))


def test_single_task_models_share_nothing():
    single = SingleTask([SharedBottom(D, 1, (7,), (5,)).double() for _ in range(K)])
    logits = single(inputs())
    assert logits.shape == (B, K)
    logits[:, 1].sum().backward()
    touched = [sum(float(p.grad.abs().sum()) for p in model.parameters()) > 0 for model in single.models]
    assert touched == [False, True, False]


@pytest.mark.parametrize("name", HEADS)
def test_tasks_of_another_order_give_outputs_of_another_order(name):
    order = torch.tensor([2, 0, 1])
    head, x = made(name), inputs(tasks=K)
    other = made(name)
    with torch.no_grad():
        for (key, mine), theirs in zip(head.named_parameters(), other.parameters()):
            if "stitches" in key:
                theirs.copy_(mine[order][:, order])
            elif "shared_gate" in key:
                own, rest = mine[: 2 * K].unflatten(0, (K, 2)), mine[2 * K :]
                theirs.copy_(torch.cat([own[order].flatten(0, 1), rest]))
            elif len(mine) == 2 * K:
                theirs.copy_(mine.unflatten(0, (K, 2))[order].flatten(0, 1))
            elif len(mine) == K:
                theirs.copy_(mine[order])
            else:
                theirs.copy_(mine)
    torch.testing.assert_close(other(x[:, order]), head(x)[:, order], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PLE(D, K, 0), "levels=0"),
        (lambda: PLE(D, K, 1, 0, 0), "shared=0, specific=0"),
        (lambda: SharedBottom(D, K, ()), r"at least one, of positive sizes, got \(\)"),
        (lambda: MMoE(0, K), "must be positive, got 0 and 3"),
        (lambda: MMoE(D, K)(torch.zeros(B, D + 1)), rf"\(batch, inputs, dim\) = \({B}, 1, {D + 1}\)"),
        (lambda: MMoE(D, K)([torch.zeros(B, D)] * 2), rf"each of 3 tasks.*\({B}, 2, {D}\)"),
        (lambda: SingleTask([]), "at least one model"),
        (lambda: TaskRefinement(K, 0, D), "num_fields must be positive, got 0"),
        (lambda: TaskRefinement(K, 2, D, bottleneck=0), "bottleneck must be positive, got 0"),
        (lambda: TaskRefinement(K, 2, D)(torch.zeros(B, 3, D)), rf"got \({B}, 1, 3, {D}\)"),
        (lambda: TaskRefinement(K, 2, D)(torch.zeros(B, 2, 2, D)), rf"got \({B}, 2, 2, {D}\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


F = 4


@pytest.mark.parametrize("granularity", ["field", "element"])
@pytest.mark.parametrize("squeeze", ["flatten", "mean"])
@pytest.mark.parametrize("each", [True, False])
def test_refinement_starts_as_the_identity_and_equals_a_loop(granularity, squeeze, each):
    torch.manual_seed(0)
    refine = TaskRefinement(K, F, D, granularity=granularity, squeeze=squeeze).double()
    x = torch.randn(B, K, F, D, dtype=torch.float64) if each else torch.randn(B, F, D, dtype=torch.float64)
    spread = x if each else x[:, None].expand(-1, K, -1, -1)
    torch.testing.assert_close(refine(x), spread, atol=0, rtol=0)
    nn.init.normal_(refine.last.weight)
    refined, weights = refine(x, return_weights=True)
    assert weights.shape == ((B, K, F) if granularity == "field" else (B, K, F, D))
    assert bool(((weights > 0) & (weights < 2)).all())
    for task in range(K):
        of_task = spread[:, task]
        z = of_task.flatten(1) if squeeze == "flatten" else of_task.mean(-1)
        hidden = (z @ refine.first.weight[task] + refine.first.bias[task]).clamp(min=0)
        a = 2 / (1 + (-(hidden @ refine.last.weight[task] + refine.last.bias[task])).exp())
        a = a[..., None] if granularity == "field" else a.reshape(B, F, D)
        torch.testing.assert_close(refined[:, task], a * of_task, atol=1e-12, rtol=0)


def test_the_bottleneck_is_a_share_of_the_input_or_given():
    assert TaskRefinement(K, F, 9, reduction=5).first.weight.shape == (K, 36, 8)
    assert TaskRefinement(K, F, 9, bottleneck=64).first.weight.shape == (K, 36, 64)
    assert TaskRefinement(K, F, 9, reduction=3, squeeze="mean").first.weight.shape == (K, 4, 2)


def test_the_plain_sigmoid_halves_at_the_start():
    x = torch.randn(B, F, D)
    torch.testing.assert_close(TaskRefinement(K, F, D, gate="sigmoid")(x)[:, 0], x / 2)


def test_a_detached_gate_passes_no_gradient_to_the_features():
    torch.manual_seed(0)
    for detach in (True, False):
        refine = TaskRefinement(K, F, D, detach=detach)
        nn.init.normal_(refine.last.weight)
        x = torch.randn(B, F, D, requires_grad=True)
        _, weights = refine(x, return_weights=True)
        assert weights.requires_grad
        (grad,) = torch.autograd.grad(weights.sum(), x, allow_unused=True)
        assert (grad is None) == detach
