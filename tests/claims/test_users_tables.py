"""Claims that take images take a user's table too, a row being an image of one line."""

import pytest

from etude.data import tables
from etude.lab import Trial
from etude.lab.worker import load_paper

SHORT = {
    "sortednet/many_in_one": {"updates": 2, "individual_every": 20},
    "guidance/shifted_digits": {"epochs": 1, "guide_epochs": 1, "limit": 100, "batch_size": 25},
    "opposing_signals/planted_groups_are_found": {"n": 140, "k": 4, "steps": 2, "fraction": 0.05},
    "gradient_noise/poor_initialisation": {"steps": 3},
}
ARMS = {
    "sortednet/many_in_one": "sorted",
    "guidance/shifted_digits": "guided_trained",
    "opposing_signals/planted_groups_are_found": "patched",
    "gradient_noise/poor_initialisation": "he_plain",
}
TUNED = {"lr": 0.01, "lr_scale": 1.0}


@pytest.mark.parametrize("claim_id", SHORT)
def test_a_claim_runs_on_the_rows_of_a_table(claim_id):
    slug, name = claim_id.split("/")
    claim = load_paper(f"etude.claims.training.{slug}").claims[name]
    setup = claim.setups["small"].replace(**SHORT[claim_id])
    trial = Trial(claim_id, ARMS[claim_id], 500, "small", setup, TUNED)
    metrics = claim.function(trial, tables.wine().standardized().as_images())
    assert set(claim.metrics(trial.arm)) <= set(metrics)
