"""RoIAlign and non-maximum suppression against naive versions of equal results, forward and training step.

The first peer gathers the four corners of every sample of every bin, the textbook form, vectorised as ours is; the
naive suppression sweeps over the matrix of all overlaps. The second is torchvision's compiled operator where it loads.
Maps are those of a 512-pixel picture with 256 channels, and small ones of 32 channels as the claims use. Peak memory of
both stands in the note: what the tensors of one call take at most, by torch's own profiler of allocations.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.compare import Comparison
from etude.vision.cascade_rcnn import box_iou, nms, roi_align
from etude.vision.cascade_rcnn.operators import torchvision_operators


def naive_roi_align(feats: Tensor, boxes: list[Tensor], bins: int, scale: float, samples: int = 2) -> Tensor:
    """Aligned RoIAlign by four gathers of all samples."""
    batch, channels, height, width = feats.shape
    flat = torch.cat(boxes) * scale - 0.5
    image = torch.repeat_interleave(torch.arange(batch), torch.tensor([len(b) for b in boxes]))
    steps = (torch.arange(bins * samples) + 0.5) / (bins * samples)
    x = flat[:, :1] + steps * (flat[:, 2:3] - flat[:, :1])
    y = flat[:, 1:2] + steps * (flat[:, 3:] - flat[:, 1:2])

    def corners(place: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inside = ((place >= -1) & (place <= size)).to(feats.dtype)
        at = place.clamp(0, size - 1)
        low = at.floor().long()
        return low, (low + 1).clamp(max=size - 1), at - low, inside

    top, bottom, down, row_in = corners(y, height)
    left, right, across, column_in = corners(x, width)
    total = feats.new_zeros(())
    for row, row_weight in ((top, 1 - down), (bottom, down)):
        for column, column_weight in ((left, 1 - across), (right, across)):
            weight = (row_weight * row_in)[:, :, None] * (column_weight * column_in)[:, None, :]
            total = total + feats[image[:, None, None], :, row[:, :, None], column[:, None, :]] * weight[..., None]
    pooled = total.view(len(flat), bins, samples, bins, samples, channels).mean((2, 4))
    return pooled.permute(0, 3, 1, 2)


def naive_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """The greedy sweep over the matrix of overlaps, box by box."""
    order = scores.argsort(descending=True, stable=True)
    overlap = box_iou(boxes[order], boxes[order]) > threshold
    suppressed = torch.zeros(len(order), dtype=torch.bool)
    kept = []
    for index in range(len(order)):
        if not suppressed[index]:
            kept.append(index)
            suppressed |= overlap[index]
    return order[kept]


def peak_bytes(call: Callable[[], Any]) -> int:
    """Most bytes that the tensors of one call take at a time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = most = 0
    # Allocations and frees in the order of time.
    events = profile.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def boxes_in(size: float, n: int, generator: torch.Generator) -> Tensor:
    corner = torch.rand(n, 2, generator=generator) * 0.8 * size
    return torch.cat([corner, corner + (0.05 + 0.25 * torch.rand(n, 2, generator=generator)) * size], dim=1)


def comparisons() -> list[Comparison]:
    listed = []
    generator = torch.Generator().manual_seed(0)
    compiled = torchvision_operators()
    for batch, channels, cells, n, bins in ((1, 256, 64, 128, 7), (1, 32, 16, 64, 5), (32, 32, 16, 64, 5)):
        feats = torch.randn(batch, channels, cells, cells, generator=generator)
        trained = feats.clone().requires_grad_()
        boxes = [boxes_in(8.0 * cells, n, generator) for _ in range(batch)]
        where = f"{n} boxes, {channels} channels, {cells} x {cells}, batch {batch}"

        def ours(f: Tensor, b: Any = boxes, s: int = bins) -> Tensor:
            return roi_align(f, b, s, 0.125, 2, True, backend="torch")

        def naive(f: Tensor, b: Any = boxes, s: int = bins) -> Tensor:
            return naive_roi_align(f, b, s, 0.125)

        def torchvisions(f: Tensor, b: Any = boxes, s: int = bins) -> Tensor:
            return compiled.roi_align(f, b, s, 0.125, 2, True)

        assert torch.allclose(ours(feats), naive(feats), atol=1e-4)
        peers = [(naive, "four gathers")] + ([(torchvisions, "torchvision")] if compiled else [])
        for peer, name in peers:
            for what, make, data in (("forward", _forward, feats), ("training step", _training, trained)):
                one, other = make(ours, data), make(peer, data)
                memory = ", ".join(
                    f"{who} {peak_bytes(call) / 2**20:.0f} MiB" for who, call in (("ours", one), ("peer", other))
                )
                listed.append(Comparison(f"RoIAlign, {what}: {where}", one, other, name, f"peak {memory}"))
    for n in (200, 2000):
        boxes_n = boxes_in(512, n, generator)
        scores = torch.rand(n, generator=generator)
        assert torch.equal(nms(boxes_n, scores, 0.7, "torch"), naive_nms(boxes_n, scores, 0.7))

        def run(f: Any, b: Tensor = boxes_n, s: Tensor = scores) -> Callable[[], Any]:
            return lambda: f(b, s, 0.7)

        one, other = run(lambda b, s, t: nms(b, s, t, "torch")), run(naive_nms)
        memory = ", ".join(
            f"{who} {peak_bytes(call) / 2**20:.0f} MiB" for who, call in (("ours", one), ("peer", other))
        )
        listed.append(Comparison(f"NMS at 0.7: {n} boxes", one, other, "sweep over the matrix", f"peak {memory}"))
        if compiled:
            listed.append(Comparison(f"NMS at 0.7: {n} boxes", one, run(compiled.nms), "torchvision"))
    return listed


def _forward(f: Callable[[Tensor], Tensor], feats: Tensor) -> Callable[[], Any]:
    def run() -> None:
        with torch.no_grad():
            f(feats)

    return run


def _training(f: Callable[[Tensor], Tensor], feats: Tensor) -> Callable[[], Any]:
    def run() -> None:
        feats.grad = None
        f(feats).square().sum().backward()

    return run
