"""Measure what plain CAM and the full method reach on the demo's drawn images, and how long `tagseg demo` takes.

    python -m benchmarks.quality.demo                 both, one after the other; run again to continue
    python -m benchmarks.quality.demo --only cam      one of them (in two shells the seconds are too high)

The demo's settings were chosen on the drawing of another seed.
"""

import argparse
import time

from benchmarks.harness import RUNS, iou_rows, record

from tagseg.data.prepare import prepare
from tagseg.demo.draw import draw_demo
from tagseg.evaluate.scores import Scores, read_evaluation
from tagseg.pipeline import fit_until
from tagseg.run.folder import Run
from tagseg.studies.ablation.arms import arm_settings
from tagseg.studies.ablation.scores import ArmScore, read_score, score_run
from tagseg.studies.demo import demo_settings, run_demo
from tagseg.system.progress import bars


def main() -> None:
    """Run what the flags ask for, and write the table when both are finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("cam", "both"))
    options = parser.parse_args()
    full, cam = RUNS / "demo" / f"both_{options.seed}", Run(RUNS / "demo" / f"cam_{options.seed}")
    if options.only != "cam":
        started = time.monotonic()
        run_demo(full, options.seed, track=bars)
        print(f"demo: {time.monotonic() - started:.0f} s, without what was finished before")
    if options.only != "both":
        settings = arm_settings(demo_settings(options.seed), "cam", options.seed)
        fit_until(
            draw_demo(RUNS / "demo" / f"cam_{options.seed}_data", seed=options.seed),
            cam.root,
            "train",
            settings,
            track=bars,
        )
    finished = Run(full / "run")
    if cam.manifest_file.exists() and cam.done("train") and finished.evaluation_file.exists():
        write_results(cam, finished, options.seed)


def write_results(cam: Run, full: Run, seed: int) -> None:
    """Write the figures and their table."""
    prepared, evaluation = prepare(cam), read_evaluation(full)
    plain = read_score(cam, cam.settings(), prepared) or score_run(prepared, cam, "cam", bars)
    masks, segmenter = evaluation.pseudo_masks, evaluation.segmenter
    assert masks is not None and segmenter is not None, "the demo has masks"
    stages = full.manifest().stages
    figures = {
        "pseudo_miou_cam": round(100 * plain.miou, 2),
        "pseudo_miou_full": round(100 * masks.miou, 2),
        "segmenter_miou_val": round(100 * segmenter.miou, 2),
        "seconds": round(sum(note.seconds or 0.0 for note in stages.values()), 1),
    }
    columns: dict[str, ArmScore | Scores] = {
        "plain CAM, pseudo-masks": plain,
        "full method, pseudo-masks": masks,
        "segmenter, new images": segmenter,
    }
    rows = iou_rows(evaluation.classes, columns)
    rows += ["", f"All stages of the full run took {figures['seconds']:.0f} seconds."]
    print(record("demo", [seed], figures, "\n".join(rows)).read_text())


if __name__ == "__main__":
    main()
