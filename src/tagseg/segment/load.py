"""Load a trained segmentation network, ready to predict. PyTorch is imported only if it computes."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path

from tagseg.errors import RunError
from tagseg.run.folder import Run, network_folder
from tagseg.run.hub import fetch_network, is_hub_address, parse_hub_address
from tagseg.segment.about import check_about
from tagseg.segment.engines import Asked, Opened, Pictures, open_engine
from tagseg.segment.predictor import Predictor, configure
from tagseg.settings.predict import Engine, Precision, PredictOptions

log = logging.getLogger(__name__)


def load(path: str | Path, device: str = "auto", engine: Engine = "auto", precision: Precision = "fp32") -> Predictor:
    """Load a segmentation network, ready to predict; it gives the same output in every process on one machine.

    Args:
        path: a run folder, its segmenter folder, a folder written by `tagseg export-model`, or the address of a network
            on the Hugging Face Hub, hf://owner/name or hf://owner/name@revision (see `fetch_network`).
        device: as `--device`.
        engine: as `--engine`. auto takes an engine other than PyTorch only where an earlier `tagseg predict`, or a call
            with its name, has prepared it.
        precision: as `--precision`.

    Raises:
        RunError: if there is no trained segmenter, its files are damaged or do not describe one, the Hub cannot be
            reached, or the engine is not installed or cannot compute it.
        ValueError: if the device is not available.
    """
    options = PredictOptions(device=device, engine=engine, precision=precision)
    opened = open_predictor(path, options)
    log.info("engine: %s (%s)", opened.engine, opened.why)
    return opened.predictor


def open_predictor(
    path: str | Path,
    options: PredictOptions,
    pictures: Callable[[Predictor, int], Pictures] | None = None,
    images: int = 0,
) -> Opened:
    """Load a network as the options ask; `pictures` returns up to so many of the `images`, to check
    engines with.

    Raises:
        RunError, ValueError: as `load`.
    """
    hub = parse_hub_address(path) if is_hub_address(path) else None
    folder = fetch_network(hub, check_about) if hub else network_folder(Path(path))
    if not hub and (run := Run(Path(path))).manifest_file.exists():
        run.require_unchanged("segment", folder / "network.safetensors", folder / "network.json")

    @functools.cache  # an export and the checks of engines need it, too
    def read() -> Predictor:
        from tagseg.segment.read_network import read_predictor

        try:
            return read_predictor(folder, options.device)
        except RunError as error:
            if hub:
                raise RunError(
                    f"{hub}: {error}. If the download was damaged, delete this folder and load the network again: "
                    f"{folder.parents[1]}"
                ) from error
            raise RunError(
                f"{error}. Copy the folder again, or recreate it: `tagseg segment RUN --force`, then, if it was "
                "exported, `tagseg export-model RUN --out DIR`"
            ) from error

    def given(count: int) -> Pictures:
        return pictures(configure(read(), options), count) if pictures is not None else ()

    asked = Asked(options.engine, options.precision, options.device, options.agreement)
    return open_engine(folder, asked, read, lambda predictor: configure(predictor, options), given, images)
