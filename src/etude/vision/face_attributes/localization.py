"""LNet: a convolutional network that learns image-level tags and whose responses say where the face is."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from etude.vision.face_attributes.boxes import boxes_from_responses
from etude.vision.face_attributes.pictures import crop_and_resize

__all__ = ["CascadedLocalizer", "LNet", "sobel_magnitude"]


class LNet(nn.Module, PyTorchModelHubMixin):
    """Five convolutions and tags on top; the mean response of the fifth, C5, says where the face is.

    With `backbone="alexnet"`: C1 96@11x11/4, C2 256@5x5, C3, C4 384@3x3, C5 256@3x3, pooling 3x3/2 after C1, C2, C5,
    local response normalisation after the first two pools, then fc6, fc7 (4,096 each) and the tags, written as
    convolutions: at 227 x 227 it is the network with fully connected layers, at larger sizes it slides, and `forward`
    averages the scores over the places. With `backbone="small"`: widths 16, 32, 48, 64, 64, strides 2, 1, 2, 1, 1,
    batch norm, and a linear layer on half the mean and half the maximum over the places: the mean alone gives diffuse
    maps, the maximum alone tiny ones.

    Args:
        num_attributes: tags; 1,000 classes for pre-training on ImageNet, then `replace_head`.
        width: factor of all widths.
        backbone: "alexnet" or "small".
        in_channels: of the images.

    Attributes:
        stride: pixels between neighbouring places of C5.
        offset: the pixel on which the receptive field of the first place is centred.
        least_size: the smallest height and width that the network takes.

    Raises:
        ValueError: if a number is not positive or the backbone is unknown.
    """

    def __init__(
        self, num_attributes: int, width: float | int = 1.0, backbone: str = "alexnet", *, in_channels: int = 3
    ):
        super().__init__()
        if num_attributes < 1 or width <= 0 or in_channels < 1:
            raise ValueError(
                f"num_attributes, width and in_channels must be positive, got {num_attributes}, {width}, {in_channels}"
            )
        if backbone not in ("alexnet", "small"):
            raise ValueError(f"backbone must be 'alexnet' or 'small', got {backbone!r}")
        self.in_channels, self.backbone = in_channels, backbone
        self.head: nn.Module
        self.top: nn.Linear | nn.Conv2d
        if backbone == "alexnet":
            w = [max(1, round(width * n)) for n in (96, 256, 384, 384, 256, 4096)]
            self.features = nn.Sequential(
                nn.Conv2d(in_channels, w[0], 11, 4), nn.ReLU(), nn.MaxPool2d(3, 2), nn.LocalResponseNorm(5),
                nn.Conv2d(w[0], w[1], 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.LocalResponseNorm(5),
                nn.Conv2d(w[1], w[2], 3, padding=1), nn.ReLU(),
                nn.Conv2d(w[2], w[3], 3, padding=1), nn.ReLU(),
                nn.Conv2d(w[3], w[4], 3, padding=1), nn.ReLU(),
            )  # fmt: skip
            self.head = nn.Sequential(
                nn.MaxPool2d(3, 2),
                nn.Conv2d(w[4], w[5], 6), nn.ReLU(), nn.Dropout(),
                nn.Conv2d(w[5], w[5], 1), nn.ReLU(), nn.Dropout(),
            )  # fmt: skip
            self.top = nn.Conv2d(w[5], num_attributes, 1)
            self.stride, self.offset, self.least_size = 16, 17, 227
        else:
            layers: list[nn.Module] = []
            before = in_channels
            for n, kernel, stride in zip((16, 32, 48, 64, 64), (5, 3, 3, 3, 3), (2, 1, 2, 1, 1)):
                after = max(1, round(width * n))
                layers += [
                    nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()
                ]  # fmt: skip
                before = after
            self.features = nn.Sequential(*layers)
            self.head = nn.Identity()
            self.top = nn.Linear(before, num_attributes)
            # What C5 sees is 5 + 2 (2 + 2) + 4 (2 + 2) pixels wide.
            self.stride, self.offset, self.least_size = 4, 0, 29

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch attributes"]:
        """Logits of the tags.

        Raises:
            ValueError: for another number of channels, or images smaller than `least_size`.
        """
        maps = self.maps(x)
        if self.backbone == "small":
            return self.top(0.5 * maps.mean((2, 3)) + 0.5 * maps.amax((2, 3)))
        return self.top(self.head(maps)).mean((2, 3))

    def maps(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch maps map_height map_width"]:
        """Responses of C5 after its ReLU; signed ones would cancel in the mean."""
        if x.shape[1] != self.in_channels:
            raise ValueError(f"images must have {self.in_channels} channels, got shape {tuple(x.shape)}")
        if min(x.shape[2:]) < self.least_size:
            raise ValueError(
                f"images must have at least {self.least_size} x {self.least_size} pixels, got {tuple(x.shape[2:])}"
            )
        return self.features(x)

    def response_map(
        self, x: Float[Tensor, "batch channels height width"], scales: Sequence[float | int] = (1.0,)
    ) -> Float[Tensor, "batch height width"]:
        """Mean response of C5 at every pixel, averaged over a pyramid of scales of the image.

        Each place of C5 stands on the pixel on which its receptive field is centred; between places the response is
        interpolated bilinearly, and beyond the outermost it is theirs.

        Raises:
            ValueError: as `forward`, or if a scale is not positive.
        """
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales must be positive, at least one, got {tuple(scales)}")
        found = []
        for scale in scales:
            scaled = x
            if scale != 1:
                shape = [max(1, round(side * scale)) for side in x.shape[2:]]
                scaled = F.interpolate(x, size=shape, mode="bilinear", antialias=True)
            found.append(self._at_pixels(self.maps(scaled).mean(1), x.shape[2:], scaled.shape[2:]))
        return torch.stack(found).mean(0)

    def _at_pixels(self, maps: Tensor, size: Sequence[int], scaled: Sequence[int]) -> Tensor:
        grids = []
        for pixels, scaled_pixels, places in zip(size, scaled, maps.shape[1:]):
            position = (torch.arange(pixels).to(maps) + 0.5) * scaled_pixels / pixels - 0.5
            place = (position - self.offset) / self.stride
            grids.append(2 * (place + 0.5) / places - 1)
        grid = torch.stack(torch.meshgrid(grids[1], grids[0], indexing="xy"), dim=-1)
        grid = grid[None].expand(len(maps), -1, -1, -1)
        return F.grid_sample(maps[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]

    @torch.no_grad()
    def responses(
        self, images: Float[Tensor, "n channels height width"], scales: Sequence[float | int] = (1.0,), batch: int = 256
    ) -> Float[Tensor, "n height width"]:
        """`response_map` of many images, in evaluation mode, batch by batch, on the CPU."""
        was, device = self.training, next(self.parameters()).device
        self.eval()
        try:
            return torch.cat([self.response_map(part.to(device), scales).cpu() for part in images.split(batch)])
        finally:
            self.train(was)

    def replace_head(self, num_attributes: int) -> "LNet":
        """Exchanges the uppermost layer for fresh tags, as between pre-training and fine-tuning; the network itself.

        Raises:
            ValueError: if `num_attributes` is not positive.
        """
        if num_attributes < 1:
            raise ValueError(f"num_attributes must be positive, got {num_attributes}")
        old = self.top.weight
        if isinstance(self.top, nn.Conv2d):
            self.top = nn.Conv2d(self.top.in_channels, num_attributes, 1)
        else:
            self.top = nn.Linear(self.top.in_features, num_attributes)
        self.top.to(device=old.device, dtype=old.dtype)
        return self


def sobel_magnitude(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch height width"]:
    """Strength of the edges: the saliency that a localiser has to beat, through the same box rule."""
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = grey.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    edges = F.conv2d(grey, torch.stack([across, across.T])[:, None])
    return edges.square().sum(1).sqrt()


class CascadedLocalizer:
    """Two localisers in a row: LNet_o finds head and shoulders, LNet_s the face in the crop.

        localize = CascadedLocalizer(lnet_o, lnet_s)
        boxes, scores = localize(images)

    Args:
        lnet_o: on the whole image. lnet_s: on the crop; None for the first alone.
        margin: factor of the sides of LNet_o's box, whose crop LNet_s sees.
        crop_size: height and width that the crop is resized to (227 in the paper; LNet_s's `least_size` if None).
        scales: pyramid of LNet_o.
        tau: thresholds of the first and of the second box.
        sigma, min_side, component: as for `box_from_response`; `min_side` counts in pixels of the image for the first.

    Raises:
        ValueError: if the margin is not positive or the crops are smaller than LNet_s takes.
    """

    def __init__(
        self,
        lnet_o: LNet,
        lnet_s: LNet | None = None,
        *,
        margin: float | int = 1.5,
        crop_size: int | None = None,
        scales: Sequence[float | int] = (1.0,),
        tau: tuple[float, float] = (0.35, 0.35),
        sigma: float | int = 0.05,
        min_side: float | int = 8,
        component: str = "peak",
    ):
        if margin <= 0:
            raise ValueError(f"margin must be positive, got {margin}")
        if lnet_s is not None and crop_size is not None and crop_size < lnet_s.least_size:
            raise ValueError(f"crop_size must be at least {lnet_s.least_size}, what lnet_s takes, got {crop_size}")
        self.lnet_o, self.lnet_s, self.margin, self.scales, self.tau = lnet_o, lnet_s, margin, tuple(scales), tau
        self.crop_size = crop_size or (lnet_s.least_size if lnet_s is not None else None)
        self.rule: dict[str, Any] = {"sigma": sigma, "min_side": min_side, "component": component}

    def regions(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch 4"], Float[Tensor, " batch"]]:
        """LNet_o's boxes and their scores."""
        responses = self.lnet_o.responses(images, self.scales)
        return boxes_from_responses(responses, self.tau[0], **self.rule)

    def widened(self, regions: Float[Tensor, "batch 4"], size: Sequence[int]) -> Float[Tensor, "batch 4"]:
        """Squares about the regions, their longer side times `margin`, cut to a square inside the image if need be."""
        centre, extent = (regions[:, :2] + regions[:, 2:]) / 2, regions[:, 2:] - regions[:, :2]
        half = (self.margin * extent.amax(1, keepdim=True) / 2).clamp(max=min(size) / 2)
        limit = centre.new_tensor([size[1], size[0]])
        centre = torch.minimum(torch.maximum(centre, half.expand(-1, 2)), limit - half)
        return torch.cat([centre - half, centre + half], dim=1)

    def crops(self, images: Float[Tensor, "batch channels height width"]) -> tuple[Tensor, Tensor]:
        """What LNet_s sees, and learns from: the widened regions, resized; and the squares they were cut from."""
        if self.crop_size is None:
            raise ValueError("a cascade without lnet_s needs crop_size to cut crops")
        squares = self.widened(self.regions(images)[0], images.shape[2:])
        return crop_and_resize(images, squares, self.crop_size), squares

    def __call__(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch 4"], Float[Tensor, " batch"]]:
        """Face boxes in pixels of the images, and scores in [0, 1]: the share of the response inside, 0 where a map is
        constant."""
        if self.lnet_s is None:
            return self.regions(images)
        crops, squares = self.crops(images)
        inner, scores = boxes_from_responses(self.lnet_s.responses(crops), self.tau[1], **self.rule)
        scale = (squares[:, 2:] - squares[:, :2]) / crops.shape[-1]
        corner = squares[:, :2]
        return torch.cat([corner + scale * inner[:, :2], corner + scale * inner[:, 2:]], dim=1), scores
