import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from tagseg.errors import DataError
from tagseg.masks.mask_files import mask_png
from tagseg.prediction import parquet
from tagseg.prediction.find_images import Location
from tagseg.prediction.lines import PredictedClass, PredictionLine, append_line, write_predictions
from tagseg.prediction.outputs import Outcome, pending_images
from tagseg.prediction.parquet import part_file, pending_rows, write_parts
from tagseg.settings.predict import PredictOptions

PARQUET = PredictOptions(format="parquet", rows=3)
RESUME = PredictOptions(format="parquet", rows=3, resume=True)


def outcome(number: int) -> Outcome:
    """Return the outcome of an image; every fifth image could not be read."""
    name, image = f"a/{number}", f"in/a/{number}.jpg"
    if number % 5 == 4:
        return Outcome(name, PredictionLine(image, error="damaged"))
    found = (PredictedClass(2, "Bär", 0.25, 0.5),) * (number % 2)
    line = PredictionLine(image, f"{name}.png", 4, 3, found)
    return Outcome(name, line, {f"{name}.png": mask_png(np.full((3, 4), number % 3, np.uint8))})


def images(count: int) -> dict[str, Location]:
    return {f"a/{number}": Path(f"in/a/{number}.jpg") for number in range(count)}


def written(out: Path, found: dict[str, Location], options: PredictOptions, stop: int = 1000) -> dict[str, bytes]:
    """Write the pending images, up to a number of lines, and return the folder's files."""
    out.mkdir(exist_ok=True)
    todo, lines = pending_rows(found, out, options)
    write_predictions(out / "predictions.jsonl", lines)

    def outcomes() -> Iterator[Outcome]:
        for name in todo:
            yield outcome(int(name[2:]))

    for number, line in enumerate(write_parts(outcomes(), out, len(lines), len(todo), options.rows)):
        if number == stop:
            break
        append_line(out / "predictions.jsonl", line)
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(autouse=True)
def arrow() -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow (tagseg[ray])")


def test_a_row_has_the_mask_and_the_classes_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 2)
    files = written(tmp_path / "out", images(7), PARQUET)
    assert set(files) == {"masks-000000.parquet", "masks-000001.parquet", "masks-000002.parquet", "predictions.jsonl"}
    tables = [pq.read_table(tmp_path / "out" / part_file(number)) for number in range(3)]
    assert [table.num_rows for table in tables] == [3, 2, 1]  # a/4 could not be read
    row = tables[1].to_pylist()[0]
    with Image.open(io.BytesIO(row.pop("mask"))) as picture:
        assert (np.array(picture) == 0).all() and picture.size == (4, 3)
    assert row == {
        "id": "a/3", "image": "in/a/3.jpg", "width": 4, "height": 3,
        "classes": [2], "names": ["Bär"], "areas": [0.25], "confidences": [0.5],
    }  # fmt: skip
    assert pq.ParquetFile(tmp_path / "out" / part_file(0)).num_row_groups == 2
    lines = files["predictions.jsonl"].decode().splitlines()
    assert len(lines) == 7 and '"mask": "masks-000001.parquet"' in lines[3] and '"error": "damaged"' in lines[4]


@pytest.mark.parametrize("stop", range(8))
def test_files_are_the_same_after_any_interruption(stop: int, tmp_path: Path) -> None:
    once = written(tmp_path / "once", images(8), PARQUET)
    written(tmp_path / "out", images(8), PARQUET, stop)
    assert written(tmp_path / "out", images(8), RESUME) == once
    # Complete files are not written again.
    file = tmp_path / "out" / part_file(0)
    before = file.stat().st_mtime_ns
    assert written(tmp_path / "out", images(8), RESUME) == once and file.stat().st_mtime_ns == before


def test_a_missing_file_and_all_after_it_are_written_again(tmp_path: Path) -> None:
    once = written(tmp_path / "out", images(8), PARQUET)
    (tmp_path / "out" / part_file(1)).unlink()
    assert pending_rows(images(8), tmp_path / "out", RESUME)[0] == [f"a/{number}" for number in range(3, 8)]
    assert written(tmp_path / "out", images(8), RESUME) == once


def test_existing_files_are_overwritten_only_with_force(tmp_path: Path) -> None:
    out = tmp_path / "out"
    written(out, images(8), PARQUET)
    with pytest.raises(
        DataError, match=r"masks-000000\.parquet: already exists; choose another --out, add --resume .* or --force"
    ):
        pending_rows(images(8), out, PARQUET)
    for found, options in (
        (images(3) | {"b": Path("b.jpg")}, RESUME),
        (images(2), RESUME),
        (images(8), PredictOptions(format="parquet", rows=4, resume=True)),
    ):
        with pytest.raises(DataError, match=r"written for other images or with another --rows; choose another --out"):
            pending_rows(found, out, options)
    files = written(out, images(2), PredictOptions(format="parquet", rows=3, force=True))
    assert set(files) == {part_file(0), "predictions.jsonl"}


def test_parquet_files_are_not_mixed_with_png_files(tmp_path: Path) -> None:
    line = PredictionLine("in/a/0.jpg", "a/0.png")
    write_predictions(tmp_path / "predictions.jsonl", [line])
    with pytest.raises(DataError, match=r"line 1: has in/a/0\.jpg in a/0\.png, expected in/a/0\.jpg in masks-000000"):
        pending_rows(images(2), tmp_path, RESUME)


def test_png_files_are_not_mixed_with_parquet_files(tmp_path: Path) -> None:
    (tmp_path / part_file(0)).write_bytes(b"")
    with pytest.raises(
        DataError, match=r"masks-000000\.parquet: --out already has masks in --format parquet; choose another"
    ):
        pending_images(images(2), tmp_path, PredictOptions(resume=True))


def test_files_of_an_earlier_prediction_are_deleted_before_new_ones_are_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    written(out, images(8), PARQUET)
    (out / "masks-mine.parquet").write_bytes(b"a user's file")
    force = PredictOptions(format="parquet", rows=3, force=True)
    assert pending_rows(images(2), out, force) == (["a/0", "a/1"], []) and (out / part_file(2)).exists()
    assert set(written(out, images(2), force)) == {part_file(0), "masks-mine.parquet", "predictions.jsonl"}


def test_names_that_are_not_valid_unicode(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    odd = Outcome("\udcff", replace(outcome(0).line, image="in/\udcff.jpg"), outcome(0).files)
    assert len(list(write_parts(iter([odd]), tmp_path, 0, 1, 5))) == 1
    assert pq.read_table(tmp_path / part_file(0)).to_pylist()[0]["image"] == "in/\\udcff.jpg"
