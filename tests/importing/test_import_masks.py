import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tagseg.data.images import read_mask_file
from tagseg.data.prepare import prepare
from tagseg.errors import DataError
from tagseg.export.formats import export
from tagseg.importing.import_masks import import_masks
from tagseg.masks.mask_files import mask_file
from tagseg.run.folder import Run
from tagseg.segment.labels import foreign_labels
from tagseg.settings.export import ExportSettings

IDS = ("cat/1", "cat/2.jpg", "cat/2.png", "dog/1", "dog/ä b", "dog/turned")


def same(one: Path, two: Path, ids: tuple[str, ...] = IDS) -> bool:
    """Tell whether two folders hold the same masks."""
    return all(np.array_equal(read_mask_file(mask_file(one, i)), read_mask_file(mask_file(two, i))) for i in ids)


@pytest.mark.parametrize(
    ("to", "flags", "source"),
    [
        ("coco", {}, "annotations/instances_train.json"),
        ("coco", {"unsure": "void"}, "annotations/instances_train.json"),
        ("coco", {"settings": ExportSettings(True, True, 0.0)}, "annotations/instances_train.json"),
        ("voc", {}, "."),
        ("voc", {}, "SegmentationClass"),
        ("hf", {}, "train/masks"),
    ],
    ids=["coco", "coco with void", "coco polygons", "voc", "voc masks", "hf masks"],
)
def test_an_export_can_be_imported_unchanged(to: Any, flags: Any, source: str, run: Run, tmp_path: Path) -> None:
    export(run.root, to, tmp_path / "out", **flags)
    done = import_masks(tmp_path / "out" / source, run.root, tmp_path / "back")
    assert (done.folder, done.corrected, done.own) == (tmp_path / "back", 6, 0)
    assert same(tmp_path / "back", run.decided_masks if to == "coco" and not flags.get("unsure") else run.masks)


def test_masks_that_cvat_exports(run: Run, tmp_path: Path) -> None:
    """CVAT writes colour images, with colours and an order of its own, and an unused label."""
    export(run.root, "cvat", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "out" / "segmentation_mask_1.1.zip") as archive:
        for name in archive.namelist():
            if name.startswith("SegmentationClass/"):
                values = np.asarray(Image.open(io.BytesIO(archive.read(name))))
                target = tmp_path / "cvat" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.array([(0, 0, 0), (51, 221, 255), (250, 50, 83)], np.uint8)[values]).save(target)
    labels = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ndog:250,50,83::\ncat:51,221,255::\ntree:1,1,1::\n"
    (tmp_path / "cvat" / "labelmap.txt").write_text(labels)
    import_masks(tmp_path / "cvat", run.root, tmp_path / "back")
    assert same(tmp_path / "back", run.decided_masks)


def test_the_segmenter_can_learn_from_an_import(run: Run, tmp_path: Path) -> None:
    export(run.root, "voc", tmp_path / "out")
    corrected = tmp_path / "out" / "SegmentationClass" / "dog" / "1.png"
    Image.fromarray(np.full((6, 8), 2, np.uint8)).save(corrected)
    for name in ("cat/1", "cat/2.jpg", "cat/2.png", "dog/turned"):
        mask_file(tmp_path / "out" / "SegmentationClass", name).unlink()
    done = import_masks(tmp_path / "out", run.root, tmp_path / "back", with_pseudo=True)
    assert (done.corrected, done.own) == (2, 4)
    dataset = foreign_labels(prepare(run), tmp_path / "back", tmp_path / "labels")
    assert [sample.id for sample in dataset.split("train")] == list(IDS)
    assert (read_mask_file(mask_file(tmp_path / "labels", "dog/1")) == 2).all()
    assert same(tmp_path / "labels", run.masks, ("cat/1", "cat/2.jpg", "cat/2.png", "dog/ä b", "dog/turned"))


