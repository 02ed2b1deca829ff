import os
import platform
import sys
import types
from multiprocessing import spawn
from pathlib import Path

import pytest
import torch

from tagseg.system.process import lacks_shared_memory, machine, said_by, script_hidden, versions


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


def test_an_error_from_a_process_that_reads_images_is_told_without_its_traceback() -> None:
    text = (
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "worker.py", line 1, in loop\n    data = fetch()\n           ^^^^^^^\n'
        "RuntimeError: unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)\n"
    )
    said = "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
    assert said_by(RuntimeError(text)) == said == lacks_shared_memory(RuntimeError(text))
    assert said_by(ValueError(text.replace("RuntimeError: ", "tagseg.errors.DataError: a.png: "))) == f"a.png: {said}"
    assert said_by(ValueError("a.png: gone")) == "a.png: gone"
