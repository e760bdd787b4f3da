"""DIN and its base model: what the poolings share, invariances, tables, refusals."""

import pytest
import torch
from torch import nn

from etude.ranking.din import DIN, Field

FIELDS = [Field("item", 30, 4), Field("category", 9, 3), Field("hour", 26, 2)]


def make(**options):
    torch.manual_seed(0)
    return DIN(FIELDS, ["item", "category"], (6, 5), unit_dims=(4,), **options).double().eval()


def case(batch=5, time=7, candidates=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch,) if candidates is None else (batch, candidates)

    def ids(size, *shape):
        return torch.randint(2, size, shape, generator=generator)

    candidate = {"item": ids(30, *shape), "category": ids(9, *shape)}
    history = {"item": ids(30, batch, time), "category": ids(9, batch, time)}
    mask = torch.arange(time) < torch.tensor([time, 4, 2, 1, 0])[:, None]
    return candidate, history, mask, {"hour": ids(26, batch)}


def test_a_unit_of_constant_1_is_the_base_model():
    din, base = make(), make(pooling="sum")
    nn.init.zeros_(din.pooling.unit.out.weight)
    nn.init.ones_(din.pooling.unit.out.bias)
    base.load_state_dict({k: v for k, v in din.state_dict().items() if not k.startswith("pooling.")})
    torch.testing.assert_close(din(*case()), base(*case()), rtol=1e-12, atol=1e-12)


def test_sum_and_mean_pooling_equal_a_loop():
    candidate, history, mask, context = case()
    for kind in ("sum", "mean"):
        model = make(pooling=kind)
        rows = []
        for b in range(5):
            keys = [
                torch.cat([model.tables[n].weight[history[n][b, t]] for n in ("item", "category")])
                for t in range(7)
                if mask[b, t]
            ]
            user = torch.stack(keys).sum(0) if keys else torch.zeros(7, dtype=torch.float64)
            if kind == "mean" and keys:
                user = user / len(keys)
            shown = [model.tables[n].weight[candidate[n][b]] for n in ("item", "category")]
            rows.append(torch.cat([user, *shown, model.tables["hour"].weight[context["hour"][b]]]))
        x = torch.stack(rows)
        for layer in model.mlp:
            x = layer(x)
        torch.testing.assert_close(model(candidate, history, mask, context), model.out(x).squeeze(1))


@pytest.mark.parametrize("pooling", ["attention", "sum", "mean"])
@pytest.mark.parametrize("normalize", ["none", "softmax"])
def test_padding_and_the_order_of_the_history_leave_the_logit_unchanged(pooling, normalize):
    candidate, history, mask, context = case()
    model = make(pooling=pooling, normalize=normalize)
    expected = model(candidate, history, mask, context)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    longer = torch.cat([mask, torch.zeros(5, 3, dtype=torch.bool)], dim=1)[:, order]
    for padding in (0, 5):
        padded = {n: nn.functional.pad(ids, (0, 3), value=padding)[:, order] for n, ids in history.items()}
        torch.testing.assert_close(model(candidate, padded, longer, context), expected, rtol=0, atol=1e-10)
    zeroed = {n: ids * mask for n, ids in history.items()}
    torch.testing.assert_close(model(candidate, zeroed, None, context), expected, rtol=0, atol=1e-10)


def test_no_history_at_all_is_allowed():
    candidate, history, mask, context = case()
    model = make(activation="dice").train()
    out = model(candidate, {n: ids[:, :0] for n, ids in history.items()}, mask[:, :0], context)
    assert bool(torch.isfinite(out).all())
    out.sum().backward()


@pytest.mark.parametrize("options", [{}, {"pooling": "mean"}, {"normalize": "softmax", "user_item_product": True}])
def test_several_candidates_are_as_many_single_ones(options):
    candidate, history, mask, context = case(candidates=3)
    model = make(item_bias=True, input_norm=True, project_user=True, **options)
    nn.init.normal_(model.item_bias.weight)
    logits = model(candidate, history, mask, context)
    assert logits.shape == (5, 3)
    weights = model.attention(candidate, history, mask)
    for n in range(3):
        one = {name: ids[:, n] for name, ids in candidate.items()}
        torch.testing.assert_close(logits[:, n], model(one, history, mask, context))
        torch.testing.assert_close(weights[:, n], model.attention(one, history, mask))


