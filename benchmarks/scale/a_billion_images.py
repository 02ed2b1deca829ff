"""Write docs/a_billion_images.md: a plan computed from the measurements of benchmarks.scale.mass_labelling.

    python -m benchmarks.scale.a_billion_images

The page separates measurements from assumptions and computes every other number from the two; flags change the
assumptions, for other hardware or prices.
"""

import argparse
import json
import math
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import RESULTS, ROOT

from tagseg.prediction.chunks import BATCHES_PER_CHUNK
from tagseg.prediction.parquet import ROWS_PER_GROUP
from tagseg.prediction.ray_engine import CHUNKS_PER_ACTOR
from tagseg.segment.predictor import DEFAULT_GPU_BATCH

TARGET = ROOT / "docs/a_billion_images.md"


@dataclass(frozen=True)
class Assumed:
    """The assumptions, which were not measured."""

    images: float
    gpu_pace: float
    gpus: float
    gpu_price: float
    core_price: float
    storage_price: float
    get_price: float
    egress_price: float
    images_per_prefix: float
    rows: float
    prefix_reads: float
    gpu_mtbf_h: float
    unreadable: float


ASSUMED: dict[str, tuple[float, str]] = {
    "images": (1e9, "images"),
    "gpu_pace": (300, "images a second that one data-centre GPU takes through the network, all scales and mirrored"),
    "gpus": (64, "GPUs at work at a time"),
    "gpu_price": (2.5, "dollars a GPU hour, its cores included"),
    "core_price": (0.04, "dollars a core hour, where cores are rented by themselves"),
    "storage_price": (0.023, "dollars a GB and month of object storage"),
    "get_price": (0.0004, "dollars per 1,000 reads of objects"),
    "egress_price": (0.09, "dollars a GB that leaves the region of the storage"),
    "images_per_prefix": (1e6, "images that one call of tagseg predict is given"),
    "rows": (10_000, "rows of a Parquet file"),
    "prefix_reads": (5_500, "reads a second that object storage grants a prefix (S3's own figure)"),
    "gpu_mtbf_h": (2_000, "hours after which a GPU machine fails or is taken back, on average"),
    "unreadable": (0.001, "share of images that cannot be read"),
}


def main() -> None:
    """Write the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (value, meaning) in ASSUMED.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value, help=meaning)
    assumed = Assumed(**vars(parser.parse_args()))
    measured = json.loads((RESULTS / "mass_labelling.json").read_text(encoding="utf-8"))
    TARGET.write_text(as_markdown(measured, assumed), encoding="utf-8")
    print(TARGET.read_text(encoding="utf-8"))


def plan(measured: dict[str, Any], assumed: Assumed) -> dict[str, float]:
    """Return what labelling that many images takes."""
    figures, images = measured["figures"], assumed.images
    core_s = figures["threads"] / figures["images_per_s_local"]
    gpu_hours = images / assumed.gpu_pace / 3600
    hours = gpu_hours / assumed.gpus
    cpu_hours = images * core_s / 3600
    calls = math.ceil(images / assumed.images_per_prefix)
    failures = gpu_hours / assumed.gpu_mtbf_h
    bytes_in, bytes_out = images * figures["bytes_in_per_image"], images * figures["bytes_out_per_image"]
    # The one process of a call that writes must keep up with its GPUs.
    together = max(figures["written_per_s_parquet"] // assumed.gpu_pace, 1.0)
    requests, at_a_time = images / (hours * 3600), max(assumed.gpus / together, 1)
    return {
        "bytes_in_tb": bytes_in / 1e12,
        "bytes_out_tb": bytes_out / 1e12,
        "gpu_hours": gpu_hours,
        "days": hours / 24,
        "read_gbit_s": bytes_in * 8 / 1e9 / (hours * 3600),
        "requests_s": requests,
        "cores_per_gpu": assumed.gpu_pace / figures["read_per_s_core"],
        "requests_s_prefix": requests / at_a_time,
        "gpus_a_prefix": assumed.prefix_reads / assumed.gpu_pace,
        "call_mb": assumed.images_per_prefix * figures["bytes_per_listed_image"] / 1e6,
        "one_call_gb": images * figures["bytes_per_listed_image"] / 1e9,
        "write_png": figures["written_per_s_png"],
        "write_parquet": figures["written_per_s_parquet"],
        "cpu_hours_without_gpu": cpu_hours,
        "gpu_cost": gpu_hours * assumed.gpu_price,
        "cpu_cost_without_gpu": cpu_hours * assumed.core_price,
        "get_cost": images / 1000 * assumed.get_price,
        "month_cost": (bytes_in + bytes_out) / 1e9 * assumed.storage_price,
        "egress_cost": bytes_in / 1e9 * assumed.egress_price,
        "calls": calls,
        "calls_at_a_time": at_a_time,
        "gpus_a_call": together,
        "list_requests": images / 1000,
        "png_files": images,
        "parquet_files": math.ceil(images / assumed.rows),
        "parquet_file_mb": assumed.rows * figures["bytes_out_per_image"] / 1e6,
        "row_groups": math.ceil(images / ROWS_PER_GROUP),
        "shares": math.ceil(images / (BATCHES_PER_CHUNK * DEFAULT_GPU_BATCH)),
        "failures": failures,
        "lost_by_worker": failures * BATCHES_PER_CHUNK * DEFAULT_GPU_BATCH * CHUNKS_PER_ACTOR,
        "lost_by_call": assumed.rows,
        "unreadable": images * assumed.unreadable,
    }


def as_markdown(measured: dict[str, Any], assumed: Assumed) -> str:
    """Return the plan as Markdown."""
    found, figures = plan(measured, assumed), measured["figures"]
    wanted = ["images_per_s_local", "images_per_s_ray", "ray_over_local", "peak_mb", "peak_mb_local"]
    wanted += ["bytes_in_per_image", "bytes_out_per_image", "start_s_ray", "read_per_s_core"]
    wanted += ["written_per_s_png", "written_per_s_parquet", "bytes_per_listed_image"]
    rows = ["| measured | |", "|---|---:|", *(f"| {name} | {figures[name]:,} |" for name in wanted)]
    rows += ["", "| assumed | | flag of the script |", "|---|---:|---|"]
    rows += [
        f"| {meaning} | {getattr(assumed, name):,g} | --{name.replace('_', '-')} |"
        for name, (_, meaning) in ASSUMED.items()
    ]
    n = {name: f"{value:,.0f}" if value >= 10 else f"{value:,.2g}" for name, value in found.items()}
    return TEMPLATE.format(
        **n,
        images=f"{assumed.images:,.0f}",
        table="\n".join(rows),
        command=measured["command"],
        machine=measured["machine"],
        gpus=f"{assumed.gpus:g}",
        prefix=f"{assumed.images_per_prefix:,.0f}",
        rows=f"{assumed.rows:.0f}",
        group=ROWS_PER_GROUP,
        pace=f"{assumed.gpu_pace:g}",
        together=f"{found['gpus_a_call']:.0f}",
        batches=BATCHES_PER_CHUNK,
        batch=DEFAULT_GPU_BATCH,
        reads=f"{assumed.prefix_reads:,g}",
    )


TEMPLATE = """# A plan for {images} images

