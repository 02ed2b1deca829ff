import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagseg.errors import RunError
from tagseg.masks.map_files import read_maps, write_maps

MAPS = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4)


def npy(values: np.ndarray) -> bytes:
    packed = io.BytesIO()
    np.save(packed, values)
    return packed.getvalue()


def header(shape: str, kind: str) -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00\x76\x00" + text.ljust(117) + b"\n"


def pack(path: Path, maps: bytes, classes: bytes = npy(np.array([1, 2]))) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("maps.npy", maps)
        archive.writestr("classes.npy", classes)
    return path


def test_maps_read_back(tmp_path: Path) -> None:
    write_maps(tmp_path / "a.npz", MAPS, (3, 7))
    maps, classes = read_maps(tmp_path / "a.npz")
    assert classes == (3, 7) and (maps == (MAPS * 255).round()).all() and maps.flags.writeable
    write_maps(tmp_path / "none.npz", np.zeros((0, 3, 4), np.float32), ())
    assert read_maps(tmp_path / "none.npz")[1] == ()


@pytest.mark.parametrize(
    "maps",
    [
        header("(2, 1000000, 1000000)", "|u1"),
        header("(2, 3, 4)", "|O") + b"\0" * 200,
        header("(2, -3, -4)", "|u1") + b"\0" * 24,
        header("(2, 3, 4)", "|u1") + b"\0" * 23,
        header("(2, 3, 4)", "|u1") + b"\0" * 10**7,
        header("((" * 3000 + "2", "|u1"),
        npy(np.zeros((2, 3, 4), np.float64)),
        npy(np.zeros((3, 3, 4), np.uint8)),
        npy(np.zeros((2, 3, 0), np.uint8)),
        b"\x93NUMPY\x09\x00",
        b"",
    ],
)
def test_arrays_that_contradict_their_header_are_rejected(maps: bytes, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"a\.npz: missing or damaged maps"):
        read_maps(pack(tmp_path / "a.npz", maps))


@pytest.mark.parametrize("classes", [[0, 1], [1, 255], [-1, 2], [1, 2, 3]])
def test_invalid_class_ids_are_rejected(classes: list[int], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"a\.npz: missing or damaged maps"):
        read_maps(pack(tmp_path / "a.npz", npy(np.zeros((2, 3, 4), np.uint8)), npy(np.array(classes))))


@settings(max_examples=300)
@given(st.data())
def test_flipped_bits_never_end_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.npz"
    write_maps(path, MAPS, (3, 7))
    content = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        maps, classes = read_maps(path)
    except RunError as error:
        assert str(path) in str(error)
    else:
        assert maps.shape == (2, 3, 4) and len(classes) == 2
