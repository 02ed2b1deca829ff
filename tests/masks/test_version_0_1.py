import zipfile
from pathlib import Path

import numpy as np
import pytest

from tagseg.data.images import read_mask_file
from tagseg.data.prepare import prepare
from tagseg.data.records import VOID
from tagseg.masks.make import make_masks
from tagseg.masks.mask_files import mask_file
from tagseg.run.folder import Run

RECORDED = Path(__file__).parents[1] / "fixtures" / "run_of_0_1.zip"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a run of version 0.1, unpacked; the text @FOLDER@ in its files stands for its folder."""
    with zipfile.ZipFile(RECORDED) as archive:
        archive.extractall(tmp_path)
    for file in tmp_path.rglob("*"):
        if file.suffix in (".json", ".toml", ".csv"):
            file.write_text(file.read_text(encoding="utf-8").replace("@FOLDER@", str(tmp_path)), encoding="utf-8")
    return Run(tmp_path / "run")


def test_masks_made_again_from_the_maps_of_0_1_are_the_same(run: Run) -> None:
    prepared = prepare(run)
    names = [sample.id for sample in prepared.dataset.split("train")]
    files = [mask_file(folder, name) for folder in (run.masks, run.decided_masks) for name in names]
    before = {file: read_mask_file(file) for file in files}
    for file in files:
        file.unlink()
    assert make_masks(prepared, run).images == len(names) == 9
    assert run.settings().crf.steps and set(np.concatenate(list(before.values())).ravel()) == {0, 2, VOID}
    assert all((read_mask_file(file) == before[file]).all() for file in files)
