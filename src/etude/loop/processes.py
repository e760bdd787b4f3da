"""Where a loop runs: alone, or as one of several processes that accelerate has launched.

Alone, nothing of accelerate is imported. Launched by `accelerate launch` (or `torchrun`, or MPI), the process group,
the backend and the device of each process are accelerate's `PartialState`. The heavier `Accelerator` object is not
used: it fixes one mixed precision for the life of a process, and two calls of `fit` may want two.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

__all__ = ["Processes", "processes"]

# The variables from which accelerate itself reads the number of processes.
_WORLD = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Processes:
    """This process among its peers.

    Args:
        index: of this process, 0 .. count - 1.
        count: of all processes.
        device: given to this process by accelerate; None if nobody launched it.
    """

    index: int = 0
    count: int = 1
    device: torch.device | None = None

    @property
    def main(self) -> bool:
        return self.index == 0

    def share(self, total: int) -> slice:
        """The stretch of `total` rows that belongs to this process; stretches differ by at most one row."""
        return slice(self.index * total // self.count, (self.index + 1) * total // self.count)

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def broadcast(self, value: Any) -> Any:
        """The main process's `value`, in every process."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every process, in order."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def total(self, values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Sum over the processes."""
        if self.count == 1:
            return values
        from accelerate.utils import reduce

        return reduce(values, reduction="sum")

    def rows(self, values: Shaped[Tensor, "mine *shape"], total: int) -> Shaped[Tensor, "total *shape"]:
        """All `total` rows, of which each process holds its `share`."""
        if self.count == 1:
            return values
        from accelerate.utils import gather

        longest = -(-total // self.count)
        padded = torch.cat([values, values.new_zeros(longest - len(values), *values.shape[1:])])
        sizes = [len(range(total)[Processes(index, self.count).share(total)]) for index in range(self.count)]
        return torch.cat([part[:size] for part, size in zip(gather(padded).split(longest), sizes)])


def processes() -> Processes:
    """This process among its peers, as the environment and accelerate say.

    Raises:
        ImportError: if several processes were launched and accelerate is not installed.
    """
    several = any(int(os.environ.get(name) or 1) > 1 for name in _WORLD)
    if not several and "ACCELERATE_MIXED_PRECISION" not in os.environ:  # which `accelerate launch` always sets
        return Processes()
    try:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env
    except ImportError as error:
        raise ImportError("training in several processes needs accelerate: pip install 'etude[run]'") from error
    # Several processes without an accelerator are several CPU processes, said so or not.
    bare = hasattr(torch, "accelerator") and not torch.accelerator.is_available()
    state = PartialState(cpu=bare or bool(parse_flag_from_env("ACCELERATE_USE_CPU")))
    device = torch.device("cpu") if state.device.type == "cpu" else state.device
    return Processes(index=state.process_index, count=state.num_processes, device=device)
