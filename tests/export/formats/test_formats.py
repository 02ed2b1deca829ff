import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tagseg.errors import DataError
from tagseg.export.formats import _FORMATS, export
from tagseg.run.folder import Run
from tagseg.settings.export import ExportSettings

NAMES = ("cat/1.png", "cat/2.jpg", "cat/2.png", "dog/1.png", "dog/ä b.png", "dog/turned.jpg")
IDS = ("cat/1", "cat/2.jpg", "cat/2.png", "dog/1", "dog/ä b", "dog/turned")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("to", "images", "wanted"),
    [
        ("coco", None, {"annotations/instances_train.json"}),
        ("coco", "link", {"annotations/instances_train.json", *(f"images/{name}" for name in NAMES)}),
        ("voc", None, {
            "labelmap.txt", "ImageSets/Segmentation/train.txt", "SegmentationClass/classes.json",
            *(f"SegmentationClass/{name}.png" for name in ("cat/1", "cat/2.jpg", "cat/2.png", "dog/1", "dog/ä b",
              "dog/turned")),
        }),
        ("yolo", None, {
            "data.yaml", *(f"images/train/{name}" for name in ("cat/1.png", "cat/2.jpg.jpg", "cat/2.png.png",
            "dog/1.png", "dog/ä b.png", "dog/turned.jpg")), *(f"labels/train/{name}.txt" for name in ("cat/1",
            "cat/2.jpg", "cat/2.png", "dog/1", "dog/ä b", "dog/turned")),
        }),
        ("labelstudio", "none", {"tasks.json", "interface.xml"}),
        ("labelstudio", None, {"tasks.json", "interface.xml", *(f"images/{name}" for name in NAMES)}),
        ("labelme", "none", {"labels.txt", *(f"{name}.json" for name in IDS)}),
        ("datumaro", "none", {"annotations/train.json"}),
        ("yolo-semantic", "none", {"data.yaml", *(f"masks/train/{name}.png" for name in IDS)}),
        ("cvat", None, {"segmentation_mask_1.1.zip", "coco_1.0.zip", "labels.json"}),
    ],
)  # fmt: skip
def test_every_format_writes_its_files(to: Any, images: Any, wanted: set[str], run: Run, tmp_path: Path) -> None:
    done = export(run.root, to, tmp_path / "out", images=images)
    assert (done.folder, done.masks) == (tmp_path / "out", 6)
    assert files(tmp_path / "out") == wanted | {"made_by_tagseg.json"}
    made = json.loads((tmp_path / "out" / "made_by_tagseg.json").read_text())
    assert (made["export"], made["of"], made["unsure"]) == (to, "final", _FORMATS[to].unsure[0])


def test_an_image_folder_holds_images_and_masks(run: Run, tmp_path: Path) -> None:
    export(run.root, "hf", tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out/train/metadata.jsonl").read_text("utf-8").splitlines()]
    assert [row["file_name"] for row in rows] == [f"images/{name}" for name in NAMES]
    for row in rows:
        assert (tmp_path / "out" / "train" / row["file_name"]).is_file()
        with Image.open(tmp_path / "out" / "train" / row["mask_file_name"]) as mask:
            assert (np.asarray(mask) == 255).sum() == 1  # unsure pixels are kept


@pytest.mark.parametrize("to", ["coco", "yolo", "labelstudio", "cvat"])
def test_formats_without_unsure_pixels_get_decided_masks(to: Any, run: Run, tmp_path: Path) -> None:
    export(run.root, to, tmp_path / "out")
    if to == "coco":
        content = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
        assert content["annotations"] and not any(entry["iscrowd"] for entry in content["annotations"])
    else:
        message = f"--unsure void: not supported by --to {to}, expected decided or background"
        with pytest.raises(DataError, match=message):
            export(run.root, to, tmp_path / "other", unsure="void")
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("to", "flags", "message"),
    [
        ("hf", {"images": "none"}, "--images none: not supported by --to hf, expected copy or link"),
        ("cvat", {"images": "copy"}, "--images copy: not supported by --to cvat, expected none"),
        ("voc", {"settings": ExportSettings(parts=True)}, "--parts: not supported by --to voc"),
        ("yolo", {"settings": ExportSettings(polygons=True)}, "--polygons: not supported by --to yolo, .* coco, cvat"),
        ("coco", {"of": "nowhere"}, "--of nowhere: no such folder"),
    ],
)
def test_unsupported_options_are_refused(
    to: Any, flags: dict[str, Any], message: str, run: Run, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        export(run.root, to, tmp_path / "out", **flags)
    assert not [path for path in tmp_path.iterdir() if path.name not in ("data", "run")]


def test_nothing_is_overwritten_without_force(run: Run, tmp_path: Path) -> None:
    export(run.root, "coco", tmp_path / "out")
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'out'}: exists; choose another --out or --force")):
        export(run.root, "coco", tmp_path / "out")
    small = ExportSettings(min_part=100)
    export(run.root, "labelstudio", tmp_path / "out", images="none", settings=small, force=True)
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert not any(task["predictions"][0]["result"] for task in tasks)
    assert files(tmp_path / "out") == {"tasks.json", "interface.xml", "made_by_tagseg.json"}
