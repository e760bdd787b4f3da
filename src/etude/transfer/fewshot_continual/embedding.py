"""The convolutional embedding of few-shot learning: blocks of convolution, pooling and ReLU, and a linear layer.

With four blocks of 64 channels and no linear layer it is the "Conv-4" of Snell et al., arXiv:1703.05175, less the batch
normalisation, whose statistics a handful of examples cannot give; group normalisation stands in for it if wanted.
"""

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from etude.loop.evaluation import device_of, mode

__all__ = ["ConvEmbedding", "embedded"]

_GROUPS = 8


class ConvEmbedding(
    nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/2104.09034"
):
    """Images to vectors.

    Args:
        in_channels: of the images.
        size: their height and width.
        depth: blocks; each halves the image.
        width: channels of the blocks.
        dim: of the embedding; None leaves out the linear layer.
        norm: "none" or "group", of eight groups.

    Attributes:
        dim: of the embedding.

    Raises:
        ValueError: if a number is not positive, `norm` is unknown or the image is too small for the blocks.
    """

    def __init__(
        self,
        in_channels: int = 1,
        size: int | tuple[int, int] = 28,
        *,
        depth: int = 2,
        width: int = 16,
        dim: int | None = 64,
        norm: str = "none",
    ):
        super().__init__()
        height, width_in = (size, size) if isinstance(size, int) else size
        if min(in_channels, depth, width, 1 if dim is None else dim) < 1:
            raise ValueError(
                f"in_channels, depth, width and dim must be positive, got {(in_channels, depth, width, dim)}"
            )
        if norm not in ("none", "group"):
            raise ValueError(f"norm must be 'none' or 'group', got {norm!r}")
        if min(height, width_in) < 2**depth:
            raise ValueError(
                f"{depth} blocks need images of at least {2**depth} pixels a side, got {height} x {width_in}"
            )
        layers: list[nn.Module] = []
        for index in range(depth):
            layers.append(nn.Conv2d(in_channels if index == 0 else width, width, 3, padding=1))
            if norm == "group":
                layers.append(nn.GroupNorm(min(_GROUPS, width), width))
            # In this order ReLU has a quarter of the work, and the result is the same.
            layers += [nn.MaxPool2d(2), nn.ReLU()]
        flat = width * (height // 2**depth) * (width_in // 2**depth)
        self.blocks = nn.Sequential(*layers, nn.Flatten())
        self.out = nn.Identity() if dim is None else nn.Linear(flat, dim)
        self.dim = flat if dim is None else dim

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim"]:
        return self.out(self.blocks(images))


@torch.no_grad()
def embedded(encoder: nn.Module, inputs: Tensor, batch_size: int = 512) -> Float[Tensor, "n dim"]:
    """Embeddings in evaluation mode, without gradient, on the encoder's device.

    Raises:
        ValueError: if the encoder does not give one vector for each input.
    """
    with mode(encoder, training=False):
        z = torch.cat([encoder(part.to(device_of(encoder))) for part in inputs.split(batch_size)])
    if z.ndim != 2:
        raise ValueError(f"the encoder must give one vector for each input, shape (n, dim), got {tuple(z.shape)}")
    return z
