"""What the claims of DIN do to a log before and after they train."""

import numpy as np
import pytest
import torch

pytest.importorskip("pandas")

from etude.claims.ranking import din as claims
from etude.lab import Trial


def trial(arm="sum", claim="attention", seed=0, **tuned):
    return Trial(f"din/{claim}", arm, seed, "smoke", claims.PAPER.claims[claim].setups["smoke"], tuned)


def test_arms_of_a_seed_see_the_same_log_and_seeds_see_others():
    one, same, other = (claims.Log(trial(arm, seed=seed)) for arm, seed in (("sum", 0), ("din", 0), ("sum", 1)))
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(one, part).clicks.behaviours, getattr(same, part).clicks.behaviours)
        assert not torch.equal(getattr(one, part).clicks.behaviours, getattr(other, part).clicks.behaviours)
    assert not torch.equal(one.val.clicks.labels, one.test.clicks.labels)


def test_the_filter_removes_rare_items_from_all_parts_by_training_counts():
    log, whole = claims.Log(trial(claim="mba")), claims.Log(trial(claim="mba"))
    claims.filter_items(log, 40, 10)
    ids, _ = whole.train.clicks.history(torch.arange(512), 10)
    every = torch.cat([ids[..., 0], whole.train.clicks.candidates[:, :1]], dim=1)
    for part in ("train", "val", "test"):
        before, after = getattr(whole, part).clicks.candidates, getattr(log, part).clicks.candidates
        assert torch.equal(before[:, 1], after[:, 1])
        for old, new in zip(before[:60, 0].tolist(), after[:60, 0].tolist()):
            assert new == (old if (every == old).any(1).sum() >= 40 else 1)
    assert bool((log.train.clicks.candidates[:, 0] == 1).any())
    assert bool((log.train.clicks.candidates[:, 0] != 1).any())


def test_popularity_scores_by_the_clicks_of_training():
    data = claims.generated()
    setup = claims.PAPER.claims["real_logs"].setups["smoke"].replace(train=0, val=0)
    got = claims.real_logs(Trial("din/real_logs", "popularity", 0, "smoke", setup), data)
    items = data.train.candidates[data.train.labels == 1, 0]
    score = np.array([int((items == item).sum()) for item in data.test.candidates[:, 0]])
    assert got["auc"] == pytest.approx(claims.auc(data.test.labels, score), abs=1e-12)


def test_penalised_rows_are_those_of_the_batch():
    values = {arm: claims.mba(trial(arm, "mba"))["penalised_rows"] for arm in ("none", "l2", "mba")}
    assert values["none"] == 0
    assert values["l2"] == 10 * 20 + 2
    assert 0 < values["mba"] < values["l2"]
