"""How fast the dense CRF is beside pydensecrf, and whether both give the same labels.

    pip install pydensecrf2 && python benchmarks/crf.py --data FOLDER/voc_animals

A photograph enlarged to 500 x 375 (bicubic), as it is and with noise, which fills the lattice with many more vertices;
ten steps, kernels 3 and 80 pixels, 13 grey levels; whole calls from probabilities to labels, with lattices, in turns.
The figures by name are the worse of the two, `_noisy` and `_clean` those of each. Without data a picture is drawn.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from animals import SHARED
from jaxtyping import Float32, UInt8
from PIL import Image
from record import record

from tagseg.crf.dense_crf import dense_crf, dense_crfs
from tagseg.settings.crf import CrfSettings
from tagseg.system.process import cores

SIZE = 500, 375
NOISE = {"photograph": 0.0, "noisy photograph": 60.0}
LABELS = 2, 4, 21
SETTINGS = CrfSettings()
GOALS = {"speedup_2": 2, "speedup_4": 2, "speedup_21": 2, "label_agreement": 99.9, "compile_s": 10}


def photograph(data: Path | None) -> UInt8[np.ndarray, "h w 3"]:
    """Return the hundredth photograph of the data, enlarged, or a drawn picture."""
    if data is None:
        rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
        disc = (rows - 180) ** 2 + (columns - 240) ** 2 < 100**2
        slope = np.stack([columns // 3, rows // 2, 200 - rows // 3], -1)
        return np.where(disc[..., None], [200, 90, 60], slope).astype(np.uint8)
    image = Image.open(sorted((data / "JPEGImages").glob("*.jpg"))[100]).convert("RGB")
    return np.array(image.resize(SIZE, Image.Resampling.BICUBIC))


def probabilities(labels: int) -> Float32[np.ndarray, "l h w"]:
    """Return smooth random probabilities."""
    rough = np.random.default_rng(labels).random((labels, 24, 32), np.float32) ** 3
    large = np.stack([np.asarray(Image.fromarray(map_).resize(SIZE, Image.Resampling.BILINEAR)) for map_ in rough])
    shares: Float32[np.ndarray, "l h w"] = (large + 0.05) / (large + 0.05).sum(0)
    return shares


def by_pydensecrf(start: Float32[np.ndarray, "l h w"], image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """Return pydensecrf's labels."""
    from pydensecrf.densecrf import DenseCRF2D

    crf = DenseCRF2D(image.shape[1], image.shape[0], len(start))
    crf.setUnaryEnergy(np.ascontiguousarray(-np.log(start).reshape(len(start), -1)))
    crf.addPairwiseGaussian(sxy=SETTINGS.gaussian_sxy, compat=SETTINGS.gaussian_compat)
    crf.addPairwiseBilateral(SETTINGS.bilateral_sxy, SETTINGS.bilateral_srgb, image, SETTINGS.bilateral_compat)
    refined = np.array(crf.inference(SETTINGS.steps)).reshape(start.shape)
    return refined.argmax(0).astype(np.uint8)


def by_tagseg(start: Float32[np.ndarray, "l h w"], image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """Return our labels."""
    return dense_crf(start, image, SETTINGS).argmax(0).astype(np.uint8)


def seconds(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compile_seconds() -> float:
    """Return what the first call takes in a fresh process without any machine code on disk, less the second call."""
    program = (
        "import time, numpy as np; from tagseg.crf.dense_crf import dense_crf;"
        "from tagseg.settings.crf import CrfSettings;"
        "call = lambda n: dense_crf(np.ones((n, 50, 60), np.float32), np.zeros((50, 60, 3), np.uint8), CrfSettings());"
        "a = time.perf_counter(); call(2); call(9); b = time.perf_counter(); call(2); call(9);"
        "print(b - a - (time.perf_counter() - b))"
    )
    with tempfile.TemporaryDirectory() as empty:
        environment = os.environ | {"NUMBA_CACHE_DIR": empty}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
    return float(done.stdout)


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data/voc_animals", help="for a real photograph")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError:
        sys.exit("pydensecrf2 is not installed: pip install pydensecrf2 (it compiles for some minutes)")
    real = (options.data / "JPEGImages").is_dir()
    clean, figures, lines = photograph(options.data if real else None), {}, []
    lines.append("| picture | labels | tagseg, s | pydensecrf, s | ratio (median of turns) | same label, % |")
    lines.append("|---|---:|---:|---:|---:|---:|")
    agreements = []
    for name, noise in NOISE.items():
        noisy = clean + np.random.default_rng(0).normal(0, noise or 1e-9, clean.shape)
        image = np.clip(noisy, 0, 255).round().astype(np.uint8)
        for labels in LABELS:
            start = probabilities(labels)
            same = 100 * float((by_tagseg(start, image) == by_pydensecrf(start, image)).mean())
            pairs = [
                (seconds(lambda: by_tagseg(start, image)), seconds(lambda: by_pydensecrf(start, image)))  # noqa: B023
                for _ in range(options.turns)
            ]
            ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(b / a for a, b in pairs)
            agreements.append(same)
            lines.append(f"| {name} | {labels} | {ours:.3f} | {theirs:.3f} | {ratio:.2f} | {same:.3f} |")
            figures[f"speedup_{labels}_{'noisy' if noise else 'clean'}"] = round(ratio, 2)
    for labels in LABELS:
        figures[f"speedup_{labels}"] = min(figures[f"speedup_{labels}_{kind}"] for kind in ("noisy", "clean"))
    figures["label_agreement"] = round(min(agreements), 3)
    figures["compile_s"] = round(compile_seconds(), 1)
    batch = [(probabilities(3), clean)] * (6 * cores())
    alone = len(batch) / seconds(lambda: [dense_crf(*pair, SETTINGS, 1) for pair in batch])
    together = len(batch) / seconds(lambda: list(dense_crfs(batch, SETTINGS)))
    figures |= {"images_per_s_one_thread": round(alone, 2), "images_per_s_all_cores": round(together, 2)}
    lines += ["", f"{cores()} cores. Goals: " + ", ".join(f"{name} {goal}" for name, goal in GOALS.items())]
    picture = "A photograph of voc_animals" if real else "A drawn picture"
    print(record("crf", [0], figures, f"{picture}, {SIZE[0]} x {SIZE[1]}.\n\n" + "\n".join(lines)))


if __name__ == "__main__":
    main()
