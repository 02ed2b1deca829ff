import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tagseg
from tagseg.masks.maps import map_file, read_maps, write_maps
from tagseg.run import Run, RunError

SOURCE = Path(tagseg.__file__).parents[1]


def test_maps_survive_a_file(tmp_path: Path) -> None:
    maps = np.random.default_rng(0).random((2, 5, 7), np.float32)
    path = map_file(Run(tmp_path), "sub/a")
    write_maps(path, maps, (3, 200))
    values, classes = read_maps(path)
    assert values.dtype == np.uint8 and values.shape == (2, 5, 7) and classes == (3, 200)
    assert np.abs(values / 255 - maps).max() <= 0.5 / 255 + 1e-6
    assert [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.*")] == ["maps/sub/a.npz"]


def test_shares_beyond_0_and_1_are_cut_off(tmp_path: Path) -> None:
    write_maps(tmp_path / "a.npz", np.array([[[-0.1, 0.0, 0.5, 1.0, 1.1]]], np.float32), (1,))
    assert read_maps(tmp_path / "a.npz")[0].tolist() == [[[0, 0, 128, 255, 255]]]


@pytest.mark.parametrize("damage", [b"", b"no archive", None, "half", "empty"])
def test_missing_or_damaged_maps_are_named(damage: bytes | str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_maps(path, np.random.default_rng(0).random((3, 40, 40), np.float32), (1, 2, 3))
    if damage is None:
        path.unlink()
    elif damage == "empty":
        np.savez(path, something=np.zeros(1))
    else:
        path.write_bytes(path.read_bytes()[:600] if isinstance(damage, str) else damage)
    with pytest.raises(RunError, match=r"a\.npz: missing or damaged maps .*`tagseg localise RUN --force`"):
        read_maps(path)


def test_what_makes_masks_does_not_import_torch() -> None:
    code = "import sys, tagseg.masks.worker; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(SOURCE)}, check=True)
