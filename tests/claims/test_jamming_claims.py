"""The claims of jamming run on a user's own recordings, and as at full scale on a few records."""

import pytest
import torch

from etude.claims.science.jamming import FULL, PAPER, SMOKE
from etude.data.kinds import Examples, SignalData
from etude.lab import Setup, Trial
from etude.science.jamming import SSBScenario


def own_recordings(margin: int = 300) -> SignalData:
    """Windows that hold a block somewhere, as a receiver would cut them."""
    parts = {}
    for seed, (name, n) in enumerate({"train": 80, "val": 40, "test": 40}.items()):
        batch = SSBScenario().draw(n, torch.Generator().manual_seed(seed))
        noise = 1e-3 * torch.randn(n, margin, dtype=torch.complex64, generator=torch.Generator().manual_seed(9))
        parts[name] = Examples(torch.cat([noise, batch.signals, noise], dim=1), batch.labels)
    return SignalData(**parts, sample_rate=7.68e6, name="own")


def run(claim: str, arm: str, setup: Setup, data: SignalData | None = None) -> dict[str, float]:
    trial = Trial(f"jamming/{claim}", arm, 0, "smoke", setup, {"lr": 1e-3})
    arguments = [] if data is None else [data]
    return PAPER.claims[claim].function(trial, *arguments)


def test_own_recordings_are_cut_to_blocks_and_give_each_metric():
    data = own_recordings()
    for arm in ("energy_detector", "raw_spectrum", "st_dnn"):
        metrics = run("features_beat_raw_iq", arm, SMOKE, data)
        assert {"accuracy", "detection", "val_accuracy"} <= set(metrics)
    assert run("networks_beat_energy_detector", "energy_detector", SMOKE, data)["accuracy"] > 0.7


def test_recordings_at_an_unknown_sample_rate_are_refused():
    data = own_recordings()
    odd = SignalData(data.train, data.val, data.test, sample_rate=8e6)
    with pytest.raises(ValueError, match="nfft must be"):
        run("double_threshold_beats_single", "st_dnn", SMOKE, odd)


@pytest.mark.filterwarnings("ignore:the band")
@pytest.mark.parametrize("arm", ["energy_detector", "dt_ddnn"])
def test_the_full_setup_runs_on_a_few_records(arm):
    few = FULL.replace(train=96, val=32, test=32, epochs=1, batch=32)
    metrics = run("low_sjnr_curve", arm, Setup(**few.as_dict(), lr=1e-3))
    assert 0 <= metrics["detection"] <= 1


def test_arms_of_a_seed_see_the_same_records():
    first, second = (run("second_look", arm, Setup(**SMOKE.as_dict(), lr=1e-3)) for arm in ("st_wide", "wide_unsure"))
    assert second["looks"] >= first["looks"] == 1.0


def test_the_card_shows_code_that_runs(capsys):
    exec(PAPER.usage, {})
    assert capsys.readouterr().out