def coco(names: list[str], category: str = "dog", **entry: Any) -> dict[str, Any]:
    """Return COCO instances with one object of 2 x 2 pixels per image."""
    square = {"segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]], "category_id": 7, "iscrowd": 0, **entry}
    return {
        "categories": [{"id": 7, "name": category}],
        "images": [{"id": i, "file_name": name, "width": 8, "height": 6} for i, name in enumerate(names)],
        "annotations": [{"id": i, "image_id": i, **square} for i in range(len(names))],
    }


@pytest.mark.parametrize("name", ["dog/ä b.png", "images/dog/ä b.png", "ä b.png", "dog\\ä b.png", "task/dog/ä b.jpg"])
def test_names_with_other_folders_or_suffixes_are_found(name: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(coco([name])))
    import_masks(tmp_path / "a.json", run.root, tmp_path / "back")
    mask = read_mask_file(mask_file(tmp_path / "back", "dog/ä b"))
    assert mask.sum() == 8 and (mask[1:3, 1:3] == 2).all()


@pytest.mark.parametrize("name", ["1.png", "bird/1.png", "new.png", "2.gif", "cat/2.gif"])
def test_ambiguous_and_unknown_names_are_refused(name: str, run: Run, tmp_path: Path) -> None:
    """Two images are called 1.png or 2, no folder is called bird, and new.png is a validation image."""
    (tmp_path / "a.json").write_text(json.dumps(coco([name])))
    message = rf"a\.json: no mask belongs to a training image \(got {name}, for example\), expected names like"
    with pytest.raises(DataError, match=message):
        import_masks(tmp_path / "a.json", run.root, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_masks_of_other_images_are_left_out_and_counted(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = coco(["new.png", "dog/ä b.png", "cat/1.png"])
    content["annotations"].pop()
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert import_masks(tmp_path / "a.json", run.root, tmp_path / "back").corrected == 2
    assert "masks left out because they belong to no training image: 1, the first is new.png" in caplog.text
    assert "images without annotations: 1; their masks are all background" in caplog.text
    assert not read_mask_file(mask_file(tmp_path / "back", "cat/1")).any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (coco(["dog/ä b.png"], "horse"), r"a\.json: unknown categories horse, expected only cat, dog"),
        (coco(["dog/ä b.png"], segmentation=[]), r"a\.json: an annotation of dog/ä b\.png is only a box"),
        (coco(["dog/ä b.png", "ä b.png"]), r"a\.json: dog/ä b\.png and ä b\.png are both masks of .*ä b\.png"),
        (coco(["dog/turned.jpg"]), r"turned\.jpg: the mask has 8 x 6 pixels, expected 6 x 8 as in its image"),
        ({"images": []}, r"a\.json: no list 'categories'"),
    ],
    ids=["category", "box", "twice", "size", "json"],
)
def test_wrong_instances_are_named(content: Any, message: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        import_masks(tmp_path / "a.json", run.root, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_wrong_folders_are_named(run: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file or folder, expected a COCO JSON"):
        import_masks(tmp_path / "nowhere", run.root, tmp_path / "back")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no mask belongs to a training image \(it is empty\)"):
        import_masks(tmp_path / "empty", run.root, tmp_path / "back")
    Image.new("L", (8, 6), 9).save(tmp_path / "empty" / "ä b.png")
    with pytest.raises(DataError, match=r"ä b\.png: unknown ids 9 in the mask"):
        import_masks(tmp_path / "empty", run.root, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_nothing_is_overwritten_without_force(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(coco(["dog/ä b.png"])))
    import_masks(tmp_path / "a.json", run.root, tmp_path / "back")
    with pytest.raises(DataError, match=r"back: exists; choose another --out or --force"):
        import_masks(tmp_path / "a.json", run.root, tmp_path / "back")
    (tmp_path / "a.json").write_text(json.dumps(coco(["cat/1.png"])))
    import_masks(tmp_path / "a.json", run.root, tmp_path / "back", force=True)
    assert mask_file(tmp_path / "back", "cat/1").exists() and not mask_file(tmp_path / "back", "dog/ä b").exists()
