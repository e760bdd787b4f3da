"""What never changes is computed once: embeddings of a frozen encoder, and the pairs that frozen keys give them.

Files are safetensors named by the SHA-256 of everything they depend on, so that none is ever out of date.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from etude.transfer.discrete_kv_bottleneck.bottleneck import KeyValueBottleneck

__all__ = ["cached_embeddings", "cached_indices"]

_log = logging.getLogger(__name__)


def cached_embeddings(
    encoder: nn.Module, inputs: Tensor, folder: str | os.PathLike, *, batch_size: int = 512
) -> Tensor:
    """Embeddings by a frozen encoder, from `folder` if they are there.

    Args:
        encoder: its weights and its structure as printed belong to the key. Put into evaluation mode for the while.
        inputs: (n, ...).
        folder: made if absent.
        batch_size: inputs that are encoded at a time.
    """
    state = encoder.state_dict()
    key = _digest([*(state[name] for name in sorted(state)), inputs], repr(encoder))

    @torch.no_grad()
    def compute() -> Tensor:
        mode = [(module, module.training) for module in encoder.modules()]
        encoder.eval()
        try:
            return torch.cat([encoder(part) for part in inputs.split(batch_size)])
        finally:
            for module, was in mode:
                module.training = was

    return _kept(Path(folder) / f"embeddings-{key}.safetensors", compute)


def cached_indices(
    bottleneck: KeyValueBottleneck, z: Tensor, folder: str | os.PathLike
) -> Int[Tensor, "n codebooks topk tokens"]:
    """`bottleneck.indices(z)` from `folder` if they are there: keyed by embeddings, projections and keys.

    In evaluation mode the pairs that training used belong to the key too.

    Raises:
        ValueError: if the choice of keys is random.
    """
    if bottleneck.temperature:
        raise ValueError(f"random choices of keys are not kept, temperature is {bottleneck.temperature}")
    tensors = [z, bottleneck.codebook.keys, *bottleneck.splitter.state_dict().values()]
    if not bottleneck.training and bottleneck.mask_unused:
        tensors.append(bottleneck.usage > 0)
    place = Path(folder) / f"indices-{_digest(tensors, f'topk {bottleneck.topk}')}.safetensors"
    return _kept(place, lambda: bottleneck.indices(z).int()).long()


def _digest(tensors: Iterable[Tensor], text: str) -> str:
    whole = hashlib.sha256(text.encode())
    for tensor in tensors:
        whole.update(f"\0{tensor.dtype}{tuple(tensor.shape)}\0".encode())
        whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:32]


def _kept(file: Path, compute: Callable[[], Tensor]) -> Tensor:
    if file.is_file():
        try:
            return load_file(str(file))["tensor"]
        except Exception as error:  # safetensors' own types; a torn file costs a computation, no more
            _log.info("%s cannot be read and is computed again: %s", file, error)
    tensor = compute()
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    save_file({"tensor": tensor.contiguous()}, str(temporary))
    os.replace(temporary, file)
    return tensor
