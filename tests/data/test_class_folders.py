"""Splits and junk are never classes, and what is not used is counted and named."""

from pathlib import Path

import pytest
from PIL import Image

from tagseg.data.check import check_images
from tagseg.data.hints import tag_notes, tag_warnings
from tagseg.data.read import read_dataset
from tagseg.data.records import Dataset, Sample
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings

SETTINGS = DataSettings(min_images=1)


def read(root: Path, *names: str, **settings: object) -> Dataset:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3)).save(root / name, "PNG")
    return read_dataset(root, DataSettings(min_images=1, **settings))  # type: ignore[arg-type]


def counts(dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """Return the number of images with each class, in train and in val."""
    numbered = enumerate(dataset.classes, 1)
    return {
        name: tuple(sum(i in one.tags for one in dataset.split(s)) for s in ("train", "val")) for i, name in numbered
    }


def test_classes_that_are_scores_are_hinted(tmp_path: Path) -> None:
    rows = ["cat;0.9", "dog(0.8)", "cat;80 %", "k9;17", "cat;1.5"]
    (tmp_path / "tags.csv").write_text("image,tags\n" + "".join(f"{i}.png,{row}\n" for i, row in enumerate(rows)))
    scores, _ = tag_warnings(read(tmp_path, *(f"{i}.png" for i in range(len(rows)))))
    assert scores.startswith("classes look like scores of a classifier: 0.9, 80 %, dog(0.8); write them as cat:0.9")


@pytest.mark.parametrize(
    "splits",
    [
        ("train", "valid", "test"),
        ("Train", "Val", "Testing"),
        ("training", "validation", "testing"),
        ("images/train", "images/val", "images/test"),
    ],
)
@pytest.mark.parametrize("below", ["", "archive/"])
def test_splits_are_never_classes(splits: tuple[str, ...], below: str, tmp_path: Path) -> None:
    names = [f"{below}{split}/{name}/{i}.png" for split in splits for name in ("cat", "dog") for i in range(2)]
    dataset = read(tmp_path, *names)
    assert counts(dataset) == {"cat": (2, 2), "dog": (2, 2)}
    assert [(one.count, one.expected) for one in dataset.ignored] == [(4, True)]


def test_folders_beside_splits_and_a_class_called_train(tmp_path: Path) -> None:
    names = [f"{split}/{name}/1.png" for split in ("train", "test", "docs") for name in ("cat", "dog")]
    dataset = read(tmp_path / "splits", *names)
    assert counts(dataset) == {"cat": (1, 0), "dog": (1, 0)}
    assert "2 files in folders that are not classes (docs/cat/1.png, docs/dog/1.png)" in map(str, dataset.ignored)
    assert set(counts(read(tmp_path / "vehicles", "bus/1.png", "train/1.png"))) == {"bus", "train"}


def test_junk_masks_and_unread_formats_are_counted(tmp_path: Path) -> None:
    read(tmp_path, "cat/1.png", "cat/2.JFIF", "dog/1.png", "dog/1_mask.png", "SegmentationClass/1.png", "loose.png")
    left = ("cat/._1.png", "__MACOSX/cat/._1.png", "cat/@eaDir/1.jpg", "dog/Thumbs.db", "dog/.ipynb_checkpoints/1.jpg")
    for name in (*left, "dog/3.psd", "annotations/1.json", "cat/film.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    dataset = read_dataset(tmp_path, SETTINGS)
    assert counts(dataset) == {"cat": (2, 0), "dog": (1, 0)} and check_images(dataset, SETTINGS).broken == ()
    found = {one.reason: (one.count, one.expected) for one in dataset.ignored}
    assert found == {
        "images outside the folders of classes": (1, False),
        "files in folders that are not classes": (2, True),
        "masks beside photographs (NAME_mask) are not photographs": (1, False),
        ".psd files are not read: convert them to PNG": (1, False),
        "other files are not images": (1, True),
        "files of an operating system or tool are skipped": (5, True),
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("JPEGImages/1.png", "SegmentationClass/1.png"), "has JPEGImages but no ImageSets; put the names"),
        (("cat/1.png", "background/1.png"), "the tag 'background' may be a class, .*--data.negatives=background"),
    ],
)
def test_folders_that_are_no_classes_are_refused(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, *names)


