"""Images a second and peak memory of the stages localise and masks together, for small images and 16-megapixel ones.

    python benchmarks/masks_throughput.py --images 200 --large 20

Takes a trained network of voc_animals.py (another with --run) and images of its data, brought to 320 pixels on the long
side and enlarged to 16 megapixels, as JPEG files. The run folder itself stays as it is.
"""

import argparse
import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any

import animals
from PIL import Image
from record import record

from tagseg.data.images import read_image
from tagseg.data.prepare import Prepared, prepare
from tagseg.evaluate.evaluate import evenly_spaced
from tagseg.pipeline import localise_and_mask
from tagseg.run.folder import Run
from tagseg.run.open import open_run
from tagseg.settings.settings import Settings
from tagseg.system.progress import bars

SIDE = 320
PIXELS = 16_000_000


def main() -> None:
    """Measure both sizes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="run folder with a trained network; by default the full method's")
    parser.add_argument("--images", type=int, default=200, help="how many small images")
    parser.add_argument("--large", type=int, default=20, help="how many of 16 megapixels")
    parser.add_argument("--workers", type=int, default=Settings().workers, help="processes that make masks")
    options = animals.parse(parser, "voc_animals_fit")
    run = Run(options.run or options.out / "both_0")
    settings = dataclasses.replace(run.settings(), workers=options.workers)
    found = {
        f"{SIDE}px": measure(run, settings, options.images, large=False),
        "16mp": measure(run, settings, options.large, large=True),
    }
    rows = [
        "| images | number | images/s | localise, images/s | masks, images/s | peak MB | peak MB of a worker |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in found.items():
        rows.append(f"| {name} | " + " | ".join(f"{value:g}" for value in one.values()) + " |")
    rows += ["", f"{options.workers} worker processes, each with one thread, beside the network's."]
    figures = {f"{figure}_{name}": value for name, one in found.items() for figure, value in one.items()}
    print(
        record("masks_throughput", [settings.seed], figures | {"workers": options.workers}, "\n".join(rows)).read_text()
    )


def measure(source: Run, settings: Settings, number: int, large: bool) -> dict[str, Any]:
    """Return the figures of `number` images that a copy of the run makes maps and masks of."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        prepared = resized(prepare(source), number, data, large)
        run = open_run(Path(folder) / "run", data, settings)
        shutil.copytree(source.network, run.network)
        localise_and_mask(prepared, run, bars)
        stages = run.manifest().stages
    maps, masks = stages["localise"], stages["masks"]
    return {
        "images": number,
        # From the first second to the last: loading the network and starting the workers included.
        "images_per_s": round(number / max(maps.seconds + masks.seconds, 0.1), 2),
        "localise_per_s": maps.images_per_s,
        "masks_per_s": masks.images_per_s,
        "peak_mb": max(maps.peak_mb, masks.peak_mb),
        "worker_peak_mb": masks.worker_peak_mb,
    }


def resized(prepared: Prepared, number: int, folder: Path, large: bool) -> Prepared:
    """Return evenly spaced training images, written into a folder at the size that is measured."""
    samples, sizes = [], {}
    for sample in evenly_spaced(list(prepared.dataset.split("train")), number):
        image = read_image(sample.image)
        factor = (PIXELS / (image.width * image.height)) ** 0.5 if large else SIDE / max(image.size)
        image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
        path = folder / f"{sample.image.stem}.jpg"
        image.save(path, quality=90)
        samples.append(dataclasses.replace(sample, image=path))
        sizes[sample.id] = image.height, image.width
    return Prepared(dataclasses.replace(prepared.dataset, root=folder, samples=tuple(samples)), sizes)


if __name__ == "__main__":
    main()
