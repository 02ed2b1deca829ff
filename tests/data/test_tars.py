import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
from PIL import Image

from tagseg.data import tars
from tagseg.data.images import image_size, read_image, read_mask_file
from tagseg.data.tars import file_stamp, is_member, members, open_file, refuse_compressed
from tagseg.errors import DataError

CONTENT = {"a.txt": b"one", "deep/er/b.bin": bytes(range(256)) * 5, "c": b"", "日本/ü.jpg": b"x" * 512}


def tar(path: Path, content: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in content.items():
            add(archive, name, data)
    return path


def content_of(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read()


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **about: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in about.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(format: int, tmp_path: Path) -> None:
    # The three formats store names over 100 bytes as a prefix, a member for long names, and a record.
    long = "/".join(["folder" * 3] * 7) + "/" + "n" * 80 + ".jpg"
    path = tar(tmp_path / "s.tar", {**CONTENT, long: b"far down", "./dot.txt": b"."}, format)
    found = {member.name: content_of(member.path(path)) for member in members(path)}
    with tarfile.open(path) as archive:
        expected = {info.name.removeprefix("./"): archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
    assert found == expected and found[long] == b"far down" and found["dot.txt"] == b"."


@hypothesis.given(
    content=st.dictionaries(st.text("abc/ü", min_size=1, max_size=150), st.binary(max_size=1500), max_size=6)
)
def test_members_with_any_names_and_lengths_are_found(
    content: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = {name.strip("/").replace("//", "/").replace("//", "/"): data for name, data in content.items()}
    content = {name: data for name, data in content.items() if name and "//" not in name}
    path = tar(tmp_path_factory.mktemp("any") / "s.tar", content)
    assert {member.name: content_of(member.path(path)) for member in members(path)} == content


def test_a_member_has_a_path_like_a_file(tmp_path: Path) -> None:
    path = tar(tmp_path / "S.TAR", CONTENT)
    member = next(member for member in members(path) if member.name == "deep/er/b.bin")
    address = member.path(path)
    assert (address.name, address.suffix, is_member(address)) == ("b.bin", ".bin", True)
    assert file_stamp(address)[0] == 1280 and content_of(Path(str(address))) == CONTENT["deep/er/b.bin"]
    assert content_of(path) == path.read_bytes() and file_stamp(path)[0] == path.stat().st_size


def test_a_folder_with_the_name_of_a_tar_is_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "x.tar" / "0+5" / "a.jpg"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"bytes of its own")
    assert not is_member(file) and content_of(file) == b"bytes of its own"


def test_images_and_masks_in_tars_are_read(tmp_path: Path) -> None:
    image, mask = Image.new("RGB", (5, 3), (9, 8, 7)), Image.new("L", (5, 3), 2)
    content = {}
    for name, picture in (("1.png", image), ("1.mask.png", mask)):
        packed = io.BytesIO()
        picture.save(packed, "PNG")
        content[name] = packed.getvalue()
    path = tar(tmp_path / "s.tar", {**content, "2.png": b"\x89PNG no more"})
    at = {member.name: member.path(path) for member in members(path)}
    assert read_image(at["1.png"]).getpixel((4, 2)) == (9, 8, 7) and image_size(at["1.png"]) == (3, 5)
    assert (read_mask_file(at["1.mask.png"]) == 2).all()
    with pytest.raises(DataError, match=r"s\.tar/\d+\+12/2\.png: not an image"):
        read_image(at["2.png"])


def test_links_devices_folders_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        add(archive, "link.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "hard.jpg", type=tarfile.LNKTYPE, linkname="../../secret")
        add(archive, "device.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
        add(archive, "pipe.jpg", type=tarfile.FIFOTYPE)
        add(archive, "folder", type=tarfile.DIRTYPE)
        add(archive, "._1.jpg", b"of a Mac")
        add(archive, "__MACOSX/2.jpg", b"of a Mac")
        add(archive, "1.jpg", b"an image")
    junk: list[str] = []
    assert [member.name for member in members(tmp_path / "s.tar", junk)] == ["1.jpg"]
    assert [Path(name).name for name in junk] == ["._1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    "name", ["../up.jpg", "a/../../up.jpg", "/etc/cron.d/x.jpg", "a//b.jpg", "C:/x.jpg", "a\\..\\b"]
)
def test_names_that_lead_out_of_the_tar_are_refused(name: str, tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", {"1.jpg": b"", name: b"x"})
    with pytest.raises(DataError, match=r"s\.tar: a member is called .*expected a relative path"):
        list(members(path))


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        add(archive, "1.jpg", b"one")
        add(archive, "./1.jpg", b"another")
    with pytest.raises(DataError, match=r"has '1\.jpg' twice"):
        list(members(tmp_path / "s.tar"))


def forged(path: Path, size: bytes, kind: bytes = b"0", content: bytes = b"") -> Path:
    """Write a tar of one member whose header claims `size`, with a correct checksum."""
    info = tarfile.TarInfo("1.jpg")
    head = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    head[124:136], head[156:157], head[148:156] = size.ljust(12, b"\0"), kind, b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    path.write_bytes(bytes(head) + content.ljust(-(-len(content) // 512) * 512, b"\0") + bytes(1024))
    return path


def test_huge_and_negative_sizes_are_refused_unread(tmp_path: Path) -> None:
    huge = b"\x80" + (1 << 60).to_bytes(11, "big")
    for size, kind in ((huge, b"0"), (huge, b"x"), (huge, b"L"), (b"\xff" * 12, b"0"), (b"not octal", b"0")):
        with pytest.raises(DataError, match=r"s\.tar: the header at byte 0 claims -?\d+ bytes"):
            list(members(forged(tmp_path / "s.tar", size, kind)))
    # More than the limit, less than the file's size: a sparse file makes this cheap.
    big = forged(tmp_path / "s.tar", b"%o" % (tars.MAX_MEMBER + 1))
    with big.open("r+b") as file:
        file.truncate(tars.MAX_MEMBER + 10_000)
    with pytest.raises(DataError, match=f"claims {tars.MAX_MEMBER + 1} bytes, expected at most {tars.MAX_MEMBER}"):
        list(members(big))
    with pytest.raises(DataError, match="expected at most"):
        open_file(big / f"512+{tars.MAX_MEMBER + 1}" / "1.jpg")


@pytest.mark.parametrize(
    "record", [b"99999999 size=1\n", b"14 size=" + b"9" * 30, b"0 path=x\n", b"11 path=../x\n", b"\xff" * 90]
)
def test_hostile_records_are_refused_or_ignored(record: bytes, tmp_path: Path) -> None:
    path = forged(tmp_path / "s.tar", b"%o" % len(record), b"x", record)
    first = path.read_bytes()[:-1024]
    path.write_bytes(first + tar(tmp_path / "t.tar", {"2.jpg": b"two"}).read_bytes())
    try:
        assert [member.name for member in members(path)] == ["2.jpg"]
    except DataError as error:
        assert "s.tar" in str(error)


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a sparse member at byte 0"):
        list(members(forged(tmp_path / "s.tar", b"0", b"S")))


def test_tars_that_are_cut_off_are_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", {"1.jpg": b"x" * 5000})
    address = next(members(path)).path(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"s\.tar: cut off at byte 3000, within the member at byte 0"):
        list(members(path))
    with pytest.raises(DataError, match=r"1\.jpg: s\.tar ends before this member"):
        open_file(address)
    with pytest.raises(DataError, match=r"gone\.tar: cannot be read"):
        list(members(tmp_path / "gone.tar"))


@pytest.mark.parametrize(("mode", "name"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_compressed_tars_are_refused_with_the_reason(mode: str, name: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", mode) as archive:  # type: ignore[call-overload]
        add(archive, "1.jpg", b"x")
    with pytest.raises(DataError, match=rf"s\.tar: compressed by {name}, .*read by their position.*decompress it"):
        list(members(tmp_path / "s.tar"))
    with pytest.raises(DataError, match=r"s\.tar\.gz: a compressed tar, .*read by their position"):
        refuse_compressed(tmp_path / "s.tar.gz")


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: bytes(1024), lambda data: data[:512]])
def test_empty_tars_have_no_members(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(damage(tar(path, {"1.jpg": b""}).read_bytes()))
    assert [member.name for member in members(path)] in ([], ["1.jpg"])


@hypothesis.given(noise=st.binary(max_size=2000), at=st.integers(0, 2000), value=st.integers(0, 255))
def test_any_bytes_give_members_or_one_message(
    noise: bytes, at: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tar(tmp_path_factory.mktemp("any") / "s.tar", CONTENT)
    changed = bytearray(path.read_bytes())
    changed[at] = value
    for content in (noise, bytes(changed), bytes(changed[:at])):
        path.write_bytes(content)
        try:
            assert all(len(content_of(member.path(path))) == member.size for member in members(path))
        except DataError as error:
            assert str(path) in str(error)
