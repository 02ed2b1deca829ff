"""The report: one self-contained HTML page about a finished run."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagseg.data.data_file import DataFile, read_data_file
from tagseg.errors import RunError
from tagseg.evaluate.scores import Evaluation, Scores, read_evaluation
from tagseg.evaluate.verdict import class_verdicts
from tagseg.masks.palette import VOID_COLOUR, shown_colours
from tagseg.report.charts import Chart, draw_chart, values
from tagseg.report.pictures import draw_galleries
from tagseg.report.render import css, render_page
from tagseg.report.trust import read_trust
from tagseg.run.folder import Run
from tagseg.run.history import read_history
from tagseg.run.manifest import Manifest
from tagseg.run.stages import STAGES, Stage
from tagseg.settings.settings import Settings
from tagseg.system.files import write_atomically
from tagseg.system.progress import Track, silent

DUTIES: dict[Stage, str] = {
    "train": "Trains the classifier on the tags, with the memory bank of regions",
    "localise": "Makes maps of the tagged classes for the training images",
    "masks": "Makes pseudo-masks from the maps",
    "segment": "Trains the segmenter on the pseudo-masks",
    "evaluate": "Predicts masks and compares them with the true masks",
    "report": "Writes this page",
}

SCORE_COLUMNS = {
    "pseudo_masks": ("Pseudo-masks", "one"),
    "self_trained": ("Pseudo-masks after self-training", "one"),
    "segmenter": ("Segmenter", "two"),
    "full_supervision": ("Full supervision", "three"),
}
"""Parts of an evaluation: the titles of their columns, and the style of their bars."""

SHOWN_PATHS = 50
"""How many skipped files are listed by name."""


@dataclass(frozen=True)
class Report:
    """The path of the report that was written."""

    path: Path


@dataclass(frozen=True)
class Figure:
    """A headline figure; if it could not be measured, `value` is empty and `meaning` says why."""

    label: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Column:
    """A column of the per-class table: its title, the style of its bars, and the mean IoU in percent."""

    title: str
    look: str
    mean: float


@dataclass(frozen=True)
class ClassRow:
    """A row of the per-class table: its training images and its IoU in percent per column; None if unknown."""

    name: str
    colour: str
    images: int | None
    scores: tuple[float | None, ...]


def report(run: Run, track: Track = silent) -> Report:
    """Write the run's report: one HTML file that loads nothing else, by default of at most about 8 MB.

    Raises:
        RunError: when the run is not evaluated yet, or its files contradict each other.
        DataError: when an image or a true mask of the data folder can no longer be read.
    """
    run.require("evaluate")
    write_atomically(run.report_file, render_report(run, track))
    return Report(run.report_file)


def render_report(run: Run, track: Track = silent) -> str:
    """Return the HTML of the report."""
    data, evaluation = read_data_file(run), read_evaluation(run)
    settings, manifest = run.settings(), run.manifest()
    colours = [css(colour) for colour in shown_colours(len(data.classes))]
    return render_page(
        "report.html.j2",
        ("report.css",),
        ("viewer.js",),
        title=settings.report.title,
        figures=_figures(data, evaluation, manifest),
        class_rows=_class_rows(data, evaluation, colours),
        columns=[Column(*SCORE_COLUMNS[part], 100 * scores.miou) for part, scores in _measured(evaluation).items()],
        charts=_charts(run),
        galleries=draw_galleries(run, data, track),
        verdicts=class_verdicts(run),
        trust=read_trust(run, data),
        improved=run.final() != run,
        classes=data.classes,
        colours=colours,
        void_colour=css(VOID_COLOUR),
        from_scratch="random" in (settings.train.weights, settings.segment.weights),
        sections=_settings_tables(settings),
        stages=_stage_rows(manifest),
        notes=data.notes,
        broken=data.broken[:SHOWN_PATHS],
        broken_count=len(data.broken),
        version=manifest.tagseg or "(unknown)",
        data=manifest.data,
        layout=data.layout,
        again=f"tagseg fit {shlex.quote(manifest.data)} --out NEW --settings {shlex.quote(str(run.settings_file))}",
        review=f"tagseg review {shlex.quote(str(run.root))}",
        predict=f"tagseg predict {shlex.quote(str(run.root))} IMAGES --out DIR",
    )


def percent(share: float) -> str:
    """Return a share (0..1) in percent with one decimal."""
    return f"{100 * share:.1f}%"


def duration(seconds: float) -> str:
    """Return seconds as text, in the two largest units."""
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


def _figures(data: DataFile, evaluation: Evaluation, manifest: Manifest) -> list[Figure]:
    counts = {split: sum(row.split == split for row in data.samples) for split in ("train", "val")}
    seconds = sum(note.seconds or 0.0 for note in manifest.stages.values())
    names = data.classes
    masks, improved, calibrated = evaluation.pseudo_masks, evaluation.self_trained, evaluation.calibrated
    kind = "masks made from tags only"
    if improved and masks:
        kind += f", after self-training ({percent(masks.miou)} before),"
    return [
        _score("Pseudo-masks, mean IoU", improved or masks, kind, "training", calibrated),
        _score("Segmenter, mean IoU", evaluation.segmenter, "masks predicted without tags", "validation"),
        *_share(evaluation),
        Figure(
            "Images",
            f"{sum(counts.values()):,}",
            f"{counts['train']:,} for training (using only their tags) and {counts['val']:,} for validation.",
        ),
        Figure(
            "Classes" if len(names) != 1 else "Class",
            str(len(names)),
            f"{_listed(names)}; everything else is background.",
        ),
        Figure("Time", duration(seconds), f"Total of {_counted(len(manifest.stages), 'finished stage')}."),
    ]


def _score(label: str, result: Scores | None, kind: str, split: str, calibrated: int = 0) -> Figure:
    seen = "image is left out because calibration used its true mask"
    if calibrated != 1:
        seen = "images are left out because calibration used their true masks"
    left_out = f" {calibrated:,} {seen}." if calibrated else ""
    if result is None:
        return Figure(label, "", f"No {split} image has a true mask to compare with.{left_out}")
    measured = {"train": "training image", "val": "validation image"}[result.split]
    images = _counted(result.images, measured)
    present = sum(share is not None for share in result.iou)
    unsure = (
        f" {percent(result.unsure_share)} of the pixels are unsure and count as their most likely class."
        if result.unsure_share is not None
        else ""
    )
    return Figure(
        label,
        percent(result.miou),
        f"Overlap of {kind} with the true masks, averaged over {_counted(present, 'class')} (including background) and "
        f"measured on the {images} with true masks.{left_out}{unsure}",
    )


def _share(evaluation: Evaluation) -> list[Figure]:
    share, full = evaluation.share(), evaluation.full_supervision
    if share is None or full is None:
        return []
    meaning = (
        f"The same network, trained the same way but on the true masks of the training images, reaches a mean IoU of "
        f"{percent(full.miou)}. With tags only, it reaches {percent(share)} of that."
    )
    return [Figure("Share of full supervision", percent(share), meaning)]


def _class_rows(data: DataFile, evaluation: Evaluation, colours: Sequence[str]) -> list[ClassRow]:
    names = ["background", *data.classes]
    found: list[list[float | None]] = []
    for part, scores in _measured(evaluation).items():
        if len(scores.iou) != len(names):
            raise RunError(
                f"evaluation.json: {part} has {len(scores.iou)} IoUs, expected {len(names)} (background and the "
                "classes in data.json); run `tagseg evaluate` again"
            )
        found.append([None if share is None else 100.0 * share for share in scores.iou])
    tagged = [tag for row in data.samples if row.split == "train" for tag in row.tags]
    return [
        ClassRow(name, colours[i], tagged.count(i) if i else None, tuple(shares[i] for shares in found))
        for i, name in enumerate(names)
    ]


def _measured(evaluation: Evaluation) -> dict[str, Scores]:
    """Return the parts of an evaluation that were measured."""
    parts = {part: getattr(evaluation, part) for part in SCORE_COLUMNS}
    return {part: scores for part, scores in parts.items() if scores is not None}


def _charts(run: Run) -> list[tuple[Chart, list[dict[str, Any]]]]:
    network, segmenter = read_history(run.network / "history.jsonl"), read_history(run.segmenter / "history.jsonl")
    losses = {"total": "loss", "tags, refined map": "tag_refined", "tags, coarse map": "tag_coarse"}
    losses |= {"saliency, refined map": "saliency_refined"}
    # During warm-up the contrast loss is recorded as 0, which is not a measurement.
    contrast = [value or None for value in values(network, "contrast")]
    plans = [
        ("Classifier: losses", network, {label: values(network, key) for label, key in losses.items()}),
        ("Classifier: contrast loss", network, {"contrast": contrast}),
        ("Segmenter: loss", segmenter, {"loss": values(segmenter, "loss")}),
    ]
    charts = []
    for title, history, series in plans:
        epochs = [epoch.epoch for epoch in history]
        chart = draw_chart(title, epochs, series)
        if chart:
            shown = [line.label for line in chart.lines]
            rows = [{"epoch": e, "values": [series[label][i] for label in shown]} for i, e in enumerate(epochs)]
            charts.append((chart, rows))
    return charts


def _settings_tables(settings: Settings) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return one table of (name, value, default if it differs) per section."""
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
        # The page cannot know how long its own stage will take.
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


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}{'es' if noun.endswith('s') else 's'}"


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
