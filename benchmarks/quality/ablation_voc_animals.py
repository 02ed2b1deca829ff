"""Measure what contrast and aggregation add on voc_animals: pseudo-masks of each arm, over seeds.

    python -m benchmarks.quality.ablation_voc_animals                all four arms, seeds 0 to 2; run again to continue
    python -m benchmarks.quality.ablation_voc_animals --arms cam     one of them (several shells run several at once)
    python -m benchmarks.quality.ablation_voc_animals --backbone resnet18 --backbone-weights FILE

    python -m benchmarks.quality.ablation_voc_animals --crf          the same runs, masks refined by the dense CRF

voc_animals.toml has the settings; arms differ only in rca.contrast and rca.aggregation. Maps have three scales (0.75,
1, 1.5). Nothing is tuned on the scored masks.
"""

import argparse
import dataclasses
from typing import Any

from benchmarks import harness
from benchmarks.harness import RESULTS, record

from tagseg.studies.ablation.ablate import ablate
from tagseg.studies.ablation.arms import ARMS
from tagseg.studies.ablation.picture import draw_ablation
from tagseg.studies.ablation.table import Ablation
from tagseg.system.progress import bars


def main() -> None:
    """Run the arms asked for, and write the results when all four are finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", default=",".join(ARMS), help="separated by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--force", action="store_true", help="repeat what was made with other settings")
    parser.add_argument("--crf", action="store_true", help="refine masks by the dense CRF")
    options = harness.parse(parser)
    settings, arms = harness.animal_settings(options), options.arms.split(",")
    settings = dataclasses.replace(
        settings,
        localise=dataclasses.replace(settings.localise, scales=(0.75, 1.0, 1.5)),
        crf=settings.crf if options.crf else dataclasses.replace(settings.crf, steps=0),
    )
    found = ablate(options.data, options.out, settings, options.seeds, bars, arms, options.force)
    print(found.table())
    if found.arms == ARMS and not found.missing:
        write_results(found, harness.name("ablation_voc_animals" + ("_crf" if options.crf else ""), options.backbone))


def write_results(found: Ablation, results: str) -> None:
    """Write the figures, their table and the picture."""
    figures: dict[str, Any] = {arm: found.miou(arm).to_dict() for arm in found.arms}
    seeds = sorted({score.seed for score in found.scores})
    (RESULTS / f"{results}.svg").write_text(draw_ablation(found), encoding="utf-8")
    print(record(results, seeds, figures, f"![Gain of each arm]({results}.svg)\n\n{found.table()}"))


if __name__ == "__main__":
    main()
