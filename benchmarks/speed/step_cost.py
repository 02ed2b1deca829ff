"""Measure the cost of contrast and aggregation: a step against plain CAM's, 1,000 classes against 20, and k-means.

    python -m benchmarks.speed.step_cost                                     on two threads of the CPU, some minutes
    python -m benchmarks.speed.step_cost --device cuda --precision bf16

Default settings, random weights, random images, a full bank. Ratios are medians over repetitions in which the variants
take turns, so that other work on the machine affects all of them alike.
"""

import argparse
import dataclasses
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from benchmarks.harness import record
from torch.profiler import ProfilerActivity, profile

from tagseg.rca.bank import Bank
from tagseg.rca.kmeans import kmeans
from tagseg.rca.network import Maps, build_network
from tagseg.rca.regions import Gate, mine_regions
from tagseg.rca.step import contrast_loss, training_step
from tagseg.settings.rca import RcaSettings
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings
from tagseg.system.process import peak_memory_mb
from tagseg.training.device import choose_device
from tagseg.training.loading import Crop
from tagseg.training.optimizer import build_optimizer

TARGETS = {
    "rca_over_cam": 1.15,
    "classes_1000_over_20": 1.3,
    "classes_1000_over_20_d512": 1.3,
    "kmeans_80_classes_s": 1.0,
    "kmeans_1000_classes_s": 10.0,
}
VARIANTS = {
    "plain CAM, 20 classes": (20, None, False, False),
    "+ contrast": (20, None, True, False),
    "+ aggregation": (20, None, False, True),
    "both, 20 classes": (20, None, True, True),
    "both, 20 classes, d = 256": (20, 256, True, True),
    "both, 1,000 classes, d = 256": (1000, 256, True, True),
    "both, 20 classes, d = 512": (20, 512, True, True),
    "both, 1,000 classes, d = 512": (1000, 512, True, True),
}
"""Classes, channels of the bank (None: the default, 160 of an earlier layer and 256 of the neck; a number: those of the
neck alone), contrast, aggregation."""


def full_bank(classes: int, slots: int, channels: int, device: torch.device) -> Bank:
    """Return a bank whose entries are full of random directions."""
    bank = Bank(classes + 1, slots, channels).to(device)
    bank.slots.normal_().relu_()
    bank.slots.div_(bank.slots.norm(dim=2, keepdim=True))
    bank.filled.fill_(slots)
    return bank


def random_tags(images: int, classes: int) -> torch.Tensor:
    """Return one or two tags per image."""
    tags = torch.zeros(images, classes)
    for i, row in enumerate(tags):
        row[torch.randperm(classes)[: 1 + i % 2]] = 1
    return tags


def build_step(settings: Settings, classes: int, device: torch.device) -> Callable[[], object]:
    """Return a function that takes one real training step: forward, losses, bank, backward, optimiser."""
    torch.manual_seed(0)
    options, rca = settings.train, settings.rca
    network = build_network(classes, options, rca).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    used = rca.contrast or rca.aggregation
    bank = full_bank(classes, rca.slots if used else 1, network.channels, device)
    if used:
        network.prototypes.copy_(bank.slots[:, : rca.prototypes])
        network.exists.fill_(True)
    new = [parameter for layer in network.new_layers() for parameter in layer.parameters()]
    rates = (options.lr, options.head_lr, options.weight_decay, options.optimiser)
    optimizer = build_optimizer(network.backbone.parameters(), new, *rates)
    b = options.batch
    pictures = torch.rand(b, 3, options.crop, options.crop).to(device, memory_format=torch.channels_last)
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(b, 4)
    unmirrored = torch.zeros(b, dtype=torch.bool)
    crop = Crop(pictures, random_tags(b, classes).to(device), torch.arange(b), whole, unmirrored, torch.zeros(0))
    gate, generator = Gate(classes, rca.confidence, relative=True).to(device), torch.Generator().manual_seed(0)
    return lambda: training_step(network, bank, gate, optimizer, crop, settings, True, generator)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that `work` takes."""
    _finish(device)
    started = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - started


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_steps(steps: dict[str, Callable[[], object]], repetitions: int, device: torch.device) -> dict[str, Any]:
    """Return the seconds of each variant, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(-2, repetitions):
        for name, step in steps.items():
            taken = seconds(step, device)
            if repetition >= 0:  # the first two only warm up
                times[name].append(taken)
    return times


def ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    """Return the median ratio of the seconds of `one` to those of `other`."""
    pairs = zip(times[one], times[other], strict=True)
    return round(statistics.median(long / short for long, short in pairs), 3)


def kmeans_seconds(classes: int, device: torch.device) -> float:
    """Return the seconds that the prototypes of full banks take: classes x 500 slots x 512 to 10 centres."""
    bank = full_bank(classes - 1, 500, 512, device)
    generator = torch.Generator(device).manual_seed(0)
    tries = [seconds(lambda: kmeans(bank.slots, bank.written, 10, generator), device) for _ in range(3)]
    return round(statistics.median(tries), 3)


def contrast_peak_mb(classes: int, device: torch.device) -> float:
    """Return the memory that the contrast of a batch needs on top of the bank and the maps, forward and backward."""
    # A process of its own: the peak of another one would be that of whatever it did before.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_contrast_peak_mb, (classes, device))


