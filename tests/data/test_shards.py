import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tagseg.data.check import check_images
from tagseg.data.inspect import inspect
from tagseg.data.read import read_dataset
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings

SETTINGS = DataSettings(min_images=1)


def png(value: int = 0, mode: str = "L", size: tuple[int, int] = (4, 3)) -> bytes:
    packed = io.BytesIO()
    Image.new(mode, size, value).save(packed, "PNG")
    return packed.getvalue()


def tags(*names: str, **more: object) -> bytes:
    return json.dumps({"tags": names, **more}).encode()


def shard(path: Path, content: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path.parent


def test_a_key_has_tags_mask_and_saliency_map(tmp_path: Path) -> None:
    first = {"cat/1.png": png(), "cat/1.json": tags("cat", " dog "), "cat/1.mask.png": png(1), "info.json": b"{}"}
    shard(tmp_path / "000.tar", first)
    second = {"2.JPG": png(9), "2.saliency.png": png(255), "2.txt": b"dog\n", "2.xml": b"", "3.txt": b"a"}
    dataset = read_dataset(shard(tmp_path / "001.tar", second), SETTINGS)
    assert dataset.layout == "shards" and dataset.classes == ("cat", "dog")
    one, two = dataset.samples
    assert (one.id, one.tags, one.split, one.saliency) == ("cat/1", (1, 2), "train", None)
    assert one.mask is not None and str(one.mask).endswith("/cat/1.mask.png")
    assert (two.id, two.tags, two.mask, two.image.suffix) == ("2", (2,), None, ".JPG")
    assert two.saliency is not None
    assert dataset.notes == (
        "members that are neither images nor tags are left out: 1 .xml",
        "2 keys without an image are left out, first info",
    )
    assert check_images(dataset, SETTINGS).sizes == {"cat/1": (3, 4), "2": (3, 4)}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"1.txt": b"cat, dog"}, ("cat", "dog")),
        ({"1.txt": b"guinea pig\ncat\n\n"}, ("cat", "guinea pig")),
        ({"1.txt": b"cat dog"}, ("cat", "dog")),
        ({"1.cls": b" 7\n"}, ("7",)),
        ({"1.json": b'{"tags": "cat;dog"}', "1.txt": b"owl", "1.cls": b"3"}, ("cat", "dog")),
        ({"1.txt": b"owl", "1.cls": b"3"}, ("owl",)),
    ],
)
def test_where_tags_come_from(members: dict[str, bytes], expected: tuple[str, ...], tmp_path: Path) -> None:
    dataset = read_dataset(shard(tmp_path / "a.tar", {"1.png": png(), **members}), SETTINGS)
    assert dataset.classes == expected and dataset.samples[0].tags == tuple(range(1, len(expected) + 1))


