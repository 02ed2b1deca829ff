"""Measure what each step from maps to masks adds on voc_animals, and how fast masks are made.

    python -m benchmarks.quality.voc_animals && python -m benchmarks.quality.masks

Pseudo-masks of the 370 scored images, tags only, seed 0: plain CAM and the full method at the scales of the ablation;
then, each added to the one before, the default scales, the dense CRF, and a round of self-training. Nothing is tuned on
these masks. Images per second are for localise and masks together, as in masks_throughput.py.
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from benchmarks import harness
from benchmarks.harness import record
from benchmarks.speed.masks_throughput import measure
from jaxtyping import UInt8

from tagseg.data.images import read_image
from tagseg.data.prepare import Prepared, prepare
from tagseg.data.records import Sample
from tagseg.data.true_masks import load_mask
from tagseg.evaluate.evaluate import scored_samples
from tagseg.evaluate.iou import confusion, iou
from tagseg.masks.make import mask_image, mask_sample
from tagseg.masks.map_files import map_file, read_maps
from tagseg.run.folder import Run
from tagseg.segment.read_network import read_predictor
from tagseg.segment.self_training import improved_maps
from tagseg.settings.settings import Settings
from tagseg.studies.ablation.arms import run_folder
from tagseg.studies.ablation.scores import mask_rule_text
from tagseg.system.progress import bars

Mask = UInt8[np.ndarray, "h w"]


def main() -> None:
    """Score every step, measure the throughput, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=200, help="number of small images for the throughput")
    parser.add_argument("--large", type=int, default=10, help="number of 16-megapixel images")
    options = harness.parse(parser, "voc_animals_fit")
    run = Run(run_folder(options.out, "both", options.seed))
    run.require("segment")
    prepared, settings = prepare(run), run.settings()
    arms = {arm: Run(run_folder(options.out.parent / "voc_animals", arm, options.seed)) for arm in ("cam", "both")}
    steps: dict[str, Callable[[Sample], Mask]] = {
        "plain CAM, Otsu's cut": plain(prepared, arms["cam"]),
        "contrast and aggregation": plain(prepared, arms["both"]),
        "scales " + ", ".join(f"{scale:g}" for scale in settings.localise.scales): plain(prepared, run),
        "dense CRF": lambda sample: mask_sample(run, sample, prepared.sizes[sample.id], settings)[0],
        "a round of self-training": self_trained(prepared, run, settings),
    }
    found = {name: miou(prepared, make, name) for name, make in steps.items()}
    workers = Settings().workers
    pace = {
        "320px": measure(run, dataclasses.replace(settings, workers=workers), options.images, large=False),
        "16mp": measure(run, dataclasses.replace(settings, workers=workers), options.large, large=True),
    }
    lines = ["| step | mIoU, % |", "|---|---:|"]
    lines += [f"| {'+ ' if i else ''}{name} | {value:.1f} |" for i, (name, value) in enumerate(found.items())]
    lines += ["", "| images | images/s | peak MB | peak MB of a worker |", "|---|---:|---:|---:|"]
    lines += [
        f"| {name} | {one['images_per_s']:g} | {one['peak_mb']} | {one['worker_peak_mb']} |"
        for name, one in pace.items()
    ]
    lines += ["", f"{workers} worker processes beside the network's process."]
    figures: dict[str, Any] = {
        "pseudo_miou": {name: round(value, 2) for name, value in found.items()},
        "threshold_rule": mask_rule_text(settings),
        "images_per_s": pace["320px"]["images_per_s"],
        "peak_mb": pace["320px"]["peak_mb"],
        "images_per_s_16_megapixels": pace["16mp"]["images_per_s"],
        "peak_mb_16_megapixels": pace["16mp"]["peak_mb"],
        "worker_peak_mb_16_megapixels": pace["16mp"]["worker_peak_mb"],
    }
    print(record("masks", [options.seed], figures, "\n".join(lines)).read_text())


def plain(prepared: Prepared, run: Run) -> Callable[[Sample], Mask]:
    """Return a function that makes a mask from a run's maps alone, without the image."""
    rule = run.settings().mask_rule()

    def make(sample: Sample) -> Mask:
        maps, classes = read_maps(map_file(run, sample.id))
        return mask_image(None, maps, classes, prepared.sizes[sample.id], rule)[0]

    return make


def self_trained(prepared: Prepared, run: Run, settings: Settings) -> Callable[[Sample], Mask]:
    """Return a function that makes a mask like those that the second round of self-training learns from."""
    predictor, before = read_predictor(run.round(1).segmenter), settings.mask_rule()
    after = dataclasses.replace(before, background="rest")

    def make(sample: Sample) -> Mask:
        image = read_image(sample.image)
        maps, classes = read_maps(map_file(run, sample.id))
        better = improved_maps(predictor, image, sample.tags, maps, before)
        quantised = np.round(better * 255).astype(np.uint8)
        size = prepared.sizes[sample.id]
        return mask_image(np.asarray(image), quantised, classes, size, after, settings.crf)[0]

    return make


def miou(prepared: Prepared, make: Callable[[Sample], Mask], name: str) -> float:
    """Return the pooled mIoU, in per cent, of the masks of the images that count."""
    samples, ids = scored_samples(prepared.dataset, "train"), len(prepared.dataset.classes) + 1
    matrix = np.zeros((ids, ids), np.int64)
    for sample in bars(samples, name, len(samples)):
        truth = load_mask(sample, prepared.dataset, prepared.sizes[sample.id])
        matrix += confusion(truth, make(sample), ids)
    return 100 * iou(matrix).miou


if __name__ == "__main__":
    main()
