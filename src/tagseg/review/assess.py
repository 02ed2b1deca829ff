"""The scores of a run's masks: read where they are known, computed where they are missing."""

from collections.abc import Sequence

from tagseg.data.prepare import Prepared, prepare
from tagseg.data.records import Sample
from tagseg.errors import RunError
from tagseg.evaluate.quality import ImageQuality, read_quality, write_quality
from tagseg.run.folder import Run
from tagseg.run.lock import hold_lock
from tagseg.system.progress import Track, silent


def assess(run: Run, track: Track = silent, prepared: Prepared | None = None) -> dict[str, ImageQuality]:
    """Judge the mask of every training image without true masks; return the results by sample id, in data order.

    The masks are those of the last round of self-training, or the run's own. Results are saved in `run.quality_file`
    image by image, so an interrupted call resumes; with another segmentation network, all are computed again. `fit`
    computes them all. `prepared` is the run's data set, if it was read.

    Raises:
        RunError: when the run has no masks or no segmentation network, or one of its files is damaged.
        DataError: when an image cannot be read; names the image.
    """
    if labels := run.settings().segment.labels:
        raise RunError(f"{run.root}: was trained on the masks in {labels}, so it has no masks of its own to judge")
    run.require("masks")
    run.require("segment")
    samples = (prepared or prepare(run)).dataset.split("train")
    known = read_quality(run)
    if any(sample.id not in known for sample in samples) or not _noted(run):
        with hold_lock(run.root):
            known = assess_locked(run, samples, track)
    return {sample.id: known[sample.id] for sample in samples}


def assess_locked(run: Run, samples: Sequence[Sample], track: Track) -> dict[str, ImageQuality]:
    """Judge those of the images that were not judged yet; return the quality of all that were. The caller holds the
    run's lock."""
    known = read_quality(run)
    todo = [sample for sample in samples if sample.id not in known]
    if todo or not _noted(run):
        run.store(run.manifest().without_others(["quality"]))
        # Rewritten, so that it ends with a complete line.
        write_quality(run, known.values())
        if todo:
            from tagseg.review.judge import judge_images  # PyTorch: not needed to read what is known

            judge_images(todo, run, track)
        run.note("quality")
        known = read_quality(run)
    return known


def _noted(run: Run) -> bool:
    """Tell whether the scores were complete once, and the manifest knows them."""
    return "quality" in run.manifest().others
