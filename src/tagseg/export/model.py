"""Export of a trained segmentation network: weights, description, model card, and optionally an ONNX file.

The names are those of the Hugging Face Hub: README.md is its model card, and model.safetensors with config.json is what
`from_pretrained` of segmentation-models-pytorch reads, where the network is theirs.
"""

from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import msgspec
import torch

from tagseg.errors import RunError
from tagseg.export.card import model_card, weights_licence
from tagseg.export.folder import replacing
from tagseg.export.int8 import Int8Loss, choose_photographs, write_int8_onnx
from tagseg.export.onnx import write_onnx, write_openvino
from tagseg.masks.palette import class_colours
from tagseg.networks.segmenters import foreign_config
from tagseg.run.folder import EXPORTED_WEIGHTS, Run
from tagseg.run.lock import own_files
from tagseg.segment.about import ExportedAbout, check_about
from tagseg.segment.engines import ENGINES_FOLDER
from tagseg.segment.graph_export import require_exporter
from tagseg.segment.graphs import installed
from tagseg.segment.load import load
from tagseg.segment.predictor import Predictor
from tagseg.segment.read_network import exported_tensors
from tagseg.system.changes import is_unsettled
from tagseg.system.files import write_atomically
from tagseg.system.records import json_text, record_values, write_record
from tagseg.training.checkpoint import read_about, save_tensors

CARD = "README.md"
FOREIGN = "config.json"
"""What segmentation-models-pytorch builds the network from."""

EXPORTED_FILES = (
    EXPORTED_WEIGHTS,
    "network.json",
    FOREIGN,
    "model.onnx",
    "model.int8.onnx",
    "model.xml",
    "model.bin",
    ENGINES_FOLDER,
    CARD,
)
"""Files that an exported folder may hold."""

_FILES_OF_0_1 = ("network.safetensors", "network.json", "model.onnx", "MODEL_CARD.md")


@dataclass(frozen=True)
class ExportedModel:
    """What `export_model` wrote: the folder and its files.

    onnx_difference: the largest difference between the probabilities of ONNX Runtime and PyTorch; None without an ONNX
    file, or if ONNX Runtime is not installed. With `openvino` the larger of the two engines' differences. int8_loss:
    what model.int8.onnx loses; None without it.
    """

    folder: Path
    files: tuple[str, ...]
    onnx_difference: float | None
    int8_loss: Int8Loss | None = None


