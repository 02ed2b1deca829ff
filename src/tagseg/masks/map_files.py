"""Read and write map files; separate from the network, so that processes that only read maps never import torch."""

import zipfile
from io import BufferedIOBase
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from tagseg.errors import RunError
from tagseg.run.folder import Run
from tagseg.system.files import atomic_path
from tagseg.system.untrusted import DAMAGED_ARRAY, require_regular

_MAX_BYTES = 1 << 29
"""Largest size of an image's maps: enough for 254 classes on 1,400 x 1,400 cells."""


def map_file(run: Run, sample_id: str) -> Path:
    """Return the path of an image's maps."""
    return run.maps / f"{sample_id}.npz"


def write_maps(path: Path, maps: Float[np.ndarray, "k h w"], tags: tuple[int, ...]) -> None:
    """Write maps 0..1 as uint8 `maps` (k h w) with their class ids `classes` (k)."""
    quantised = quantised_maps(maps)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, maps=quantised, classes=np.array(tags, dtype=np.int64))


def quantised_maps(maps: Float[np.ndarray, "k h w"]) -> UInt8[np.ndarray, "k h w"]:
    """Return maps 0..1 as they are stored, 0..255."""
    rounded: UInt8[np.ndarray, "k h w"] = (maps * 255).round().clip(0, 255).astype(np.uint8)
    return rounded


def read_maps(path: Path) -> tuple[UInt8[np.ndarray, "k h w"], tuple[int, ...]]:
    """Return an image's maps (0..255 = 0..1) and their class ids.

    Raises:
        RunError: when the file is missing or damaged, or holds something else.
    """
    try:
        require_regular(path)
        with zipfile.ZipFile(path) as archive:
            maps, classes = (read_member(archive, name) for name in ("maps", "classes"))
        if maps.dtype != np.uint8 or maps.ndim != 3 or classes.dtype != np.int64 or classes.shape != maps.shape[:1]:
            raise ValueError(f"maps are {maps.dtype} {maps.shape}, classes {classes.dtype} {classes.shape}")
        if 0 in maps.shape[1:] or not ((classes > 0) & (classes < 255)).all():
            raise ValueError("maps without cells, or class ids outside 1 to 254")
        return maps, tuple(classes.tolist())
    except DAMAGED_ARRAY as error:
        raise RunError(
            f"{path}: missing or damaged maps ({error}); run `tagseg localise RUN --force` to make all maps again"
        ) from error


def tagged_maps(path: Path, tags: tuple[int, ...]) -> UInt8[np.ndarray, "k h w"]:
    """Return the maps (0..255 = 0..1) of an image's tags, in their order. A tag that a person has added since the maps
    were made has an empty one.

    Raises:
        RunError: as `read_maps`.
    """
    return arrange_maps(*read_maps(path), tags)


def arrange_maps(
    maps: UInt8[np.ndarray, "k h w"], classes: tuple[int, ...], tags: tuple[int, ...]
) -> UInt8[np.ndarray, "l h w"]:
    """Return the maps of `classes` in the order of `tags`; a tag that is not among the classes has an empty one.

    >>> arrange_maps(np.full((1, 1, 2), 9, np.uint8), (3,), (2, 3)).tolist()
    [[[0, 0]], [[9, 9]]]
    """
    if classes == tags:
        return maps
    found = np.zeros((len(tags), *maps.shape[1:]), np.uint8)
    for row, tag in enumerate(tags):
        if tag in classes:
            found[row] = maps[classes.index(tag)]
    return found


def read_member(archive: zipfile.ZipFile, name: str) -> Shaped[np.ndarray, "..."]:
    """Return one array of an .npz file (see `read_array`)."""
    member = f"{name}.npy"
    with archive.open(member) as file:
        return read_array(file, archive.getinfo(member).file_size, member)


def read_array(file: IO[bytes] | BufferedIOBase, size: int, name: str) -> Shaped[np.ndarray, "..."]:
    """Return the array of an .npy file, after checking the size that its header claims against the unpacked `size` in
    bytes and the limit: a file of a few bytes can claim, or unpack to, any size.

    Raises:
        ValueError: when these sizes disagree, or the array contains Python objects; damaged files also raise the other
            errors in DAMAGED_ARRAY.
    """
    formats = np.lib.format
    versions = {(1, 0): formats.read_array_header_1_0, (2, 0): formats.read_array_header_2_0}
    shape, fortran, dtype = versions[formats.read_magic(file)](file)
    if dtype.hasobject:
        raise ValueError(f"{name} contains Python objects, which are never unpickled")
    needed = dtype.itemsize
    for side in shape:
        needed *= side
    if size > _MAX_BYTES or needed > size or min(shape, default=1) < 0:
        raise ValueError(f"{name} claims {needed} of {size} bytes, expected at most {_MAX_BYTES}")
    content = bytearray(file.read(needed + 1))
    if len(content) != needed:
        raise ValueError(f"{name} does not contain the {needed} bytes that it claims")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
