"""What annotation tools hand out comes back as the masks that went out."""

import base64
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tagseg.data.images import read_mask_file
from tagseg.errors import DataError
from tagseg.export.formats import export
from tagseg.export.regions import regions
from tagseg.importing.import_masks import import_masks
from tagseg.masks.mask_files import mask_file
from tagseg.run.folder import Run
from tagseg.settings.export import ExportSettings

IDS = ("cat/1", "cat/2.jpg", "cat/2.png", "dog/1", "dog/ä b", "dog/turned")
NAMES = {"cat/1": "cat/1.png", "dog/1": "dog/1.png", "dog/ä b": "dog/ä b.png", "dog/turned": "dog/turned.jpg"}
Make = Callable[[Run, Path], Path]


def tasks(run: Run, folder: Path, **settings: Any) -> list[dict[str, Any]]:
    """Return tasks as Label Studio exports them after the predictions were submitted unchanged."""
    export(run.root, "labelstudio", folder / "tasks", settings=ExportSettings(**settings))
    found = json.loads((folder / "tasks/tasks.json").read_text(encoding="utf-8"))
    return [
        {"id": number, "data": task["data"], "file_upload": None, "predictions": [],
         "annotations": [{"id": number, "was_cancelled": False, "result": task["predictions"][0]["result"]}]}
        for number, task in enumerate(found, 1)
    ]  # fmt: skip


def label_studio_json(run: Run, folder: Path) -> Path:
    (folder / "project.json").write_text(json.dumps(tasks(run, folder, parts=True)))
    return folder / "project.json"


def label_studio_min(run: Run, folder: Path) -> Path:
    lines = []
    for task in tasks(run, folder):
        (annotation,) = task["annotations"]
        sizes = ("original_width", "original_height")
        shapes = [one["value"] | {key: one[key] for key in sizes} for one in annotation["result"]]
        early = {"id": task["id"], "annotation_id": 0, "annotator": 1, "image": task["data"]["image"], "masks": []}
        lines += [early, early | {"annotation_id": 1, "masks": shapes}]
    (folder / "min.json").write_text(json.dumps(lines))
    return folder / "min.json"


def cvat_brush(run: Run, folder: Path) -> Path:
    """CVAT's COCO export of brush strokes: crowds with plain run lengths, in a ZIP file."""
    export(run.root, "coco", folder / "coco")
    content = json.loads((folder / "coco/annotations/instances_train.json").read_text(encoding="utf-8"))
    content["info"] = {"description": ""}
    for entry in content["annotations"]:
        entry["iscrowd"] = 1
    with zipfile.ZipFile(folder / "coco.zip", "w") as archive:
        archive.writestr("annotations/instances_default.json", json.dumps(content))
        archive.writestr("__MACOSX/annotations/._instances_default.json", b"\0\5\26\7")
    return folder / "coco.zip"


def cvat_images(run: Run, folder: Path) -> Path:
    """CVAT for images 1.1, in a ZIP file in a folder."""
    lines = []
    for name in IDS:
        mask = read_mask_file(mask_file(run.decided_masks, name))
        shapes = []
        for region in regions(mask):
            left, top, width, height = region.box()
            flat = region.pixels().ravel()
            edges = np.r_[0, np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size]
            runs = ([0] if flat[0] else []) + np.diff(edges).tolist()
            shapes.append(
                f'<mask label="{("cat", "dog")[region.class_id - 1]}" rle="{", ".join(map(str, runs))}" left="{left}" '
                f'top="{top}" width="{width}" height="{height}" z_order="0"/>'
            )
        full = NAMES.get(name, name)
        size = f'width="{mask.shape[1]}" height="{mask.shape[0]}"'
        lines.append(f'<image id="0" name="{full}" {size}>{"".join(shapes)}</image>')
    (folder / "annotations.xml").write_text(f"<annotations>{''.join(lines)}</annotations>", encoding="utf-8")
    return folder / "annotations.xml"


