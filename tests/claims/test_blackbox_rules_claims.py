"""What the claims do around the method: fresh tables, splits by seed, paired arms, what tuning sees."""

import numpy as np
import pytest
import torch

from etude.claims.science import blackbox_rules as claims
from etude.data import expression, tables
from etude.lab import Trial


def trial(claim, arm, seed, tuned=None, **options):
    found = claims.PAPER.claims[claim]
    return Trial(found.id, arm, seed, "smoke", found.setups["smoke"], tuned or {}, **options)


def test_arms_of_a_seed_see_the_same_rows_and_seeds_other_ones():
    data = claims.generated()
    one, same = (claims._Rows(trial("blackbox_beats_baselines", arm, 700), data) for arm in ("gated", "xgboost"))
    other = claims._Rows(trial("blackbox_beats_baselines", "gated", 701), data)
    np.testing.assert_array_equal(one.x, same.x)
    np.testing.assert_array_equal(one.asked[1], same.asked[1])
    assert not np.array_equal(one.x, other.x)


def test_the_generators_rows_are_cut_as_the_sheet_of_the_tables_says():
    setup = claims.SMALL.replace(d=20)
    rows = claims._Rows(Trial("c", "gated", 700, "small", setup), claims.generated())
    assert [len(rows.x), len(rows.val[0]), len(rows.asked[0])] == [312, 78, 210]


def test_tuning_looks_at_validation_rows_only():
    data = claims.generated()
    tuning = trial("blackbox_beats_baselines", "gated", 1000, tuning=True)
    rows = claims._Rows(tuning, data)
    assert rows.asked is rows.val
    found = claims.blackbox_beats_baselines(trial("blackbox_beats_baselines", "mlp", 1000, tuning=True), data)
    assert set(found) == {"val_macro_f1"}
    for arm in ("xgb_gain", "merged"):
        found = claims.recovers_informative(trial("recovers_informative", arm, 1000, tuning=True))
        assert set(found) == {"val_accuracy"}


def test_microarrays_are_split_by_the_seed_and_other_tables_keep_their_split():
    wine = tables.wine()
    rows = claims._Rows(trial("on_expression_tables", "topk", 3), wine)
    np.testing.assert_array_equal(rows.asked[0], wine.test.inputs.numpy())
    pytest.importorskip("rdata")
    try:
        khan = expression.microarray("khan")
    except FileNotFoundError:
        pytest.skip("microarray is not on this machine")
    rows = claims._Rows(trial("on_expression_tables", "topk", 3), khan)
    assert torch.equal(torch.from_numpy(rows.asked[0]), expression.microarray("khan", 3).test.inputs)


def test_the_correction_for_overlapping_splits_is_declared_where_tables_are_split_anew():
    resplit = {name: claim.resplit for name, claim in claims.PAPER.claims.items()}
    assert resplit.pop("on_expression_tables") == pytest.approx(0.35 / 0.65)
    assert set(resplit.values()) == {None}


def test_random_columns_are_the_mean_of_the_draws(monkeypatch):
    seen = []
    original = claims._faithful

    def recorded(*args):
        seen.append((args[3], original(*args)))
        return seen[-1][1]

    monkeypatch.setattr(claims, "_faithful", recorded)
    found = claims.topk_surrogate_is_faithful(trial("topk_surrogate_is_faithful", "random_k", 700), claims.generated())
    assert len(seen) == claims.SMOKE.draws
    assert all(len(columns) == claims.SMOKE.k for columns, _ in seen)
    assert found["agreement"] == pytest.approx(np.mean([metrics["agreement"] for _, metrics in seen]))


def test_bottom_columns_are_the_other_end_of_the_same_ranking(monkeypatch):
    seen = {}
    original = claims._faithful

    def recorded(this, rows, box, columns):
        seen[this.arm] = columns
        return original(this, rows, box, columns)

    monkeypatch.setattr(claims, "_faithful", recorded)
    for arm in ("topk", "bottom_k"):
        claims.topk_surrogate_is_faithful(trial("topk_surrogate_is_faithful", arm, 700), claims.generated())
    assert not set(seen["topk"]) & set(seen["bottom_k"])


def test_control_and_surrogate_trees_have_the_same_columns_and_other_targets(monkeypatch):
    seen = {}
    original = claims._tree_scores

    def recorded(this, rows, columns, codes, classes, depth):
        seen[this.arm] = (columns, codes, depth)
        return original(this, rows, columns, codes, classes, depth)

    monkeypatch.setattr(claims, "_tree_scores", recorded)
    for arm in ("surrogate_tree", "topk_tree", "direct_tree"):
        claims.surrogate_beats_direct_tree(
            trial("surrogate_beats_direct_tree", arm, 700, {"max_depth": 3}), claims.generated()
        )
    np.testing.assert_array_equal(seen["surrogate_tree"][0], seen["topk_tree"][0])
    np.testing.assert_array_equal(seen["direct_tree"][1], seen["topk_tree"][1])
    assert not np.array_equal(seen["surrogate_tree"][1], seen["topk_tree"][1])
    assert len(seen["direct_tree"][0]) == claims.SMOKE.d
    assert {depth for _, _, depth in seen.values()} == {3}


def test_three_tuned_arms_have_grids_of_one_size():
    claim = claims.PAPER.claims["blackbox_beats_baselines"]
    assert {len(claim.candidates(arm)) for arm in ("gated", "xgboost", "tabnet")} == {6}


def test_a_users_table_runs_the_questions_that_it_is_asked():
    for name in ("blackbox_beats_baselines", "surrogate_beats_direct_tree"):
        claim = claims.PAPER.claims[name].for_users()
        for arm in claim.arms:
            found = claim.function(trial(name, arm, 700, claim.candidates(arm)[0]), tables.wine())
            assert claim.metrics(arm) <= set(found)


def test_a_number_for_a_target_is_refused():
    with pytest.raises(ValueError, match="diabetes has a number for its target; classes are expected"):
        claims._Rows(trial("blackbox_beats_baselines", "gated", 700), tables.diabetes())
