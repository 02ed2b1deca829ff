"""tagseg on a real PASCAL VOC 2012 subset from tags only: plain CAM and the full method, then the segmenter.

    python benchmarks/voc_animals.py                     both runs, one after the other; run again to continue
    python benchmarks/voc_animals.py --only cam          one of them (two shells: both at a time)
    python benchmarks/voc_animals.py --data DIR --weights FILE --seed 1

Settings lie in voc_animals.toml; the two runs differ in rca.contrast and rca.aggregation alone. Nothing is tuned on the
masks that are scored.
"""

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import Any

from record import record

from tagseg.data.prepare import prepare
from tagseg.measure.evaluate import Scores, read_evaluation, score_pseudo_masks
from tagseg.pipeline import fit
from tagseg.progress import bars
from tagseg.run import Run
from tagseg.settings import Settings

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"


def settings(variant: str, seed: int, weights: Path) -> Settings:
    """Return the file's settings with the variant's switches."""
    base = Settings.from_toml(HERE / "voc_animals.toml")
    on = variant == "full"
    return dataclasses.replace(
        base,
        seed=seed,
        train=dataclasses.replace(base.train, weights=str(weights)),
        rca=dataclasses.replace(base.rca, contrast=on, aggregation=on),
    )


def pseudo_mask_scores(run: Run) -> Scores:
    """Score a run's pseudo-masks."""
    scores = score_pseudo_masks(prepare(run), run)
    assert scores is not None, "the data set has masks"
    return scores


def main() -> None:
    """Run what is asked for, and write the table when both runs are finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data/voc_animals")
    parser.add_argument("--weights", type=Path, default=SHARED / "weights/mobilenetv2_100.safetensors")
    parser.add_argument("--out", type=Path, default=HERE / "runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("cam", "full"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if not options.data.is_dir() or not options.weights.is_file():
        raise SystemExit(f"needs {options.data} and {options.weights}; give others with --data and --weights")
    runs = {variant: Run(options.out / f"voc_animals_{variant}_{options.seed}") for variant in ("cam", "full")}
    for variant, run in runs.items():
        if options.only in (None, variant):
            until = "report" if variant == "full" else "masks"
            fit(options.data, run.root, settings(variant, options.seed, options.weights), track=bars, until=until)
    if (
        all(run.manifest_file.exists() for run in runs.values())
        and runs["cam"].done("masks")
        and runs["full"].done("report")
    ):
        print(write_results(runs, options.seed).read_text())


def write_results(runs: dict[str, Run], seed: int) -> Path:
    """Write the figures and their table."""
    evaluation = read_evaluation(runs["full"])
    cam, full, segmenter = pseudo_mask_scores(runs["cam"]), evaluation.pseudo_masks, evaluation.segmenter
    assert full is not None and segmenter is not None, "the data set has masks"
    stages = runs["full"].manifest()["stages"]
    figures: dict[str, Any] = {
        "pseudo_miou_cam": round(100 * cam.miou, 2),
        "pseudo_miou_full": round(100 * full.miou, 2),
        "segmenter_miou_val": round(100 * segmenter.miou, 2),
        **{f"seconds_{stage}": values["seconds"] for stage, values in stages.items()},
        **{f"peak_mb_{stage}": values["peak_mb"] for stage, values in stages.items()},
        "seconds_train_cam": runs["cam"].manifest()["stages"]["train"]["seconds"],
    }
    columns = {
        f"plain CAM, pseudo-masks ({cam.images} train)": cam,
        f"full method, pseudo-masks ({full.images} train)": full,
        f"segmenter ({segmenter.images} val)": segmenter,
    }
    rows = ["| IoU, % | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    rows.append("| **mean** | " + " | ".join(f"**{100 * scores.miou:.1f}**" for scores in columns.values()) + " |")
    for i, name in enumerate(evaluation.classes):
        rows.append(
            f"| {name} | " + " | ".join(f"{100 * (scores.iou[i] or 0):.1f}" for scores in columns.values()) + " |"
        )
    rows += ["", "| stage of the full run | seconds | peak MB |", "|---|---:|---:|"]
    rows += [f"| {stage} | {values['seconds']:.0f} | {values['peak_mb']} |" for stage, values in stages.items()]
    return record("voc_animals", [seed], figures, "\n".join(rows))


if __name__ == "__main__":
    main()
