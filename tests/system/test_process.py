import os
import platform
import sys
import types
from multiprocessing import spawn
from pathlib import Path

import pytest
import torch

from tagseg.system.process import machine, script_hidden, versions


def test_versions_include_python_and_the_installed_packages() -> None:
    found = versions()
    assert found["python"] == platform.python_version() and found["timm"]
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_a_spawned_process_does_not_see_a_hidden_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = types.ModuleType("__main__")
    script.__file__ = str(tmp_path / "script.py")
    monkeypatch.setitem(sys.modules, "__main__", script)
    key = "init_main_from_path"
    assert spawn.get_preparation_data("a")[key] == script.__file__
    with script_hidden():
        assert key not in spawn.get_preparation_data("a")
    assert sys.modules["__main__"] is script


def test_the_machine_is_described_by_cores_system_and_gpu() -> None:
    text = machine()
    assert text.startswith(f"{os.cpu_count()} cores, ") and platform.system() in text
    assert (torch.cuda.is_available() and torch.cuda.get_device_name() in text) or text.endswith(platform.system())
