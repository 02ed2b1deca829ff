import io
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import fsspec
import pytest
from PIL import Image

from tagseg.data.images import read_image
from tagseg.errors import DataError
from tagseg.prediction import remote
from tagseg.prediction.find_images import canonical_location, find_images
from tagseg.prediction.read import InputImage, open_image, read_input
from tagseg.prediction.remote import fetch_url, is_url, list_url, local_path
from tagseg.segment.resolution import Resolution, resize_to_picture


@pytest.fixture
def bucket() -> Iterator[str]:
    """Yield the URL of a storage in memory with a few images and a text."""
    storage = fsspec.filesystem("memory")
    for number, name in enumerate(("b.jpg", "a b/1.PNG", "a b/ü.webp", "notes.txt")):
        file = io.BytesIO()
        Image.new("RGB", (20 + number, 10), (number * 40, 90, 200)).save(file, "PNG")
        storage.pipe(f"/bucket/{name}", file.getvalue())
    yield "memory://bucket"
    storage.rm("/bucket", recursive=True)


def test_urls_are_told_from_paths() -> None:
    for url in ("s3://bucket/a.jpg", "gs://b", "https://example.org/a.jpg", "zip://*.jpg::s3://b/a.zip", "FILE:///a"):
        assert is_url(url)
    for name in ("a.jpg", "in/a:b.jpg", "C:\\photos", Path("s3://bucket/a.jpg"), "://"):
        assert not is_url(name)


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "in/a.png")
    assert local_path(f"file://{tmp_path}/in") == str(tmp_path / "in")
    assert find_images([f"file://{tmp_path}/in"]) == {"a": tmp_path / "in/a.png"}
    assert local_path("s3://a") == "s3://a" and local_path(tmp_path) == str(tmp_path)


def test_a_folder_a_pattern_and_a_file_in_a_storage(bucket: str) -> None:
    folder = {"a b/1": "memory:///bucket/a b/1.PNG", "a b/ü": "memory:///bucket/a b/ü.webp"}
    assert find_images([bucket]) == {**folder, "b": "memory:///bucket/b.jpg"}
    assert list(find_images([bucket])) == ["a b/1", "a b/ü", "b"]  # as in a local folder with these names
    assert find_images([f"{bucket}/*/*"]) == folder
    assert find_images([f"{bucket}/a*"]) == folder
    assert find_images([f"{bucket}/b.jpg", f"{bucket}/b.jpg"]) == {"b": "memory:///bucket/b.jpg"}
    # A single file is accepted whatever its suffix.
    assert find_images([f"{bucket}/notes.txt"]) == {"notes": "memory:///bucket/notes.txt"}


def test_numbers_in_braces_work_in_urls_too(bucket: str) -> None:
    storage = fsspec.filesystem("memory")
    for number in range(8, 12):
        storage.pipe(f"/bucket/{number:03}/{number}.jpg", b"")
    assert list(find_images([f"{bucket}/{{009..010}}/", f"{bucket}/b.jpg"])) == ["9", "10", "b"]


def test_shards_in_a_storage_are_refused(bucket: str) -> None:
    fsspec.filesystem("memory").pipe("/bucket/shards/000.tar", b"")
    for url in (f"{bucket}/shards", f"{bucket}/shards/000.tar", f"{bucket}/*/*.tar"):
        with pytest.raises(DataError, match=r"tar shards cannot be read from a URL; copy or mount them"):
            find_images([url])
    # Next to image files, a tar is taken for their archive.
    assert "b" in find_images([bucket])


def test_names_are_those_of_a_local_folder(bucket: str, tmp_path: Path) -> None:
    storage = fsspec.filesystem("memory")
    for path in storage.find("/bucket"):
        target = tmp_path / PurePosixPath(path).relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(storage.cat_file(path))
    for below in ("", "/*", "/a*/*.PNG", "/**/*.webp"):
        assert list(find_images([f"{bucket}{below}"])) == list(find_images([f"{tmp_path}/bucket{below}"]))


