import dataclasses
import io
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tagseg.data import listing as manifest
from tagseg.data import read
from tagseg.data.listing import manifest_file, state_of
from tagseg.data.read import read_dataset
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings

SETTINGS = DataSettings(min_images=1)


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep manifests of the smallest folders, whenever they changed, in a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(manifest, "WORTHWHILE", 1)
    monkeypatch.setattr(manifest, "SETTLED_S", -1.0)
    monkeypatch.setattr(manifest, "_CHUNK", 2)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that grows by a data folder whenever one is really read."""
    done: list[Path] = []
    really = read._read

    def counted(root: Path, settings: DataSettings):  # type: ignore[no-untyped-def]
        done.append(root)
        return really(root, settings)

    monkeypatch.setattr(read, "_read", counted)
    return done


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder of five images, one for validation, one with mask and saliency map, and odd names."""
    root = tmp_path / "data"
    names = ["images/a.jpg", "images/sub/b c.png", "images/日本.png", "images/x.png", "images/x.jpg"]
    for name in (*names, "masks/a.png", "saliency/sub/b c.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    rows = [f"{name.removeprefix('images/')},cat{'|dog' * (i % 2)},{'val' * (i == 3)}" for i, name in enumerate(names)]
    (root / "tags.csv").write_text("\n".join(["image,tags,split", *rows]) + "\n")
    return root


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    root = tmp_path / "shards"
    root.mkdir()
    shard(root / "0.tar", "1", b"cat")
    return root


def shard(path: Path, key: str, tags: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in ((f"{key}.jpg", b"image"), (f"{key}.txt", tags)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_what_is_kept_is_what_was_read(data: Path, shards: Path, readings: list[Path]) -> None:
    for root in (data, shards):
        plain = read_dataset(root, SETTINGS)
        first, again = read_dataset(root, SETTINGS, cache=True), read_dataset(root, SETTINGS, cache=True)
        assert first == again == plain and len(plain.samples) in (1, 5)
        assert {type(sample.image) for sample in again.samples} == {type(data)}
    assert readings == [data, data, shards, shards]
    one = read_dataset(data, SETTINGS, cache=True).samples
    assert one[0].mask == data / "masks/a.png" and one[1].saliency == data / "saliency/sub/b c.jpg"
    assert one[3].split == "val" and one[0].tags is one[2].tags


def test_nothing_is_kept_where_it_is_not_asked_for(data: Path, tmp_path: Path, readings: list[Path]) -> None:
    read_dataset(data, SETTINGS)
    read_dataset(data, SETTINGS)
    assert not (tmp_path / "cache").exists() and len(readings) == 2


def test_nothing_is_written_beside_the_data(data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (data, *data.rglob("*"))}
    read_dataset(data, SETTINGS, cache=True)
    assert {path: path.stat().st_mtime_ns for path in (data, *data.rglob("*"))} == before


def tags_changed(root: Path) -> None:
    (root / "tags.csv").write_text((root / "tags.csv").read_text().replace("a.jpg,cat,", "a.jpg,dog,"))


def tags_changed_unseen(root: Path) -> None:
    # The same length and the same time of change, as `cp --preserve` or an editor may leave them.
    status = (root / "tags.csv").stat()
    tags_changed(root)
    os.utime(root / "tags.csv", ns=(status.st_atime_ns, status.st_mtime_ns))


def image_removed(root: Path) -> None:
    (root / "images/sub/b c.png").unlink()


def image_renamed(root: Path) -> None:
    (root / "images/a.jpg").rename(root / "images/b.jpg")


def image_added(root: Path) -> None:
    (root / "images/sub/new.png").touch()


def mask_added(root: Path) -> None:
    (root / "masks/x.png").touch()


def classes_listed(root: Path) -> None:
    (root / "classes.txt").write_text("dog\ncat\n")


def folder_of_voc(root: Path) -> None:
    for name in ("JPEGImages", "ImageSets"):
        (root / name).mkdir()


CHANGES = (tags_changed, tags_changed_unseen, image_removed, image_renamed, image_added, mask_added, classes_listed)


@pytest.mark.parametrize("change", [*CHANGES, folder_of_voc])
def test_a_change_is_noticed(change: Callable[[Path], None], data: Path, readings: list[Path]) -> None:
    read_dataset(data, SETTINGS, cache=True)
    change(data)
    outcomes = []
    for cache in (False, True):
        try:
            outcomes.append(read_dataset(data, SETTINGS, cache=cache))
        except DataError as error:
            outcomes.append(str(error))  # type: ignore[arg-type]
    assert outcomes[0] == outcomes[1] and len(readings) == 3


def test_a_change_of_shards_is_noticed(shards: Path, readings: list[Path]) -> None:
    assert read_dataset(shards, SETTINGS, cache=True).classes == ("cat",)
    shard(shards / "0.tar", "1", b"owl")
    assert read_dataset(shards, SETTINGS, cache=True).classes == ("owl",)
    shard(shards / "1.tar", "2", b"cat")
    assert read_dataset(shards, SETTINGS, cache=True).classes == ("cat", "owl")
    assert len(readings) == 3
    read_dataset(shards, SETTINGS, cache=True)
    assert len(readings) == 3


def test_an_image_overwritten_in_place_is_not_noticed(data: Path, readings: list[Path]) -> None:
    read_dataset(data, SETTINGS, cache=True)
    (data / "images/a.jpg").write_bytes(b"other pixels")
    read_dataset(data, SETTINGS, cache=True)
    assert len(readings) == 1


def test_a_folder_of_masks_elsewhere_is_watched_too(data: Path, tmp_path: Path, readings: list[Path]) -> None:
    settings = dataclasses.replace(SETTINGS, masks=str(tmp_path / "drawn"))
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn/a.png").touch()
    first = read_dataset(data, settings, cache=True)
    assert first.samples[0].mask == tmp_path / "drawn/a.png" and read_dataset(data, settings, cache=True) == first
    assert len(readings) == 1
    (tmp_path / "drawn/a.png").unlink()
    assert read_dataset(data, settings, cache=True).samples[0].mask is None
    # Another folder of masks is another manifest; how many images a class needs is asked of every one.
    assert read_dataset(data, SETTINGS, cache=True).samples[0].mask == data / "masks/a.png"
    with pytest.raises(DataError, match="dog has 1, expected at least 2"):
        read_dataset(data, DataSettings(min_images=2), cache=True)
    assert len(readings) == 3


def test_what_changed_just_now_or_lies_behind_a_link_is_not_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert state_of(data, SETTINGS) is not None
    monkeypatch.setattr(manifest, "SETTLED_S", 60.0)
    assert state_of(data, SETTINGS) is None
    monkeypatch.setattr(manifest, "SETTLED_S", -1.0)
    (data / "here").symlink_to(data / "images")
    assert state_of(data, SETTINGS) is not None
    (tmp_path / "elsewhere").mkdir()
    (data / "there").symlink_to(tmp_path / "elsewhere")
    assert state_of(data, SETTINGS) is None
    read_dataset(data, SETTINGS, cache=True)
    assert not manifest_file(data, SETTINGS).exists()


def test_small_sets_are_not_kept(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "WORTHWHILE", 6)
    read_dataset(data, SETTINGS, cache=True)
    assert not manifest_file(data, SETTINGS).exists()
    monkeypatch.setattr(manifest, "WORTHWHILE", 5)
    read_dataset(data, SETTINGS, cache=True)
    assert manifest_file(data, SETTINGS).exists()


def rewritten(packed: bytes, pattern: bytes, other: bytes) -> bytes:
    changed, times = re.subn(pattern, other, manifest.gzip.decompress(packed), count=1)
    assert times == 1
    return manifest.gzip.compress(changed)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-30],
        lambda content: b"{}",
        lambda content: content[:40] + bytes(20) + content[60:],
        lambda content: manifest.gzip.compress(b"[]\n"),
        lambda content: manifest.gzip.compress(b"[" * 100_000),
        lambda content: rewritten(content, rb'"notes": \[', b'"note": ['),
        lambda content: rewritten(content, rb'"classes": \[.*?\]', b'"classes": 3'),
    ],
)
def test_a_damaged_manifest_is_read_anew(damage: Callable[[bytes], bytes], data: Path, readings: list[Path]) -> None:
    first = read_dataset(data, SETTINGS, cache=True)
    file = manifest_file(data, SETTINGS)
    file.write_bytes(damage(file.read_bytes()))
    assert read_dataset(data, SETTINGS, cache=True) == first and len(readings) == 2
    assert read_dataset(data, SETTINGS, cache=True) == first and len(readings) == 2


def test_a_cache_folder_that_cannot_be_written_is_no_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert read_dataset(data, SETTINGS, cache=True) == read_dataset(data, SETTINGS)
