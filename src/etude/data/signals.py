"""Recordings of complex baseband samples ("IQ"), from the formats that receivers write.

SigMF is the Signal Metadata Format, https://sigmf.org: a JSON file NAME.sigmf-meta beside the samples in
NAME.sigmf-data.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etude.data.kinds import Examples, Recording, SignalData

__all__ = ["iq_folder", "load_iq"]

# Name -> NumPy type of one number, and whether a sample is a pair of them (I, Q) or is complex already. Integers are
# divided by their full scale, so that samples lie in [-1, 1]; unsigned ones have their zero in the middle.
_TYPES = {
    "complex64": "<c8",
    "complex128": "<c16",
    "float32": "<f4",
    "float64": "<f8",
    "int8": "i1",
    "uint8": "u1",
    "int16": "<i2",
    "uint16": "<u2",
    "int32": "<i4",
}
_SIGMF = {"f32": "f4", "f64": "f8", "i8": "i1", "u8": "u1", "i16": "i2", "u16": "u2", "i32": "i4", "u32": "u4"}
_SUFFIXES = (".npy", ".sigmf-meta", ".iq", ".cfile", ".bin", ".dat", ".raw")


def load_iq(
    path: str | os.PathLike,
    dtype: str = "complex64",
    sample_rate: float | int | None = None,
    *,
    expected_rate: float | int | None = None,
) -> Recording:
    """One recording as complex64 samples.

    By the name of the file: `.npy` holds complex numbers of shape (samples,), or numbers of shape (samples, 2);
    `.sigmf-meta`, `.sigmf-data` or their common stem is a SigMF pair; anything else is raw, I and Q in turn, little
    endian. Integers are scaled by their full scale to [-1, 1).

    Args:
        path: of the file.
        dtype: of a raw file: "complex64" (the same as interleaved "float32"), "complex128", "float32", "float64",
            "int8", "uint8", "int16", "uint16" or "int32". The other formats say it themselves.
        sample_rate: in Hz, for formats that do not say it; one that does must agree.
        expected_rate: refuse a recording of another sample rate, or of none.

    Raises:
        FileNotFoundError: if the file, or the other file of a SigMF pair, is missing.
        ValueError: for real-valued samples, half a sample, an empty or unreadable file, NaN, or a wrong sample rate.
    """
    file = Path(path)
    if file.suffix in (".sigmf-meta", ".sigmf-data") or (
        not file.is_file() and file.with_name(file.name + ".sigmf-meta").is_file()
    ):
        stem = file.with_suffix("") if file.suffix.startswith(".sigmf") else file
        samples, rate, meta = _sigmf(stem)
        name = stem.name
    else:
        if not file.is_file():
            raise FileNotFoundError(f"no recording at {file}")
        samples, rate, meta = (_npy(file) if file.suffix == ".npy" else _raw(file, dtype)), None, {}
        name = file.stem
    if rate is not None and sample_rate is not None and not np.isclose(rate, sample_rate):
        raise ValueError(f"{file} says {rate:g} samples per second, not sample_rate={sample_rate:g}")
    rate = sample_rate if rate is None else rate
    if expected_rate is not None and (rate is None or not np.isclose(rate, expected_rate)):
        said = "an unknown sample rate" if rate is None else f"{rate:g} samples per second"
        raise ValueError(f"{file} has {said}, expected {expected_rate:g}: resample it first")
    if len(samples) == 0:
        raise ValueError(f"{file} holds no samples")
    if not np.isfinite(samples.view(np.float32)).all():
        raise ValueError(f"{file} holds NaN or infinite samples")
    return Recording(torch.from_numpy(samples), sample_rate=rate, meta=meta, name=name)


def _complex(numbers: np.ndarray, where: Path) -> np.ndarray:
    """Complex64 samples from complex numbers, or from real numbers that hold I and Q in turn."""
    if np.iscomplexobj(numbers):
        return np.ascontiguousarray(numbers, dtype=np.complex64)
    if len(numbers) % 2:
        raise ValueError(f"{where} holds {len(numbers)} numbers: I and Q in turn make an even count")
    if numbers.dtype.kind in "iu":
        half = 2.0 ** (8 * numbers.dtype.itemsize - 1)
        # The middle of an unsigned range lies between two codes.
        numbers = (numbers - (half - 0.5 if numbers.dtype.kind == "u" else 0.0)) / half
    return np.ascontiguousarray(numbers, dtype=np.float32).view(np.complex64)


def _raw(file: Path, dtype: str) -> np.ndarray:
    if dtype not in _TYPES:
        raise ValueError(f"dtype must be one of {', '.join(_TYPES)}, got {dtype!r}")
    kind = np.dtype(_TYPES[dtype])
    size = file.stat().st_size
    if size % kind.itemsize:
        raise ValueError(f"{file} has {size} bytes, no multiple of the {kind.itemsize} bytes of {dtype}")
    return _complex(np.fromfile(file, dtype=kind), file)


def _npy(file: Path) -> np.ndarray:
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} is not an .npy array of plain numbers: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "ciuf":
        raise ValueError(f"{file} must hold numbers, got {getattr(array, 'dtype', type(array).__name__)}")
    if np.iscomplexobj(array) and array.ndim == 1:
        return _complex(array, file)
    if not np.iscomplexobj(array) and array.ndim == 2 and array.shape[1] == 2:
        return _complex(array.reshape(-1), file)
    raise ValueError(
        f"{file} must be complex of shape (samples,) or real of shape (samples, 2) holding I and Q, "
        f"got {array.dtype} of shape {array.shape}: real-valued signals are not IQ"
    )


def _sigmf(stem: Path) -> tuple[np.ndarray, float | None, dict[str, Any]]:
    meta_file, data_file = stem.with_name(stem.name + ".sigmf-meta"), stem.with_name(stem.name + ".sigmf-data")
    for file in (meta_file, data_file):
        if not file.is_file():
            raise FileNotFoundError(f"a SigMF recording is a pair of files: {file} is missing")
    try:
        meta = json.loads(meta_file.read_text(encoding="utf-8"))
        kind, rate = meta["global"]["core:datatype"], meta["global"].get("core:sample_rate")
        channels = int(meta["global"].get("core:num_channels", 1))
        number, _, order = kind[1:].partition("_")
        code = _SIGMF[number]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{meta_file} is not SigMF metadata that can be read: {error!r}") from error
    if kind[0] != "c":
        raise ValueError(f"{meta_file} says {kind}: real-valued samples are not IQ, a complex type was expected")
    if channels != 1:
        raise ValueError(f"{meta_file} says {channels} channels, one was expected")
    element = np.dtype((">" if order == "be" else "<") + code)
    size = data_file.stat().st_size
    if size % element.itemsize:
        raise ValueError(f"{data_file} has {size} bytes, no multiple of the {element.itemsize} bytes of {kind}")
    numbers = np.fromfile(data_file, dtype=element).astype(element.newbyteorder("="), copy=False)
    return _complex(numbers, data_file), None if rate is None else float(rate), meta


def iq_folder(
    path: str | os.PathLike,
    length: int,
    *,
    dtype: str = "complex64",
    sample_rate: float | int | None = None,
    hop: int | None = None,
) -> SignalData:
    """Windows of `length` samples out of recordings in `path/CLASS/FILE`, labelled by the sub-folder.

    Each recording is cut in time before it is cut into windows: its first 70 % is train, the next 10 % val, the last
    20 % test, so no window shares a sample with one of another part. A stretch too short for one window gives none.

    Args:
        path: the folder; files `.npy`, `.sigmf-meta` with its data, or raw (`.iq .cfile .bin .dat .raw`).
        length: samples a window.
        dtype: of raw files, as for `load_iq`.
        sample_rate: in Hz, for formats that do not say it; all recordings must have one rate.
        hop: samples from one window to the next; `length` if None.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for fewer than two classes, a class without recordings, differing or unknown sample rates, or
            parts without a window; and as for `load_iq`.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder of recordings at {root}")
    folders = sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    if len(folders) < 2:
        raise ValueError(f"{root} must hold one sub-folder per class, at least two, got {[f.name for f in folders]}")
    windows: dict[str, list[torch.Tensor]] = {"train": [], "val": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    rate = sample_rate
    for label, folder in enumerate(folders):
        files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)
        if not files:
            raise ValueError(f"{folder} holds no recordings ({', '.join(_SUFFIXES)})")
        for file in files:
            recording = load_iq(file, dtype, sample_rate, expected_rate=rate)
            rate = recording.sample_rate
            if rate is None:
                raise ValueError(f"{file} does not say its sample rate: give sample_rate")
            for part, samples in _stretches(recording).items():
                if len(samples) >= length:
                    cut = samples.windows(length, hop)
                    windows[part].append(cut)
                    labels[part] += [label] * len(cut)
    for part, found in windows.items():
        if not found:
            raise ValueError(f"no recording under {root} is long enough for a {part} window of {length} samples")
    assert rate is not None
    parts = {part: Examples(torch.cat(windows[part]), torch.tensor(labels[part])) for part in windows}
    meta = {"classes": tuple(folder.name for folder in folders)}
    return SignalData(**parts, sample_rate=rate, meta=meta, name=root.name)


def _stretches(recording: Recording) -> dict[str, Recording]:
    n = len(recording)
    bounds = {"train": (0, n * 7 // 10), "val": (n * 7 // 10, n * 8 // 10), "test": (n * 8 // 10, n)}
    return {
        part: Recording(recording.samples[start:stop], recording.sample_rate) for part, (start, stop) in bounds.items()
    }