def labelme(run: Run, folder: Path) -> Path:
    """LabelMe's files, one per image, with masks as PNGs inside."""
    for name in IDS:
        mask = read_mask_file(mask_file(run.decided_masks, name))
        shapes = []
        for region in regions(mask):
            left, top, width, height = region.box()
            file = io.BytesIO()
            Image.fromarray(region.pixels().astype(np.uint8) * 255).save(file, "PNG")
            shapes.append({
                "label": ("cat", "dog")[region.class_id - 1], "shape_type": "mask",
                "points": [[left, top], [left + width - 1, top + height - 1]],
                "mask": base64.b64encode(file.getvalue()).decode(),
            })  # fmt: skip
        path = folder / "labelme" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = {"imageHeight": mask.shape[0], "imageWidth": mask.shape[1]}
        full = NAMES.get(name, name)
        path.write_text(json.dumps({"imagePath": f"..\\..\\{full}", "shapes": shapes, **size}), encoding="utf-8")
    return folder / "labelme"


def pngs_in_a_folder(run: Run, folder: Path) -> Path:
    """A devkit in a ZIP file, one folder down, as RGB."""
    with zipfile.ZipFile(folder / "voc.zip", "w") as archive:
        for name in IDS:
            with Image.open(mask_file(run.decided_masks, name)) as mask:
                file = io.BytesIO()
                mask.convert("RGB").save(file, "PNG")
            archive.writestr(f"task/SegmentationClass/{name}.png", file.getvalue())
            archive.writestr(f"task/SegmentationObject/{name}.png", b"not read")
        archive.writestr("task/labelmap.txt", "dog:0,128,0::\nbackground:0,0,0::\ncat:128,0,0::\n")
    return folder / "voc.zip"


def labelme_without_sizes(run: Run, folder: Path) -> Path:
    """LabelMe's files as old versions wrote them."""
    for file in labelme(run, folder).glob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(content | {"imageHeight": None, "imageWidth": None}), encoding="utf-8")
    return folder / "labelme"


@pytest.mark.parametrize(
    "make",
    [label_studio_json, label_studio_min, cvat_brush, cvat_images, labelme, labelme_without_sizes, pngs_in_a_folder],
)
def test_masks_come_back_exactly(make: Make, run: Run, tmp_path: Path) -> None:
    assert import_masks(make(run, tmp_path), run.root, tmp_path / "back").corrected == len(IDS)
    for name in IDS:
        back, out = (read_mask_file(mask_file(folder, name)) for folder in (tmp_path / "back", run.decided_masks))
        assert np.array_equal(back, out), name


def test_only_submitted_tasks_count_and_the_truth_or_the_latest(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = tasks(run, tmp_path)
    shape = found[0]["annotations"][0]["result"]
    found[1]["annotations"] = []
    found[2]["annotations"][0]["was_cancelled"] = True
    found[3]["annotations"] += [{"id": 99, "result": []}]
    found[4]["annotations"] = [{"id": 1, "ground_truth": True, "result": shape}, {"id": 2, "result": []}]
    (tmp_path / "a.json").write_text(json.dumps(found))
    assert import_masks(tmp_path / "a.json", run.root, tmp_path / "back").corrected == 4
    assert not read_mask_file(mask_file(tmp_path / "back", "dog/1")).any()
    assert read_mask_file(mask_file(tmp_path / "back", "dog/ä b")).any()
    assert "tasks without a submitted annotation are left out: 2" in caplog.text
    assert "tasks with several annotations: 2" in caplog.text


def test_polygons_of_label_studio_are_in_percent(run: Run, tmp_path: Path) -> None:
    square = {"points": [[25, 50], [75, 50], [75, 100], [25, 100]], "polygonlabels": ["dog"]}
    result = [{"id": "a", "type": "polygonlabels", "original_width": 8, "original_height": 6, "value": square}]
    task = {"data": {"image": "/data/upload/3/0a1b2c3d-ä_b.png"}, "annotations": [{"id": 1, "result": result}]}
    (tmp_path / "a.json").write_text(json.dumps([task]))
    import_masks(tmp_path / "a.json", run.root, tmp_path / "back")
    mask = read_mask_file(mask_file(tmp_path / "back", "dog/ä b"))
    assert (mask[3:, 2:6] == 2).all() and mask.sum() == 24


def refused(source: Path, run: Run, message: str) -> None:
    with pytest.raises(DataError, match=message):
        import_masks(source, run.root, source.parent / "back")
    assert not (source.parent / "back").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rle", [1, 2], "task 1: a region cannot be drawn"),
        ("rle", [300], "task 1: .* bytes, 0 to 255"),
        ("brushlabels", ["cow"], "the labels .'cow'.*cat"),
        ("brushlabels", [], "task 1: a region has no label"),
        ("image_rotation", 90, "the image was rotated"),
        ("original_width", 9, "the mask has 9 x 6 pixels"),
        ("rectanglelabels", ["cat"], "has no mask"),
    ],
)
def test_what_label_studio_lacks_is_named(key: str, value: Any, message: str, run: Run, tmp_path: Path) -> None:
    (task,) = tasks(run, tmp_path)[:1]
    region = task["annotations"][0]["result"][0]
    (region if key in region else region["value"])[key] = value
    (tmp_path / "a.json").write_text(json.dumps([task]))
    refused(tmp_path / "a.json", run, message)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [([], "none of its 1 tasks has a submitted"), ([{"id": 1, "result": []}], "none of its 1 masks shows a class")],
)
def test_tasks_that_nobody_annotated_are_refused(annotations: Any, message: str, run: Run, tmp_path: Path) -> None:
    (task,) = tasks(run, tmp_path)[:1]
    (tmp_path / "a.json").write_text(json.dumps([task | {"annotations": annotations}]))
    refused(tmp_path / "a.json", run, message)


