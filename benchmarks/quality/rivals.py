"""Compare the memory bank with its rivals: pseudo-masks from the same frozen features, on three data sets.

    python -m benchmarks.quality.rivals                       all data sets, seeds 0 to 2; run again to continue
    python -m benchmarks.quality.rivals --sets demo street_clothing --seeds 0 --rivals cam bank
    python -m benchmarks.quality.rivals --finished            only what is finished, no more work

Figures of sets and rivals that are not measured stay those of the earlier result.

Every rival sees the same features and the same tag head, which is fitted to convergence. `own rule`: background by the
rule that needs no true mask (Otsu's cut of maps, what probabilities leave over). `chosen rule`: the rule of RULES that
is best on images that are not scored, with their true masks. `dense CRF` refines masks by the own rule: a rule that is
best without the CRF need not be so with it.

Rules, and the constants of the random walk, were chosen on images that are not scored: of street_clothing and of the
demo every second image, from the first; of voc_animals training images outside train.txt. All images lend their tags.

Saliency maps are not made here: with the network that examples/saliency.py names installed,

    python examples/saliency.py DATA benchmarks/runs/saliency/NAME

makes those of a data set. Where they are missing, the rivals that need them are left out, and the results say so. The
drawn demo is in benchmarks/runs/rivals/demo_data after the first call.
"""

import argparse
import copy
import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks import harness
from benchmarks.harness import KEPT, RUNS, SHARED, record
from benchmarks.quality import domains
from PIL import Image

from tagseg.data.images import read_image, read_saliency
from tagseg.data.prepare import Prepared
from tagseg.data.records import Sample
from tagseg.data.true_masks import load_mask
from tagseg.demo.draw import draw_demo
from tagseg.evaluate.evaluate import scored_samples
from tagseg.evaluate.iou import confusion, iou
from tagseg.features.cache import FeatureCache
from tagseg.masks.localise import from_cache
from tagseg.masks.make import mask_image
from tagseg.masks.map_files import quantised_maps
from tagseg.masks.resize import refined_size
from tagseg.rca.heads import fit_heads
from tagseg.rca.network import RcaNetwork
from tagseg.rca.rivals import reactivate
from tagseg.run.folder import Run
from tagseg.settings.masks import MaskSettings
from tagseg.settings.rca import RcaSettings
from tagseg.settings.settings import Baseline, Settings
from tagseg.system.progress import bars

SETS = ("demo", *domains.SETS)


@dataclass(frozen=True)
class Rival:
    """What makes masks: the kind of maps, changes of the bank's settings (None: it is not used), whether background is
    taken from saliency maps, and what it is in words."""

    words: str
    maps: Baseline = "cam"
    rca: dict[str, int] | None = None
    saliency: bool = False


RIVALS = {
    "cam": Rival("class activation maps"),
    "correlation": Rival("... after SEAM's pixel correlation", "correlation"),
    "walk": Rival("... after IRN's random walk", "walk"),
    "recam": Rival("ReCAM", "recam"),
    "mean_prototypes": Rival(
        "one mean prototype per class", rca={"prototypes": 1, "background_prototypes": 1, "rounds": 1}
    ),
    "prototypes": Rival("k-means prototypes, mined once", rca={"rounds": 1}),
    "bank": Rival("**memory bank** (`--quality fast`)", rca={}),
    "saliency": Rival("saliency x tag", "saliency", saliency=True),
    "bank_saliency": Rival("**memory bank** and `--masks.saliency`", rca={}, saliency=True),
}

RULES = (
    *(MaskSettings(background="threshold", threshold=tenth / 10) for tenth in range(1, 10)),
    *(MaskSettings(background="power", power=power) for power in (1.0, 4.0, 16.0)),
)
"""Constant cuts, and `(1 - highest map) ^ power` (Ahn and Kwak 2018)."""

CHOOSING = 60
"""Most images on which a rule is chosen."""

NAMED_CLUSTERS = (
    "Named clusters, where a person answers questions, are the result teach (`python -m benchmarks.quality.teach`), on "
    "the same scored images of street_clothing."
)
"""The rival that needs a person."""

COLUMNS = {"own": "own rule", "chosen": "chosen rule", "crf": "own rule and dense CRF"}


@dataclass(frozen=True)
class Bench:
    """A data set with its features, the images on which rules are chosen, those that are scored, and the networks of
    this call, by settings and seed: rivals with the same bank share one."""

    run: Run
    prepared: Prepared
    cache: FeatureCache
    choosing: list[Sample]
    scored: list[Sample]
    networks: dict[tuple[RcaSettings, int], RcaNetwork] = field(default_factory=dict)