Written by `python -m benchmarks.scale.a_billion_images` from benchmarks/results/mass_labelling.json (`{command}` on
{machine}). Nobody has labelled {images} images with tagseg: this is arithmetic. **The pace of a GPU is an
assumption**, and hours and dollars are in proportion to it; measure it first, with the network and the scales that
will be used, on 10,000 images.

{table}

## What it takes

| | |
|---|---:|
| read | {bytes_in_tb} TB |
| written (masks and lines) | {bytes_out_tb} TB |
| GPU hours | {gpu_hours} |
| days with {gpus} GPUs | {days} |
| read meanwhile | {read_gbit_s} Gbit/s, {requests_s} objects/s |
| core hours where there is no GPU (measured pace) | {cpu_hours_without_gpu} |

## What it costs

| | dollars |
|---|---:|
| GPUs | {gpu_cost} |
| the same by CPU cores | {cpu_cost_without_gpu} |
| reading the objects once | {get_cost} |
| their traffic, where the work is done in another region | {egress_cost} |
| a month of storage for images and masks | {month_cost} |

The network drives the cost, so what lowers it is, in this order: `--scales 1 --no-flip` (three scales and the
mirrored image are 6.25 times the pixels of one look), `--precision bf16` and a `--batch` that fills the GPU, a
smaller network. Work where the images lie.

## How

- **{calls} calls of {prefix} images**, one a prefix of the storage, {calls_at_a_time} at a time with {together} GPUs
  each: `tagseg predict RUN s3://bucket/PREFIX/ --out OUT/PREFIX --on ray --format parquet --rows {rows}
  --resume`. A queue hands out the prefixes; whoever finds a call dead starts it again with the same words.
- **Parquet, not PNG**: {parquet_files} files of {parquet_file_mb} MB instead of {png_files}. A file has row groups of
  {group} rows ({row_groups} in all), so that a reader takes few masks into memory. A call's files are copied to the
  storage when it ends.
- **Shares**: {batches} batches of {batch} images go to an actor at a time, {shares} shares in all; a call holds the
  list of its own images alone, {call_mb} MB.
- **Cores**: {cores_per_gpu} a GPU to decode what it takes ({pace} images a second), by what a core was measured to do
  with these images; larger ones take as much longer as they have more pixels.

## What breaks first

1. **Listing.** {list_requests} requests of 1,000 keys; in one call the list of {images} images would take
   {one_call_gb} GB of the process that was called. Hence the prefixes; a storage with all images in one prefix needs
   an inventory, not a listing.
2. **Decoding.** Machines with many GPUs and fewer than {cores_per_gpu} cores for each starve them; the reading tasks
   may run on machines of the cluster that have no GPU.
3. **Requests.** {requests_s} objects a second in all, {requests_s_prefix} of each prefix at work: object storage
   grants {reads}, which {gpus_a_prefix} GPUs on one prefix reach.
4. **The process that writes.** A call's is one, and has {requests_s_prefix} images a second to write; it was measured
   to write {write_parquet} as Parquet and {write_png} as PNG files, each of which is synced. Hence no more than
   {together} GPUs a call.
5. **Machines.** {failures} failures are to be expected. A worker's costs the shares it was at ({lost_by_worker}
   images done again in all); the calling process's costs the Parquet file it was at (up to {lost_by_call} images),
   and the start of the cluster. Neither costs an image, nor writes one twice.
6. **Images that cannot be read**: some {unreadable}. They are lines with an `error` in predictions.jsonl, and no
   rows.
"""


if __name__ == "__main__":
    main()
