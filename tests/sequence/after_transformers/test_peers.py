import pytest


def test_layers_equal_those_of_transformers_and_of_loops_with_the_same_weights():
    pytest.importorskip("transformers")
    after_transformers = pytest.importorskip("benchmarks.after_transformers")
    assert {"Mamba, 4 x 256", "RWKV, 4 x 256", "FNet, 4 x 256"} <= {
        one.name for one in after_transformers.comparisons() if "transformers" in one.peer_name
    }  # `comparisons` checks that both sides agree
