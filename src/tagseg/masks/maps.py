"""Maps as files; apart from the network, so that a process which only reads them never imports torch."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from tagseg.run import Run, RunError, atomic_path


def map_file(run: Run, sample_id: str) -> Path:
    """Return where an image's maps lie."""
    return run.maps / f"{sample_id}.npz"


def write_maps(path: Path, maps: Float[np.ndarray, "k h w"], tags: tuple[int, ...]) -> None:
    """Write maps 0..1 as uint8 `maps` (k h w) with their class ids `classes` (k)."""
    quantised = (maps * 255).round().clip(0, 255).astype(np.uint8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, maps=quantised, classes=np.array(tags, dtype=np.int64))


def read_maps(path: Path) -> tuple[UInt8[np.ndarray, "k h w"], tuple[int, ...]]:
    """Return an image's maps (0..255 = 0..1) and their class ids.

    Raises:
        RunError: when the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["maps"], tuple(int(c) for c in file["classes"])
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(
            f"{path}: missing or damaged maps ({error}); `tagseg localise RUN --force` makes all anew"
        ) from error
