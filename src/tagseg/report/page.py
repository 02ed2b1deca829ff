"""The report: one self-contained HTML page about a finished run."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagseg.errors import RunError
from tagseg.evaluate.evaluate import read_figures
from tagseg.masks.palette import VOID_COLOUR, class_colours
from tagseg.report.charts import Chart, draw_chart, read_history, values
from tagseg.report.pictures import draw_galleries
from tagseg.report.render import css, render_page
from tagseg.run.folder import Run
from tagseg.run.manifest import Manifest
from tagseg.run.stages import STAGES, Stage
from tagseg.settings.settings import Settings
from tagseg.system.files import write_atomically
from tagseg.system.progress import Track, silent
from tagseg.system.untrusted import check_shape, read_json

DUTIES: dict[Stage, str] = {
    "train": "learn the tags, with the bank of regions",
    "localise": "maps of the tagged classes over the training images",
    "masks": "pseudo-masks from the maps",
    "segment": "learn to segment from the pseudo-masks",
    "evaluate": "predict, and compare with the true masks",
    "report": "this page",
}

COLUMNS = {
    "pseudo_masks": ("Pseudo-masks", "one"),
    "self_trained": ("Pseudo-masks after self-training", "one"),
    "segmenter": ("Segmenter", "two"),
    "full_supervision": ("Full supervision", "three"),
}
"""Parts of an evaluation: what their columns are called, and how they look."""

SHOWN_PATHS = 50
"""So many skipped files are listed by name."""

_ROW = {"id": str, "tags": [int], "split": str, "size": [int], "image": str, "mask": bool}
_DATA = {"layout": str, "classes": [str], "notes": [str], "broken": [[str]], "samples": [_ROW]}


@dataclass(frozen=True)
class Report:
    """Where the report was written."""

    path: Path


@dataclass(frozen=True)
class Figure:
    """A headline figure; `value` is empty where it could not be measured and `meaning` says why."""

    label: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Column:
    """A column of the per-class table; the mean IoU in per cent, `look` is the colour of its bars."""

    title: str
    look: str
    mean: float


@dataclass(frozen=True)
class ClassRow:
    """A line of the per-class table: the IoU in per cent of each column; None where there is nothing to count or
    measure."""

    name: str
    colour: str
    images: int | None
    scores: tuple[float | None, ...]


def report(run: Run, track: Track = silent) -> Report:
    """Write the run's report: a page without any outside reference, of about 8 MB at most by default.

    Raises:
        RunError: when the run is not evaluated yet, or its files contradict one another.
        DataError: when an image or a true mask of the data folder cannot be read any more.
    """
    run.require("evaluate")
    write_atomically(run.report_file, render(run, track))
    return Report(run.report_file)


def render(run: Run, track: Track = silent) -> str:
    """Return the report's HTML."""
    data, evaluation = _read_data(run.data_file), read_figures(run)
    settings, manifest = run.settings(), run.manifest()
    colours = [css(colour) for colour in class_colours(len(data["classes"]))]
    return render_page(
        "report.html.j2",
        ("report.css",),
        ("viewer.js",),
        title=settings.report.title,
        figures=_figures(data, evaluation, manifest),
        class_rows=_class_rows(data, evaluation, colours),
        columns=[Column(*COLUMNS[part], 100 * evaluation[part]["miou"]) for part in _measured(evaluation)],
        charts=_charts(run),
        galleries=draw_galleries(run, data, track),
        improved=run.final() != run,
        classes=data["classes"],
        colours=colours,
        void_colour=css(VOID_COLOUR),
        from_scratch="random" in (settings.train.weights, settings.segment.weights),
        sections=_settings_tables(settings),
        stages=_stage_rows(manifest),
        notes=data["notes"],
        broken=data["broken"][:SHOWN_PATHS],
        broken_count=len(data["broken"]),
        version=manifest.tagseg or "(unknown)",
        data=manifest.data,
        layout=data["layout"],
        again=f"tagseg fit {shlex.quote(manifest.data)} --out NEW --settings {shlex.quote(str(run.settings_file))}",
        review=f"tagseg review {shlex.quote(str(run.root))}",
        predict=f"tagseg predict {shlex.quote(str(run.root))} IMAGES --out DIR",
    )


