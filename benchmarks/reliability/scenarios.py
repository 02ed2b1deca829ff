"""What the benchmark of kills runs: for every command of tagseg, a start and the command, on a few drawn images."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from benchmarks.harness import RUNS
from benchmarks.reliability.fit_kills import SETTINGS as FINETUNED
from benchmarks.reliability.fit_kills import draw
from PIL import Image

from tagseg.run.decisions import Decision, record_decision
from tagseg.run.folder import Run
from tagseg.run.taught import Answer, Places, TaughtFile, answers, record_answer
from tagseg.settings.settings import Settings
from tagseg.system.records import write_record

FOLDER = RUNS / "faults"
DATA = FOLDER / "data"
WORK = FOLDER / "work"
"""Every trial begins with this folder, empty but for a copy of the finished run, `run`."""

FROZEN = Settings.from_dict(
    {
        "device": "cpu",
        "workers": 0,
        "data": {"min_images": 2},
        "train": {"backbone": "test_resnet", "weights": "random", "method": "frozen", "stride": 8},
        "features": {"scales": [1.0], "max_side": 64, "channels": 8},
        "rca": {"posterior": "nearest", "prototypes": 2, "background_prototypes": 3, "rounds": 2},
        "localise": {"kind": "posterior"},
        "crf": {"steps": 0},
        "segment": {"rounds": 2, "epochs": 1, "batch": 4, "crop": 64, "max_side": 64, "predict_scales": [1.0]},
        "report": {"examples": 3},
    }
)  # fmt: skip

TRAINED = dataclasses.replace(FINETUNED, workers=0, train=dataclasses.replace(FINETUNED.train, epochs=2))

Call = str | Callable[[], None]
"""A command line, without `tagseg`, or a function that does what a page of a server does."""


@dataclass(frozen=True)
class Scenario:
    """A command to be killed, and what follows it.

    name: of the scenario. command: of the command line. calls: the command, and those that follow. prepare: what is
    done in the work folder before. base: whether the finished run is there. repeatable: whether the command may be
    called again after it has done all, and does nothing more then. patched: replacements, so that a command that would
    take minutes takes seconds; by their dotted names.
    """

    name: str
    command: str
    calls: tuple[Call, ...]
    prepare: Callable[[], None] | None = None
    base: bool = True
    repeatable: bool = True
    patched: tuple[tuple[str, object], ...] = ()

    @contextlib.contextmanager
    def patches(self) -> Iterator[None]:
        """Make the replacements in the block."""
        with contextlib.ExitStack() as stack:
            for name, new in self.patched:
                stack.enter_context(mock.patch(name, new))
            yield


def make_base(folder: Path, call: Callable[[Call, Scenario], int]) -> None:
    """Draw the data and fit the run that most scenarios begin with, unless both are there."""
    draw(DATA)
    for name, settings in (("frozen", FROZEN), ("trained", TRAINED)):
        (FOLDER / f"{name}.toml").write_text(settings.to_toml())
    if (folder / "run/report.html").exists():
        return
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    status = call(f"fit {DATA} --out run --settings {FOLDER}/frozen.toml", Scenario("base", "fit", ()))
    assert status == 0, (WORK.with_name("log.txt")).read_text()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (WORK / "run").rename(folder / "run")


def uncovered(commands: Sequence[str]) -> list[str]:
    """Return the commands that have no scenario."""
    covered = {scenario.command for scenario in SCENARIOS}
    return [name for name in commands if name not in covered]


def decide() -> None:
    """Decide about three masks, as a person does on the review page, and paint a stroke."""
    run = Run(Path("run"))
    with Image.open(run.decided_masks / "1.png") as picture:
        kept = np.array(picture)
    record_decision(run, "0", Decision("rejected"))
    record_decision(run, "1", Decision("accepted"), (kept, kept))
    record_decision(run, "2", Decision("open", (1,), 0.4))
    stroke = (Places("4", ((0.2, 0.2), (0.4, 0.4))),)
    if not answers(run):
        record_answer(run, Answer(kind="brush", meaning="background", places=stroke, radius=0.1))


def write_answers() -> None:
    """Write answers about a cluster, as `teach --export` does."""
    places = (Places("0", ((0.3, 0.4), (0.35, 0.45))), Places("3", ((0.3, 0.5),)))
    answer = Answer(kind="cluster", meaning="class", name="red", places=places, tag="red", question="q1")
    write_record(Path("answers.json"), TaughtFile(1, (answer,)))


def forget_scores() -> None:
    """Forget the scores of the masks."""
    Run(Path("run")).forget("quality")


def copy_masks() -> None:
    """Put corrected masks of some images into a folder, as a person brings them back."""
    Path("drawn").mkdir()
    for name in ("0", "1", "2", "3", "4", "5"):
        shutil.copy(DATA / f"masks/{name}.png", f"drawn/{name}.png")
    (Path("drawn") / "classes.json").write_text(json.dumps({"0": "background", "1": "blue", "2": "red"}))


def photographs() -> None:
    """Put new photographs into a folder."""
    Path("new").mkdir()
    for name in range(6):
        shutil.copy(DATA / f"images/{name}.png", f"new/photo {name}.png")


def exported() -> None:
    """Export once, so that the next export replaces something."""
    from tagseg.export.formats import export

    export("run", "voc", "out")


def correct() -> None:
    """Do what Label Studio asks for: keep a corrected mask, and learn from it."""
    from tagseg.export.labelstudio import mask_regions
    from tagseg.live.labelstudio import open_backend

    backend = open_backend("run", device="cpu")
    with Image.open(DATA / "masks/0.png") as picture:
        mask = np.array(picture.convert("L"))
    annotation = {"result": mask_regions(mask, backend.prepared.dataset.classes, parts=False)}
    backend.correct([{"id": 1, "data": {"image": "0.png"}, "annotations": [annotation]}])
    backend._learn()


def stand_in() -> None:
    """Draw a stand-in for VOC 2012 of 15 training and 3 validation images."""
    root = Path("VOC2012")
    colours = {"cat": ("red", 8), "dog": ("blue", 12)}
    names = [f"2008_{number:06}" for number in range(18)]
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate(names):
        tag = ("cat", "dog")[number % 2]
        colour, value = colours[tag]
        photo = np.random.default_rng(number).integers(90, 160, (48, 64, 3), np.uint8)
        photo[10:34, 10:34] = {"red": (255, 0, 0), "blue": (0, 0, 255)}[colour]
        mask = np.zeros((48, 64), np.uint8)
        mask[10:34, 10:34] = value
        Image.fromarray(photo).save(root / f"JPEGImages/{name}.jpg", quality=95)
        Image.fromarray(mask).save(root / f"SegmentationClass/{name}.png")
        objects = f"<object><name>{tag}</name></object>"
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    lists = {"train_aug": names[:15], "train": names[:5], "val": names[15:]}
    for name, listed in lists.items():
        (root / f"ImageSets/Segmentation/{name}.txt").write_text("".join(f"{one}\n" for one in listed))


def follow() -> None:
    """Follow a published protocol on the stand-in."""
    from tagseg.studies.bench.protocols import PROTOCOLS
    from tagseg.studies.bench.run import bench

    lists = {"train_aug": 15, "train": 5, "val": 3}
    protocol = dataclasses.replace(PROTOCOLS["voc2012"], lists=lists, optional={}, classes=2)
    data = dataclasses.replace(TRAINED.data, min_images=1)
    rca = dataclasses.replace(TRAINED.rca, warmup=1)
    segment = dataclasses.replace(TRAINED.segment, rounds=1, epochs=1)
    settings = dataclasses.replace(TRAINED, maps="oaa", data=data, rca=rca, segment=segment)
    bench("VOC2012", "out", protocol, settings, command="tagseg bench")


def small_demo(seed: int = 0, device: str = "auto") -> Settings:
    """Return settings with which the demo takes seconds."""
    segment = dataclasses.replace(TRAINED.segment, rounds=1, epochs=1)
    data = dataclasses.replace(TRAINED.data, min_images=1)
    return dataclasses.replace(TRAINED, seed=seed, device="cpu", data=data, segment=segment)


def few_drawn(out: Path, **_: object) -> Path:
    """Draw the demo's images, but only some."""
    from tagseg.demo.draw import draw_demo

    return draw_demo(out, train=8, val=2)


