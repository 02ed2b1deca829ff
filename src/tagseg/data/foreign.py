"""Another tool's maps or masks that a run learns from: which stage reads them, and whether they have changed."""

from collections.abc import Sequence
from pathlib import Path

from tagseg.data.records import Sample
from tagseg.data.tars import content_mark, marks_digest
from tagseg.run.stages import Stage
from tagseg.settings.settings import Settings


def foreign_source(settings: Settings) -> tuple[Stage, Path] | None:
    """Return the stage that reads another tool's files, and their folder; None if tagseg makes its own."""
    if settings.segment.labels:
        return "segment", Path(settings.segment.labels)
    if settings.localise.maps_from:
        return "localise", Path(settings.localise.maps_from)
    return None


def foreign_digest(source: Path, samples: Sequence[Sample]) -> str:
    """Return a checksum of another tool's files of images, by which added, removed and replaced ones are noticed
    without reading them all (see `content_mark`)."""
    names = [f"{sample.id}{suffix}" for sample in samples for suffix in (".png", ".npz", ".npy")]
    marks = ((name, content_mark(source / name)) for name in (*names, "classes.json"))
    return marks_digest((name, mark) for name, mark in marks if mark)
