"""Compare images per second of `tagseg predict` with the bare network's, and measure its peak memory at 16 megapixels.

    python -m benchmarks.speed.predict

Uses the segmenter of a run of voc_animals.py (--run names another) and the validation images of its data. The bare
network means only the forward passes that predict makes for the same images, in the same calls, and decoding the JPEG
files one after the other: no resizing, softmax, averaging or writing. Both take turns; the ratio is the median over the
rounds. Memory is that of a separate process that predicts one image, with everything that it imports; the memory before
it predicts is given too. The run folder is not changed.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from benchmarks import harness
from benchmarks.harness import record
from PIL import Image
from torch import Tensor

from tagseg.data.images import read_image
from tagseg.data.prepare import prepare
from tagseg.evaluate.evaluate import evenly_spaced
from tagseg.prediction.predict import predict
from tagseg.run.folder import Run
from tagseg.segment.load import load
from tagseg.segment.predictor import Predictor, configure
from tagseg.settings.predict import PredictOptions

PIXELS = 16_000_000

ONE = """
import sys
from tagseg.system.process import peak_memory_mb
from tagseg.settings.predict import PredictOptions
from tagseg.prediction.predict import load, predict
run, image, out, side, device = sys.argv[1:]
load(run, device)
idle = peak_memory_mb()
predict(run, image, out, PredictOptions(device=device, max_side=int(side) if side else None))
print(idle, peak_memory_mb())
"""
"""Code of the process whose memory is measured."""


def main() -> None:
    """Measure throughput and memory, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="run folder with a segmenter; by default the full method's")
    parser.add_argument("--images", type=int, default=199, help="number of validation images")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each")
    parser.add_argument("--batch", type=int, default=0, help="as in tagseg predict")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="as in tagseg predict")
    parser.add_argument("--full-size", action="store_true", help="also the memory of --max-side 0, which takes minutes")
    parser.add_argument("--device", default="auto", help="as in tagseg predict")
    options = harness.parse(parser, "voc_animals_fit")
    run = Run(options.run or options.out / "both_0")
    asked = PredictOptions(batch=options.batch, precision=options.precision, device=options.device, force=True)
    predictor = configure(load(run.root, options.device), asked)
    samples = evenly_spaced(list(prepare(run).dataset.split("val")), options.images)
    files = [sample.image for sample in samples]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        bare, whole = [], []
        inputs: dict[torch.Size, list[Tensor]] = {}
        for turn in range(options.rounds + 1):
            bare.append(bare_seconds(predictor, files, inputs))
            started = time.perf_counter()
            predict(run.root, list(files), out / "masks", asked)
            whole.append(time.perf_counter() - started)
            print(
                f"round {turn}: bare {len(files) / bare[-1]:.2f}/s, predict {len(files) / whole[-1]:.2f}/s", flush=True
            )
        # The first round warms up.
        bare, whole = bare[1:] or bare, whole[1:] or whole
        large = enlarged(files[0], out / "large.jpg")
        figures = {
            "images_per_s": round(len(files) / statistics.median(whole), 2),
            "bare_network_images_per_s": round(len(files) / statistics.median(bare), 2),
            "ratio": round(statistics.median(b / w for b, w in zip(bare, whole, strict=True)), 3),
        }
        idle, peak = peak_mb(run, large, out / "one", options.device)
        figures |= {"peak_mb_16_megapixel": round(peak), "idle_mb": round(idle)}
        if options.full_size:
            figures["peak_mb_16_megapixel_full_size"] = round(peak_mb(run, large, out / "full", options.device, "0")[1])
    rows = ["| figure | |", "|---|---:|", *(f"| {name} | {value:g} |" for name, value in figures.items())]
    scales = f"scales {', '.join(map(str, predictor.scales))}{' and flip' if predictor.flip else ''}"
    about = f"{len(files)} images, {scales}, {options.precision}, batch {predictor.batch}, "
    about += f"{torch.get_num_threads()} threads, {len(whole)} rounds. ratio: predict against the bare network; idle: "
    about += "the process before it predicts; full size: in windows (--max-side 0)."
    rows += ["", about]
    settings = {"images": len(files), "rounds": len(whole), "batch": predictor.batch, "precision": options.precision}
    print(record("predict", [run.settings().seed], figures | settings, "\n".join(rows)).read_text())


@torch.inference_mode()
def bare_seconds(predictor: Predictor, files: list[Path], inputs: dict[torch.Size, list[Tensor]]) -> float:
    """Return the seconds for decoding the images and for the network's forward passes.

    The calls are those that `tagseg predict` makes, batches and mirrored images together where it puts them together:
    else it would be held against a network that is slower than need be. They are kept in `inputs` by size of picture.
    """
    seconds = 0.0
    for file in files:
        started = time.perf_counter()
        image = read_image(file)
        seconds += time.perf_counter() - started
        picture = predictor.picture(image)
        if picture.shape not in inputs:
            inputs[picture.shape] = network_inputs(predictor, [picture] * predictor.batch)
        seconds += sum(forward_seconds(predictor, look) for look in inputs[picture.shape]) / predictor.batch
    return seconds


def network_inputs(predictor: Predictor, pictures: list[Tensor]) -> list[Tensor]:
    """Return the inputs of the network's calls for a batch of images."""
    given: list[Tensor] = []
    handle = predictor.network.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    predictor.look(pictures)
    handle.remove()
    return given


def forward_seconds(predictor: Predictor, look: Tensor) -> float:
    """Return the seconds of one forward pass."""
    if look.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    with torch.autocast(look.device.type, torch.bfloat16, enabled=predictor.precision == "bf16"):
        predictor.network(look)
    if look.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_mb(run: Run, image: Path, out: Path, device: str, side: str = "") -> tuple[float, float]:
    """Return the peak memory of a process before and after it has predicted one image."""
    command = [sys.executable, "-c", ONE, *map(str, (run.root, image, out, side, device))]
    idle, peak = map(float, subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split())
    return idle, peak


def enlarged(file: Path, target: Path) -> Path:
    """Write an image at 16 megapixels as a JPEG file."""
    image = read_image(file)
    factor = (PIXELS / (image.width * image.height)) ** 0.5
    size = round(image.width * factor), round(image.height * factor)
    image.resize(size, Image.Resampling.BICUBIC).save(target, quality=90)
    return target


if __name__ == "__main__":
    main()
