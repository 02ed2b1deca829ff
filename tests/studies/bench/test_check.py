import dataclasses
import shutil
from pathlib import Path

import pytest

from tagseg.errors import DataError
from tagseg.settings.settings import Settings
from tagseg.studies.bench.check import check_data, fingerprint
from tagseg.studies.bench.protocols import PROTOCOLS, Protocol

HELLO = "b1946ac92492d2347c6235b4d2611184"
"""md5sum of the line hello."""


@pytest.fixture
def broken(voc: Path, tmp_path: Path) -> Path:
    """Return a copy of the stand-in for VOC that a test may change."""
    return shutil.copytree(voc, tmp_path / "VOC2012")


def test_a_fingerprint_depends_on_names_not_on_the_file() -> None:
    assert fingerprint(["hello"]) == HELLO == fingerprint([" hello\r\n"])
    assert fingerprint(["b", "a"]) == fingerprint(["a\r", "b "]) != fingerprint(["a"])


def test_complete_data_passes(voc: Path, small_voc: Protocol, quick: Settings) -> None:
    found = check_data(voc, small_voc, quick)
    found.require()
    assert [(one.name, one.images) for one in found.lists] == [("train_aug", 15), ("train", 5), ("val", 3), ("test", 2)]
    assert found.test == ("2008_000018", "2008_000019")
    assert found.notes == (
        "background is cut from the maps; the paper takes it from saliency maps in "
        f"{voc / 'saliency'} (setting masks.saliency)",
    )
    val = fingerprint(f"2008_0000{i}" for i in (17, 16, 15))
    assert f"| val | 3 | 3 | `{val}` |" in found.table() and found.to_dict()["val"] == {"images": 3, "md5": val}
    # A folder above the devkit will do as well.
    assert check_data(voc.parents[1], small_voc, quick).lists == found.lists


def test_lists_are_equal_whatever_their_line_ends(broken: Path, small_voc: Protocol, quick: Settings) -> None:
    before = check_data(broken, small_voc, quick).lists
    for file in (broken / "ImageSets/Segmentation").iterdir():
        lines = sorted(file.read_text().split(), reverse=True)
        file.write_bytes("\r\n".join(f"{line}  " for line in lines).encode())
    (broken / "ImageSets/Segmentation/train_aug.txt").rename(broken / "ImageSets/Segmentation/trainaug.txt")
    assert check_data(broken, small_voc, quick).lists == before


def test_other_counts_than_the_published_ones(voc: Path, quick: Settings) -> None:
    found = check_data(voc, PROTOCOLS["voc2012"], quick)
    assert found.faults == (
        "list train_aug: 15 images, expected 10,582",
        "list train: 5 images, expected 1,464",
        "list val: 3 images, expected 1,449",
        "list test: 2 images, expected 1,456",
        "3 classes are tagged, expected 20",
    )
    with pytest.raises(
        DataError, match=r"(?s)this is not the data of voc2012:.*list val: 3 images.*VOCtrainval_11-May-2012"
    ):
        found.require()


def test_missing_files_are_named_and_counted(broken: Path, small_voc: Protocol, quick: Settings) -> None:
    for i in range(7):
        (broken / f"JPEGImages/2008_{i:06}.jpg").unlink()
    (broken / "SegmentationClass/2008_000016.png").unlink()
    (broken / "JPEGImages/2008_000018.jpg").unlink()
    found = check_data(broken, small_voc, quick)
    assert found.faults == (
        f"7 of 18 images are missing in {broken / 'JPEGImages'}: 2008_000000.jpg, 2008_000001.jpg, 2008_000002.jpg, "
        "2008_000003.jpg, 2008_000004.jpg and 2 more",
        f"1 of 8 true masks are missing in {broken / 'SegmentationClass'}: 2008_000016.png",
    )
    assert found.test == () and found.notes == ("no submission for the test server: 1 of 2 test images are missing",)


