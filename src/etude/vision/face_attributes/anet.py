"""ANet: features of a face from filters shared over the whole face, then within its parts."""

from collections.abc import Sequence
from typing import Literal

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Int
from torch import Tensor, nn

from etude.vision.face_attributes.sharing import LocallySharedConv2d, dense_positions

__all__ = ["ANet", "InterweavedExtractor", "contrastive_loss"]


class ANet(nn.Module, PyTorchModelHubMixin):
    """Four convolutions, the last two with filters of their own in each cell of a grid, and a layer of features.

    C1 (5x5) and C2 (3x3) share their filters globally; C3 (3x3) has a bank for each cell of `grid`, C4 (3x3) one for
    each cell of the twice as fine grid. Every convolution is followed by batch norm and ReLU; a maximum over 2x2
    follows C1, C2 (if `shared_pools` is 2) and C3. The features are a fully connected layer after its ReLU.

    Args:
        num_outputs: identities in pre-training, attributes in fine-tuning (`replace_head`).
        grid: cells of C3 down and across the face.
        feature_dim: of the features.
        local: False for one bank in C3 and C4, the network that ANet is compared with.
        in_channels: of the crops.
        size: height and width of the crops.
        widths: channels of C1 to C4, or to C3, without C4.
        stem_stride: of C1.
        shared_pools: 1 or 2.

    Raises:
        ValueError: if a number is not positive, or the map of C3 or C4 has fewer places than its grid has cells.
    """

    def __init__(
        self,
        num_outputs: int,
        grid: Sequence[int] = (3, 3),
        feature_dim: int = 160,
        local: bool = True,
        *,
        in_channels: int = 3,
        size: int = 48,
        widths: Sequence[int] = (20, 40, 60, 80),
        stem_stride: int = 1,
        shared_pools: Literal[1, 2] = 2,
    ):
        super().__init__()
        grid, widths = (grid[0], grid[1]), tuple(widths)
        if min(num_outputs, feature_dim, in_channels, size, stem_stride, *grid, *widths) < 1:
            raise ValueError(
                "num_outputs, feature_dim, in_channels, size, stem_stride, grid and widths must be positive, got "
                f"{num_outputs}, {feature_dim}, {in_channels}, {size}, {stem_stride}, {grid}, {widths}"
            )
        if len(widths) not in (3, 4):
            raise ValueError(f"widths are those of C1 to C3 or to C4, got {widths}")
        if shared_pools not in (1, 2):
            raise ValueError(f"shared_pools must be 1 or 2, got {shared_pools}")
        self.grid, self.in_channels, self.size, self.feature_dim = grid, in_channels, size, feature_dim
        self.shared = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 5, stem_stride, padding=2), nn.BatchNorm2d(widths[0]), nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(widths[0], widths[1], 3, padding=1), nn.BatchNorm2d(widths[1]), nn.ReLU(),
        )  # fmt: skip
        if shared_pools == 2:
            self.shared.append(nn.MaxPool2d(2))
        self.stem_stride, self.shared_stride = stem_stride, stem_stride * 2 ** int(shared_pools)
        self.map_size = -(-size // stem_stride) // 2 ** int(shared_pools)
        if self.map_size < max(grid) or self.map_size < 2:
            raise ValueError(f"crops of {size} pixels leave a map of {self.map_size} for the grid {grid}")
        self.conv3 = _convolution(widths[1], widths[2], grid, local)
        self.after3 = nn.Sequential(nn.BatchNorm2d(widths[2]), nn.ReLU(), nn.MaxPool2d(2))
        places, last = self.map_size // 2, widths[2]
        self.conv4: nn.Module = nn.Identity()
        if len(widths) == 4:
            fine = (2 * grid[0], 2 * grid[1])
            if local and places < max(fine):
                raise ValueError(f"crops of {size} pixels leave a map of {places} for the grid {fine} of C4")
            last = widths[3]
            self.conv4 = nn.Sequential(_convolution(widths[2], last, fine, local), nn.BatchNorm2d(last), nn.ReLU())
        self.fc = nn.Sequential(nn.Flatten(), nn.Linear(last * places**2, feature_dim), nn.ReLU())
        self.head = nn.Linear(feature_dim, num_outputs)

    def forward(self, x: Float[Tensor, "batch channels size size"]) -> Float[Tensor, "batch outputs"]:
        """Logits.

        Raises:
            ValueError: if the crops have other channels or another size.
        """
        return self.head(self.features(x))

    def features(
        self, x: Float[Tensor, "batch channels size size"], *, joined: bool = False
    ) -> Float[Tensor, "batch features"]:
        """The features, and with `joined` the last convolution's map beside them."""
        if x.shape[1:] != (self.in_channels, self.size, self.size):
            raise ValueError(
                f"crops must have shape (batch, {self.in_channels}, {self.size}, {self.size}), got {tuple(x.shape)}"
            )
        return self.from_conv3(self.conv3(self.shared(x)), joined=joined)

    def from_conv3(
        self, maps: Float[Tensor, "batch maps map_size map_size"], *, joined: bool = False
    ) -> Float[Tensor, "batch features"]:
        """Features from the output of C3, before its norm."""
        last = self.conv4(self.after3(maps))
        features = self.fc(last)
        return torch.cat([features, last.flatten(1)], dim=1) if joined else features

    def replace_head(self, num_outputs: int) -> "ANet":
        """A fresh output layer, as between identities and attributes; the network itself.

        Raises:
            ValueError: if `num_outputs` is not positive.
        """
        if num_outputs < 1:
            raise ValueError(f"num_outputs must be positive, got {num_outputs}")
        old = self.head.weight
        self.head = nn.Linear(self.feature_dim, num_outputs).to(device=old.device, dtype=old.dtype)
        return self

    @torch.no_grad()
    def extract(
        self, crops: Float[Tensor, "n channels size size"], *, joined: bool = False, batch: int = 512
    ) -> Float[Tensor, "n features"]:
        """Features of many crops, in evaluation mode, on the CPU."""
        was, device = self.training, self.head.weight.device
        self.eval()
        try:
            return torch.cat([self.features(part.to(device), joined=joined).cpu() for part in crops.split(batch)])
        finally:
            self.train(was)


def _convolution(before: int, after: int, grid: tuple[int, int], local: bool) -> nn.Module:
    return LocallySharedConv2d(before, after, 3, grid) if local else nn.Conv2d(before, after, 3, padding=1)


def contrastive_loss(
    features: Float[Tensor, "batch features"], ids: Int[Tensor, " ids"], margin: float | int
) -> Float[Tensor, ""]:
    """Draws features of one person together and pushes those of two apart, over all pairs of the batch.

    The mean over pairs of one person of 1/2 d^2, plus the mean over the other pairs of 1/2 max(0, margin - d)^2, with
    d their Euclidean distance; a kind of pair that the batch has none of counts 0.

    Raises:
        ValueError: if the margin is not positive or the lengths differ.
    """
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}")
    if len(ids) != len(features):
        raise ValueError(f"ids must have one entry a row of features, {len(features)}, got {len(ids)}")
    one, other = torch.triu_indices(len(ids), len(ids), offset=1, device=features.device)
    squared = (features[one] - features[other]).square().sum(1)
    same = ids[one] == ids[other]
    # The root has no gradient at 0: coincident pairs of two persons stay where they are for this step.
    tiny = torch.finfo(features.dtype).tiny
    distance = torch.where(squared > tiny, squared, tiny).sqrt()
    pulls, pushes = 0.5 * squared[same], 0.5 * (margin - distance[~same]).clamp(min=0).square()
    return sum((part.mean() for part in (pulls, pushes) if len(part)), features.sum() * 0)