def _contrast_peak_mb(classes: int, device: torch.device) -> float:
    settings = Settings()
    # The first time loads what torch loads when it is first used.
    for bank in (full_bank(20, 1, settings.train.neck, device), full_bank(classes, 500, settings.train.neck, device)):
        maps, tags = random_maps(len(bank.slots) - 1, settings, device)
        before = _peak_mb(device, reset=True)
        regions = mine_regions(maps.coarse, tags.bool())
        contrast_loss(regions, maps.features, bank, settings.rca, True, torch.Generator()).backward()
    return round(_peak_mb(device) - before, 1)


def random_maps(classes: int, settings: Settings, device: torch.device) -> tuple[Maps, torch.Tensor]:
    """Return maps and tags of a batch, as a backbone of stride 16 gives them."""
    b, side = settings.train.batch, settings.train.crop // 16 + 1
    coarse = torch.randn(b, classes, side, side, device=device)
    features = torch.rand(b, settings.train.neck, side, side, device=device, requires_grad=True)
    scores = coarse.mean((2, 3))
    return Maps(features, coarse, scores, scores, lambda: (coarse, None)), random_tags(b, classes).to(device)


def _peak_mb(device: torch.device, reset: bool = False) -> float:
    if device.type != "cuda":
        return peak_memory_mb()
    if reset:
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.max_memory_allocated(device) / 2**20


def profile_table(step: Callable[[], object], device: torch.device, rows: int = 15) -> list[str]:
    """Return the operators in which a step spends most of its time, as a Markdown table."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as profiled:
        step()
        _finish(device)
    kind = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(profiled.key_averages(), key=lambda event: -getattr(event, kind))
    total = sum(getattr(event, kind) for event in events)
    lines = ["| operator | calls | ms | share |", "|---|---:|---:|---:|"]
    for event in events[:rows]:
        own = getattr(event, kind)
        lines.append(f"| `{event.key[:60]}` | {event.count} | {own / 1000:.1f} | {100 * own / total:.1f} % |")
    return lines


def main() -> None:
    """Measure and write step_cost.json and step_cost.md (step_cost_cuda.* for a GPU)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, precision = choose_device(options.device), options.precision
    steps = {
        name: build_step(variant_settings(channels, contrast, aggregation, precision), classes, device)
        for name, (classes, channels, contrast, aggregation) in VARIANTS.items()
    }
    times = measure_steps(steps, options.repetitions, device)
    profiles = {
        name: profile_table(steps[name], device) for name in ("both, 20 classes", "both, 1,000 classes, d = 256")
    }
    steps.clear()
    figures = {
        "rca_over_cam": ratio(times, "both, 20 classes", "plain CAM, 20 classes"),
        "contrast_over_cam": ratio(times, "+ contrast", "plain CAM, 20 classes"),
        "aggregation_over_cam": ratio(times, "+ aggregation", "plain CAM, 20 classes"),
        "classes_1000_over_20": ratio(times, "both, 1,000 classes, d = 256", "both, 20 classes, d = 256"),
        "classes_1000_over_20_d512": ratio(times, "both, 1,000 classes, d = 512", "both, 20 classes, d = 512"),
        "kmeans_80_classes_s": kmeans_seconds(80, device),
        "kmeans_1000_classes_s": kmeans_seconds(1000, device),
        "bank_mb": {str(classes): round((classes + 1) * 500 * 256 * 4 / 2**20, 1) for classes in (20, 1000)},
        "contrast_peak_mb": {str(classes): contrast_peak_mb(classes, device) for classes in (20, 1000)},
        "step_s": {name: round(statistics.median(taken), 4) for name, taken in times.items()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{options.threads} CPU threads",
        "precision": precision,
    }
    name = "step_cost" if device.type == "cpu" else f"step_cost_{device.type}"
    print(record(name, [0], figures, markdown(figures, profiles)).read_text())


def variant_settings(
    channels: int | None, contrast: bool, aggregation: bool, precision: Literal["fp32", "bf16"]
) -> Settings:
    """Return the default settings with the changes of a variant."""
    train, rca = TrainSettings(weights="random"), RcaSettings(contrast=contrast, aggregation=aggregation)
    if channels is not None:
        train, rca = dataclasses.replace(train, neck=channels), dataclasses.replace(rca, layer="last")
    return dataclasses.replace(Settings(), train=train, rca=rca, precision=precision)


def markdown(figures: dict[str, Any], profiles: dict[str, list[str]]) -> str:
    """Return the tables."""
    settings = Settings()
    lines = [
        f"A training step of {settings.train.backbone}, {settings.train.batch} images of {settings.train.crop} pixels, "
        f"{settings.rca.slots} slots a class, bank full, {figures['precision']}, {figures['device']}.",
        "",
        "| step | seconds (median) |",
        "|---|---:|",
        *(f"| {name} | {taken:.3f} |" for name, taken in figures["step_s"].items()),
        "",
        "| figure | measured | target |",
        "|---|---:|---:|",
        *(f"| {name} | {figures[name]} | {target} |" for name, target in TARGETS.items()),
        "",
        "| classes | bank, MB | contrast on top, MB |",
        "|---|---:|---:|",
        *(f"| {c} | {mb} | {figures['contrast_peak_mb'][c]} |" for c, mb in figures["bank_mb"].items()),
    ]
    for name, table in profiles.items():
        lines += ["", f"Operators of the step ({name}):", "", *table]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
