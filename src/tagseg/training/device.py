"""Which device computes, and translation by torch.compile."""

import torch
from torch import nn

from tagseg.system.untrusted import shown
from tagseg.training.distributed import ALONE, Group


def choose_device(name: str, group: Group = ALONE) -> torch.device:
    """Return the device called `name`; `auto` takes CUDA, then Apple's MPS, then the CPU. Of several processes each has
    its own.

    Raises:
        ValueError: when torch does not know the name or the device is not there.
    """
    if group.device is not None:
        return group.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if torch.zeros(1, device=device).is_meta:
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]  # PyTorch adds a list of all devices
        raise ValueError(f"--device {name}: not available here ({shown(reason)}); try auto or cpu") from error
    return device


def compile_network(network: nn.Module, on: bool) -> None:
    """Let torch.compile translate a network when it is first called, in place and if it is `on`.

    Raises:
        ValueError: when torch.compile does not work here.
    """
    if not on:
        return
    device = next(network.parameters()).device
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # whatever its compilers raise where there are none
        raise ValueError(
            f"setting compile: torch.compile does not work here ({str(error).splitlines()[0][:200]}); leave it out"
        ) from error
    network.compile()
