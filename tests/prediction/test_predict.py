import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tagseg.data.images import read_image, read_mask_file
from tagseg.errors import DataError, RunError
from tagseg.networks.segmenters import Segmenter
from tagseg.prediction.lines import read_predictions
from tagseg.prediction.predict import predict
from tagseg.run.folder import Run
from tagseg.run.lock import hold_folder
from tagseg.run.open import open_run
from tagseg.segment import windows
from tagseg.segment.load import load
from tagseg.segment.predictor import Predictor, configure
from tagseg.settings.crf import CrfSettings
from tagseg.settings.predict import PredictOptions
from tagseg.settings.settings import Settings
from tagseg.system.progress import Track

Interrupted = Callable[[int], Track]

CPU = PredictOptions(device="cpu")
ALWAYS = {"classes.json", "predictions.jsonl"}


def noise(path: Path, size: tuple[int, int] = (40, 30), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), np.uint8)
    Image.fromarray(pixels).resize(size).save(path, **options)
    return path


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_subfolders_and_odd_names(run: Run, tmp_path: Path) -> None:
    photos, out = tmp_path / "my photos", tmp_path / "masks"
    for name in ("a b.jpg", "sub/Größe ü.PNG", "sub/deep/日本.webp", "same.jpg", "same.png", "x.y.jpg"):
        noise(photos / name)
    (photos / "notes.txt").write_text("not an image")
    result = predict(run.root, photos, out, CPU)
    names = {"a b", "sub/Größe ü", "sub/deep/日本", "same.jpg", "same.png", "x.y"}
    assert set(result.ids) == names and result.skipped == () and result.folder == out
    assert written(out) == {f"{name}.png" for name in names} | ALWAYS
    for name in names:
        assert read_mask_file(out / f"{name}.png", (30, 40)).max() <= 2
    with Image.open(out / "a b.png") as picture:
        assert picture.mode == "P"
    assert json.loads((out / "classes.json").read_text(encoding="utf-8")) == {
        "0": "background", "1": "cat", "2": "Bär", "255": "void",
    }  # fmt: skip


def test_a_file_a_pattern_and_a_list(run: Run, tmp_path: Path) -> None:
    one, two = noise(tmp_path / "in/one.png"), noise(tmp_path / "in/two.jpg")
    (tmp_path / "in/readme.md").write_text("")
    assert predict(run.root, one, tmp_path / "a", CPU).ids == ("one",)
    assert predict(run.root, str(tmp_path / "in/*"), tmp_path / "b", CPU).ids == ("one", "two")
    assert predict(run.root, [two, str(one)], tmp_path / "c", CPU).ids == ("two", "one")
    done = predict(run.root, str(tmp_path / "*/*.jpg"), tmp_path / "d", CPU)
    assert done.ids == ("in/two",) and read_mask_file(tmp_path / "d/in/two.png").shape == (30, 40)