def test_class_numbers_are_lines_of_classes_txt(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", {"1.png": png(), "1.cls": b"1", "2.png": png(), "2.cls": b"0"})
    (tmp_path / "classes.txt").write_text("owl\ncat\n")
    dataset = read_dataset(tmp_path, SETTINGS)
    assert dataset.classes == ("owl", "cat") and [sample.tags for sample in dataset.samples] == [(2,), (1,)]
    shard(tmp_path / "a.tar", {"1.png": png(), "1.cls": b"2"})
    with pytest.raises(
        DataError, match=r"a\.tar, 1: class '2' in its \.cls file, expected a number from 0 to 1 \(a line of"
    ):
        read_dataset(tmp_path, SETTINGS)


def test_splits_by_folder_by_name_and_by_json(tmp_path: Path) -> None:
    image = {"1.png": png(), "1.json": tags("cat")}
    shard(tmp_path / "a/train/x.tar", {"t.png": png(), "t.json": tags("cat")})
    shard(tmp_path / "a/val/x.tar", {"v.png": png()})
    shard(tmp_path / "b/things-train-000.tar", image)
    shard(tmp_path / "b/val-000.tar", {"2.png": png(), "2.json": tags("cat")})
    shard(
        tmp_path / "b/c.tar",
        {"3.png": png(), "3.json": tags(split="test"), "4.png": png(), "4.json": tags(split="val")},
    )
    splits = {sample.id: sample.split for sample in read_dataset(tmp_path / "a", SETTINGS).samples}
    assert splits == {"t": "train", "v": "val"}
    dataset = read_dataset(tmp_path / "b", SETTINGS)
    assert {sample.id: sample.split for sample in dataset.samples} == {"1": "train", "2": "val", "4": "val"}
    assert "1 images of the test split are left out" in str(dataset.ignored[0])


def test_a_key_in_two_shards_is_preceded_by_the_shard_name(tmp_path: Path) -> None:
    for name in ("000", "001"):
        shard(
            tmp_path / f"{name}.tar",
            {"1.png": png(), "1.txt": b"cat", f"own{name}.png": png(), f"own{name}.txt": b"cat"},
        )
    ids = [sample.id for sample in read_dataset(tmp_path, SETTINGS).samples]
    assert ids == ["000/1", "own000", "001/1", "own001"]


def test_masks_in_a_folder_next_to_the_shards_are_found(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", {"1.png": png(), "1.txt": b"cat"})
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/1.png").write_bytes(png(1))
    assert read_dataset(tmp_path, SETTINGS).samples[0].mask == tmp_path / "masks/1.png"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, r"a\.tar, 1: no tags, expected some in 1\.json, 1\.txt or 1\.cls"),
        ({"1.json": b"{}"}, r"a\.tar, 1: no tags"),
        ({"1.json": b'{"tags": [1]}'}, r"a\.tar, 1: got .* expected JSON with a list of names"),
        ({"1.json": b"[]"}, "expected JSON with a list of names"),
        ({"1.json": b"{"}, r"a\.tar, 1: not valid JSON"),
        ({"1.json": b"[" * 100_000}, r"a\.tar, 1: not valid JSON"),
        ({"1.json": tags("cat", split=["val"])}, "expected train, val, validation or test"),
        ({"1.cls": b"cat"}, "class 'cat' in its .cls file, expected a number"),
        ({"1.txt": b"\xff"}, "expected UTF-8 text"),
        ({"1.txt": b"cat " * 300_000}, "more than 1048576 bytes, expected the names of a few tags"),
        ({"1.jpg": b"", "1.txt": b"cat"}, r"a\.tar: 1\.png and 1\.jpg have the same key"),
        ({"1.TXT": b"cat", "1.txt": b"cat"}, r"1\.TXT and 1\.txt have the same key"),
    ],
)
def test_invalid_samples_are_named(members: dict[str, bytes], message: str, tmp_path: Path) -> None:
    root = shard(tmp_path / "a.tar", {"1.png": png(), **members})
    with pytest.raises(DataError, match=message):
        read_dataset(root, SETTINGS)


def test_compressed_shards_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"a\.tar\.gz: a compressed tar, .*read by their position"):
        read_dataset(tmp_path, SETTINGS)


def test_a_tar_next_to_folders_of_images_is_not_a_shard(tmp_path: Path) -> None:
    shard(tmp_path / "all.tar", {"1.png": png(), "1.txt": b"cat"})
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/1.png").write_bytes(png())
    assert read_dataset(tmp_path, SETTINGS).layout == "folder"
    assert read_dataset(tmp_path, DataSettings(layout="shards", min_images=1)).samples[0].id == "1"


def test_broken_and_duplicate_images_in_shards_are_found(tmp_path: Path) -> None:
    content = {"1.png": png(), "1.txt": b"cat", "2.png": png(), "2.txt": b"cat", "3.png": b"broken", "3.txt": b"cat"}
    found = inspect(read_dataset(shard(tmp_path / "a.tar", content), SETTINGS), SETTINGS)
    assert [path.rpartition("/")[2] for path, _ in found.broken] == ["3.png"]
    assert [{path.rpartition("/")[2] for path in group} for group in found.duplicates] == [{"1.png", "2.png"}]
    assert all(path.startswith("a.tar/") for path, _ in found.broken)


def test_names_too_long_for_a_mask_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    for name in ("b" * 252, "x/" * 1000 + "a"):
        shard(tmp_path / "a.tar", {f"{name}.png": png(), f"{name}.json": b'{"tags": ["cat"]}'})
        with pytest.raises(DataError, match=r"must have at most 251 bytes in each folder and 2000 in all"):
            read_dataset(tmp_path, DataSettings(min_images=1))
