import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.masks.mask_files import write_mask
from tagseg.masks.palette import class_colours
from tagseg.studies.bench.submission import ARCHIVE, INNER, write_submission
from tagseg.system.progress import silent


@pytest.fixture
def predicted(tmp_path: Path) -> Path:
    for name in ("2008_000006", "2008_000011"):
        write_mask(tmp_path / f"predicted/{name}.png", np.array([[0, 1, 2], [2, 2, 0]], np.uint8))
    return tmp_path / "predicted"


def test_masks_have_vocs_ids_and_paths(predicted: Path, tmp_path: Path) -> None:
    archive = write_submission(predicted, ["2008_000011", "2008_000006"], {8: 1, 12: 2}, tmp_path / "sent", silent)
    assert archive == tmp_path / "sent" / ARCHIVE
    with tarfile.open(archive) as tar:
        names = [f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png" for name in ("2008_000006", "2008_000011")]
        assert tar.getnames() == names
        for name in names:
            packed = tar.extractfile(name)
            assert packed is not None and packed.read() == (tmp_path / "sent" / name).read_bytes()
    with Image.open(tmp_path / "sent" / INNER / "2008_000006.png") as image:
        assert image.mode == "P" and np.asarray(image).tolist() == [[0, 8, 12], [12, 12, 0]]
        palette = image.getpalette()
        assert palette is not None and tuple(palette[36:39]) == class_colours(20)[12] == (64, 0, 128)


def test_the_same_masks_give_the_same_bytes(predicted: Path, tmp_path: Path) -> None:
    names = ["2008_000006", "2008_000011"]
    first = write_submission(predicted, names, None, tmp_path / "a", silent).read_bytes()
    (tmp_path / "a" / INNER / "old.png").write_bytes(b"of another list")
    again = write_submission(predicted, names, None, tmp_path / "a", silent).read_bytes()
    assert again == first == write_submission(predicted, names, None, tmp_path / "b", silent).read_bytes()
    assert not (tmp_path / "a" / INNER / "old.png").exists()
