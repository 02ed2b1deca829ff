import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.data.images import read_mask_file
from tagseg.data.prepare import Prepared
from tagseg.data.records import VOID, Dataset, Sample
from tagseg.errors import DataError, RunError
from tagseg.masks import make as write
from tagseg.masks.make import make_masks, mask_image
from tagseg.masks.map_files import map_file, write_maps
from tagseg.masks.mask_files import mask_file, write_mask
from tagseg.masks.palette import VOID_COLOUR, class_colours
from tagseg.masks.probabilities import agreement, decide_labels, label_probabilities
from tagseg.masks.resize import at_size, enlarge, refined_size
from tagseg.run.folder import Run
from tagseg.run.open import open_run
from tagseg.settings.crf import CrfSettings
from tagseg.settings.masks import MaskSettings
from tagseg.settings.settings import Settings

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


@pytest.mark.parametrize("background", ["rest", "otsu", "threshold", "power"])
def test_every_rule_finds_a_blob(background: str) -> None:
    maps = np.full((1, 10, 10), 20, np.uint8)
    maps[0, 3:7, 3:7] = 250
    settings = MaskSettings(background=background, unsure=0.0)  # type: ignore[arg-type]
    decided, mask = mask_image(None, maps, (1,), (10, 10), settings)
    assert (decided == (maps[0] > 100)).all() and (mask == decided).all()


def test_images_up_to_max_side_are_decided_in_one_piece() -> None:
    maps = np.random.default_rng(0).integers(0, 99, (3, 12, 16), np.uint8)
    settings = MaskSettings("rest", unsure=0.1, max_side=64)
    decided, mask = mask_image(None, maps, (4, 7, 9), (48, 64), settings)
    before = label_probabilities(enlarge(maps, (48, 64)), settings, (0.5,) * 3)
    ids, unsure = decide_labels(before, agreement(before, before), (4, 7, 9), 0.1)
    assert (decided == ids).all() and (mask == np.where(unsure, VOID, ids)).all()
    assert {0, 4, 7, 9} == set(np.unique(decided)) and VOID in mask


