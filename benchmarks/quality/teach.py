"""Measure what teaching the memory bank gains: a simulated person names clusters of cells, or regions of single images.

    python -m benchmarks.quality.teach                        street_clothing, seeds 0 to 2; run again to continue
    python -m benchmarks.quality.teach --sets voc_animals --seeds 0
    python -m benchmarks.quality.teach --finished             only what is finished, no more work

The person sees true masks of images that are not scored, and nothing of the scored ones: of street_clothing every
second image, from the first; of voc_animals all with a mask that are not in train.txt. 5 % of the answers are wrong. An
answer is the entry that most of a cluster's visible cells have, if that is at least 60 % of them, else `mixed`. Wrong
answers are another entry of the images, or `mixed`. The other arm spends each answer on one region of one image: the
most uncertain cell of the image with the largest uncertainty is clicked, and its region enters the bank. Scored images
are never clicked. The bank follows after every tenth answer.

A seed draws the heads, the clusters and the wrong answers. `maps` are masks without, `crf` with the dense CRF; to save
hours, --crf-of says which arms are scored with it, and --most ends a curve early. Figures of sets and arms that are not
asked for stay.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks import harness
from benchmarks.harness import RUNS, record
from benchmarks.quality import domains
from PIL import Image

from tagseg.data.images import read_image
from tagseg.data.prepare import Prepared
from tagseg.data.records import Dataset, Sample
from tagseg.data.true_masks import load_mask
from tagseg.evaluate.evaluate import scored_samples
from tagseg.evaluate.iou import confusion, iou
from tagseg.features.cache import FeatureCache
from tagseg.masks.localise import MAP_STRIDE
from tagseg.masks.make import mask_image
from tagseg.masks.map_files import quantised_maps
from tagseg.networks.grid import Grid
from tagseg.rca.network import RcaNetwork
from tagseg.rca.taught import TaughtEntries, grow_region, no_entries
from tagseg.rca.train import load_network, train_frozen
from tagseg.run.folder import Run
from tagseg.run.taught import click_answer, record_answer
from tagseg.system.progress import bars
from tagseg.teaching.beliefs import Beliefs, begin_beliefs, learn
from tagseg.teaching.cells import Cells, gather_cells
from tagseg.teaching.clusters import find_clusters, members_of
from tagseg.teaching.lesson import Lesson, catch_up, learn_noted, next_questions, note_name

ARMS = ("clusters", "single_images")
MARKS = (0, 10, 30, 60, 130, 180)
"""Numbers of answers after which masks are scored without the dense CRF."""

CRF_MARKS = {"street_clothing": (0, 60, 130, 180), "voc_animals": (0, 60, 180)}
"""Numbers of answers after which they are also scored with it."""

WRONG, PURE, BATCH = 0.05, 0.6, 10
CLICKS = 5
"""Most clicks in one image."""


def main() -> None:
    """Teach and score every data set, seed and arm, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=domains.SETS, default=["street_clothing"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--backbone", default="mobilenetv2_100", help="timm's name")
    parser.add_argument("--out", type=Path, default=RUNS / "teach", help="folder for the runs")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--crf-of", nargs="*", choices=ARMS, default=["clusters"], help="score with the dense CRF, too")
    parser.add_argument("--most", type=int, default=max(MARKS), choices=MARKS[1:], help="the last number of answers")
    parser.add_argument("--finished", action="store_true", help="measure nothing, leave out what is missing")
    parser.set_defaults(photographs=0)  # which the other benchmark on these sets limits
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    tables = []
    result = harness.name("teach", options.backbone)
    measured = harness.measured(result)
    for name in domains.SETS:
        if name not in options.sets and name in measured:
            figures[name] = measured[name]
            tables.append(f"**{name}**, {measured[name]['scored']} scored images\n\n" + table(measured[name]))
    for name in options.sets:
        run, prepared, cache, _ = domains.features(options, name)
        scored = scored_samples(prepared.dataset, "train")
        known = scored[0::2] if name == "street_clothing" else _unscored(prepared.dataset, scored)
        scored = scored[1::2] if name == "street_clothing" else scored
        found: dict[str, dict[int, Any]] = {arm: {} for arm in ARMS}
        for seed in options.seeds:
            for arm in ARMS:
                file = run.root / f"taught_{arm}_{seed}.json"
                if not file.exists() and not options.finished and arm in options.arms:
                    crf = CRF_MARKS[name] if arm in options.crf_of else ()
                    marks = {mark: mark in crf for mark in MARKS if mark <= options.most}
                    measure(run, prepared, cache, (known, scored), seed, arm, marks, file)
                if file.exists():
                    found[arm][seed] = json.loads(file.read_text())
        figures[name] = summary(found, len(scored), tuple(prepared.dataset.classes))
        for arm in ARMS:
            if not found[arm]:
                keep(measured.get(name, {}), figures[name], arm)
        tables.append(f"**{name}**, {len(scored)} scored images\n\n" + table(figures[name]))
    figures |= {"recompute_1000_s": recompute_seconds(), "page_s": page_seconds(options)}
    note = (
        f"One answer to the maps of 1,000 images of 320 x 240 pixels, 180 entries taught: "
        f"{figures['recompute_1000_s']['wall_s']} s, {figures['recompute_1000_s']['cpu_s']} CPU seconds; to take it "
        f"back: {figures['recompute_1000_s']['undo_wall_s']} s, {figures['recompute_1000_s']['undo_cpu_s']} CPU s. "
        f"From a key to the next question: {figures['page_s']} s (median of 10)."
    )
    print(record(result, options.seeds, figures, "\n\n".join([*tables, note])))


def _unscored(dataset: Dataset, scored: list[Sample]) -> list[Sample]:
    own = {sample.id for sample in scored}
    return [one for one in dataset.split("train") if one.mask is not None and one.id not in own]


def measure(
    run: Run,
    prepared: Prepared,
    cache: FeatureCache,
    parts: tuple[list[Sample], list[Sample]],
    seed: int,
    arm: str,
    marks: Mapping[int, bool],
    file: Path,
) -> None:
    """Teach a fresh copy of a run's records, score it after every mark (with the dense CRF, too, where it is
    true), and write the curve."""
    known, scored = parts
    settings = dataclasses.replace(run.settings(), seed=seed)
    folder = run.root / f"network_{seed}"
    if not (folder / "network.safetensors").exists():
        train_frozen(prepared.dataset, cache, settings, folder, bars)
    network, _ = load_network(folder, torch.device("cpu"))
    lesson = _lesson(run, prepared, network, cache, seed, arm)
    truths = {sample.id: load_mask(sample, prepared.dataset) for sample in [*known, *scored]}
    rng, person = np.random.default_rng(seed), _Person(lesson, {one.id: truths[one.id] for one in known})
    curve, kinds = [], dict.fromkeys(("class", "background", "mixed", "skip"), 0)
    steps = _clusters(lesson, person, rng) if arm == "clusters" else _single_images(lesson, person, rng)
    for count in range(max(marks) + 1):
        if count % BATCH == 0 or count in marks:
            learn_noted(lesson)
        if count in marks:
            row: dict[str, Any] = _start_of(run, seed) if count == 0 else {}
            if not row:
                row = {"answers": count, "maps": score(lesson, scored, truths, False)}
                if marks[count]:
                    row["crf"] = score(lesson, scored, truths, True)
            curve.append(row | {"kinds": dict(kinds)})
            print(file.stem, row, kinds, flush=True)
        if count < max(marks):
            kinds[next(steps)] += 1
    file.write_text(json.dumps(curve))


def _start_of(run: Run, seed: int) -> dict[str, Any]:
    """Return the scores without answers if another arm has them already: they are the same."""
    files = [run.root / f"taught_{arm}_{seed}.json" for arm in ARMS]
    found: list[dict[str, Any]] = [json.loads(file.read_text())[0] for file in files if file.exists()]
    return found[0] if found else {}


def _lesson(run: Run, prepared: Prepared, network: RcaNetwork, cache: FeatureCache, seed: int, arm: str) -> Lesson:
    cells = gather_cells(run, network, cache, prepared.dataset.split("train"), bars)
    beliefs = begin_beliefs(network, cells, no_entries(network.channels))
    clusters = find_clusters(cells, len(prepared.dataset.classes), seed)
    records = Run(run.root / f"records_{arm}_{seed}")
    records.taught_file.unlink(missing_ok=True)
    return Lesson(records, prepared, network, cells, beliefs, clusters)


class _Person:
    """Knows which entry each cell of some images is of: the one with the largest part of the cell."""

    def __init__(self, lesson: Lesson, truths: dict[str, np.ndarray]) -> None:
        self.of: dict[int, np.ndarray] = {}
        for name, mask in truths.items():
            if name not in lesson.cells.places:
                continue
            place = lesson.cells.places[name]
            ids = np.array((0, *lesson.cells.samples[place].tags))
            layers = torch.from_numpy(np.stack([mask == one for one in ids]).astype("f4"))
            parts = F.interpolate(layers[None], lesson.cells.size(place), mode="area")[0]
            self.of[place] = ids[parts.argmax(0).flatten().numpy()]


def _clusters(lesson: Lesson, person: _Person, rng: np.random.Generator) -> Iterator[str]:
    """Yield what kind each answer is; the questions are those with the largest expected gain."""
    while found := next_questions(lesson):
        key, counts = found[0].key, np.zeros(1 + len(lesson.classes), int)
        for place, own in members_of(lesson.clusters, key):
            if place in person.of:
                counts += np.bincount(person.of[place][own.numpy()], minlength=len(counts))
        best = int(counts.argmax())
        said: int | str = best if counts[best] >= PURE * counts.sum() else "mixed"
        said = "skip" if not counts.sum() else said
        if rng.random() < WRONG:
            others: list[int | str] = [0, found[0].tag, "mixed"]
            others = [one for one in others if one != said]
            said = others[rng.integers(len(others))]
        meaning = said if isinstance(said, str) else "class" if said else "background"
        note_name(lesson, key, meaning, said if isinstance(said, int) else 0)  # type: ignore[arg-type]
        yield meaning


def _single_images(lesson: Lesson, person: _Person, rng: np.random.Generator) -> Iterator[str]:
    """Yield what kind each answer is; each is a click on the most uncertain place of the most uncertain image."""
    done = dict.fromkeys(person.of, 0)
    clicked: dict[int, list[int]] = {place: [] for place in person.of}
    while True:
        unsure = {place: _uncertainty(lesson.beliefs, place, clicked[place]) for place in done if done[place] < CLICKS}
        place = max(unsure, key=lambda one: float(unsure[one].sum()) / (1 + done[one]))
        h, w = lesson.cells.size(place)
        cell = int(unsure[place].argmax())
        region = grow_region(lesson.cells.fine(place).T.reshape(-1, h, w), (cell % w + 0.5) / w, (cell // w + 0.5) / h)
        said = int(person.of[place][cell])
        if rng.random() < WRONG:
            others = [one for one in (0, *lesson.cells.samples[place].tags) if one != said]
            said = others[rng.integers(len(others))]
        name = lesson.classes[said - 1] if said else ""
        record_answer(lesson.run, click_answer(lesson.cells.samples[place].id, region.tolist(), (h, w), name))
        done[place] += 1
        clicked[place] += region.tolist()
        if sum(done.values()) % BATCH == 0:
            catch_up(lesson)
        yield "class" if said else "background"


def _uncertainty(beliefs: Beliefs, place: int, clicked: list[int]) -> torch.Tensor:
    unsure = 1 - beliefs.shares[place].float().amax(0)
    smooth = F.avg_pool2d(unsure[None, None], 3, 1, 1)[0, 0].flatten()
    smooth[clicked] = 0
    return smooth


def score(lesson: Lesson, scored: list[Sample], truths: dict[str, np.ndarray], crf: bool) -> list[float]:
    """Return the IoU of background and of every class in percent, over all pixels of the scored images."""
    ids = 1 + len(lesson.classes)
    pixels = np.zeros((ids, ids), np.int64)
    chosen = Run(lesson.run.root.parent).settings()
    for sample in scored:
        truth, place = truths[sample.id], lesson.cells.places.get(sample.id)
        if place is None:  # without tags: background everywhere
            pixels += confusion(truth, np.zeros_like(truth), ids)
            continue
        shares = lesson.beliefs.shares[place].float()[1:]
        large = lesson.network.backbone.enlarge(shares[None], truth.shape)[0]
        cells = -(-truth.shape[0] // MAP_STRIDE), -(-truth.shape[1] // MAP_STRIDE)
        maps = quantised_maps(F.adaptive_avg_pool2d(large, cells).numpy())
        image = None
        if crf:
            size = (truth.shape[1], truth.shape[0])
            image = np.asarray(read_image(sample.image).resize(size, Image.Resampling.BILINEAR))
        mask = mask_image(image, maps, sample.tags, truth.shape, chosen.mask_rule(), chosen.crf if crf else None)[0]
        pixels += confusion(truth, mask, ids)
    return [round(100 * (one or 0), 2) for one in iou(pixels).iou]


def summary(found: dict[str, dict[int, Any]], scored: int, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the curves (mean and deviation over seeds) of every arm, gains over no answers, and counts."""
    figures: dict[str, Any] = {"scored": scored, "seeds": {arm: sorted(seeds) for arm, seeds in found.items()}}
    for arm, seeds in found.items():
        for kind in ("maps", "crf"):
            curves = [
                {row["answers"]: float(np.mean(row[kind])) for row in rows if kind in row} for rows in seeds.values()
            ]
            if curves and curves[0].keys() - {0}:
                figures[f"{arm}_{kind}"] = {str(mark): _spread([one[mark] for one in curves]) for mark in curves[0]}
                for mark in (60, 130, 180):
                    if mark not in curves[0]:
                        continue
                    gains = [one[mark] - one[0] for one in curves]
                    figures.setdefault(f"gain_{mark}", {})[f"{arm}_{kind}"] = _spread(gains)
        if seeds:
            kinds = [kind for kind in ("maps", "crf") if all(kind in rows[-1] for rows in seeds.values())]
            last = {kind: [rows[-1][kind] for rows in seeds.values()] for kind in kinds}
            first = {kind: [rows[0][kind] for rows in seeds.values()] for kind in kinds}
            mark = next(iter(seeds.values()))[-1]["answers"]
            for kind in kinds:
                change = (np.array(last[kind]) - np.array(first[kind])).mean(0).round(1).tolist()
                figures[f"{arm}_{kind}_classes_{mark}"] = dict(zip(("background", *classes), change, strict=True))
            figures[f"{arm}_kinds"] = [rows[-1]["kinds"] for rows in seeds.values()]
    return figures


def keep(earlier: dict[str, Any], figures: dict[str, Any], arm: str) -> None:
    """Copy an arm's figures from an earlier result."""
    for key, value in earlier.items():
        if key == "seeds":
            figures["seeds"][arm] = value[arm]
        elif key.startswith("gain_"):
            figures.setdefault(key, {}).update({of: gain for of, gain in value.items() if of.startswith(arm)})
        elif key.startswith(f"{arm}_"):
            figures[key] = value


def _spread(values: list[float]) -> list[float | None]:
    return [
        round(float(np.mean(values)), 1),
        round(float(np.std(values, ddof=1)), 1) if len(values) > 1 else None,
    ]


def table(figures: dict[str, Any]) -> str:
    """Return the curves of a data set as Markdown."""
    names = {
        "clusters_maps": "clusters, without CRF",
        "clusters_crf": "clusters, with CRF",
        "single_images_maps": "single images, without CRF",
        "single_images_crf": "single images, with CRF",
    }
    rows = ["| mIoU, % | " + " | ".join(f"{mark} answers" for mark in MARKS) + " |", "|---|" + "---:|" * len(MARKS)]
    for key, name in names.items():
        if key in figures:
            cells = [_text(figures[key].get(str(mark))) for mark in MARKS]
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
    seeds = ", ".join(f"{arm} {list(map(int, own))}" for arm, own in figures["seeds"].items())
    return "\n".join(rows) + f"\n\nSeeds: {seeds}."


def _text(value: list[float | None] | None) -> str:
    if value is None:
        return ""
    return str(value[0]) if value[1] is None else f"{value[0]} ± {value[1]}"


def recompute_seconds(images: int = 1000, entries: int = 180) -> dict[str, float]:
    """Return the seconds in which one more answer about background reaches the maps of all images, and those in which
    it is taken back; images of 320 x 240 pixels with two of six tags each, features of 384 channels at two scales,
    drawn at random."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((15, 20), (30, 40))
    count = sum(h * w for h, w in shapes)
    rows = F.normalize(torch.randn(count, 384, generator=generator), dim=1).half()
    features = rows.repeat(images, 1)
    samples = tuple(Sample(str(i), Path(), (1 + i % 6, 1 + (i + 1) % 6)) for i in range(images))
    samples = tuple(dataclasses.replace(one, tags=tuple(sorted(one.tags))) for one in samples)
    starts = tuple(count * i for i in range(images + 1))
    cells = Cells(features, samples, (shapes,) * images, starts, 1, Grid())
    network = _Stand(torch.randn(7, 30, 384, generator=generator))
    keys = F.normalize(torch.randn(entries + 1, 384, generator=generator), dim=1)
    labels = torch.cat([torch.zeros(entries // 2), torch.arange(entries - entries // 2) % 7, torch.zeros(1)]).long()
    every = TaughtEntries(keys, labels, tuple(range(entries + 1)))
    before = every.without({entries})
    beliefs = begin_beliefs(network, cells, before)  # type: ignore[arg-type]
    found = {}
    for what, taught in (("", every), ("undo_", before)):
        wall, cpu = time.perf_counter(), time.process_time()
        learn(beliefs, taught, (0,))
        found[f"{what}wall_s"] = round(time.perf_counter() - wall, 2)
        found[f"{what}cpu_s"] = round(time.process_time() - cpu, 2)
    return found


class _Stand:
    """What `begin_beliefs` reads of a network."""

    def __init__(self, prototypes: torch.Tensor) -> None:
        from tagseg.settings.presets import preset

        self.prototypes, self.exists, self.rca = prototypes, torch.ones(prototypes.shape[:2]).bool(), preset("fast").rca


def page_seconds(options: argparse.Namespace) -> float:
    """Return the median of the seconds from an answer's arrival at the server to its reply, on the first set."""
    from tagseg.teaching.server import close_classroom, lesson_state, open_classroom

    run, prepared, cache, _ = domains.features(options, options.sets[0])
    network, _ = load_network(run.root / f"network_{options.seeds[0]}", torch.device("cpu"))
    lesson = _lesson(run, prepared, network, cache, 0, "page")
    learn_noted(lesson)
    room, taken = open_classroom(lesson), []
    for _ in range(10):
        key = next_questions(lesson)[0].key
        started = time.perf_counter()
        note_name(lesson, key, "background")
        room.waiting.set()
        lesson_state(room, 0)
        taken.append(time.perf_counter() - started)
        time.sleep(0.5)
    close_classroom(room)
    return round(float(np.median(taken)), 3)


if __name__ == "__main__":
    main()
