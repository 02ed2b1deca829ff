"""tagseg on a real PASCAL VOC 2012 subset from tags only: plain CAM and the full method, then the segmenter.

    python benchmarks/voc_animals.py                     both runs, one after the other; run again to continue
    python benchmarks/voc_animals.py --only cam          one of them (two shells: two at a time)
    python benchmarks/voc_animals.py --data DIR --weights FILE --seed 1

Settings lie in voc_animals.toml; the two runs differ in rca.contrast and rca.aggregation alone. Nothing is tuned on the
masks that are scored.
"""

import argparse
from pathlib import Path
from typing import Any

import animals
from record import iou_rows, record

from tagseg.data.prepare import prepare
from tagseg.evaluate.evaluate import Scores, read_evaluation
from tagseg.pipeline import fit, fit_until
from tagseg.run.folder import Run
from tagseg.run.stages import Stage
from tagseg.studies.ablation.arms import arm_settings, read_score, run_folder, score_run
from tagseg.studies.ablation.table import ArmScore
from tagseg.system.progress import bars


def main() -> None:
    """Run what is asked for, and write the table when both runs are finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("cam", "both"))
    options = animals.parse(parser, "voc_animals_fit")
    settings = animals.settings(options)
    runs = {arm: Run(run_folder(options.out, arm, options.seed)) for arm in ("cam", "both")}
    if options.only in (None, "cam"):
        fit_until(options.data, runs["cam"].root, "train", arm_settings(settings, "cam", options.seed), track=bars)
    if options.only in (None, "both"):
        fit(options.data, runs["both"].root, arm_settings(settings, "both", options.seed), track=bars)
    needed: dict[str, Stage] = {"cam": "train", "both": "report"}
    if all(run.manifest_file.exists() and run.done(needed[arm]) for arm, run in runs.items()):
        print(write_results(runs, options.seed, animals.name("voc_animals", options.backbone)).read_text())


def cam_score(run: Run) -> ArmScore:
    """Return the scores of plain CAM's pseudo-masks; only the images that are scored get maps."""
    prepared = prepare(run)
    return read_score(run, run.settings(), prepared) or score_run(prepared, run, "cam", bars)


def write_results(runs: dict[str, Run], seed: int, results: str) -> Path:
    """Write the figures and their table."""
    evaluation = read_evaluation(runs["both"])
    cam, full, segmenter = cam_score(runs["cam"]), evaluation.pseudo_masks, evaluation.segmenter
    improved = evaluation.self_trained
    assert full and segmenter and improved, "the data set has masks, and there are two rounds"
    stages = runs["both"].manifest().stages
    figures: dict[str, Any] = {
        "pseudo_miou_cam": round(100 * cam.miou, 2),
        "pseudo_miou_full": round(100 * full.miou, 2),
        "pseudo_miou_self_trained": round(100 * improved.miou, 2),
        "segmenter_miou_val": round(100 * segmenter.miou, 2),
        **{f"seconds_{stage}": note.seconds for stage, note in stages.items()},
        **{f"peak_mb_{stage}": note.peak_mb for stage, note in stages.items()},
        "seconds_train_cam": runs["cam"].manifest().stages["train"].seconds,
    }
    columns: dict[str, ArmScore | Scores] = {
        f"plain CAM, pseudo-masks ({full.images} train)": cam,
        f"full method, pseudo-masks ({full.images} train)": full,
        "after self-training (the same)": improved,
        f"segmenter ({segmenter.images} val)": segmenter,
    }
    rows = iou_rows(evaluation.classes, columns)
    rows += ["", "| stage of the full run | seconds | peak MB |", "|---|---:|---:|"]
    rows += [f"| {stage} | {note.seconds:.0f} | {note.peak_mb} |" for stage, note in stages.items()]
    return record(results, [seed], figures, "\n".join(rows))


if __name__ == "__main__":
    main()