def test_candidate_and_behaviours_are_looked_up_in_the_same_table():
    candidate, history, mask, context = case()
    model = make(sparse=False)
    assert sum(isinstance(module, nn.Embedding) for module in model.modules()) == 3
    model(candidate, history, mask, context).sum().backward()
    touched = set(model.tables["item"].weight.grad.abs().sum(1).nonzero().squeeze(1).tolist())
    assert touched == set(candidate["item"].tolist()) | set(history["item"][mask].tolist())


def test_gradients_of_the_tables_are_sparse_and_padding_stays_zero():
    candidate, history, _, context = case()
    history["item"][0, 3] = history["category"][0, 3] = 0
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(candidate, history, None, context).sum().backward()
    for table in model.tables.values():
        assert table.weight.grad.is_sparse
    optimizer.step()
    assert bool((model.tables["item"].weight[0] == 0).all())


def test_tables_start_small_and_the_item_bias_at_zero():
    model = DIN([Field("item", 5000, 16)], ["item"], item_bias=True)
    assert model.tables["item"].weight[1:].std().item() == pytest.approx(0.05, rel=0.02)
    assert bool((model.tables["item"].weight[0] == 0).all())
    assert bool((model.item_bias.weight == 0).all())


def test_the_demo_has_the_published_sizes():
    model = DIN.demo({"item": 100, "category": 20})
    unit = 4 * 128 * 80 + 80 + 80 * 40 + 40 + 41
    mlp = 3 * 128 * 80 + 80 + 80 * 40 + 40 + 41
    norms = 2 * 128 + 128 * 128 + 128 + 2 * 3 * 128
    assert sum(p.numel() for p in model.parameters()) == 120 * 64 + 100 + unit + mlp + norms
    assert model.pooling.normalize == "softmax"
    assert model.pooling.scale == pytest.approx(128**0.5)


def test_dropped_ids_are_dropped_in_training_only():
    candidate, history, mask, context = case()
    model = make(id_dropout=0.5)
    assert torch.equal(model(candidate, history, mask, context), model(candidate, history, mask, context))
    model.train()
    rows = model._look_up("item", torch.full((4000,), 3))
    kept = rows.abs().sum(1) > 0
    assert kept.double().mean().item() == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(rows[kept][0], 2 * model.tables["item"].weight[3])


def test_a_model_is_saved_and_loaded(tmp_path):
    model = make(pooling="attention", normalize="softmax")
    model.save_pretrained(tmp_path)
    again = DIN.from_pretrained(tmp_path).double().eval()
    torch.testing.assert_close(again(*case()), model(*case()), rtol=1e-5, atol=1e-6)


def test_bad_ids_and_keys_are_refused_by_name():
    model = make()
    for what, change, message in (
        (0, {"item": torch.full((5,), 30)}, r"candidate field 'item' must lie in 0\.\.29, got 30\.\.30"),
        (1, {"category": torch.full((5, 7), -1)}, r"history field 'category' must lie in 0\.\.8, got -1\.\.-1"),
        (3, {"hour": torch.zeros(5)}, r"context field 'hour' must be integers in 0\.\.25, got torch.float32"),
        (0, {"colour": torch.zeros(5)}, r"candidate must have the fields item, category.*unknown are \['colour'\]"),
        (3, {"hour": torch.zeros(4, dtype=torch.int64)}, "must be"),
        (1, {"item": torch.ones(5, 6, dtype=torch.int64)}, "must be"),
    ):
        arguments = list(case())
        arguments[what] = {**arguments[what], **change}
        with pytest.raises(ValueError, match=message):
            model(*arguments)
    candidate, history, mask, _ = case()
    with pytest.raises(ValueError, match=r"missing are \['hour'\]"):
        model(candidate, history, mask)
    with pytest.raises(ValueError, match="mask must be bool"):
        model(candidate, history, mask.long(), case()[3])


def test_a_mask_that_lets_padding_through_is_warned_of():
    candidate, history, mask, context = case()
    history["item"][0, 0] = 0
    with pytest.warns(UserWarning, match="lets padding"):
        make()(candidate, history, torch.ones_like(mask), context)


def test_bad_arguments_are_refused():
    for fields, sequence, options, message in (
        ([Field("item", 3), Field("item", 4)], ["item"], {}, "names of fields must differ"),
        ([Field("item", 3)], ["shop"], {}, r"must name some of item, got \['shop'\]"),
        ([Field("item", 1)], ["item"], {}, "at least 2 rows"),
        ([Field("item", 3)], ["item"], {"id_dropout": 1.0}, "id_dropout must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            DIN(fields, sequence, **options)
