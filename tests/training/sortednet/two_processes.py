"""What `test_distributed` runs in two processes: `python two_processes.py RANK PORT FOLDER`."""

import os
import sys

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from etude.training.sortednet import SortedMLP, SortedSampler, sorted_step, space_of


def network() -> SortedMLP:
    torch.manual_seed(0)
    return SortedMLP(6, 3, width=[4, 8], depth=[1, 3])


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 6, generator=draw), torch.randint(3, (8,), generator=draw)) for _ in range(12)]


def trained(model: torch.nn.Module, share: slice, seed: int) -> list[int]:
    """Trains on a share of every batch; the places of the sub-models drawn in the space."""
    space = space_of(model)
    sampler = SortedSampler(space, accumulate=2, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    drawn = []
    for inputs, targets in batches():
        step = sorted_step(model, F.cross_entropy, (inputs[share], targets[share]), optimizer, sampler)
        drawn.append(space.submodels.index(step.submodel))
    return drawn


if __name__ == "__main__":
    rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    model = network()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    # Each process has a generator of its own seed: the first one's must hold for both.
    drawn = trained(wrapped, slice(4 * rank, 4 * rank + 4), seed=7 + rank)
    torch.save({"drawn": drawn, "weights": model.state_dict()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
