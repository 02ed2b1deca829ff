import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.data.images import read_mask_file
from tagseg.data.prepare import Prepared
from tagseg.data.records import VOID, Dataset, Sample
from tagseg.masks.maps import map_file, write_maps
from tagseg.masks.palette import VOID_COLOUR, class_colours
from tagseg.masks.write import enlarge, make_masks, mask_file, mask_image, write_mask
from tagseg.run import Run, RunError, open_run
from tagseg.settings import MaskSettings, Settings

CLASSES = ("cat", "dog|wolf", "größer")


def test_masks_are_palette_pngs_that_read_back(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 2], [3, 254, VOID]], np.uint8)
    write_mask(tmp_path / "sub" / "a.png", mask)
    with Image.open(tmp_path / "sub" / "a.png") as picture:
        assert picture.format == "PNG" and picture.mode == "P" and picture.size == (3, 2)
        assert np.array(picture).tolist() == mask.tolist()
        shown = [tuple(pixel) for pixel in np.array(picture.convert("RGB")).reshape(-1, 3).tolist()]
    assert shown == [class_colours(254)[i] for i in (0, 1, 2, 3, 254)] + [VOID_COLOUR]
    assert read_mask_file(tmp_path / "sub" / "a.png", (2, 3)).tolist() == mask.tolist()
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.png"]


@pytest.mark.parametrize("ids", [[0], [VOID], [0, VOID], [7], list(range(256))])
def test_any_set_of_ids_reads_back(ids: list[int], tmp_path: Path) -> None:
    # An optimised PNG may hold fewer colours, or fewer bits a pixel: the ids must not move.
    mask = np.array([ids * 3], np.uint8)
    write_mask(tmp_path / "a.png", mask)
    assert (read_mask_file(tmp_path / "a.png") == mask).all()


def test_maps_are_enlarged_to_the_images_size() -> None:
    maps = np.zeros((2, 3, 4), np.uint8)
    maps[0, :, 2:] = 255
    large = enlarge(maps, (12, 16))
    assert large.shape == (2, 12, 16) and large[1].max() == 0
    assert large[0, 5, 0] == 0 and large[0, 5, 15] == 1 and 0 < large[0, 5, 7] < large[0, 5, 8] < 1
    assert enlarge(maps, (1, 7)).shape == (2, 1, 7)
    assert enlarge(np.zeros((0, 3, 4), np.uint8), (5, 6)).shape == (0, 5, 6)


def test_a_map_with_a_bright_half_becomes_that_half() -> None:
    maps = np.zeros((1, 8, 8), np.uint8)
    maps[0, :, 4:] = 255
    decided, mask = mask_image(None, maps, (2,), (32, 32), MaskSettings("threshold", 0.5, unsure=0.2))
    assert decided.dtype == mask.dtype == np.uint8 and decided.shape == mask.shape == (32, 32)
    assert (decided[:, :15] == 0).all() and (decided[:, 17:] == 2).all()
    assert set(np.unique(decided)) == {0, 2} and set(np.unique(mask)) == {0, 2, VOID}
    sure = mask != VOID
    assert (mask[sure] == decided[sure]).all() and (mask[:, :14] == 0).all() and (mask[:, 18:] == 2).all()


@pytest.mark.parametrize("background", ["otsu", "threshold", "power"])
def test_every_rule_finds_a_blob(background: str) -> None:
    maps = np.full((1, 10, 10), 20, np.uint8)
    maps[0, 3:7, 3:7] = 250
    settings = MaskSettings(background=background, unsure=0.0)  # type: ignore[arg-type]
    decided, mask = mask_image(None, maps, (1,), (10, 10), settings)
    assert (decided == (maps[0] > 100)).all() and (mask == decided).all()


@pytest.fixture
def localised(tmp_path: Path) -> tuple[Prepared, Run]:
    """Return two training images and a validation image, the maps of the former, and a run."""
    (tmp_path / "data").mkdir()
    settings = Settings(masks=MaskSettings(background="threshold", threshold=0.65))
    run = open_run(tmp_path / "run", tmp_path / "data", settings)
    samples = (
        Sample("a b", tmp_path / "a b.jpg", (1,)),
        Sample("sub/c", tmp_path / "c.jpg", (1, 3)),
        Sample("v", tmp_path / "v.jpg", (), "val"),
    )
    maps = np.zeros((2, 4, 6), np.float32)
    maps[0, :, :3], maps[1, :, 3:] = 1, 1
    for sample in samples:
        Image.new("RGB", (24, 16)).save(sample.image)
    write_maps(map_file(run, "a b"), maps[:1], (1,))
    write_maps(map_file(run, "sub/c"), maps, (1, 3))
    dataset = Dataset(tmp_path, "folder", CLASSES, samples)
    return Prepared(dataset, {"a b": (16, 24), "sub/c": (13, 21), "v": (5, 5)}), run


def test_every_training_image_gets_both_masks(localised: tuple[Prepared, Run]) -> None:
    prepared, run = localised
    result = make_masks(prepared, run)
    assert result.classes == ("background", *CLASSES) and (result.folder, result.decided) == (
        run.masks,
        run.decided_masks,
    )
    for folder in (run.masks, run.decided_masks):
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
        assert names == {"classes.json", "a b.png", "sub/c.png"}
        meaning = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
        assert meaning == {"0": "background", "1": "cat", "2": "dog|wolf", "3": "größer", "255": "void"}
    one, two = (read_mask_file(mask_file(run.decided_masks, name), prepared.sizes[name]) for name in ("a b", "sub/c"))
    assert set(np.unique(one)) == {0, 1} and (one[:, :10] == 1).all() and (one[:, 14:] == 0).all()
    assert (two[:, :9] == 1).all() and (two[:, 12:] == 3).all()
    void = read_mask_file(mask_file(run.masks, "a b"), (16, 24)) == VOID
    assert void[:, 11:14].any() and not void[:, :10].any() and not void[:, 14:].any()


def test_masks_that_are_there_stay(localised: tuple[Prepared, Run]) -> None:
    prepared, run = localised
    make_masks(prepared, run)
    mine = np.full((16, 24), 2, np.uint8)
    write_mask(mask_file(run.decided_masks, "a b"), mine)
    mask_file(run.decided_masks, "sub/c").unlink()
    make_masks(prepared, run)
    assert (read_mask_file(mask_file(run.decided_masks, "a b")) == mine).all()
    assert mask_file(run.decided_masks, "sub/c").exists()


def test_a_run_that_was_not_localised_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        make_masks(Prepared(Dataset(tmp_path, "folder", CLASSES, ()), {}), Run(tmp_path))


def test_masks_without_any_tag_are_warned_of(localised: tuple[Prepared, Run], caplog: pytest.LogCaptureFixture) -> None:
    prepared, run = localised
    write_maps(map_file(run, "sub/c"), np.full((2, 4, 6), 0.1, np.float32), (1, 3))
    make_masks(prepared, run)
    [message] = [record.getMessage() for record in caplog.records]
    assert message.startswith("1 of 2 masks hold none of their image's tags, first sub/c;")
    caplog.clear()
    make_masks(prepared, run)
    assert not caplog.records