def main() -> None:
    """Score every data set, rival and seed, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--rivals", nargs="+", choices=RIVALS, default=list(RIVALS), help="measure these, in this order"
    )
    parser.add_argument("--backbone", default="mobilenetv2_100", help="timm's name")
    parser.add_argument("--out", type=Path, default=RUNS / "rivals", help="folder for the runs")
    parser.add_argument("--saliency", type=Path, default=RUNS / "saliency", help="folder with a folder of maps per set")
    parser.add_argument("--photographs", type=int, default=0, help="see no more than these, scored ones first (0: all)")
    parser.add_argument("--finished", action="store_true", help="measure nothing, leave out what is missing")
    options = parser.parse_args()
    result = harness.name("rivals", options.backbone)
    measured = harness.measured(result)
    figures = {name: measured[name] for name in SETS if name not in options.sets and name in measured}
    for name in options.sets:
        bench = open_bench(options, name)
        for rival in options.rivals:
            measure(bench, rival, options)
        found = {rival: finished(bench, rival, options.seeds) for rival in RIVALS}
        figures[name] = summary(bench, {rival: seeds for rival, seeds in found.items() if seeds})
        kept = measured.get(name, {}).get("rivals", {})
        rivals = kept | figures[name]["rivals"]
        figures[name]["rivals"] = {rival: rivals[rival] for rival in RIVALS if rival in rivals}
    text = "\n\n".join([*(table(name, figures[name]) for name in SETS if name in figures), NAMED_CLUSTERS, KEPT])
    print(text)
    record(result, options.seeds, figures, text)


def open_bench(options: argparse.Namespace, name: str) -> Bench:
    """Return a data set with its features, which are computed once."""
    data = (
        draw_demo(options.out / "demo_data", train=320, val=60, shared_colours=True, track=bars)
        if name == "demo"
        else SHARED / "data" / name
    )
    run, prepared, cache, _ = domains.features(options, name, data)
    folder = options.saliency / name
    samples = tuple(
        dataclasses.replace(one, saliency=file) if (file := folder / f"{one.id}.png").exists() else one
        for one in prepared.dataset.samples
    )
    prepared = dataclasses.replace(prepared, dataset=dataclasses.replace(prepared.dataset, samples=samples))
    scored = scored_samples(prepared.dataset, "train")
    if name == "voc_animals":
        own = {sample.id for sample in scored}
        others = [one for one in prepared.dataset.split("train") if one.mask is not None and one.id not in own]
        return Bench(run, prepared, cache, others[:CHOOSING], scored)
    return Bench(run, prepared, cache, scored[0::2][:CHOOSING], scored[1::2])


def measure(bench: Bench, rival: str, options: argparse.Namespace) -> None:
    """Score a rival for every seed; what is finished is kept."""
    chosen = RIVALS[rival]
    salient = all(sample.saliency is not None for sample in [*bench.choosing, *bench.scored])
    for seed in options.seeds:
        file = _score_file(bench, rival, seed)
        if not file.exists() and not options.finished and (salient or not chosen.saliency):
            settings = rival_settings(bench.run.settings(), chosen, seed)
            before = time.process_time()
            network = fitted(bench, settings, chosen)
            rule = chosen_rule(bench, rival, network, settings)
            scores = score(bench, network, settings, rule)
            file.write_text(json.dumps(scores | {"cpu_s": round(time.process_time() - before, 1)}))


def finished(bench: Bench, rival: str, seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return the IoU of every class per seed and column, of the seeds that are finished."""
    files = {seed: _score_file(bench, rival, seed) for seed in seeds}
    return {seed: json.loads(file.read_text()) for seed, file in files.items() if file.exists()}


def _score_file(bench: Bench, rival: str, seed: int) -> Path:
    return bench.run.root / f"{rival}_{seed}.json"


def rival_settings(settings: Settings, rival: Rival, seed: int) -> Settings:
    """Return the settings of a run of a rival."""
    return dataclasses.replace(
        settings,
        seed=seed,
        maps=rival.maps,
        rca=dataclasses.replace(settings.rca, **(rival.rca or {})),
        localise=dataclasses.replace(settings.localise, kind="auto" if rival.rca is not None else "coarse"),
        masks=dataclasses.replace(settings.masks, saliency=rival.saliency and rival.maps != "saliency"),
    )


def fitted(bench: Bench, settings: Settings, rival: Rival) -> RcaNetwork:
    """Return a network with tag head and bank, fitted on the features."""
    key = settings.rca, settings.seed
    if key not in bench.networks:
        plain = dataclasses.replace(settings, maps="cam")
        bench.networks[key] = fit_heads(bench.prepared.dataset, bench.cache, plain, bars).network
    network = bench.networks[key]
    if rival.maps == "recam":
        network = copy.deepcopy(network)
        reactivate(network, bench.cache, bench.prepared.dataset.split("train"), bars)
    return network


