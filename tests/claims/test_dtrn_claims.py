"""What the claims of DTRN build before they train."""

import pytest
import torch

pytest.importorskip("pandas")

from etude.claims.ranking import dtrn as claims
from etude.lab import Trial


def trial(arm="sb", claim="bottom", seed=0, **tuned):
    return Trial(f"dtrn/{claim}", arm, seed, "smoke", claims.PAPER.claims[claim].setups["smoke"], tuned)


def facets(options, interest, refinement, head="mmoe"):
    return claims.DTRN(
        [("a", 14, 8), ("b", 14, 8)], 2, 2, head, interest, refinement, event_fields=[("liked", 4)], dim=16, max_len=10,
        head_options=options, interest_options={"context_dim": 8, "hidden_dim": 16},
    )  # fmt: skip


def test_arms_of_a_seed_see_the_same_log_and_seeds_see_others():
    one, same, other = (
        claims.generated(trial(arm, seed=seed), 1.0) for arm, seed in (("sb", 0), ("ple", 0), ("sb", 1))
    )
    for part in ("train", "val", "test"):
        assert torch.equal(one[part].rows.events, same[part].rows.events)
        assert not torch.equal(one[part].rows.events, other[part].rows.events)
    assert not torch.equal(one["val"].rows.labels, one["test"].rows.labels)


@pytest.mark.parametrize("head", claims.HEADS)
def test_the_wide_arm_is_the_narrowest_with_the_parameters_of_dtrn(head):
    def make(options, interest, refinement):
        return facets(options, interest, refinement, head)

    options = claims.matched(head, make)
    (width,) = {dims[0] for name, dims in options.items() if name in ("hidden_dims", "expert_dims")}
    wanted = claims.parameters(make(claims.HEADS[head], True, True))
    assert claims.parameters(make(options, False, False)) >= wanted
    assert claims.parameters(make(claims.widened(head, width - 1), False, False)) < wanted
    assert options["tower_dims"] == claims.HEADS[head]["tower_dims"]


def test_arms_start_from_the_same_weights():
    models = {
        flags: claims.paired(trial(), facets, claims.HEADS["mmoe"], *flags)
        for flags in ((False, False), (True, False), (False, True), (True, True))
    }
    plain = models[False, False].state_dict()
    for flags, model in models.items():
        state = model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in plain.items() if name in state)
        assert ("interest.affine" in state) == (not flags[0])


def test_some_rows_are_drawn_without_repeating_and_all_if_there_are_too_few():
    rows = claims.small_log().train
    drawn = claims.some(rows, 100, torch.Generator().manual_seed(0))
    assert len(drawn) == 100
    assert len(drawn.starts[:, 0].unique()) == 100
    assert claims.some(rows, 0, torch.Generator()) is rows
    assert claims.some(rows, 10**6, torch.Generator()) is rows


def test_the_curves_hold_the_cosine_of_the_tasks_gradients():
    run = trial("sb_dtrn")
    claims.bottom(run)
    assert set(run.series) == {"train_loss", "val_auc", "gradient_cosine"}
    assert all(-1 <= value <= 1 for _, value in run.series["gradient_cosine"])
