"""Checkpoints of a training run: tensors and plain values in one file, written whole or not at all.

The file is read with `torch.load(..., weights_only=True)`, which builds tensors and plain containers and nothing
else; what cannot be read back so is refused when it is written.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from etude.loop.batches import Batches
from etude.loop.processes import Processes
from etude.loop.seeding import random_state, set_random_state

__all__ = ["RunCheckpoint", "load", "restore_model", "restore_states", "save", "states_of"]

_FORMAT = "etude checkpoint 1"
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.Size, torch.device)


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(key, where)
            _check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif type(value) not in _PLAIN and not isinstance(value, Tensor):
        raise TypeError(f"a checkpoint holds tensors and plain values only, {where} is a {type(value).__name__}")


def save(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Writes `content` to a temporary file beside `path` and renames it: `path` never holds a torn checkpoint."""
    _check_plain(content, "checkpoint")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save({"format": _FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU.

    Raises:
        ValueError: if the file is torn, holds anything but tensors and plain values, or is no checkpoint of `fit`.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises half a dozen types for a bad file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path} is not a checkpoint of etude.loop.fit")
    return content


def restore_model(model: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Loads the weights, or says in one line how the checkpoint's model differs."""
    own = model.state_dict()
    differences = [f"lacks {name}" for name in own if name not in state]
    differences += [f"has {name}, unknown here" for name in state if name not in own]
    differences += [
        f"has {name} of shape {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in own.items()
        if isinstance(value, Tensor) and name in state and state[name].shape != value.shape
    ]
    if differences:
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise ValueError(f"{path} is a checkpoint of another model: it {'; it '.join(differences[:3])}{more}")
    model.load_state_dict(state)


def states_of(objects: Iterable[Any]) -> list[Any]:
    """The states of objects with a `state_dict`, and of torch and NumPy generators."""
    return [_state_of(item) for item in objects]


def _state_of(item: Any) -> Any:
    if isinstance(item, torch.Generator):
        return item.get_state()
    if isinstance(item, np.random.Generator):
        return _tensors(item.bit_generator.state)
    if hasattr(item, "state_dict") and hasattr(item, "load_state_dict"):
        return item.state_dict()
    raise TypeError(
        f"stateful objects are generators or have state_dict and load_state_dict, got {type(item).__name__}"
    )


def _tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(np.int64))
    return int(value) if isinstance(value, np.integer) else value


def _arrays(value: Any, like: Any) -> Any:
    if isinstance(value, dict):
        return {key: _arrays(item, like[key]) for key, item in value.items()}
    return value.numpy().astype(like.dtype) if isinstance(value, Tensor) else value


def restore_states(objects: Iterable[Any], states: list[Any], path: str | os.PathLike) -> None:
    """Puts the states back, in the order in which `states_of` took them."""
    items = list(objects)
    if len(items) != len(states):
        raise ValueError(f"{path} holds the states of {len(states)} stateful objects, this run has {len(items)}")
    for item, state in zip(items, states):
        if isinstance(item, torch.Generator):
            item.set_state(state)
        elif isinstance(item, np.random.Generator):
            item.bit_generator.state = _arrays(state, item.bit_generator.state)
        else:
            item.load_state_dict(state)


class RunCheckpoint:
    """The checkpoint of one run of `fit`: what it consists of, how it is written and taken up again.

    The random state of every process is kept. On another number of processes, those beyond the old number keep
    their own.

    Args:
        path: of the file; None for a run without checkpoints.
        model: the model itself, not its distributed wrapper, so that the number of processes does not matter.
        parts: name -> optimizer, schedule and the like; None where the run has none.
        stateful: further objects, as for `states_of`.
        batches: the stream of batches.
        peers: the processes; the main one writes, all read.
    """

    def __init__(
        self,
        path: str | os.PathLike | None,
        model: nn.Module,
        parts: Mapping[str, Any],
        stateful: Iterable[Any],
        batches: Batches,
        peers: Processes,
    ):
        self.path = None if path is None else Path(path)
        self.model, self.batches, self.peers = model, batches, peers
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.stateful = list(stateful)
        self._random: dict[str, Any] | None = None

    def write(self, step: int, losses: list[float]) -> None:
        """Writes the state after update `step`; returns in every process when the file is there."""
        own = self.peers.gather({"random": random_state(), "batches": self.batches.state_dict()})
        if self.peers.main and self.path is not None:
            content = {
                "step": step,
                "losses": torch.tensor(losses, dtype=torch.float64),
                "model": self.model.state_dict(),
                "types": {name: type(part).__name__ for name, part in self.parts.items()},
                "parts": {name: part.state_dict() for name, part in self.parts.items()},
                "stateful": states_of(self.stateful),
                "processes": own,
            }
            save(self.path, content)
        self.peers.wait()

    def resume(self) -> tuple[int, list[float]]:
        """Puts everything back but the random state; the number of updates done and their losses."""
        if self.path is None or not self.peers.broadcast(self.path.exists()):
            return 0, []
        content = load(self.path)
        here = {name: type(part).__name__ for name, part in self.parts.items()}
        if content["types"] != here:
            raise ValueError(f"{self.path} was written by a run with {content['types']}, this run has {here}")
        restore_model(self.model, content["model"], self.path)
        for name, part in self.parts.items():
            try:
                part.load_state_dict(content["parts"][name])
            except (ValueError, KeyError) as error:
                raise ValueError(f"{self.path} does not fit this run's {name}: {error}") from error
        restore_states(self.stateful, content["stateful"], self.path)
        own = content["processes"]
        mine = own[self.peers.index] if self.peers.index < len(own) else own[0]
        try:
            self.batches.load_state_dict(mine["batches"])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{self.path} was written by a run over another kind of data: {error}") from error
        self._random = mine["random"] if self.peers.index < len(own) else None
        return content["step"], content["losses"].tolist()

    def resume_random_state(self) -> None:
        """Puts back the global random state of the moment of writing."""
        if self._random is not None:
            set_random_state(self._random)
