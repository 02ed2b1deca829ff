"""What predicts: a trained segmentation network, in PyTorch or as a graph of another engine. This module imports no
PyTorch."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from tagseg.data.images import AnyImage, any_image
from tagseg.segment.graphs import Graph
from tagseg.segment.label_pixels import Decided, label_pixels, likely_candidates, refine
from tagseg.segment.prediction import Prediction
from tagseg.segment.resolution import Resolution, resize_to_picture
from tagseg.segment.windows import ClassProbabilities, windowed_probabilities
from tagseg.settings.crf import CrfSettings
from tagseg.settings.predict import Precision, PredictOptions
from tagseg.system.process import cores

if TYPE_CHECKING:
    from tagseg.networks.segmenters import Segmenter

DEFAULT_GPU_BATCH = 8
"""Images that go through the network together on a GPU by default."""


@dataclass(frozen=True)
class Predictor:
    """A trained segmentation network, ready to predict; class id i is `classes[i]`.

    Probabilities are averaged over `scales` and, with `flip`, the mirrored image. Larger images are reduced to a long
    side of `max_side` pixels (0: never); if that exceeds `window`, they are predicted in windows of this side, `batch`
    at a time. `network` is a PyTorch module, or the graph of another engine; `precision` is the number format of its
    forward pass. `crf` refines masks, if it is given. `threads` is how many views or windows of one image a graph
    computes at the same time; the result does not depend on it.
    """

    network: Union["Segmenter", Graph]
    classes: tuple[str, ...]
    scales: tuple[float, ...]
    flip: bool
    max_side: int
    window: int = 512
    batch: int = 1
    precision: Precision = "fp32"
    crf: CrfSettings | None = None
    threads: int = dataclasses.field(default_factory=cores)

    def __call__(self, image: AnyImage) -> Prediction:
        """Return the prediction for an image: a file, a Pillow image or an array, all with the same result.

        Files and Pillow images are turned upright by their EXIF orientation, as by `tagseg predict`. An array is uint8,
        `h w 3` in RGB, `h w 4` with alpha, or grey `h w`.

        Raises:
            DataError: when a file cannot be read, or an array is not such an image.
        """
        rgb = any_image(image)
        decided = self.decided(self.look([self.picture(rgb)])[0], (rgb.height, rgb.width), rgb)
        return Prediction(rgb, decided.mask, self.classes, decided.area, decided.confidence)

    def probabilities(self, image: AnyImage) -> ClassProbabilities:
        """Return the class probabilities of an image (ids y x), at the resolution of the prediction, or at a quarter of
        it if the image is predicted in windows.

        Raises:
            DataError: as for a call.
        """
        return self.look([self.picture(any_image(image))])[0]

    @property
    def resolution(self) -> Resolution:
        """The resolution at which images are predicted."""
        return Resolution(self.max_side, self.window)

    @property
    def is_graph(self) -> bool:
        """Whether another engine than PyTorch computes; several threads may then predict at the same time."""
        return isinstance(self.network, Graph)

    @property
    def graph(self) -> Graph:
        """The network as a graph; it must not be in PyTorch."""
        assert isinstance(self.network, Graph), "the network was read into PyTorch"
        return self.network

    @property
    def module(self) -> "Segmenter":
        """The network in PyTorch; it must not be a graph."""
        assert not isinstance(self.network, Graph), "the network was read into another engine than PyTorch"
        return self.network

    @property
    def device(self) -> str:
        """The kind of device that computes: cpu, cuda, mps."""
        return "cpu" if isinstance(self.network, Graph) else str(next(self.network.parameters()).device.type)

    def picture(self, image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
        """Return an RGB image at the resolution of the prediction."""
        return resize_to_picture(image, self.resolution)

    def look(self, pictures: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[ClassProbabilities]:
        """Return the class probabilities (ids y x) of pictures of one size (see `picture`)."""
        if max(pictures[0].shape) > self.window:
            batch = max(self.batch, self.threads) if isinstance(self.network, Graph) else self.batch
            return [windowed_probabilities(self._predict, picture, self.window, batch) for picture in pictures]
        return list(self._predict(np.stack(pictures)))

    def decided(self, seen: ClassProbabilities, size: tuple[int, int], image: Image.Image | None = None) -> Decided:
        """Return the mask of an image of (height, width) `size` from its probabilities `seen`; the dense CRF needs the
        RGB image."""
        if self.crf is None:
            return label_pixels(likely_candidates(seen), size, len(self.classes))
        assert image is not None, "the dense CRF needs the image"
        return label_pixels(refine(seen, image, size, self.crf), size, len(self.classes))

    def _predict(self, pictures: UInt8[np.ndarray, "b h w 3"]) -> Float32[np.ndarray, "b ids h w"]:
        if isinstance(self.network, Graph):
            return self._graph_probabilities(self.network, pictures)
        from tagseg.segment.infer import picture_probabilities  # PyTorch is imported by then

        return picture_probabilities(self.network, pictures, self.scales, self.flip, self.precision)

    def _graph_probabilities(
        self, graph: Graph, pictures: UInt8[np.ndarray, "b h w 3"]
    ) -> Float32[np.ndarray, "b ids h w"]:
        """Return the mean over the scales; each scale of each picture is a task of its own."""
        tasks = [(picture, scale) for picture in pictures for scale in self.scales]

        def shares(task: tuple[UInt8[np.ndarray, "h w 3"], float]) -> Float32[np.ndarray, "ids h w"]:
            return graph.shares(task[0], task[1], self.flip)

        if self.threads > 1 and len(tasks) > 1:
            with ThreadPoolExecutor(self.threads) as pool:
                found = list(pool.map(shares, tasks))
        else:
            found = [shares(task) for task in tasks]
        sums = found[:: len(self.scales)]
        for place in range(1, len(self.scales)):
            for total, other in zip(sums, found[place :: len(self.scales)], strict=True):
                total += other
        return np.stack(sums) / np.float32(len(self.scales) * (1 + self.flip))


def configure(predictor: Predictor, options: PredictOptions) -> Predictor:
    """Return a predictor that follows the options; what they leave open stays as the network was saved."""
    chosen = {name: getattr(options, name) for name in ("scales", "flip", "max_side", "window")}
    return dataclasses.replace(
        predictor,
        **{name: value for name, value in chosen.items() if value is not None},
        batch=batch_size(options.batch, predictor.device),
        precision=options.precision,
        crf=CrfSettings() if options.crf else None,
    )


def batch_size(batch: int, device: str) -> int:
    """Return how many images go through the network together on a device: `batch`, or the device's default if it is
    0."""
    return batch or (1 if device == "cpu" else DEFAULT_GPU_BATCH)
