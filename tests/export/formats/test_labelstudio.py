import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagseg.errors import DataError
from tagseg.export.labelstudio import interface, write_labelstudio
from tagseg.export.masks import MaskSet
from tagseg.settings.export import LOCAL_FILES, ExportSettings
from tagseg.system.progress import silent

Make = Callable[..., MaskSet]

XML_TEXT = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff")


def brushed(code: list[int], shape: tuple[int, int]) -> np.ndarray:
    """Return the pixels of a code in which every run repeats one value, as in all brush strokes."""
    bits = "".join(f"{byte:08b}" for byte in code)
    total, place = int(bits[:32], 2), 32 + 5 + 16
    values: list[int] = []
    sizes = [int(bits[37 + 4 * i : 41 + 4 * i], 2) + 1 for i in range(4)]
    while len(values) < total:
        assert bits[place] == "1"
        size = sizes[int(bits[place + 1 : place + 3], 2)]
        length, place = int(bits[place + 3 : place + 3 + size], 2) + 1, place + 3 + size
        values += [int(bits[place : place + 8], 2)] * length
        place += 8
    return np.array(values).reshape(*shape, 4)[:, :, 3] > 0


@pytest.mark.parametrize("parts", [False, True])
def test_brushes_hold_the_exported_pixels(
    parts: bool, masks: dict[str, np.ndarray], mask_set: Make, tmp_path: Path
) -> None:
    exported = mask_set(masks)
    write_labelstudio(exported, tmp_path / "out", ExportSettings(parts=parts), silent)
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text(encoding="utf-8"))
    view = ElementTree.fromstring((tmp_path / "out" / "interface.xml").read_text(encoding="utf-8"))
    brush, image = view.find("BrushLabels"), view.find("Image")
    assert brush is not None and image is not None and image.get("value") == "$image"
    assert [label.get("value") for label in brush] == list(exported.classes)
    assert len(tasks) == len(masks)
    for task, (name, mask) in zip(tasks, masks.items(), strict=True):
        assert task["data"]["name"] == f"{name}.png"
        assert unquote(task["data"]["image"].removeprefix(LOCAL_FILES)) == f"{name}.png"
        assert not set(task["data"]["image"].removeprefix(LOCAL_FILES)) & set(" #?&[]")
        painted = np.zeros_like(mask)
        (prediction,) = task["predictions"]
        for result in prediction["result"]:
            assert (result["from_name"], result["to_name"]) == (brush.get("name"), image.get("name"))
            assert (result["original_height"], result["original_width"]) == mask.shape
            assert result["type"] == "brushlabels" and result["value"]["format"] == "rle"
            (label,) = result["value"]["brushlabels"]
            painted[brushed(result["value"]["rle"], mask.shape)] = exported.classes.index(label) + 1
        assert np.array_equal(painted, mask)
        assert len({result["id"] for result in prediction["result"]}) == len(prediction["result"])
    assert len(tasks[0]["predictions"][0]["result"]) == (4 if parts else 3)


def test_addresses_start_with_the_given_prefix(mask_set: Make, tmp_path: Path) -> None:
    settings = ExportSettings(address="https://example.org/photos/")
    write_labelstudio(mask_set({"ü": np.ones((1, 2), np.uint8)}), tmp_path, settings, silent)
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert task["data"]["image"] == "https://example.org/photos/%C3%BC.png"


@given(st.lists(st.text(XML_TEXT, min_size=1).filter(lambda name: name[0] != "$"), min_size=1, max_size=4))
def test_class_names_survive_in_xml(names: list[str]) -> None:
    labels = ElementTree.fromstring(interface(tuple(names))).iter("Label")
    assert [label.get("value") for label in labels] == names


@pytest.mark.parametrize("name", ["$price", "a\0b", "a\x1b[31m", "\ufffe", "\udc80"])
def test_class_names_that_xml_cannot_hold(name: str) -> None:
    with pytest.raises(DataError, match="Label Studio cannot hold this name"):
        interface((name,))
