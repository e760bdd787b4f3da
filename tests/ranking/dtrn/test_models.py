"""The whole network: what it reduces to, who gets whose gradient, histories, and the generator."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.data.kinds_multitask import MultiTaskRows
from etude.ranking.dtrn import DTRN, conflict_score, two_facet_behaviours

K, M, T = 3, 2, 5
HEADS = ("shared_bottom", "mmoe", "ple", "cross_stitch")
SMALL = {
    "shared_bottom": {"hidden_dims": (9,)},
    "mmoe": {"num_experts": 3, "expert_dims": (9,)},
    "ple": {"shared": 1, "specific": 1, "expert_dims": (9,)},
    "cross_stitch": {"hidden_dims": (9,)},
}


def made(head="mmoe", *, seed=0, tasks=K, **options):
    torch.manual_seed(seed)
    model = DTRN(
        [("item", 20), ("genre", 6)], ("click", "buy"), tasks, head, context=[("hour", 5)], event_fields=[("dwell", 4)],
        dim=8, max_len=T, head_options={**SMALL[head], "tower_dims": (4,)}, **options,
    )  # fmt: skip
    return model.double()


def stirred(model):
    """Away from the start, where gates and normalisations are still alike for all tasks."""
    for name, parameter in model.named_parameters():
        if "hyper.out.weight" in name or "refinement.last" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def batch(size=7, seed=1, time=T):
    generator = torch.Generator().manual_seed(seed)

    def ids(limits, *shape):
        return torch.stack([torch.randint(1, limit, shape, generator=generator) for limit in limits], dim=-1)

    length = torch.randint(1, time + 1, (size, M), generator=generator)
    mask = torch.arange(time) < length[..., None]
    return ids((20, 6), size), ids((20, 6, 4), size, M, time) * mask[..., None], mask, ids((5,), size)


def copied(plain, model):
    """The weights that both have; the plain one's normalisations stay (1, 0, 1, 0)."""
    state = {k: v for k, v in model.state_dict().items() if k in plain.state_dict()}
    plain.load_state_dict(state | {"interest.affine": plain.state_dict()["interest.affine"]})
    return plain


