import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.errors import DataError, RunError
from tagseg.export.masks import MaskSet, Unsure, collect_masks, read_mask
from tagseg.masks.mask_files import mask_file, write_classes, write_mask
from tagseg.run.decisions import Decision, record_decision
from tagseg.run.folder import Run
from tagseg.settings.settings import Settings


def test_pseudo_masks_of_the_training_images(run: Run) -> None:
    kept, decided, dropped = (collect_masks(run, "pseudo", unsure) for unsure in ("void", "decided", "background"))
    assert [image.name for image in kept.images] == [
        *("cat/1.png", "cat/2.jpg", "cat/2.png", "dog/1.png", "dog/ä b.png", "dog/turned.jpg"),
    ]
    assert [image.id for image in kept.images][1:3] == ["cat/2.jpg", "cat/2.png"]
    assert (kept.classes, kept.subset, kept.images[3].tags) == (("cat", "dog"), "train", (2,))
    assert (kept.images[0].size, kept.images[5].size) == ((6, 8), (8, 6))  # after the EXIF orientation
    for one, two, three in zip(kept.images, decided.images, dropped.images, strict=True):
        mask = read_mask(kept, one)
        assert (mask == 255).sum() == 1 and mask.shape == one.size
        assert np.array_equal(read_mask(decided, two), np.where(mask == 255, 0, mask))
        assert np.array_equal(read_mask(dropped, three), read_mask(decided, two))


def test_masks_after_self_training(run: Run) -> None:
    before = [
        read_mask(found, found.images[3]) for found in (collect_masks(run, of, "void") for of in ("final", "pseudo"))
    ]
    assert np.array_equal(*before), "without self-training"
    run.settings_file.write_text(Settings.from_dict({"data": {"min_images": 1}, "segment": {"rounds": 3}}).to_toml())
    for number, value in ((1, 1), (2, 2)):
        write_mask(mask_file(run.round(number).masks, "dog/1"), np.full((6, 8), value, np.uint8))
        write_mask(mask_file(run.round(number).decided_masks, "dog/1"), np.full((6, 8), value - 1, np.uint8))
    kinds: tuple[tuple[Unsure, int], ...] = (("void", 2), ("decided", 1))
    for unsure, value in kinds:
        found = collect_masks(run, "final", unsure)
        assert [image.id for image in found.images] == ["dog/1"] and found.subset == "train"
        assert (read_mask(found, found.images[0]) == value).all()
    first = collect_masks(run, "pseudo", "void")
    assert np.array_equal(read_mask(first, first.images[3]), before[0])


def test_predictions_of_the_validation_images(run: Run) -> None:
    found = collect_masks(run, "predictions", "decided")
    assert [image.name for image in found.images] == ["new.png"] and found.subset == "val"
    assert (read_mask(found, found.images[0]) == 2).all()
    mask_file(run.predictions, "new").unlink()
    with pytest.raises(DataError, match="predictions: holds no mask of a validation image"):
        collect_masks(run, "predictions", "decided")


def test_a_folder_of_masks_of_the_run(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "drawn"
    write_mask(mask_file(folder, "dog/ä b"), np.full((6, 8), 9, np.uint8))
    (folder / "classes.json").write_text(json.dumps({"0": "background", "9": "dog"}))
    found = collect_masks(run, str(folder), "void")
    assert [image.id for image in found.images] == ["dog/ä b"] and found.subset == "default"
    assert (read_mask(found, found.images[0]) == 2).all()


def test_a_folder_of_masks_of_new_photos(run: Run, tmp_path: Path) -> None:
    photos, folder = tmp_path / "holiday", tmp_path / "predicted"
    (photos / "day 1").mkdir(parents=True)
    for name in ("day 1/a.jpg", "b.png", "no mask.png"):
        Image.new("RGB", (7, 5)).save(photos / name)
    for name in ("day 1/a", "b"):
        write_mask(mask_file(folder, name), np.ones((5, 7), np.uint8))
    write_classes(folder, ("cat", "dog"))
    found = collect_masks(run, str(folder), "decided", photos)
    assert sorted((image.id, image.name, image.size) for image in found.images) == [
        ("b", "b.png", (5, 7)), ("day 1/a", "day 1/a.jpg", (5, 7)),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"predicted: holds no mask of an image of the run; .* add --photos"):
        collect_masks(run, str(folder), "decided")
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        collect_masks(run, str(folder), "decided", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("of", "photos", "message"),
    [
        ("lunch", None, "--of lunch: no such folder, expected final, pseudo, predictions or a folder of masks"),
        ("pseudo", "photos", "--photos photos: requires --of FOLDER, got --of pseudo, whose images are the run's own"),
    ],
)
def test_wrong_flags_are_named(of: str, photos: str | None, message: str, run: Run) -> None:
    with pytest.raises(DataError, match=message):
        collect_masks(run, of, "void", None if photos is None else Path(photos))


def test_masks_that_are_not_made_yet(run: Run) -> None:
    manifest = json.loads(run.manifest_file.read_text())
    manifest["stages"] = {}
    run.manifest_file.write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="stage masks has not finished"):
        collect_masks(run, "pseudo", "void")
    with pytest.raises(RunError, match="stage evaluate has not finished"):
        collect_masks(run, "predictions", "void")


def test_small_parts_become_background(mask_set: Callable[..., MaskSet]) -> None:
    mask = np.array([[1, 1, 0, 2, 255], [0, 0, 1, 0, 0], [3, 0, 0, 0, 3]], np.uint8)
    for min_part, wanted in (
        (0, mask),
        (1, mask),
        (2, np.array([[1, 1, 0, 0, 255], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])),
        (4, np.array([[0, 0, 0, 0, 255], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])),
    ):
        found = mask_set({"a": mask}, min_part=min_part)
        assert np.array_equal(read_mask(found, found.images[0]), wanted)


def test_wrong_masks_are_named(mask_set: Callable[..., MaskSet]) -> None:
    void = mask_set({"a": np.full((3, 4), 255, np.uint8)}, unsure="decided")
    with pytest.raises(DataError, match=r"0\.png: has unsure pixels \(255\), expected none; choose --unsure void or"):
        read_mask(void, void.images[0])
    strange = mask_set({"a": np.full((3, 4), 9, np.uint8)})
    with pytest.raises(DataError, match=r"0\.png: unknown ids 9 in the mask"):
        read_mask(strange, strange.images[0])


def test_decisions_about_masks_are_exported(run: Run) -> None:
    drawn = np.full((6, 8), 2, np.uint8), np.full((6, 8), 255, np.uint8)
    record_decision(run, "cat/1", Decision("accepted"), drawn)
    record_decision(run, "dog/1", Decision("rejected"))
    found = collect_masks(run, "pseudo", "decided")
    assert [image.id for image in found.images] == ["cat/1", "cat/2.jpg", "cat/2.png", "dog/ä b", "dog/turned"]
    assert (read_mask(found, found.images[0]) == 2).all() and (read_mask(found, found.images[1]) != 2).all()
    unsure = collect_masks(run, "pseudo", "void")
    assert (read_mask(unsure, unsure.images[0]) == 255).all()
    for name in ("cat/1", "cat/2.jpg", "cat/2.png", "dog/ä b", "dog/turned"):
        record_decision(run, name, Decision("rejected"))
    with pytest.raises(DataError, match="all training images were rejected"):
        collect_masks(run, "pseudo", "decided")