def chosen_rule(bench: Bench, rival: str, network: RcaNetwork, settings: Settings) -> MaskSettings:
    """Return the mask rule that is best on images that are not scored; seed 0 chooses for all seeds, if it is there."""
    file = bench.run.root / f"rule_{rival}.json"
    rules = [_like(rule, settings) for rule in (settings.mask_rule(), *RULES)]
    if not file.exists():
        asked = {i: (rule, False) for i, rule in enumerate(rules)}
        pixels = _pixels(bench, network, settings, bench.choosing, asked)
        shares = [iou(pixels[i]).miou for i in range(len(rules))]
        file.write_text(json.dumps({"rule": int(np.argmax(shares)), "miou": [round(100 * one, 2) for one in shares]}))
    return rules[json.loads(file.read_text())["rule"]]


def _like(rule: MaskSettings, settings: Settings) -> MaskSettings:
    return dataclasses.replace(rule, saliency=settings.masks.saliency)


def score(bench: Bench, network: RcaNetwork, settings: Settings, rule: MaskSettings) -> dict[str, Any]:
    """Return the IoU of every class on the scored images, by column, and the chosen rule in words."""
    asked = {"own": (settings.mask_rule(), False), "chosen": (rule, False), "crf": (settings.mask_rule(), True)}
    pixels = _pixels(bench, network, settings, bench.scored, asked)
    found: dict[str, Any] = {
        column: [None if one is None else round(100 * one, 2) for one in iou(matrix).iou]
        for column, matrix in pixels.items()
    }
    value = {"threshold": f" {rule.threshold:g}", "power": f" {rule.power:g}"}.get(rule.background, "")
    return found | {"rule": f"{rule.background}{value}"}


def _pixels(
    bench: Bench,
    network: RcaNetwork,
    settings: Settings,
    samples: Sequence[Sample],
    asked: dict[Any, tuple[MaskSettings, bool]],
) -> dict[Any, np.ndarray]:
    """Return the pixels of images by true and given class, for every mask rule without or with the dense CRF."""
    ids = 1 + len(bench.prepared.dataset.classes)
    pixels = {key: np.zeros((ids, ids), np.int64) for key in asked}
    for sample in bars(samples, "masks", len(samples)):
        truth = load_mask(sample, bench.prepared.dataset)
        size = (truth.shape[1], truth.shape[0])
        image = np.asarray(read_image(sample.image).resize(size, Image.Resampling.BILINEAR))
        maps = quantised_maps(from_cache(network, bench.cache, sample, settings).numpy())
        salient = None
        if settings.masks.saliency:
            assert sample.saliency is not None
            salient = np.asarray(read_saliency(sample.saliency, refined_size(truth.shape, settings.masks)))
        for key, (rule, crf) in asked.items():
            refine = settings.crf if crf else None
            mask = mask_image(image, maps, sample.tags, truth.shape, rule, refine, salient)[0]
            pixels[key] += confusion(truth, mask, ids)
    return pixels


def summary(bench: Bench, found: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """Return mean and deviation over seeds of the mIoU per rival and column, and the mean IoU of each class."""
    classes = ("background", *bench.prepared.dataset.classes)
    figures: dict[str, Any] = {}
    for rival, seeds in found.items():
        found_of: dict[str, Any] = {"seeds": sorted(seeds), "rule": next(iter(seeds.values()))["rule"]}
        for column in COLUMNS:
            each = np.array([[np.nan if one is None else one for one in scores[column]] for scores in seeds.values()])
            means = np.nanmean(each, 1)
            found_of[column] = {
                "mean": round(float(means.mean()), 2),
                "std": round(float(means.std(ddof=1)), 2) if len(means) > 1 else None,
                "classes": dict(zip(classes, np.nanmean(each, 0).round(1).tolist(), strict=True)),
            }
        figures[rival] = found_of | {"cpu_s": round(float(np.mean([scores["cpu_s"] for scores in seeds.values()])), 1)}
    split = bench.prepared.dataset.split("train")
    counts = {"scored": len(bench.scored), "choosing": len(bench.choosing), "photographs": len(split)}
    return {"rivals": figures} | counts


def table(name: str, figures: dict[str, Any]) -> str:
    """Return the figures of a data set as Markdown."""
    rows = [
        "| mIoU, % | " + " | ".join(COLUMNS.values()) + " | the chosen rule | seeds |",
        "|---|---:|---:|---:|---|---|",
    ]
    for rival, one in figures["rivals"].items():
        cells = [f"{one[column]['mean']:.1f} ± {_deviation(one[column]['std'])}" for column in COLUMNS]
        seeds = ", ".join(map(str, one["seeds"]))
        rows.append(f"| {RIVALS[rival].words} | " + " | ".join(cells) + f" | {one['rule']} | {seeds} |")
    left = [rival.words for key, rival in RIVALS.items() if key not in figures["rivals"]]
    missing = f" Not measured: {', '.join(left)}." if left else ""
    return (
        f"**{name}**, {figures['photographs']} photographs, {figures['scored']} scored, rules chosen with the "
        f"true masks of {figures['choosing']} others.{missing}\n\n" + "\n".join(rows)
    )


def _deviation(std: float | None) -> str:
    return "-" if std is None else f"{std:.1f}"


if __name__ == "__main__":
    main()