def test_words_for_nothing_are_negatives_or_classes_as_the_settings_say(tmp_path: Path) -> None:
    (tmp_path / "tags.csv").parent.mkdir(exist_ok=True)
    (tmp_path / "tags.csv").write_text("image,tags\n0.png,cat\n1.png,N/A\n2.png,good\n3.png,Cats\n")
    names = [f"{i}.png" for i in range(4)]
    with pytest.raises(DataError, match=r"the tag 'N/A' .*--data\.negatives=N/A,good .*found: N/A, good"):
        read(tmp_path, *names)
    assert set(counts(read(tmp_path, negatives=""))) == {"Cats", "N/A", "cat", "good"}
    dataset = read(tmp_path, negatives="n/a,GOOD", rename="Cats=cat")
    assert counts(dataset) == {"cat": (2, 0)} and [sample.tags for sample in dataset.samples] == [(1,), (), (), (1,)]
    assert tag_notes(dataset) == (
        "2 of 4 training images have no tag: they are photographs that show none of the classes",
    )
    with pytest.raises(DataError, match=r"setting data\.rename: 'fox' is not a class, expected one of Cats, N/A"):
        read(tmp_path, rename="fox=cat")


def test_twins_numbers_and_classes_in_every_image_are_hinted(tmp_path: Path) -> None:
    rows = ["cat", "cat Cats", "cat hot-dog", "cat hotdog", "cat bus", "cat glass", "cat 7"]
    (tmp_path / "tags.csv").write_text("image,tags\n" + "".join(f"{i}.png,{row}\n" for i, row in enumerate(rows)))
    every, case, hyphen, number = tag_warnings(read(tmp_path, *(f"{i}.png" for i in range(len(rows)))))
    assert every.startswith("cat is in every training image")
    assert case == "cat and Cats may be one class; to merge them: --data.rename 'Cats=cat'"
    assert hyphen.startswith("hot-dog and hotdog may be one class") and number.startswith("classes are called 7: if")


@pytest.mark.parametrize(
    "splits",
    [
        ("training_set/training_set", "test_set/test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("trainval", "test"),
        ("train2017", "test2017"),
        ("train_images", "test-images"),
        ("birds_train", "birds_test"),
    ],
)
def test_folders_of_public_data_sets_are_splits(splits: tuple[str, ...], tmp_path: Path) -> None:
    names = [f"{split}/{name}/1.png" for split in splits for name in ("cat", "dog")]
    assert counts(read(tmp_path, *names, "seg_pred/seg_pred/1.png")) == {"cat": (1, 0), "dog": (1, 0)}


def test_splits_may_be_inside_classes_and_other_folders_belong_to_them(tmp_path: Path) -> None:
    inside = [f"{name}/{split}/{split}.png" for name in ("cat", "dog") for split in ("train", "val")]
    assert counts(read(tmp_path / "splits", *inside)) == {"cat": (1, 1), "dog": (1, 1)}
    dataset = read(tmp_path / "folders", "animal/cat/1.png", "animal/dog/1.png", "car/1.png")
    assert counts(dataset) == {"animal": (2, 0), "car": (1, 0)}
    assert dataset.notes == ("folders inside the folder of a class belong to that class (in animal)",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train/1.png", "valid/2.png", "test/3.png"), "test and train and valid must hold one folder per class"),
        (("train/images/1.png", "train/labels/1.txt", "val/images/2.png"), "train/images and val/images must hold one"),
        (("train/image_2/1.png", "train/semantic/1.png"), "train/image_2 must hold one folder per class"),
        (("leftImg8bit/train/1.png", "gtFine/train/1.png"), "leftImg8bit/train must hold one folder per class"),
        (("bounding_box_train/1.png", "bounding_box_test/1.png"), "bounding_box_test and bounding_box_train must"),
        (("images/1.png", "masks/1.png"), "images must hold one folder per class, .*found images without tags. Write"),
        (
            ("images/train/1.png", "images/val/2.png", "labels/train/1.txt"),
            "images/train and images/val must .* that are not known to give tags: labels/train/1.txt. Write the tags",
        ),
        (("dataset/1.png", "dataset/_annotations.train.jsonl"), "dataset must hold .*: dataset/_annotations"),
    ],
)
def test_images_without_tags_are_not_a_class(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, *names)


def test_classes_in_every_image_share_one_warning_where_there_are_many(tmp_path: Path) -> None:
    samples = (Sample("a", tmp_path / "a.png", tuple(range(1, 255))),)
    dataset = Dataset(tmp_path, "folder", tuple(f"c{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(254)), samples)
    (warning,) = tag_warnings(dataset)
    assert warning.startswith("254 classes are in every training image (caa, cab, cac, cad, cae, ...): what they look")
