"""Run tagseg on a subset of PASCAL VOC 2012 from tags only: plain CAM and the full method, then the segmenter.

    python -m benchmarks.quality.voc_animals                     both runs, one after the other; run again to continue
    python -m benchmarks.quality.voc_animals --only cam          one of them (use two shells to run two at a time)
    python -m benchmarks.quality.voc_animals --data DIR --weights FILE --seed 1

voc_animals.toml has the settings; the two runs differ only in rca.contrast and rca.aggregation. Nothing is tuned on the
scored masks.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import iou_rows, record

from tagseg.data.prepare import prepare
from tagseg.evaluate.scores import Scores, read_evaluation
from tagseg.pipeline import fit, fit_until
from tagseg.run.folder import Run
from tagseg.run.stages import Stage
from tagseg.studies.ablation.arms import arm_settings, run_folder
from tagseg.studies.ablation.scores import ArmScore, read_score, score_run
from tagseg.system.progress import bars


def main() -> None:
    """Run what the flags ask for, and write the table when both runs are finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("cam", "both"))
    options = harness.parse(parser, "voc_animals_fit")
    settings = harness.animal_settings(options)
    runs = {arm: Run(run_folder(options.out, arm, options.seed)) for arm in ("cam", "both")}
    if options.only in (None, "cam"):
        fit_until(options.data, runs["cam"].root, "train", arm_settings(settings, "cam", options.seed), track=bars)
    if options.only in (None, "both"):
        fit(options.data, runs["both"].root, arm_settings(settings, "both", options.seed), track=bars)
    needed: dict[str, Stage] = {"cam": "train", "both": "report"}
    if all(run.manifest_file.exists() and run.done(needed[arm]) for arm, run in runs.items()):
        print(write_results(runs, options.seed, harness.name("voc_animals", options.backbone)).read_text())


def cam_score(run: Run) -> ArmScore:
    """Return the scores of plain CAM's pseudo-masks; only the scored images get maps."""
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
