"""Networks and training states as safetensors and JSON; nothing is ever unpickled."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tagseg.run import RunError, write_atomically

CHECKPOINT = "checkpoint.safetensors"
"""The state of a training that has not finished."""


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors to `path` (.safetensors) with `about` as JSON in its metadata, in one atomic step."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, save(plain, metadata={"tagseg": json.dumps(about, ensure_ascii=False)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        RunError: when the file is missing or damaged.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("tagseg", "{}"))
        if not isinstance(about, dict):
            raise ValueError("its metadata holds no object")
        return load_file(path), about
    except (OSError, SafetensorError, ValueError, RecursionError) as error:  # the last two: what is no JSON, or absurd
        raise RunError(f"{path}: missing or damaged ({error})") from error


def is_trained(folder: Path) -> bool:
    """Tell whether a training has left all that it leaves in its folder: its state goes last."""
    whole = (folder / "network.safetensors").exists() and (folder / "history.jsonl").exists()
    return whole and not (folder / CHECKPOINT).exists()


def restore(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Load a module's whole state.

    Raises:
        RunError: when names or shapes do not fit.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise RunError(f"{source}: does not fit the network: {str(error)[:300]}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's per-parameter state as flat tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{i}.{key}": value for i, entry in state.items() for key, value in entry.items() if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load what `optimizer_tensors` returned; hyper-parameters stay as they are."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name starts with `prefix.`, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}
