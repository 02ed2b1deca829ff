"""A published protocol from start to end: data checked, seeds trained, figures beside the published ones."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tagseg.data.images import find_image, read_mask_file
from tagseg.data.prepare import Prepared, prepare
from tagseg.data.records import Sample
from tagseg.errors import RunError
from tagseg.evaluate.evaluate import read_evaluation, score, scored_samples
from tagseg.masks.mask_files import mask_file
from tagseg.pipeline import fit
from tagseg.predict.predict import predict
from tagseg.run.folder import Run
from tagseg.run.lock import hold_lock
from tagseg.run.stages import OTHERS
from tagseg.settings.predict import PredictOptions
from tagseg.settings.settings import Settings
from tagseg.studies.bench.check import DataCheck, check_data
from tagseg.studies.bench.protocols import Protocol, PublishedFigure
from tagseg.studies.bench.result import Bench
from tagseg.studies.bench.submission import ARCHIVE, write_submission
from tagseg.system.files import remove_temporary, write_atomically
from tagseg.system.process import launched
from tagseg.system.progress import Track, silent
from tagseg.system.untrusted import check_shape, read_json

log = logging.getLogger(__name__)

_KEPT = {"crf": bool, "segmenter_crf": (float, None), "test_images": int}


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
) -> Bench:
    """Follow a protocol: check the data, train with every seed, score, and write a table beside the published figures.

    Every seed is a run folder `out/seed_N` as `fit` makes it. What is finished is kept, and a training continues behind
    its last finished epoch. After every seed bench.json and bench.md are written anew. Processes that were launched
    together train together; what is returned has figures in the main one alone.

    Args:
        data, out: the data folder; the folder of runs and table.
        protocol: one of `PROTOCOLS`, or a stand-in's own.
        settings: those of all seeds (see `paper_settings`); the first seed is theirs.
        crf: also score the segmenter with the dense CRF behind it, as the paper does, and make the submission so.
        force: allow other settings than existing runs'; what depends on them is done again.
        command: how this was called, to be noted.
        processes: how many processes train the networks, as in `fit`.

    Raises:
        DataError: when the data is not there, or is not what the protocol asks for.
        ValueError: when settings or run folders are wrong.
    """
    if seeds < 1:
        raise ValueError(f"--seeds: got {seeds}, expected at least 1")
    found = check_data(data, protocol, settings)
    found.require()
    out, numbers = Path(out), range(settings.seed, settings.seed + seeds)
    result = Bench(out, found, settings, {}, {}, tuple(numbers), command)
    is_main = launched()[0] == 0
    if is_main:
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


def _begin(result: Bench) -> None:
    out = result.folder
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / "bench.json").exists())):
        raise RunError(f"{out}: exists and is not a benchmark's folder; choose another --out")
    if not (out / "bench.json").exists():
        result.save()


def _with_seed(result: Bench, seed: int, figures: dict[PublishedFigure, float], submission: Path | None) -> Bench:
    return dataclasses.replace(
        result,
        figures={**result.figures, seed: figures},
        submissions={**result.submissions, **({seed: submission} if submission else {})},
        missing=tuple(later for later in result.missing if later > seed),
    )


def _finish(run: Run, check: DataCheck, crf: bool, track: Track) -> tuple[dict[PublishedFigure, float], Path | None]:
    """The figures of a finished run in per cent, and its submission, if there is one."""
    evaluation, folder = read_evaluation(run), run.root / OTHERS["bench"][0]
    kept = _kept(run, folder / "figures.json")
    if kept is None or (kept["crf"], kept["test_images"]) != (crf, len(check.test)):
        prepared = prepare(run, track)
        remove_temporary(folder)
        refined = _score_refined(prepared, run, folder / "val", track) if crf else None
        if check.test:
            _submit(prepared, run, folder, check.test, crf, track)
        kept = {"crf": crf, "segmenter_crf": refined, "test_images": len(check.test)}
        write_atomically(folder / "figures.json", json.dumps(kept, indent=1) + "\n")
        run.note("bench")
    figures: dict[PublishedFigure, float] = {}
    # The last masks that the segmenter learned from count.
    masks = evaluation.self_trained or evaluation.pseudo_masks
    if masks is not None:
        figures["pseudo_masks"] = 100 * masks.miou
    if evaluation.segmenter is not None:
        figures["segmenter"] = 100 * evaluation.segmenter.miou
    if kept["segmenter_crf"] is not None:
        figures["segmenter_crf"] = 100 * kept["segmenter_crf"]
    return figures, folder / "submission" / ARCHIVE if check.test else None


def _kept(run: Run, file: Path) -> dict[str, Any] | None:
    """What was found before, where it was finished with the network that the run has now."""
    if "bench" not in run.manifest().others:
        return None
    try:
        values: dict[str, Any] = read_json(file)
        check_shape(values, _KEPT)
    except (OSError, ValueError) as error:
        log.warning("%s: missing or damaged (%s), made anew", file, error)
        return None
    return values


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
    # Apart, or one would go on with the other's masks.
    predicted = folder / ("test" if crf else "test_without_crf")
    predict(run.root, images, predicted, _options(run, crf), track)
    write_submission(predicted, names, prepared.dataset.mask_ids, folder / "submission", track)


def _options(run: Run, crf: bool) -> PredictOptions:
    settings = run.settings()
    limit = settings.data.max_megapixels
    return PredictOptions(
        crf=crf, device=settings.device, precision=settings.precision, max_megapixels=limit, resume=True
    )
