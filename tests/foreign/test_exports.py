"""The newest reader of each tool opens our exports, in an environment of its own, and sees the exported pixels.

`make foreign` builds the environments; without one, its tests are skipped. Pixels that differ are counted: 0 where the
format can hold every mask, and what is known where it cannot.
"""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tagseg.export.coco import write_coco
from tagseg.export.cvat import write_cvat
from tagseg.export.datumaro import datumaro_image, write_datumaro
from tagseg.export.folder import place_images
from tagseg.export.huggingface import huggingface_folder, write_huggingface
from tagseg.export.labelme import write_labelme
from tagseg.export.labelstudio import write_labelstudio
from tagseg.export.masks import MaskedImage, MaskSet
from tagseg.export.voc import write_voc
from tagseg.export.yolo import write_yolo, write_yolo_semantic, yolo_image
from tagseg.masks.mask_files import write_mask
from tagseg.settings.export import ExportSettings
from tagseg.system.progress import silent

from .environments import TOOLS, python_of, read_with

CLASSES = ("cat", "big dog", "Kühe & <Co> 'x'")
EXACT = ExportSettings(tolerance=0.0)


@dataclass(frozen=True)
class Export:
    """An export and who opens it; `wrong`: pixels that the reader is known to get wrong, of 175."""

    tool: str
    reader: str
    write: Callable[..., None]
    place: Callable[[MaskSet, MaskedImage], Path]
    settings: ExportSettings = EXACT
    void: bool = False
    wrong: int = 0
    archive: str = ""


def below(folder: str) -> Callable[[MaskSet, MaskedImage], Path]:
    return lambda masks, image: Path(folder, image.name)


POLYGONS, PARTS = ExportSettings(polygons=True, tolerance=0.0), ExportSettings(parts=True)
HF = lambda masks, image: huggingface_folder(masks) / image.name  # noqa: E731
MASKS, COCO = "segmentation_mask_1.1.zip", "coco_1.0.zip"

EXPORTS = {
    "coco": Export("coco", "coco", write_coco, below("images")),
    "coco polygons": Export("coco", "coco", write_coco, below("images"), POLYGONS),
    "coco by supervision": Export("supervision", "supervision_coco", write_coco, below("images")),
    "coco parts by supervision": Export("supervision", "supervision_coco", write_coco, below("images"), PARTS),
    "yolo by supervision": Export("supervision", "supervision_yolo", write_yolo, yolo_image),
    "yolo by ultralytics": Export("ultralytics", "ultralytics_yolo", write_yolo, yolo_image),
    "yolo-semantic": Export("ultralytics", "ultralytics_semantic", write_yolo_semantic, yolo_image, void=True),
    "voc": Export("datumaro", "datumaro_reads", write_voc, below("JPEGImages"), void=True),
    "cvat masks": Export("datumaro", "datumaro_reads", write_cvat, below("JPEGImages"), archive=MASKS),
    "cvat coco": Export("datumaro", "datumaro_reads", write_cvat, below("images"), archive=COCO),
    "datumaro": Export("datumaro", "datumaro_reads", write_datumaro, datumaro_image, void=True),
    "labelme": Export("labelme", "labelme_reads", write_labelme, below("")),
    "labelme polygons": Export("labelme", "labelme_reads", write_labelme, below(""), POLYGONS),
    "labelstudio": Export("labelstudio", "labelstudio_reads", write_labelstudio, below("images")),
    "hf": Export("datasets", "datasets_reads", write_huggingface, HF, void=True),
}


def drawn(void: bool) -> dict[str, np.ndarray]:
    """Return masks by id: parts that touch at a corner, a hole with an island, single pixels, and an empty mask."""
    ring = np.zeros((11, 14), np.uint8)
    ring[1:8, 1:8] = 1
    ring[3:6, 3:6] = 0
    ring[4, 4] = 2
    ring[8, 8] = 1
    ring[0, 13], ring[8, 0] = 3, 3
    noise = np.random.default_rng(1).integers(0, 4, (13, 10), np.uint8)
    if void:
        ring[5, 12] = noise[0, 0] = 255
    return {"plain": ring, "sub folder/ünï ✓ [x] #1": noise, "sub folder/empty.v2": np.zeros((12, 10), np.uint8)}


