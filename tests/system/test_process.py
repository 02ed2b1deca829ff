import os
import platform

import torch

from tagseg.system.process import machine, versions


def test_versions_are_those_that_compute() -> None:
    found = versions()
    assert found["python"] == platform.python_version() and found["timm"]
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_the_machine_in_words() -> None:
    said = machine()
    assert said.startswith(f"{os.cpu_count()} cores, ") and platform.system() in said
    assert (torch.cuda.is_available() and torch.cuda.get_device_name() in said) or said.endswith(platform.system())
