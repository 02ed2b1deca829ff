import dataclasses
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tagseg.cli.main import main
from tagseg.data.images import read_mask_file
from tagseg.errors import DataError, RunError
from tagseg.masks.foreign_maps import MOST_SIDE, mask_from_maps, read_foreign_maps, to_shares
from tagseg.masks.make import mask_sample
from tagseg.masks.map_files import map_file, read_maps
from tagseg.pipeline import fit, fit_until, run_stage
from tagseg.review.assess import assess
from tagseg.run.decisions import Decision
from tagseg.run.doctor import examine
from tagseg.run.folder import Run
from tagseg.settings.crf import CrfSettings
from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.masks import MaskSettings
from tagseg.settings.settings import Settings

CLASSES = ("bird", "cat", "dog")
TAGS = (1, 3)
BIRD = np.array([[0.0, 2.0], [4.0, -1.0]])
DOG = np.array([[5.0, 0.0], [0.0, 10.0]])
SHARES = np.array([[[0, 0.5], [1, 0]], [[0.5, 0], [0, 1]]], np.float32)


def save(path: Path, *arrays: Any, **named: Any) -> Path:
    if path.suffix == ".npy":
        np.save(path, *arrays)
    else:
        np.savez(path, *arrays, **named)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npz", {"bird": BIRD, "dog": DOG}),
        ("a.npz", {"dog": DOG, "1": BIRD, "background": BIRD, "2": DOG, "giraffe": DOG}),
        ("a.npz", {"maps": np.stack([DOG, BIRD]), "classes": np.array([3, 1])}),
        ("a.npz", {"maps": np.stack([DOG, DOG, BIRD]), "classes": np.array(["background", "dog", "bird"])}),
        ("a.npz", {"maps": np.stack([BIRD, DOG])}),
        ("a.npy", np.stack([BIRD, DOG])),
        ("a.npy", np.stack([BIRD, -DOG, DOG])),
        ("a.npy", np.asfortranarray(np.stack([BIRD, DOG]).astype(np.float16))),
        ("a.npy", np.stack([BIRD, DOG]).astype(np.int8)),
    ],
)
def test_every_format_gives_the_maps_of_the_tags_in_order(name: str, content: Any, tmp_path: Path) -> None:
    named = isinstance(content, dict)
    path = save(tmp_path / name, *([] if named else [content]), **(content if named else {}))
    assert np.array_equal(read_foreign_maps(path, TAGS, CLASSES), SHARES)


def test_the_map_of_a_single_tag_may_have_two_dimensions(tmp_path: Path) -> None:
    found = read_foreign_maps(save(tmp_path / "a.npy", DOG), (2,), CLASSES)
    assert np.array_equal(found, SHARES[1:])


def test_probabilities_are_kept(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", bird=SHARES[0] / 4, dog=SHARES[1] * 1.0005)
    found = read_foreign_maps(path, TAGS, CLASSES, probabilities=True)
    assert np.array_equal(found, np.stack([SHARES[0] / 4, SHARES[1] * np.float32(1.0005)]).clip(0, 1))


def test_a_map_without_positive_values_becomes_zero(tmp_path: Path) -> None:
    assert not to_shares([np.zeros((3, 4)), np.full((3, 4), -2)]).any()


def test_large_maps_are_reduced_and_keep_their_shape() -> None:
    ramp = np.tile(np.arange(4096, dtype=np.float32), (1000, 1))
    (share,) = to_shares([ramp])
    assert share.shape == (250, MOST_SIDE)
    assert np.allclose(share[0] * share[0, -1] ** -1, np.arange(1.5, 4096, 4) / 4093.5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", np.array({"bird": BIRD}), r"a\.npy contains Python objects, which are never unpickled"),
        ("a.npz", {"bird": np.array([None]), "dog": DOG}, r"bird\.npy contains Python objects"),
        ("a.npz", {"bird": BIRD}, r"expected one map of the tag dog \(id 3\), found 0; the file contains bird"),
        ("a.npz", {"bird": BIRD, "1": BIRD, "dog": DOG}, r"expected one map of the tag bird \(id 1\), found 2"),
        ("a.npz", {"bird": BIRD, "dog": DOG[:1]}, r"all maps must have the same size, got \(2, 2\), \(1, 2\)"),
        (
            "a.npz",
            {"maps": BIRD[None], "classes": np.array([1, 3])},
            r"expected maps of shape \(k, h, w\) and k names or ids",
        ),
        ("a.npz", {"maps": BIRD[None], "classes": np.array([1.0])}, r"classes of type float64"),
        (
            "a.npy",
            np.stack([BIRD] * 4),
            r"expected .* k = 2, one map per tag \(bird, dog\), or k = 3.* shape \(4, 2, 2\)",
        ),
        ("a.npy", BIRD, r"expected an array .* shape \(1, 2, 2\)"),
        ("a.npy", np.zeros((2, 0, 5)), r"a map must contain numbers .* got float64 and shape \(0, 5\)"),
        ("a.npy", np.zeros((2, 4, 5), complex), "a map must contain numbers .* got complex128"),
        ("a.npy", np.array([BIRD, DOG * np.nan]), "NaN or infinite"),
        ("a.npy", np.array([BIRD, DOG * 1e300]), "NaN or infinite"),
    ],
)
def test_unusable_maps_are_named(name: str, content: Any, message: str, tmp_path: Path) -> None:
    named = isinstance(content, dict)
    path = save(tmp_path / name, *([] if named else [content]), **(content if named else {}))
    with pytest.raises(DataError, match=rf"^{path}: cannot use its maps: .*{message}"):
        read_foreign_maps(path, TAGS, CLASSES)


