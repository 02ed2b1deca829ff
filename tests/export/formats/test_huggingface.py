import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.data.tag_tables import read_table
from tagseg.export.huggingface import huggingface_folder, write_huggingface
from tagseg.export.masks import MaskSet
from tagseg.settings.export import ExportSettings
from tagseg.system.progress import silent

Make = Callable[..., MaskSet]


@pytest.mark.parametrize(("subset", "split"), [("train", "train"), ("val", "validation"), ("default", "train")])
def test_rows_name_images_and_masks(
    subset: str, split: str, masks: dict[str, np.ndarray], mask_set: Make, tmp_path: Path
) -> None:
    exported = mask_set(masks, subset=subset)
    write_huggingface(exported, tmp_path / "out", ExportSettings(), silent)
    assert huggingface_folder(exported) == Path(split, "images")
    text = (tmp_path / "out" / split / "metadata.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["file_name"] for row in rows] == [f"images/{name}.png" for name in masks]
    for row, (name, mask) in zip(rows, masks.items(), strict=True):
        assert row["mask_file_name"] == f"masks/{name}.png"
        with Image.open(tmp_path / "out" / split / row["mask_file_name"]) as picture:
            assert np.array_equal(np.asarray(picture), mask)
        assert row["tags"] == [exported.classes[value - 1] for value in np.unique(mask) if value]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"- split: {split}\n    path: {split}/**\n" in card
    # Our own reader returns the same tags.
    assert [row.tags for row in read_table(tmp_path / "out" / split / "metadata.jsonl")] == [
        tuple(row["tags"]) for row in rows
    ]
