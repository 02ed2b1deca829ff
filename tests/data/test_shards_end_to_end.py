"""A run on tar shards gives the same bytes as a run on the same images in folders."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import pytest

import tagseg
from tagseg.data.prepare import prepare
from tagseg.errors import DataError
from tagseg.export.formats import export
from tagseg.pipeline import fit
from tagseg.report.atlas import atlas
from tagseg.run.folder import Run
from tagseg.settings.predict import PredictOptions
from tagseg.settings.settings import Settings


@pytest.fixture(scope="module")
def runs(discs: Path, tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """Return finished runs on the discs as a folder and as shards, the latter with a worker process."""
    folder = tmp_path_factory.mktemp("shards")
    short = {"epochs": 1, "batch": 4, "crop": 32, "max_side": 64, "predict_scales": [1.0]}
    values = tiny.to_dict() | {"segment": short}
    settings = Settings.from_dict(values | {"train": values["train"] | {"epochs": 1}})
    pack(discs, folder / "shards")
    fit(discs, folder / "plain", settings)
    fit(folder / "shards", folder / "packed", dataclasses.replace(settings, workers=1))
    return Run(folder / "plain"), Run(folder / "packed")


def pack(data: Path, shards: Path) -> None:
    """Put the images of a data folder, their tags and their masks into three shards."""
    shards.mkdir()
    rows = [line.split(",") for line in (data / "tags.csv").read_text().splitlines()[1:]]
    for number in range(3):
        with tarfile.open(shards / f"{number:03}.tar", "w") as shard:
            for name, tags in rows[3 * number : 3 * number + 3]:
                key = Path(name).stem
                content = {"json": json.dumps({"tags": tags.split()}).encode()}
                content["png"] = (data / "images" / name).read_bytes()
                if (data / "masks" / name).exists():
                    content["mask.png"] = (data / "masks" / name).read_bytes()
                for ending, packed in content.items():
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(packed)
                    shard.addfile(member, io.BytesIO(packed))


def test_networks_maps_masks_and_predictions_are_the_same_bytes(runs: tuple[Run, Run]) -> None:
    plain, packed = runs
    for output in ("network", "maps", "masks", "masks_without_void", "segmenter", "predictions"):
        files = sorted(path.relative_to(plain.root / output) for path in (plain.root / output).rglob("*.*"))
        assert files == sorted(path.relative_to(packed.root / output) for path in (packed.root / output).rglob("*.*"))
        assert files or output == "predictions"
        for file in files:
            if file.name == "history.jsonl":  # it holds seconds
                continue
            assert (plain.root / output / file).read_bytes() == (packed.root / output / file).read_bytes(), file
    assert json.loads(plain.evaluation_file.read_text())["pseudo_masks"] is not None
    assert plain.evaluation_file.read_text() == packed.evaluation_file.read_text()
    assert "data:image" in packed.report_file.read_text()
    assert prepare(packed).sizes == prepare(plain).sizes


def test_predictions_from_shards_are_the_same_bytes(runs: tuple[Run, Run], discs: Path, tmp_path: Path) -> None:
    packed = runs[1]
    shards = packed.data_root()
    options = PredictOptions(device="cpu", overlays=True)
    tagseg.predict(packed.root, discs / "images", tmp_path / "plain", options)
    done = tagseg.predict(packed.root, shards, tmp_path / "packed", options)
    assert sorted(done.ids) == [str(i) for i in range(9)] and not done.skipped
    for file in (tmp_path / "plain").glob("*.png"):
        assert file.read_bytes() == (tmp_path / "packed" / file.name).read_bytes()
    assert (tmp_path / "packed/3.overlay.jpg").exists()
    some = tagseg.predict(packed.root, f"{shards}/{{000..001}}.tar", tmp_path / "some", PredictOptions(device="cpu"))
    assert some.ids == ("0", "1", "2", "3", "4", "5")
    resumed = PredictOptions(device="cpu", resume=True)
    assert tagseg.predict(packed.root, shards, tmp_path / "some", resumed).kept == 6


def test_export_copies_images_out_of_shards(runs: tuple[Run, Run], discs: Path, tmp_path: Path) -> None:
    plain, packed = runs
    for run, name in ((plain, "plain"), (packed, "packed")):
        export(run.root, "coco", tmp_path / name, images="copy")
    copied = {path.name: path.read_bytes() for path in (tmp_path / "packed").rglob("*.png")}
    assert copied == {path.name: path.read_bytes() for path in (discs / "images").iterdir()}
    tables = [(tmp_path / name / "annotations/instances_train.json") for name in ("plain", "packed")]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    with pytest.raises(
        DataError, match=r"--images link: cannot link to .*\.tar/.* inside a tar; expected copy or none"
    ):
        export(packed.root, "coco", tmp_path / "linked", images="link")


def test_an_atlas_shows_images_from_shards(runs: tuple[Run, Run], tmp_path: Path) -> None:
    page = atlas(runs[1].root, per_class=3, out=tmp_path / "atlas.html", device="cpu").path
    assert "data:image" in page.read_text()
