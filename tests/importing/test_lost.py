"""What a tool lost is noticed: holes and thin parts of the run's own masks."""

from pathlib import Path

import numpy as np
import pytest

from tagseg.export.formats import export
from tagseg.importing.import_masks import import_masks
from tagseg.importing.lost import Lost, count_lost
from tagseg.run.folder import Run


def drawn() -> np.ndarray:
    """Return a ring with an island in its hole, a line, a diagonal, and a notch at the border, which is not a hole."""
    mask = np.zeros((12, 20), np.uint8)
    mask[1:8, 1:8] = 1
    mask[3:6, 3:6] = 0
    mask[4, 4] = 2
    mask[10, 2:9] = 2
    mask[[1, 2, 3], [12, 13, 14]] = 1
    mask[8:, 12:] = 1
    mask[10:, 14:16] = 0
    return mask


def test_by_hand() -> None:
    before = drawn()
    # The island is a thin part of its class, and another class within the hole of the ring.
    assert count_lost(before, before) == Lost(holes=1, filled=0, thin=3, gone=0)
    after = before.copy()
    after[3:6, 3:6] = 1
    after[10, 2:9] = 0
    assert count_lost(before, after) == Lost(holes=1, filled=1, thin=3, gone=2)
    assert count_lost(before, after).text() == (
        "1 of 1 holes are filled and 2 of 3 parts of one pixel's width are gone"
    )
    after[1, 12] = 0  # a line that a person has shortened
    assert count_lost(before, after).gone == 2
    assert (Lost(4, 2, 4, 2) + Lost(0, 0, 1, 0)).text() == ""  # half of the holes may be meant
    after[10, 2:9] = 255  # unsure, as in the exports that say so
    assert count_lost(before, after).gone == 1


def test_an_import_says_what_most_masks_lost(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    export(run.root, "voc", tmp_path / "out")
    import_masks(tmp_path / "out", run.root, tmp_path / "same")
    assert "compared with" not in caplog.text
    monkeypatch.setattr("tagseg.importing.import_masks.count_lost", lambda before, after: Lost(2, 2, 1, 0))
    import_masks(tmp_path / "out", run.root, tmp_path / "filled")
    assert "compared with the run's own masks, 12 of 12 holes are filled; the tool seems to keep" in caplog.text