FIT = f"fit {DATA} --out run"

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("demo", "demo", ("demo --out demo",), base=False,
             patched=(("tagseg.studies.demo.demo_settings", small_demo), ("tagseg.studies.demo.draw_demo", few_drawn))),
    Scenario("inspect", "inspect", (f"inspect {DATA} --data.min-images 2",), base=False),
    Scenario("fit", "fit", (f"{FIT} --settings {FOLDER}/frozen.toml",), base=False),
    Scenario("fit, networks trained", "fit", (f"{FIT} --settings {FOLDER}/trained.toml",), base=False),
    Scenario("fit after decisions", "fit", (FIT,), decide),
    Scenario("fit --force with other masks", "fit", (f"{FIT} --masks.unsure 0.4 --force",)),
    Scenario("review, then fit", "review", (decide, FIT)),
    Scenario("worst", "worst", ("worst run --csv worst.csv",), forget_scores),
    Scenario("calibrate", "calibrate", (f"calibrate run --masks {DATA}/masks",)),
    Scenario("calibrate --apply, then fit", "calibrate", (f"calibrate run --masks {DATA}/masks --apply", FIT),
             patched=(("tagseg.evaluate.gain.Calibration.certain", True),), repeatable=False),
    Scenario("judge", "judge", (f"judge run --labels {DATA}/masks --csv judged.csv",)),
    Scenario("atlas", "atlas", ("atlas run --per-class 3",)),
    Scenario("atlas --force", "atlas", ("atlas run --per-class 2 --force",)),
    Scenario("teach, then fit", "teach", ("teach run --import answers.json --apply", FIT), write_answers),
    Scenario("predict", "predict", ("predict run new --out out --overlays",), photographs),
    Scenario("predict --format parquet", "predict", ("predict run new --out out --format parquet --rows 2",),
             photographs),
    Scenario("export-model", "export-model", ("export-model run --out out",)),
    Scenario("export-model --force", "export-model", ("export-model run --out out --force",)),
    Scenario("push --dry-run", "push", ("push run --to owner/cats --dry-run",)),
    Scenario("export", "export", ("export run --to coco --out out --images copy",)),
    Scenario("export --force", "export", ("export run --to cvat --out out --force",), exported),
    Scenario("export after decisions, then fit", "export", ("export run --to voc --out out", FIT), decide,
             repeatable=False),
    Scenario("import", "import", ("import drawn --run run --out out --with-pseudo",), copy_masks),
    Scenario("labelstudio", "labelstudio", (correct,)),
    *(Scenario(f"{stage} --force, then fit", stage, (f"{stage} run --force", FIT))
      for stage in ("train", "localise", "masks", "segment", "evaluate", "report")),
    Scenario("segment --labels truth", "segment", ("segment run --labels truth",)),
    Scenario("ablate", "ablate",
             (f"ablate {DATA} --out out --settings {FOLDER}/trained.toml --arms cam,both --seeds 1",), base=False),
    Scenario("bench", "bench", (follow,), stand_in, base=False),
    Scenario("doctor", "doctor", ("doctor run",)),
)  # fmt: skip
"""In the order of the command line's overview."""
