"""Networks and training states as safetensors and JSON; nothing is ever unpickled."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tagseg.errors import RunError
from tagseg.run.history import write_history
from tagseg.system.files import write_atomically
from tagseg.system.records import (
    Record,
    ascii_json,
    convert_record,
    metadata_json,
    parse_json,
    record_values,
    write_record,
)
from tagseg.system.untrusted import require_regular, shown

About = dict[str, Any]

R = TypeVar("R", bound=Record)

_MAX_HEADER = 1 << 24
"""Bytes of a file's header: names and shapes of tens of thousands of tensors, and metadata."""

_CHECKSUM = "sha256"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

CHECKPOINT = "checkpoint.safetensors"
"""The state of a training that has not finished."""


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors to `path` (.safetensors) atomically; the metadata hold `about` as JSON, and a checksum."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # Within the same entry: safetensors writes several entries of metadata in any order.
    text = metadata_json({**about, _CHECKSUM: _checksum(about, plain)})
    write_atomically(path, save(plain, metadata={"tagseg": text}))


def save_trained(folder: Path, network: nn.Module, about: Record, history: Sequence[dict[str, Any]]) -> None:
    """Write a finished training: network.safetensors, network.json (`about` again, for people) and history.jsonl. Its
    saved state goes last (see `is_trained`)."""
    save_tensors(folder / "network.safetensors", network.state_dict(), record_values(about))
    write_record(folder / "network.json", about)
    write_history(folder / "history.jsonl", history)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def load_tensors(
    path: Path, expected: Callable[[About], Mapping[str, Tensor]] | None = None
) -> tuple[dict[str, Tensor], About]:
    """Read a file that `save_tensors` wrote.

    `expected` receives the file's `about` and returns tensors like those the file must hold (on the meta device, for
    example). Tensors are read only when names, shapes and dtypes agree.

    Raises:
        RunError: when the file is missing or damaged, holds other tensors, or its checksum does not match its content.
    """
    try:
        found, about, checksum = _header(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(f"{path}: missing or damaged ({error})") from error
    if expected is not None:
        _require_fit(_kinds(expected(about)), found, path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(f"{path}: missing or damaged ({error})") from error
    # Files of earlier versions and of other programs have no checksum.
    if checksum not in (None, _checksum(about, tensors)):
        raise RunError(f"{path}: missing or damaged (its checksum does not match its content: it was changed)")
    return tensors, about


def is_trained(folder: Path) -> bool:
    """Tell whether a training has finished in this folder: its result is complete and its saved state is gone."""
    complete = (folder / "network.safetensors").exists() and (folder / "history.jsonl").exists()
    return complete and not (folder / CHECKPOINT).exists()


def restore(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Load a module's whole state.

    Raises:
        RunError: when names, shapes or dtypes do not fit, or a value is not finite.
    """
    _require_fit(_kinds(module.state_dict()), _kinds(tensors), source)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise RunError(f"{source}: {name} holds values that are not finite; it was damaged or changed")
    module.load_state_dict(tensors)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's per-parameter state as flat tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{i}.{key}": value for i, entry in state.items() for key, value in entry.items() if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], source: Path) -> None:
    """Load what `optimizer_tensors` returned; hyper-parameters do not change.

    Raises:
        RunError: when a tensor belongs to no parameter, or has another shape than its parameter.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in select(tensors, "optimizer").items():
        index, _, key = name.partition(".")
        known = index.isdecimal() and len(index) < 9 and int(index) < len(parameters)
        if not known or value.shape not in ((), parameters[int(index)].shape):
            raise RunError(f"{source}: does not fit the training: optimizer.{shown(name)} of {tuple(value.shape)}")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name starts with `prefix.`, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def read_about(path: Path) -> About:
    """Return the `about` of a file that `save_tensors` wrote, without reading its tensors.

    Raises:
        RunError: when the file is missing or damaged.
    """
    try:
        return _header(path)[1]
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(f"{path}: missing or damaged ({error})") from error


def as_record(about: About, kind: type[R], source: Path) -> R:
    """Return the record that the `about` of `source` stands for; keys that the record does not know are ignored.

    Raises:
        RunError: when it does not fit, naming the place in it and what was expected there.
    """
    try:
        return convert_record(about, kind)
    except ValueError as error:
        raise RunError(f"{source}: damaged ({error})") from error


def _header(path: Path) -> tuple[dict[str, tuple[torch.dtype, tuple[int, ...]]], About, object]:
    """Return dtype and shape of every tensor, `about`, and the checksum; no tensor is read."""
    from safetensors import safe_open

    require_regular(path)
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > _MAX_HEADER:
        raise ValueError(f"a header of {size} bytes, expected at most {_MAX_HEADER}")
    found = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            if part.get_dtype() not in _DTYPES:
                raise ValueError(f"{shown(name)} is of type {part.get_dtype()}")
            found[name] = _DTYPES[part.get_dtype()], tuple(part.get_shape())
        about = parse_json((file.metadata() or {}).get("tagseg", "{}"))
    if not isinstance(about, dict):
        raise ValueError("its metadata holds no object")
    checksum = about.pop(_CHECKSUM, None)
    return found, about, checksum


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def _require_fit(
    expected: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    found: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    source: Path,
) -> None:
    wrong = [name for name in (*expected, *(found.keys() - expected.keys())) if found.get(name) != expected.get(name)]
    if wrong:
        here, wanted = (
            "no such tensor" if one is None else f"{str(one[0]).removeprefix('torch.')} of {one[1]}"
            for one in (found.get(wrong[0]), expected.get(wrong[0]))
        )
        raise RunError(
            f"{source}: does not fit the network: {shown(wrong[0])} is {here}, expected {wanted}; {len(wrong)} tensors "
            "differ"
        )


def _checksum(about: About, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of `about` and of all tensors: names, dtypes, shapes, bytes."""
    digest = hashlib.sha256(ascii_json(about))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(ascii_json([name, str(tensor.dtype), list(tensor.shape)]))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
