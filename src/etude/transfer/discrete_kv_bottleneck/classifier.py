"""Encoder, bottleneck and decoder as one module, of which only the values (and at first a decoder) train."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from etude.transfer.discrete_kv_bottleneck.bottleneck import KeyValueBottleneck
from etude.transfer.discrete_kv_bottleneck.decoders import VotingDecoder
from etude.transfer.discrete_kv_bottleneck.encoders import FrozenEncoder

__all__ = ["BottleneckClassifier"]


class BottleneckClassifier(nn.Module):
    """Frozen encoder, key-value bottleneck, decoder.

        model = BottleneckClassifier(encoder, bottleneck, VotingDecoder())
        model.place_keys(unlabelled)
        optimizer = torch.optim.SGD(model.trainable(), lr=10.0)

    Whatever mode the model is put in, the encoder stays in evaluation mode and without gradient.

    Args:
        encoder: any module from inputs to embeddings; None if the inputs are embeddings.
        bottleneck: its `in_dim` is the embeddings' size.
        decoder: from fetched values to logits; a `VotingDecoder` if None.
    """

    def __init__(self, encoder: nn.Module | None, bottleneck: KeyValueBottleneck, decoder: nn.Module | None = None):
        super().__init__()
        self.encoder = encoder if encoder is None or isinstance(encoder, FrozenEncoder) else FrozenEncoder(encoder)
        self.bottleneck = bottleneck
        self.decoder = VotingDecoder() if decoder is None else decoder

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings of inputs."""
        return x if self.encoder is None else self.encoder(x)

    def forward(self, x: Tensor, *, input_is_embedding: bool = False) -> Float[Tensor, "n classes"]:
        return self.decoder(self.bottleneck(x if input_is_embedding else self.embed(x)))

    def from_indices(self, indices: Int[Tensor, "n codebooks topk tokens"]) -> Float[Tensor, "n classes"]:
        """Logits from pairs that were looked up before; see `KeyValueBottleneck.indices`."""
        return self.decoder(self.bottleneck.fetch(indices))

    def place_keys(self, inputs: Any, epochs: int = 10, **options: Any) -> "BottleneckClassifier":
        """`KeyValueBottleneck.place_keys` by inputs of the encoder, which it sees once if they are one tensor."""
        if isinstance(inputs, Tensor):
            size = options.get("batch_size", 256)
            inputs = torch.cat([self.embed(part) for part in inputs.split(size)])
        elif self.encoder is not None:
            inputs = _Embedded(inputs, self)
        self.bottleneck.place_keys(inputs, epochs, **options)
        return self

    def freeze_decoder(self) -> "BottleneckClassifier":
        """A parametric decoder learns with the first classes and then stays, so that only values change."""
        self.decoder.requires_grad_(False)
        return self

    def trainable(self) -> list[nn.Parameter]:
        """Parameters that require a gradient."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


class _Embedded:
    """A loader's batches through the encoder, anew in every epoch."""

    def __init__(self, loader: Any, model: BottleneckClassifier):
        self.loader, self.model = loader, model

    def __iter__(self) -> Any:
        device = self.model.bottleneck.values.device
        for batch in self.loader:
            yield self.model.embed((batch[0] if isinstance(batch, tuple | list) else batch).to(device))