def test_label_studios_pngs_name_the_export_to_take(run: Run, tmp_path: Path) -> None:
    (tmp_path / "png").mkdir()
    Image.new("L", (8, 6)).save(tmp_path / "png/task-1-annotation-1-by-1-masks-cat-0.png")
    refused(tmp_path / "png", run, r"Label Studio's export .*does not say which image.*choose \"JSON\"")


def test_archives_and_folders_that_cannot_be_read_are_named(run: Run, tmp_path: Path) -> None:
    for name in ("a.7z", "a.zip", "b.tar.gz"):
        (tmp_path / name).write_bytes(b"not an archive")
        refused(tmp_path / name, run, "unpack it, then import the folder")
    (tmp_path / "jpg").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "jpg/1.jpg")
    refused(tmp_path / "jpg", run, r"only other files: 1 \.jpg.*Masks must be PNGs: JPEG changes")
    (tmp_path / "labels.txt").write_text("0 1 1 2 2")
    refused(tmp_path / "labels.txt", run, r"labels\.txt: got a \.txt file, expected a COCO JSON")


def test_masks_that_are_all_void_are_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.full((6, 8), 255, np.uint8)).save(tmp_path / "masks/ä b.png")
    (tmp_path / "masks/classes.json").write_text(json.dumps({"0": "background", "1": "cat"}))
    refused(tmp_path / "masks", run, r"none of its 1 masks shows a class, all pixels are background or void \(255\)")


def test_classes_that_the_images_are_not_tagged_with_are_counted(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when two classes are swapped."""
    (tmp_path / "masks").mkdir()
    for name, value in (("ä b", 1), ("turned", 2)):
        size = (8, 6) if name == "turned" else (6, 8)
        Image.fromarray(np.full(size, value, np.uint8)).save(tmp_path / f"masks/{name}.png")
    import_masks(tmp_path / "masks", run.root, tmp_path / "back")
    assert "classes their images are not tagged with: 1 of 2, the first is dog/ä b" in caplog.text


def test_values_that_mostly_mean_other_classes_are_refused_unless_they_have_names(run: Run, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for name, size in (("ä b", (6, 8)), ("turned", (8, 6))):
        Image.fromarray(np.full(size, 1, np.uint8)).save(tmp_path / f"masks/{name}.png")
    refused(tmp_path / "masks", run, r"2 of 2 masks show none of their images' tags, the first is dog/.*classes\.json")
    (tmp_path / "masks/classes.json").write_text(json.dumps({"0": "background", "1": "cat"}))
    assert import_masks(tmp_path / "masks", run.root, tmp_path / "back").corrected == 2
