"""Other projects' readers see the exported pixels; each test runs if its reader is installed (extra `readers`)."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tagseg.export.coco import write_coco
from tagseg.export.cvat import write_cvat
from tagseg.export.folder import place_images
from tagseg.export.huggingface import huggingface_folder, write_huggingface
from tagseg.export.masks import MaskSet
from tagseg.export.voc import write_voc
from tagseg.export.yolo import write_yolo, yolo_image
from tagseg.settings.export import ExportSettings
from tagseg.system.progress import silent

Make = Callable[..., MaskSet]
EXACT = ExportSettings(tolerance=0.0)


@pytest.fixture
def exported(masks: dict[str, np.ndarray], mask_set: Make) -> MaskSet:
    return mask_set(masks, ("cat", "big dog", "Kühe & <Co> 'x'"), unsure="decided")


def copy_images(exported: MaskSet, folder: Path, where: Callable[[MaskSet, object], Path]) -> None:
    pairs = [(image.image, folder / where(exported, image)) for image in exported.images]
    place_images(pairs, "copy", len(pairs), silent)


def painted(dataset: object, name: str) -> np.ndarray:
    """Return an image's mask, painted from supervision's detections."""
    ((_, picture, found),) = [item for item in dataset if str(item[0]).endswith(name)]  # type: ignore[attr-defined]
    mask = np.zeros(picture.shape[:2], np.uint8)
    for pixels, class_id in zip(found.mask if len(found) else (), found.class_id, strict=True):
        mask[pixels] = class_id + 1
    return mask


@pytest.mark.parametrize("settings", [EXACT, ExportSettings(parts=True)], ids=["codes", "parts"])
def test_supervision_reads_coco(
    settings: ExportSettings, exported: MaskSet, masks: dict[str, np.ndarray], tmp_path: Path
) -> None:
    supervision = pytest.importorskip("supervision")
    write_coco(exported, tmp_path / "out", settings, silent)
    copy_images(exported, tmp_path / "out", lambda masks, image: Path("images", image.name))  # type: ignore[attr-defined]
    dataset = supervision.DetectionDataset.from_coco(
        str(tmp_path / "out/images"), str(tmp_path / "out/annotations/instances_train.json"), force_masks=True
    )
    assert tuple(dataset.classes) == exported.classes
    for name, mask in masks.items():
        assert np.array_equal(painted(dataset, f"{name}.png"), mask)


def test_supervision_reads_yolo(exported: MaskSet, masks: dict[str, np.ndarray], tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    write_yolo(exported, tmp_path / "out", EXACT, silent)
    copy_images(exported, tmp_path / "out", yolo_image)  # type: ignore[arg-type]
    # It reads one folder of images at a time.
    for below in ("", "sub folder"):
        dataset = supervision.DetectionDataset.from_yolo(
            str(tmp_path / "out/images/train" / below), str(tmp_path / "out/labels/train" / below),
            str(tmp_path / "out/data.yaml"), force_masks=True,
        )  # fmt: skip
        assert tuple(dataset.classes) == exported.classes
        for name, mask in masks.items():
            if Path(name).parent.as_posix() == (below or "."):
                assert np.array_equal(painted(dataset, f"{Path(name).name}.png"), mask)


def test_datasets_reads_an_image_folder(
    masks: dict[str, np.ndarray], mask_set: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # These names contain words that `datasets` recognises as splits.
    masks |= {"test_1": masks["plain"], "val/a": masks["plain"][:, :3] * 0 + 255}
    exported = mask_set(masks)
    write_huggingface(exported, tmp_path / "out", EXACT, silent)
    copy_images(exported, tmp_path / "out", lambda masks, image: huggingface_folder(masks) / image.name)  # type: ignore[attr-defined]
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"] and loaded["train"].num_rows == len(masks)
    rows = {row["image"].getpixel((0, 0))[0]: row for row in loaded["train"]}
    for number, (image, mask) in enumerate(zip(exported.images, masks.values(), strict=True)):
        assert np.array_equal(np.asarray(rows[number]["mask"]), mask)
        assert rows[number]["tags"] == [exported.classes[i - 1] for i in image.tags]


@pytest.mark.parametrize("which", ["voc", "cvat masks", "cvat coco"])
def test_datumaro_reads_voc_and_cvats_archives(
    which: str, exported: MaskSet, masks: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """CVAT imports through Datumaro."""
    datumaro = pytest.importorskip("datumaro")
    root = tmp_path / "out"
    if which == "voc":
        write_voc(exported, root, EXACT, silent)
        (root / "SegmentationClass" / "classes.json").unlink()  # not part of a devkit
    else:
        write_cvat(exported, tmp_path / "zips", EXACT, silent)
        name = "segmentation_mask_1.1.zip" if which == "cvat masks" else "coco_1.0.zip"
        with zipfile.ZipFile(tmp_path / "zips" / name) as archive:
            archive.extractall(root)
    subset = "train" if which == "voc" else "default"
    folder, kind = ("images", "coco_instances") if which == "cvat coco" else ("JPEGImages", "voc_segmentation")
    copy_images(exported, root, lambda masks, image: Path(folder, image.name))  # type: ignore[attr-defined]
    dataset = datumaro.Dataset.import_from(str(root), kind)
    names = [label.name for label in dataset.categories()[datumaro.AnnotationType.label]]
    assert [name for name in names if name != "background"] == list(exported.classes)
    for item_id, mask in masks.items():
        item = dataset.get(item_id, subset)
        drawn = np.zeros_like(mask)
        for annotation in item.annotations:
            label = names[annotation.label]
            # Datumaro also makes a box of every COCO instance.
            if label != "background" and annotation.type == datumaro.AnnotationType.mask:
                drawn[np.asarray(annotation.image).astype(bool)] = exported.classes.index(label) + 1
        assert np.array_equal(drawn, mask)