def test_lists_that_overlap(broken: Path, small_voc: Protocol, quick: Settings) -> None:
    lists = broken / "ImageSets/Segmentation"
    names = (lists / "train_aug.txt").read_text().split()
    (lists / "train_aug.txt").write_text("\n".join([*names[1:], "2008_000015"]))
    found = check_data(broken, small_voc, quick)
    assert found.faults == (
        "1 images are in both val and the training list: 2008_000015",
        "1 of 5 images of train.txt are missing in the training list: 2008_000000",
    )


def test_a_list_given_by_the_settings_is_the_one_that_is_checked(
    broken: Path, small_voc: Protocol, quick: Settings
) -> None:
    lists = broken / "ImageSets/Segmentation"
    (lists / "few.txt").write_text((lists / "train_aug.txt").read_text().split("2008_000009")[0])
    few = dataclasses.replace(quick, data=dataclasses.replace(quick.data, train_list="few"))
    assert check_data(broken, small_voc, few).faults == ("list train_aug: 9 images, expected 15",)
    gone = dataclasses.replace(quick, data=dataclasses.replace(quick.data, val_list="mine"))
    with pytest.raises(DataError, match=r"setting data\.val-list: no list 'mine'"):
        check_data(broken, small_voc, gone)


def test_missing_tags(broken: Path, small_voc: Protocol, quick: Settings) -> None:
    (broken / "Annotations/2008_000003.xml").unlink()
    [fault] = check_data(broken, small_voc, quick).faults
    assert "2008_000003 has no tags in Annotations" in fault


def test_eps_needs_every_saliency_map(broken: Path, small_voc: Protocol, quick: Settings) -> None:
    eps = dataclasses.replace(quick, maps="eps", masks=dataclasses.replace(quick.masks, saliency=True))
    assert check_data(broken, small_voc, eps).faults == ()
    (broken / "saliency/2008_000004.png").unlink()
    [fault] = check_data(broken, small_voc, eps).faults
    assert fault == f"1 of 15 saliency maps are missing in {broken / 'saliency'}: 2008_000004.png"
    assert check_data(broken, small_voc, quick).faults == ()


@pytest.mark.parametrize("name", ["voc2012", "coco2014"])
def test_missing_data(name: str, tmp_path: Path, quick: Settings) -> None:
    protocol = PROTOCOLS[name]  # type: ignore[index]
    for root, message in (
        (tmp_path / "gone", "no such folder"),
        (tmp_path, "not a VOC devkit|train2014.json: missing"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            check_data(root, protocol, quick)
        assert protocol.get in str(caught.value) and "saliency/NAME.png" in str(caught.value)


def test_a_missing_list(broken: Path, small_voc: Protocol, quick: Settings) -> None:
    (broken / "ImageSets/Segmentation/train_aug.txt").unlink()
    with pytest.raises(DataError, match=r"(?s)no list train_aug or trainaug\.txt.*SBD"):
        check_data(broken, small_voc, quick)


def test_coco_counts_images_that_have_annotations(coco: Path, small_coco: Protocol, quick: Settings) -> None:
    found = check_data(coco, small_coco, quick)
    found.require()
    assert [(one.name, one.images) for one in found.lists] == [("train2014", 10), ("val2014", 3)]
    assert found.lists[1].md5 == fingerprint(f"COCO_val2014_{i:012}.jpg" for i in range(3))
    (said,) = (note for note in found.notes if "annotations are left out" in note)
    assert said.startswith("1 training images without annotations are left out (--data.coco-protocol) (")


def test_missing_coco_images(coco: Path, small_coco: Protocol, quick: Settings, tmp_path: Path) -> None:
    root = shutil.copytree(coco, tmp_path / "COCO")
    (root / "val2014/COCO_val2014_000000000001.jpg").unlink()
    faults = check_data(root, small_coco, quick).faults
    assert faults == (f"1 of 3 images are missing in {root / 'val2014'}: COCO_val2014_000000000001.jpg",)
