import io
import tarfile
from pathlib import Path

import pytest

from tagseg.errors import DataError
from tagseg.prediction.find_images import find_images


def files(root: Path, *names: str) -> list[Path]:
    paths = [root / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return paths


def test_a_folder_is_searched_with_its_subfolders(tmp_path: Path) -> None:
    one, two, png, jpg = files(tmp_path, "a b.jpg", "sub/deep/日本.WEBP", "x/same.png", "x/same.jpg")
    files(tmp_path, "notes.txt", "sub/x.jpg.part")
    expected = {"a b": one, "sub/deep/日本": two, "x/same.jpg": jpg, "x/same.png": png}
    assert find_images([tmp_path]) == find_images([str(tmp_path)]) == expected


def test_files_folders_and_patterns_in_the_order_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = files(tmp_path, "in/one.png", "in/two.jpg")
    assert list(find_images([two, one])) == ["two", "one"]
    # The same file named twice is one image.
    assert list(find_images([two, tmp_path / "in"])) == ["two", "one"]
    monkeypatch.chdir(tmp_path / "in")
    assert find_images(["*"]) == {"one": Path("one.png"), "two": Path("two.jpg")}
    # A file given by name is accepted whatever its suffix.
    odd = files(tmp_path, "scan.dat")[0]
    assert find_images([odd]) == {"scan": odd}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*/img.jpg", {"a/img", "b/img"}),
        ("[ab]/img.*", {"a/img", "b/img"}),
        ("b/*.jpg", {"img", "more"}),
        ("?/**/img.jpg", {"a/img", "a/c/img", "b/img"}),
        ("**/c/*.jpg", {"a/c/img"}),
        ("*", {"a/img", "a/c/img", "b/img", "b/more", "top"}),
        ("**", {"a/img", "a/c/img", "b/img", "b/more", "top"}),
    ],
)
def test_names_are_relative_to_the_part_before_the_first_wildcard(
    pattern: str, names: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(tmp_path, "a/img.jpg", "a/c/img.jpg", "b/img.jpg", "b/more.jpg", "top.jpg", "top.txt")
    assert set(find_images([str(tmp_path / pattern)])) == names
    monkeypatch.chdir(tmp_path)
    assert set(find_images([pattern])) == names


def test_an_existing_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    odd, other = files(tmp_path, "in [2]/x.png", "in [2]/y.png")
    assert find_images([odd]) == {"x": odd}
    assert find_images([odd.parent]) == {"x": odd, "y": other}
    # A pattern in a folder whose name looks like one.
    assert find_images([str(odd.parent / "y*")]) == {"y": other}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("nothing.jpg", r"nothing\.jpg: no such image, folder or pattern"),
        ("*.bmp", r"\*\.bmp: no such image, folder or pattern"),
        ("nowhere/*/a.jpg", r"nowhere/\*/a\.jpg: no such image, folder or pattern"),
        ("empty", r"empty: holds no images \(\.jpg, "),
        ("*.md", r"\*\.md: holds no images"),
    ],
)
def test_paths_without_images_are_named(
    wanted: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.md").write_text("")
    with pytest.raises(DataError, match=message):
        find_images([wanted])


def test_two_images_whose_masks_would_have_the_same_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"their masks would have the same name; predict them separately"):
        find_images(files(tmp_path, "a/1.png", "b/1.png"))


def test_masks_in_the_searched_folder_are_not_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = files(tmp_path, "a.jpg", "masks/a.png")
    out = tmp_path / "masks"
    assert find_images([tmp_path], out) == find_images([str(tmp_path / "*")], out) == {"a": image}
    # A file given by name counts, and so do files in --out if that folder is not inside the searched one.
    assert set(find_images([mask], out)) == {"a"} and set(find_images([out], tmp_path)) == {"a"}
    monkeypatch.chdir(tmp_path)
    assert set(find_images(["masks"], Path("."))) == {"a"}
    with pytest.raises(
        DataError, match=r"a\.\*: its images are in --out .*, where masks are written; choose another --out"
    ):
        find_images(["a.*"], Path("."))


def shard(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return path


def test_shards_stand_for_the_images_in_them(tmp_path: Path) -> None:
    shard(tmp_path / "in/000.tar", "a/1.jpg", "a/1.json", "2.PNG", "2.mask.png")
    shard(tmp_path / "in/sub/001.tar", "3.webp")
    assert [path.name for path in find_images([tmp_path / "in"]).values()] == ["1.jpg", "2.PNG", "3.webp"]
    assert list(find_images([tmp_path / "in"])) == ["a/1", "2", "3"]
    assert list(find_images([tmp_path / "in/*.tar"])) == list(find_images([tmp_path / "in/000.tar"])) == ["a/1", "2"]
    # A key that two shards have is prefixed with the name of its shard.
    shard(tmp_path / "in/002.tar", "3.jpg", "4.jpg")
    assert list(find_images([tmp_path / "in"])) == ["a/1", "2", "002/3", "4", "001/3"]
    # Next to image files, a tar is taken for their archive.
    files(tmp_path, "in/5.jpg")
    assert list(find_images([tmp_path / "in"])) == ["5"]


def test_numbers_in_braces(tmp_path: Path) -> None:
    for number in range(8, 12):
        shard(tmp_path / f"{number:03}.tar", f"{number}.jpg")
    assert list(find_images([f"{tmp_path}/{{009..011}}.tar"])) == ["9", "10", "11"]
    one = files(tmp_path, "{1..3}.jpg")[0]
    assert find_images([one]) == {"{1..3}": one}
    with pytest.raises(DataError, match=r"012\.tar: no such image, folder or pattern"):
        find_images([tmp_path / "{008..012}.tar"])
    with pytest.raises(DataError, match=r"\{3\.\.1\} stands for -1 numbers, expected 1 to 1,000,000"):
        find_images(["{3..1}.tar"])


def test_damaged_and_compressed_shards(tmp_path: Path) -> None:
    files(tmp_path, "a.tar", "b.tar.gz")
    (tmp_path / "a.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"a\.tar: damaged or not a tar"):
        find_images([tmp_path / "a.tar"])
    with pytest.raises(DataError, match=r"b\.tar\.gz: a compressed tar"):
        find_images([tmp_path / "b.tar.gz"])
    shard(tmp_path / "empty.tar")
    with pytest.raises(DataError, match=r"holds no images"):
        find_images([tmp_path / "empty.tar"])
