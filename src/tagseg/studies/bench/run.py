"""Follow a published protocol from start to end: check the data, train each seed, compare with published scores."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from tagseg.data.images import read_mask_file
from tagseg.data.locate import find_image
from tagseg.data.prepare import Prepared, prepare
from tagseg.data.records import Sample
from tagseg.errors import RunError
from tagseg.evaluate.evaluate import score, scored_samples
from tagseg.evaluate.scores import read_evaluation
from tagseg.masks.mask_files import mask_file
from tagseg.pipeline import fit
from tagseg.prediction.predict import predict
from tagseg.run.folder import Run
from tagseg.run.lock import hold_lock
from tagseg.run.open import is_blank
from tagseg.run.stages import OTHERS
from tagseg.settings.bounds import AtLeastOne, check_value
from tagseg.settings.predict import PredictOptions
from tagseg.settings.settings import Settings
from tagseg.studies.bench.check import DataCheck, check_data
from tagseg.studies.bench.protocols import Protocol, PublishedFigure
from tagseg.studies.bench.result import BenchResult
from tagseg.studies.bench.submission import ARCHIVE, write_submission
from tagseg.system.files import remove_abandoned, remove_temporary
from tagseg.system.process import launched
from tagseg.system.progress import Track, silent
from tagseg.system.records import Count, Record, Share, read_record

log = logging.getLogger(__name__)


class RefinedFigures(Record, frozen=True):
    """bench/figures.json of a run: with or without the dense CRF, the mIoU of the segmenter with it (None where it was
    not scored), and the number of test images that were predicted."""

    crf: bool
    segmenter_crf: Share | None
    test_images: Count


def bench(
    data: str | Path,
    out: str | Path,
    protocol: Protocol,
    settings: Settings,
    seeds: int = 1,
    crf: bool = True,
    force: bool = False,
    track: Track = silent,
    command: str = "",
    processes: int = 1,
) -> BenchResult:
    """Follow a protocol: check the data, train and score each seed, and write a table of own and published figures.

    Each seed is a run folder `out/seed_N` as `fit` makes it. Finished stages are kept, and an interrupted training
    resumes after its last finished epoch. After each seed, bench.json and bench.md are rewritten. Processes that were
    launched together train together; only the main one's result has figures.

    Args:
        data, out: the data folder; the folder of runs and table.
        protocol: one of `PROTOCOLS`, or that of a stand-in.
        settings: shared by all seeds (see `paper_settings`); the first seed is theirs.
        crf: also score the segmentation network with the dense CRF after it, as the paper does, and write the
            submission with the CRF.
        force: allow settings that differ from those of existing runs; what depends on them is redone.
        command: the command line, to be recorded.
        processes: how many processes train the networks, as in `fit`.

    Raises:
        DataError: when the data is missing or does not match the protocol.
        ValueError: when settings or run folders are wrong.
    """
    check_value("--seeds", seeds, AtLeastOne)
    found = check_data(data, protocol, settings)
    found.require()
    out, numbers = Path(out), range(settings.seed, settings.seed + seeds)
    result = BenchResult(out, found, settings, {}, {}, tuple(numbers), command)
    is_main = launched()[0] == 0
    if is_main:
        remove_abandoned(out)
        _begin(result)
    for seed in numbers:
        log.info("%s, seed %d", protocol.name, seed)
        run = Run(out / f"seed_{seed}")
        fit(data, run.root, dataclasses.replace(settings, seed=seed), force, track, processes=processes)
        if is_main:
            with hold_lock(run.root):
                figures, submission = _finish(run, found, crf, track)
            result = _with_seed(result, seed, figures, submission)
            result.save()
    return result


def _begin(result: BenchResult) -> None:
    out = result.folder
    if out.exists() and not (out.is_dir() and (is_blank(out) or (out / "bench.json").exists())):
        raise RunError(f"{out}: exists and is not a benchmark's folder; choose another --out")
    if not (out / "bench.json").exists():
        result.save()


def _with_seed(
    result: BenchResult, seed: int, figures: dict[PublishedFigure, float], submission: Path | None
) -> BenchResult:
    return dataclasses.replace(
        result,
        figures={**result.figures, seed: figures},
        submissions={**result.submissions, **({seed: submission} if submission else {})},
        missing=tuple(later for later in result.missing if later > seed),
    )


def _finish(run: Run, check: DataCheck, crf: bool, track: Track) -> tuple[dict[PublishedFigure, float], Path | None]:
    """The figures of a finished run in per cent, and its submission, if any."""
    evaluation, folder = read_evaluation(run), run.root / OTHERS["bench"][0]
    kept = _kept(run, folder / "figures.json")
    if kept is None or (kept.crf, kept.test_images) != (crf, len(check.test)):
        prepared = prepare(run, track)
        remove_temporary(folder)
        refined = _score_refined(prepared, run, folder / "val", track) if crf else None
        if check.test:
            _submit(prepared, run, folder, check.test, crf, track)
        kept = RefinedFigures(crf, refined, len(check.test))
        with run.changing() as (_, draft):
            draft.write(run.name_of(folder / "figures.json"), kept)
            draft.note("bench")
    figures: dict[PublishedFigure, float] = {}
    # The masks that count are the last ones that the network learned from.
    masks = evaluation.self_trained or evaluation.pseudo_masks
    if masks is not None:
        figures["pseudo_masks"] = 100 * masks.miou
    if evaluation.segmenter is not None:
        figures["segmenter"] = 100 * evaluation.segmenter.miou
    if kept.segmenter_crf is not None:
        figures["segmenter_crf"] = 100 * kept.segmenter_crf
    return figures, folder / "submission" / ARCHIVE if check.test else None


def _kept(run: Run, file: Path) -> RefinedFigures | None:
    """The earlier result, if it was finished with the run's present network."""
    if "bench" not in run.manifest().others:
        return None
    try:
        return read_record(file, RefinedFigures, "computing it again")
    except RunError as error:
        log.warning("%s", error)
        return None


def _score_refined(prepared: Prepared, run: Run, folder: Path, track: Track) -> float | None:
    samples = scored_samples(prepared.dataset, "val")
    if not samples:
        return None
    predict(run.root, [sample.image for sample in samples], folder, _options(run, True), track)

    def predicted(sample: Sample) -> UInt8[np.ndarray, "h w"]:
        return read_mask_file(mask_file(folder, sample.image.stem))

    scores = score(prepared, samples, "val", predicted, track)
    return scores.miou if scores else None


def _submit(prepared: Prepared, run: Run, folder: Path, names: tuple[str, ...], crf: bool, track: Track) -> None:
    root = prepared.dataset.root
    images = [find_image(root, (root / "JPEGImages",), name, "test image") for name in names]
    # Separate folders, or one prediction would resume with the other's masks.
    predicted = folder / ("test" if crf else "test_without_crf")
    predict(run.root, images, predicted, _options(run, crf), track)
    write_submission(predicted, names, prepared.dataset.mask_ids, folder / "submission", track)


def _options(run: Run, crf: bool) -> PredictOptions:
    settings = run.settings()
    limit = settings.data.max_megapixels
    return PredictOptions(
        crf=crf, device=settings.device, precision=settings.precision, max_megapixels=limit, resume=True
    )
