"""What `test_processes` runs in one process and in two; under `accelerate launch` it is the script."""

import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from etude.data.kinds import Examples
from etude.loop import accuracy, fit, outputs_of, seeded

NUM_EXAMPLES = 47


def train() -> Examples:
    draw = torch.Generator().manual_seed(5)
    inputs = torch.randn(NUM_EXAMPLES, 6, generator=draw)
    return Examples(inputs, inputs[:, :3].argmax(dim=1))


def model() -> nn.Module:
    with seeded(0):
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def trained(data, **options):
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9)
    order = torch.Generator().manual_seed(1)
    options = {"steps": 6, "batch_size": 8, "generator": order, **options}
    return network, fit(network, data, optimizer, **options).losses


def half(path) -> None:
    trained(train(), steps=3, checkpoint=path)


def second_half(path) -> list[float]:
    return trained(train(), checkpoint=path)[1]


def everything(folder: Path | None) -> dict:
    data, calls = train(), []
    dataset = TensorDataset(*data[:])
    network, losses = trained(data, callbacks=[lambda step, total, **metrics: calls.append(step)])
    loader = DataLoader(dataset, batch_size=8, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(2))
    results = {
        "examples": losses,
        "calls": calls,
        "weights": torch.cat([parameter.detach().flatten() for parameter in network.parameters()]).tolist(),
        "accuracy": accuracy(network, data),
        "rows": len(outputs_of(network, dataset, batch_size=10)[0]),
        "uneven": trained(data, batch_size=7)[1],
        "dataset": trained(dataset)[1],
        "loader": trained(loader, steps=8)[1],
        "accumulated": trained(data, accumulate=2)[1],
        "clipped": trained(data, clip=0.1)[1],
    }
    if folder is not None:
        results["resumed"] = second_half(folder / "from_one.pt")
        half(folder / "from_two.pt")
    return results


if __name__ == "__main__":
    from accelerate import PartialState

    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    written = everything(target)
    index = PartialState(cpu=True).process_index
    (target / f"{index}.json").write_text(json.dumps(written))
    torch.distributed.destroy_process_group()