class InterweavedExtractor:
    """ANet's features of every window of an image, the windows as large as ANet's crops.

    The shared layers run once over the image. C3 is interwoven (`LocallySharedConv2d.interweave`) or, where windows
    overlap so little that this is dearer, computed window by window; both give the same numbers. What follows C3 runs
    on each window's map, since C4 sees neighbours that come from different banks.

    Windows see what surrounds them in the image, a single crop sees zeros: the two agree away from the window's rim.

    Args:
        anet: with locally shared filters, its map divided by the grid.
        stride: between windows, in pixels of the map of C2 (`anet.shared_stride` pixels of the image).
        method: "auto" picks the cheaper; "interwoven" or "one_by_one" insist.
        batch: windows that run through the later layers at a time.

    Raises:
        ValueError: if the network shares its filters globally, its grid does not divide the map, or the stride is
            not positive.
    """

    def __init__(
        self,
        anet: ANet,
        stride: int = 1,
        *,
        method: Literal["auto", "interwoven", "one_by_one"] = "auto",
        batch: int = 512,
    ):
        if not isinstance(anet.conv3, LocallySharedConv2d):
            raise ValueError("interweaving is for locally shared filters; this ANet has local=False")
        if anet.map_size % anet.grid[0] or anet.map_size % anet.grid[1]:
            raise ValueError(f"the grid {anet.grid} must divide the map of {anet.map_size} x {anet.map_size}")
        if stride < 1 or batch < 1:
            raise ValueError(f"stride and batch must be positive, got {stride} and {batch}")
        if method not in ("auto", "interwoven", "one_by_one"):
            raise ValueError(f"method must be 'auto', 'interwoven' or 'one_by_one', got {method!r}")
        self.anet, self.stride, self.method, self.batch = anet, stride, method, batch

    def positions(self, height: int, width: int) -> dict[str, int]:
        """Output positions of C3 either way for an image of this size, see `dense_positions`."""
        size = self._map_of(height, width)
        window = (self.anet.map_size, self.anet.map_size)
        return dense_positions(size, window, self.stride, self.anet.grid)

    def boxes(self, height: int, width: int) -> Float[Tensor, "down across 4"]:
        """The windows' boxes in pixels of the image."""
        step, side = self.stride * self.anet.shared_stride, self.anet.size
        down, across = ((n - self.anet.map_size) // self.stride + 1 for n in self._map_of(height, width))
        top, left = torch.meshgrid(torch.arange(down) * step, torch.arange(across) * step, indexing="ij")
        return torch.stack([left, top, left + side, top + side], dim=-1).float()

    @torch.no_grad()
    def __call__(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch down across features"]:
        """Features of every window.

        Raises:
            ValueError: if the images are smaller than a crop or have other channels.
        """
        height, width = images.shape[2:]
        counts = self.positions(height, width)
        method = min(counts, key=lambda name: counts[name]) if self.method == "auto" else self.method
        was = self.anet.training
        self.anet.eval()
        try:
            window = (self.anet.map_size, self.anet.map_size)
            conv3 = self.anet.conv3
            assert isinstance(conv3, LocallySharedConv2d)
            evaluate = conv3.interweave if method == "interwoven" else conv3.one_by_one
            maps = evaluate(self.anet.shared(images), window, self.stride)
            features = [self.anet.from_conv3(part) for part in maps.flatten(0, 2).split(self.batch)]
        finally:
            self.anet.train(was)
        return torch.cat(features).unflatten(0, maps.shape[:3])

    def _map_of(self, height: int, width: int) -> tuple[int, int]:
        if min(height, width) < self.anet.size:
            raise ValueError(f"images must have at least {self.anet.size} pixels a side, got {height} x {width}")
        stem = self.anet.stem_stride
        pools = self.anet.shared_stride // stem
        return -(-height // stem) // pools, -(-width // stem) // pools
