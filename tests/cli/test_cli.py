import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import tagseg
from tagseg.cli.app import app
from tagseg.cli.main import main
from tagseg.run.folder import Run
from tagseg.run.manifest import Manifest
from tagseg.run.stages import STAGES
from tagseg.settings.presets import preset
from tagseg.settings.settings import Settings

COMMANDS = (
    "fit",
    "predict",
    "inspect",
    "demo",
    "ablate",
    "bench",
    "atlas",
    "calibrate",
    "worst",
    "doctor",
    "export-model",
    "export",
    "import",
    "review",
    *STAGES,
)
SMALL = """\
device = "cpu"
workers = 0
[data]
min-images = 2
[train]
backbone = "test_resnet"
weights = "random"
freeze_stride = 0
neck = 16
epochs = 1
batch = 4
crop = 33
steps = []
[rca]
confidence = 0.0
slots = 8
prototypes = 2
[localise]
scales = [1.0]
max_side = 64
[segment]
epochs = 1
batch = 4
crop = 32
max_side = 64
predict_scales = [1.0]
[report]
examples = 2
"""

Called = tuple[int, str, str]
Call = Callable[..., Called]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with eight tagged images in `photos` and settings for tiny networks in `small.toml`."""
    home = tmp_path_factory.mktemp("cli")
    (home / "photos").mkdir()
    rows = ["image,tags"]
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((40, 32)).save(home / "photos" / f"{i}.png")
        rows.append(f"{i}.png,{('cat', '[red]x|cat', 'big dog')[i % 3]}")
    (home / "photos" / "tags.csv").write_text("\n".join(rows) + "\n")
    (home / "small.toml").write_text(SMALL)
    return home


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    with pytest.raises(SystemExit) as leaving:
        main(["fit", str(home / "photos"), "--out", str(home / "run"), "--settings", str(home / "small.toml")])
    assert not leaving.value.code
    return home / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    """Return a copy of a finished run that a test may change."""
    return Run(shutil.copytree(finished, tmp_path / "run"))


def test_the_overview_names_every_command(call: Call) -> None:
    status, text, _ = call("--help")
    assert status == 0 and all(f" {command} " in text for command in COMMANDS)
    assert call("--version")[1].strip() == tagseg.__version__


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command: str, call: Call) -> None:
    status, text, _ = call(command, "--help")
    examples = [line.strip() for line in text.splitlines() if line.strip().startswith(f"tagseg {command}")]
    assert status == 0 and examples and "Usage: tagseg" in text


def test_fit_says_where_its_results_are(run: Run, home: Path, call: Call) -> None:
    status, text, _ = call("fit", home / "photos", "--out", run.root)
    assert status == 0 and "nothing to score" in text
    for line in (f"Masks      {run.masks}", f"Report     {run.report_file}", f"tagseg predict {run.root} IMAGES --out"):
        assert line in text
    assert run.settings() == Settings.from_toml(home / "small.toml")


def test_fit_until_a_stage(home: Path, tmp_path: Path, call: Call) -> None:
    small = ("--settings", home / "small.toml")
    status, text, _ = call("fit", home / "photos", "--out", tmp_path / "run", "--until", "localise", *small)
    assert status == 0 and f"Done up to stage localise: {tmp_path / 'run'}" in text
    assert tuple(Run(tmp_path / "run").manifest().stages) == STAGES[:2]
    status, text, _ = call("masks", tmp_path / "run")
    assert status == 0 and f"Stage masks done: {tmp_path / 'run'}" in text
    status, _, error = call("evaluate", tmp_path / "run")
    assert status == 2 and "stage segment has not finished; run `tagseg segment" in error


def test_flags_beat_the_file_which_beats_the_saved_settings(run: Run, home: Path, tmp_path: Path, call: Call) -> None:
    run.discard("train")
    (tmp_path / "my.toml").write_text("[segment]\nepochs = 7\nlr = 0.5\n[report]\ntitle = 'mine'\n")
    status, _, error = call(
        *("train", run.root, "--settings", tmp_path / "my.toml", "--segment.lr", "0.25", "--segment.no-predict-flip")
    )
    assert status == 0, error
    found = run.settings()
    assert (found.segment.lr, found.segment.predict_flip) == (0.25, False)  # flags
    assert (found.segment.epochs, found.report.title) == (7, "mine")  # the file
    assert (found.train.backbone, found.segment.crop, found.train.steps) == ("test_resnet", 32, ())  # the run's own
    assert found.train.lr == Settings().train.lr


def test_lists_are_given_as_flags(home: Path, tmp_path: Path, call: Call) -> None:
    status, _, error = call(
        *("fit", home / "photos", "--out", tmp_path / "run", "--settings", home / "small.toml", "--until", "train"),
        *("--localise.scales", "0.5", "--localise.scales", "1.5", "--train.scale", "0.2", "0.9", "--train.steps", "3"),
    )
    assert status == 0, error
    found = Run(tmp_path / "run").settings()
    assert (found.localise.scales, found.train.scale, found.train.steps) == ((0.5, 1.5), (0.2, 0.9), (3,))


def test_other_settings_need_force(run: Run, home: Path, call: Call) -> None:
    status, text, error = call("fit", home / "photos", "--out", run.root, "--masks.power", "3")
    assert (
        status == 2 and "masks.power was 2.0, now 3.0" in error and "--force to run it again from stage masks" in error
    )
    assert run.done("report") and "Traceback" not in text + error
    status, _, error = call("masks", run.root, "--masks.power", "3", "--force")
    assert status == 0 and tuple(run.manifest().stages) == STAGES[:3] and run.settings().masks.power == 3.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "nowhere", "--out", "new"], r"nowhere: no such data folder"),
        (["inspect", "nowhere"], "nowhere: no such folder, expected the data folder"),
        (["fit", "empty", "--out", "new"], "empty: found no images in a known layout; looked for JPEGImages"),
        (["fit", "photos", "--out", "photos"], "photos: exists and is not a run folder; choose another --out"),
        (["fit", "photos"], "--out"),
        (["fit", "photos", "--out", "new", "--until", "lunch"], "--until"),
        (["fit", "photos", "--out", "new", "--segment.epochs", "x"], "--segment.epochs must be a whole number, got x"),
        (["fit", "photos", "--out", "new", "--train.stride", "7"], "--train.stride"),
        (["fit", "photos", "--out", "new", "--segment.epochs", "-1"], "segment.epochs must be 0 or more, got -1"),
        (["fit", "photos", "--out", "new", "--train.epoch", "3"], "--train.epoch"),
        (["fit", "photos", "--out", "new", "--preset", "mine"], "--preset must be one of paper-voc, paper-coco, "),
        (["fit", "photos", "--out", "new", "--settings", "none.toml"], "none.toml: cannot read the settings file"),
        (["fit", "photos", "--out", "new", "--settings", "odd.toml"], "odd.toml: unknown setting train.epoch; known"),
        (["fit", "photos", "--out", "new", "--settings", "low.toml"], "low.toml: setting train.epochs must be 0 or mo"),
        (["fit", "photos", "--out", "new", "--settings", "bad.toml"], "bad.toml: not a TOML file"),
        (["train", "photos"], "photos: not a run folder (no manifest.json)"),
        (["predict", "photos", "photos", "--out", "new"], "photos: not a run folder (no manifest.json)"),
        (["predict", "run", "nothing.jpg", "--out", "new"], "nothing.jpg: no such image, folder or pattern"),
        (["predict", "run", "photos", "--out", "new", "--device", "tpu"], "--device must be auto, cpu, cuda, "),
        (["export-model", "photos", "--out", "new"], "photos: not a run folder (no manifest.json)"),
        (["export-model", "run", "--out", "photos"], "photos: holds files that no export wrote (0.png, 1.png, 2"),
        (["atlas", "photos"], "photos: not a run folder (no manifest.json)"),
        (["atlas", "run", "--per-class", "0", "--out", "new"], "--per-class must be 1 or more, got 0"),
        (["calibrate", "run"], "--masks"),
        (["calibrate", "run", "--masks", "none"], "none: no such file or folder, expected a folder of true masks"),
        (["export", "photos", "--to", "coco", "--out", "new"], "photos: not a run folder (no manifest.json)"),
        (["export", "run", "--to", "tiff", "--out", "new"], "--to"),
        (["export", "run", "--to", "hf", "--images", "none", "--out", "new"],
         "--images none: not supported by --to hf, expected copy or link"),
        (["import", "none.json", "--run", "run", "--out", "new"], "none.json: no such file or folder, expected a COCO"),
        (["review", "photos"], "photos: not a run folder (no manifest.json)"),
        (["review", "run", "--port", "70000"], "--port must be 0 or more and at most 65535, got 70000"),
        (["doctor", "photos"], "photos: not a run folder (no manifest.json)"),
        (["train", "run"], "stage train is done; --force runs it again"),
        (["ablate", "photos", "--out", "new", "--data.min-images", "2"], "photos: no training image has a true mask"),
        (["ablate", "photos", "--out", "new", "--arms", "cam,all"], "--arms must be some of cam,contrast,aggregation,"),
        (["breakfast"], "breakfast"),
    ],
)  # fmt: skip
def test_errors_are_one_line_on_standard_error(
    arguments: list[str], message: str, finished: Path, home: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.chdir(home)
    Path("empty").mkdir(exist_ok=True)
    Path("odd.toml").write_text("[train]\nepoch = 3\n")
    Path("low.toml").write_text("[train]\nepochs = -1\n")
    Path("bad.toml").write_text("[train\n")
    status, text, error = call(*arguments)
    assert status == 2
    assert message in " ".join(error.replace("│", " ").split())
    assert "Traceback" not in text + error
    shutil.rmtree("new", ignore_errors=True)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_says_how_to_continue(
    number: signal.Signals, status: int, finished: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    def interrupted(*_: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr("tagseg.pipeline.run_stage", interrupted)
    assert call("masks", finished) == (status, "", "Interrupted. Run the same command again to continue.\n")
    monkeypatch.setattr("tagseg.prediction.predict.predict", interrupted)
    said = "Interrupted. Run the same command again with --resume to continue.\n"
    assert call("predict", finished, finished, "--out", "masks") == (status, "", said)


def test_unavailable_weights_name_both_ways(home: Path, tmp_path: Path, call: Call) -> None:
    fit = ("fit", home / "photos", "--out", tmp_path / "run", "--settings", home / "small.toml", "--until", "train")
    status, _, error = call(*fit, "--train.weights", "timm")
    assert status == 2 and "Connect once so that timm can download them" in error
    assert "--train.weights FILE.safetensors" in error and "Traceback" not in error
    status, _, error = call(*fit, "--train.weights", tmp_path / "none.safetensors")
    assert status == 2 and "none.safetensors: not found; give timm, random or the path" in error
    assert call(*fit, "--train.weights", "random")[0] == 0


def test_an_unknown_device(home: Path, tmp_path: Path, call: Call) -> None:
    fit = ("fit", home / "photos", "--out", tmp_path / "run", "--settings", home / "small.toml", "--until", "train")
    status, _, error = call(*fit, "--device", "tpu")
    assert status == 2 and "Error: --device must be auto, cpu, cuda, cuda:1 or mps, got tpu" in error
    status, _, error = call(*fit, "--device", "cuda:7")
    assert status == 2 and "Error: --device cuda:7: not available here" in error and "try auto or cpu" in error
    assert call(*fit, "--device", "cpu")[0] == 0


def test_predict_writes_masks_and_lists_what_it_skipped(finished: Path, tmp_path: Path, call: Call) -> None:
    Image.new("RGB", (50, 40)).save(tmp_path / "new [blue].jpg")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    predict = ("predict", finished, tmp_path, "--out", tmp_path / "out", "--device", "cpu")
    status, text, error = call(*predict, "--overlays")
    assert status == 0 and f"1 masks: {tmp_path / 'out'}" in text
    assert "skipped: " in error and "broken.jpg" in error.replace("\n", "")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "new [blue].png", "new [blue].overlay.jpg", "classes.json", "predictions.jsonl",
    }  # fmt: skip
    status, _, error = call(
        "predict", finished, tmp_path / "new [blue].jpg", "--out", tmp_path / "out", "--device", "cpu"
    )
    assert status == 2 and "already exists (1 of the masks do)" in error


def test_an_exported_model_predicts_like_its_run(finished: Path, tmp_path: Path, call: Call) -> None:
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "a.png")
    status, text, error = call("export-model", finished, "--out", tmp_path / "model")
    assert status == 0 and error == "", error
    assert f"Model: {tmp_path / 'model'} (README.md, model.safetensors, network.json)" in " ".join(text.split())
    status, _, error = call("export-model", finished, "--out", tmp_path / "model")
    assert status == 2 and "model: exists; choose another --out or --force" in " ".join(error.split())
    for source, out in ((finished, "one"), (tmp_path / "model", "two")):
        assert call("predict", source, tmp_path / "a.png", "--out", tmp_path / out, "--device", "cpu")[0] == 0
    assert (tmp_path / "one/a.png").read_bytes() == (tmp_path / "two/a.png").read_bytes()


def test_ablate_prints_the_table_and_its_place(home: Path, tmp_path: Path, call: Call) -> None:
    data = shutil.copytree(home / "photos", tmp_path / "photos")
    (tmp_path / "masks").mkdir()
    for i in range(3):
        Image.new("L", (40, 32), i).save(tmp_path / "masks" / f"{i}.png")
    out, small = tmp_path / "out", ("--settings", home / "small.toml", "--data.masks", tmp_path / "masks")
    status, text, error = call("ablate", data, "--out", out, "--seeds", "1", "--arms", "cam,both", *small)
    assert status == 0, error
    assert "| both | " in text and f"Table and picture: {out / 'ablation.md'}, {out / 'ablation.svg'}" in text
    assert {path.name for path in out.glob("*_*")} == {"cam_0", "both_0"}
    # The folder's settings are kept, as those of a run are.
    status, text, error = call("ablate", data, "--out", out, "--seeds", "1", "--arms", "cam", "--first-seed", "4")
    assert status == 0 and "| cam | " in text and "| 0, 4 |" in text, error
    assert Run(out / "cam_4").settings().train.backbone == "test_resnet"


def test_atlas_writes_a_page(run: Run, home: Path, tmp_path: Path, call: Call) -> None:
    page = tmp_path / "page.html"
    images = ("--image", home / "photos" / "0.png", "--image", home / "photos" / "1.png")
    status, text, error = call("atlas", run.root, *images, "--out", page, "--device", "cpu", "--per-class", "2")
    assert status == 0 and text.strip() == f"Atlas: {page}", error
    assert "Your images" in page.read_text() and not (run.root / "atlas.html").exists()
    status, _, error = call("atlas", run.root, "--device", "cpu")
    assert status == 0 and "Your image" not in (run.root / "atlas.html").read_text()
    status, _, error = call("atlas", run.root, "--device", "cpu")
    assert status == 2 and "atlas.html: exists; choose another --out or --force" in " ".join(error.split())
    assert call("atlas", run.root, "--device", "cpu", "--force")[0] == 0


def test_doctor_tells_an_intact_run_from_a_damaged_one(run: Run, call: Call) -> None:
    status, text, _ = call("doctor", run.root)
    assert status == 0 and "train: 5 files, none damaged" in text and text.endswith("Nothing is damaged.\n")
    (run.masks / "3.png").write_bytes(b"")
    status, text, error = call("doctor", run.root)
    assert status == 1 and "  changed: masks/3.png" in text and f"tagseg masks {run.root} --force" in text, error
    assert call("masks", run.root, "--force")[0] == 0 and call("doctor", run.root)[0] == 0


def test_masks_are_exported_and_imported_again(run: Run, tmp_path: Path, call: Call) -> None:
    coco, back = tmp_path / "coco", tmp_path / "back"
    status, text, error = call("export", run.root, "--to", "coco", "--out", coco, "--parts", "--min-part", "2")
    assert status == 0 and text.strip() == f"8 masks: {coco}", error
    # A name in brackets is not markup here either.
    assert '"name": "[red]x"' in (coco / "annotations" / "instances_train.json").read_text()
    assert call("export", run.root, "--to", "voc", "--out", coco)[0] == 2
    assert call("export", run.root, "--to", "voc", "--out", coco, "--force")[0] == 0
    (coco / "SegmentationClass" / "3.png").unlink()
    status, text, error = call("import", coco, "--run", run.root, "--out", back, "--with-pseudo")
    assert status == 0 and f"7 corrected masks and 1 of the run's own: {back}" in text, error
    assert f"Learn from them: tagseg segment {run.root} --labels {back} --force" in text
    status, _, error = call("segment", run.root, "--labels", back, "--force")
    assert status == 0 and run.settings().segment.labels == str(back), error


def test_review_opens_the_page_unless_told_not_to(finished: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    opened = []
    monkeypatch.setattr("tagseg.review.server.make_server", lambda app: SimpleNamespace(run=lambda sockets: None))
    monkeypatch.setattr("tagseg.cli.review.open_browser", opened.append)
    status, text, error = call("review", finished)
    assert status == 0 and text.startswith("Review: http://127.0.0.1:") and text.endswith("Stopped.\n"), error
    assert opened == [text.split()[1]] and len(opened[0].split("/")[3]) >= 32, "a token that cannot be guessed"
    assert call("review", finished, "--no-browser")[0] == 0 and len(opened) == 1


def test_inspect_shows_counts_the_table_and_warnings(home: Path, call: Call) -> None:
    status, text, _ = call("inspect", home / "photos", "--data.min-images", "3")
    assert status == 0
    assert "Layout folder: 8 train images (0 with masks, 0 with saliency maps)" in text
    assert "Sizes from 40 x 32 to 40 x 32 pixels" in text and "Tags per training image: 5 with 1, 3 with 2" in text
    rows = {cells[0]: cells[1:] for line in text.splitlines() if (cells := [c.strip() for c in line.split("│")[1:-1]])}
    # The last table is the co-occurrence; markup in class names is shown as it is.
    assert rows["[red]x"] == ["3", ".", "3"] and rows["cat"] == ["3", ".", "6"] and rows["big dog"] == [".", "2", "."]
    assert "! [red]x never appears without cat: tags cannot tell them apart." in text
    assert "! big dog has 2 training images; fit requires --data.min-images 3." in " ".join(text.split())


def test_inspect_lists_broken_files_and_duplicates(tmp_path: Path, call: Call) -> None:
    (tmp_path / "cat").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (9, 9), "red").save(tmp_path / "cat" / f"{name}.png")
    (tmp_path / "cat" / "c.png").write_bytes(b"")
    status, text, _ = call("inspect", tmp_path)
    assert status == 0
    assert "! broken file, will be skipped: cat/c.png (" in text and "! same content: cat/a.png, cat/b.png" in text
    assert "Nothing suspicious" not in text


def test_inspect_of_good_data(tmp_path: Path, call: Call) -> None:
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (9, 9), (i * 9, number * 9, 0)).save(tmp_path / name / f"{i}.png")
    status, text, _ = call("inspect", tmp_path)
    assert status == 0 and "Nothing suspicious found." in text
    assert re.search(r"Usable; .+ on this machine; 131 kB of disk for features\.\n$", text)
    status, text, _ = call("inspect", tmp_path, "--features.channels", "64")
    # Means of 1280, 160 and 32 channels at two scales; maps of 64 + 64 channels in 3 x 3 cells and 32 in 5 x 5, each
    # with the lengths of the cells. An image begins at a multiple of 64 bytes.
    size = 10 * -(-2 * (4 * (1280 + 160 + 32) + 2 * ((65 + 65) * 9 + 33 * 25)) // 64) * 64
    assert f" on this machine; {size / 1000:.0f} kB of disk for features.\n" in text
    status, text, _ = call("inspect", tmp_path, "--data.min-images", "6")
    assert status == 0 and text.endswith("Not usable yet: 2 of 2 classes have fewer than 6 training images.\n")


def tagseg_process(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(tagseg.__file__).parents[1]), "COLUMNS": "100"}
    command = [sys.executable, "-m", "tagseg", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_a_real_process_prints_errors_on_standard_error(tmp_path: Path) -> None:
    done = tagseg_process("inspect", "nowhere", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: nowhere: no such folder, expected the data folder\n"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--help"], 0, "Usage: tagseg COMMAND"),
        (["fit", "--help"], 0, "--train.epochs INT"),
        (["predict", "-h"], 0, "--max-side INT"),
        (["fit", "x", "--out", "y", "--segment.epochs", "-1"], 2, "segment.epochs must be 0 or more, got -1"),
        (["fit", "x", "--out", "y", "--train.epoch", "3"], 2, "did you mean --train.epochs?"),
        (["predict", "x", "y", "--out", "z", "--window", "8"], 2, "--window must be 64 pixels or more, got 8"),
        (["export", "x", "--to", "coco", "--out", "z", "--min-part", "-1"], 2, "--min-part must be 0 pixels or more"),
        (["breakfast"], 2, "breakfast"),
    ],
)
def test_help_and_wrong_arguments_import_no_large_library(
    arguments: list[str], status: int, said: str, tmp_path: Path
) -> None:
    for name in ("torch", "timm", "numba"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    done = tagseg_process(*arguments, cwd=tmp_path)
    assert said in done.stdout + done.stderr and "was imported" not in done.stderr
    assert done.returncode == status and (done.stderr == "") == (status == 0)


def test_worst_lists_masks_and_tags(run: Run, tmp_path: Path, call: Call) -> None:
    status, text, _ = call("worst", run.root, "-n", "2", "--csv", tmp_path / "all.csv")
    images = len(list(run.masks.rglob("*.png")))
    rows = (tmp_path / "all.csv").read_text().splitlines()
    assert status == 0 and f"2 of {images} masks" in text and rows[0] == "image,score,classes,reason"
    scores = [float(row.split(",")[1]) for row in rows[1:]]
    assert len(scores) == images and scores == sorted(scores)
    status, text, _ = call("worst", run.root, "--tags", "--csv", tmp_path / "tags.csv")
    assert status == 0 and ("No tag looks wrong or missing." in text or "likely wrong or missing, most certain" in text)
    assert (tmp_path / "tags.csv").read_text().startswith("image,tag,suspect,doubt\n")
    status, _, error = call("worst", run.root, "-n", "0")
    assert status == 2 and "--count must be 1 or more, got 0" in error


@pytest.mark.parametrize(("side", "said"), [("0", "nowhere"), ("64", "nowhere"), ("32", "--max-side")])
def test_flags_mean_the_same_once_anything_has_imported_pydantic(side: str, said: str, tmp_path: Path) -> None:
    pytest.importorskip("pydantic", reason="needs pydantic, which packages of some extras bring")
    code = "import pydantic, sys; from tagseg.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "predict", "nowhere", "photos", "--out", "masks", "--max-side", side]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr, done.stderr


def test_a_new_run_has_the_default_quality_and_an_old_one_its_own(home: Path, tmp_path: Path) -> None:
    def resolved(*arguments: str | Path) -> Settings:
        _, bound, _ = app.parse_args(["fit", *map(str, arguments)], exit_on_error=False, print_error=False)
        settings: Settings = bound.arguments.get("settings", Settings())
        return settings

    new = (home / "photos", "--out", tmp_path / "new")
    assert resolved(*new) == preset("balanced")
    assert resolved(*new, "--seed", "3") == dataclasses.replace(preset("balanced"), seed=3)
    assert resolved(*new, "--quality", "fast") == preset("fast")
    assert resolved(*new, "--train.method", "finetuned") == Settings()
    assert resolved(*new, "--maps", "oaa") == dataclasses.replace(Settings(), maps="oaa")
    assert resolved(*new, "--maps", "walk") == dataclasses.replace(preset("balanced"), maps="walk")
    assert resolved(*new, "--preset", "paper-voc") == preset("paper-voc")
    assert resolved(*new, "--settings", home / "small.toml") == Settings.from_toml(home / "small.toml")
    lists = resolved(*new, "--localise.scales", "0.5,1", "--features.scales", "1", "--features.scales", "1.5")
    assert (lists.localise.scales, lists.features.scales) == ((0.5, 1.0), (1.0, 1.5))
    learned = resolved(*new, "--segment.labels", "drawn").segment  # once: self-training needs maps
    assert learned == dataclasses.replace(preset("balanced").segment, labels="drawn", rounds=1)
    (tmp_path / "labels.toml").write_text('[segment]\nlabels = "drawn"\n')
    best = resolved(*new, "--quality", "best", "--settings", tmp_path / "labels.toml").segment
    assert best == dataclasses.replace(preset("best").segment, labels="drawn", rounds=1)
    (tmp_path / "old").mkdir()
    (tmp_path / "old/settings.toml").write_text("seed = 7\n")
    assert resolved(home / "photos", "--out", tmp_path / "old") == Settings(seed=7)


@pytest.mark.parametrize(
    "flags",
    [
        ("--train.epochs", "3"),
        ("--quality", "fast", "--rca.confidence", "0.5"),
        ("--train.method", "frozen", "--train.freeze-stride", "8"),
    ],
)
def test_flags_without_effect_on_a_frozen_network_are_refused(
    flags: tuple[str, ...], home: Path, tmp_path: Path, call: Call
) -> None:
    status, _, error = call("fit", home / "photos", "--out", tmp_path / "run", *flags)
    assert status == 2 and f"{flags[-2]} must be left out when train.method is frozen" in error
    assert "add --train.method finetuned" in error and not (tmp_path / "run").exists()


MISTAKES = {
    "fit nowhere --out new": "no such data folder",
    "fit empty --out new": "found no images in a known layout",
    "fit photos --out photos": "is not a run folder",
    "fit photos": "tagseg fit: --out must be given, found none; `tagseg fit --help` lists what it is",
    "fit photos --out": "--out must be followed by its value, found none",
    "fit photos --out new other": "tagseg fit: expected nothing more, found other; write lists with commas",
    "fit photos --out new --train.epoch 3": "has no such flag (did you mean --train.epochs?); `tagseg fit --help`",
    "fit photos --out new --seed 1.5": "--seed must be a whole number, got 1.5",
    "fit photos --out new --workers 2e0": "--workers must be a whole number, got 2e0",
    "fit photos --out new --seed 1 --seed 2": "--seed must be given once, found it again with 2",
    "fit photos --out new --localise.scales 1,x": "--localise.scales must be numbers, separated by commas, got x",
    "ablate photos --out new --seeds 1.5": "--seeds must be a whole number, got 1.5",
    "fit photos --out new --device cudda": "--device must be auto, cpu, cuda, cuda:1 or mps, got cudda; did",
    "fit photos --out new --train.backbone resnet5": "must be a model of timm, got resnet5; did you mean resnet50",
    "fit photos --out new --train.weights none.safetensors": "none.safetensors: not found; give timm, random",
    "fit photos --out new --segment.weights photos": "photos: not found; give timm, random",
    "fit photos --out new --segment.steps x": "--segment.steps must be a whole number, got x",
    "fit photos --out new --features 64": "--features is a group of settings: expected one of its flags",
    "fit photos --out new --processes 0": "--processes must be 1 or more, got 0",
    "fit photos --out new --quality fsat": "--quality must be one of fast, balanced, best, got fsat",
    "fit photos --out new --preset paper": "--preset must be one of paper-voc",
    "fit photos --out new --settings none.toml": "none.toml: cannot read",
    "inspect nowhere": "no such folder",
    "demo --device cudda": "--device must be auto",
    "predict nowhere photos --out new": "not a run folder",
    "predict net nowhere --out new": "nowhere: no such image, folder or pattern",
    "predict net photos --out new --device cudda": "--device must be auto",
    "push nowhere --to owner/cats": "not a run folder",
    "worst nowhere": "not a run folder",
    "worst run -n 0": "--count must be 1 or more, got 0",
    "judge nowhere --labels photos": "no such data folder",
    "judge run --labels none": "none: no such file or folder",
    "review nowhere": "not a run folder",
    "review run --port 99999": "--port must be 0 or more and at most 65535, got 99999",
    "calibrate nowhere --masks photos": "not a run folder",
    "calibrate run --masks none": "none: no such file or folder",
    "atlas nowhere": "not a run folder",
    "atlas run --image none.jpg": "none.jpg: no such file or folder",
    "teach nowhere": "not a run folder",
    "teach run --import none.json": "none.json: no such file or folder",
    "export nowhere --to coco --out new": "not a run folder",
    "export run --to coco --out photos": "exists and was not made by export or import",
    "export-model nowhere --out new": "not a run folder",
    "import none.json --run run --out new": "none.json: no such file or folder",
    "import photos --run nowhere --out new": "not a run folder",
    "labelstudio nowhere": "not a run folder",
    "doctor nowhere": "not a run folder",
    "train nowhere": "not a run folder",
    "localise nowhere": "not a run folder",
    "masks nowhere": "not a run folder",
    "masks run --maps-from none": "none: not a folder; expected a folder of .npz or .npy maps",
    "segment nowhere": "not a run folder",
    "segment run --labels none": "none: no such file or folder",
    "evaluate nowhere": "not a run folder",
    "report nowhere": "not a run folder",
    "ablate nowhere --out new": "no such",
    "bench voc2012 --data nowhere --out new": "nowhere",
    "export run --to bogus --out new": "--to must be one of coco, yolo, yolo-semantic, voc,",
    "fitt photos": "fitt: tagseg has no such command (did you mean fit?); `tagseg --help` lists all",
}
"""A user's mistakes, and what the answer says."""