def test_without_images_nothing_is_written(run: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.jpg: no such image, folder or pattern"):
        predict(run.root, tmp_path / "nothing.jpg", tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


def test_existing_masks_are_overwritten_only_with_force(run: Run, tmp_path: Path) -> None:
    image, out = noise(tmp_path / "a.jpg"), tmp_path / "out"
    predict(run.root, image, out, CPU)
    (out / "a.png").write_bytes(b"mine")
    noise(tmp_path / "b.jpg")
    with pytest.raises(
        DataError,
        match=r"a\.png: already exists \(1 of the masks do\); choose another --out, add --resume .* or --force",
    ):
        predict(run.root, tmp_path / "*.jpg", out, CPU)
    assert (out / "a.png").read_bytes() == b"mine" and not (out / "b.png").exists()
    predict(run.root, tmp_path / "*.jpg", out, options=PredictOptions(device="cpu", force=True))
    assert read_mask_file(out / "a.png").shape == (30, 40) and (out / "b.png").exists()


def test_masks_do_not_overwrite_images_in_the_same_folder(run: Run, tmp_path: Path) -> None:
    image = noise(tmp_path / "a.png")
    before = image.read_bytes()
    with pytest.raises(DataError, match="its images are in --out"):
        predict(run.root, tmp_path, tmp_path, CPU)
    with pytest.raises(DataError, match="would overwrite the image"):
        predict(run.root, image, tmp_path, PredictOptions(device="cpu", force=True))
    assert image.read_bytes() == before


def test_broken_images_are_skipped_and_listed(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise(tmp_path / "in/good.jpg")
    broken = tmp_path / "in/broken.jpg"
    broken.write_bytes(noise(tmp_path / "whole.jpg", (400, 300)).read_bytes()[:2000])
    noise(tmp_path / "in/large.png", (500, 400))
    with caplog.at_level(logging.WARNING, "tagseg"):
        result = predict(
            run.root, tmp_path / "in", tmp_path / "out", options=PredictOptions(device="cpu", max_megapixels=0.15)
        )
    assert result.ids == ("good",) and written(tmp_path / "out") == {"good.png", *ALWAYS}
    (first, damage), (second, size) = result.skipped
    assert first == str(broken) and "damaged" in damage and second.endswith("large.png") and "too large" in size
    assert caplog.text.count("skipped: ") == 2


def test_it_is_an_error_if_no_image_can_be_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 1 images could be read; first: .*a\.jpg"):
        predict(run.root, tmp_path / "a.jpg", tmp_path / "out", CPU)


def test_a_mask_follows_the_exif_orientation_of_its_image(run: Run, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = noise(tmp_path / "in/turned.jpg", (40, 30), exif=exif)
    predict(run.root, image, tmp_path / "out", options=PredictOptions(device="cpu", overlays=True))
    assert read_mask_file(tmp_path / "out/turned.png").shape == (40, 30)
    with Image.open(tmp_path / "out/turned.overlay.jpg") as picture:
        assert picture.size == (30, 40) and picture.mode == "RGB"


@pytest.mark.parametrize("size", [(300, 170), (1, 1), (1, 500), (7, 5)])
def test_a_mask_has_the_size_of_its_image(size: tuple[int, int], run: Run) -> None:
    predictor = load(run.root, "cpu")
    mask = predictor(Image.new("RGB", size, "red")).mask
    assert mask.shape == size[::-1] and mask.dtype == np.uint8 and mask.max() <= 2


def test_large_images_are_reduced_before_prediction(run: Run) -> None:
    predictor = load(run.root, "cpu")
    seen = []
    predictor.network.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    predictor(Image.new("RGB", (256, 128)))
    predictor(Image.new("RGB", (48, 32)))
    assert set(seen) == {(32, 64), (32, 48)}


def test_each_pixel_gets_the_likeliest_id(run: Run) -> None:
    predictor = load(run.root, "cpu")
    last = predictor.network.net.segmentation_head[0]
    torch.nn.init.zeros_(last.weight)
    for likeliest in range(3):
        last.bias.data = torch.nn.functional.one_hot(torch.tensor(likeliest), 3).float()
        assert (predictor(Image.new("RGB", (50, 40))).mask == likeliest).all()


def test_a_run_without_a_segmenter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        predict(tmp_path, tmp_path, tmp_path / "out")
    run = open_run(tmp_path / "run", tmp_path, Settings())
    with pytest.raises(RunError, match="stage segment has not finished"):
        predict(run.root, tmp_path, tmp_path / "out")


def test_a_damaged_network_is_named(run: Run, tmp_path: Path) -> None:
    other = open_run(tmp_path / "run", tmp_path, Settings())
    with other.stage("segment"):
        other.segmenter.mkdir()
        (other.segmenter / "network.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(RunError, match=r"segmenter/network\.safetensors: missing or damaged"):
        load(other.root, "cpu")


def test_a_predictor_names_its_classes(run: Run) -> None:
    predictor = load(run.root, "cpu")
    assert isinstance(predictor, Predictor) and predictor.classes == ("background", "cat", "Bär")
    assert not predictor.network.training and predictor.scales == (1.0,) and predictor.flip and predictor.max_side == 64


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(text) for text in (out / "predictions.jsonl").read_text("utf-8").splitlines()]


def test_every_image_has_a_line_in_the_order_given(run: Run, tmp_path: Path) -> None:
    good, broken = noise(tmp_path / "in/z.jpg"), tmp_path / "in/m.jpg"
    broken.write_bytes(b"")
    last = noise(tmp_path / "in/a.jpg", (60, 20))
    result = predict(run.root, [good, broken, last], tmp_path / "out", CPU)
    first, second, third = lines(tmp_path / "out")
    assert (first["image"], first["mask"], first["width"], first["height"]) == (str(good), "z.png", 40, 30)
    assert second == {"image": str(broken), "error": dict(result.skipped)[str(broken)]}
    assert (third["image"], third["width"], third["height"]) == (str(last), 60, 20)
    # A line agrees with the mask and with the network's probabilities.
    predictor, mask = load(run.root, "cpu"), read_mask_file(tmp_path / "out/z.png")
    probabilities = predictor.probabilities(read_image(good))
    assert probabilities.shape == (3, 30, 40) and (mask == probabilities.argmax(0)).all()
    found = {part["id"]: part for part in first["classes"]}  # type: ignore[attr-defined]
    assert set(found) == set(np.unique(mask)) - {0} != set()
    for i, part in found.items():
        assert part["name"] == predictor.classes[i]
        assert part["area"] == pytest.approx((mask == i).mean(), abs=1e-4)
        assert part["confidence"] == pytest.approx(probabilities[i][mask == i].mean(), abs=1e-4)


def photos(folder: Path) -> Path:
    """Write images of several sizes in turn, and a broken one."""
    for i in range(11):
        noise(folder / f"{'x' * i}{i:02}.png", ((40, 30), (30, 40), (90, 70))[i % 3])
    (folder / "zz.jpg").write_bytes(b"")
    return folder


@pytest.mark.parametrize("batch", [2, 3, 16])
def test_masks_do_not_depend_on_the_batch(batch: int, run: Run, tmp_path: Path) -> None:
    source = photos(tmp_path / "in")
    one = predict(run.root, source, tmp_path / "1", PredictOptions(device="cpu", batch=1))
    many = predict(run.root, source, tmp_path / "n", PredictOptions(device="cpu", batch=batch))
    assert one.ids == many.ids and len(one.ids) == 11
    for name in one.ids:
        alone, together = (read_mask_file(tmp_path / folder / f"{name}.png") for folder in "1n")
        assert (alone == together).mean() > 0.999
    assert [line["image"] for line in lines(tmp_path / "1")] == [line["image"] for line in lines(tmp_path / "n")]


def test_an_interrupted_prediction_resumes(run: Run, tmp_path: Path, interrupted: Interrupted) -> None:
    source, out = photos(tmp_path / "in"), tmp_path / "in/masks"
    with pytest.raises(KeyboardInterrupt):
        predict(run.root, source, out, CPU, interrupted(4))
    files = [out / str(line["mask"]) for line in lines(out)]
    times = [file.stat().st_mtime_ns for file in files]
    assert len(times) == 4
    with (out / "predictions.jsonl").open("ab") as file:
        file.write(b'{"image": "brok')
    with pytest.raises(DataError, match="add --resume to predict only the images without a mask"):
        predict(run.root, source, out, dataclasses.replace(CPU, batch=3))  # another prediction: not continued unasked
    again = PredictOptions(device="cpu", resume=True)
    done = predict(run.root, source, out, again)
    assert done.kept == 4 and len(done.ids) == 11 and len(done.skipped) == 1
    assert [file.stat().st_mtime_ns for file in files] == times
    # The result is that of an uninterrupted prediction, broken image included; masks are not taken for images.
    predict(run.root, sorted(source.glob("*.*g")), tmp_path / "once", CPU)
    assert lines(out) == lines(tmp_path / "once") and len(lines(out)) == 12
    # Only the broken image is tried again.
    done = predict(run.root, source, out, again)
    assert done.kept == 11 and len(done.ids) == 11 and lines(out) == lines(tmp_path / "once")


def test_lines_of_other_images_are_kept(run: Run, tmp_path: Path) -> None:
    one, two = noise(tmp_path / "1.png"), noise(tmp_path / "2.png")
    for image in (two, one):
        predict(run.root, image, tmp_path / "out", CPU)
    assert [line["image"] for line in lines(tmp_path / "out")] == [str(two), str(one)]
    predict(run.root, two, tmp_path / "out", PredictOptions(device="cpu", force=True))
    assert [line["image"] for line in lines(tmp_path / "out")] == [str(one), str(two)]


def test_probabilities_are_written_on_request(run: Run, tmp_path: Path) -> None:
    small, large = noise(tmp_path / "small.png"), noise(tmp_path / "large.png", (256, 100))
    options = PredictOptions(device="cpu", probabilities=True)
    predict(run.root, [small, large], tmp_path / "out", options)
    found = np.load(tmp_path / "out/small.probabilities.npy", allow_pickle=False)
    assert found.dtype == np.float16 and found.shape == (3, 30, 40)
    assert np.allclose(found.sum(0, dtype=float), 1, atol=2e-3)
    assert (found.argmax(0) == read_mask_file(tmp_path / "out/small.png")).mean() > 0.999
    assert np.load(tmp_path / "out/large.probabilities.npy", allow_pickle=False).shape == (3, 25, 64)


def test_the_crf_refines_masks_on_request(run: Run, tmp_path: Path) -> None:
    image = noise(tmp_path / "a.png", (120, 90))
    plain = predict(run.root, image, tmp_path / "plain", CPU).folder
    refined = predict(run.root, image, tmp_path / "crf", PredictOptions(device="cpu", crf=True)).folder
    before, after = (read_mask_file(folder / "a.png", (90, 120)) for folder in (plain, refined))
    assert (before != after).any()
    # The predictor gives the same mask for the image.
    predictor = configure(load(run.root, "cpu"), PredictOptions(crf=True))
    assert predictor.crf == CrfSettings() and (predictor(read_image(image)).mask == after).all()


def test_options_override_the_networks_own(run: Run) -> None:
    predictor = load(run.root, "cpu")
    assert (predictor.window, predictor.max_side) == (64, 64)
    assert configure(predictor, PredictOptions()) == predictor
    found = configure(
        predictor, PredictOptions(scales=(0.5, 2.0), flip=False, max_side=0, window=96, batch=3, precision="bf16")
    )
    assert (found.scales, found.flip, found.max_side, found.window) == ((0.5, 2.0), False, 0, 96)
    assert (found.batch, found.precision, found.crf) == (3, "bf16", None) and found.network is predictor.network


def wide(size: tuple[int, int]) -> Image.Image:
    """Return an image of patches of 20 pixels in pure colours."""
    draw = np.random.default_rng(0).integers(0, 3, (-(-size[1] // 20), -(-size[0] // 20)))
    pixels = np.eye(3, dtype=np.uint8)[draw].repeat(20, 0).repeat(20, 1) * 255
    return Image.fromarray(pixels[: size[1], : size[0]])


def test_large_images_are_predicted_in_windows(pixelwise: Segmenter) -> None:
    image = wide((400, 240))
    predictor = Predictor(pixelwise, ("background", "a", "b"), (1.0,), False, 0, window=128)
    whole = dataclasses.replace(predictor, window=512)
    assert whole.probabilities(image).shape == (3, 240, 400)
    assert predictor.probabilities(image).shape == (3, 60, 100)
    assert isinstance(pixelwise.sizes, list) and set(pixelwise.sizes[1:]) == {(1, 3, 128, 128)}
    # Patches are aligned with cells: except where corners of several meet, the enlarged cells give the picture.
    truth = np.asarray(image).argmax(2)
    assert (whole(image).mask == truth).all() and (predictor(image).mask == truth).mean() > 0.998
    # An image whose sides are not multiples of a cell is resized to them.
    odd = predictor(wide((397, 239))).mask
    assert odd.shape == (239, 397) and (odd == np.asarray(wide((397, 239))).argmax(2)).mean() > 0.97


def test_an_image_no_larger_than_a_window_takes_one_call(pixelwise: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "window_starts", lambda *_: pytest.fail("windows were made"))
    predictor = Predictor(pixelwise, ("background", "a", "b"), (1.0,), True, 0, window=128)
    predictor(Image.new("RGB", (128, 50)))
    assert pixelwise.sizes == [(2, 3, 52, 128)]  # as it is and mirrored


def test_a_predictor_accepts_images_of_any_mode(run: Run) -> None:
    predictor, image = load(run.root, "cpu"), Image.new("RGB", (40, 30), (200, 10, 90))
    expected = predictor(image).mask
    assert (predictor(image.convert("RGBA")).mask == expected).all()
    assert (predictor(image.quantize(4)).mask == expected).all()
    grey = Image.fromarray(np.full((30, 40), 40_000, np.uint16))
    assert (predictor(grey).mask == predictor(Image.new("RGB", (40, 30), (156,) * 3)).mask).all()


def test_running_out_of_memory_names_the_flags_to_lower(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise(tmp_path / "a.png")
    noise(tmp_path / "b.png")
    with (
        monkeypatch.context() as patched,
        pytest.raises(RunError, match=r"memory ran out \(.*\); lower --batch, --win"),
    ):
        patched.setattr(Predictor, "look", lambda *_: torch.empty(1 << 60))
        predict(run.root, tmp_path, tmp_path / "out", CPU)
    resumed = dataclasses.replace(CPU, resume=True)
    assert len(predict(run.root, tmp_path / "a.png", tmp_path / "out", resumed).ids) == 1


def test_a_name_that_is_too_long_is_one_images_error(run: Run, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", f"{'x' * 250}.png", "z.png"):
        Image.new("RGB", (40, 30)).save(photos / name)
    done = predict(run.root, photos, tmp_path / "out", PredictOptions(overlays=True))
    assert done.ids == ("a", "z") and "is too long a name; rename the image" in done.skipped[0][1]
    assert [line.error is None for line in read_predictions(tmp_path / "out/predictions.jsonl")] == [True, False, True]


def test_masks_of_a_run_are_not_replaced(run: Run, photos: list[Path]) -> None:
    for out in (run.root, run.root / "segmenter", run.masks / "new", run.predictions):
        with pytest.raises(DataError, match=r"must not be where the run .* keeps its own files"):
            predict(run.root, photos, out)


def test_a_second_prediction_into_one_folder_is_refused(
    run: Run, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tagseg.run.lock.PATIENCE_S", 0.0)
    with (
        hold_folder(tmp_path / "out"),
        pytest.raises(RunError, match="another tagseg command is writing to it"),
    ):
        predict(run.root, photos, tmp_path / "out")


def test_the_same_call_continues_and_leaves_files_that_look_temporary(
    run: Run, tmp_path: Path, interrupted: Callable[[int], Track]
) -> None:
    photos, out, whole = tmp_path / "photos", tmp_path / "out", tmp_path / "whole"
    photos.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (40, 30)).save(photos / name)
    predict(run.root, photos, whole)
    out.mkdir()
    (out / ".writing-holiday.png").write_bytes(b"mine")
    with pytest.raises(KeyboardInterrupt):
        predict(run.root, photos, out, track=interrupted(1))
    (out / ".writing-0123456789abcdef.png").write_bytes(b"half")
    with pytest.raises(DataError, match="already exists"):  # another prediction is not continued
        predict(run.root, photos, out, PredictOptions(overlays=True))
    assert predict(run.root, photos, out).kept >= 1
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in whole.iterdir()} | {".writing-holiday.png"}
    for path in whole.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
