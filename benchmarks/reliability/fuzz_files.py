"""Valid files for fuzz.py, and folders as a stranger may have left them."""

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_rle

SIZE = 12, 10
"""Height and width of all valid images."""


def image_folder(folder: Path) -> Path:
    """Make a folder of three images; beside them what a stranger may have put there: links, a pipe, a device."""
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/c.png"):
        (folder / name).write_bytes(encoded("RGB", "PNG"))
    (folder / "folder.png").mkdir()
    outside = folder.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "b.png").write_bytes(encoded("RGB", "PNG"))
    (folder.parent / "outside.png").write_bytes(encoded("RGB", "PNG"))
    for name, meant in (("link.png", outside / "b.png"), ("far", outside), ("zero.png", Path("/dev/zero"))):
        (folder / name).symlink_to(meant)
    os.mkfifo(folder / "pipe.png")
    return folder


def encoded(mode: str, kind: str) -> bytes:
    """Return a small image as a file's bytes."""
    values = np.arange(SIZE[0] * SIZE[1], dtype=np.uint8).reshape(SIZE) % 3
    grey = Image.fromarray(values)
    image = Image.fromarray(values.astype(np.uint16) * 999) if mode == "I;16" else grey.convert(mode)
    packed = io.BytesIO()
    extra: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    if kind in ("JPEG", "PNG", "WEBP"):
        exif = Image.Exif()
        exif[0x0112] = 6
        extra["exif"] = exif if mode in ("CMYK", "LA") else Image.Exif()
    image.save(packed, kind, **extra)
    return packed.getvalue()


def coco() -> bytes:
    """Return COCO instances with segmentations of each kind."""
    height, width = SIZE
    images = [
        {"id": i, "file_name": name, "height": height, "width": width} for i, name in enumerate(("a.png", "b.png"))
    ]
    compressed = coco_rle.encode(np.asfortranarray(np.eye(height, width, dtype=np.uint8)))["counts"].decode()
    drawn: Sequence[Any] = ([[1, 1, 5, 1, 5, 5.5]], {"size": [height, width], "counts": [20, 30, 70]},
                            {"size": [height, width], "counts": compressed})  # fmt: skip
    entries = [
        {
            "id": i,
            "image_id": i % 2,
            "category_id": 3 + i % 2,
            "iscrowd": i // 2,
            "segmentation": one,
            "bbox": [1, 1, 4, 4],
        }
        for i, one in enumerate(drawn)
    ]
    categories = [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}]
    return json.dumps({"images": images, "annotations": entries, "categories": categories}).encode()


def tar(form: int, long: bool = False) -> bytes:
    """Return a shard of two samples, in one of tarfile's formats; with a name too long for a plain header."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as archive:
        key = "k" * 150 if long else "b"
        parts = {
            "a.png": encoded("RGB", "PNG"),
            "a.json": b'{"tags": ["cat", "dog"]}',
            "a.mask.png": encoded("L", "PNG"),
            f"sub/{key}.jpg": encoded("RGB", "JPEG"),
            f"sub/{key}.cls": b"1",
        }
        for name, content in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def twin(folder: Path, copy: Path) -> Path:
    """Copy a folder's files and return the copy."""
    for file in folder.rglob("*"):
        if file.is_file():
            (copy / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (copy / file.relative_to(folder)).write_bytes(file.read_bytes())
    return copy