@pytest.mark.parametrize("strip", [1, 7 * 150 * 2, 50 * 150 * 2])
def test_strips_of_a_large_image_join_without_a_seam(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size, settings = (200, 150), MaskSettings("rest", unsure=0.05, max_side=64)
    maps = np.random.default_rng(1).integers(0, 128, (2, 9, 7), np.uint8)
    assert refined_size(size, settings) == (64, 48)
    # The whole, enlarged at once; the probabilities of a row that a float rounds otherwise lie within a hair.
    before = label_probabilities(enlarge(maps, (64, 48)), settings, (0.5, 0.5))
    scores = np.concatenate([before, agreement(before, before)])
    whole = np.stack([np.asarray(Image.fromarray(x).resize(size[::-1], Image.Resampling.BILINEAR)) for x in scores])
    ids, unsure = decide_labels(whole[:3], whole[3:], (1, 2), 0.05)
    best, second = np.sort(whole[:3], axis=0)[:-3:-1]
    sure = np.take_along_axis(whole[3:], whole[:3].argmax(0)[None], 0)[0]
    clear = (best - second > 1e-4) & (np.abs(sure - 0.55) > 1e-4)
    monkeypatch.setattr(write, "_STRIP", strip)
    decided, mask = mask_image(None, maps, (1, 2), size, settings)
    assert clear.mean() > 0.98 and (decided == ids)[clear].all()
    assert ((mask == VOID) == unsure)[clear].all() and (mask == VOID).any() and {0, 1, 2} == set(np.unique(decided))


def test_the_crf_moves_borders_to_the_edges_of_the_image() -> None:
    maps = np.zeros((1, 12, 12), np.uint8)
    maps[0, :, 5:] = 200
    image = np.full((48, 48, 3), 30, np.uint8)
    image[:, 28:] = 220  # the map begins eight pixels to the left of the edge
    rule = MaskSettings("rest")
    plain, _ = mask_image(image, maps, (3,), (48, 48), rule, CrfSettings(0))
    refined, sure = mask_image(image, maps, (3,), (48, 48), rule, CrfSettings())
    assert (plain[:, 22:28] == 3).all()
    assert (refined[:, :28] == 0).all() and (refined[:, 28:] == 3).all()
    # What map and image do not agree upon is unsure.
    assert (sure[:, 22:28] == VOID).all() and (sure[:, 32:] == 3).all() and (sure[:, :12] == 0).all()


def test_the_kernels_reach_grows_with_the_image() -> None:
    options = CrfSettings(gaussian_sxy=3.0, bilateral_sxy=80.0, bilateral_srgb=13.0)
    assert at_size(options, (500, 375)) == options
    half = at_size(options, (100, 250))
    assert (half.gaussian_sxy, half.bilateral_sxy, half.bilateral_srgb) == (1.5, 40, 13)


def test_background_is_taken_from_saliency_maps(tmp_path: Path) -> None:
    settings = Settings(workers=0, masks=MaskSettings(saliency=True), crf=CrfSettings(0))
    (tmp_path / "data").mkdir()
    run = open_run(tmp_path / "run", tmp_path / "data", settings)
    Image.new("RGB", (24, 16)).save(tmp_path / "a.png")
    salient = np.zeros((16, 24), np.uint8)
    salient[4:12] = 255
    Image.fromarray(salient).save(tmp_path / "saliency.png")
    write_maps(map_file(run, "a"), np.full((1, 4, 6), 0.8), (1,))
    sample = Sample("a", tmp_path / "a.png", (1,), saliency=tmp_path / "saliency.png")
    prepared = Prepared(Dataset(tmp_path, "folder", CLASSES, (sample,)), {"a": (16, 24)})
    make_masks(prepared, run)
    assert (read_mask_file(mask_file(run.decided_masks, "a")) == (salient > 0)).all()
    assert (read_mask_file(mask_file(run.masks, "a"))[:3] == VOID).all()  # the map says class, saliency background
    without = dataclasses.replace(sample, saliency=None)
    with pytest.raises(DataError, match=r"a\.png: no saliency map.*masks\.saliency needs one"):
        make_masks(Prepared(Dataset(tmp_path, "folder", CLASSES, (without,)), {"a": (16, 24)}), run)


LARGE = """
import sys
from pathlib import Path
import numpy as np
from tagseg.data.records import Sample
from tagseg.masks.make import make_mask, mask_image
from tagseg.system.process import peak_memory_mb
from tagseg.run.folder import Run

run, image = Run(Path(sys.argv[1])), Path(sys.argv[2])
maps = np.random.default_rng(0).integers(0, 256, (5, 80, 80), np.uint8)
mask_image(None, maps, (1, 2, 3, 4, 5), (640, 640), run.settings().mask_rule())
before = peak_memory_mb()
mask_image(None, maps, (1, 2, 3, 4, 5), (4000, 4000), run.settings().mask_rule())
between = peak_memory_mb()
make_mask(run, Sample("a", image, (1, 2, 3, 4, 5)), (4000, 4000), run.settings())
print(between - before, peak_memory_mb() - before)
"""


def test_sixteen_megapixels_with_five_tags_take_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    run = open_run(tmp_path / "run", tmp_path / "data", Settings())
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).resize((4000, 4000), Image.Resampling.NEAREST).save(tmp_path / "a.png", compress_level=1)
    write_maps(map_file(run, "a"), np.random.default_rng(1).random((5, 80, 80)), (1, 2, 3, 4, 5))
    source = str(Path(write.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", LARGE, run.root, tmp_path / "a.png"],
        env=os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    masks, whole = map(float, done.stdout.split())
    # Two masks are 32 MB, the five maps at full size would be 320; a picture is 48 decoded, and as much as a copy.
    assert 25 < masks < 100 and whole < 300
    for folder in (run.masks, run.decided_masks):
        assert set(np.unique(read_mask_file(mask_file(folder, "a"), (4000, 4000)))) >= {1, 2, 3, 4, 5}


@pytest.fixture
def localised(tmp_path: Path) -> tuple[Prepared, Run]:
    """Return two training images and a validation image, the maps of the former, and a run."""
    (tmp_path / "data").mkdir()
    settings = Settings(workers=0, masks=MaskSettings("threshold", 0.65), crf=CrfSettings(0))
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
    caplog.set_level("WARNING", "tagseg")
    make_masks(prepared, run)
    [message] = [record.getMessage() for record in caplog.records]
    assert message.startswith("1 of 2 masks hold none of their image's tags, first sub/c;")
    caplog.clear()
    make_masks(prepared, run)
    assert not caplog.records
