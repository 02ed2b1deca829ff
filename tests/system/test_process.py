import os
import platform

import torch

from tagseg.system.process import machine, versions


def test_versions_include_python_and_the_installed_packages() -> None:
    found = versions()
    assert found["python"] == platform.python_version() and found["timm"]
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_the_machine_is_described_by_cores_system_and_gpu() -> None:
    text = machine()
    assert text.startswith(f"{os.cpu_count()} cores, ") and platform.system() in text
    assert (torch.cuda.is_available() and torch.cuda.get_device_name() in text) or text.endswith(platform.system())