def made(export: Export, folder: Path) -> tuple[Path, MaskSet, dict[str, np.ndarray]]:
    """Write an export with its images below a folder."""
    from PIL import Image

    masks, images = drawn(export.void), []
    for number, (name, mask) in enumerate(masks.items()):
        image, file = folder / f"{number}.png", folder / "masks" / f"{number}.png"
        Image.new("RGB", mask.shape[::-1], (number, 9, 9)).save(image)
        write_mask(file, mask)
        tags = tuple(int(value) for value in np.unique(mask) if 0 < value < 255)
        images.append(MaskedImage(name, f"{name}.png", image, (mask.shape[0], mask.shape[1]), file, tags))
    exported = MaskSet(CLASSES, "train", tuple(images), "void" if export.void else "decided")
    out = folder / "export"
    export.write(exported, out, export.settings, silent)
    if export.archive:
        with zipfile.ZipFile(out / export.archive) as archive:
            archive.extractall(folder / "unpacked")
        out = folder / "unpacked"
    (out / "SegmentationClass/classes.json").unlink(missing_ok=True)  # not part of a devkit
    pairs = [(image.image, out / export.place(exported, image)) for image in exported.images]
    place_images(pairs, "copy", len(pairs), silent)
    return out, exported, masks


def wrong_pixels(export: Export, folder: Path) -> tuple[int, dict[str, Any]]:
    """Return how many pixels a tool sees differently, and what it says of itself."""
    out, exported, masks = made(export, folder)
    found, seen = read_with(export.tool, export.reader, out, folder / "seen")
    known = {name: i for i, name in enumerate(exported.classes, 1)} | {"void": 255}
    ids = np.array([0, *(known[name] for name in found["classes"]), *[255] * (255 - len(found["classes"]))], np.uint8)
    assert [name for name in found["classes"] if name != "void"] == list(exported.classes)
    wrong = 0
    for image, mask in zip(exported.images, masks.values(), strict=True):
        one = seen.get(image.name, seen.get(image.id))
        if one is None:  # some readers leave out images without annotations
            assert not mask.any(), image.name
            continue
        wrong += int((ids[one] != mask).sum())
    return wrong, found


@pytest.mark.parametrize("name", EXPORTS)
def test_the_newest_reader_sees_the_exported_pixels(name: str, tmp_path: Path) -> None:
    export = EXPORTS[name]
    if not python_of(export.tool).exists():
        pytest.skip(f"no environment with {', '.join(TOOLS[export.tool])}: make foreign builds it")
    wrong, _ = wrong_pixels(export, tmp_path)
    assert wrong == export.wrong


def test_every_tool_and_format_is_opened() -> None:
    from typing import get_args

    from tagseg.export.formats import MaskFormat

    opened = {name.split()[0] for name in EXPORTS}
    assert opened == set(get_args(MaskFormat))
    assert json.dumps(sorted(TOOLS)) and {export.tool for export in EXPORTS.values()} <= set(TOOLS)


def test_cvats_own_types_accept_the_function_and_see_its_masks(tmp_path: Path) -> None:
    """No CVAT server is started: only the types and the decoder of cvat-sdk, which cvat-cli uses."""
    from tagseg.export.regions import regions
    from tagseg.live.cvat import _outline, _runs

    if not python_of("cvat").exists():
        pytest.skip(f"no environment with {', '.join(TOOLS['cvat'])}: make foreign builds it")
    mask = drawn(False)["sub folder/ünï ✓ [x] #1"]
    found = list(regions(mask))
    shapes = {
        "classes": CLASSES, "size": mask.shape,
        "masks": [(region.class_id, _runs(region.mask())) for region in found],
        "polygons": [(region.class_id, _outline(part)) for region in found for part in region.parts()],
    }  # fmt: skip
    (tmp_path / "export").mkdir()
    (tmp_path / "export/shapes.json").write_text(json.dumps(shapes))
    _, seen = read_with("cvat", "cvat_function", tmp_path / "export", tmp_path / "seen")
    assert np.array_equal(seen["a"], mask)
