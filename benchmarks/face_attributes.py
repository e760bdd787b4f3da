"""Cropping against kornia's; locally shared filters and windows of an image against plain PyTorch, cell by cell."""

import torch
import torch.nn.functional as F

from benchmarks.compare import Comparison
from etude.vision.face_attributes import ANet, InterweavedExtractor, LocallySharedConv2d, crop_and_resize


def _crops(batch: int, size: int, crop: int) -> Comparison:
    from kornia.geometry.transform import crop_and_resize as peer

    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 1, size, size, generator=generator)
    corner = torch.rand(batch, 2, generator=generator) * (size - 2 * crop)
    boxes = torch.cat([corner, corner + 1.5 * crop], dim=1)
    # kornia's corners are centres of the outermost pixels
    left, top, right, bottom = (boxes + torch.tensor([0.0, 0.0, -1.0, -1.0])).T
    quads = torch.stack([left, top, right, top, right, bottom, left, bottom], dim=1).view(-1, 4, 2)
    return Comparison(
        name=f"crops of {crop} x {crop} out of {batch} images of {size} x {size}",
        ours=lambda: crop_and_resize(images, boxes, crop),
        peer=lambda: peer(images, quads, (crop, crop)),
        peer_name="kornia",
        note="kornia's corners are pixels' centres: the same regions up to half a pixel",
    )


def _cells(batch: int, channels: int, size: int) -> Comparison:
    torch.manual_seed(0)
    layer = LocallySharedConv2d(channels, channels, 3, (3, 3))
    x, cell = torch.rand(batch, channels, size, size), size // 3

    def peer() -> torch.Tensor:
        padded = F.pad(x, (1, 1, 1, 1))
        rows = []
        for i in range(3):
            parts = []
            for j in range(3):
                window = padded[..., i * cell : (i + 1) * cell + 2, j * cell : (j + 1) * cell + 2]
                parts.append(F.conv2d(window, layer.weight[i, j], layer.bias[i, j]))
            rows.append(torch.cat(parts, dim=3))
        return torch.cat(rows, dim=2)

    with torch.no_grad():
        torch.testing.assert_close(layer(x), peer())
    return Comparison(
        name=f"locally shared 3x3 filters, 3 x 3 cells, {batch} x {channels} x {size} x {size}, forward and backward",
        ours=lambda: layer(x).sum().backward(),
        peer=lambda: peer().sum().backward(),
        peer_name="plain PyTorch, nine convolutions",
        note="the same numbers from both",
    )


def _windows(size: int, stride: int) -> Comparison:
    torch.manual_seed(0)
    anet = ANet(10, in_channels=1, size=24, widths=(20, 32, 40), shared_pools=1).eval()
    image = torch.rand(1, 1, size, size)
    interwoven, alone = (InterweavedExtractor(anet, stride, method=method) for method in ("interwoven", "one_by_one"))
    torch.testing.assert_close(interwoven(image), alone(image), rtol=1e-4, atol=1e-5)
    return Comparison(
        name=f"features of all windows of {size} x {size}, stride {stride}",
        ours=lambda: interwoven(image),
        peer=lambda: alone(image),
        peer_name="the same layers, window by window",
        note="shared layers once in both; the same numbers from both",
    )


def comparisons() -> list[Comparison]:
    import kornia  # noqa: F401  asked for first, so that its absence is what is reported

    return [_crops(256, 64, 24), _cells(64, 32, 12), _windows(64, 1), _windows(64, 4)]