def test_every_command_has_mistakes() -> None:
    commands = {name for name in app if not name.startswith("-")}
    assert {line.split()[0] for line in MISTAKES} - {"fitt"} == commands


@pytest.fixture(scope="module")
def answers(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, list[str]]]:
    """What each of MISTAKES gives, in one process: the status, what was printed, and the large libraries imported."""
    work = tmp_path_factory.mktemp("mistakes")
    for name in ("empty", "net", "run"):
        (work / name).mkdir()
    shutil.copytree(home / "photos", work / "photos")
    (work / "net/network.safetensors").touch()
    Run(work / "run").store(Manifest(data=str(work / "photos"), stages={}))
    (work / "run/settings.toml").write_text(Settings().to_toml())
    code = (
        "import contextlib, io, json, sys\nfrom tagseg.cli.main import main\nfound = {}\n"
        "assert 'numpy' not in sys.modules, 'the command line waits for an import that a mistake does not need'\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    print('#', line, flush=True)\n    print('#', line, file=sys.stderr, flush=True)\n"
        "    try:\n        main(line.split())\n        status = 0\n"
        "    except SystemExit as leaving:\n        status = leaving.code\n"
        "    found[line] = status, sorted({'torch', 'timm', 'numba'} & set(sys.modules))\n"
        "print('#', json.dumps(found))"
    )
    given = [sys.executable, "-c", code, json.dumps(list(MISTAKES))]
    done = subprocess.run(given, cwd=work, capture_output=True, text=True, timeout=300)
    *printed, last = done.stdout.split("\n# ")
    texts = dict.fromkeys(MISTAKES, "")
    for part in ("\n".join(printed) + "\n").removeprefix("# ").split("\n# "), done.stderr.split("# "):
        for text in part:
            line, _, said = text.partition("\n")
            if line in texts:
                texts[line] += said
    assert not (work / "new").exists()
    return {line: (status, texts[line], loaded) for line, (status, loaded) in json.loads(last).items()}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_answered_before_pytorch_is_imported(
    line: str, answers: dict[str, tuple[int, str, list[str]]]
) -> None:
    status, said, loaded = answers[line]
    assert status == 2 and not loaded, said
    assert MISTAKES[line] in " ".join(said.replace("│", " ").split())


def test_a_run_that_made_nothing_does_not_occupy_its_folder(home: Path, tmp_path: Path, call: Call) -> None:
    new = ("--out", tmp_path / "run", "--settings", home / "small.toml", "--until", "train")
    status, _, error = call("fit", home / "photos", *new, "--train.weights", "none.safetensors")
    assert status == 2 and "none.safetensors: not found" in error
    others = shutil.copytree(home / "photos", tmp_path / "others")
    status, _, error = call("fit", others, *new)
    assert status == 0, error
    assert Run(tmp_path / "run").data_root() == others
    status, _, error = call("fit", home / "photos", *new)
    assert status == 0 and Run(tmp_path / "run").data_root() == home / "photos", "the same data at another place"
    (others / "0.png").write_bytes((others / "1.png").read_bytes())
    status, _, error = call("fit", others, *new)
    assert status == 2 and f"not from what {others} holds: 1 image with another content (first 0)" in error