def test_an_image_at_a_url_is_read_like_a_file(bucket: str, tmp_path: Path) -> None:
    url = "memory:///bucket/a b/1.PNG"
    (tmp_path / "a.png").write_bytes(fetch_url(url))
    assert open_image(url, 1.0).tobytes() == read_image(tmp_path / "a.png").tobytes()
    image, picture = read_input("1", url, Resolution(16, 16), 1.0)
    assert image == InputImage("1", url, (10, 21)) and picture is not None and picture.shape == (8, 16, 3)
    assert (picture == resize_to_picture(read_image(tmp_path / "a.png"), Resolution(16, 16))).all()


def test_unreadable_images_say_why(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe("/bucket/broken.jpg", b"none")
    for url, message in (
        ("memory:///bucket/broken.jpg", r"memory:///bucket/broken\.jpg: not an image"),
        ("memory:///bucket/gone.jpg", r"memory:///bucket/gone\.jpg: no such file"),
    ):
        image, picture = read_input("x", url, Resolution(16, 16), 1.0)
        assert picture is None and image.size == (0, 0)
        with pytest.raises(DataError, match=message):
            open_image(url, 1.0)
        assert image.error and url in image.error
    monkeypatch.setattr(remote, "MAX_BYTES", 3)
    with pytest.raises(DataError, match=r"broken\.jpg: too large, expected at most 0 MB"):
        fetch_url("memory:///bucket/broken.jpg")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nowhere", r"memory://nowhere: no such image, folder or pattern"),
        ("memory://bucket/*.bmp", r"\*\.bmp: no such image, folder or pattern"),
        ("memory://bucket/*.txt", r"memory://bucket/\*\.txt: holds no images|^$"),
        ("nothing://bucket", r"nothing://bucket: cannot be read \(ValueError: Protocol not known"),
    ],
)
def test_a_storage_without_images_is_named(url: str, message: str, bucket: str) -> None:
    if url.endswith("*.txt"):
        fsspec.filesystem("memory").pipe("/bucket/more.txt", b"")
    with pytest.raises(DataError, match=message):
        find_images([url])


def test_a_storage_that_needs_a_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(remote, "url_to_fs", missing)
    with pytest.raises(DataError, match=r"s3://bucket: needs another package \(Install s3fs to access S3\)"):
        list_url("s3://bucket")


def test_any_error_of_a_storage_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentials(Exception): ...

    def refuse(url: str) -> None:
        raise NoCredentials("who are you?")

    monkeypatch.setattr(remote, "url_to_fs", refuse)
    with pytest.raises(DataError, match=r"s3://bucket: cannot be read \(NoCredentials: who are you\?\)"):
        list_url("s3://bucket")


def test_names_that_would_be_written_outside_the_output_folder_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hostile:
        """A storage whose keys are not proper paths."""

        def isfile(self, path: str) -> bool:
            return False

        def isdir(self, path: str) -> bool:
            return True

        def find(self, path: str) -> list[str]:
            return ["bucket/ok.jpg", "bucket/../../etc/x.jpg"]

        def unstrip_protocol(self, path: str) -> str:
            return f"s3://{path}"

    monkeypatch.setattr(remote, "url_to_fs", lambda url: (Hostile(), "bucket"))
    with pytest.raises(DataError, match=r"'bucket/\.\./\.\./etc/x\.jpg', whose mask would be written outside --out"):
        find_images(["s3://bucket"])


def test_images_in_an_archive(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (6, 5), "red").save(file, "PNG")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("in/a.png", file.getvalue())
        archive.writestr("in/b.txt", "not an image")
    found = find_images([f"zip://in/*::file://{tmp_path}/photos.zip"])
    assert found == {"a": f"zip://in/a.png::file://{tmp_path}/photos.zip"}
    assert open_image(found["a"], 1.0).size == (6, 5)


def test_a_location_is_the_same_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        canonical_location("a/../b.jpg")
        == canonical_location(Path("b.jpg"))
        == canonical_location(tmp_path / "b.jpg")
        == str(tmp_path / "b.jpg")
    )
    assert canonical_location("s3://a/../b.jpg") == "s3://a/../b.jpg"
