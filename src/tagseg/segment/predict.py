"""Masks for images without tags, from a trained segmentation network."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

from tagseg.checkpoint import load_tensors, restore
from tagseg.data.images import as_rgb
from tagseg.data.records import DataError
from tagseg.files import remove_temporary
from tagseg.masks.write import write_classes
from tagseg.memory import ran_out
from tagseg.optimise import choose_device
from tagseg.progress import Track, ahead, silent
from tagseg.run import Run, RunError
from tagseg.segment.about import check_about, check_twin
from tagseg.segment.batches import Seen
from tagseg.segment.decide import Decided, candidates, decide, refine
from tagseg.segment.finish import write_files
from tagseg.segment.infer import as_tensor, in_windows, probabilities
from tagseg.segment.inputs import Location, find_images
from tagseg.segment.local import THREADS, local_outcomes
from tagseg.segment.mass import ray_outcomes
from tagseg.segment.networks import Segmenter, empty_segmenter
from tagseg.segment.options import Precision, PredictOptions
from tagseg.segment.outputs import LINES, Line, append_line, begin, read_lines, write_lines
from tagseg.segment.parquet import begin_parts, write_parts
from tagseg.segment.pictures import Resolution, picture
from tagseg.settings_stages import CrfSettings

log = logging.getLogger(__name__)

GPU_BATCH = 8
"""Images that go through the network together on a GPU where nothing else is asked for."""


@dataclass(frozen=True)
class Predictor:
    """A trained segmentation network ready to use; class id i is `classes[i]`.

    scales, flip: what is averaged. max_side: larger images are reduced to this long side (0: never). window: what still
    exceeds this is predicted in windows of this side. batch: how many of these go through the network together.
    precision: of the network's forward pass. crf: the dense CRF that refines masks, if any.
    """

    network: Segmenter
    classes: tuple[str, ...]
    scales: tuple[float, ...]
    flip: bool
    max_side: int
    window: int = 512
    batch: int = 1
    precision: Precision = "fp32"
    crf: CrfSettings | None = None

    def __call__(self, image: Image.Image) -> UInt8[np.ndarray, "h w"]:
        """Return the mask of an image at its own size."""
        image = as_rgb(image)
        return self.decided(self.probabilities(image), (image.height, image.width), image).mask

    def probabilities(self, image: Image.Image) -> Seen:
        """Return the probabilities of an image's classes (ids y x) at the resolution of the prediction, or, where it is
        predicted in windows, at a quarter of it."""
        return self.look([self.picture(as_rgb(image))])[0]

    @property
    def resolution(self) -> Resolution:
        """At which resolution images are predicted."""
        return Resolution(self.max_side, self.window)

    def picture(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """Return an RGB image at the resolution of the prediction."""
        return as_tensor(picture(image, self.resolution))

    def look(self, pictures: Sequence[UInt8[Tensor, "3 h w"]]) -> list[Seen]:
        """Return the probabilities of the classes (ids y x) in pictures of one size (see `picture`)."""
        if self._windowed(*pictures[0].shape[1:]):
            return [in_windows(self._see, picture, self.window, self.batch).numpy() for picture in pictures]
        return list(self._see(torch.stack(list(pictures))).cpu().numpy())

    def decided(self, seen: Seen, size: tuple[int, int], image: Image.Image | None = None) -> Decided:
        """Return the mask of an image of (height, width) `size` from its probabilities; the dense CRF needs the RGB
        image."""
        if self.crf is None:
            return decide(candidates(seen), size, len(self.classes))
        assert image is not None, "the dense CRF needs the image"
        return decide(refine(seen, image, size, self.crf), size, len(self.classes))

    def _windowed(self, height: int, width: int) -> bool:
        return max(height, width) > self.window

    def _see(self, pictures: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, "b ids h w"]:
        # As bytes they are a quarter of what goes to the device.
        pixels = pictures.to(next(self.network.parameters()).device).float().div_(255)
        return probabilities(self.network, pixels, self.scales, self.flip, self.precision)


@dataclass(frozen=True)
class Predictions:
    """What `predict` wrote: the folder, the ids of the images in it, the unreadable images with their reasons, and how
    many of the ids were there before (resume)."""

    folder: Path
    ids: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    kept: int = 0


def load(path: str | Path, device: str = "auto") -> Predictor:
    """Restore a segmentation network, ready to predict: the same output in every process of one machine.

    Args:
        path: a run folder, its segmenter folder, or a folder made by `tagseg export-model`.
        device: as `--device`.

    Raises:
        RunError: when no trained segmenter is there, or its files are damaged or describe something else.
        ValueError: when the device cannot be had.
    """
    folder, run = Path(path), Run(Path(path))
    if run.manifest_file.exists():
        run.require("segment")
        folder = run.segmenter
        run.require_unchanged("segment", folder / "network.safetensors", folder / "network.json")
    elif not (folder / "network.safetensors").is_file():
        raise RunError(
            f"{folder}: not a run folder (no {run.manifest_file.name}), and no network.safetensors in it; expected a "
            "run with a trained segmenter, its segmenter folder, or what `tagseg export-model RUN --out DIR` made"
        )
    try:
        return read_predictor(folder, device)
    except RunError as error:
        raise RunError(
            f"{error}. Copy the folder again, or make it anew: `tagseg segment RUN --force`, then, if it was exported, "
            "`tagseg export-model RUN --out DIR`"
        ) from error


def read_predictor(folder: Path, device: str = "auto") -> Predictor:
    """Restore a segmentation network from the folder that its training left.

    Raises:
        RunError: when its files are damaged, or describe what is no segmentation network of ours.
        ValueError: when the device cannot be had.
    """
    file = folder / "network.safetensors"

    def build(about: dict[str, Any]) -> Segmenter:
        # Networks older than the choice are DeepLabV3+.
        name = about.get("network", "deeplabv3plus")
        try:
            return empty_segmenter(about["encoder"], len(about["classes"]), about["stride"], name)
        except (RuntimeError, TypeError, ValueError) as error:
            raise RunError(f"{file}: the network it describes cannot be built here ({error})") from error

    def expected(about: dict[str, Any]) -> dict[str, Tensor]:
        check_about(about, file)
        check_twin(folder / "network.json", about)
        # Without memory first: it may describe an enormous network, and hold another one.
        with torch.device("meta"):
            return build(about).state_dict()

    tensors, about = load_tensors(file, expected)
    network = build(about)
    restore(network, tensors, file)
    network = network.to(choose_device(device), memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    classes, scales, side = tuple(about["classes"]), tuple(about["predict_scales"]), about["max_side"]
    return Predictor(network, classes, scales, about["predict_flip"], side, window=side)


def predict(
    run: str | Path,
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    options: PredictOptions | None = None,
    track: Track = silent,
) -> Predictions:
    """Write a palette mask for every image, named like it, and classes.json and predictions.jsonl, into `out`.

    predictions.jsonl has a line per image in their order (see `image_line`; for an image that cannot be read its file
    and the error), each appended when all of the image's files are there. Lines of other images stay, in front.

    Args:
        run: a run folder with a trained segmenter, or any other folder that `load` takes.
        images: image files, folders (searched with their subfolders) or glob patterns, or URLs of such (fsspec).
        out: folder of the masks.
        options: how to predict, and what to write.
        track: how to report progress.

    Raises:
        DataError: when there is no image, none can be read, an image would be overwritten, or a mask exists and neither
            `force` nor `resume` is given.
        RunError: as `load`, or when memory runs out; when the Ray engine is asked for and cannot be had, or gives up.
        WriteError: when a file cannot be written, because the disk is full for example.
    """
    options = options or PredictOptions()
    # Where others do the work, it is loaded to see that it can be, and what its classes are.
    predictor = adapted(load(run, options.device if options.engine == "local" else "cpu"), options)
    out = Path(out)
    found = find_images([images] if isinstance(images, str | Path) else images, out)
    todo, lines = (begin if options.format == "png" else begin_parts)(found, out, options)
    written = _written(predictor, run, found, todo, out, options)
    if options.resume:
        remove_temporary(out)
    write_classes(out, predictor.classes[1:])
    write_lines(out / LINES, lines)
    order = {str(path): place for place, path in enumerate(found.values())}
    skipped = {line["image"]: line["error"] for line in lines if "error" in line and line["image"] in order}
    for line in track(_within_memory(written), "predict", len(todo)):
        append_line(out / LINES, line)
        if "error" in line:
            log.warning("skipped: %s", line["error"])
            skipped[line["image"]] = line["error"]
    if lines and options.format == "png":
        write_lines(out / LINES, sorted(read_lines(out / LINES), key=lambda line: order.get(line["image"], -1)))
    if len(skipped) == len(found):
        raise DataError(f"none of the {len(found)} images could be read; first: {next(iter(skipped.values()))}")
    ids = tuple(name for name, path in found.items() if str(path) not in skipped)
    return Predictions(out, ids, tuple(skipped.items()), len(found) - len(todo))


def adapted(predictor: Predictor, options: PredictOptions) -> Predictor:
    """Return a predictor that predicts as the options say; what they leave open stays as the network came."""
    device = next(predictor.network.parameters()).device.type
    asked = {name: getattr(options, name) for name in ("scales", "flip", "max_side", "window")}
    return dataclasses.replace(
        predictor,
        **{name: value for name, value in asked.items() if value is not None},
        batch=adapted_batch(options, device),
        precision=options.precision,
        crf=CrfSettings() if options.crf else None,
    )


def adapted_batch(options: PredictOptions, device: str) -> int:
    """Return how many images go through the network together on a device."""
    return options.batch or (1 if device == "cpu" else GPU_BATCH)


def _written(
    predictor: Predictor,
    run: str | Path,
    found: dict[str, Location],
    todo: Sequence[str],
    out: Path,
    options: PredictOptions,
) -> Iterator[Line]:
    """The images' lines, each when its files are written; nothing is begun before the first is asked for."""
    if options.engine == "local":
        outcomes = local_outcomes(predictor, found, todo, options)
    else:
        outcomes = ray_outcomes(predictor, run, found, todo, options)
    if options.format == "png":
        return ahead(outcomes, lambda outcome: write_files(outcome, out), THREADS)
    return write_parts(outcomes, out, len(found) - len(todo), len(todo), options.rows)


def _within_memory(lines: Iterator[Line]) -> Iterator[Line]:
    """The lines; where memory runs out, the error names the flags to lower."""
    try:
        yield from lines
    except (MemoryError, RuntimeError) as error:
        cause = ran_out(error)
        if not cause:
            raise
        raise RunError(
            f"memory ran out ({cause}); lower --batch, --window or --max-side, and go on with --resume"
        ) from error