@pytest.mark.parametrize("head", HEADS)
def test_with_w2_zero_and_new_gates_it_is_the_plain_model(head):
    model = made(head)
    nn.init.zeros_(model.interest.hyper.out.weight)
    plain = copied(made(head, seed=5, interest=False, refinement=False), model)
    bottoms = model.bottom(*batch()), plain.bottom(*batch())
    assert [bottom.features.shape[1] for bottom in bottoms] == [K, 1]
    torch.testing.assert_close(model(*batch()), plain(*batch()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_of_one_task_leaves_what_belongs_to_another_alone(head):
    model = stirred(made(head))
    F.binary_cross_entropy_with_logits(model(*batch())[:, 0], torch.ones(7, dtype=torch.float64)).backward()
    owned = {
        "t": model.interest.hyper.task.grad,
        "gate in": model.refinement.first.weight.grad,
        "gate out": model.refinement.last.weight.grad,
    }
    if head in ("ple", "cross_stitch"):
        # These heads mix what the tasks bring: shared experts get the mean of all inputs.
        owned = {}
    owned |= {"tower": model.head.towers.layers[0].weight.grad, "tower out": model.head.towers.out.weight.grad}
    for name, grad in owned.items():
        touched = grad.flatten(1).abs().sum(1) > 0
        assert touched.tolist() == [True, False, False], name
    for shared in (model.interest.transformer.qkv[0], model.interest.hyper.out, model.table("item")):
        assert bool(shared.weight.grad.abs().sum() > 0)


def test_tables_are_shared_by_target_and_sequences_and_their_padding_stays_zero():
    model = made()
    model(*batch()).square().sum().backward()
    assert [table.num_embeddings for table in model.tables] == [20, 6, 4, 5]
    for table in model.tables:
        assert bool((table.weight[0] == 0).all())
        assert bool((table.weight.grad[0] == 0).all())


def test_fields_that_add_up_to_dim_stand_side_by_side():
    torch.manual_seed(0)
    model = DTRN([("a", 5, 3), ("b", 6, 5)], 1, 1, dim=8)
    assert isinstance(model.project, nn.Identity)
    want = torch.cat([model.table("a").weight[[2]], model.table("b").weight[[3]]], dim=1)
    torch.testing.assert_close(model._items(torch.tensor([[2, 3]])), want)
    assert DTRN([("a", 5), ("b", 6)], 1, 1, dim=8).project.weight.shape == (8, 16)


@pytest.mark.parametrize("flags", [(True, True), (True, False), (False, True), (False, False)])
def test_padding_empty_histories_and_a_single_task(flags):
    interest, refinement = flags
    model = stirred(made(tasks=1, interest=interest, refinement=refinement))
    target, sequences, mask, context = batch(time=3)
    want = model(target, sequences, mask, context)
    assert want.shape == (7, 1)
    longer = F.pad(sequences, (0, 0, 0, 2)), F.pad(mask, (0, 2))
    torch.testing.assert_close(model(target, *longer, context), want, atol=1e-10, rtol=0)
    nothing = torch.zeros_like(sequences), torch.zeros_like(mask)
    empty = model(target, *nothing, context)
    empty.sum().backward()
    assert bool(empty.isfinite().all())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_the_latest_events_count_when_there_are_too_many():
    model = made()
    target, sequences, _, context = batch(time=8)
    sequences = sequences.clamp(min=1)
    full = torch.ones(7, M, 8, dtype=torch.bool)
    want = model(target, sequences[:, :, 3:], full[:, :, 3:], context)
    torch.testing.assert_close(model(target, sequences, full, context), want)


def test_tasks_of_another_order_give_outputs_of_another_order():
    order = torch.tensor([2, 0, 1])
    model, other = stirred(made("mmoe")), made("mmoe")
    per_task = ("hyper.task", "refinement", "head.towers", "head.gates")
    state = {
        name: value[order] if any(part in name for part in per_task) else value
        for name, value in model.state_dict().items()
    }
    other.load_state_dict(state)
    torch.testing.assert_close(other(*batch()), model(*batch())[:, order], atol=1e-12, rtol=0)


def test_per_task_cost_is_an_embedding_a_gate_a_tower_and_a_mixing():
    sizes = [sum(p.numel() for p in made("mmoe", tasks=tasks).parameters()) for tasks in (2, 3)]
    fields, dim = 1 + 1 + M, 8
    wide, units = fields * dim, fields * dim // 4
    gate = wide * units + units + units * fields + fields
    tower, mixing = 9 * 4 + 4 + 4 + 1, wide * 3
    assert sizes[1] - sizes[0] == 16 + gate + tower + mixing
    assert sum(p.numel() for p in made("mmoe").parameters()) == sizes[1]


def test_a_column_of_any_name_can_be_a_field():
    assert DTRN([("item.id", 5), ("keys", 5), ("", 3)], 1, 1).table("keys").num_embeddings == 5


def test_a_model_comes_back_from_disk(tmp_path):
    model = stirred(made()).float()
    model.save_pretrained(tmp_path)
    same = DTRN.from_pretrained(tmp_path)
    torch.testing.assert_close(same(*batch()), model(*batch()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DTRN([], 1, 1), "needs item fields"),
        (lambda: DTRN([("item", 5)], 1, 1, context=[("item", 5)]), "different names"),
        (lambda: DTRN([("item", 1)], 1, 1), "the field item needs at least"),
        (lambda: DTRN([("item", 5)], 1, 1, context=[("hour", 5, 3)], dim=8), "hour is not one of an item.*got 3"),
        (lambda: DTRN([("item", 5)], 0, 1), "one behaviour and one task are needed, got 0 and 1"),
        (lambda: made()(*batch()[:3]), r"context must have the 1 columns hour, got 0"),
        (lambda: made()(batch()[0][:, :1], *batch()[1:]), "target must have the 2 columns item, genre, got 1"),
        (
            lambda: made()(batch()[0], batch()[1][:, :1], batch()[2][:, :1], batch()[3]),
            "each of the 2 behaviours click, buy, got 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_histories_are_the_last_events_of_each_type():
    events = torch.arange(1, 9)[:, None]
    rows = MultiTaskRows(
        targets=torch.ones(2, 1, dtype=torch.int64), events=events, starts=torch.tensor([[0, 4], [2, 6]]),
        stops=torch.tensor([[4, 4], [4, 8]]), labels=torch.tensor([[1.0, float("nan")], [0.0, 1.0]]),
        users=torch.zeros(2, dtype=torch.int64), context=torch.empty(2, 0, dtype=torch.int64),
    )  # fmt: skip
    _, sequences, mask, _ = rows.batch(torch.tensor([0, 1]), 3)
    assert sequences[..., 0].tolist() == [[[2, 3, 4], [0, 0, 0]], [[3, 4, 0], [7, 8, 0]]]
    assert mask.sum(-1).tolist() == [[3, 0], [2, 2]]
    assert len(rows.subset(torch.tensor([True, False]))) == 1


def test_facets_labels_follow_the_signs_of_the_matching_events():
    log = two_facet_behaviours(400, 0.25, generator=torch.Generator().manual_seed(0))
    target, sequences, mask, _ = log.rows.batch(torch.arange(400), 10)
    assert bool(mask.all())
    weights = ((1.2, 0.4), (0.4, 1.2))
    for row in range(60):
        a, b = [0.0, 0.0], [0.0, 0.0]
        for kind in range(2):
            for event in sequences[row, kind]:
                sign = {2: -1, 3: 1}[int(event[2])]
                a[kind] += sign * (event[0] == target[row, 0]).item()
                b[kind] += sign * (event[1] == target[row, 1]).item()
        first = sum(w * s for w, s in zip(weights[0], a))
        second = sum(w * (0.25 * sb + 0.75 * sa) for w, sa, sb in zip(weights[1], a, b))
        want = torch.sigmoid(torch.tensor([first, second], dtype=torch.float64))
        torch.testing.assert_close(log.probability[row], want)
    # Four planted positions of ten, each sharing one facet; the others share it once in twelve.
    shares = (sequences[..., :2] == target[:, None, None]).double().mean((0, 1, 2))
    torch.testing.assert_close(shares, torch.full((2,), 0.2 + 0.8 / 12, dtype=torch.float64), atol=0.02, rtol=0)


def test_tasks_agree_without_conflict_and_seeds_repeat():
    def log(conflict, seed):
        return two_facet_behaviours(50, conflict, num_behaviors=1, generator=torch.Generator().manual_seed(seed))

    agreeing = log(0.0, 0).probability.logit()
    # One type of behaviour weighs 1.2 for task 1 and 0.4 for task 2.
    torch.testing.assert_close(agreeing[:, 0], 3 * agreeing[:, 1])
    assert not torch.allclose(log(1.0, 0).probability.logit()[:, 1], agreeing[:, 1])
    assert torch.equal(log(1.0, 0).rows.events, log(1.0, 0).rows.events)
    assert not torch.equal(log(1.0, 0).rows.events, log(1.0, 1).rows.events)
    for bad, message in (({"n": 0}, "got 0"), ({"conflict": 1.5}, "got 1.5"), ({"planted": 11}, "and 11")):
        with pytest.raises(ValueError, match=message):
            two_facet_behaviours(**{"n": 5, **bad})


def test_one_label_under_equal_towers_pulls_the_shared_weights_one_way():
    model = made("shared_bottom", tasks=2, interest=False, refinement=False)
    with torch.no_grad():
        for parameter in model.head.towers.parameters():
            parameter[1] = parameter[0]
    y = torch.tensor([1.0, 0, 1, 1, 0, 0, 1], dtype=torch.float64)
    score = conflict_score(model, (batch(), torch.stack([y, y], dim=1)))
    torch.testing.assert_close(score, torch.ones(2, 2, dtype=torch.float64))


class Shared(nn.Module):
    """One linear layer whose output serves every task."""

    def __init__(self, dim, tasks):
        super().__init__()
        self.layer, self.tasks = nn.Linear(dim, 1), tasks

    def forward(self, x):
        return self.layer(x).expand(-1, self.tasks)

    def shared_parameters(self):
        return list(self.layer.parameters())


def test_opposite_labels_pull_apart_at_even_odds_and_not_elsewhere():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=generator)
    y = (torch.rand(20, generator=generator) < 0.5).float()
    model = Shared(4, 2)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    labels = torch.stack([y, 1 - y], dim=1)
    assert conflict_score(model, (x, labels))[0, 1].item() == pytest.approx(-1, abs=1e-6)
    nn.init.constant_(model.layer.bias, 2.0)
    assert conflict_score(model, (x, labels))[0, 1].item() > -0.9
    with pytest.raises(ValueError, match="task 1 has no known label"):
        conflict_score(model, (x, torch.stack([y, torch.full_like(y, float("nan"))], dim=1)))
    with pytest.raises(ValueError, match="no shared parameters"):
        conflict_score(model, (x, labels), [])