def test_values_outside_0_to_1_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"probabilities must be 0 to 1 .*, got values from -1 to 4"):
        read_foreign_maps(save(tmp_path / "a.npy", np.stack([BIRD, DOG])), TAGS, CLASSES, probabilities=True)


def test_claims_of_enormous_maps_take_no_memory(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 100000, 100000), }".ljust(117) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header)
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "a.npy", "maps.npy")
    for name in ("a.npy", "b.npz"):
        with pytest.raises(DataError, match=rf"{name}: .*claims 80000000000 of "):
            read_foreign_maps(tmp_path / name, TAGS, CLASSES)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@settings(max_examples=150)
@given(data=st.data())
def test_flipped_bits_never_end_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    save(path, np.stack([BIRD, DOG])) if name == "a.npy" else save(path, bird=BIRD, dog=DOG)
    content = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        found = read_foreign_maps(path, TAGS, CLASSES)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert found.dtype == np.float32 and len(found) == 2 and 0 <= found.min() <= found.max() <= 1


def test_a_mask_from_any_maps() -> None:
    """Two halves of an image: each class where its map is high, whatever the scale of its numbers."""
    image = np.zeros((30, 60, 3), np.uint8)
    image[:, 20:40], image[:, 40:] = 128, 255
    place = np.arange(12)
    maps = np.stack([np.tile(np.where(place < 4, 300, -5), (6, 1)), np.tile(np.where(place >= 8, 1, 0), (6, 1))])
    decided, sure = mask_from_maps(image, maps, (9, 2))
    expected = np.repeat([9, 0, 2], 20)
    assert (decided == expected).mean() > 0.99 and (decided[:, [5, 30, 55]] == [9, 0, 2]).all()
    assert (sure[:, [5, 30, 55]] == [9, 0, 2]).all()
    flat = np.full((1, 6, 12), 0.4)
    for threshold, found in ((True, 0), (False, 9)):  # as a probability, 0.4 is less than background's 0.6
        crf, rule = CrfSettings(steps=0), MaskSettings()
        assert (mask_from_maps(image, flat, (9,), rule, crf, threshold)[0] == found).all()
    with pytest.raises(ValueError, match=r"expected one id, 1 to 254, per map; got 1 maps and the ids \(1, 2\)"):
        mask_from_maps(image, flat, (1, 2))


Call = Callable[..., tuple[int, str]]


@pytest.fixture
def told(call: Callable[..., tuple[int, str, str]]) -> Call:
    """Return a function that calls the command line and returns its status and its whole output as one line."""

    def told(*arguments: str | Path) -> tuple[int, str]:
        status, *said = call(*arguments)
        return status, " ".join("".join(said).split())

    return told


