"""Two processes on one CPU (gloo) under `accelerate launch`, against a single process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from etude.loop import fit
from etude.loop.checkpoint import load
from etude.loop.processes import Processes

from . import launched

SCRIPT = Path(launched.__file__)


def launch(folder, count):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # `--multi_gpu` is accelerate's name for its launcher of several processes; where there is no GPU they are on the
    # CPU, and ACCELERATE_USE_CPU says so where there is one.
    options = ["--multi_gpu", "--num_processes", str(count), "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--main_process_port", str(port), "--num_cpu_threads_per_process", "1"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, str(SCRIPT), str(folder)]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{index}.json").read_text()) for index in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launched")
    launched.half(folder / "from_one.pt")
    return folder


@pytest.fixture(scope="module")
def both(folder):
    return launch(folder, 2)


@pytest.fixture(scope="module")
def alone():
    return launched.everything(None)


CASES = ("examples", "uneven", "dataset", "loader", "accumulated", "clipped")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_losses_of_one(both, alone, case):
    assert both[0][case] == pytest.approx(alone[case], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("case", [*CASES, "weights", "accuracy", "resumed"])
def test_the_processes_agree(both, case):
    assert both[0][case] == both[1][case]


def test_two_processes_end_with_the_weights_of_one(both, alone):
    assert both[0]["weights"] == pytest.approx(alone["weights"], rel=1e-4, abs=1e-5)


def test_evaluation_gathers_all_examples(both, alone):
    assert both[0]["accuracy"] == alone["accuracy"]
    assert both[0]["rows"] == launched.NUM_EXAMPLES


def test_callbacks_run_in_every_process(both):
    assert both[0]["calls"] == both[1]["calls"] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_of_one_process_resumes_in_two(both, alone):
    assert both[0]["resumed"] == pytest.approx(alone["examples"], rel=1e-4, abs=1e-6)


def test_a_checkpoint_of_two_processes_resumes_in_one(both, folder, alone):
    assert load(folder / "from_two.pt")["step"] == 3
    losses = launched.second_half(folder / "from_two.pt")
    assert losses == pytest.approx(alone["examples"], rel=1e-4, abs=1e-6)


def test_shares_cover_all_rows_once():
    for total in range(8):
        shares = [Processes(index, 3).share(total) for index in range(3)]
        assert [row for share in shares for row in range(total)[share]] == list(range(total))


def test_a_batch_smaller_than_the_number_of_processes_is_refused():
    from etude.loop.batches import IndexedBatches

    with pytest.raises(ValueError, match="batch of 2 examples cannot be shared by 3 processes"):
        IndexedBatches(launched.train(), 2, torch.Generator(), peers=Processes(0, 3))


def test_without_accelerate_several_processes_name_the_extra(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    model = launched.model()
    with pytest.raises(ImportError, match=r"pip install 'etude\[run\]'"):
        fit(model, launched.train(), torch.optim.SGD(model.parameters()), steps=1)


def test_a_single_process_does_not_import_accelerate():
    program = (
        "import sys, torch; from etude.loop import fit; from etude.data.kinds import Examples; "
        "m = torch.nn.Linear(2, 2); d = Examples(torch.zeros(4, 2), torch.zeros(4).long()); "
        "fit(m, d, torch.optim.SGD(m.parameters()), steps=1); assert 'accelerate' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
