from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tagseg.errors import DataError
from tagseg.export.masks import MaskSet
from tagseg.export.yolo import data_yaml, write_yolo, yolo_image
from tagseg.settings.export import ExportSettings
from tagseg.system.progress import silent

Make = Callable[..., MaskSet]
EXACT = ExportSettings(tolerance=0.0)


def drawn(file: Path, shape: tuple[int, ...], number: Callable[[float], int]) -> np.ndarray:
    """Return a label file's mask, with class 0 as 1: the pixels on each polygon and, by the even-odd rule, inside it.

    `number` turns a coordinate into a whole number of pixels, as a reader does.
    """
    mask = np.zeros(shape, np.uint8)
    for line in file.read_text().splitlines():
        class_id, *shares = line.split()
        assert len(shares) >= 6 and all(0 <= float(share) < 1 for share in shares)
        points = [
            (number(float(x) * shape[1]), number(float(y) * shape[0]))
            for x, y in zip(shares[::2], shares[1::2], strict=True)
        ]
        pieces = list(zip(points, points[1:] + points[:1], strict=True))
        on, inside = np.zeros(shape, bool), np.zeros(shape, bool)
        for (x0, y0), (x1, y1) in pieces:
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            for i in range(steps + 1):
                on[y0 + (y1 - y0) * i // steps, x0 + (x1 - x0) * i // steps] = True
        for y, x in np.ndindex(*shape):
            crossed = [
                x0 + (y - y0) / (y1 - y0) * (x1 - x0) > x for (x0, y0), (x1, y1) in pieces if (y0 <= y) != (y1 <= y)
            ]
            inside[y, x] = sum(crossed) % 2
        mask[on | inside] = int(class_id) + 1
    return mask


@pytest.mark.parametrize("number", [int, round], ids=["cut off", "rounded"])
def test_lines_draw_the_exported_pixels(
    number: Callable[[float], int], masks: dict[str, np.ndarray], mask_set: Make, tmp_path: Path
) -> None:
    exported = mask_set(masks)
    write_yolo(exported, tmp_path / "out", EXACT, silent)
    for image in exported.images:
        assert np.array_equal(
            drawn(tmp_path / "out" / "labels" / "train" / f"{image.id}.txt", image.size, number), masks[image.id]
        )


def test_every_line_is_a_connected_part(masks: dict[str, np.ndarray], mask_set: Make, tmp_path: Path) -> None:
    write_yolo(mask_set(masks), tmp_path / "out", EXACT, silent)
    labels = tmp_path / "out" / "labels" / "train"
    classes = [line.split()[0] for line in (labels / "plain.txt").read_text().splitlines()]
    assert classes == ["0", "1", "2", "2"]
    assert (labels / "sub folder" / "empty.v2.txt").read_text() == ""


def test_labels_are_found_by_the_images_names(mask_set: Make, tmp_path: Path) -> None:
    mask = np.ones((2, 2), np.uint8)
    exported = mask_set({"a.jpg": mask, "a.png": mask, "sub/b": mask})
    write_yolo(exported, tmp_path / "out", EXACT, silent)
    for image in exported.images:
        place = (tmp_path / "out" / yolo_image(exported, image)).as_posix()
        # As readers do it: the last folder named images, and the suffix.
        label = Path("/labels/".join(place.rsplit("/images/", 1))).with_suffix(".txt")
        assert label.is_file()
    assert len({yolo_image(exported, image) for image in exported.images}) == 3


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=5))
def test_any_class_name_survives_in_yaml(names: list[str]) -> None:
    content = yaml.safe_load(data_yaml(MaskSet(tuple(names), "train", (), "decided")))
    assert [content["names"][i] for i in range(len(names))] == names
    assert content["train"] == content["val"] == "images/train"


def test_a_name_that_is_no_text_is_named() -> None:
    with pytest.raises(DataError, match="not valid Unicode"):
        data_yaml(MaskSet(("\udc80",), "train", (), "decided"))


def test_wrong_tolerances() -> None:
    for tolerance in (-1.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match=f"--tolerance must be .*, got {tolerance}$"):
            ExportSettings(tolerance=tolerance)
    with pytest.raises(DataError, match="--min-part must be 0 pixels or more, got -1"):
        ExportSettings(min_part=-1)
