import zipfile
from pathlib import Path

import numpy as np
import pytest

from tagseg.data.images import read_mask_file
from tagseg.data.prepare import prepare
from tagseg.data.records import VOID
from tagseg.masks.make import mask_sample
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
    prepared, settings = prepare(run), run.settings()
    assert settings.crf.steps
    recorded = []
    for sample in prepared.dataset.split("train"):
        # Without the decisions that a person made about some of the masks later.
        decided, sure = mask_sample(run, sample, prepared.sizes[sample.id], settings)
        recorded += [read_mask_file(mask_file(folder, sample.id)) for folder in (run.decided_masks, run.masks)]
        assert (decided == recorded[-2]).all() and (sure == recorded[-1]).all()
    assert len(recorded) == 18 and set(np.concatenate(recorded).ravel()) == {0, 2, VOID}
