"""Features kept on disk, in arrays that are read without being loaded.

With augmentation off, one forward per image, timestep and draw of the noise is the whole cost of a probe; 1.28 million
images at 1024 x 2 x 2 cells in float16 are 10 GB. The draws of the noise are frozen with the features: keep several,
and train on one after the other.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from etude.diffusion.diffusion_features.features import DiffusionFeatures, Place

__all__ = ["cached_features"]


def cached_features(
    features: DiffusionFeatures,
    images: Shaped[Tensor, "n channels height width"],
    folder: str | os.PathLike,
    *,
    noise_samples: int = 1,
    batch_size: int = 256,
    dtype: str = "float16",
    progress: Callable[[int, int], None] | None = None,
) -> dict[Place, np.ndarray]:
    """Features of many images, from the folder if it holds them, else computed and kept there.

        found = cached_features(features, images, "cache/", noise_samples=4)
        found[90, 24]                                       # (draws, n, channels, height, width), memory-mapped

    The folder answers for the model's weights, the scheduler, the images and every setting: anything else is computed
    anew in its place. An interrupted computation leaves nothing that is taken for whole. With a cache the noise of a
    stored draw is the same ever after.

    Args:
        features: where the model is read; its `pool` is applied before anything is stored.
        images: in [-1, 1].
        folder: made if missing.
        noise_samples: draws of the noise kept.
        batch_size: images at a time.
        dtype: of the arrays, "float16" or "float32".
        progress: called as `progress(done, total)` with counts of images, each counted once a draw.

    Raises:
        ValueError: for another dtype or a count that is not positive, or as `DiffusionFeatures`.
    """
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype must be float16 or float32, got {dtype!r}")
    if noise_samples < 1 or batch_size < 1:
        raise ValueError(f"noise_samples and batch_size must be positive, got {noise_samples} and {batch_size}")
    features.check(images)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    card = place / "features.json"
    wanted = _identity(features, images, noise_samples, dtype)
    files = {(t, block): place / f"t{t}-block{block}.npy" for t, block in features.places}
    if not (card.is_file() and json.loads(card.read_text(encoding="utf-8")) == wanted):
        card.unlink(missing_ok=True)
        _write(features, images, files, noise_samples, batch_size, dtype, progress)
        partial = card.with_suffix(".part")
        partial.write_text(json.dumps(wanted), encoding="utf-8")
        partial.replace(card)
    return {key: np.load(file, mmap_mode="r") for key, file in files.items()}


def _write(
    features: DiffusionFeatures,
    images: Tensor,
    files: dict[Place, Path],
    draws: int,
    batch_size: int,
    dtype: str,
    progress: Callable[[int, int], None] | None,
) -> None:
    arrays: dict[Place, np.ndarray] = {}
    for draw in range(draws):
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            for key, maps in features.extract(batch, batch_size=batch_size).items():
                if key not in arrays:
                    shape = (draws, len(images), *maps.shape[1:])
                    arrays[key] = np.lib.format.open_memmap(files[key], mode="w+", dtype=dtype, shape=shape)
                arrays[key][draw, start : start + len(batch)] = maps.numpy()
            if progress is not None:
                progress(draw * len(images) + start + len(batch), draws * len(images))
    for array in arrays.values():
        array.flush()  # type: ignore[attr-defined]


def _identity(features: DiffusionFeatures, images: Tensor, draws: int, dtype: str) -> dict[str, Any]:
    return {
        "model": _digest(features.unet),
        "images": _digest(images),
        "diffusion": json.loads(json.dumps(dict(features.diffusion.config), default=str)),
        "blocks": list(features.blocks),
        "timesteps": list(features.timesteps),
        "pool": features.pool,
        "forward": str(features.dtype),
        "noise_samples": draws,
        "dtype": dtype,
    }


def _digest(content: nn.Module | Tensor) -> str:
    parts = content.state_dict() if isinstance(content, nn.Module) else {"": content}
    digest = hashlib.sha256()
    for name, value in parts.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()