def export_model(
    run: str | Path,
    out: str | Path,
    onnx: bool = False,
    force: bool = False,
    openvino: bool = False,
    int8: bool = False,
) -> ExportedModel:
    """Write a run's segmentation network to a folder that `tagseg.load` can read on any machine.

    The folder holds model.safetensors, network.json, README.md (the model card), config.json if the network is one of
    segmentation-models-pytorch, and model.onnx if asked for. It is written completely or not at all, and contains no
    path of this machine.

    Args:
        run: a run folder with a trained segmentation network.
        out: the new folder.
        onnx: also write model.onnx.
        force: replace a folder that an earlier export wrote.
        openvino: also write model.xml and model.bin, the same graph for OpenVINO.
        int8: also write model.int8.onnx, whose convolutions compute in int8 (see `write_int8_onnx`).

    Raises:
        RunError: when the run has no segmentation network, `out` exists and `force` is not given, or `out` holds files
            that no export wrote.
        ValueError: when the ONNX file cannot be written, or its results differ from PyTorch's; when the network loses
            too much in int8, or the run's photographs are gone.
    """
    source, folder = Run(Path(run)), Path(out).resolve()
    source.require("segment")

    def check(finished: bool) -> None:
        _require_free(folder, force or finished)

    check(False)
    if onnx or openvino or int8:
        require_exporter("--int8" if int8 else "--onnx")
    if int8 and not installed("onnxruntime"):
        raise ValueError("--int8: requires onnxruntime; install with pip install 'tagseg[onnx]'")
    if openvino and not installed("openvino"):
        raise ValueError("--openvino: requires openvino; install with pip install 'tagseg[openvino]'")
    photographs = choose_photographs(source) if int8 else None  # now, not after minutes of writing graphs
    predictor = load(source.root, "cpu", "torch")
    about, settings = describe(source), without_folders(source.settings().to_dict())
    difference, loss, request = None, None, f"export-model {source.root.resolve()} {onnx} {openvino} {int8}"
    with replacing(folder, request, check) as temporary:
        save_tensors(temporary / EXPORTED_WEIGHTS, exported_tensors(predictor.module), record_values(about))
        write_record(temporary / "network.json", about)
        if config := foreign_config(predictor.module):
            write_atomically(temporary / FOREIGN, json_text(config, 2) + "\n")
        if onnx or openvino or int8:
            metadata = _onnx_metadata(predictor, about)
            difference = write_onnx(predictor.module, metadata, temporary / "model.onnx")
        if openvino:
            difference = max(difference or 0.0, write_openvino(predictor.module, temporary / "model.onnx"))
        if int8:
            assert photographs is not None, "they were chosen first"
            loss = write_int8_onnx(photographs, about.max_side, temporary / "model.onnx", temporary / "model.int8.onnx")
        if (openvino or int8) and not onnx:
            (temporary / "model.onnx").unlink()
        write_atomically(temporary / CARD, model_card(source, about, settings, onnx, difference, loss))
        files = tuple(own_files(temporary))
    return ExportedModel(folder, files, difference, loss)


def describe(run: Run) -> ExportedAbout:
    """Return the description of an exported network: that of the trained one, versions, and the weights' licence."""
    from tagseg._version import __version__

    settings = run.settings()
    file = run.segmenter / "network.safetensors"
    about = check_about(read_about(file), file)
    licence = weights_licence(about.encoder, settings.segment.weights or settings.train.weights)
    # Only known keys: another one may hold a path of this machine.
    own = msgspec.structs.asdict(about) | {"encoder": without_folders(about.encoder)}
    return ExportedAbout(**own, tagseg=__version__, torch=str(torch.__version__), licence=licence)


def without_folders(value: Any, keep: tuple[str, ...] = ()) -> Any:
    """Return nested plain values with every path reduced to its last part, except under the names in `keep`."""
    if isinstance(value, dict):
        return {name: part if name in keep else without_folders(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(part) for part in value]
    return PureWindowsPath(value).name if isinstance(value, str) else value


def is_export(folder: Path) -> bool:
    """Tell whether a folder holds what an export wrote, and nothing else."""
    found = set(own_files(folder)) if folder.is_dir() else set()
    return any(names[-1] in found and found <= set(names) for names in (EXPORTED_FILES, _FILES_OF_0_1))


def _onnx_metadata(predictor: Predictor, about: ExportedAbout) -> dict[str, Any]:
    mean, std = (numbers.flatten().tolist() for numbers in (predictor.module.mean, predictor.module.std))
    return {
        "classes": about.classes,
        "palette": class_colours(len(predictor.classes) - 1),
        "normalisation": {"inside": True, "mean": mean, "std": std},
        "max_side": about.max_side,
        "licence": msgspec.to_builtins(about.licence),
        "tagseg": about.tagseg,
    }


def _require_free(folder: Path, force: bool) -> None:
    if not folder.exists() or (folder.is_dir() and (is_unsettled(folder) or not own_files(folder))):
        return
    if not folder.is_dir():
        raise RunError(f"{folder}: is a file, expected a folder; choose another --out")
    found = set(own_files(folder))
    if not is_export(folder):
        other = sorted(found - set(EXPORTED_FILES)) or sorted(found)
        raise RunError(f"{folder}: holds files that no export wrote ({', '.join(other[:5])}); choose another --out")
    if not force:
        raise RunError(f"{folder}: exists; choose another --out or --force")