def per_cent(share: float) -> str:
    """Return a share (0..1) as per cent with one decimal."""
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """Return seconds as a person says them, in the two largest units."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {whole % 60} s"
    return f"{whole} s" if seconds >= 10 else f"{seconds:.1f} s"


def memory(megabytes: float) -> str:
    """Return an amount of memory in MB or GB."""
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1024 else f"{megabytes:.0f} MB"


def _figures(data: Mapping[str, Any], evaluation: Mapping[str, Any], manifest: Manifest) -> list[Figure]:
    counts = {split: sum(record["split"] == split for record in data["samples"]) for split in ("train", "val")}
    seconds = sum(note.seconds or 0.0 for note in manifest.stages.values())
    names = data["classes"]
    masks, improved, calibrated = (evaluation.get(key) for key in ("pseudo_masks", "self_trained", "calibrated"))
    how = "made from the tags alone"
    if improved and masks:
        how += f", after self-training ({per_cent(float(masks['miou']))} before),"
    return [
        _score("Pseudo-masks, mIoU", improved or masks, how, "training", calibrated),
        _score("Segmenter, mIoU", evaluation["segmenter"], "predicted without any tag", "validation"),
        *_share(evaluation),
        Figure(
            "Images",
            f"{sum(counts.values()):,}",
            f"{counts['train']:,} to learn from, by their tags only, and {counts['val']:,} for validation.",
        ),
        Figure(
            "Classes" if len(names) != 1 else "Class",
            str(len(names)),
            f"{_listed(names)}; everything else is background.",
        ),
        Figure("Time", duration(seconds), f"All {len(manifest.stages)} finished stages together, on one machine."),
    ]


def _score(label: str, result: Mapping[str, Any] | None, how: str, images: str, calibrated: int | None = 0) -> Figure:
    left_out = f" {calibrated:,} are left out: calibration has seen their true masks." if calibrated else ""
    if result is None:
        return Figure(label, "", f"No {images} image has a true mask to compare with.{left_out}")
    place = {"train": "training", "val": "validation"}[result["split"]]
    present = sum(share is not None for share in result["iou"])
    unsure = (
        f" {per_cent(float(result['unsure_share']))} of the pixels are marked unsure; they count by their likelier one."
        if result.get("unsure_share") is not None
        else ""
    )
    return Figure(
        label,
        per_cent(float(result["miou"])),
        f"Overlap of masks {how} with the true masks, averaged over {present} classes (background included), measured "
        f"on {result['images']:,} {place} images that have true masks.{left_out}{unsure}",
    )


def _share(evaluation: Mapping[str, Any]) -> list[Figure]:
    own, full = evaluation["segmenter"], evaluation.get("full_supervision")
    if not own or not full:
        return []
    share = per_cent(own["miou"] / full["miou"])
    reached = (
        f"The same network, trained alike on the true masks of the training images, has {per_cent(full['miou'])}: the "
        f"most that could be hoped for. With tags alone it has {share} of full supervision."
    )
    return [Figure("Of full supervision", share, reached)]


def _class_rows(data: Mapping[str, Any], evaluation: Mapping[str, Any], colours: Sequence[str]) -> list[ClassRow]:
    names = ["background", *data["classes"]]
    found: list[list[float | None]] = []
    for part in _measured(evaluation):
        shares = evaluation[part]["iou"]
        if len(shares) != len(names):
            raise RunError(
                f"evaluation.json: {part} has {len(shares)} IoUs, expected {len(names)} (background and the classes of "
                "data.json); run `tagseg evaluate` again"
            )
        found.append([None if share is None else 100.0 * share for share in shares])
    tagged = [tag for record in data["samples"] if record["split"] == "train" for tag in record["tags"]]
    return [
        ClassRow(name, colours[i], tagged.count(i) if i else None, tuple(shares[i] for shares in found))
        for i, name in enumerate(names)
    ]


def _measured(evaluation: Mapping[str, Any]) -> list[str]:
    """The parts of an evaluation that were measured."""
    return [part for part in COLUMNS if evaluation.get(part)]


def _charts(run: Run) -> list[tuple[Chart, list[dict[str, Any]]]]:
    network, segmenter = read_history(run.network / "history.jsonl"), read_history(run.segmenter / "history.jsonl")
    tags = {"all together": "loss", "tags, refined map": "tag_refined", "tags, coarse map": "tag_coarse"}
    tags |= {"saliency, refined map": "saliency_refined"}
    # Until the warm-up is over the contrast is noted as 0, which says nothing about the regions.
    contrast = [value or None for value in values(network, "contrast")]
    plans = [
        ("Classifier: losses", network, {label: values(network, key) for label, key in tags.items()}),
        ("Classifier: contrast of regions", network, {"contrast": contrast}),
        ("Segmenter: loss", segmenter, {"loss": values(segmenter, "loss")}),
    ]
    charts = []
    for title, history, series in plans:
        epochs = [epoch["epoch"] for epoch in history]
        chart = draw_chart(title, epochs, series)
        if chart:
            shown = [line.label for line in chart.lines]
            rows = [{"epoch": e, "values": [series[label][i] for label in shown]} for i, e in enumerate(epochs)]
            charts.append((chart, rows))
    return charts


def _settings_tables(settings: Settings) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Tables of (name, value, default where it differs), one a section."""
    here, usual = settings.to_dict(), Settings().to_dict()
    loose = {key: value for key, value in here.items() if not isinstance(value, dict)}
    tables: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {"general": (loose, usual)}
    tables |= {key: (value, usual[key]) for key, value in here.items() if isinstance(value, dict)}
    return [
        (name, [(key, _shown(v), "" if v == default[key] else _shown(default[key])) for key, v in table.items()])
        for name, (table, default) in tables.items()
    ]


def _stage_rows(manifest: Manifest) -> list[tuple[str, str, str, str]]:
    done = manifest.stages
    return [
        (stage, DUTIES[stage], _known(duration, done[stage].seconds), _known(memory, done[stage].peak_mb))
        for stage in STAGES
        # The page cannot know how long it will have taken to write itself.
        if stage in done and stage != "report"
    ]


def _known(say: Callable[[float], str], value: float | None) -> str:
    return "not known" if value is None else say(value)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value) if value != "" else "(empty)"


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _read_data(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_json(path)
        check_shape(found, _DATA)
    except FileNotFoundError as error:
        raise RunError(f"{path}: missing; run the stages before the report again") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: damaged ({error}); run the stage that writes it again") from error
    return found
