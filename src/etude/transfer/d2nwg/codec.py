"""Networks as vectors: one fixed order of entries, padding, chunks, and the way back.

Soro et al., "Diffusion-based Neural Network Weights Generation", arXiv:2402.18153, 2025: all parameters are flattened
in the order of the state dict, or, for large networks, cut in chunks of one length that are told apart by their number.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["WeightCodec"]


class WeightCodec:
    """Turns networks of one architecture into vectors and vectors into networks, without loss.

        codec = WeightCodec(nn.Linear(20, 2))
        vector = codec.flatten(net)                     # (42,)
        codec.load(other, vector)                       # now other(x) equals net(x), bit for bit

    Args:
        module: of the architecture; its values do not matter. Floating-point entries of its state dict are taken in
            their order there, integers (counters of batch norm) never.
        include_buffers: take floating-point buffers, such as the running statistics of batch norm, along.
        chunk_size: length of a chunk; the whole vector is one chunk if None.
        pad_to: of a single chunk, the length to which zeros fill it up; no padding if None.

    Attributes:
        num_params: entries of a network.
        num_chunks, chunk_size: `num_params` entries stand in so many chunks of this size, the last one filled up
            with zeros.
        names, shapes: of the tensors, in order.

    Raises:
        ValueError: if parameters share memory (tied weights), if there are floating-point buffers and
            `include_buffers` is off, if a dtype would not survive float32, or a number lies out of range.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        include_buffers: bool = False,
        chunk_size: int | None = None,
        pad_to: int | None = None,
    ):
        buffers = {name for name, _ in module.named_buffers()}
        _refuse_tied(module)
        tensors = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
        held = sorted(buffers & tensors.keys())
        if held and not include_buffers:
            raise ValueError(
                f"the network has buffers {held[:3]}, without which its weights do not say what it computes: pass "
                "include_buffers=True to encode them too, or use layers without running statistics"
            )
        for name, value in module.state_dict().items():
            if value.is_complex() or value.dtype == torch.float64:
                raise ValueError(f"{name} is {value.dtype}; entries must fit into float32")
        if not tensors:
            raise ValueError(f"{type(module).__name__} has no weights")
        self.include_buffers = include_buffers
        self.shapes = {name: value.shape for name, value in tensors.items()}
        self.names = tuple(tensors)
        self.num_params = sum(value.numel() for value in tensors.values())
        if chunk_size is not None and pad_to is not None:
            raise ValueError(f"give chunk_size or pad_to, not both, got {chunk_size} and {pad_to}")
        if pad_to is not None and pad_to < self.num_params:
            raise ValueError(f"pad_to must be at least the {self.num_params} weights of the network, got {pad_to}")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be positive, got {chunk_size}")
        self.chunk_size = chunk_size or pad_to or self.num_params
        self.num_chunks = -(-self.num_params // self.chunk_size)

    def flatten(self, module: nn.Module) -> Float[Tensor, "params"]:
        """The network as a new float32 vector.

        Raises:
            ValueError: if it is of another architecture, or has values that are not finite.
        """
        state = module.state_dict()
        shapes = {name: value.shape for name, value in state.items() if value.is_floating_point()}
        if shapes != self.shapes:
            differing = sorted(n for n in shapes.keys() | self.shapes if shapes.get(n) != self.shapes.get(n))
            described = ", ".join(f"{n}: {shapes.get(n)} for {self.shapes.get(n)}" for n in differing[:3])
            raise ValueError(f"the network is of another architecture than the codec's ({described})")
        vector = torch.cat([state[name].detach().flatten().float() for name in self.names])
        if not bool(torch.isfinite(vector).all()):
            raise ValueError("the network has NaN or infinite weights")
        return vector

    def unflatten(self, vectors: Float[Tensor, "*batch params"]) -> dict[str, Float[Tensor, "..."]]:
        """Views of the vectors as named tensors, each with the batch dimensions in front, for `functional_call`."""
        self._check(vectors)
        parts = vectors.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        batch = vectors.shape[:-1]
        return {name: part.reshape((*batch, *self.shapes[name])) for name, part in zip(self.names, parts)}

    def gather(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "*batch params"]:
        """The inverse of `unflatten`."""
        parts = []
        for name, shape in self.shapes.items():
            tensor = tensors[name]
            parts.append(tensor.reshape((*tensor.shape[: tensor.ndim - len(shape)], -1)))
        return torch.cat(parts, dim=-1)

    @torch.no_grad()
    def load(self, module: nn.Module, vector: Float[Tensor, "params"]) -> nn.Module:
        """Writes a vector into a network of the architecture and returns the network.

        Raises:
            ValueError: if the vector has another length or values that are not finite.
        """
        if vector.ndim != 1 or not bool(torch.isfinite(vector).all()):
            raise ValueError(f"expected one finite vector ({self.num_params},), got shape {tuple(vector.shape)}")
        state = module.state_dict()
        for name, value in self.unflatten(vector).items():
            if name not in state or state[name].shape != value.shape:
                raise ValueError(f"the network is of another architecture than the codec's: {name} does not fit")
            state[name].copy_(value)
        return module

    def to_chunks(self, vectors: Float[Tensor, "*batch params"]) -> Float[Tensor, "*batch chunks size"]:
        """Cuts vectors in chunks; zeros fill up the last."""
        self._check(vectors)
        missing = self.num_chunks * self.chunk_size - self.num_params
        padded = torch.nn.functional.pad(vectors, (0, missing))
        return padded.unflatten(-1, (self.num_chunks, self.chunk_size))

    def from_chunks(self, chunks: Float[Tensor, "*batch chunks size"]) -> Float[Tensor, "*batch params"]:
        """Puts chunks together again and cuts the padding off."""
        if chunks.shape[-2:] != (self.num_chunks, self.chunk_size):
            raise ValueError(f"expected {self.num_chunks} chunks of {self.chunk_size}, got shape {tuple(chunks.shape)}")
        return chunks.flatten(-2)[..., : self.num_params]

    def _check(self, vectors: Tensor) -> None:
        if vectors.shape[-1] != self.num_params:
            raise ValueError(
                f"the architecture has {self.num_params} weights, got vectors of shape {tuple(vectors.shape)}"
            )


def _refuse_tied(module: nn.Module) -> None:
    """Tied weights are one tensor under two names, or two views of one memory."""
    seen: dict[tuple[torch.device, int], str] = {}
    for name, value in module.named_parameters(remove_duplicate=False):
        if value.numel() == 0:
            continue
        place = (value.device, value.untyped_storage().data_ptr())
        if place in seen:
            raise ValueError(
                f"{seen[place]} and {name} are tied (they share memory): generated vectors would hold two values for "
                "one weight; untie them first"
            )
        seen[place] = name
