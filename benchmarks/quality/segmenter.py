"""Measure how far tags alone take a segmentation network: the same network trained on pseudo-masks and on full masks.

    python -m benchmarks.quality.segmenter                seeds 0 to 2, one after the other; run again to continue
    python -m benchmarks.quality.segmenter --only 1       one of them (use two shells to run two at a time)

Each seed is a separate run: classifier, maps, masks, segmenter (weak), and the segmenter trained again on the true
masks of the same images (full: SBD's). Both are scored on val.txt; the pseudo-masks that the weak one learned from are
scored on train.txt. voc_animals.toml has the settings; nothing is tuned on the scored masks. The runs are those of
voc_animals.py; a classifier that the ablation trained with the same settings is reused.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks import harness
from benchmarks.harness import record

from tagseg.data.prepare import prepare
from tagseg.data.true_masks import load_mask
from tagseg.evaluate.evaluate import scored_samples
from tagseg.evaluate.iou import confusion, iou
from tagseg.evaluate.scores import Evaluation, read_evaluation
from tagseg.pipeline import fit
from tagseg.run.folder import Run
from tagseg.run.open import SECTIONS, open_run
from tagseg.segment.predictor import configure
from tagseg.segment.read_network import read_predictor
from tagseg.settings.predict import PredictOptions
from tagseg.settings.settings import Settings
from tagseg.studies.ablation.arms import arm_settings, run_folder
from tagseg.studies.ablation.table import Spread
from tagseg.studies.full_supervision import train_upper_bound
from tagseg.system.progress import bars


def main() -> None:
    """Run the seeds asked for, and write the table of all that are finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", type=int, help="only this seed")
    options = harness.parse(parser, "voc_animals_fit")
    settings = harness.animal_settings(options)
    seeds = range(options.seeds) if options.only is None else [options.only]
    for seed in seeds:
        own, run = arm_settings(settings, "both", seed), Run(run_folder(options.out, "both", seed))
        take_over(Run(run_folder(options.out.parent / "voc_animals", "both", seed)), run, options.data, own)
        fit(options.data, run.root, own, track=bars)
        train_upper_bound(run.root, track=bars)
    runs = {seed: Run(run_folder(options.out, "both", seed)) for seed in range(options.seeds)}
    finished = {seed: read_evaluation(run) for seed, run in runs.items() if run.root.exists() and run.done("evaluate")}
    finished = {seed: found for seed, found in finished.items() if found.share() is not None}
    if finished:
        refined = {seed: (crf_miou(runs[seed]), crf_miou(runs[seed].full_supervision)) for seed in finished}
        write_results(finished, refined, settings, harness.name("segmenter", options.backbone))


def take_over(source: Run, target: Run, data: Path, settings: Settings) -> None:
    """Start the run `target` with the classifier of `source` if that was trained with the same settings."""
    if target.root.exists() or not source.root.exists() or not source.done("train"):
        return
    trained, wanted = source.settings().to_dict(), settings.to_dict()
    if any(trained[section] != wanted[section] for section in SECTIONS["train"]):
        return
    open_run(target.root, data, settings)
    shutil.copytree(source.network, target.network)
    shutil.copy(source.data_file, target.data_file)
    target.store(target.manifest().with_stage("train", source.manifest().stages["train"]))


def crf_miou(run: Run) -> float:
    """Return the mIoU, in per cent, of a segmenter's masks of the validation images refined by the dense CRF."""
    prepared = prepare(Run(run.root.parent) if run.root.name == "full_supervision" else run)
    predictor = configure(read_predictor(run.segmenter), PredictOptions(crf=True))
    ids = len(prepared.dataset.classes) + 1
    matrix = np.zeros((ids, ids), np.int64)
    samples = scored_samples(prepared.dataset, "val")
    for sample in bars(samples, "with CRF", len(samples)):
        truth = load_mask(sample, prepared.dataset, prepared.sizes[sample.id])
        matrix += confusion(truth, predictor(sample.image).mask, ids)
    return 100 * iou(matrix).miou


def write_results(
    found: dict[int, Evaluation], refined: dict[int, tuple[float, float]], settings: Settings, results: str
) -> None:
    """Write the figures and their table; `refined` are the scores of both networks with the dense CRF."""
    scores: dict[str, dict[int, float]] = {"weak_miou": {}, "full_miou": {}, "ratio": {}, "pseudo_miou": {}}
    scores |= {"weak_miou_crf": {}, "full_miou_crf": {}, "ratio_crf": {}}
    for seed, one in found.items():
        learned_from = one.self_trained or one.pseudo_masks
        assert one.segmenter and one.full_supervision and learned_from, "the data set has masks"
        scores["weak_miou"][seed] = 100 * one.segmenter.miou
        scores["full_miou"][seed] = 100 * one.full_supervision.miou
        scores["ratio"][seed] = 100 * one.segmenter.miou / one.full_supervision.miou
        scores["pseudo_miou"][seed] = 100 * learned_from.miou
        scores["weak_miou_crf"][seed], scores["full_miou_crf"][seed] = refined[seed]
        scores["ratio_crf"][seed] = 100 * refined[seed][0] / refined[seed][1]
    spreads = {name: Spread(values) for name, values in scores.items()}
    names = {
        "weak_miou": "segmenter from tags, mIoU on val.txt",
        "full_miou": "the same from full masks, mIoU on val.txt",
        "ratio": "share of full supervision",
        "pseudo_miou": "pseudo-masks it learned from, mIoU on train.txt",
        "weak_miou_crf": "segmenter from tags, with dense CRF",
        "full_miou_crf": "the same from full masks, with dense CRF",
        "ratio_crf": "share of full supervision, both with dense CRF",
    }
    rows = [
        "| per cent | mean | " + " | ".join(f"seed {seed}" for seed in found) + " |",
        "|---|---:" + "|---:" * len(found) + "|",
    ]
    rows += [
        f"| {names[name]} | {spread.text()} | " + " | ".join(f"{scores[name][seed]:.1f}" for seed in found) + " |"
        for name, spread in spreads.items()
    ]
    rounds, epochs = settings.segment.rounds, settings.segment.epochs
    times = f"{rounds} round{'s' * (rounds > 1)} of {epochs} epochs"
    rows += ["", f"{times}; mean ± standard deviation over the seeds."]
    figures: dict[str, Any] = {name: spread.to_dict() for name, spread in spreads.items()}
    print(record(results, sorted(found), figures, "\n".join(rows)).read_text())


if __name__ == "__main__":
    main()
