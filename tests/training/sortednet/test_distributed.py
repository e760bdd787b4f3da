"""Two replicas under `DistributedDataParallel` draw the same sub-models and equal one process on the whole batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import two_processes


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(Path(two_processes.__file__))]
    running = [
        subprocess.Popen([*command, str(rank), port, str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in running:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_replicas_train_the_submodels_that_the_first_one_draws(replicas):
    assert replicas[0]["drawn"] == replicas[1]["drawn"]
    alone = two_processes.trained(two_processes.network(), slice(0, 8), seed=7)
    assert replicas[0]["drawn"] == alone
    assert alone != two_processes.trained(two_processes.network(), slice(0, 8), seed=8)


def test_replicas_stay_equal_and_equal_one_process(replicas):
    model = two_processes.network()
    two_processes.trained(model, slice(0, 8), seed=7)
    for name, weight in model.state_dict().items():
        assert torch.equal(replicas[0]["weights"][name], replicas[1]["weights"][name])
        torch.testing.assert_close(replicas[0]["weights"][name], weight, rtol=1e-5, atol=1e-6)