@pytest.fixture(scope="module")
def cams(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return maps of the discs like those of another method: the redness or blueness of each pixel."""
    folder = tmp_path_factory.mktemp("cams")
    for i in range(9):
        pixels = np.asarray(Image.open(discs / "images" / f"{i}.png"), np.float32)
        maps: dict[str, Any] = {"red": pixels[..., 0] - pixels[..., 2], "blue": pixels[..., 2] - pixels[..., 0]}
        np.savez(folder / f"{i}.npz", **{name: maps[name] for name in (("red",), ("blue",), ("red", "blue"))[i % 3]})
    return folder


@pytest.fixture(scope="module")
def quick(tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("settings") / "quick.toml"
    segment = {"decoder_channels": 8, "epochs": 1, "batch": 2, "crop": 32, "max_side": 64, "predict_scales": [1.0]}
    file.write_text(Settings.from_dict(tiny.to_dict() | {"segment": segment, "report": {"examples": 1}}).to_toml())
    return file


@pytest.fixture(scope="module")
def masked(discs: Path, cams: Path, quick: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("foreign") / "run")
    with pytest.raises(SystemExit) as leaving:
        main(["masks", str(run.root), "--maps-from", str(cams), "--data", str(discs), "--settings", str(quick)])
    assert not leaving.value.code
    return run


def test_a_run_from_foreign_maps_only(masked: Run, discs: Path, cams: Path) -> None:
    manifest = masked.manifest()
    assert list(manifest.stages) == ["localise", "masks"] and not masked.network.exists()
    noted = manifest.stages["localise"]
    assert (noted.maps_from, noted.maps_hold, noted.images) == (str(cams), "activations", 9)
    assert set(noted.files) == {"data.json", *(f"maps/{i}.npz" for i in range(9))}
    for i in range(4):
        truth = np.asarray(Image.open(discs / "masks" / f"{i}.png"))
        assert (read_mask_file(masked.decided_masks / f"{i}.png") == truth).mean() > 0.98
    checkup = examine(masked.root)
    assert not checkup.damage and checkup.finished == {"localise": 10, "masks": 20}
    assert "Nothing is damaged. Continue with" in checkup.advice[0]


def test_fit_continues_with_a_network_a_report_and_scores(masked: Run, discs: Path, cams: Path, tmp_path: Path) -> None:
    run = Run(shutil.copytree(masked.root, tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in [*run.maps.iterdir(), *run.masks.iterdir()]}
    fitted = fit(discs, run.root)
    assert fitted is not None and fitted.evaluation.pseudo_masks is not None
    assert fitted.evaluation.pseudo_masks.miou > 0.95 and str(cams) in run.report_file.read_text()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert list(run.manifest().stages) == ["localise", "masks", "segment", "evaluate", "report"]
    assert examine(run.root).advice == ("Nothing is damaged.",)
    judged = assess(run)  # without a classification network
    assert len(judged) == 9 and all(0 <= one.score <= 1 for one in judged.values())
    with pytest.raises(RunError, match=r"makes masks from the maps in .*; it has no stage train"):
        run_stage(run.root, "train")


def test_an_interrupted_import_resumes(masked: Run, discs: Path, cams: Path, tmp_path: Path, told: Call) -> None:
    run, source = Run(shutil.copytree(masked.root, tmp_path / "run")), Path(shutil.copytree(cams, tmp_path / "cams"))
    command = ("masks", run.root, "--maps-from", source)
    status, text = told(*command)
    assert status == 2 and "localise.maps_from was" in text and "--force" in text
    (source / "4.npz").write_bytes((source / "4.npz").read_bytes()[:100])
    status, text = told(*command, "--force")
    assert status == 2 and f"{source / '4.npz'}: cannot use its maps" in text
    assert not run.done("localise") and examine(run.root).unfinished["localise"] >= 1
    kept = map_file(run, "0").stat().st_mtime_ns
    shutil.copy(cams / "4.npz", source / "4.npz")
    assert told(*command) == (0, f"Stage masks done: {run.root}")
    assert map_file(run, "0").stat().st_mtime_ns == kept
    for i in range(9):
        for folder in ("masks", "masks_without_void"):
            name = f"{folder}/{i}.png"
            assert (run.root / name).read_bytes() == (masked.root / name).read_bytes()


def test_other_maps_than_before_are_refused_or_read_again(discs: Path, cams: Path, quick: Path, tmp_path: Path) -> None:
    source, run = Path(shutil.copytree(cams, tmp_path / "cams")), Run(tmp_path / "run")
    localise = LocaliseSettings(maps_from=str(source))
    fit_until(discs, run.root, "masks", dataclasses.replace(Settings.from_toml(quick), localise=localise))
    before = map_file(run, "0").read_bytes()
    np.savez(source / "0.npz", blue=np.eye(6, dtype=np.float32), red=np.eye(6, dtype=np.float32))
    asked = (
        rf"the files in {source} have changed since stage localise read them.*--force` \(the stages from localise on"
    )
    for stage in ("masks", "report"):
        with pytest.raises(RunError, match=asked):
            fit_until(discs, run.root, stage)
    assert map_file(run, "0").read_bytes() == before and run.done("masks")
    fit_until(discs, run.root, "masks", force=True)
    assert map_file(run, "0").read_bytes() != before and not examine(run.root).damage
    fit_until(discs, run.root, "masks")  # now it is known


def test_other_maps_after_a_kill_replace_those_before(masked: Run, discs: Path, cams: Path, tmp_path: Path) -> None:
    source, run = Path(shutil.copytree(cams, tmp_path / "cams")), Run(tmp_path / "run")
    localise = LocaliseSettings(maps_from=str(source))
    settings = dataclasses.replace(masked.settings(), localise=localise)
    fit_until(discs, run.root, "masks", settings)
    stages = run.manifest().without_stages(["localise", "masks"])  # as a kill before the first one was recorded
    run.store(stages)
    np.savez(source / "0.npz", blue=np.eye(6, dtype=np.float32), red=np.eye(6, dtype=np.float32))
    kept = map_file(run, "1").stat().st_mtime_ns
    fit_until(discs, run.root, "masks")
    fit_until(discs, tmp_path / "again", "masks", settings)
    assert map_file(run, "1").stat().st_mtime_ns == kept
    for name in ("maps/0.npz", "masks/0.png", "masks_without_void/0.png"):
        assert (run.root / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_missing_maps_are_named(masked: Run, discs: Path, cams: Path, tmp_path: Path, told: Call) -> None:
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(cams / "0.npz", few)
    for folder, message in (
        (tmp_path / "nowhere", "nowhere: not a folder; expected a folder of .npz or .npy maps"),
        (few, "few: maps are missing for 8 of the 9 training images, such as 1.npz or .npy"),
    ):
        status, text = told("masks", tmp_path / folder.name[::-1], "--maps-from", folder, "--data", discs,
                            "--data.min-images", "2", "--workers", "0")  # fmt: skip
        assert status == 2 and message in text
    status, text = told("masks", tmp_path / "none", "--maps-from", cams)
    assert status == 2 and "not a run folder" in text
    message = r"setting localise\.maps-from must be empty, got .*an ablation compares the maps of its own"
    with pytest.raises(ValueError, match=message):
        from tagseg.studies.ablation.ablate import ablate

        ablate(discs, tmp_path / "arms", masked.settings())


def test_background_has_the_probability_that_the_maps_leave(masked: Run, discs: Path, tmp_path: Path) -> None:
    source = tmp_path / "probabilities"
    source.mkdir()
    for i in range(9):
        np.save(source / f"{i}.npy", np.full((len((1, 2)[: 1 + (i % 3 == 2)]), 5, 7), 0.375, np.float32))
    values = masked.settings().to_dict()
    values["localise"] |= {"maps_from": str(source), "maps_hold": "probabilities"}
    asked = Settings.from_dict(values)
    assert asked.has_posteriors() and asked.mask_rule().background == "rest"
    run = Run(tmp_path / "run")
    assert fit_until(discs, run.root, "masks", asked) == run
    maps, classes = read_maps(map_file(run, "2"))
    assert classes == (1, 2) and maps.shape == (2, 5, 7) and (maps == round(0.375 * 255)).all()
    # One tag has less than background's 0.625; two, 0.375 each, have more than its 0.25.
    assert not read_mask_file(run.decided_masks / "0.png").any() and read_mask_file(run.decided_masks / "2.png").all()
    only = mask_sample(run, _sample(run, "2"), (48, 64), asked, Decision(off=(2,)))[0]
    assert not only.any()


def _sample(run: Run, name: str) -> Any:
    from tagseg.data.prepare import prepare

    (found,) = (sample for sample in prepare(run).dataset.samples if sample.id == name)
    assert json.loads(run.data_file.read_text())["classes"] == ["blue", "red"]
    return found
